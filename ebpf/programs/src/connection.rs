//! Connections to services that are translated at a device: which one a packet belongs to, and how
//! a new one gets its backend.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_prandom_u32, maps::lpm_trie::Key};
use hauberk_abi::{
    address::Address,
    connection::{Connection, Direction, after, is_over},
    identity::Kind,
    judge::is_here,
    layout::{Hook, Settings},
    packet::{Fragment, Packet, protocol},
    reason::DropReason,
    service::{
        ANY_NODE_V4, ANY_NODE_V6, Choice, Frontend, FrontendKey, MemberKey, OutsideClientKey, SlotKey, SourceKey,
        frontend_flag,
    },
};

use crate::lookup::{at_hand, identity};
use crate::maps::{
    BACKENDS, BALANCE, CLIENTS, CONNECTIONS, DATAGRAMS, FRONTENDS, MASQUERADE, MEMBERS, REPLIES, SETS, SOURCES,
};
use crate::record::{now, put};
use crate::rewrite::put_direction;

/// The packet at hand, its connection and what it becomes. It is in a map because a program's stack
/// has only 512 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Balance {
    /// The packet's direction.
    pub key: Direction,
    /// The addresses and ports that it gets.
    pub wanted: Direction,
    /// The direction that the packet quoted in an ICMP error gets.
    pub inner: Direction,
    /// The direction of the client's packets.
    client: Direction,
    connection: Connection,
    frontend: FrontendKey,
    set: u64,
    choice: OutsideClientKey,
}

/// What [`find`] says. Numbers from [`REFUSED`] on are a [`DropReason`] more than that.
pub const NONE: u32 = 0;
/// The packet is its client's.
pub const OF_CLIENT: u32 = 1;
/// The packet is its backend's.
pub const OF_BACKEND: u32 = 2;
/// The packet must be dropped.
pub const REFUSED: u32 = 256;

/// Ports that clients' packets get if their own cannot be kept. Neither node ports nor, as the
/// kernel is set up, ports of the node's own connections are among them.
const FIRST_PORT: u32 = 1_024;
const PORTS: u32 = 30_000 - FIRST_PORT;
/// How many of them are tried.
const ATTEMPTS: u32 = 16;
/// Age of the stored time of the last packet, in nanoseconds, from which on it is written again.
const FRESH: u64 = 1_000_000_000;
const SECOND: u64 = 1_000_000_000;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

#[inline(always)]
pub fn balance() -> Option<&'static mut Balance> {
    let balance = BALANCE.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU and to the program that runs on it.
    Some(unsafe { &mut *balance })
}

/// Finds the connection that the packet at hand belongs to, and stores what the packet becomes.
/// Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find() -> u32 {
    let (Some((_, packet)), Some(balance)) = (at_hand(), balance()) else { return NONE };
    if !name(packet, &mut balance.key) {
        return NONE;
    }
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&balance.key) {
        // SAFETY: the entry stays valid while the program runs. Other CPUs write single fields.
        let connection = unsafe { &mut *connection };
        if still_stands(packet, connection, balance) {
            touch(connection, packet, true);
            forward(&mut balance.wanted, connection, balance.key.protocol);
            return OF_CLIENT;
        }
        remove();
        return NONE;
    }
    // SAFETY: an entry is made and removed with its connection, and not written in between.
    let Some(client) = (unsafe { REPLIES.get(&balance.key) }) else { return NONE };
    put_direction(&mut balance.client, client);
    let Some(connection) = CONNECTIONS.get_ptr_mut(&balance.client) else { return NONE };
    // SAFETY: as above.
    touch(unsafe { &mut *connection }, packet, false);
    reverse(&mut balance.wanted, &balance.client);
    OF_BACKEND
}

/// Names the packet's direction. A later fragment has that of its datagram's first one; false if
/// that is not known.
#[inline(always)]
fn name(packet: &Packet, key: &mut Direction) -> bool {
    put(&mut key.source, &packet.source);
    put(&mut key.destination, &packet.destination);
    if !matches!(packet.fragment, Fragment::Later) {
        key.source_port = packet.source_port;
        key.destination_port = packet.destination_port;
        key.protocol = packet.protocol.into();
        return true;
    }
    name_datagram(packet, key);
    // SAFETY: an entry that is replaced while it is read is another datagram's of the same two
    // hosts.
    let Some(whole) = (unsafe { DATAGRAMS.get(&*key) }) else { return false };
    key.source_port = whole.source_port;
    key.destination_port = whole.destination_port;
    key.protocol = whole.protocol;
    true
}

/// Writes what a datagram's fragments have in common, beside their addresses.
#[inline(always)]
fn name_datagram(packet: &Packet, key: &mut Direction) {
    key.source_port = 0;
    key.destination_port = packet.protocol.into();
    key.protocol = packet.identification;
}

