//! A frame from a pod or from the wire, through the parser and the rules of the eBPF programs.
#![no_main]

use hauberk_abi::identity::{Identity, Protection};
use hauberk_abi::judge::{Place, arriving_decrypted, arriving_in_clear, entering_pod, is_here, need, outgoing};
use hauberk_abi::layout::Peer;
use hauberk_abi::neighbour::{claim, parse_arp};
use hauberk_abi::packet::{Frame, Packet, parse_frame, parse_ip};
use hauberk_abi::reason::Encryption;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, frame)) = bytes.split_first_chunk::<16>() else { return };
    judge(header);
    match parse_frame(&frame) {
        Ok(Frame::Ip(packet)) => {
            inspect(&packet, frame.len());
            let _ = claim(&frame, 14, &packet);
        }
        Ok(Frame::Arp(offset)) => drop(parse_arp(&frame, offset)),
        Ok(Frame::Other) | Err(_) => {}
    }
    if let Ok(packet) = parse_ip(&frame) {
        inspect(&packet, frame.len());
        assert!(!packet.tagged);
    }
});

fn inspect(packet: &Packet, room: usize) {
    assert!(packet.length as usize <= room);
    assert_eq!(packet.source.is_v4(), packet.destination.is_v4(), "one family at both ends");
    assert!(packet.fits(packet.length, 0));
}

/// The invariants, stated again independently of the rules.
fn judge(bytes: &[u8; 16]) {
    // Few node numbers, so that equal ones occur.
    let identity = |at: usize| Identity {
        kind: bytes[at] % 8,
        protection: bytes[at + 1] % 4,
        reserved: 0,
        node: u32::from(bytes[at + 2] % 4),
    };
    let (source, destination) = (identity(0), identity(3));
    let node = u32::from(bytes[6] % 3) + 1;
    let place = Place { node, stack: bytes[7] & 1 != 0, carries_protected: bytes[7] & 2 != 0 };
    let peer = Peer { flags: u32::from(bytes[8] % 4), epoch: 1 };
    let world_direct = bytes[9] & 1 != 0;

    let need = need(&source, &destination, &place);
    let leaves = outgoing(need, &destination, &peer);
    let arrives = arriving_in_clear(need, &source, &destination, node, world_direct);
    let opened = arriving_decrypted(need, &source, &destination, node);
    let enters = entering_pod(need, &destination, false);

    let protected = |identity: &Identity| identity.protection() == Protection::Enabled;
    let same_node = is_here(&source, node) && is_here(&destination, node);
    let world = source.is_world() || destination.is_world();
    if (protected(&source) || protected(&destination)) && !same_node && !world {
        assert!(matches!(leaves.encryption, Encryption::Encrypted | Encryption::Refused), "{leaves:?}");
        assert!(arrives.is_refused(), "{arrives:?}");
        assert!(enters.is_refused(), "{enters:?}");
    }
    if matches!(leaves.encryption, Encryption::Encrypted) {
        assert_eq!(peer.flags & 1, 1, "sealed for a peer without a key");
    }
    if !opened.is_refused() {
        assert!(source.node != node && source.node != 0, "a peer speaks for this node: {opened:?}");
        assert!(is_here(&destination, node), "{opened:?}");
    }
    if is_here(&source, node) && source.is_pod() {
        assert!(arrives.is_refused(), "a pod of this node came from the wire: {arrives:?}");
    }
}
