//! Joined packets are cut into the same packets again, and packets that must not be joined are not.

use super::super::samples::{self, Family, Tcp};
use super::super::segment::Segments;
use super::*;
use proptest::prelude::*;

/// The coalescer's output for these packets.
fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    let mut coalescer = Coalescer::new(true, true);
    let mut write = |bytes: &[u8]| written.push(bytes.to_vec());
    for packet in packets {
        // Data left in the room without delivery must have no effect.
        coalescer.room()[..200].fill(0xee);
        coalescer.room()[..packet.len()].copy_from_slice(packet);
        coalescer.deliver(packet.len(), &mut write);
    }
    coalescer.flush(&mut write);
    written
}

/// The packets that the kernel would make of this output.
fn cut_again(written: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for bytes in written {
        let (header, packet) = bytes.split_first_chunk::<HEADER_LENGTH>().unwrap();
        let mut packet = packet.to_vec();
        let mut segments = Segments::new(Header::parse(*header).unwrap(), &mut packet).unwrap();
        while let Some(segment) = segments.next() {
            packets.push(segment.to_vec());
        }
    }
    packets
}

fn stream(family: Family, source_port: u16, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut sequence = u32::MAX - 2000;
    sizes
        .iter()
        .enumerate()
        .map(|(index, size)| {
            let mut tcp = Tcp::new(family, sequence, &vec![index as u8; *size]);
            tcp.id = index as u16;
            tcp.source_port = source_port;
            sequence = sequence.wrapping_add(*size as u32);
            tcp.build()
        })
        .collect()
}

#[test]
fn a_stream_becomes_one_write() {
    for family in [Family::V4, Family::V6] {
        let packets = stream(family, 1, &[1000, 1000, 1000, 400]);
        let written = joined(&packets);
        assert_eq!(written.len(), 1);
        assert_eq!(cut_again(&written), packets);
    }
}

#[test]
fn a_datagram_flow_becomes_one_write() {
    for family in [Family::V4, Family::V6] {
        let packets: Vec<_> = (0..4u8).map(|n| samples::udp(family, 1, 2, &[n; 500])).collect();
        let written = joined(&packets);
        // IPv4 datagrams that may be fragmented must have ascending ids to come out the same.
        assert_eq!(written.len(), if family == Family::V4 { 4 } else { 1 });
        assert_eq!(cut_again(&written), packets);
    }
}

#[test]
fn a_spoilt_checksum_stays_spoilt() {
    for spoilt in 0..3 {
        let mut packets = stream(Family::V6, 1, &[1000, 1000, 1000]);
        *packets[spoilt].last_mut().unwrap() ^= 1;
        let out = cut_again(&joined(&packets));
        assert_eq!(out, packets, "packet {spoilt} was repaired or lost");
    }
    let mut packets = stream(Family::V4, 1, &[1000, 1000]);
    packets[1][10] ^= 1;
    assert_eq!(cut_again(&joined(&packets)), packets);
}

#[test]
fn push_ends_a_burst_and_other_flags_go_alone() {
    let mut packets = stream(Family::V4, 1, &[1000, 1000, 1000]);
    let rebuild = |packets: &mut Vec<Vec<u8>>, index: usize, flags: u8| {
        let mut tcp = Tcp::new(Family::V4, 0, &[index as u8; 1000]);
        tcp.sequence = (u32::MAX - 2000).wrapping_add(1000 * index as u32);
        tcp.id = index as u16;
        tcp.source_port = 1;
        tcp.flags = flags;
        packets[index] = tcp.build();
    };
    rebuild(&mut packets, 1, TCP_ACK | TCP_PSH);
    let written = joined(&packets);
    assert_eq!(written.len(), 2);
    assert_eq!(cut_again(&written), packets);
    for flags in [TCP_ACK | 1, TCP_ACK | 2, TCP_ACK | 4, TCP_ACK | 0x20, TCP_ACK | 0x80] {
        rebuild(&mut packets, 1, flags);
        let written = joined(&packets);
        assert_eq!(written.len(), 3);
        assert_eq!(cut_again(&written), packets);
    }
}

#[test]
fn more_flows_than_slots_lose_nothing() {
    let flows: Vec<_> = (0..20).map(|port| stream(Family::V4, port, &[100; 5])).collect();
    let packets: Vec<_> = (0..5).flat_map(|n| flows.iter().map(move |flow| flow[n].clone())).collect();
    let out = cut_again(&joined(&packets));
    assert_eq!(out.len(), packets.len());
    for flow in flows {
        let ordered: Vec<_> = out.iter().filter(|packet| flow.contains(packet)).cloned().collect();
        assert_eq!(ordered, flow);
    }
}

#[test]
fn does_not_grow_past_what_a_length_field_says() {
    for family in [Family::V4, Family::V6] {
        let packets = stream(family, 1, &[1400; 100]);
        let written = joined(&packets);
        assert!(written.iter().all(|bytes| bytes.len() <= HEADER_LENGTH + LONGEST));
        assert_eq!(written.len(), 3);
        assert_eq!(cut_again(&written), packets);
    }
}

proptest! {
    #[test]
    fn cutting_undoes_joining(
        v4 in any::<bool>(),
        steps in prop::collection::vec((0u16..3, 1usize..1400, any::<bool>(), 0u8..20), 1..80),
    ) {
        let family = if v4 { Family::V4 } else { Family::V6 };
        let mut next = [(0u32, 0u16); 3];
        let mut packets = Vec::new();
        for (flow, size, repeat, odd) in steps {
            let (sequence, id) = &mut next[usize::from(flow)];
            let size = if repeat { 1000 } else { size };
            let mut tcp = Tcp::new(family, *sequence, &vec![odd; size]);
            tcp.id = *id;
            tcp.source_port = flow;
            match odd {
                0 => tcp.flags |= TCP_PSH,
                1 => tcp.flags |= 1,
                2 => tcp.sequence = tcp.sequence.wrapping_sub(5000),
                3 => tcp.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
                _ => {}
            }
            *sequence = sequence.wrapping_add(size as u32);
            *id = id.wrapping_add(1);
            let mut packet = tcp.build();
            if odd == 4 {
                *packet.last_mut().unwrap() ^= 0x55;
            }
            packets.push((flow, packet));
        }
        let all: Vec<_> = packets.iter().map(|(_, packet)| packet.clone()).collect();
        let out = cut_again(&joined(&all));
        prop_assert_eq!(out.len(), all.len());
        for flow in 0..3u16 {
            let before: Vec<_> = packets.iter().filter(|(of, _)| *of == flow).map(|(_, packet)| packet.clone()).collect();
            let at = family.ip_header();
            let after: Vec<_> = out.iter().filter(|packet| packet[at..at + 2] == flow.to_be_bytes()).cloned().collect();
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn never_panics_and_never_loses(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20)) {
        let mut written = 0;
        let mut coalescer = Coalescer::new(true, true);
        let mut shaped = packets;
        for (index, packet) in shaped.iter_mut().enumerate() {
            if packet.len() >= 20 {
                packet[0] = if index % 2 == 0 { 0x45 } else { 0x60 };
                let next = if index % 2 == 0 { 9 } else { 6 };
                packet[next] = if index % 3 == 0 { ip::TCP } else { ip::UDP };
                packet[6] &= 0x40;
                packet[7] = 0;
            }
        }
        for packet in &shaped {
            coalescer.room()[..packet.len()].copy_from_slice(packet);
            coalescer.deliver(packet.len(), &mut |_| written += 1);
        }
        coalescer.flush(&mut |_| written += 1);
        prop_assert!(written <= shaped.len());
    }
}
