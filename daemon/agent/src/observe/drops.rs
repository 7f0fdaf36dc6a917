//! Drops by reason, each with what it means and what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::reason::{DropReason, Encryption};
use hauberk_api::{DropCount, DropPlace, Drops};
use hauberk_backend::TunnelDrop;
use hauberk_core::identities::Owner;
use hauberk_core::objects::NodeObject;
use hauberk_datapath::DatapathError;

use super::MapReader;
use crate::state::{AgentState, SharedState};

/// What the tunnel device itself drops because the tunnel does not read and the queue is full.
const UNREAD: &str = "tunnel_unread";
/// What netfilter drops because the device it would leave by has no guard.
const UNGUARDED_DEVICE: &str = "unguarded_device";

/// Reasons that also count on a healthy node: the agent's probes, multicast in the network, packets
/// under way when a pod ended or while no agent ran.
const EXPECTED: [&str; 4] = ["self_test", "multicast", "not_local", UNREAD];

/// Every reason that has dropped something; `device` is the tunnel's.
///
/// # Errors
/// [`DatapathError`] if the counters cannot be read.
pub fn drops(agent: &SharedState, map_reader: &MapReader, device: &str) -> Result<Drops, DatapathError> {
    let running = agent.read().running.clone();
    let netfilter = running.as_ref().map(|running| running.netfilter).unwrap_or_default();
    let (sockets, unguarded) = (netfilter.packet_socket, netfilter.unguarded_device);
    let mut reasons: Vec<DropCount> = map_reader
        .maps()
        .drops()?
        .into_iter()
        .map(|(reason, packets)| {
            let netfilter = reason == DropReason::PacketSocket;
            DropCount {
                expected: EXPECTED.contains(&reason.as_str()),
                reason: reason.as_str().into(),
                place: if netfilter { DropPlace::Netfilter } else { DropPlace::Datapath }.into(),
                packets: packets + if netfilter { sockets } else { 0 },
                advice: advice(reason).into(),
            }
        })
        .collect();
    if let Some(Ok(stats)) = running.map(|running| running.backend.stats()) {
        reasons.extend(stats.drops.into_iter().map(|(reason, packets)| DropCount {
            expected: EXPECTED.contains(&reason.as_str()),
            reason: reason.as_str().into(),
            place: DropPlace::Tunnel.into(),
            packets,
            advice: tunnel_advice(reason).into(),
        }));
    }
    reasons.push(DropCount {
        expected: EXPECTED.contains(&UNREAD),
        reason: UNREAD.into(),
        place: DropPlace::Tunnel.into(),
        packets: unread(device),
        advice: "nobody took it from the tunnel device: expected between an agent's end and its next start; if it runs, is it ready, or \
                 is one of its threads hauberk-tun-N at 100 % of a CPU?"
            .into(),
    });
    reasons.push(DropCount {
        expected: EXPECTED.contains(&UNGUARDED_DEVICE),
        reason: UNGUARDED_DEVICE.into(),
        place: DropPlace::Netfilter.into(),
        packets: unguarded,
        advice: "pods' packets were about to leave by a device, or a bridge's port, that has no guard (yet); a few are normal when a \
                 device is made anew; if it goes on, look for the route that leads there"
            .into(),
    });
    reasons.retain(|count| count.packets > 0);
    let from_world = reasons.iter_mut().find(|count| count.reason == DropReason::WorldToProtected.as_str());
    if let Some(count) = from_world
        && let Some(advice) = nodes_advice(&agent.read(), &refused_from_world(map_reader)?)
    {
        count.advice = advice;
    }
    reasons.sort_by(|a, b| {
        a.expected.cmp(&b.expected).then(b.packets.cmp(&a.packets)).then_with(|| a.reason.cmp(&b.reason))
    });
    Ok(Drops { reasons, leaked: agent.read().leaks.counts() })
}

/// Senders of packets that were refused as coming from the world, as far as flows still have them.
fn refused_from_world(map_reader: &MapReader) -> Result<BTreeSet<IpAddr>, DatapathError> {
    let flows = map_reader.maps().flows(hauberk_datapath::now())?.into_iter();
    let refused = flows.filter(|(_, flow)| {
        flow.encryption == Encryption::Refused as u8 && DropReason::from_u8(flow.drop) == DropReason::WorldToProtected
    });
    Ok(refused.map(|(key, _)| key.source.into()).collect())
}

