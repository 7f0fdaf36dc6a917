//! Gathers encrypted datagrams into the largest sends that the kernel accepts.
//!
//! One send carries datagrams to one address, all of one size except the last, which may be smaller
//! (UDP_SEGMENT, linux/udp.h). Datagrams are encrypted directly into the batch.

use std::net::SocketAddr;

use crate::stats::{Counters, TunnelDrop};

/// The most datagrams in one send (UDP_MAX_SEGMENTS, linux/udp.h).
const MOST_DATAGRAMS: usize = 64;
/// The most bytes in one send: what an IPv4 packet with a UDP header can carry.
pub const MOST_BYTES: usize = 65_507;
/// IPv4 and TCP headers with timestamps. The kernel rounds down to whole packets, so other usual
/// headers, 40 to 72 bytes long, do not lead to more packets.
const HEADERS: u32 = 52;
/// The most that TCP reserves for headers in a super-packet (`MAX_TCP_HEADER + 1`,
/// net/core/sock.c).
const RESERVED: u32 = 321;

/// The `gso_max_size`, bytes, for the devices of pods whose packets are at most `mtu` bytes: a
/// super-packet then has as many packets as one send can carry, each `overhead` bytes longer after
/// encryption.
pub fn gso_max_size(mtu: u32, overhead: u32) -> u32 {
    let packets = (MOST_BYTES as u32 / (mtu + overhead)).min(MOST_DATAGRAMS as u32);
    // The kernel fills a super-packet with the payloads of whole packets.
    (packets * mtu.saturating_sub(HEADERS) + RESERVED).min(1 << 16)
}

/// Somewhere to send datagrams: the sockets, or a test.
pub trait DatagramSink {
    /// Sends the batch; returns how many of its datagrams the kernel did not take.
    fn send(&mut self, batch: &Batch) -> usize;

    /// Whether one batch may hold several datagrams.
    fn takes_batches(&self) -> bool;
}

/// Datagrams to one address.
pub struct Batch {
    buffer: Box<[u8]>,
    length: usize,
    /// Size of each datagram except the last.
    size: usize,
    count: usize,
    to: Option<SocketAddr>,
    class: u8,
    /// The last datagram is smaller, so no datagram may follow.
    full: bool,
}

impl Batch {
    /// An empty batch.
    #[allow(clippy::new_without_default, reason = "it allocates 64 KB")]
    pub fn new() -> Batch {
        Batch {
            buffer: vec![0; MOST_BYTES].into_boxed_slice(),
            length: 0,
            size: 0,
            count: 0,
            to: None,
            class: 0,
            full: false,
        }
    }

    /// The datagrams, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Each datagram by itself.
    pub fn datagrams(&self) -> std::slice::Chunks<'_, u8> {
        self.bytes().chunks(self.size.max(1))
    }

    /// Size of each datagram except the last.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of datagrams.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their common traffic class: DSCP and ECN.
    pub fn class(&self) -> u8 {
        self.class
    }

    /// Where they go.
    pub fn to(&self) -> Option<SocketAddr> {
        self.to
    }

    #[inline]
    fn takes(&self, to: SocketAddr, class: u8, size: usize) -> bool {
        self.to == Some(to)
            && self.class == class
            && size <= self.size
            && !self.full
            && self.count < MOST_DATAGRAMS
            && self.length + size <= MOST_BYTES
    }

    #[inline]
    fn clear(&mut self) {
        self.length = 0;
        self.count = 0;
        self.to = None;
        self.full = false;
    }
}

/// Collects and sends datagrams. The caller that creates it also flushes it.
pub struct Outbox<'a> {
    batch: &'a mut Batch,
    sink: &'a mut dyn DatagramSink,
    counters: &'a Counters,
}

