//! Alice, Bob and an eavesdropper, without sockets, devices or root.
//!
//! Datagrams go through a queue the tests look into. The time is the tests' own.

mod differential;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proptest::prelude::*;
use x25519_dalek::{PublicKey, StaticSecret};

use super::WireGuard;
use crate::config::{LocalKey, PeerChange, PeerConfig, PeerId, PeerKey};
use crate::error::Error;
use crate::io::outbox::{Batch, DatagramSink, Outbox};
use crate::offload::segment::Segments;
use crate::offload::virtio::Header;
use crate::offload::{ip, samples};
use crate::protocol::{Datagrams, Inbox, Protocol};
use crate::stats::{Counters, PeerState, PeerStats, TunnelDrop};

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

/// A node: its number is its address inside and outside.
struct Node {
    number: u8,
    protocol: WireGuard,
    batch: Batch,
    inbox: Delivered,
    counters: Arc<Counters>,
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
        let states = Arc::new(Mutex::new(Vec::new()));
        let on_state = {
            let states = states.clone();
            Box::new(move |_, state| states.lock().unwrap().push(state))
        };
        let keys = local_keys(number, epochs);
        let protocol = WireGuard::new(keys, handshake_limit, MTU, false, Some(on_state), counters.clone()).unwrap();
        let inbox = Delivered { room: vec![0; 1 << 16], packets: vec![] };
        Node { number, protocol, batch: Batch::new(), inbox, counters, states }
    }

    fn act(&mut self, work: impl FnOnce(&mut WireGuard, &mut Delivered, &mut Outbox<'_>)) -> Vec<Sent> {
        let mut wire = Wire::default();
        let mut outbox = Outbox::new(&mut self.batch, &mut wire, &self.counters);
        work(&mut self.protocol, &mut self.inbox, &mut outbox);
        outbox.flush();
        wire.0
    }

    fn apply(&mut self, now: Instant, changes: Vec<PeerChange>) -> Result<Vec<Sent>, Error> {
        let mut result = Ok(());
        let sent = self.act(|protocol, _, outbox| result = protocol.apply(changes, now, outbox));
        result.map(|()| sent)
    }

    fn put(&mut self, config: PeerConfig) {
        self.apply(Instant::now(), vec![PeerChange::Put(config)]).unwrap();
    }

    fn set_keys(&mut self, now: Instant, epochs: &[u32]) -> Vec<Sent> {
        let keys = local_keys(self.number, epochs);
        self.act(|protocol, _, outbox| protocol.set_keys(keys, now, outbox).unwrap())
    }

    fn seal(&mut self, now: Instant, packet: &[u8]) -> Vec<Sent> {
        let destination = ip::envelope(packet).unwrap().destination;
        let mut packet = packet.to_vec();
        let mut packets = Segments::new(Header::PLAIN, &mut packet).unwrap();
        self.act(|protocol, _, outbox| protocol.seal(now, destination, &mut packets, outbox))
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

/// Several nodes, and someone who hears everything.
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

    /// Carries datagrams until nothing moves. `from` is who sent the first ones.
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

/// When two handshakes cross, each side has two sessions. Ours goes on with the one that was made last (WireGuard paper, 5.1; as the
/// kernel does), whichever the peer sends with: wireguard-go may have lost the index of the other in the crossing.
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
fn handshakes_that_nobody_answers_are_counted_while_the_session_lives() {
    let (mut net, now) = Net::established();
    let mut initiation = Vec::new();
    // Nothing is carried: Bob is gone. Alice begins a handshake after 15 s of silence, and again every 5 s or so.
    for second in 1..40 {
        let at = now + Duration::from_secs(second);
        let alice = &mut net.nodes[ALICE];
        alice.seal(at, &packet(1, 2, b"anybody there?"));
        if alice.deadline().is_some_and(|deadline| deadline <= at) {
            initiation = alice.on_deadline(at).into_iter().filter(|sent| sent.bytes[0] == 1).collect();
        }
        assert_eq!(alice.stats(2).state, PeerState::Established);
        assert!(second > 15 || alice.stats(2).unanswered == 0);
        if !initiation.is_empty() && alice.stats(2).unanswered >= 3 {
            // He is back.
            net.carry(at, ALICE, initiation);
            assert_eq!(net.nodes[ALICE].stats(2).unanswered, 0);
            return;
        }
    }
    panic!("only {} of Alice's handshakes are counted", net.nodes[ALICE].stats(2).unanswered);
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

    // A whole recorded handshake brings nothing either.
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

    // Someone uses a key that Bob no longer has.
    let mut late = Node::new(1, &[1], 10);
    late.put(peer(2, &[9]));
    let sent = late.seal(now, &packet(1, 2, b"remember me?"));
    assert!(net.nodes[BOB].open(now, outer(1), &sent[0].bytes).is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::NotForOurKey), 1);
}

#[test]
fn a_handshake_is_retried_then_given_up_then_tried_again() {
    let mut net = Net::new(2);
    let start = Instant::now();
    assert_eq!(net.nodes[ALICE].deadline(), None, "who knows peers but needs none does not wake");
    let alice = &mut net.nodes[ALICE];
    assert_eq!(alice.seal(start, &packet(1, 2, b"hello?")).len(), 1);
    let mut initiations = 1;
    let mut last = start;
    while let Some(deadline) = alice.deadline() {
        assert!(deadline - last >= Duration::from_secs(5) && deadline - last <= Duration::from_millis(5400));
        last = deadline;
        let sent = alice.on_deadline(deadline);
        initiations += sent.len();
        assert!(sent.iter().all(|sent| sent.bytes[0] == 1));
    }
    assert!(last - start >= Duration::from_secs(90) && last - start < Duration::from_secs(96));
    assert!((17..=18).contains(&initiations), "{initiations}");
    assert!(matches!(alice.stats(2).state, PeerState::Failed { .. }));
    assert_eq!(alice.drops(TunnelDrop::HandshakeFailed), 1);

    net.send(last + Duration::from_secs(60), ALICE, &packet(1, 2, b"hello!"));
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"hello!")]);
    let states = net.nodes[ALICE].states.lock().unwrap();
    assert!(matches!(
        states[..],
        [
            PeerState::Handshaking { .. },
            PeerState::Failed { .. },
            PeerState::Handshaking { .. },
            PeerState::Established
        ] | [PeerState::Handshaking { .. }, PeerState::Failed { .. }, PeerState::Established]
    ));
}

