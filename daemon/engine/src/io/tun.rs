//! The TUN device, which reads and writes super-packets.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::syscalls;
use crate::config::DeviceConfig;
use crate::error::Error;
use crate::offload::virtio;
use crate::stats::OffloadFeatures;

/// Packets, each up to 64 KB, that the kernel holds for a queue before it drops.
const QUEUE_LENGTH: libc::c_int = 1000;

/// TUN_F_* of linux/if_tun.h.
const CHECKSUM: libc::c_uint = 0x01;
const TSO: libc::c_uint = 0x02 | 0x04 | 0x08; // IPv4, IPv6, with ECN
const USO: libc::c_uint = 0x20 | 0x40; // IPv4, IPv6

/// An open TUN device, or one more queue of it.
///
/// Its queue gets packets only while a tunnel runs on it. Before that, and after it is dropped, the
/// kernel drops (and counts) what is sent into the device.
pub struct Device {
    file: File,
    name: String,
    index: u32,
    mtu: usize,
    features: OffloadFeatures,
}

impl Device {
    /// Opens the device in this thread's network namespace, creates it if needed, and brings it up.
    pub fn open(config: &DeviceConfig) -> Result<Device, Error> {
        let name =
            syscalls::interface_name(&config.name).ok_or_else(|| Error::DeviceName { name: config.name.clone() })?;
        let failed = |step| {
            let name = config.name.clone();
            move |source| Error::Device { name, step, source }
        };

        let file = open_driver().map_err(failed("open /dev/net/tun"))?;
        let offered = syscalls::tun_features(file.as_fd()).map_err(failed("ask the TUN driver for its features"))?;
        let vnet_header = offered & libc::IFF_VNET_HDR != 0;
        open_queue(&file, &name, vnet_header).map_err(failed("open its queue"))?;
        let features = if vnet_header {
            syscalls::tun_set_header_length(file.as_fd(), virtio::HEADER_LENGTH as libc::c_int)
                .map_err(failed("set the length of its packet headers"))?;
            agree_offload(file.as_fd())
        } else {
            OffloadFeatures::default()
        };

        let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(io::Error::from)
            .map_err(failed("open a control socket"))?;
        syscalls::set_mtu(control.as_fd(), &name, config.mtu).map_err(failed("set its MTU"))?;
        syscalls::set_queue_length(control.as_fd(), &name, QUEUE_LENGTH).map_err(failed("set its queue length"))?;
        syscalls::bring_up(control.as_fd(), &name).map_err(failed("bring it up"))?;
        syscalls::process_link_change(control.as_fd(), &name).map_err(failed("settle its link"))?;
        // Last, so that a device whose setup fails does not stay.
        syscalls::tun_set_persist(file.as_fd(), config.persist).map_err(failed("set whether it persists"))?;
        let index = nix::net::if_::if_nametoindex(config.name.as_str())
            .map_err(io::Error::from)
            .map_err(failed("find its index"))?;
        Ok(Device { file, name: config.name.clone(), index, mtu: config.mtu as usize, features })
    }

    /// One more queue of the same device; like the first one, it gets no packets yet.
    pub(crate) fn another(&self) -> Result<Device, Error> {
        let name = syscalls::interface_name(&self.name).ok_or_else(|| Error::DeviceName { name: self.name.clone() })?;
        let file = open_driver()
            .and_then(|file| open_queue(&file, &name, self.features.vnet_header).map(|()| file))
            .map_err(|source| Error::Device { name: self.name.clone(), step: "open one more queue", source })?;
        Ok(Device { file, name: self.name.clone(), ..*self })
    }

    /// Lets the kernel choose the queue by the peer's number, which the eBPF programs write to
    /// `queue_mapping`. False if the kernel refuses.
    pub(crate) fn steer(&self) -> bool {
        let set = syscalls::load_queue_mapping_program()
            .and_then(|program| syscalls::tun_set_steering(self.file.as_fd(), program.as_fd()));
        set.inspect_err(|error| {
            tracing::warn!(
                %error,
                device = self.name,
                "the kernel does not let us choose the device's queues: peers share them, and packets reach their thread by way of \
                 others, which takes more CPU time; is CAP_BPF missing?"
            );
        })
        .is_ok()
    }

    /// The interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the kernel does in bulk on this device.
    #[inline]
    pub fn features(&self) -> OffloadFeatures {
        self.features
    }

    /// Removes a device that was left in place. A device that does not exist is no error.
    pub fn remove(name: &str) -> Result<(), Error> {
        let padded = syscalls::interface_name(name).ok_or_else(|| Error::DeviceName { name: name.to_owned() })?;
        if nix::net::if_::if_nametoindex(name).is_err() {
            return Ok(());
        }
        let failed = |step| move |source| Error::Device { name: name.to_owned(), step, source };
        let file = open_driver().map_err(failed("open /dev/net/tun"))?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR;
        syscalls::tun_set_interface(file.as_fd(), &padded, flags)
            .map_err(failed("attach to it in order to remove it"))?;
        syscalls::tun_set_persist(file.as_fd(), false).map_err(failed("make it go"))
    }

    #[inline]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(crate) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Lets packets into the queue.
    pub(crate) fn attach(&self) -> Result<(), Error> {
        syscalls::tun_set_queue(self.file.as_fd(), true).map_err(|source| Error::Device {
            name: self.name.clone(),
            step: "let packets into its queue",
            source,
        })
    }

    /// Reads one packet or super-packet, with its virtio header if the device has one.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(&self.file, buffer).map_err(io::Error::from)
    }

    /// Writes one packet or super-packet that has a virtio header in front.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        let packet = if self.features.vnet_header { packet } else { &packet[virtio::HEADER_LENGTH..] };
        (&self.file).write(packet).map(drop)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Closing alone is not enough: a forked child that has not executed its program yet holds a
        // copy of the descriptor, and packets would still go into a queue that no process reads.
        let _ = syscalls::tun_set_queue(self.file.as_fd(), false);
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_driver() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open("/dev/net/tun")
}

/// Opens a queue of the device, which the kernel creates if needed, but lets no packets into the
/// queue.
fn open_queue(file: &File, name: &syscalls::Name, vnet_header: bool) -> io::Result<()> {
    // Multi-queue even for one queue: a persistent device could not be opened with more queues
    // later.
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    if vnet_header {
        flags |= libc::IFF_VNET_HDR;
    }
    syscalls::tun_set_interface(file.as_fd(), name, flags)?;
    syscalls::tun_set_queue(file.as_fd(), false)
}

/// Asks for as much as the kernel supports: UDP super-packets came last (6.2), TCP's long before.
fn agree_offload(tun: BorrowedFd<'_>) -> OffloadFeatures {
    let agreed = [CHECKSUM | TSO | USO, CHECKSUM | TSO, CHECKSUM]
        .into_iter()
        .find(|flags| syscalls::tun_set_offload(tun, *flags).is_ok())
        .unwrap_or(0);
    OffloadFeatures {
        vnet_header: true,
        checksum: agreed & CHECKSUM != 0,
        tso: agreed & TSO != 0,
        uso: agreed & USO != 0,
        ..OffloadFeatures::default()
    }
}
