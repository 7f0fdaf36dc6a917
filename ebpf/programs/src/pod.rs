//! The two hooks on the host side of a pod's veth.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use hauberk_abi::{
    address::Address,
    identity::{Identity, Kind, Protection},
    judge::{self, Need, Origin, Verdict, is_here},
    layout::{Hook, Settings, flag, mark, probe, token},
    packet::{Packet, protocol},
    reason::{DropReason, Encryption},
};

use crate::balance::{self, NOT_OURS};
use crate::carry::{self, came_by, drop, has_tag, interface, pass, said, say, segment, set_marks, skb};
use crate::lookup::{
    NO_PEER, at_hand, attachment, ends, interface_protection, is_pod_interface, is_translated, peer, place,
    remember_translated, settings, tunnel,
};
use crate::neighbour::{self, has_room_to_ask};
use crate::read::{Read, read};
use crate::recent::{Memory, Recent, Undecided};
use crate::record::{name, record};
use crate::route;

/// Packets that a pod sends: the source is checked, then the packet goes to a local pod, into the
/// tunnel, or up the stack.
#[inline(always)]
pub fn from_pod(context: &TcContext) -> i32 {
    let Some(settings) = settings() else { return drop(DropReason::NotReady) };
    // Discards a token that was set inside the pod's own network namespace.
    say(context, token::FROM_POD);
    match packet_of::<true>(context) {
        Ok(packet) => match balance::arrived(context, settings, packet, Hook::FromPod, true) {
            NOT_OURS => leave_pod(skb(context)),
            action => action,
        },
        Err(action) => action,
    }
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leave_pod(skb: *mut __sk_buff) -> i32 {
    let Some((settings, packet)) = at_hand() else { return drop(DropReason::NotReady) };
    let context = &TcContext::new(skb);
    // Read once: from repeated reads the compiler makes arithmetic that the verifier refuses.
    let interface = interface(context);
    // The kernel treats a tag that has only a priority as no tag. The protection is checked all the
    // same.
    let tagged = packet.tagged || has_tag(context);
    if tagged && interface_protection(interface) != Protection::None {
        return drop(DropReason::NotIp);
    }
    let Some(mut memory) = Memory::of(context, interface, Hook::FromPod, packet) else {
        return drop(DropReason::NotReady);
    };
    let discovery = packet.is_neighbour_discovery();
    // The claim in a neighbour discovery message applies to this packet only.
    if !discovery && memory.holds(packet) {
        if let Some(action) = follow(context, settings, packet, &mut memory) {
            return action;
        }
    }
    let Some(undecided) = memory.leave(packet) else { return drop(DropReason::NotReady) };
    if discovery || packet.destination.is_link_scope() {
        return on_link(interface, packet, skb);
    }
    match attachment(&packet.source) {
        Some(own) if own.interface == interface => {}
        _ => return refuse(DropReason::SpoofedSource),
    }
    if tagged {
        return pass();
    }
    judge_from_pod(context, settings, packet, undecided)
}

/// Sends the packet the way a recent packet of the same flow went; none if this packet may not go
/// that way.
#[inline(always)]
fn follow(context: &TcContext, settings: &Settings, packet: &Packet, memory: &mut Memory) -> Option<i32> {
    let may = match memory.decision.verdict.encryption {
        Encryption::Encrypted => packet.fits(settings.tunnel_mtu, segment(context)),
        Encryption::Plain => route::may_forward(context, settings, packet),
        _ => true,
    };
    if !may {
        return None;
    }
    memory.record(packet);
    let Recent { verdict, node, pod, way, .. } = &*memory.decision;
    Some(match verdict.encryption {
        Encryption::Encrypted => carry::to_tunnel(context, settings, *node),
        Encryption::Plain => route::forward(context, settings, packet, way),
        _ => carry::frame_to_pod(context, settings, pod),
    })
}

#[inline(always)]
fn judge_from_pod(context: &TcContext, settings: &Settings, packet: &Packet, undecided: Undecided) -> i32 {
    let (source, destination) = ends();
    let stack = settings.flags & flag::STACK != 0;
    let protected = source.protection() == Protection::Enabled;
    let need = judge::need(&source, &destination, &place(settings, 0));
    let mut marked = if protected { mark::PROTECTED } else { 0 };

    if matches!(need, Need::World) {
        if packet.destination.is_multicast() && protected {
            return refuse(DropReason::Multicast);
        }
        // Until every source has been read once, "outside the cluster" is a guess. With a detour
        // the destination address is not the final one.
        if protected && (settings.flags & flag::SYNCED == 0 || packet.detour) {
            let reason = if packet.detour { DropReason::Malformed } else { DropReason::NotReady };
            return refuse(reason);
        }
        let verdict = judge::outgoing(need, &destination, &NO_PEER);
        record(Hook::FromPod, &verdict, 0, &NO_PEER);
        // A service address looks like the world until netfilter has translated it: `to_wire` and
        // `to_pod` judge the packet then.
        marked |= mark::SEEN;
        set_marks(context, settings, marked, token::FROM_POD);
        return pass();
    }
    if is_unknown_neighbour(settings, &destination) && has_room_to_ask(undecided.interface()) == 0 {
        return refuse(DropReason::NeighbourLimit);
    }
    if matches!(need, Need::Encrypt(_)) {
        marked |= mark::PROTECTED;
    }
    if stack || is_translated(&packet.source, &packet.destination) {
        // Another program must translate the addresses back first; the guard at the uplink judges
        // the result.
        set_marks(context, settings, marked, token::FROM_POD);
        return pass();
    }

    let tunnel = tunnel(need, destination.node);
    let verdict = judge::outgoing(need, &destination, &tunnel);
    record(Hook::FromPod, &verdict, destination.node, &tunnel);
    match verdict.encryption {
        Encryption::Refused => drop(verdict.drop),
        Encryption::Local => match attachment(&packet.destination) {
            Some(pod) => {
                undecided.remember(&verdict, destination.node, &tunnel).pod = *pod;
                carry::frame_to_pod(context, settings, pod)
            }
            None => pass(),
        },
        Encryption::Encrypted if packet.fits(settings.tunnel_mtu, segment(context)) => {
            undecided.remember(&verdict, destination.node, &tunnel);
            carry::to_tunnel(context, settings, destination.node)
        }
        Encryption::Plain
            if marked == 0
                && source.is_pod()
                && destination.is_pod()
                && route::may_forward(context, settings, packet) =>
        {
            match route::find(context, undecided.interface(), settings, packet) {
                Some(way) => {
                    undecided.remember(&verdict, destination.node, &tunnel).way = *way;
                    route::forward(context, settings, packet, way)
                }
                None => pass(),
            }
        }
        // Too big for the tunnel: the stack fragments the packet or tells the sender, and `to_wire`
        // sends on the fragments.
        _ => {
            set_marks(context, settings, marked, token::FROM_POD);
            pass()
        }
    }
}

/// Handles link-scope packets, which reach the node's own stack and neighbours. An opted-in pod may
/// send what it needs to find its gateway, and unicast to a neighbour (RFC 4861 section 7.3.3).
#[inline(always)]
fn on_link(interface: u32, packet: &Packet, skb: *mut __sk_buff) -> i32 {
    let needed =
        packet.is_neighbour_discovery() || packet.is_listener_discovery() || !packet.destination.is_multicast();
    if !needed && interface_protection(interface) != Protection::None {
        return drop(DropReason::Multicast);
    }
    let refused = neighbour::refuses(skb, interface);
    if refused != 0 {
        return refuse(DropReason::from_u8(refused as u8));
    }
    pass()
}

/// Whether the destination is in this node's range and no known pod has it. Behind another CNI
/// plugin's bridge the node then asks its neighbours for the address.
#[inline(always)]
fn is_unknown_neighbour(settings: &Settings, destination: &Identity) -> bool {
    settings.flags & flag::CHAINED != 0
        && matches!(destination.kind(), Kind::UnknownPod)
        && is_here(destination, settings.node)
}

/// Packets that a pod is about to receive from the stack. (Redirections into the pod do not pass
/// here: the redirecting program has judged them.)
#[inline(always)]
pub fn to_pod(context: &TcContext) -> i32 {
    let Some(settings) = settings() else { return drop(DropReason::NotReady) };
    match packet_of::<false>(context) {
        Ok(packet) if balance::sent(context, settings, packet, true) == 0 => drop(DropReason::Malformed),
        Ok(_) => enter_pod(skb(context)),
        Err(action) => action,
    }
}

/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enter_pod(skb: *mut __sk_buff) -> i32 {
    let context = &TcContext::new(skb);
    let Some((settings, packet)) = at_hand() else { return drop(DropReason::NotReady) };
    if packet.destination.is_link_scope() {
        return pass();
    }
    match attachment(&packet.destination) {
        Some(own) if own.interface == interface(context) => {}
        _ => return drop(DropReason::NotLocal),
    }
    judge_to_pod(context, settings, packet)
}

#[inline(always)]
fn judge_to_pod(context: &TcContext, settings: &Settings, packet: &Packet) -> i32 {
    if packet.source.is_link_scope() {
        return pass();
    }
    let (source, destination) = ends();
    let need = judge::need(&source, &destination, &place(settings, 0));
    let said = said(context);
    if said & (mark::DECRYPTED | mark::SEEN) == mark::DECRYPTED
        && matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6)
    {
        // The node's own "too big" message: it came by no wire and no tunnel.
        return pass();
    }
    let origin = origin(context, settings, said);
    let direct = settings.flags & flag::WORLD_DIRECT != 0;
    let verdict = judge::entering_pod(need, &source, &destination, origin, direct);
    let tunnel = if matches!(origin, Origin::Tunnel) { peer(source.node) } else { NO_PEER };
    if name(interface(context), Hook::ToPod, packet).is_none() {
        return drop(DropReason::NotReady);
    }
    record(Hook::ToPod, &verdict, source.node, &tunnel);
    if verdict.is_refused() {
        return drop(verdict.drop);
    }
    if settings.flags & flag::STACK == 0 && source.is_pod() {
        // In this mode only translated packets take this way; their replies must take it too.
        remember_translated(&packet.source, &packet.destination);
    }
    pass()
}