#[test]
fn a_new_endpoint_or_key_is_tried_at_once() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let mut wrong = peer(2, &[7]);
    wrong.endpoint = Some(outer(99));
    net.nodes[ALICE].put(wrong.clone());
    net.send(now, ALICE, &packet(1, 2, b"waits"));
    wrong.endpoint = Some(outer(2));
    let sent = net.nodes[ALICE].apply(now, vec![PeerChange::Put(wrong)]).unwrap();
    assert_eq!((sent.len(), sent[0].to), (1, outer(2)));
    net.carry(now, ALICE, sent);
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::NotForOurKey), 1);
    let sent = net.nodes[ALICE].apply(now, vec![PeerChange::Put(peer(2, &[1]))]).unwrap();
    net.carry(now, ALICE, sent);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"waits")]);
}

#[test]
fn a_quiet_receiver_sends_one_keepalive_and_then_sleeps() {
    let (mut net, start) = Net::established();
    // Alice speaks once more; Bob only listens.
    net.send(start, ALICE, &packet(1, 2, b"news"));
    let due = net.nodes[BOB].deadline().unwrap();
    assert_eq!(due, start + Duration::from_secs(10));
    let sent = net.nodes[BOB].on_deadline(due);
    assert_eq!((sent.len(), sent[0].bytes.len()), (1, 32));
    net.carry(due, BOB, sent);
    assert_eq!(net.nodes[ALICE].received().len(), 0, "a keepalive carries no packet");

    // From here on: the session's end, the wiping of its keys, and then nothing ever.
    for node in &mut net.nodes {
        let mut wakes = 0;
        while let Some(deadline) = node.deadline() {
            assert!(node.on_deadline(deadline).is_empty(), "an idle peer sends nothing");
            wakes += 1;
            assert!(wakes < 10);
        }
        assert_eq!(node.states.lock().unwrap().last(), Some(&PeerState::Idle));
    }
}

#[test]
fn silence_after_data_starts_a_new_handshake() {
    let (mut net, start) = Net::established();
    // Bob is gone: what Alice sends now is lost.
    net.nodes[ALICE].seal(start, &packet(1, 2, b"anyone?"));
    let later = start + Duration::from_secs(15);
    let mut initiations = 0;
    while let Some(deadline) = net.nodes[ALICE].deadline().filter(|deadline| *deadline <= later) {
        let sent = net.nodes[ALICE].on_deadline(deadline);
        initiations += sent.iter().filter(|sent| sent.bytes[0] == 1).count();
    }
    assert_eq!(initiations, 1);
}

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
    // A cookie is worth something only at the address it was sent to.
    let thief = net.nodes[BOB].open(retry, outer(66), &sent[0].bytes);
    assert_eq!((thief[0].to, thief[0].bytes[0]), (outer(66), 3));
    net.carry(retry, ALICE, sent);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"patience")]);
}

