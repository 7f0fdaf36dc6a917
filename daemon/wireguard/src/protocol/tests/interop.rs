//! Compared with boringtun's `Tunn` as the peer, as initiator and as responder. `Tunn` uses its own
//! clock, Alice the tests'.

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A stock peer in Bob's place.
struct Stock {
    tunn: Tunn,
    received: Vec<Vec<u8>>,
}

impl Stock {
    fn new(handshake_limit: u64) -> Stock {
        let public = PublicKey::from(&secret(2, 1));
        let limiter = Arc::new(RateLimiter::new(&public, handshake_limit));
        let remote = PublicKey::from(&secret(1, 1));
        Stock { tunn: Tunn::new(secret(2, 1), remote, None, None, 7, Some(limiter)), received: vec![] }
    }

    fn initiate(&mut self) -> Vec<Vec<u8>> {
        let mut room = [0; 2048];
        self.note(|tunn| match tunn.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(message) => Some(message.to_vec()),
            other => panic!("{other:?}"),
        })
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut room = [0; 2048];
        self.note(|tunn| match tunn.encapsulate(packet, &mut room) {
            TunnResult::WriteToNetwork(message) => Some(message.to_vec()),
            TunnResult::Done => None,
            other => panic!("{other:?}"),
        })
    }

    /// Gives it a datagram from Alice; returns what it sends.
    fn open(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut sent = vec![];
        let mut input = datagram;
        loop {
            let mut room = [0; 2048];
            match self.tunn.decapsulate(Some(outer(1).ip()), input, &mut room) {
                TunnResult::WriteToNetwork(message) => sent.push(message.to_vec()),
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    self.received.push(packet.to_vec());
                    return sent;
                }
                TunnResult::Done => return sent,
                TunnResult::Err(error) => panic!("it refuses a message of type {}: {error:?}", datagram[0]),
            }
            // It is called again until it has nothing more to send.
            input = &[];
        }
    }

    fn note(&mut self, act: impl FnOnce(&mut Tunn) -> Option<Vec<u8>>) -> Vec<Vec<u8>> {
        act(&mut self.tunn).into_iter().collect()
    }
}

/// Alice, who runs this implementation, and the stock peer.
struct Mixed {
    alice: Node,
    stock: Stock,
    /// Everything that crossed the wire: whether Alice sent it, and the bytes.
    heard: Vec<(bool, Vec<u8>)>,
}

impl Mixed {
    fn new(our_limit: u64, stock_limit: u64) -> Mixed {
        let mut alice = Node::new(1, &[1], our_limit);
        alice.put(peer(2, &[1]));
        Mixed { alice, stock: Stock::new(stock_limit), heard: vec![] }
    }

    fn bring_stock(&mut self, now: Instant, sent: Vec<Sent>) {
        for sent in sent {
            assert_eq!(sent.to, outer(2));
            self.heard.push((true, sent.bytes.clone()));
            let answers = self.stock.open(&sent.bytes);
            self.bring_alice(now, answers);
        }
    }

    fn bring_alice(&mut self, now: Instant, sent: Vec<Vec<u8>>) {
        for bytes in sent {
            self.heard.push((false, bytes.clone()));
            let answers = self.alice.open(now, outer(2), &bytes);
            self.bring_stock(now, answers);
        }
    }

    fn send(&mut self, now: Instant, packet: &[u8]) {
        let sent = self.alice.seal(now, packet);
        self.bring_stock(now, sent);
    }

    fn stock_sends(&mut self, now: Instant, packet: &[u8]) {
        let sent = self.stock.seal(packet);
        self.bring_alice(now, sent);
    }

