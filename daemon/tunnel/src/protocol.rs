//! What the I/O engine asks of a protocol, and what it offers in return.
//!
//! The engine knows packets, datagrams and time. How a packet becomes a datagram is the protocol's
//! business: [`crate::wireguard`] today.

use std::net::SocketAddr;
use std::time::Instant;

use crate::io::outbox::Outbox;

/// A protocol that seals IP packets into datagrams and opens them again.
pub(crate) trait Protocol: Send + 'static {
    /// Seals one IP packet read from the device and posts what results.
    fn seal(&mut self, now: Instant, packet: &[u8], outbox: &mut Outbox<'_>);

    /// Opens one datagram. What it carries goes to the inbox, what it calls for to the outbox.
    fn open(&mut self, now: Instant, datagram: Datagram<'_>, inbox: &mut dyn Inbox, outbox: &mut Outbox<'_>);

    /// When [`Protocol::on_deadline`] wants to be called.
    fn next_deadline(&mut self) -> Option<Instant>;

    /// Does what is due at `now`.
    fn on_deadline(&mut self, now: Instant, outbox: &mut Outbox<'_>);
}

/// A datagram as it came from the network.
#[derive(Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) from: SocketAddr,
    /// ECN code point of the packet that carried it.
    pub(crate) ecn: u8,
    pub(crate) bytes: &'a [u8],
}

/// Where opened packets go.
pub(crate) trait Inbox {
    /// Room for one opened packet: at least as long as the longest datagram.
    fn room(&mut self) -> &mut [u8];

    /// Delivers the first `length` bytes of the room.
    fn deliver(&mut self, length: usize);
}
