//! Services at the socket: a connection to a service is led to a backend where it is made, so no
//! packet ever has the service's address. What is sent to the backend is judged like all traffic
//! between two parties.
//!
//! The programs run for the processes of one cgroup and of those below it: connect(), and
//! sendmsg() with an address, choose a backend; recvmsg() and getpeername() say the address that
//! the process knows. They share no scratch memory with the programs at tc, because a packet may
//! arrive in the middle of them.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use hauberk_abi::{
    address::Address,
    identity::Kind,
    layout::{Settings, probe},
    packet::protocol,
    service::{
        ANY_NODE_V4, ANY_NODE_V6, Backend, Choice, ClientKey, DATAGRAM_FLOW, Frontend, FrontendKey, MemberKey, Seen,
        SlotKey, SocketKey, client, frontend_flag, socket_counter,
    },
};

use crate::lookup::{identity, settings};
use crate::maps::{BACKENDS, CHOICES, FRONTENDS, MEMBERS, SETS, SOCKET_COUNTERS, SOCKETS};
use crate::record::now;

/// The system call goes on.
const ALLOW: i32 = 1;
/// The system call ends with an error.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// Multipath TCP's number in the kernel. Its first connection is an ordinary one.
const MPTCP: u32 = 262;
const SECOND: u64 = 1_000_000_000;

/// connect().
#[inline(always)]
pub fn connect<const V6: bool>(context: &SockAddrContext) -> i32 {
    lead::<V6>(context, false)
}

/// sendmsg() with an address, on a datagram socket that is not connected.
#[inline(always)]
pub fn send<const V6: bool>(context: &SockAddrContext) -> i32 {
    lead::<V6>(context, true)
}

/// Where a datagram came from.
#[inline(always)]
pub fn receive<const V6: bool>(context: &SockAddrContext) -> i32 {
    tell::<V6>(context)
}

/// getpeername().
#[inline(always)]
pub fn peer_name<const V6: bool>(context: &SockAddrContext) -> i32 {
    tell::<V6>(context)
}

/// Leads the socket to a backend if the process named a service.
#[inline(always)]
fn lead<const V6: bool>(context: &SockAddrContext, is_datagram: bool) -> i32 {
    let Some(settings) = settings() else { return ALLOW };
    let to = End::read::<V6>(context);
    // The kernel takes an unspecified address for the socket's own loopback.
    if to.address.is_unspecified() || is_tunnel(context, settings, &to) {
        return ALLOW;
    }
    if to.address == Address::v6(probe::SOCKET) || to.address == Address::v4(probe::SOCKET_V4) {
        return refuse();
    }
    let Some(frontend) = frontend(settings, &to) else {
        forget(context, &to);
        return ALLOW;
    };
    if frontend.flags & frontend_flag::LIMITED != 0 {
        forget(context, &to);
        return ALLOW;
    }
    let client = client(context, frontend, is_datagram);
    let backend = match choose(frontend, client.as_ref()) {
        Ok(backend) => backend,
        Err(reason) => {
            count(reason);
            return refuse();
        }
    };
    count(socket_counter::BALANCED);
    let key = socket(context, &to, backend);
    let seen = Seen { set: frontend.set, address: to.address, port: to.port, reserved: [0; 3] };
    // If there is no room, getpeername() says the backend's address.
    let _ = SOCKETS.insert(&key, &seen, 0);
    End { address: backend.address, port: backend.port, protocol: to.protocol }.write::<V6>(context);
    ALLOW
}

/// The process named the backend itself: from now on it is told the backend's address.
#[inline(always)]
fn forget(context: &SockAddrContext, to: &End) {
    let key = socket(context, to, Backend { address: to.address, port: to.port, reserved: 0 });
    // SAFETY: only its presence counts.
    if unsafe { SOCKETS.get(&key) }.is_some() {
        let _ = SOCKETS.remove(&key);
    }
}

/// Says the service's address in place of the backend's.
#[inline(always)]
fn tell<const V6: bool>(context: &SockAddrContext) -> i32 {
    let from = End::read::<V6>(context);
    let backend = Backend { address: from.address, port: from.port, reserved: 0 };
    let key = socket(context, &from, backend);
    // SAFETY: the entry is only read; one that is replaced meanwhile is this socket's as well.
    if let Some(seen) = unsafe { SOCKETS.get(&key) } {
        End { address: seen.address, port: seen.port, protocol: from.protocol }.write::<V6>(context);
    }
    ALLOW
}

/// The frontend that the process named, if there is one. At a node's address a node port comes
/// before another service's external address.
#[inline(always)]
fn frontend(settings: &Settings, to: &End) -> Option<&'static Frontend> {
    let mut key = FrontendKey { address: to.address, port: to.port, protocol: to.protocol, reserved: 0 };
    // SAFETY: an entry may be replaced while it is read. Both sets exist then.
    let own = unsafe { FRONTENDS.get(&key) };
    key.address = if to.address.is_v4() { ANY_NODE_V4 } else { ANY_NODE_V6 };
    // SAFETY: as above.
    let Some(of_nodes) = (unsafe { FRONTENDS.get(&key) }) else { return own };
    let node = identity(&to.address);
    if node.kind() != Kind::Node {
        return own;
    }
    let is_left_to_node = of_nodes.flags & frontend_flag::OWN_NODE != 0 && node.node != settings.node;
    if is_left_to_node { None } else { Some(of_nodes) }
}

/// Whether the socket is the tunnel's own: no service takes what is sealed. Other nodes may have
/// any address and port, so only the socket tells.
#[inline(always)]
fn is_tunnel(context: &SockAddrContext, settings: &Settings, to: &End) -> bool {
    if to.protocol != protocol::UDP {
        return false;
    }
    // SAFETY: the verifier knows the context's type, and that the socket is there.
    let port = unsafe { (*(*context.sock_addr).__bindgen_anon_1.sk).src_port };
    settings.tunnel_port != 0 && port == settings.tunnel_port
}

