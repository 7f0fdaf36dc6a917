//! Alice, Bob and an eavesdropper, without sockets, devices or root.
//!
//! Datagrams go through a queue that the tests can inspect. The tests set the time.

mod changes;
mod differential;
mod engines;
mod gate;
mod interop;
mod lifetime;
mod roaming;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hauberk_cipher::Implementation;
use hauberk_engine::offload::segment::Segments;
use hauberk_engine::offload::virtio::Header;
use hauberk_engine::offload::{ip, samples};
use hauberk_engine::{Batch, Channels, Counters, DatagramSink, Datagrams, Inbox, Outbox, Protocol, TunnelDrop};
use ipnet::IpNet;
use proptest::prelude::*;
use x25519_dalek::{PublicKey, StaticSecret};

use super::{Identities, Settings, WireGuard};
use crate::config::{LocalKey, PeerChange, PeerConfig, PeerId, PeerKey, StateCallback};
use crate::error::Error;
use crate::stats::{PeerState, PeerStats};
use crate::strangers::Strangers;

const MTU: usize = 1420;

/// A datagram on its way.
#[derive(Clone, Debug)]
struct Sent {
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Wire(Vec<Sent>);

impl DatagramSink for Wire {
    fn send(&mut self, batch: &Batch) -> usize {
        let to = batch.to().unwrap();
        self.0.extend(batch.datagrams().map(|bytes| Sent { to, bytes: bytes.to_vec() }));
        0
    }

    fn takes_batches(&self) -> bool {
        true
    }
}

struct Delivered {
    room: Vec<u8>,
    packets: Vec<Vec<u8>>,
}

impl Inbox for Delivered {
    fn room(&mut self) -> &mut [u8] {
        &mut self.room
    }

    fn deliver(&mut self, length: usize) {
        self.packets.push(self.room[..length].to_vec());
    }
}

/// A node; its number is part of its inner and outer addresses.
struct Node {
    number: u8,
    protocol: WireGuard,
    batch: Batch,
    inbox: Delivered,
    counters: Arc<Counters>,
    strangers: Arc<Strangers>,
    states: Arc<Mutex<Vec<PeerState>>>,
}

fn secret(number: u8, epoch: u32) -> StaticSecret {
    let mut bytes = [number; 32];
    bytes[1] = epoch as u8;
    StaticSecret::from(bytes)
}

fn key(number: u8, epoch: u32) -> PeerKey {
    PeerKey { epoch, public: PublicKey::from(&secret(number, epoch)).to_bytes() }
}

fn local_keys(number: u8, epochs: &[u32]) -> Vec<LocalKey> {
    epochs.iter().map(|epoch| LocalKey { epoch: *epoch, secret: secret(number, *epoch) }).collect()
}

fn outer(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51840))
}

fn peer(number: u8, epochs: &[u32]) -> PeerConfig {
    PeerConfig {
        id: PeerId(number.into()),
        name: format!("node-{number}"),
        keys: epochs.iter().map(|epoch| key(number, *epoch)).collect(),
        endpoint: Some(outer(number)),
        fallbacks: Vec::new(),
        allowed: vec![net_of(&format!("10.0.{number}.0/24")), net_of(&format!("fd00:{number}::/32"))],
    }
}

fn net_of(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// An IPv4 packet between two nodes' inner addresses.
fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = samples::udp(samples::Family::V4, 1, 2, payload);
    packet[12..16].copy_from_slice(&[10, 0, from, 1]);
    packet[16..20].copy_from_slice(&[10, 0, to, 1]);
    packet
}