#[test]
fn keys_rotate_without_losing_a_packet() {
    let (mut net, mut now) = Net::established();
    let mut number = 0u16;
    let mut exchange = |net: &mut Net, now: Instant, count: u16| {
        for _ in 0..count {
            number += 1;
            net.send(now, ALICE, &packet(1, 2, &number.to_be_bytes()));
            net.send(now, BOB, &packet(2, 1, &number.to_be_bytes()));
            assert_eq!(net.nodes[BOB].received(), [packet(1, 2, &number.to_be_bytes())]);
            assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, &number.to_be_bytes())]);
        }
    };
    exchange(&mut net, now, 3);
    // Alice makes epoch 2 and publishes it. Bob has not seen it yet.
    let sent = net.nodes[ALICE].set_keys(now, &[2, 1]);
    net.carry(now, ALICE, sent);
    exchange(&mut net, now, 3);
    assert_eq!(net.nodes[ALICE].stats(2).local_epoch, Some(1));
    // Bob installs it: a session with it is made at once, and used.
    let sent = net.nodes[BOB].apply(now, vec![PeerChange::Put(peer(1, &[2, 1]))]).unwrap();
    net.carry(now, BOB, sent);
    exchange(&mut net, now, 3);
    assert_eq!(net.nodes[BOB].stats(1).remote_epoch, Some(2));
    assert_eq!(net.nodes[ALICE].stats(2).local_epoch, Some(2));
    // The old one is retired, first by Bob, then by Alice.
    now += Duration::from_secs(1);
    net.nodes[BOB].apply(now, vec![PeerChange::Put(peer(1, &[2]))]).unwrap();
    exchange(&mut net, now, 3);
    net.nodes[ALICE].set_keys(now, &[2]);
    exchange(&mut net, now, 3);
    assert_eq!(net.nodes[ALICE].counters.drops().of(TunnelDrop::QueueFull), 0);
}

/// Ten minutes of traffic in both directions, with packets on their way whenever a session follows another.
#[test]
fn sessions_follow_each_other_under_load_without_losing_a_packet_or_repeating_a_nonce() {
    const STEPS: u32 = 6_000;
    const PACKETS: u32 = 3;
    let (mut net, start) = Net::established();
    let mut under_way: Vec<(usize, Sent)> = vec![];
    let mut arrived = [vec![], vec![]];
    for step in 0..STEPS {
        let now = start + Duration::from_millis(100) * step;
        for (from, sent) in std::mem::take(&mut under_way) {
            let source = outer(net.nodes[from].number);
            let answers = net.nodes[1 - from].open(now, source, &sent.bytes);
            net.heard.push(sent);
            under_way.extend(answers.into_iter().map(|sent| (1 - from, sent)));
        }
        for from in [ALICE, BOB] {
            let node = &mut net.nodes[from];
            while node.deadline().is_some_and(|deadline| deadline <= now) {
                under_way.extend(node.on_deadline(now).into_iter().map(|sent| (from, sent)));
            }
            for number in step * PACKETS..(step + 1) * PACKETS {
                let packet = packet(node.number, 3 - node.number, &number.to_be_bytes());
                under_way.extend(node.seal(now, &packet).into_iter().map(|sent| (from, sent)));
            }
            arrived[from].extend(node.received());
        }
    }
    // What was sent in the last step is still on its way.
    for (to, arrived) in arrived.iter().enumerate() {
        let (own, other) = (net.nodes[to].number, net.nodes[1 - to].number);
        let sent = (0..(STEPS - 1) * PACKETS).map(|number| packet(other, own, &number.to_be_bytes()));
        assert!(arrived.iter().eq(sent.collect::<Vec<_>>().iter()), "lost, repeated or out of order");
    }
    let data = net.heard.iter().filter(|sent| sent.bytes[0] == 4);
    // The receiver's index, then the counter: together the nonce and whose key it is used with (WireGuard, 5.4.6).
    let headers: Vec<&[u8]> = data.map(|sent| &sent.bytes[4..16]).collect();
    let distinct: BTreeSet<&[u8]> = headers.iter().copied().collect();
    assert_eq!(distinct.len(), headers.len(), "a nonce was used twice");
    let sessions: BTreeSet<&[u8]> = headers.iter().map(|header| &header[..4]).collect();
    assert!(sessions.len() >= 2 * 5, "{} keys in ten minutes", sessions.len());
    assert!(net.nodes.iter().all(|node| node.counters.drops().of(TunnelDrop::ReplayOrForged) == 0));
}