/// The client for which the choice is remembered; none if it is not remembered.
#[inline(always)]
fn client(context: &SockAddrContext, frontend: &Frontend, is_datagram: bool) -> Option<ClientKey> {
    let context = context.sock_addr.cast();
    let (kind, cookie) = if frontend.affinity != 0 {
        // SAFETY: the context is valid while the program runs.
        (client::NAMESPACE, unsafe { bpf_get_netns_cookie(context) })
    } else if is_datagram {
        // SAFETY: as above.
        (client::SOCKET, unsafe { bpf_get_socket_cookie(context) })
    } else {
        return None;
    };
    Some(ClientKey { set: frontend.set, cookie, kind, reserved: 0 })
}

/// The client's backend, or any backend of the set. The error is one of [`socket_counter`].
#[inline(always)]
fn choose(frontend: &Frontend, client: Option<&ClientKey>) -> Result<Backend, u32> {
    let now = now();
    if let Some(client) = client {
        if let Some(backend) = remembered(frontend, client, now) {
            return Ok(backend);
        }
    }
    let backend = any(frontend.set)?;
    if let Some(client) = client {
        // If there is no room, the next connection chooses again.
        let _ = CHOICES.insert(client, &Choice { last: now, backend, reserved: 0 }, 0);
    }
    Ok(backend)
}

/// The backend that the client has, unless it is gone or the client was away for too long.
#[inline(always)]
fn remembered(frontend: &Frontend, client: &ClientKey, now: u64) -> Option<Backend> {
    let choice = CHOICES.get_ptr_mut(client)?;
    // SAFETY: the entry stays valid while the program runs. Another socket of the same client may
    // write it at the same time; it then has a backend that was chosen a moment ago.
    let Choice { last, backend, .. } = unsafe { *choice };
    let seconds = if frontend.affinity != 0 { frontend.affinity } else { DATAGRAM_FLOW };
    if now.saturating_sub(last) >= u64::from(seconds) * SECOND {
        return None;
    }
    // SAFETY: only its presence counts.
    unsafe { MEMBERS.get(&MemberKey { set: frontend.set, backend, reserved: 0 }) }?;
    // SAFETY: as above.
    unsafe { (&raw mut (*choice).last).write_volatile(now) };
    Some(backend)
}

/// A random backend of the set. If the set shrinks meanwhile, the second attempt sees that.
#[inline(always)]
fn any(set: u64) -> Result<Backend, u32> {
    let mut attempt = 0;
    while attempt < 2 {
        // SAFETY: the entry is 8 bytes, written at once.
        let count = unsafe { SETS.get(&set) }.ok_or(socket_counter::FAILED)?.count;
        if count == 0 {
            return Err(socket_counter::REFUSED);
        }
        // SAFETY: plain helper call.
        let slot = unsafe { bpf_get_prandom_u32() } % count;
        // SAFETY: an entry that is replaced meanwhile is the old or the new backend's.
        if let Some(backend) = unsafe { BACKENDS.get(&SlotKey { set, slot, reserved: 0 }) } {
            return Ok(*backend);
        }
        attempt += 1;
    }
    Err(socket_counter::FAILED)
}

#[inline(always)]
fn socket(context: &SockAddrContext, end: &End, backend: Backend) -> SocketKey {
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(context.sock_addr.cast()) };
    SocketKey { cookie, backend, protocol: end.protocol.into(), reserved: [0; 2] }
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: plain helper call.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

#[inline(always)]
fn count(slot: u32) {
    if let Some(counter) = SOCKET_COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the pointer is to a live value. Another process may run the program on this CPU
        // in the middle of it, so the addition is atomic.
        unsafe { crate::record::add(counter, 1) };
    }
}

/// The other end of a socket.
struct End {
    address: Address,
    /// Host order.
    port: u16,
    protocol: u8,
}

impl End {
    #[inline(always)]
    fn read<const V6: bool>(context: &SockAddrContext) -> End {
        let context: *const bpf_sock_addr = context.sock_addr;
        // SAFETY: the verifier knows the context's type. Volatile, because it allows no accesses
        // but those of single fields.
        unsafe {
            let address = if V6 {
                let words = (&raw const (*context).user_ip6).cast::<u32>();
                Address::v6_words([
                    words.read_volatile(),
                    words.add(1).read_volatile(),
                    words.add(2).read_volatile(),
                    words.add(3).read_volatile(),
                ])
            } else {
                Address::v4_word((&raw const (*context).user_ip4).read_volatile())
            };
            let port = (&raw const (*context).user_port).read_volatile();
            let protocol = (&raw const (*context).protocol).read_volatile();
            let protocol = if protocol == MPTCP { protocol::TCP } else { protocol as u8 };
            End { address, port: u16::from_be(port as u16), protocol }
        }
    }

    #[inline(always)]
    fn write<const V6: bool>(&self, context: &SockAddrContext) {
        let context = context.sock_addr;
        let [a, b, c, d] = self.address.words();
        // SAFETY: as above; the fields are writable.
        unsafe {
            if V6 {
                let words = (&raw mut (*context).user_ip6).cast::<u32>();
                words.write_volatile(a);
                words.add(1).write_volatile(b);
                words.add(2).write_volatile(c);
                words.add(3).write_volatile(d);
            } else {
                (&raw mut (*context).user_ip4).write_volatile(d);
            }
            (&raw mut (*context).user_port).write_volatile(u32::from(self.port.to_be()));
        }
    }
}