impl Node {
    fn new(number: u8, epochs: &[u32], handshake_limit: u64) -> Node {
        let counters = Arc::new(Counters::default());
        let strangers = Arc::new(Strangers::default());
        let states = Arc::new(Mutex::new(Vec::new()));
        let on_state = {
            let states = states.clone();
            Box::new(move |_, state| states.lock().unwrap().push(state)) as StateCallback
        };
        let identities = Identities::new(local_keys(number, epochs), handshake_limit).unwrap();
        let settings = Settings {
            counters: counters.clone(),
            strangers: strangers.clone(),
            on_state: Some(Arc::new(on_state)),
            mtu: MTU,
            copy_dscp: false,
            cipher: Implementation::best(),
        };
        let (channels, _) = Channels::new(1).unwrap().remove(0);
        let protocol = WireGuard::new(identities, settings, channels);
        let inbox = Delivered { room: vec![0; 1 << 16], packets: vec![] };
        Node { number, protocol, batch: Batch::new(), inbox, counters, strangers, states }
    }

    fn act(&mut self, work: impl FnOnce(&mut WireGuard, &mut Delivered, &mut Outbox<'_>)) -> Vec<Sent> {
        let mut wire = Wire::default();
        let mut outbox = Outbox::new(&mut self.batch, &mut wire, &self.counters);
        work(&mut self.protocol, &mut self.inbox, &mut outbox);
        outbox.flush();
        wire.0
    }

    fn apply(&mut self, now: Instant, changes: Vec<PeerChange>) -> Result<Vec<Sent>, Error> {
        let plan = self.protocol.plan(changes)?;
        Ok(self.act(|protocol, _, outbox| protocol.carry_out(plan, now, outbox)))
    }

    fn put(&mut self, config: PeerConfig) {
        self.apply(Instant::now(), vec![PeerChange::Put(config)]).unwrap();
    }

    fn set_keys(&mut self, now: Instant, epochs: &[u32]) -> Vec<Sent> {
        let keys = Identities::new(local_keys(self.number, epochs), 1000).unwrap();
        self.protocol.check_keys(&keys).unwrap();
        self.act(|protocol, _, outbox| protocol.set_keys(keys, now, outbox))
    }

    fn seal(&mut self, now: Instant, packet: &[u8]) -> Vec<Sent> {
        let destination = ip::envelope(packet).unwrap().destination;
        let mut packet = packet.to_vec();
        let mut packets = Segments::new(Header::PLAIN, &mut packet).unwrap();
        self.act(|protocol, _, outbox| protocol.seal(now, destination, &mut packets, outbox).unwrap())
    }

    fn open(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Vec<Sent> {
        let datagrams = Datagrams { from, ecn: 0, bytes, size: bytes.len().max(1) };
        self.act(|protocol, inbox, outbox| protocol.open(now, datagrams, inbox, outbox))
    }

    fn on_deadline(&mut self, now: Instant) -> Vec<Sent> {
        self.act(|protocol, _, outbox| protocol.on_deadline(now, outbox))
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.protocol.next_deadline()
    }

    fn drops(&self, reason: TunnelDrop) -> u64 {
        self.counters.drops().of(reason)
    }

    fn stats(&self, number: u8) -> PeerStats {
        self.protocol.stats().into_iter().find(|peer| peer.id == PeerId(number.into())).unwrap()
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.inbox.packets)
    }
}

/// Several nodes, and an eavesdropper.
struct Net {
    nodes: Vec<Node>,
    heard: Vec<Sent>,
}

const ALICE: usize = 0;
const BOB: usize = 1;

impl Net {
    /// Alice is number 1, Bob number 2, and so on; all know each other.
    fn new(count: u8) -> Net {
        Net::with(count, &[1], &[1])
    }

    fn with(count: u8, local: &[u32], known: &[u32]) -> Net {
        let mut nodes: Vec<_> = (1..=count).map(|number| Node::new(number, local, 1000)).collect();
        for node in &mut nodes {
            let own = node.number;
            for other in (1..=count).filter(|other| *other != own) {
                node.put(peer(other, known));
            }
        }
        Net { nodes, heard: vec![] }
    }

    /// Carries datagrams until none is left. `from` sent the first ones.
    fn carry(&mut self, now: Instant, from: usize, sent: Vec<Sent>) {
        let mut queue: VecDeque<_> = sent.into_iter().map(|sent| (from, sent)).collect();
        while let Some((from, sent)) = queue.pop_front() {
            self.heard.push(sent.clone());
            let Some(to) = self.nodes.iter().position(|node| outer(node.number) == sent.to) else { continue };
            let source = outer(self.nodes[from].number);
            let answers = self.nodes[to].open(now, source, &sent.bytes);
            queue.extend(answers.into_iter().map(|sent| (to, sent)));
        }
    }

