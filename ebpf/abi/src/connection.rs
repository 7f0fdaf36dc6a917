//! Connections whose packets are translated at a device: the client's packets get a backend as
//! their destination, and the backend's answers get back the address that the client knows.
//!
//! One entry holds a connection's state, by the flow of the client's packets. The flow of the
//! answers has an entry that only names the first one.

use crate::address::Address;
use crate::packet::protocol;
use crate::service::{Backend, DATAGRAM_FLOW};

/// The packets of one direction (40 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Direction {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Transport protocol (IANA).
    pub protocol: u32,
}

const _: () = assert!(size_of::<Direction>() == 40);

/// A connection, by the [`Direction`] of the client's packets as they arrive (56 bytes).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Connection {
    /// When its last packet came, nanoseconds of the coarse monotonic clock.
    pub last: u64,
    /// The set that the backend was chosen from.
    pub set: u64,
    /// The client's packets get this destination.
    pub backend: Backend,
    /// They get this source address. It is the client's own, unless the answers must come back to
    /// this node.
    pub source: Address,
    /// And this source port, host order.
    pub source_port: u16,
    /// A set of [`state`] bits.
    pub state: u16,
}

const _: () = assert!(size_of::<Connection>() == 56);

impl Connection {
    /// The client's packets as they go on to the backend.
    #[inline(always)]
    pub fn forward(&self, protocol: u32) -> Direction {
        Direction {
            source: self.source,
            destination: self.backend.address,
            source_port: self.source_port,
            destination_port: self.backend.port,
            protocol,
        }
    }

    /// The backend's answers as they arrive.
    #[inline(always)]
    pub fn answers(&self, protocol: u32) -> Direction {
        self.forward(protocol).reversed()
    }
}

impl Direction {
    /// The packets of the other direction.
    #[inline(always)]
    pub fn reversed(&self) -> Direction {
        Direction {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// Bits of [`Connection::state`].
pub mod state {
    /// The backend has answered.
    pub const ANSWERED: u16 = 1 << 0;
    /// The client has sent its last segment (TCP's FIN).
    pub const CLIENT_CLOSED: u16 = 1 << 1;
    /// The backend has sent its last segment.
    pub const BACKEND_CLOSED: u16 = 1 << 2;
    /// An end has broken the connection off (TCP's RST). Nothing proves that the end itself did so.
    pub const RESET: u16 = 1 << 3;
    /// The client has sent something after the backend's answer, so it is there: no other host can
    /// pretend that in a flood of SYNs.
    pub const CONFIRMED: u16 = 1 << 4;
    /// Both ends have sent their last segment.
    pub const CLOSED: u16 = CLIENT_CLOSED | BACKEND_CLOSED;
}

const TCP_FIN: u8 = 0x01;
const TCP_RST: u8 = 0x04;

/// The state after a packet with these TCP flags (0 for other protocols).
#[inline(always)]
pub const fn after(before: u16, from_client: bool, tcp_flags: u8) -> u16 {
    let mut now = before;
    if !from_client {
        now |= state::ANSWERED;
    } else if before & state::ANSWERED != 0 && tcp_flags & TCP_RST == 0 {
        now |= state::CONFIRMED;
    }
    if tcp_flags & TCP_FIN != 0 {
        now |= if from_client { state::CLIENT_CLOSED } else { state::BACKEND_CLOSED };
    }
    if tcp_flags & TCP_RST != 0 {
        now |= state::RESET;
    }
    now
}

/// Whether a connection in this state is over, so that its client may begin a new one from the same
/// port.
#[inline(always)]
pub const fn is_over(now: u16) -> bool {
    now & state::RESET != 0 || now & state::CLOSED == state::CLOSED
}

/// For how many seconds after its last packet a connection is kept. The times are those of
/// kube-proxy and of the kernel's connection tracking, except after a RST: sequence numbers are not
/// followed, so the RST may be forged, and the connection may go on. `crowded`: there is little
/// room left, so what is perhaps over, or has perhaps no client, goes sooner.
pub const fn lifetime(protocol: u32, now: u16, crowded: bool) -> u32 {
    let answered = now & state::ANSWERED != 0;
    if protocol != protocol::TCP as u32 {
        return if answered { DATAGRAM_FLOW } else { 30 };
    }
    if now & state::CLOSED == state::CLOSED {
        120
    } else if now & state::CONFIRMED == 0 {
        if crowded { 10 } else { 60 }
    } else if now & state::RESET != 0 {
        if crowded { 10 } else { 3_600 }
    } else if now & state::CLOSED != 0 {
        3_600
    } else {
        86_400
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u32 = protocol::TCP as u32;

    #[test]
    fn a_connection_lives_as_long_as_its_state_says() {
        let opened = after(0, true, 0x02);
        assert_eq!((opened, lifetime(TCP, opened, false), lifetime(TCP, opened, true)), (0, 60, 10));
        let answered = after(opened, false, 0x12);
        assert_eq!(lifetime(TCP, answered, false), 60, "nobody may be there");
        assert_eq!(lifetime(TCP, after(answered, true, 0x04), false), 60, "nor who sends a RST");
        let established = after(answered, true, 0x10);
        assert_eq!(lifetime(TCP, established, true), 86_400);
        let half_closed = after(established, true, 0x11);
        assert!(!is_over(half_closed));
        assert_eq!(lifetime(TCP, half_closed, true), 3_600);
        let closed = after(half_closed, false, 0x11);
        assert!(is_over(closed));
        assert_eq!(lifetime(TCP, closed, false), 120);
        assert_eq!(lifetime(TCP, after(closed, true, 0x10), false), 120, "a late segment opens nothing");
        let reset = after(established, false, 0x14);
        assert!(is_over(reset));
        assert_eq!((lifetime(TCP, reset, false), lifetime(TCP, reset, true)), (3_600, 10));
    }

    #[test]
    fn datagrams_are_kept_longer_once_they_are_answered() {
        let udp = u32::from(protocol::UDP);
        assert_eq!(lifetime(udp, after(0, true, 0), false), 30);
        assert_eq!(lifetime(udp, after(0, false, 0), false), DATAGRAM_FLOW);
    }

    #[test]
    fn the_answers_of_a_connection_are_its_packets_turned_round() {
        let backend = Backend { address: Address::v4([10, 1, 0, 5]), port: 8080, reserved: 0 };
        let connection =
            Connection { backend, source: Address::v4([192, 0, 2, 1]), source_port: 2000, ..Connection::default() };
        let answers = connection.answers(TCP);
        assert_eq!((answers.source, answers.source_port), (backend.address, 8080));
        assert_eq!((answers.destination, answers.destination_port), (connection.source, 2000));
        assert_eq!(answers.reversed(), connection.forward(TCP));
    }
}
