//! A peer that is not at its configured endpoint: behind an address translator, or cut off in one
//! address family.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The network between Alice and Bob.
#[derive(Clone, Copy)]
struct Between {
    /// Source address of Alice's packets as Bob sees it; packets sent there reach her.
    seen: SocketAddr,
    /// Whether packets sent to Alice's own address also reach her.
    endpoint_works: bool,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 9], port))
}

impl Between {
    /// Carries datagrams until none is left. `from` sent the first ones.
    fn carry(self, net: &mut Net, now: Instant, from: usize, sent: Vec<Sent>) {
        let mut queue: VecDeque<_> = sent.into_iter().map(|sent| (from, sent)).collect();
        while let Some((from, sent)) = queue.pop_front() {
            net.heard.push(sent.clone());
            let (to, source) = match from {
                ALICE if sent.to == outer(2) => (BOB, self.seen),
                BOB if sent.to == self.seen || (sent.to == outer(1) && self.endpoint_works) => (ALICE, outer(2)),
                _ => continue,
            };
            let answers = net.nodes[to].open(now, source, &sent.bytes);
            queue.extend(answers.into_iter().map(|sent| (to, sent)));
        }
    }

    fn send(self, net: &mut Net, now: Instant, from: usize, packet: &[u8]) {
        let sent = net.nodes[from].seal(now, packet);
        self.carry(net, now, from, sent);
    }

    /// Lets time pass, and carries what the two send by themselves.
    fn pass(self, net: &mut Net, mut now: Instant, span: Duration) -> Instant {
        let end = now + span;
        while now < end {
            now += SECOND;
            for node in [ALICE, BOB] {
                let sent = net.nodes[node].on_deadline(now);
                self.carry(net, now, node, sent);
            }
        }
        end
    }

    /// Both send one packet and get the other's.
    fn exchange(self, net: &mut Net, now: Instant) {
        self.send(net, now, ALICE, &packet(1, 2, b"from Alice"));
        self.send(net, now, BOB, &packet(2, 1, b"from Bob"));
        assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"from Alice")]);
        assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"from Bob")]);
    }
}

#[test]
fn a_peer_whose_endpoint_does_not_answer_is_answered_where_it_was_heard() {
    let mut net = Net::new(2);
    let mut now = Instant::now();
    let mut behind = Between { seen: at(1000), endpoint_works: false };
    // Bob does not know this, and waits for an answer from the endpoint.
    behind.send(&mut net, now, BOB, &packet(2, 1, b"waits"));
    now = behind.pass(&mut net, now, 7 * SECOND);
    behind.send(&mut net, now, ALICE, &packet(1, 2, b"from Alice"));
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"waits")]);
    net.nodes[BOB].received();
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(at(1000)));
    // As long as both have something to send, across new sessions and a change of port.
    for second in 0..400 {
        if second == 200 {
            behind.seen = at(2000);
        }
        behind.exchange(&mut net, now);
        now = behind.pass(&mut net, now, SECOND);
    }
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(at(2000)));
    assert_eq!(net.nodes[BOB].stats(1).state, PeerState::Established);
    assert_eq!(net.nodes[BOB].protocol.configs()[0], peer(1, &[1]), "what is configured stays");
}

#[test]
fn the_endpoint_is_preferred_as_soon_as_it_answers() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let behind = Between { seen: at(1000), endpoint_works: false };
    behind.exchange(&mut net, now);
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(at(1000)));
    let before = Between { seen: outer(1), endpoint_works: true };
    before.send(&mut net, now, ALICE, &packet(1, 2, b"no longer translated"));
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(outer(1)));

    // And back: Alice, who receives nothing, starts a handshake after 15 s.
    net.nodes[BOB].received();
    behind.send(&mut net, now, ALICE, &packet(1, 2, b"translated again"));
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(outer(1)), "one packet from elsewhere does not move it");
    behind.send(&mut net, now, BOB, &packet(2, 1, b"lost"));
    let now = behind.pass(&mut net, now, 22 * SECOND);
    net.nodes[BOB].received();
    net.nodes[ALICE].received();
    behind.exchange(&mut net, now);
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(at(1000)));
}

#[test]
fn an_endpoint_that_works_is_used_although_the_peers_packets_come_from_elsewhere() {
    let mut net = Net::new(2);
    let mut now = Instant::now();
    let masqueraded = Between { seen: at(1000), endpoint_works: true };
    masqueraded.exchange(&mut net, now);
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(outer(1)));
    // The translator forgets the mapping during a silence, and Bob sends first.
    now = masqueraded.pass(&mut net, now, 60 * SECOND);
    let forgotten = Between { seen: at(2000), endpoint_works: true };
    forgotten.send(&mut net, now, BOB, &packet(2, 1, b"at once"));
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"at once")]);
}

