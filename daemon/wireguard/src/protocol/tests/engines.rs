//! Alice with several engines; packets and messages arrive at any of them.

use hauberk_engine::{Command, Commands};

use super::*;

/// A node whose packets and messages arrive at its engines in turn, whichever engine they belong
/// to.
struct ManyEngines {
    engines: Vec<(WireGuard, Commands<WireGuard>)>,
    batch: Batch,
    inbox: Delivered,
    counters: Arc<Counters>,
    turn: usize,
}

impl ManyEngines {
    fn new(number: u8, count: usize) -> ManyEngines {
        let counters = Arc::new(Counters::default());
        let identities = Identities::new(local_keys(number, &[1]), 1000).unwrap();
        let settings = Settings {
            counters: counters.clone(),
            strangers: Arc::default(),
            on_state: None,
            mtu: MTU,
            copy_dscp: false,
            cipher: Implementation::best(),
        };
        let engine = |(channels, commands)| (WireGuard::new(identities.clone(), settings.clone(), channels), commands);
        let engines = Channels::new(count).unwrap().into_iter().map(engine).collect();
        let inbox = Delivered { room: vec![0; 1 << 16], packets: vec![] };
        ManyEngines { engines, batch: Batch::new(), inbox, counters, turn: 0 }
    }

    /// Does the work at one engine, and what it hands over at the others.
    fn act(
        &mut self,
        now: Instant,
        engine: usize,
        work: impl FnOnce(&mut WireGuard, &mut Delivered, &mut Outbox<'_>),
    ) -> Vec<Sent> {
        let mut wire = Wire::default();
        let mut outbox = Outbox::new(&mut self.batch, &mut wire, &self.counters);
        work(&mut self.engines[engine].0, &mut self.inbox, &mut outbox);
        loop {
            let mut is_quiet = true;
            for (protocol, commands) in &mut self.engines {
                while let Some(Command::Run(work)) = commands.next() {
                    work(protocol, now, &mut self.inbox, &mut outbox);
                    is_quiet = false;
                }
            }
            if is_quiet {
                break;
            }
        }
        outbox.flush();
        wire.0
    }

    fn apply(&mut self, now: Instant, changes: &[PeerChange]) -> Vec<Sent> {
        let plan = self.engines[0].0.plan(changes.to_vec()).unwrap();
        let mut sent = vec![];
        for engine in 0..self.engines.len() {
            let plan = plan.clone();
            sent.extend(self.act(now, engine, |protocol, _, outbox| protocol.carry_out(plan, now, outbox)));
        }
        sent
    }

    fn next(&mut self) -> usize {
        self.turn += 1;
        self.turn % self.engines.len()
    }

    fn open(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> Vec<Sent> {
        let engine = self.next();
        let datagrams = Datagrams { from, ecn: 0, bytes, size: bytes.len().max(1) };
        self.act(now, engine, |protocol, inbox, outbox| protocol.open(now, datagrams, inbox, outbox))
    }

    fn seal(&mut self, now: Instant, packet: &[u8]) -> Vec<Sent> {
        let (destination, mut packet) = (ip::envelope(packet).unwrap().destination, packet.to_vec());
        let mut engine = self.next();
        let mut sent = vec![];
        for attempt in 0.. {
            let mut packets = Segments::new(Header::PLAIN, &mut packet).unwrap();
            let mut sealed = Ok(());
            sent = self.act(now, engine, |protocol, _, outbox| {
                sealed = protocol.seal(now, destination, &mut packets, outbox);
            });
            let Err(elsewhere) = sealed else { break };
            assert_eq!((attempt, sent.len(), elsewhere.packets), (0, 0, 1), "once, and nothing was done");
            engine = elsewhere.engine;
        }
        sent
    }
}

/// Carries datagrams between Alice and another node until none is left.
fn carry(now: Instant, alice: &mut ManyEngines, other: &mut Node, sent: Vec<Sent>) {
    let mut sent: VecDeque<_> = sent.into();
    while let Some(Sent { to, bytes }) = sent.pop_front() {
        sent.extend(if to == outer(1) {
            alice.open(now, outer(other.number), &bytes)
        } else {
            other.open(now, outer(1), &bytes)
        });
    }
}

#[test]
fn whichever_engine_hears_it_the_right_one_answers() {
    let now = Instant::now();
    let mut alice = ManyEngines::new(1, 3);
    let mut others: Vec<_> = (2..=6).map(|number| Node::new(number, &[1], 1000)).collect();
    let changes: Vec<_> = others.iter().map(|node| PeerChange::Put(peer(node.number, &[1]))).collect();
    alice.apply(now, &changes);
    for (index, node) in others.iter_mut().enumerate() {
        node.put(peer(1, &[1]));
        // Alice starts some sessions, the other node starts the rest.
        if index % 2 == 0 {
            let sent = node.seal(now, &packet(node.number, 1, b"from you"));
            carry(now, &mut alice, node, sent);
            assert_eq!(std::mem::take(&mut alice.inbox.packets), [packet(node.number, 1, b"from you")]);
        }
        for round in 0..6 {
            let there = packet(1, node.number, &[round; 100]);
            let sent = alice.seal(now, &there);
            carry(now, &mut alice, node, sent);
            assert_eq!(node.received(), [there]);
            let back = packet(node.number, 1, &[round; 200]);
            let sent = node.seal(now, &back);
            carry(now, &mut alice, node, sent);
            assert_eq!(std::mem::take(&mut alice.inbox.packets), [back]);
        }
    }
    assert_eq!(alice.counters.drops().total(), 0);
    assert!(alice.counters.handed_over() > 0);
    for (engine, (protocol, _)) in alice.engines.iter().enumerate() {
        let mut stats = protocol.stats();
        stats.sort_by_key(|stats| stats.id);
        let ids: Vec<_> = stats.iter().map(|peer| peer.id.0 as usize).collect();
        assert_eq!(ids, (2..=6).filter(|id| id % 3 == engine).collect::<Vec<_>>(), "each has its own");
        assert!(stats.iter().all(|peer| peer.state == PeerState::Established));
        assert_eq!(protocol.configs().len(), 5, "and knows all");
    }
}

#[test]
fn a_stranger_and_a_restarted_peer_are_heard_at_every_engine() {
    let now = Instant::now();
    let mut alice = ManyEngines::new(1, 4);
    let mut bob = Node::new(2, &[1], 1000);
    bob.put(peer(1, &[1]));
    // The peer is unknown, so every engine refuses it.
    for _ in 0..4 {
        bob.apply(now, vec![PeerChange::Remove(PeerId(1))]).unwrap();
        bob.put(peer(1, &[1]));
        let sent = bob.act(|protocol, _, outbox| protocol.greet(PeerId(1), false, now, outbox));
        carry(now, &mut alice, &mut bob, sent);
    }
    assert_eq!(alice.counters.drops().of(TunnelDrop::UnknownSender), 4);
    alice.apply(now, &[PeerChange::Put(peer(2, &[1]))]);
    let sent = alice.seal(now, &packet(1, 2, b"hello"));
    carry(now, &mut alice, &mut bob, sent);
    assert_eq!(bob.received().len(), 1);

    // Alice restarts without Bob's knowledge: his packets make her greet him, at whichever engine
    // they arrive.
    for _ in 0..4 {
        let mut restarted = ManyEngines { turn: alice.turn + 1, ..ManyEngines::new(1, 4) };
        restarted.apply(now, &[PeerChange::Put(peer(2, &[1]))]);
        alice = restarted;
        let sent = bob.seal(now, &packet(2, 1, b"lost"));
        carry(now, &mut alice, &mut bob, sent);
        let sent = bob.seal(now, &packet(2, 1, b"again"));
        carry(now, &mut alice, &mut bob, sent);
        assert_eq!(std::mem::take(&mut alice.inbox.packets), [packet(2, 1, b"again")]);
    }
}