/// Remembers whose datagram the packet at hand is the first fragment of. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember_datagram() -> u32 {
    let (Some((_, packet)), Some(balance)) = (at_hand(), balance()) else { return 0 };
    put_direction(&mut balance.client, &balance.key);
    name_datagram(packet, &mut balance.client);
    // A full least-recently-used map evicts an entry.
    let _ = DATAGRAMS.insert(&balance.client, &balance.key, 0);
    1
}

/// Whether the packet belongs to this connection, rather than to a new one of the same client. A
/// datagram's backend must still be there.
#[inline(always)]
fn still_stands(packet: &Packet, connection: &Connection, balance: &Balance) -> bool {
    let is_first = packet.protocol != protocol::TCP || packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if !is_first {
        return true;
    }
    if balance.key.protocol == u32::from(protocol::TCP) && is_over(connection.state) {
        return false;
    }
    // SAFETY: only its presence counts.
    unsafe { MEMBERS.get(&MemberKey { set: connection.set, backend: connection.backend, reserved: 0 }) }.is_some()
}

/// Notes a packet in its connection.
#[inline(always)]
fn touch(connection: &mut Connection, packet: &Packet, from_client: bool) {
    let now = now();
    let state = after(connection.state, from_client, packet.tcp_flags);
    if state != connection.state {
        connection.state = state;
        connection.last = now;
    } else if now.saturating_sub(connection.last) > FRESH {
        connection.last = now;
    }
}

#[inline(always)]
fn forward(wanted: &mut Direction, connection: &Connection, protocol: u32) {
    put(&mut wanted.source, &connection.source);
    put(&mut wanted.destination, &connection.backend.address);
    wanted.source_port = connection.source_port;
    wanted.destination_port = connection.backend.port;
    wanted.protocol = protocol;
}

#[inline(always)]
fn reverse(wanted: &mut Direction, of: &Direction) {
    put(&mut wanted.source, &of.destination);
    put(&mut wanted.destination, &of.source);
    wanted.source_port = of.destination_port;
    wanted.destination_port = of.source_port;
    wanted.protocol = of.protocol;
}

/// Removes the connection by whose direction the packet at hand came. Verified by itself: see
/// [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove() -> u32 {
    let Some(balance) = balance() else { return 0 };
    let Some(connection) = CONNECTIONS.get_ptr_mut(&balance.key) else { return 0 };
    // SAFETY: as above.
    forward(&mut balance.wanted, unsafe { &*connection }, balance.key.protocol);
    reverse(&mut balance.client, &balance.wanted);
    let _ = REPLIES.remove(&balance.client);
    let _ = CONNECTIONS.remove(&balance.key);
    1
}

/// Makes a connection for the packet at hand, if it is the first of one and goes to a frontend. The
/// result is like that of [`find`]. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin(hook: u32) -> u32 {
    let (Some((settings, packet)), Some(balance)) = (at_hand(), balance()) else { return NONE };
    let is_first = packet.protocol != protocol::TCP || packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if !is_first || matches!(packet.fragment, Fragment::Later) {
        return NONE;
    }
    let Some(frontend) = frontend(settings, packet, balance) else { return NONE };
    let of_pod = hook == Hook::FromPod as u32;
    let set = if of_pod {
        frontend.set
    } else if frontend.flags & frontend_flag::OUTSIDE != 0 {
        frontend.outside
    } else {
        let source = identity(&packet.source);
        // Another program may serve this party of the cluster.
        return if source.is_pod() || source.is_node() { NONE } else { refused(DropReason::NoBackend) };
    };
    if frontend.flags & frontend_flag::LIMITED != 0 {
        let client = SourceKey::new(frontend.outside, packet.source);
        if SOURCES.get(&Key::new(SourceKey::SET_BITS + 128, client)).is_none() {
            return refused(DropReason::SourceNotAdmitted);
        }
    }
    balance.set = set;
    let chosen = choose(frontend.affinity, frontend.flags);
    if chosen != OF_CLIENT { chosen } else { open(hook) }
}

#[inline(always)]
fn refused(reason: DropReason) -> u32 {
    REFUSED + reason as u32
}

/// The frontend that the packet is addressed to. At this node's address a node port comes before
/// another service's external address.
#[inline(always)]
fn frontend(settings: &Settings, packet: &Packet, balance: &mut Balance) -> Option<&'static Frontend> {
    let key = &mut balance.frontend;
    put(&mut key.address, &packet.destination);
    key.port = packet.destination_port;
    key.protocol = packet.protocol;
    key.reserved = 0;
    // SAFETY: an entry may be replaced while it is read. Its sets exist then.
    let own = unsafe { FRONTENDS.get(&*key) };
    put(&mut key.address, if packet.destination.is_v4() { &ANY_NODE_V4 } else { &ANY_NODE_V6 });
    // SAFETY: as above.
    let Some(of_nodes) = (unsafe { FRONTENDS.get(&*key) }) else { return own };
    let node = identity(&packet.destination);
    if matches!(node.kind(), Kind::Node) && node.node == settings.node { Some(of_nodes) } else { own }
}

