//! A VXLAN between one node and the others, as flannel makes it.

use anyhow::Result;
use hauberk_cluster::{Cluster, Node};

/// The node whose pods are behind the VXLAN.
pub const NODE: &str = "n3";
/// The UDP port of its packets.
pub const PORT: u16 = 8472;

const DEVICE: &str = "flannel.1";
const MTU: u32 = 1450;

/// A node's end of the VXLAN: its MAC address, and the first address of each of its pod ranges.
struct End<'a> {
    node: &'a Node,
    ranges: [String; 2],
    mac: String,
    addresses: [String; 2],
}

/// Makes the VXLAN, and routes traffic between pods on [`NODE`] and pods on other nodes through it.
pub fn connect(cluster: &Cluster) -> Result<()> {
    let mut ends = Vec::new();
    for (index, node) in cluster.nodes.iter().enumerate() {
        let ranges = cluster.pod_ranges(node)?;
        let addresses = ranges.clone().map(|range| range.split('/').next().unwrap_or_default().to_owned());
        ends.push(End { node, ranges, mac: format!("0e:00:00:00:00:{:02x}", index + 1), addresses });
    }
    ends.iter().try_for_each(make_device)?;
    for end in &ends {
        for other in &ends {
            let one_is_behind = (end.node.name() == NODE) != (other.node.name() == NODE);
            if one_is_behind {
                lead_to(end, other)?;
            }
        }
    }
    Ok(())
}

fn make_device(end: &End<'_>) -> Result<()> {
    let [v4, v6] = &end.addresses;
    end.node.party.netns.ip(&format!(
        "link add {DEVICE} address {} mtu {MTU} type vxlan id 1 local {} dev eth0 dstport {PORT} nolearning
         addr add {v4}/32 dev {DEVICE}
         link set {DEVICE} up
         addr add {v6}/128 dev {DEVICE} nodad",
        end.mac, end.node.party.v4
    ))
}

fn lead_to(from: &End<'_>, to: &End<'_>) -> Result<()> {
    for (range, address) in to.ranges.iter().zip(&to.addresses) {
        // The plain route is removed first: while it exists, the kernel does not accept that the
        // gateway is on the device.
        from.node.party.netns.ip(&format!(
            "neigh add {address} lladdr {} dev {DEVICE} nud permanent
             route del {range}
             route add {range} via {address} dev {DEVICE} onlink",
            to.mac
        ))?;
    }
    let destination = to.node.party.v4.to_string();
    from.node.run("bridge", &["fdb", "append", &to.mac, "dev", DEVICE, "dst", &destination])?;
    Ok(())
}
