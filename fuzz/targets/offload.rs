//! The engine's cutting and joining of packets: no input panics, and a joined packet is cut into
//! the same packets again.
#![no_main]

use hauberk_engine::offload::coalesce::Coalescer;
use hauberk_engine::offload::segment::Segments;
use hauberk_engine::offload::virtio::{HEADER_LENGTH, Header};
use hauberk_engine::offload::{checksum, ip};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    cut_whatever(bytes);
    join_and_cut(bytes);
});

/// Input from the device: a virtio header and a packet that may not fit each other.
fn cut_whatever(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_first_chunk::<HEADER_LENGTH>() else { return };
    let mut packet = packet.to_vec();
    // The engine calls this for every read, before it is known to be a packet.
    ip::flow(&packet);
    let (Some(header), Some(envelope)) = (Header::parse(*header), ip::envelope(&packet)) else { return };
    let (flow, is_fragment) = (ip::flow(&packet[..envelope.length]), ip::is_fragment(&packet));
    let Ok(mut segments) = Segments::new(header, &mut packet[..envelope.length]) else { return };
    while let Some(segment) = segments.next() {
        assert!(segment.len() <= envelope.length);
        assert_eq!((ip::flow(segment), ip::is_fragment(segment)), (flow, is_fragment));
    }
}

/// Input from peers: packets of a few flows, some of them with errors.
fn join_and_cut(bytes: &[u8]) {
    let mut sent: Vec<Vec<u8>> = Vec::new();
    let mut cut: Vec<Vec<u8>> = Vec::new();
    let mut write = |bytes: &[u8]| {
        let (header, packet) = bytes.split_first_chunk::<HEADER_LENGTH>().expect("a header before the packet");
        let header = Header::parse(*header).expect("a header of ours");
        let mut packet = packet.to_vec();
        let mut segments = Segments::new(header, &mut packet).expect("what was joined can be cut");
        while let Some(segment) = segments.next() {
            cut.push(normal(segment));
        }
    };
    let mut coalescer = Coalescer::new(true, true);
    for description in bytes.chunks_exact(8).take(64) {
        let packet = build(description);
        sent.push(normal(&packet));
        // Data left in the room without delivery must have no effect.
        coalescer.room()[..64].fill(0xee);
        coalescer.room()[..packet.len()].copy_from_slice(&packet);
        coalescer.deliver(packet.len(), &mut write);
    }
    coalescer.flush(&mut write);
    sent.sort();
    cut.sort();
    assert_eq!(sent, cut);
}

/// Without the checksum of IPv4 and its identification, which has no meaning if fragmenting is
/// forbidden.
fn normal(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// A TCP or UDP packet described by eight bytes: kind, size, flags, sequence, id, the error and its
/// position, payload.
fn build(description: &[u8]) -> Vec<u8> {
    let [kind, size, flags, sequence, id, spoilt, position, fill] = description else { return Vec::new() };
    let (v6, udp) = (kind & 1 != 0, kind & 2 != 0);
    let payload = vec![*fill; usize::from(size % 8) * 100 + usize::from(size >> 6)];
    let mut transport = vec![0, kind >> 4, 1, 1];
    if udp {
        transport.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        transport.extend_from_slice(&[0, 0]);
    } else {
        transport.extend_from_slice(&(u32::from(*sequence) * 100).to_be_bytes());
        transport.extend_from_slice(&[0, 0, 0, 9, 0x50, 0x10 | flags & 0x29, 1, 0, 0, 0, 0, 0]);
    }
    transport.extend_from_slice(&payload);
    let protocol = if udp { ip::UDP } else { ip::TCP };
    let length = transport.len() as u16;
    let mut packet = if v6 {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&[0xfd; 32]);
        header
    } else {
        let mut header = vec![0x45, 0, 0, 0, 0, *id, if kind & 4 != 0 { 0x40 } else { 0 }, 0, 64, protocol, 0, 0];
        header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        header.extend_from_slice(&[10; 8]);
        let sum = checksum::finish(checksum::add(0, &header));
        header[10..12].copy_from_slice(&sum);
        header
    };
    let start = packet.len();
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    let pseudo = checksum::pseudo_header(addresses, protocol, transport.len());
    let at = if udp { 6 } else { 16 };
    let sum = checksum::finish(checksum::add(pseudo, &transport));
    transport[at..at + 2].copy_from_slice(&sum);
    packet.extend_from_slice(&transport);
    if spoilt & 0xf0 == 0xf0 {
        // Behind the version and the lengths, which the envelope has checked.
        let room = packet.len() - start;
        packet[start + usize::from(*position) % room] ^= spoilt;
    }
    packet
}
