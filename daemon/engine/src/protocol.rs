//! The interface between the I/O engine and a protocol.
//!
//! The engine knows packets, datagrams and time. The protocol turns packets into datagrams, and
//! knows peers and keys. WireGuard is one (hauberk-wireguard); the bench has one without a cipher.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::backlog::Flow;
use crate::io::outbox::Outbox;
use crate::offload::segment::Segments;

/// A protocol that encrypts IP packets into datagrams and decrypts them.
///
/// Each engine has a protocol of its own, on its own thread, and calls it directly: engines are
/// generic over it. The time is passed in, as the engine read it at the beginning of the turn.
pub trait Protocol: Send + 'static {
    /// Encrypts IP packets read from the device, all of one flow, and posts the datagrams.
    ///
    /// # Errors
    /// [`Elsewhere`] if another engine has this destination; then nothing has been done.
    fn seal(
        &mut self,
        now: Instant,
        destination: IpAddr,
        packets: &mut Segments<'_>,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), Elsewhere>;

    /// Decrypts datagrams. Their packets go to the inbox, and answers to the outbox.
    fn open(&mut self, now: Instant, datagrams: Datagrams<'_>, inbox: &mut dyn Inbox, outbox: &mut Outbox<'_>);

    /// Adds the flows of the packets in datagrams that are not decrypted yet. False if the flows
    /// cannot be known. Nothing is authenticated at this point, so they may only decide the order
    /// in which datagrams are decrypted.
    fn flows(&mut self, datagrams: Datagrams<'_>, flows: &mut Vec<Flow>) -> bool;

    /// When [`Protocol::on_deadline`] wants to be called.
    fn next_deadline(&mut self) -> Option<Instant>;

    /// Does everything that is due at `now`.
    fn on_deadline(&mut self, now: Instant, outbox: &mut Outbox<'_>);
}

/// Packets that another engine must encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The number of that engine.
    pub engine: usize,
    /// Number of packets.
    pub packets: usize,
}

/// A run of datagrams as it came from the network, in one receive.
#[derive(Clone, Copy)]
pub struct Datagrams<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// ECN code point of the packets that carried them.
    pub ecn: u8,
    /// The datagrams, one after the other.
    pub bytes: &'a [u8],
    /// Size of each datagram except the last.
    pub size: usize,
}

impl<'a> Datagrams<'a> {
    /// Each datagram by itself; an empty payload is one datagram too.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Datagram<'a>> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        let all = empty.into_iter().chain(self.bytes.chunks(self.size));
        all.map(move |bytes| Datagram { from: self.from, ecn: self.ecn, bytes })
    }
}

/// A datagram as it came from the network.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// ECN code point of the packet that carried it.
    pub ecn: u8,
    /// Its payload.
    pub bytes: &'a [u8],
}

/// Where decrypted packets go.
pub trait Inbox {
    /// Room for one decrypted packet, at least as long as the longest datagram. It stays the same
    /// until a packet is delivered.
    fn room(&mut self) -> &mut [u8];

    /// Delivers the first `length` bytes of the room.
    fn deliver(&mut self, length: usize);
}