/// Chooses the backend of a new connection. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn choose(affinity: u32, flags: u32) -> u32 {
    let (Some((_, packet)), Some(balance)) = (at_hand(), balance()) else { return NONE };
    let now = now();
    balance.connection.set = balance.set;
    balance.connection.last = now;
    balance.connection.state = 0;
    balance.choice.set = balance.set;
    put(&mut balance.choice.address, &packet.source);
    if affinity != 0 && is_remembered(balance, affinity, now) {
        return OF_CLIENT;
    }
    // If the set shrinks meanwhile, the second attempt sees that.
    let mut attempt = 0;
    while attempt < 2 {
        // SAFETY: the entry is 8 bytes, written at once.
        let count = match unsafe { SETS.get(&balance.set) } {
            Some(set) => set.count,
            None => 0,
        };
        if count == 0 {
            // The load balancer must find out by its own checks that it should ask another node.
            return if flags & frontend_flag::ELSEWHERE != 0 { ELSEWHERE } else { refused(DropReason::NoBackend) };
        }
        // SAFETY: plain helper call.
        let slot = unsafe { bpf_get_prandom_u32() } % count;
        // SAFETY: an entry that is replaced meanwhile is the old or the new backend's.
        if let Some(backend) = unsafe { BACKENDS.get(&SlotKey { set: balance.set, slot, reserved: 0 }) } {
            put(&mut balance.connection.backend.address, &backend.address);
            balance.connection.backend.port = backend.port;
            balance.connection.backend.reserved = 0;
            if affinity != 0 {
                let choice = Choice { last: now, backend: *backend, reserved: 0 };
                // If there is no room, the next connection chooses again.
                let _ = CLIENTS.insert(&balance.choice, &choice, 0);
            }
            return OF_CLIENT;
        }
        attempt += 1;
    }
    refused(DropReason::NoBackend)
}

/// As [`REFUSED`] with [`DropReason::NoBackend`], but the client is not told.
pub const ELSEWHERE: u32 = 2 * REFUSED;

/// Takes the backend that the client has, unless it is gone or the client was away for too long.
#[inline(always)]
fn is_remembered(balance: &mut Balance, affinity: u32, now: u64) -> bool {
    let Some(choice) = CLIENTS.get_ptr_mut(&balance.choice) else { return false };
    // SAFETY: the entry stays valid while the program runs. Another CPU may write the client's next
    // choice at the same time.
    let choice = unsafe { &mut *choice };
    if now.saturating_sub(choice.last) >= u64::from(affinity) * SECOND {
        return false;
    }
    put(&mut balance.connection.backend.address, &choice.backend.address);
    balance.connection.backend.port = choice.backend.port;
    balance.connection.backend.reserved = 0;
    let member = MemberKey { set: balance.set, backend: balance.connection.backend, reserved: 0 };
    // SAFETY: only its presence counts.
    if unsafe { MEMBERS.get(&member) }.is_none() {
        return false;
    }
    choice.last = now;
    true
}

/// Gives the new connection a source, and stores it. Verified by itself: see [`crate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn open(hook: u32) -> u32 {
    let (Some((settings, packet)), Some(balance)) = (at_hand(), balance()) else { return NONE };
    let backend = identity(&balance.connection.backend.address);
    let of_pod = hook == Hook::FromPod as u32;
    // The answers must come back to this node. They do if the backend or the client is here; a pod
    // answers itself without asking the node.
    let is_own = balance.connection.backend.address == packet.source;
    let keeps_source = (of_pod || is_here(&backend, settings.node)) && !is_own;
    if keeps_source {
        put(&mut balance.connection.source, &packet.source);
    } else {
        let Some(address) = MASQUERADE.get(u32::from(!packet.source.is_v4())) else { return NONE };
        if *address == Address::UNSPECIFIED {
            return refused(DropReason::NoWay);
        }
        put(&mut balance.connection.source, address);
    }
    balance.connection.source_port = if keeps_source { packet.source_port } else { any_port() };
    let protocol = balance.key.protocol;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        forward(&mut balance.wanted, &balance.connection, protocol);
        reverse(&mut balance.client, &balance.wanted);
        if REPLIES.insert(&balance.client, &balance.key, BPF_NOEXIST.into()).is_ok() {
            if CONNECTIONS.insert(&balance.key, &balance.connection, BPF_NOEXIST.into()).is_ok() {
                return OF_CLIENT;
            }
            let _ = REPLIES.remove(&balance.client);
            return refused(DropReason::ConnectionsFull);
        }
        balance.connection.source_port = any_port();
        attempt += 1;
    }
    refused(DropReason::ConnectionsFull)
}

#[inline(always)]
fn any_port() -> u16 {
    // SAFETY: plain helper call.
    (FIRST_PORT + unsafe { bpf_get_prandom_u32() } % PORTS) as u16
}