impl<'a> Outbox<'a> {
    /// An outbox that gathers in `batch` and sends to `sink`.
    #[inline]
    pub fn new(batch: &'a mut Batch, sink: &'a mut dyn DatagramSink, counters: &'a Counters) -> Outbox<'a> {
        Outbox { batch, sink, counters }
    }

    /// Whether several datagrams leave in one call, as far as the sink knows at this point.
    #[inline]
    pub fn takes_batches(&self) -> bool {
        self.sink.takes_batches()
    }

    /// Posts a datagram of `size` bytes that `fill` writes. If it returns false, nothing is sent.
    pub fn post_with(&mut self, to: SocketAddr, class: u8, size: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        if size > MOST_BYTES {
            self.counters.drop_packet(TunnelDrop::Oversized);
            return false;
        }
        let fits = self.batch.count > 0 && self.batch.takes(to, class, size) && self.sink.takes_batches();
        if !fits {
            self.flush();
        }
        let batch = &mut *self.batch;
        if !fill(&mut batch.buffer[batch.length..batch.length + size]) {
            return false;
        }
        if batch.count == 0 {
            batch.to = Some(to);
            batch.class = class;
            batch.size = size;
        }
        batch.full = size < batch.size;
        batch.length += size;
        batch.count += 1;
        true
    }

    /// Posts a finished datagram.
    pub fn post(&mut self, to: SocketAddr, datagram: &[u8]) {
        self.post_with(to, 0, datagram.len(), |room| {
            room.copy_from_slice(datagram);
            true
        });
    }

    /// Sends the batch.
    #[inline]
    pub fn flush(&mut self) {
        if self.batch.count > 0 {
            let refused = self.sink.send(self.batch);
            self.counters.drop_packets(TunnelDrop::UdpSendFailed, refused as u64);
            self.batch.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_super_packet_of_a_pod_is_one_send() {
        const OVERHEAD: u32 = 32;
        for (mtu, packets) in [(1280, 49), (1420, 45), (1440, 44), (8920, 7)] {
            let size = gso_max_size(mtu, OVERHEAD);
            for headers in [40, 52, 60, 72] {
                let count = (size - RESERVED) / (mtu - headers);
                assert!(count <= packets, "{count} packets of {mtu}");
                assert!(count * (mtu + OVERHEAD) <= MOST_BYTES as u32);
            }
            assert_eq!((size - RESERVED) / (mtu - 52), packets);
        }
    }

    struct Recorder {
        batches: bool,
        sent: Vec<(SocketAddr, u8, Vec<Vec<u8>>)>,
    }

    impl DatagramSink for Recorder {
        fn send(&mut self, batch: &Batch) -> usize {
            let datagrams: Vec<_> = batch.datagrams().map(<[u8]>::to_vec).collect();
            assert_eq!(datagrams.len(), batch.count());
            self.sent.push((batch.to().unwrap(), batch.class(), datagrams));
            0
        }

        fn takes_batches(&self) -> bool {
            self.batches
        }
    }

    fn send(batches: bool, posts: &[(u16, u8, usize)]) -> Vec<(SocketAddr, u8, Vec<Vec<u8>>)> {
        let mut recorder = Recorder { batches, sent: vec![] };
        let mut batch = Batch::new();
        let counters = Counters::default();
        let mut outbox = Outbox::new(&mut batch, &mut recorder, &counters);
        for (index, (port, ecn, size)) in posts.iter().enumerate() {
            let to = SocketAddr::from(([127, 0, 0, 1], *port));
            outbox.post_with(to, *ecn, *size, |room| {
                room.fill(index as u8);
                true
            });
        }
        outbox.flush();
        recorder.sent
    }

    #[test]
    fn equal_sizes_travel_together_and_a_smaller_one_closes() {
        let sent = send(true, &[(1, 0, 100), (1, 0, 100), (1, 0, 40), (1, 0, 40), (1, 0, 100)]);
        let counts: Vec<_> = sent.iter().map(|(_, _, datagrams)| datagrams.len()).collect();
        assert_eq!(counts, [3, 1, 1]);
    }

    #[test]
    fn a_datagram_that_was_not_filled_is_not_sent() {
        let mut recorder = Recorder { batches: true, sent: vec![] };
        let mut batch = Batch::new();
        let counters = Counters::default();
        let mut outbox = Outbox::new(&mut batch, &mut recorder, &counters);
        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(!outbox.post_with(to, 0, 10, |_| false));
        assert!(!outbox.post_with(to, 0, MOST_BYTES + 1, |_| true));
        outbox.flush();
        assert!(recorder.sent.is_empty());
        assert_eq!(counters.drops().of(TunnelDrop::Oversized), 1);
    }

    proptest! {
        #[test]
        fn everything_arrives_in_order_within_the_kernels_limits(
            batches in any::<bool>(),
            posts in prop::collection::vec((1u16..3, 0u8..2, prop::sample::select(vec![32usize, 1452, 1452, 9000])), 0..200),
        ) {
            let sent = send(batches, &posts);
            let mut index = 0;
            for (to, ecn, datagrams) in sent {
                let most = if batches { MOST_DATAGRAMS } else { 1 };
                prop_assert!(datagrams.len() <= most);
                prop_assert!(datagrams.iter().map(Vec::len).sum::<usize>() <= MOST_BYTES);
                let (last, rest) = datagrams.split_last().unwrap();
                prop_assert!(rest.iter().all(|datagram| datagram.len() == datagrams[0].len()));
                prop_assert!(last.len() <= datagrams[0].len());
                for datagram in datagrams {
                    prop_assert_eq!((to.port(), ecn, datagram.len()), posts[index]);
                    prop_assert!(datagram.iter().all(|byte| *byte == index as u8));
                    index += 1;
                }
            }
            prop_assert_eq!(index, posts.len());
        }
    }
}
