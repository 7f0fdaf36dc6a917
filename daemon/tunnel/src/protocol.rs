//! What the I/O engine asks of a protocol, and what it offers in return.
//!
//! The engine knows packets, datagrams and time. How a packet becomes a datagram is the protocol's
//! business: [`crate::wireguard`] today.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::backlog::Flow;
use crate::io::outbox::Outbox;
use crate::offload::segment::Segments;

/// A protocol that seals IP packets into datagrams and opens them again.
pub(crate) trait Protocol: Send + 'static {
    /// Seals IP packets read from the device, all of one flow, and posts what results.
    ///
    /// # Errors
    /// [`Elsewhere`] if another engine has this destination; then nothing was done.
    fn seal(
        &mut self,
        now: Instant,
        destination: IpAddr,
        packets: &mut Segments<'_>,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), Elsewhere>;

    /// Opens datagrams. What they carry goes to the inbox, what they call for to the outbox.
    fn open(&mut self, now: Instant, datagrams: Datagrams<'_>, inbox: &mut dyn Inbox, outbox: &mut Outbox<'_>);

    /// Adds the flows of the packets in datagrams that are not opened yet. False if they cannot be known. Nothing is proved by then: it is
    /// good for the order in which datagrams are opened, and for nothing else.
    fn flows(&mut self, datagrams: Datagrams<'_>, flows: &mut Vec<Flow>) -> bool;

    /// When [`Protocol::on_deadline`] wants to be called.
    fn next_deadline(&mut self) -> Option<Instant>;

    /// Does what is due at `now`.
    fn on_deadline(&mut self, now: Instant, outbox: &mut Outbox<'_>);
}

/// Packets that are another engine's to seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) engine: usize,
    /// How many they are.
    pub(crate) packets: usize,
}

/// A run of datagrams as it came from the network, in one receive.
#[derive(Clone, Copy)]
pub(crate) struct Datagrams<'a> {
    pub(crate) from: SocketAddr,
    /// ECN code point of the packets that carried them.
    pub(crate) ecn: u8,
    pub(crate) bytes: &'a [u8],
    /// Size of each but the last.
    pub(crate) size: usize,
}

impl<'a> Datagrams<'a> {
    /// Each by itself; one without a payload is one as well.
    pub(crate) fn iter(self) -> impl Iterator<Item = Datagram<'a>> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        let all = empty.into_iter().chain(self.bytes.chunks(self.size));
        all.map(move |bytes| Datagram { from: self.from, ecn: self.ecn, bytes })
    }
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
    /// Room for one opened packet: at least as long as the longest datagram. The same one until something is delivered.
    fn room(&mut self) -> &mut [u8];

    /// Delivers the first `length` bytes of the room.
    fn deliver(&mut self, length: usize);
}