    fn send(&mut self, now: Instant, from: usize, packet: &[u8]) {
        let sent = self.nodes[from].seal(now, packet);
        self.carry(now, from, sent);
    }

    /// Alice and Bob have a session, used in both directions.
    fn established() -> (Net, Instant) {
        let mut net = Net::new(2);
        let now = Instant::now();
        net.send(now, ALICE, &packet(1, 2, b"hello"));
        net.send(now, BOB, &packet(2, 1, b"hello"));
        assert_eq!(net.nodes[BOB].received().len(), 1);
        assert_eq!(net.nodes[ALICE].received().len(), 1);
        (net, now)
    }
}

#[test]
fn flows_are_known_before_anything_is_opened_and_nothing_follows_from_them() {
    let (mut net, now) = Net::established();
    let packet = packet(1, 2, b"hello");
    let sent = net.nodes[ALICE].seal(now, &packet);
    let flows_of = |node: &mut Node, bytes: &[u8]| {
        let mut flows = vec![];
        let datagrams = Datagrams { from: outer(1), ecn: 0, bytes, size: bytes.len() };
        node.protocol.flows(datagrams, &mut flows).then_some(flows)
    };
    let can = Implementation::best() != Implementation::Ring;
    let expected = can.then(|| vec![ip::flow(&packet).unwrap()]);
    assert_eq!(flows_of(&mut net.nodes[BOB], &sent[0].bytes), expected);
    assert_eq!(flows_of(&mut net.nodes[BOB], &sent[0].bytes), expected, "to look is not to receive");
    // Forged and foreign messages may show any flow or none, without further effect.
    let mut forged = sent[0].bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(flows_of(&mut net.nodes[BOB], &forged), expected);
    forged[4] ^= 0x80;
    assert_eq!(flows_of(&mut net.nodes[BOB], &forged), Some(vec![]));
    assert_eq!(flows_of(&mut net.nodes[BOB], &[1, 0, 0, 0]), Some(vec![]));
    assert_eq!(net.nodes[BOB].counters.drops().total(), 0);
    net.carry(now, ALICE, sent);
    assert_eq!(net.nodes[BOB].received(), [packet]);
}

#[test]
fn packets_arrive_and_the_eavesdropper_reads_nothing() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let payload = b"for Bob's eyes only, whatever the length";
    for length in 0..payload.len() {
        net.send(now, ALICE, &packet(1, 2, &payload[..length]));
        net.send(now, BOB, &packet(2, 1, &payload[..length]));
        assert_eq!(net.nodes[BOB].received(), [packet(1, 2, &payload[..length])]);
        assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, &payload[..length])]);
    }
    for sent in &net.heard {
        assert!(!sent.bytes.windows(8).any(|window| payload.windows(8).any(|part| part == window)));
        assert_eq!((sent.bytes.len() - 32) % 16 * usize::from(sent.bytes[0] == 4), 0, "lengths are padded");
    }
    for node in &net.nodes {
        assert_eq!(node.counters.drops().total(), 0);
        assert_eq!(*node.states.lock().unwrap().last().unwrap(), PeerState::Established);
    }
    let (alice, bob) = (net.nodes[ALICE].stats(2), net.nodes[BOB].stats(1));
    assert_eq!((alice.tx_bytes, alice.rx_bytes), (bob.rx_bytes, bob.tx_bytes));
    assert_eq!((alice.tx_packets, alice.rx_packets), (40, 40));
    assert!(alice.latest_handshake.is_some() && bob.latest_handshake.is_some());
}

#[test]
fn full_size_packets_are_not_padded_past_the_mtu() {
    let (mut net, now) = Net::established();
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, &[7; MTU - 28]));
    assert_eq!(sent[0].bytes.len(), MTU + 32);
}

