//! The look-ups behind every verdict.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use hauberk_abi::{
    address::Address,
    identity::{Identity, Protection},
    judge::{Need, Place},
    layout::{Attachment, Pair, Peer, Settings, flag, generation, mark},
    packet::{Bytes, Packet},
};

use crate::maps::{
    ATTACHMENTS, ENDPOINTS, GENERATIONS, INTERFACES, PACKET, PEERS, RANGES, SETTINGS, TRANSLATED, UPLINKS,
};
use crate::record::add;

/// No tunnel.
pub const NO_PEER: Peer = Peer { flags: 0, epoch: 0 };

/// Offset in bytes up to which packet data is read directly, if it is in the packet's linear part.
const NEAR: u32 = 128;

/// A packet's bytes. They are read through the kernel's helper, which finds them wherever they are,
/// or directly.
pub struct Skb<'a>(pub &'a TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load::<[u8; N]>(offset as usize).ok()
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.0.load::<[u32; N]>(offset as usize).ok()
    }

    /// Reads without a helper call where possible, because every packet needs many reads. With
    /// offsets of any value the verifier would not finish.
    #[inline(always)]
    fn near<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = self.0.data() + offset as usize;
        if offset > NEAR || start + size_of::<[u32; N]>() > self.0.data_end() {
            return self.words(offset);
        }
        // SAFETY: the bytes lie in the packet; the verifier checks that again. They may be less
        // aligned than a word; the verifier refuses that where it matters.
        Some(unsafe { *(start as *const [u32; N]) })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.len()
    }
}

/// The settings, and the packet that this program run has stored.
#[inline(always)]
pub fn at_hand() -> Option<(&'static Settings, &'static Packet)> {
    Some((settings()?, PACKET.get(0)?))
}

/// The identities of the packet at hand: its source, its destination.
#[inline(always)]
pub fn ends() -> (Identity, Identity) {
    (Identity::from_bits(end(0)), Identity::from_bits(end(1)))
}

/// The identity of the source (0) or the destination (1), as bits. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end(which: u32) -> u64 {
    let Some((_, packet)) = at_hand() else { return Identity::UNKNOWN.to_bits() };
    identity(if which == 0 { &packet.source } else { &packet.destination }).to_bits()
}

/// The node's settings; none before the agent has written them.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    let settings = SETTINGS.get(0)?;
    if settings.node == 0 { None } else { Some(settings) }
}

/// The identity of `address`: by exact match, else by the longest range, else the world.
#[inline(always)]
pub fn identity(address: &Address) -> Identity {
    // SAFETY: an entry may be replaced while it is copied; its 8 bytes are written in one store.
    if let Some(identity) = unsafe { ENDPOINTS.get(address) } {
        return *identity;
    }
    match RANGES.get(&Key::new(128, *address)) {
        Some(identity) => *identity,
        None => Identity::WORLD,
    }
}

/// The tunnel of node `number`, if `need` asks for one.
#[inline(always)]
pub fn tunnel(need: Need, number: u32) -> Peer {
    match need {
        Need::Encrypt(_) | Need::Prefer | Need::Shelter => peer(number),
        Need::Local | Need::World | Need::Clear => NO_PEER,
    }
}

/// The tunnel of node `number`; no flags if there is none.
#[inline(always)]
pub fn peer(number: u32) -> Peer {
    // SAFETY: as above.
    match unsafe { PEERS.get(&number) } {
        Some(peer) => *peer,
        None => NO_PEER,
    }
}

/// The pod interface that owns `address` on this node.
#[inline(always)]
pub fn attachment(address: &Address) -> Option<&'static Attachment> {
    // SAFETY: entries of this map change only with the pod. A torn read would at worst misdirect
    // one of the pod's last packets to an interface index or MAC address that was the pod's own.
    unsafe { ATTACHMENTS.get(address) }
}

/// The protection of the pod behind interface `index`; an unknown interface counts as protected.
#[inline(always)]
pub fn interface_protection(index: u32) -> Protection {
    // SAFETY: one byte is read.
    match unsafe { INTERFACES.get(&index) } {
        Some(interface) if interface.protection == Protection::None as u8 => Protection::None,
        Some(interface) if interface.protection == Protection::Permissive as u8 => Protection::Permissive,
        _ => Protection::Enabled,
    }
}

/// Whether a pod is behind interface `index`.
#[inline(always)]
pub fn is_pod_interface(index: u32) -> bool {
    // SAFETY: only the entry's presence matters.
    unsafe { INTERFACES.get(&index) }.is_some()
}

/// Whether packets that leave by interface `index` pass the last guard.
#[inline(always)]
pub fn is_uplink(index: u32) -> bool {
    // SAFETY: only the entry's presence matters.
    unsafe { UPLINKS.get(&index) }.is_some()
}

/// Whether netfilter translates packets from `source` to `destination`, so that they must go
/// through the stack.
#[inline(always)]
pub fn is_translated(source: &Address, destination: &Address) -> bool {
    let pair = Pair { source: *source, destination: *destination };
    // SAFETY: only the entry's presence matters.
    unsafe { TRANSLATED.get(&pair) }.is_some()
}

/// Remembers that the *reply* to a packet from `source` to `destination` must go through the stack.
#[inline(always)]
pub fn remember_translated(source: &Address, destination: &Address) {
    if is_translated(destination, source) {
        return;
    }
    let reply = Pair { source: *destination, destination: *source };
    let _ = TRANSLATED.insert(&reply, &0, 0);
    if let Some(generation) = GENERATIONS.get_ptr_mut(generation::PROGRAMS) {
        // SAFETY: a live, aligned map value.
        unsafe { add(generation, 1) };
    }
}

/// What [`hauberk_abi::judge::need`] must know about this node.
#[inline(always)]
pub fn place(settings: &Settings, marks: u32) -> Place {
    Place {
        node: settings.node,
        stack: settings.flags & flag::STACK != 0,
        carries_protected: marks & mark::PROTECTED != 0,
    }
}