/// Where the packet entered the node, judged by the device it came by and by the token of an
/// earlier program. The token alone is not enough: it stays on a packet that is taken out of
/// another one, and any host may have sent that one.
#[inline(always)]
fn origin(context: &TcContext, settings: &Settings, said: u32) -> Origin {
    let device = came_by(context);
    if device == 0 {
        return Origin::Node;
    }
    if device == settings.tunnel {
        return Origin::Tunnel;
    }
    // Behind another CNI plugin's bridge the device is the bridge.
    if said & token::FROM_POD != 0 && (settings.flags & flag::CHAINED != 0 || is_pod_interface(device)) {
        Origin::Pod
    } else if said & token::FROM_CLUSTER != 0 {
        Origin::Cluster
    } else if said & token::FROM_WIRE != 0 {
        Origin::Wire
    } else {
        Origin::Unguarded
    }
}

/// The IP packet in a frame at a pod's interface, or the action for a frame without one.
#[inline(always)]
fn packet_of<const FROM: bool>(context: &TcContext) -> Result<&'static Packet, i32> {
    match read::<true>(context) {
        // The second destination appears if a device was an uplink when the probe was turned round
        // there, and has become a pod's interface since.
        Read::Ip(packet)
            if packet.destination == Address::v6(probe::DROP) || packet.destination == Address::v6(probe::TURN) =>
        {
            Err(drop(DropReason::SelfTest))
        }
        Read::Ip(packet) => Ok(packet),
        Read::Arp(offset) if FROM => Err(neighbour::arp(skb(context), offset)),
        Read::Arp(_) => Err(pass()),
        Read::Other => Err(not_ip(interface(context))),
        Read::Malformed => Err(drop(DropReason::Malformed)),
    }
}

#[inline(always)]
fn refuse(reason: DropReason) -> i32 {
    record(Hook::FromPod, &Verdict::refuse(reason), 0, &NO_PEER);
    drop(reason)
}

/// Neither IP nor ARP: it cannot be encrypted, so an opted-in pod may not send or receive it.
#[inline(always)]
fn not_ip(interface: u32) -> i32 {
    match interface_protection(interface) {
        Protection::None => pass(),
        _ => drop(DropReason::NotIp),
    }
}