#[test]
fn a_packet_too_long_for_any_datagram_is_dropped() {
    let (mut net, now) = Net::established();
    assert!(net.nodes[ALICE].seal(now, &packet(1, 2, &[7; 65_460])).is_empty());
    assert_eq!(net.nodes[ALICE].drops(TunnelDrop::Oversized), 1);
    net.send(now, ALICE, &packet(1, 2, b"of no consequence"));
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"of no consequence")]);
}

#[test]
fn waiting_packets_keep_their_order_and_their_number_is_bounded() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let mut first = net.nodes[ALICE].seal(now, &packet(1, 2, &0u16.to_be_bytes()));
    for number in 1..300u16 {
        assert!(
            net.nodes[ALICE].seal(now, &packet(1, 2, &number.to_be_bytes())).is_empty(),
            "one initiation is enough"
        );
    }
    assert_eq!(net.nodes[ALICE].drops(TunnelDrop::QueueFull), 300 - 256);
    assert!(matches!(net.nodes[ALICE].stats(2).state, PeerState::Handshaking { attempts: 1 }));
    net.carry(now, ALICE, std::mem::take(&mut first));
    let expected: Vec<_> = (0..256u16).map(|number| packet(1, 2, &number.to_be_bytes())).collect();
    assert_eq!(net.nodes[BOB].received(), expected);
}

#[test]
fn both_may_start_at_once() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let from_alice = net.nodes[ALICE].seal(now, &packet(1, 2, b"ping"));
    let from_bob = net.nodes[BOB].seal(now, &packet(2, 1, b"pong"));
    net.carry(now, ALICE, from_alice);
    net.carry(now, BOB, from_bob);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"ping")]);
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"pong")]);
}

/// When two handshakes cross, each side has two sessions. This side keeps sending with the later
/// one (WireGuard paper, 5.1; as the kernel does), whichever the peer sends with: wireguard-go may
/// have lost the index of the other one.
#[test]
fn data_of_an_older_session_does_not_take_sending_back_to_it() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let from_alice = net.nodes[ALICE].seal(now, &packet(1, 2, b"ping"));
    let from_bob = net.nodes[BOB].seal(now, &packet(2, 1, b"pong"));
    let older = net.nodes[ALICE].open(now, outer(2), &from_bob[0].bytes);
    let newer = net.nodes[BOB].open(now, outer(1), &from_alice[0].bytes);
    let on_older = net.nodes[BOB].open(now, outer(1), &older[0].bytes);
    net.nodes[ALICE].open(now, outer(2), &newer[0].bytes);
    for sent in &on_older {
        net.nodes[ALICE].open(now, outer(2), &sent.bytes);
    }
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"pong")]);
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"again"));
    assert_eq!(sent[0].bytes[4..8], newer[0].bytes[4..8], "the receiver is the newer session");
}

#[test]
fn replays_forgeries_and_strangers_are_refused() {
    let (mut net, now) = Net::established();
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"once"));
    let good = sent[0].bytes.clone();
    let from = outer(1);
    let bob = &mut net.nodes[BOB];

    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    bob.open(now, from, &flipped);
    let mut last_counter = good.clone();
    last_counter[8..16].fill(0xff);
    bob.open(now, from, &last_counter);
    assert_eq!(bob.drops(TunnelDrop::ReplayOrForged), 2);
    assert!(bob.received().is_empty());

    bob.open(now, from, &good);
    assert_eq!(bob.received().len(), 1);
    bob.open(now, from, &good);
    assert_eq!(bob.drops(TunnelDrop::ReplayOrForged), 3);

    let mut stranger = good.clone();
    stranger[5] ^= 0x55;
    bob.open(now, from, &stranger);
    assert_eq!(bob.drops(TunnelDrop::UnknownSender), 1);
    for junk in [&[][..], &[4], &[4, 0, 0, 0], &[9; 148], &good[..31]] {
        bob.open(now, from, junk);
    }
    assert_eq!(bob.drops(TunnelDrop::Malformed), 5);
    assert!(bob.received().is_empty());

    // Replaying a recorded initiation has no effect either.
    let initiation = net.heard.iter().find(|sent| sent.bytes[0] == 1).unwrap().bytes.clone();
    assert!(net.nodes[BOB].open(now, from, &initiation).is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::ReplayOrForged), 4);
}