#[test]
fn two_epochs_on_both_sides_agree_on_the_newest() {
    let mut net = Net::with(2, &[5, 4], &[4, 5]);
    let now = Instant::now();
    net.send(now, ALICE, &packet(1, 2, b"hello"));
    net.send(now, BOB, &packet(2, 1, b"hello"));
    assert_eq!((net.nodes[BOB].received().len(), net.nodes[ALICE].received().len()), (1, 1));
    for (node, other) in [(ALICE, 2), (BOB, 1)] {
        let stats = net.nodes[node].stats(other);
        assert_eq!((stats.local_epoch, stats.remote_epoch), (Some(5), Some(5)));
    }
}

#[test]
fn a_peer_that_knows_only_our_old_key_is_reached_at_once() {
    let mut net = Net::with(2, &[1], &[1]);
    let now = Instant::now();
    net.nodes[ALICE].set_keys(now, &[2, 1]);
    net.send(now, ALICE, &packet(1, 2, b"hello"));
    assert_eq!(net.nodes[BOB].received().len(), 1);
    assert_eq!(net.nodes[ALICE].stats(2).local_epoch, Some(1));
}

#[test]
fn a_conflict_is_refused_whole_and_names_both() {
    let mut net = Net::new(3);
    let now = Instant::now();
    let before = net.nodes[BOB].protocol.configs();
    let mut greedy = peer(3, &[1]);
    greedy.allowed.push(net_of("10.0.1.0/24"));
    let endpoint = PeerChange::Endpoint { id: PeerId(1), endpoint: None };
    let error = net.nodes[BOB].apply(now, vec![endpoint.clone(), PeerChange::Put(greedy.clone())]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("node-1") && text.contains("node-3") || matches!(error, Error::PrefixConflict { .. }),
        "{text}"
    );
    assert_eq!(net.nodes[BOB].protocol.configs(), before);

    let mut copycat = peer(3, &[1]);
    copycat.keys = peer(1, &[1]).keys;
    let error = net.nodes[BOB].apply(now, vec![endpoint, PeerChange::Put(copycat)]).unwrap_err();
    assert!(
        matches!(&error, Error::KeyConflict { owner, claimant } if owner == "node-1" && claimant == "node-3"),
        "{error}"
    );
    assert_eq!(net.nodes[BOB].protocol.configs(), before);

    // Handing it over in one batch is fine, in either order of the peers.
    let give = PeerChange::Allowed { id: PeerId(1), add: vec![], remove: vec![net_of("10.0.1.0/24")] };
    net.nodes[BOB].apply(now, vec![PeerChange::Put(greedy), give]).unwrap();
    net.send(now, BOB, &packet(2, 1, b"for Carol now"));
    assert_eq!(net.nodes[2].received().len(), 1);
}

#[test]
fn unusable_keys_are_refused_with_a_reason() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let with_keys = |keys: Vec<PeerKey>| vec![PeerChange::Put(PeerConfig { keys, ..peer(5, &[1]) })];
    let small_order = PeerKey { epoch: 1, public: [0; 32] };
    for (keys, expected) in [
        (vec![], "no key"),
        (vec![key(5, 1), key(5, 2), key(5, 3)], "more than two"),
        (vec![key(5, 1), PeerKey { epoch: 1, ..key(5, 2) }], "same epoch"),
        (vec![key(5, 1), PeerKey { epoch: 2, ..key(5, 1) }], "are the same"),
        (vec![key(2, 1)], "our own"),
        (vec![small_order], "small order"),
    ] {
        let error = net.nodes[BOB].apply(now, with_keys(keys)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("node-5"), "{error}");
    }
    let unknown = PeerChange::Endpoint { id: PeerId(77), endpoint: None };
    assert!(matches!(net.nodes[BOB].apply(now, vec![unknown]), Err(Error::UnknownPeer { id: PeerId(77) })));
    let counters = Arc::new(Counters::default());
    for epochs in [&[][..], &[1, 2, 3], &[1, 1]] {
        let refused = WireGuard::new(local_keys(1, epochs), 1, MTU, false, None, counters.clone());
        assert!(matches!(refused, Err(Error::LocalKeys { .. })));
    }
}