/// Advice for when nodes are among these senders: which nodes, and what to do. Their packets arrive
/// encrypted once every node knows that the address is theirs, so no pod must be opened for them.
fn nodes_advice(agent: &AgentState, sources: &BTreeSet<IpAddr>) -> Option<String> {
    let node_of = |address: &IpAddr| {
        let named = |node: &&NodeObject| node.addresses.iter().any(|given| given.address == *address);
        match agent.desired.owner(&agent.model, &agent.local, (*address).into()) {
            Some(Owner::Node(node)) => Some(node),
            Some(_) => None,
            None => agent.model.nodes().find(named).map(|node| node.name.clone()),
        }
    };
    let mut nodes: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for address in sources {
        if let Some(node) = node_of(address) {
            nodes.entry(node).or_default().insert(*address);
        }
    }
    let named: Vec<String> = nodes
        .iter()
        .map(|(node, addresses)| {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("node {node} (from {})", addresses.join(", "))
        })
        .collect();
    let others = sources.len() > nodes.values().map(BTreeSet::len).sum();
    (!named.is_empty()).then(|| {
        let rest = if others { format!("; the rest: {}", advice(DropReason::WorldToProtected)) } else { String::new() };
        format!(
            "{} sent in the clear to an opted-in pod, from an address that was not known to be a node's: a few are normal when a \
             node is given an address; if it goes on, is its agent running, and the address in its status.addresses and in \
             nodeRanges?{rest}",
            named.join(" and ")
        )
    })
}

/// The device's own counter, which the kernel keeps across restarts of the agent; 0 without the
/// device.
fn unread(device: &str) -> u64 {
    let path = format!("/sys/class/net/{device}/statistics/tx_dropped");
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// What a datapath reason means and what to do.
pub fn advice(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Unspecified => {
            "a reason this agent does not know: programs of another version are attached; restart the agent"
        }
        DropReason::Malformed => {
            "truncated or contradictory packets; if they are frequent, capture on the sender's interface"
        }
        DropReason::SpoofedSource => {
            "a pod sent from an address that is not its own; look at the pod: nested containers need their own addresses translated"
        }
        DropReason::UnknownDestination => {
            "the destination is in clusterRanges or nodeRanges but belongs to no known node; is its Node object missing, do several nodes have it (`hauberk status`), or is clusterRanges too wide?"
        }
        DropReason::NoPeer => {
            "the other end's node has published no usable key: is the agent running there? See `hauberk status`"
        }
        DropReason::PlaintextToProtected => {
            "another node sent plaintext to an opted-in pod: its agent is missing, or does not know of the label yet; or somebody forges packets"
        }
        DropReason::PlaintextFromProtected => {
            "plaintext arrived that claims to come from an opted-in pod of another node: its agent is missing, or somebody forges packets"
        }
        DropReason::PlaintextLeaving => {
            "an opted-in pod's packet could not be put into the tunnel: is the tunnel device there, the packet behind a VLAN tag, or packed into another one by a route (encap) or a mirror?"
        }
        DropReason::NotLocal => "for a pod that is not here any more; expected for a moment when pods end",
        DropReason::TunnelSource => "a peer sent a packet with a source that is not on another node; look at that peer",
        DropReason::NotIp => "an opted-in pod sent something that is neither IP nor ARP: it cannot be encrypted",
        DropReason::Multicast => "an opted-in pod sent multicast or broadcast: it cannot be encrypted to one peer",
        DropReason::NotReady => {
            "an opted-in pod sent to outside the cluster before every object was read: see `hauberk status` for the source"
        }
        DropReason::SelfTest => "the agent's own probes; they prove that the programs run",
        DropReason::RedirectFailed => {
            "the kernel refused to hand a packet to the tunnel or a pod; look for a missing interface in `hauberk bpf`"
        }
        DropReason::Martian => {
            "packets that claim to come from this node's own pods came by another device than the pod's; packets are forged, or routing loops"
        }
        DropReason::WorldToProtected => {
            "packets came from outside the cluster straight to an opted-in pod; if that is wanted, set worldIngress: direct"
        }
        DropReason::TooBig => "larger than the tunnel's MTU; does the sender ignore its route's MTU?",
        DropReason::UnknownSource => {
            "a packet for an opted-in pod of another node from an address that is not known to be this node's yet, or from outside the cluster by way of this node; it cannot be sealed"
        }
        DropReason::SealedFull => {
            "more flows came sealed to node addresses than can be remembered; more of them are refused until others end"
        }
        DropReason::SpoofedNeighbour => {
            "a pod sent ARP or neighbour discovery for an address that is not its own, or as a router; look at the pod: floating addresses need a load balancer of the cluster"
        }
        DropReason::NeighbourLimit => {
            "a pod spoke by more than 8 link-local addresses within a minute, or to more than 8 addresses on its link that nobody has; look at the pod: it may be scanning"
        }
        DropReason::NoBackend => {
            "clients outside the cluster asked for a service that has no backend for them here; see `hauberk services`"
        }
        DropReason::SourceNotAdmitted => {
            "clients that the service's loadBalancerSourceRanges do not admit asked for its load balancer"
        }
        DropReason::ConnectionsFull => {
            "more connections to services than limits.connections, or no source port was left for one more to the same backend; raise the limit, or look for clients that open many"
        }
        DropReason::NoWay => {
            "this node has no route to a client outside the cluster or to the backend for it; look at the node's routes and at its Node object's addresses"
        }
        DropReason::PacketSocket => {
            "a packet socket on this node sent a frame with a pod's address; find the program: nothing on a node should"
        }
    }
}

