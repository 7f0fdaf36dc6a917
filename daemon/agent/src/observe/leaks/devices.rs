//! The devices of this node, listed by the observer's own code: it must see a device that the
//! guard's listing overlooks.

use std::collections::BTreeMap;

use hauberk_datapath::observer::Device;
use nix::ifaddrs::getifaddrs;
use nix::libc::ARPHRD_ETHER;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// Every device except loopback and those that `is_inside` knows: the tunnel, pods' interfaces, and
/// devices that pass packets on to others.
///
/// # Errors
/// The kernel's error.
pub fn list(is_inside: impl Fn(&str, u32) -> bool) -> Result<Vec<Device>, nix::Error> {
    let mut devices = BTreeMap::new();
    for entry in getifaddrs()? {
        // Every device has one entry for its hardware address. In the entry of a device without
        // one, such as a tun device, the address is missing.
        let (index, ethernet) = match &entry.address {
            None => match if_nametoindex(entry.interface_name.as_str()) {
                Ok(index) => (index, false),
                Err(_) => continue,
            },
            Some(address) => match address.as_link_addr() {
                Some(link) => (link.ifindex() as u32, link.hatype() == ARPHRD_ETHER),
                None => continue,
            },
        };
        if entry.flags.contains(InterfaceFlags::IFF_LOOPBACK) || is_inside(&entry.interface_name, index) {
            continue;
        }
        devices.insert(index, Device { index, name: entry.interface_name, ethernet });
    }
    Ok(devices.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_left_out_and_so_is_what_is_inside() {
        let all = list(|_, _| false).unwrap();
        assert!(all.iter().all(|device| device.name != "lo" && device.index != 0));
        for device in &all {
            let others = list(|name, index| name == device.name && index == device.index).unwrap();
            assert!(!others.contains(device));
        }
    }
}