#[test]
fn a_removed_peer_is_forgotten() {
    let (mut net, now) = Net::established();
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"too late"));
    net.nodes[BOB].apply(now, vec![PeerChange::Remove(PeerId(1)), PeerChange::Remove(PeerId(9))]).unwrap();
    net.carry(now, ALICE, sent);
    assert!(net.nodes[BOB].received().is_empty());
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::UnknownSender), 1);
    assert_eq!(net.nodes[BOB].deadline(), None);
    net.send(now, BOB, &packet(2, 1, b"anyone?"));
    assert_eq!(net.nodes[BOB].drops(TunnelDrop::NoPeer), 1);
    // Come back, it starts afresh.
    net.nodes[BOB].put(peer(1, &[1]));
    net.send(now, BOB, &packet(2, 1, b"hello again"));
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"hello again")]);
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
    // Where a peer no longer lives, nobody is greeted.
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
    let greet = |node: &mut Node, id| node.act(|protocol, _, outbox| protocol.greet(PeerId(id), now, outbox));
    let sent = greet(&mut net.nodes[ALICE], 2);
    assert_eq!(sent.len(), 1);
    assert!(greet(&mut net.nodes[ALICE], 2).is_empty(), "one is under way");
    assert!(greet(&mut net.nodes[ALICE], 77).is_empty());
    net.carry(now, ALICE, sent);
    assert_eq!(net.nodes[BOB].stats(1).state, PeerState::Established);
    assert!(greet(&mut net.nodes[ALICE], 2).is_empty(), "a session exists");
}

#[test]
fn a_thousand_idle_peers_wake_nobody() {
    let mut node = Node::new(1, &[1], 10);
    let changes = (0..1000u32)
        .map(|number| {
            let mut config = peer(2, &[1]);
            config.id = PeerId(number);
            config.keys[0].public[..4].copy_from_slice(&number.to_le_bytes());
            config.allowed = vec![IpNet::new(std::net::Ipv4Addr::from(0x0b00_0000 + number).into(), 32).unwrap()];
            PeerChange::Put(config)
        })
        .collect();
    node.apply(Instant::now(), changes).unwrap();
    assert_eq!(node.protocol.configs().len(), 1000);
    assert_eq!(node.deadline(), None);
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

    #[test]
    fn any_order_of_changes_ends_where_a_plain_map_ends(
        batches in prop::collection::vec(prop::collection::vec((0u8..4, 2u8..6, 0u8..6), 1..4), 0..30),
    ) {
        let mut node = Node::new(1, &[1], 10);
        let now = Instant::now();
        let mut model: std::collections::BTreeMap<PeerId, PeerConfig> = Default::default();
        for batch in batches {
            let mut changed = model.clone();
            let mut known = true;
            let mut changes = Vec::new();
            for (what, number, prefix) in batch {
                let id = PeerId(number.into());
                let prefix = net_of(&format!("10.7.{prefix}.0/24"));
                changes.push(match what {
                    0 => {
                        let config = PeerConfig { allowed: vec![prefix], ..peer(number, &[1]) };
                        changed.insert(id, config.clone());
                        PeerChange::Put(config)
                    }
                    1 => {
                        changed.remove(&id);
                        PeerChange::Remove(id)
                    }
                    2 => {
                        match changed.get_mut(&id) {
                            Some(config) => {
                                config.allowed.push(prefix);
                                config.allowed.sort();
                                config.allowed.dedup();
                            }
                            None => known = false,
                        }
                        PeerChange::Allowed { id, add: vec![prefix], remove: vec![] }
                    }
                    _ => {
                        match changed.get_mut(&id) {
                            Some(config) => config.allowed.retain(|old| *old != prefix),
                            None => known = false,
                        }
                        PeerChange::Allowed { id, add: vec![], remove: vec![prefix] }
                    }
                });
            }
            let mut prefixes: Vec<_> = changed.values().flat_map(|config| &config.allowed).collect();
            let count = prefixes.len();
            prefixes.sort();
            prefixes.dedup();
            let acceptable = known && prefixes.len() == count;
            prop_assert_eq!(node.apply(now, changes).is_ok(), acceptable);
            if acceptable {
                model = changed;
            }
            prop_assert_eq!(node.protocol.configs(), model.values().cloned().collect::<Vec<_>>());
            for third in 0..6u8 {
                let address = std::net::IpAddr::from([10, 7, third, 1]);
                let owner = model.values().find(|config| config.allowed.iter().any(|prefix| prefix.contains(&address)));
                prop_assert_eq!(node.protocol.allowed.lookup(address), owner.map(|config| config.id));
            }
        }
    }
}
