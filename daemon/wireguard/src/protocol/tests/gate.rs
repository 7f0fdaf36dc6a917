//! What a sender must prove before the handshake is computed, and which address its rate counts
//! for.

use super::super::message::{self, INITIATION_NOISE, MAC};
use super::*;
use crate::protocol::cookie::Macs;

#[test]
fn under_load_a_cookie_is_asked_for_and_given() {
    let mut net = Net::new(2);
    net.nodes[BOB] = Node::new(2, &[1], 0);
    net.nodes[BOB].put(peer(1, &[1]));
    let now = Instant::now();
    net.send(now, ALICE, &packet(1, 2, b"patience"));
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::UnderLoadCookie), 1);
    assert!(net.nodes[BOB].received().is_empty());
    assert_eq!(net.heard.last().unwrap().bytes[0], 3);

    let retry = net.nodes[ALICE].deadline().unwrap();
    let sent = net.nodes[ALICE].on_deadline(retry);
    // A cookie is only valid at the address it was sent to.
    let thief = net.nodes[BOB].open(retry, outer(66), &sent[0].bytes);
    assert_eq!((thief[0].to, thief[0].bytes[0]), (outer(66), 3));
    net.carry(retry, ALICE, sent);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"patience")]);
}

/// An initiation by a stranger who knows Bob's public key, as everyone may: its first MAC is right,
/// and its second MAC is `mac2`.
fn forged(now: Instant, mac2: u8) -> Vec<u8> {
    let mut forged = message::initiation(7, &[3; INITIATION_NOISE]);
    Macs::new(&PublicKey::from(&secret(2, 1))).sign(now, 7, &mut forged);
    let second = forged.len() - MAC;
    forged[second..].fill(mac2);
    forged.to_vec()
}

#[test]
fn initiations_with_a_bad_second_mac_do_not_use_up_what_an_address_may_ask_for() {
    let mut net = Net::new(2);
    let now = Instant::now();
    // Without load, nothing proves that they come from Alice's address.
    for mac2 in 1..=100 {
        net.nodes[BOB].open(now, outer(1), &forged(now, mac2));
    }
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::SourceRateLimited), 0);
    net.send(now, ALICE, &packet(1, 2, b"hello"));
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"hello")]);

    // Under load, an initiation with a cookie passes although many forged ones came from its
    // sender's address.
    let mut net = Net::new(2);
    net.nodes[BOB] = Node::new(2, &[1], 50);
    net.nodes[BOB].put(peer(1, &[1]));
    let mut cookies = 0;
    for mac2 in 1..=100 {
        cookies += net.nodes[BOB].open(now, outer(1), &forged(now, mac2)).len();
    }
    assert!(cookies > 0, "Bob is under load");
    net.send(now, ALICE, &packet(1, 2, b"patience"));
    let retry = net.nodes[ALICE].deadline().unwrap();
    for mac2 in 1..=100 {
        net.nodes[BOB].open(retry, outer(1), &forged(now, mac2));
    }
    let sent = net.nodes[ALICE].on_deadline(retry);
    net.carry(retry, ALICE, sent);
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::SourceRateLimited), 0);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"patience")]);
}

#[test]
fn an_address_that_is_proved_may_ask_for_so_many_handshakes() {
    let mut net = Net::new(2);
    net.nodes[BOB] = Node::new(2, &[1], 0);
    net.nodes[BOB].put(peer(1, &[1]));
    let now = Instant::now();
    net.send(now, ALICE, &packet(1, 2, b"patience"));
    let retry = net.nodes[ALICE].deadline().unwrap();
    let sent = net.nodes[ALICE].on_deadline(retry);
    for _ in 0..20 {
        net.nodes[BOB].open(retry, outer(1), &sent[0].bytes);
    }
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::SourceRateLimited), 15);
}
