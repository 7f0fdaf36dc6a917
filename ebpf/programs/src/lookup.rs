//! Who is who: the look-ups behind every verdict.

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

/// How far into a packet bytes are read where they lie, if that is in the packet's linear part.
const NEAR: u32 = 128;

/// A packet's bytes, read through the kernel's helper, which finds them wherever they are, or where they lie.
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

    /// Without a call where it can be: a packet sees many. For offsets of any value the verifier would not come to an end.
    #[inline(always)]
    fn near<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = self.0.data() + offset as usize;
        if offset > NEAR || start + size_of::<[u32; N]>() > self.0.data_end() {
            return self.words(offset);
        }
        // SAFETY: it lies in the packet, which the verifier checks once more. It may lie less aligned than a word, which the
        // verifier refuses where it matters.
        Some(unsafe { *(start as *const [u32; N]) })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.len()
    }
}

/// The settings, and the packet that was put down in this run.
#[inline(always)]
pub fn at_hand() -> Option<(&'static Settings, &'static Packet)> {
    Some((settings()?, PACKET.get(0)?))
}

/// Who the two ends of the packet at hand are: its source, its destination.
#[inline(always)]
pub fn ends() -> (Identity, Identity) {
    (Identity::from_bits(end(0)), Identity::from_bits(end(1)))
}

/// The source (0) or the destination (1), in bits. Verified by itself: see [`crate`].
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

/// Who has `address`: exactly, else by the longest range, else the world.
#[inline(always)]
pub fn identity(address: &Address) -> Identity {
    // SAFETY: an entry may be replaced while it is copied; its 8 bytes are written at once.
    if let Some(identity) = unsafe { ENDPOINTS.get(address) } {
        return *identity;
    }
    match RANGES.get(&Key::new(128, *address)) {
        Some(identity) => *identity,
        None => Identity::WORLD,
    }
}

/// The tunnel of node `number`, where that is asked for.
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
    // SAFETY: entries of this map change only with the pod; a torn read would at worst misdirect one of its last packets
    // to an interface index or MAC that was its own.
    unsafe { ATTACHMENTS.get(address) }
}

/// How the pod behind interface `index` is protected; unknown is protected.
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

/// Whether what leaves by interface `index` passes the last guard.
#[inline(always)]
pub fn is_uplink(index: u32) -> bool {
    // SAFETY: only the entry's presence matters.
    unsafe { UPLINKS.get(&index) }.is_some()
}

/// Whether netfilter translates packets from `source` to `destination`, so that they must go through the stack.
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

/// What [`hauberk_abi::judge::need`] must know here.
#[inline(always)]
pub fn place(settings: &Settings, marks: u32) -> Place {
    Place {
        node: settings.node,
        stack: settings.flags & flag::STACK != 0,
        carries_protected: marks & mark::PROTECTED != 0,
    }
}