#[test]
fn nobody_speaks_for_another_even_inside_its_own_range() {
    let mut net = Net::new(3);
    let now = Instant::now();
    // Carol (3) has one address inside Alice's range.
    let add = vec![net_of("10.0.1.77/32")];
    let change = PeerChange::Allowed { id: PeerId(3), add, remove: vec![] };
    net.nodes[BOB].apply(now, vec![change]).unwrap();
    let spoofed = |last: u8| {
        let mut spoofed = packet(1, 2, b"trust me");
        spoofed[15] = last;
        spoofed
    };
    net.send(now, ALICE, &spoofed(76));
    assert_eq!(net.nodes[BOB].received().len(), 1);
    net.send(now, ALICE, &spoofed(77));
    net.send(now, ALICE, &packet(3, 2, b"I am Carol"));
    net.send(now, ALICE, &packet(9, 2, b"I am nobody"));
    assert!(net.nodes[BOB].received().is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::SourceNotAllowed), 3);
    assert_eq!(net.nodes[BOB].stats(1).drops.of(TunnelDrop::SourceNotAllowed), 3);
    assert_eq!(net.nodes[BOB].stats(3).drops.total(), 0);
}

#[test]
fn authentic_nonsense_is_malformed() {
    let (mut net, now) = Net::established();
    let mut lies = packet(1, 2, b"short");
    lies[0] = 0x4f; // a header longer than the packet
    let sent = net.nodes[ALICE].act(|protocol, _, outbox| {
        let WireGuard { peers, around, .. } = protocol;
        let mut lies = Segments::new(Header::PLAIN, &mut lies).unwrap();
        peers.get_mut(&PeerId(2)).unwrap().send(now, &mut lies, around, outbox);
    });
    net.carry(now, ALICE, sent);
    assert!(net.nodes[BOB].received().is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::Malformed), 1);
}

#[test]
fn answers_follow_the_configuration_not_the_packets() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let elsewhere: SocketAddr = "198.51.100.9:4000".parse().unwrap();
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"from afar"));
    let answers = net.nodes[BOB].open(now, elsewhere, &sent[0].bytes);
    assert_eq!(answers[0].to, outer(1), "the response");
    net.carry(now, BOB, answers);
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"again"));
    net.nodes[BOB].open(now, elsewhere, &sent[0].bytes);
    assert_eq!(net.nodes[BOB].received().len(), 2);
    let sent = net.nodes[BOB].seal(now, &packet(2, 1, b"reply"));
    assert_eq!(sent[0].to, outer(1), "data");
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(outer(1)));
}

#[test]
fn without_an_endpoint_nothing_is_sent_and_everything_counted() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let change = |endpoint| vec![PeerChange::Endpoint { id: PeerId(1), endpoint }];
    assert!(net.nodes[BOB].apply(now, change(None)).unwrap().is_empty());
    net.send(now, ALICE, &packet(1, 2, b"hello?"));
    net.send(now, BOB, &packet(2, 1, b"hello?"));
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::NoEndpoint), 2);
    assert_eq!(net.nodes[BOB].deadline(), None);
    net.nodes[BOB].apply(now, change(Some(outer(1)))).unwrap();
    net.send(now, BOB, &packet(2, 1, b"hello!"));
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"hello!")]);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"hello?")]);
}