/// What a tunnel's reason means and what to do.
fn tunnel_advice(reason: TunnelDrop) -> &'static str {
    match reason {
        TunnelDrop::NoPeer => "no peer may receive for that destination; is its pod range in its Node object?",
        TunnelDrop::NoEndpoint => "the peer's Node object has no address to send to",
        TunnelDrop::QueueFull => {
            "more packets waited for a handshake than are kept; the peer does not answer, or is slow"
        }
        TunnelDrop::HandshakeFailed => {
            "the peer did not answer for 90 s: is its agent running, and UDP allowed between the nodes?"
        }
        TunnelDrop::ReplayOrForged => "a packet came twice or was altered on the way; duplicates are harmless",
        TunnelDrop::UnknownSender => {
            "somebody with a key no Node object has sent a packet; expected for a moment after a restart"
        }
        TunnelDrop::NotForOurKey => "a peer still uses a key this node no longer has; it will learn the new one",
        TunnelDrop::SourceNotAllowed => {
            "a peer sealed a packet with a source that belongs to another node; look at that peer"
        }
        TunnelDrop::Malformed => "something that is not WireGuard arrived at its port, or garbage was sealed",
        TunnelDrop::Oversized => "larger than the tunnel's MTU; does the sender ignore its route's MTU?",
        TunnelDrop::TunWriteFailed => "the kernel refused a decrypted packet; is the tunnel device up?",
        TunnelDrop::UdpSendFailed => "the kernel refused a sealed packet; is there a route to the peer?",
        TunnelDrop::UnderLoadCookie | TunnelDrop::SourceRateLimited => {
            "more handshakes arrived than tunnel.handshakesPerSecond; senders must prove their address"
        }
        TunnelDrop::Multicast => "multicast was sent into the tunnel: it cannot be encrypted to one peer",
    }
}

#[cfg(test)]
mod tests {
    use hauberk_core::model::Change;
    use hauberk_core::objects::NodeAddress;

    use super::*;

    #[test]
    fn a_node_that_was_taken_for_the_world_is_named_and_no_pod_opened_for_it() {
        let mut agent = crate::testing::agent("n1");
        let addresses = [("192.0.2.2", true), ("203.0.113.2", false)]
            .map(|(address, internal)| NodeAddress { address: address.parse().unwrap(), internal });
        let node = NodeObject { name: "n2".into(), addresses: addresses.into(), ..NodeObject::default() };
        let _ = agent.model.apply(Change::Node(node));
        let AgentState { desired, model, local, .. } = &mut agent;
        let _ = desired.follow(model, local);
        let of = |sources: &[&str]| nodes_advice(&agent, &sources.iter().map(|one| one.parse().unwrap()).collect());
        assert_eq!(of(&["198.51.100.1"]), None);
        let node = of(&["192.0.2.2", "203.0.113.2"]).unwrap();
        assert!(node.starts_with("node n2 (from 192.0.2.2, 203.0.113.2) sent in the clear"), "{node}");
        assert!(!node.contains("worldIngress"), "{node}");
        let both = of(&["192.0.2.2", "198.51.100.1"]).unwrap();
        assert!(both.contains("node n2") && both.contains("the rest: ") && both.contains("worldIngress"), "{both}");
    }
}