#[test]
fn what_a_peer_has_not_sealed_moves_nothing() {
    let (mut net, now) = Net::established();
    let recorded = net.heard.clone();
    for Sent { bytes, .. } in &recorded {
        for node in [ALICE, BOB] {
            net.nodes[node].open(now, at(6), bytes);
            for flip in [0, 5, 20, bytes.len() - 1] {
                let mut forged = bytes.clone();
                forged[flip] ^= 1;
                net.nodes[node].open(now, at(6), &forged);
            }
        }
    }
    for (node, other) in [(ALICE, 2), (BOB, 1)] {
        assert_eq!(net.nodes[node].stats(other).endpoint, Some(outer(other)));
    }
    // Even if the endpoint no longer answers.
    let mut now = now;
    let sent = net.nodes[BOB].seal(now, &packet(2, 1, b"lost"));
    assert_eq!(sent.len(), 1);
    for _ in 0..40 {
        now += SECOND;
        for Sent { bytes, .. } in &recorded {
            net.nodes[BOB].open(now, at(6), bytes);
        }
        assert!(net.nodes[BOB].on_deadline(now).iter().all(|sent| sent.to == outer(1)));
    }
}

/// Two nodes with an IPv4 and an IPv6 address each; either family may be cut.
struct DualStack {
    net: Net,
    v4_works: bool,
    v6_works: bool,
}

fn v6(number: u8) -> SocketAddr {
    format!("[2001:db8::{number}]:51840").parse().unwrap()
}

impl DualStack {
    fn new(v4_works: bool, v6_works: bool) -> DualStack {
        let mut net = Net::new(2);
        for (node, other) in [(ALICE, 2), (BOB, 1)] {
            net.nodes[node].put(PeerConfig { fallbacks: vec![v6(other)], ..peer(other, &[1]) });
        }
        DualStack { net, v4_works, v6_works }
    }

    fn carry(&mut self, now: Instant, from: usize, sent: Vec<Sent>) {
        let mut queue: VecDeque<_> = sent.into_iter().map(|sent| (from, sent)).collect();
        while let Some((from, sent)) = queue.pop_front() {
            let (to, works) = match sent.to {
                SocketAddr::V4(_) => (usize::from(sent.to == outer(2)), self.v4_works),
                SocketAddr::V6(_) => (usize::from(sent.to == v6(2)), self.v6_works),
            };
            if works {
                let source = if sent.to.is_ipv4() { outer(from as u8 + 1) } else { v6(from as u8 + 1) };
                let answers = self.net.nodes[to].open(now, source, &sent.bytes);
                queue.extend(answers.into_iter().map(|sent| (to, sent)));
            }
        }
    }

    fn send(&mut self, now: Instant, from: usize, packet: &[u8]) {
        let sent = self.net.nodes[from].seal(now, packet);
        self.carry(now, from, sent);
    }

    /// Both send once a second. Returns the time at which both hear each other again.
    fn heals(&mut self, mut now: Instant) -> Instant {
        for _ in 0..60 {
            self.net.nodes.iter_mut().for_each(|node| drop(node.received()));
            self.send(now, ALICE, &packet(1, 2, b"from Alice"));
            self.send(now, BOB, &packet(2, 1, b"from Bob"));
            if self.net.nodes.iter_mut().all(|node| !node.received().is_empty()) {
                return now;
            }
            now += SECOND;
            for node in [ALICE, BOB] {
                let sent = self.net.nodes[node].on_deadline(now);
                self.carry(now, node, sent);
            }
        }
        panic!("they do not hear each other for a minute");
    }
}

#[test]
fn a_peer_whose_family_is_cut_is_reached_by_the_other_one() {
    let mut world = DualStack::new(false, true);
    let start = Instant::now();
    let mut now = world.heals(start);
    assert!(now < start + 8 * SECOND, "one initiation without an answer is enough");
    assert_eq!(world.net.nodes[BOB].stats(1).endpoint, Some(v6(1)));
    // As long as they send, across sessions, this does not change.
    for _ in 0..300 {
        now = world.heals(now) + SECOND;
    }
    // The endpoint's family works again: it is preferred with the next session. Then the other
    // family is cut.
    world.v4_works = true;
    for _ in 0..130 {
        now = world.heals(now) + SECOND;
    }
    assert_eq!(world.net.nodes[ALICE].stats(2).endpoint, Some(outer(2)));
    world.v6_works = false;
    now = world.heals(now);
    // A family is cut while there is a session.
    (world.v4_works, world.v6_works) = (false, true);
    world.heals(now);
    assert_eq!(world.net.nodes[ALICE].stats(2).endpoint, Some(v6(2)));
}

#[test]
fn an_endpoint_that_answers_is_the_only_one_asked() {
    let mut world = DualStack::new(true, true);
    let now = Instant::now();
    let sent = world.net.nodes[ALICE].seal(now, &packet(1, 2, b"hello"));
    assert_eq!(sent.iter().map(|sent| sent.to).collect::<Vec<_>>(), [outer(2)]);
    world.carry(now, ALICE, sent);
    assert_eq!(world.net.nodes[BOB].received(), [packet(1, 2, b"hello")]);
    assert_eq!(world.net.nodes[BOB].stats(1).endpoint, Some(outer(1)));
}