#[test]
fn packets_to_nobody_and_handshakes_from_nobody_are_counted() {
    let mut net = Net::new(2);
    let now = Instant::now();
    net.send(now, ALICE, &packet(1, 9, b"who?"));
    assert_eq!(net.nodes[ALICE].drops(TunnelDrop::NoPeer), 1);

    // Mallory knows Bob's key; Bob does not know hers.
    let mut mallory = Node::new(66, &[1], 10);
    mallory.put(peer(2, &[1]));
    let sent = mallory.seal(now, &packet(66, 2, b"let me in"));
    assert!(net.nodes[BOB].open(now, outer(66), &sent[0].bytes).is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::UnknownSender), 1);
    let strangers = net.nodes[BOB].strangers.list(now);
    assert_eq!(strangers.iter().map(|stranger| stranger.from).collect::<Vec<_>>(), [outer(66)]);

    // A sender uses a key that Bob no longer has.
    let mut late = Node::new(1, &[1], 10);
    late.put(peer(2, &[9]));
    let sent = late.seal(now, &packet(1, 2, b"remember me?"));
    assert!(net.nodes[BOB].open(now, outer(1), &sent[0].bytes).is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::NotForOurKey), 1);
}

#[test]
fn a_restarted_peer_is_back_within_a_round_trip() {
    let (mut net, now) = Net::established();
    let mut restarted = Node::new(2, &[1], 1000);
    restarted.put(peer(1, &[1]));
    net.nodes[BOB] = restarted;
    net.send(now, ALICE, &packet(1, 2, b"lost, but it tells Bob"));
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::UnknownSender), 1);
    net.send(now, ALICE, &packet(1, 2, b"back"));
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"back")]);
    assert_eq!(net.nodes[ALICE].stats(2).state, PeerState::Established);
}

#[test]
fn forged_data_makes_nobody_talk_to_strangers_or_more_than_once() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let mut forged = vec![0; 64];
    forged[0] = 4;
    assert!(net.nodes[BOB].open(now, outer(66), &forged).is_empty());
    let sent = net.nodes[BOB].open(now, outer(1), &forged);
    assert_eq!((sent.len(), sent[0].to, sent[0].bytes[0]), (1, outer(1), 1));
    assert!(net.nodes[BOB].open(now, outer(1), &forged).is_empty(), "one greeting is under way");
    net.carry(now, BOB, sent);
    assert!(net.nodes[BOB].open(now, outer(1), &forged).is_empty(), "a session exists");
    // No greeting goes to an address where the peer no longer is.
    let moved = PeerChange::Endpoint { id: PeerId(1), endpoint: Some(outer(99)) };
    net.nodes[BOB] = Node::new(2, &[1], 1000);
    net.nodes[BOB].put(peer(1, &[1]));
    net.nodes[BOB].apply(now, vec![moved]).unwrap();
    assert!(net.nodes[BOB].open(now, outer(1), &forged).is_empty());
}

#[test]
fn a_greeting_makes_a_session_before_there_is_a_packet() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let greet = |node: &mut Node, id| node.act(|protocol, _, outbox| protocol.greet(PeerId(id), false, now, outbox));
    let sent = greet(&mut net.nodes[ALICE], 2);
    assert_eq!(sent.len(), 1);
    assert!(greet(&mut net.nodes[ALICE], 2).is_empty(), "one is under way");
    assert!(greet(&mut net.nodes[ALICE], 77).is_empty());
    net.carry(now, ALICE, sent);
    assert_eq!(net.nodes[BOB].stats(1).state, PeerState::Established);
    assert!(greet(&mut net.nodes[ALICE], 2).is_empty(), "a session exists");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_a_stranger_sends_gets_in_or_breaks_anything(
        junk in prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..300)), 0..40),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..40),
    ) {
        let (mut net, now) = Net::established();
        let recorded = net.heard.clone();
        for (kind, mut bytes) in junk {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            for at in 1..bytes.len().min(4) {
                bytes[at] = 0;
            }
            net.nodes[BOB].open(now, outer(66), &bytes);
        }
        for (index, flip) in flips {
            let mut bytes = index.get(&recorded).bytes.clone();
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
            net.nodes[BOB].open(now, outer(66), &bytes);
        }
        prop_assert!(net.nodes[BOB].received().is_empty());
        net.send(now, ALICE, &packet(1, 2, b"still here"));
        prop_assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"still here")]);
    }
}
