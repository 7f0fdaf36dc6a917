//! A peer whose packets do not come from its configured endpoint: behind a translation of addresses, say.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// What is between Alice and Bob.
#[derive(Clone, Copy)]
struct Between {
    /// Where Alice's packets seem to come from; what is sent there reaches her.
    seen: SocketAddr,
    /// Whether what is sent to Alice's own address reaches her as well.
    endpoint_works: bool,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 9], port))
}

impl Between {
    /// Carries datagrams until nothing moves, the first ones sent by `from`.
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

    /// Lets time pass, with what the two do by themselves.
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
    // Bob knows nothing of it, and waits for an answer from the endpoint.
    behind.send(&mut net, now, BOB, &packet(2, 1, b"waits"));
    now = behind.pass(&mut net, now, 7 * SECOND);
    behind.send(&mut net, now, ALICE, &packet(1, 2, b"from Alice"));
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"waits")]);
    net.nodes[BOB].received();
    assert_eq!(net.nodes[BOB].stats(1).endpoint, Some(at(1000)));
    // For as long as both have something to say, across new sessions, and from another port.
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

    // And back: Alice, who hears nothing, begins a handshake after 15 s.
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
    // The translation is forgotten in a silence, and Bob speaks first.
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
    // Even where the endpoint has gone silent.
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
