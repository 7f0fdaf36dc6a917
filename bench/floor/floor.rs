//! A protocol without encryption, for a single peer.
//!
//! Its datagrams are exactly as long as WireGuard's data messages (WireGuard paper, 5.4.6): 16
//! bytes, the packet padded to a multiple of 16 as far as the MTU allows, 16 bytes. Each packet is
//! copied once into the batch and once out of the datagram. A cipher does the same copies, and its
//! own work in the same pass.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hauberk_cipher::TAG;
use hauberk_engine::offload::ip;
use hauberk_engine::offload::segment::Segments;
use hauberk_engine::{Counters, Datagrams, Elsewhere, Flow, Inbox, Outbox, Protocol, TunnelDrop};

/// As long as the type, receiver and counter of a data message.
const HEADER: usize = 16;
/// The first bytes of a header. No WireGuard message begins with them, so neither program accepts
/// the other's messages.
const KIND: [u8; 8] = *b"nocipher";

/// A peer without keys.
pub(crate) struct Floor {
    peer: SocketAddr,
    mtu: usize,
    sent: u64,
    counters: Arc<Counters>,
}

impl Floor {
    /// Sends everything to `peer`, and accepts packets only from there.
    pub(crate) fn new(peer: SocketAddr, mtu: usize, counters: Arc<Counters>) -> Floor {
        Floor { peer, mtu, sent: 0, counters }
    }
}

impl Protocol for Floor {
    fn seal(
        &mut self,
        _now: Instant,
        destination: IpAddr,
        packets: &mut Segments<'_>,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), Elsewhere> {
        // The kernel's own multicast on the device, which the real tunnel does not carry either.
        if destination.is_multicast() {
            self.counters.drop_packets(TunnelDrop::Multicast, packets.extent().1 as u64);
            return Ok(());
        }
        while let Some(packet) = packets.next() {
            let padded = packet.len().next_multiple_of(16).min(self.mtu).max(packet.len());
            let number = self.sent;
            self.sent += 1;
            outbox.post_with(self.peer, ip::ecn(packet), HEADER + padded + TAG, |room| {
                wrap(number, packet, room);
                true
            });
        }
        Ok(())
    }

    fn open(&mut self, _now: Instant, datagrams: Datagrams<'_>, inbox: &mut dyn Inbox, _outbox: &mut Outbox<'_>) {
        if datagrams.from != self.peer {
            self.counters.drop_packets(TunnelDrop::UnknownSender, datagrams.iter().count() as u64);
            return;
        }
        for datagram in datagrams.iter() {
            let Some(padded) = unwrap(datagram.bytes) else {
                self.counters.drop_packet(TunnelDrop::Malformed);
                continue;
            };
            let packet = &mut inbox.room()[..padded.len()];
            packet.copy_from_slice(padded);
            // There may be padding behind the packet: the packet's own header says where it ends.
            match ip::envelope(packet) {
                Some(envelope) => {
                    ip::mark_congestion(datagram.ecn, packet);
                    inbox.deliver(envelope.length);
                }
                None => self.counters.drop_packet(TunnelDrop::Malformed),
            }
        }
    }

    fn flows(&mut self, datagrams: Datagrams<'_>, flows: &mut Vec<Flow>) -> bool {
        flows.extend(datagrams.iter().filter_map(|datagram| unwrap(datagram.bytes)).filter_map(ip::flow));
        flows.dedup();
        true
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        None
    }

    fn on_deadline(&mut self, _now: Instant, _outbox: &mut Outbox<'_>) {}
}

/// Fills `room` with the datagram for a packet, which is at least [`HEADER`] and [`TAG`] shorter.
fn wrap(number: u64, packet: &[u8], room: &mut [u8]) {
    let (header, rest) = room.split_at_mut(HEADER);
    header[..8].copy_from_slice(&KIND);
    header[8..].copy_from_slice(&number.to_le_bytes());
    let (text, padding_and_tag) = rest.split_at_mut(packet.len());
    text.copy_from_slice(packet);
    padding_and_tag.fill(0);
}

/// The packet in one of this program's datagrams, with its padding.
fn unwrap(datagram: &[u8]) -> Option<&[u8]> {
    let (padded, _tag) = datagram.strip_prefix(&KIND)?.get(8..)?.split_last_chunk::<TAG>()?;
    Some(padded)
}