    /// Packets of many sizes, both ways, arrive as they were sent.
    fn speak(&mut self, now: Instant) {
        for length in (0..100).chain((100..MTU - 28).step_by(37)).chain([MTU - 29, MTU - 28]) {
            let payload: Vec<u8> = (0..length).map(|index| (index ^ length) as u8).collect();
            let (ours, theirs) = (packet(1, 2, &payload), packet(2, 1, &payload));
            self.send(now, &ours);
            self.stock_sends(now, &theirs);
            assert_eq!(std::mem::take(&mut self.stock.received), [ours], "{length}");
            assert_eq!(self.alice.received(), [theirs], "{length}");
        }
        assert_eq!(self.alice.counters.drops().total(), 0);
    }

    /// How many messages of a type one side sent.
    fn count(&self, ours: bool, kind: u8) -> usize {
        self.heard.iter().filter(|(sender, bytes)| *sender == ours && bytes[0] == kind).count()
    }

    /// The index in Alice's last data message, which identifies its session.
    fn last_session(&self) -> &[u8] {
        let data = self.heard.iter().rfind(|(ours, bytes)| *ours && bytes[0] == 4);
        &data.unwrap().1[4..8]
    }
}

#[test]
fn it_answers_us() {
    let (mut mixed, now) = (Mixed::new(1000, 1000), Instant::now());
    mixed.speak(now);
    assert_eq!((mixed.count(true, 1), mixed.count(false, 2)), (1, 1));
    assert_eq!((mixed.count(false, 1), mixed.count(true, 2)), (0, 0));
    let lengths: BTreeSet<usize> =
        mixed.heard.iter().filter(|(ours, bytes)| !ours && bytes[0] == 4).map(|(_, bytes)| bytes.len() % 16).collect();
    assert_eq!(lengths.len(), 16, "its packets are not padded, ours have to be opened either way");
}

#[test]
fn we_answer_it() {
    let (mut mixed, now) = (Mixed::new(1000, 1000), Instant::now());
    let initiation = mixed.stock.initiate();
    mixed.bring_alice(now, initiation);
    mixed.speak(now);
    assert_eq!((mixed.count(false, 1), mixed.count(true, 2), mixed.count(true, 1)), (1, 1, 0));
}

#[test]
fn keepalives_carry_nothing_both_ways() {
    let (mut mixed, now) = (Mixed::new(1000, 1000), Instant::now());
    mixed.send(now, &packet(1, 2, b"hello"));
    mixed.stock_sends(now, &packet(2, 1, b"hello"));
    mixed.alice.received();
    mixed.stock.received.clear();
    mixed.stock_sends(now, &[]);
    let sent = mixed.alice.on_deadline(now + 10 * SECOND);
    assert_eq!((sent.len(), sent[0].bytes.len()), (1, 32));
    mixed.bring_stock(now, sent);
    assert!(mixed.alice.received().is_empty() && mixed.stock.received.is_empty());
    assert_eq!(mixed.alice.counters.drops().total(), 0);
}

#[test]
fn sessions_of_either_side_follow_each_other_and_the_one_before_still_receives() {
    let (mut mixed, start) = (Mixed::new(1000, 1000), Instant::now());
    let mut sessions = BTreeSet::new();
    mixed.speak(start);
    sessions.insert(mixed.last_session().to_vec());
    for (round, by_us) in (1..).zip([true, true, false, false]) {
        let now = start + 121 * SECOND * round;
        let late = mixed.stock.seal(&packet(2, 1, b"late"));
        if by_us {
            // Alice's session is old enough that she must renew it.
            let initiations = mixed.count(true, 1);
            mixed.send(now, &packet(1, 2, b"renews"));
            assert_eq!(mixed.count(true, 1), initiations + 1, "round {round}");
        } else {
            let initiation = mixed.stock.initiate();
            mixed.bring_alice(now, initiation);
            mixed.send(now, &packet(1, 2, b"renewed"));
        }
        mixed.stock.received.clear();
        mixed.bring_alice(now, late);
        assert_eq!(mixed.alice.received(), [packet(2, 1, b"late")], "round {round}");
        mixed.speak(now);
        assert!(sessions.insert(mixed.last_session().to_vec()), "round {round} is a session of its own");
    }
    assert_eq!(mixed.alice.stats(2).unanswered, 0);
}

