//! The bulk path (super-packets cut, sealed into runs, opened, joined) compared with sending each
//! packet by itself: the same packets must come out.

use hauberk_engine::MOST_BYTES;
use hauberk_engine::offload::checksum;
use hauberk_engine::offload::coalesce::Coalescer;
use hauberk_engine::offload::samples::{Family, Tcp, as_super_packet};
use hauberk_engine::offload::virtio::HEADER_LENGTH;

use super::*;

/// Datagrams on a wire with UDP_SEGMENT at one end and UDP_GRO at the other.
#[derive(Default)]
struct Runs(Vec<(Vec<u8>, usize)>);

impl DatagramSink for Runs {
    fn send(&mut self, batch: &Batch) -> usize {
        assert!(batch.bytes().len() <= MOST_BYTES);
        self.0.push((batch.bytes().to_vec(), batch.size()));
        0
    }

    fn takes_batches(&self) -> bool {
        true
    }
}

/// Takes what is written to the device, and cuts it into packets again as the kernel would.
struct Device {
    coalescer: Coalescer,
    packets: Vec<Vec<u8>>,
}

impl Device {
    fn finish(mut self) -> Vec<Vec<u8>> {
        let Device { coalescer, packets } = &mut self;
        coalescer.flush(&mut |bytes| cut(bytes, packets));
        self.packets
    }
}

impl Inbox for Device {
    fn room(&mut self) -> &mut [u8] {
        self.coalescer.room()
    }

    fn deliver(&mut self, length: usize) {
        let Device { coalescer, packets } = self;
        coalescer.deliver(length, &mut |bytes| cut(bytes, packets));
    }
}

fn cut(bytes: &[u8], packets: &mut Vec<Vec<u8>>) {
    let (header, packet) = bytes.split_first_chunk::<HEADER_LENGTH>().unwrap();
    packets.extend(segments(Header::parse(*header).unwrap(), packet));
}

fn segments(header: Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut segments = Segments::new(header, &mut packet).unwrap();
    let mut packets = Vec::new();
    while let Some(segment) = segments.next() {
        packets.push(segment.to_vec());
    }
    packets
}

/// The result of one read of the device.
#[derive(Clone, Debug)]
struct Read {
    header: Header,
    packet: Vec<u8>,
}

fn read() -> impl Strategy<Value = Read> {
    let payload = prop_oneof![0usize..100, 1300usize..1400, 1usize..20_000];
    (any::<bool>(), 0u8..4, payload, 100u16..1368, 0u16..4, any::<u32>(), any::<[bool; 4]>()).prop_map(
        |(v4, kind, payload, size, port, sequence, [push, ecn, options, joins])| {
            let family = if v4 { Family::V4 } else { Family::V6 };
            let bytes: Vec<u8> = (0..payload).map(|index| (index as u32 ^ sequence) as u8).collect();
            let mut packet = match kind {
                // A datagram.
                0 => samples::udp(family, port, 53, &bytes),
                _ => {
                    // Often the next segment of its flow, sometimes not.
                    let mut tcp = Tcp::new(family, if joins { 1000 } else { sequence }, &bytes);
                    tcp.source_port = port;
                    tcp.flags |= if push { 8 } else { 0 };
                    tcp.options = if options { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { vec![] };
                    tcp.build()
                }
            };
            if ecn {
                packet = samples::with_ecn(packet, 2);
            }
            let headers = packet.len() - payload;
            let header = if packet.len() > MTU || (kind == 3 && payload > usize::from(size)) {
                let size = size.min((MTU - headers) as u16);
                // The kernel passes on at most this many segments.
                let size = size.max(payload.div_ceil(64) as u16);
                as_super_packet(&mut packet, size)
            } else if kind == 2 && family == Family::V4 {
                // A fragment: its transport header may say anything.
                packet[6] |= 0x20;
                packet[10..12].fill(0);
                let sum = checksum::finish(checksum::add(0, &packet[..20]));
                packet[10..12].copy_from_slice(&sum);
                Header::PLAIN
            } else {
                Header::PLAIN
            };
            Read { header, packet }
        },
    )
}

/// Identifies packets whose order must be kept: those of one flow. Packets without visible ports
/// count as one flow per protocol.
fn flow(packet: &[u8]) -> Vec<u8> {
    let is_fragment = ip::is_fragment(packet);
    match packet[0] >> 4 {
        4 if is_fragment => packet[9..10].to_vec(),
        4 => [&packet[9..10], &packet[20..22]].concat(),
        _ => [&packet[6..7], &packet[40..42], &[6]].concat(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn in_bulk_is_as_one_by_one(reads in prop::collection::vec(read(), 1..30)) {
        let (mut net, now) = Net::established();
        let expected: Vec<Vec<u8>> = reads.iter().flat_map(|read| segments(read.header, &read.packet)).collect();

        let alice = &mut net.nodes[ALICE];
        let mut wire = Runs::default();
        let mut outbox = Outbox::new(&mut alice.batch, &mut wire, &alice.counters);
        for read in &reads {
            let mut packet = read.packet.clone();
            let destination = ip::envelope(&packet).unwrap().destination;
            let mut packets = Segments::new(read.header, &mut packet).unwrap();
            alice.protocol.seal(now, destination, &mut packets, &mut outbox).unwrap();
        }
        outbox.flush();

        let bob = &mut net.nodes[BOB];
        let mut device = Device { coalescer: Coalescer::new(true, true), packets: vec![] };
        let mut answers = Runs::default();
        for (bytes, size) in &wire.0 {
            let datagrams = Datagrams { from: outer(1), ecn: 0, bytes, size: *size };
            let mut outbox = Outbox::new(&mut bob.batch, &mut answers, &bob.counters);
            bob.protocol.open(now, datagrams, &mut device, &mut outbox);
            outbox.flush();
        }
        let arrived = device.finish();
        prop_assert_eq!(bob.counters.drops().total(), 0);
        prop_assert_eq!(arrived.len(), expected.len());
        let flows: BTreeSet<_> = expected.iter().map(|packet| flow(packet)).collect();
        for of in flows {
            let before: Vec<_> = expected.iter().filter(|packet| flow(packet) == of).collect();
            let after: Vec<_> = arrived.iter().filter(|packet| flow(packet) == of).collect();
            prop_assert_eq!(before, after);
        }

        // No two messages of a session have the same number.
        let datagrams = wire.0.iter().flat_map(|(bytes, size)| bytes.chunks(*size));
        let numbers: Vec<&[u8]> = datagrams.map(|datagram| &datagram[4..16]).collect();
        let distinct: std::collections::HashSet<_> = numbers.iter().collect();
        prop_assert_eq!(distinct.len(), numbers.len());
    }
}