#[test]
fn handshakes_that_cross_lead_to_sessions_that_both_use() {
    let (mut mixed, now) = (Mixed::new(1000, 1000), Instant::now());
    let ours = mixed.alice.seal(now, &packet(1, 2, b"ping"));
    let theirs = mixed.stock.initiate();
    // Each has started before it hears of the other's handshake.
    let (to_us, to_them) = (mixed.stock.open(&ours[0].bytes), mixed.alice.open(now, outer(2), &theirs[0]));
    mixed.bring_alice(now, to_us);
    mixed.bring_stock(now, to_them);
    assert_eq!(std::mem::take(&mut mixed.stock.received), [packet(1, 2, b"ping")]);
    mixed.speak(now);
}

#[test]
fn under_load_it_asks_us_for_a_cookie() {
    let (mut mixed, now) = (Mixed::new(1000, 0), Instant::now());
    mixed.send(now, &packet(1, 2, b"patience"));
    assert_eq!((mixed.count(false, 3), mixed.count(false, 2)), (1, 0));
    let retry = mixed.alice.deadline().unwrap();
    let sent = mixed.alice.on_deadline(retry);
    mixed.bring_stock(retry, sent);
    assert_eq!(std::mem::take(&mut mixed.stock.received), [packet(1, 2, b"patience")]);
    mixed.speak(retry);
}

#[test]
fn under_load_it_asks_for_a_cookie_in_our_response() {
    let (mut mixed, now) = (Mixed::new(1000, 0), Instant::now());
    for cookies in [1, 1] {
        let initiation = mixed.stock.initiate();
        mixed.bring_alice(now, initiation);
        assert_eq!(mixed.count(false, 3), cookies);
    }
    assert_eq!(mixed.count(true, 2), 2);
    mixed.speak(now);
}

#[test]
fn under_load_we_ask_it_for_a_cookie() {
    let (mut mixed, now) = (Mixed::new(0, 1000), Instant::now());
    let initiation = mixed.stock.initiate();
    mixed.bring_alice(now, initiation);
    assert_eq!((mixed.count(true, 3), mixed.count(true, 2)), (1, 0));
    let initiation = mixed.stock.initiate();
    mixed.bring_alice(now, initiation);
    assert_eq!((mixed.count(true, 3), mixed.count(true, 2)), (1, 1));
    mixed.stock_sends(now, &packet(2, 1, b"thanks"));
    assert_eq!(mixed.alice.received(), [packet(2, 1, b"thanks")]);
}

#[test]
fn under_load_we_ask_for_a_cookie_in_its_response() {
    let (mut mixed, now) = (Mixed::new(0, 1000), Instant::now());
    mixed.send(now, &packet(1, 2, b"patience"));
    assert_eq!((mixed.count(false, 2), mixed.count(true, 3)), (1, 1));
    assert!(mixed.stock.received.is_empty());
    let retry = mixed.alice.deadline().unwrap();
    let sent = mixed.alice.on_deadline(retry);
    mixed.bring_stock(retry, sent);
    assert_eq!(mixed.stock.received, [packet(1, 2, b"patience")]);
    assert_eq!((mixed.count(false, 2), mixed.count(true, 3)), (2, 1));
}

#[test]
fn what_it_recorded_of_us_is_worth_nothing_to_it_and_the_other_way_round() {
    let (mut mixed, now) = (Mixed::new(1000, 1000), Instant::now());
    mixed.speak(now);
    let (from_us, from_it): (Vec<_>, Vec<_>) =
        std::mem::take(&mut mixed.heard).into_iter().partition(|(ours, _)| *ours);
    for (_, bytes) in from_it {
        assert!(mixed.alice.open(now, outer(2), &bytes).is_empty());
    }
    assert!(mixed.alice.received().is_empty());
    for (_, bytes) in from_us {
        let mut room = [0; 2048];
        assert!(matches!(mixed.stock.tunn.decapsulate(None, &bytes, &mut room), TunnResult::Err(_)));
    }
}
