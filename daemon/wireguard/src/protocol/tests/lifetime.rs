//! How long and how often a session is used, and what remains of it afterwards.

use super::super::message;
use super::super::session::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES};
use super::super::sessions::Sessions;
use super::*;
use crate::protocol::cookie::Macs;

const SECOND: Duration = Duration::from_secs(1);

/// The sessions that a node has with another.
fn sessions(node: &mut Node, number: u8) -> &mut Sessions {
    node.protocol.peers.get_mut(&PeerId(number.into())).unwrap().pairs[0].sessions_mut()
}

fn of_type(kind: u8, sent: &[Sent]) -> Vec<&Sent> {
    sent.iter().filter(|sent| sent.bytes[0] == kind).collect()
}

fn counter(sent: &Sent) -> u64 {
    u64::from_le_bytes(sent.bytes[8..16].try_into().unwrap())
}

#[test]
fn after_its_last_message_a_session_seals_nothing_and_another_is_made() {
    let (mut net, now) = Net::established();
    let session = sessions(&mut net.nodes[ALICE], 2).current_mut().unwrap();
    session.pretend_sent(REJECT_AFTER_MESSAGES - 1);
    let last = net.nodes[ALICE].seal(now, &packet(1, 2, b"last"));
    let [data] = of_type(4, &last)[..] else { panic!() };
    assert_eq!(counter(data), REJECT_AFTER_MESSAGES - 1);
    assert_eq!(of_type(1, &last).len(), 1);
    let index = data.bytes[4..8].to_vec();
    for waits in [b"waits", b"first"] {
        assert!(net.nodes[ALICE].seal(now, &packet(1, 2, waits)).is_empty());
    }
    net.heard.clear();
    net.carry(now, ALICE, last);
    let expected = [packet(1, 2, b"last"), packet(1, 2, b"waits"), packet(1, 2, b"first")];
    assert_eq!(net.nodes[BOB].received(), expected);
    let fresh: Vec<_> =
        of_type(4, &net.heard).into_iter().filter(|sent| sent.bytes[4..8] != index).map(counter).collect();
    assert_eq!(fresh, [0, 1, 2], "a keepalive and the two, with the new session");
}

#[test]
fn whoever_has_sent_a_great_deal_renews_also_if_the_other_side_made_the_session() {
    for (from, to) in [(ALICE, 2), (BOB, 1)] {
        let (mut net, now) = Net::established();
        let number = net.nodes[from].number;
        sessions(&mut net.nodes[from], to).current_mut().unwrap().pretend_sent(REKEY_AFTER_MESSAGES - 1);
        let sent = net.nodes[from].seal(now, &packet(number, to, b"the 2^60th"));
        assert_eq!((of_type(4, &sent).len(), of_type(1, &sent).len()), (1, 1));
        net.carry(now, from, sent);
        assert!(of_type(1, &net.nodes[from].seal(now, &packet(number, to, b"one more"))).is_empty());
        assert_eq!(of_type(1, &net.heard).len(), 2, "the first, and the one that renews");
    }
}

#[test]
fn a_session_is_renewed_by_who_made_it_when_it_sends_after_120_s() {
    let (mut net, start) = Net::established();
    for (second, renews) in [(119, false), (120, true), (121, false)] {
        let now = start + SECOND * second;
        assert!(of_type(1, &net.nodes[BOB].seal(now, &packet(2, 1, b"Bob answered"))).is_empty());
        let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"Alice made it"));
        assert_eq!(of_type(1, &sent).len(), usize::from(renews), "{second} s");
        assert_eq!(of_type(4, &sent).len(), 1, "the old one still carries packets");
    }
}

#[test]
fn who_made_a_session_and_only_listens_renews_it_after_165_s() {
    for (second, renews) in [(164, false), (165, true)] {
        let (mut net, start) = Net::established();
        let now = start + SECOND * second;
        let sent = net.nodes[BOB].seal(now, &packet(2, 1, b"news"));
        let answers = net.nodes[ALICE].open(now, outer(2), &sent[0].bytes);
        assert_eq!(of_type(1, &answers).len(), usize::from(renews), "{second} s");
    }
}

#[test]
fn after_180_s_nothing_is_sent_or_received_with_a_session_and_its_keys_are_gone() {
    // Whichever comes first: a deadline, a message, or a packet to send.
    for first in 0..3 {
        let (mut net, start) = Net::established();
        let early = net.nodes[BOB].seal(start, &packet(2, 1, b"too late"));
        let before = net.nodes[ALICE].seal(start + 179 * SECOND, &packet(1, 2, b"just in time"));
        net.nodes[BOB].open(start + 179 * SECOND, outer(1), &before[0].bytes);
        assert_eq!(net.nodes[BOB].received().len(), 1);
        let (alice, end) = (&mut net.nodes[ALICE], start + 180 * SECOND);
        let sent = match first {
            0 => alice.on_deadline(end),
            1 => alice.open(end, outer(2), &early[0].bytes),
            _ => alice.seal(end, &packet(1, 2, b"waits")),
        };
        assert!(of_type(4, &sent).is_empty());
        assert_eq!(sessions(alice, 2).count(), 0);
        alice.open(end, outer(2), &early[0].bytes);
        assert!(alice.received().is_empty());
        assert_eq!(alice.drops(TunnelDrop::UnknownSender), 1 + u64::from(first == 1));
    }
}

#[test]
fn sessions_that_nobody_put_to_use_end_as_well() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"the answer is lost"));
    net.nodes[BOB].open(now, outer(1), &sent[0].bytes);
    assert_eq!(sessions(&mut net.nodes[BOB], 1).count(), 1);
    let end = net.nodes[BOB].deadline().unwrap();
    assert_eq!(end, now + 180 * SECOND);
    assert!(net.nodes[BOB].on_deadline(end).is_empty());
    assert_eq!(sessions(&mut net.nodes[BOB], 1).count(), 0);
    assert_eq!(net.nodes[BOB].deadline(), None);
}

#[test]
fn who_answers_sends_with_the_session_only_once_it_has_heard_it() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let initiation = net.nodes[ALICE].seal(now, &packet(1, 2, b"hello"));
    let response = net.nodes[BOB].open(now, outer(1), &initiation[0].bytes);
    let sent = net.nodes[BOB].seal(now, &packet(2, 1, b"not yet"));
    assert!(of_type(4, &sent).is_empty() && of_type(1, &sent).len() == 1);
    net.carry(now, BOB, response);
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"not yet")]);

    // The same with an older session, which is used until then.
    let later = now + 121 * SECOND;
    let older = net.heard.iter().rfind(|sent| sent.to == outer(1) && sent.bytes[0] == 4).unwrap().bytes[4..8].to_vec();
    let sent = net.nodes[ALICE].seal(later, &packet(1, 2, b"renews"));
    let mut response = vec![];
    for sent in &sent {
        response.extend(net.nodes[BOB].open(later, outer(1), &sent.bytes));
    }
    let meanwhile = net.nodes[BOB].seal(later, &packet(2, 1, b"meanwhile"));
    assert_eq!(meanwhile[0].bytes[4..8], older);
    net.carry(later, BOB, response);
    let after = net.nodes[BOB].seal(later, &packet(2, 1, b"after"));
    assert_ne!(after[0].bytes[4..8], older);
    // Packets sent before arrive even if they are late.
    net.carry(later, BOB, after);
    net.carry(later, BOB, meanwhile);
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"after"), packet(2, 1, b"meanwhile")]);
}

#[test]
fn an_initiation_that_is_not_the_latest_is_refused() {
    let mut net = Net::new(2);
    let start = Instant::now();
    let first = net.nodes[ALICE].seal(start, &packet(1, 2, b"hello"));
    let retry = net.nodes[ALICE].deadline().unwrap();
    let second = net.nodes[ALICE].on_deadline(retry);
    let bob = &mut net.nodes[BOB];
    assert_eq!(bob.open(retry, outer(1), &second[0].bytes).len(), 1);
    for (replays, replayed) in [&first, &second, &first].into_iter().enumerate() {
        assert!(bob.open(retry, outer(1), &replayed[0].bytes).is_empty());
        assert_eq!(bob.drops(TunnelDrop::ReplayOrForged), replays as u64 + 1);
    }
    assert_eq!(sessions(bob, 1).count(), 1);
}

#[test]
fn a_response_is_taken_once_and_a_forged_one_spoils_nothing() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let initiation = net.nodes[ALICE].seal(now, &packet(1, 2, b"hello"));
    let response = net.nodes[BOB].open(now, outer(1), &initiation[0].bytes).remove(0).bytes;
    let alice = &mut net.nodes[ALICE];
    // Once in the encrypted part, once in the index, which is not encrypted.
    for (at, reason) in [(50, TunnelDrop::ReplayOrForged), (8, TunnelDrop::UnknownSender)] {
        let mut forged = response.clone();
        forged[at] ^= 1;
        // Anyone can compute the MACs: they need only Alice's public key.
        Macs::new(&PublicKey::from(&secret(1, 1))).sign(now, 0, &mut forged);
        assert!(alice.open(now, outer(2), &forged).is_empty());
        assert_eq!(alice.drops(reason), 1);
    }

    let sent = alice.open(now, outer(2), &response);
    assert_eq!(of_type(4, &sent).len(), 2, "the confirmation and the packet");
    for _ in 0..2 {
        assert!(alice.open(now, outer(2), &response).is_empty());
    }
    assert_eq!(alice.drops(TunnelDrop::UnknownSender), 3);
    assert_eq!(sessions(alice, 2).count(), 1);
    net.carry(now, ALICE, sent);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"hello")]);
}

/// Two handshakes cross; one is finished before the other is answered.
#[test]
fn a_handshake_that_became_needless_is_not_repeated_but_an_answer_is_taken() {
    for answer_arrives in [true, false] {
        let mut net = Net::new(2);
        let now = Instant::now();
        let from_bob = net.nodes[BOB].seal(now, &packet(2, 1, b"pong"));
        let slow = net.nodes[ALICE].open(now, outer(2), &from_bob[0].bytes);
        net.send(now, ALICE, &packet(1, 2, b"ping"));
        assert_eq!(net.nodes[BOB].stats(1).unanswered, 0);
        if answer_arrives {
            net.carry(now, ALICE, slow);
        }
        while let Some(due) = net.nodes[BOB].deadline().filter(|due| *due < now + 9 * SECOND) {
            assert!(net.nodes[BOB].on_deadline(due).is_empty());
        }
        net.send(now, BOB, &packet(2, 1, b"again"));
        assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"pong"), packet(2, 1, b"again")]);
        assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"ping")]);
        assert!(net.nodes.iter().all(|node| node.counters.drops().total() == 0));
    }
}

#[test]
fn however_often_the_peer_asks_the_place_of_our_own_handshake_stays_free() {
    let mut net = Net::new(2);
    let mut now = Instant::now();
    let ours = net.nodes[ALICE].seal(now, &packet(1, 2, b"ping"));
    let place = |sender: &[u8]| sender[0] % 8;
    let mut theirs = net.nodes[BOB].seal(now, &packet(2, 1, b"pong"));
    for _ in 0..12 {
        let answer = net.nodes[ALICE].open(now, outer(2), &theirs[0].bytes);
        assert_ne!(place(&answer[0].bytes[4..8]), place(&ours[0].bytes[4..8]));
        now = net.nodes[BOB].deadline().unwrap();
        theirs = net.nodes[BOB].on_deadline(now);
    }
    net.carry(now, ALICE, ours);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"ping")]);
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"pong")]);
}

#[test]
fn a_response_to_an_initiation_that_was_repeated_is_refused_and_the_other_taken() {
    let mut net = Net::new(2);
    let now = Instant::now();
    let first = net.nodes[ALICE].seal(now, &packet(1, 2, b"hello"));
    let late = net.nodes[BOB].open(now, outer(1), &first[0].bytes);
    let retry = net.nodes[ALICE].deadline().unwrap();
    let second = net.nodes[ALICE].on_deadline(retry);
    assert!(net.nodes[ALICE].open(retry, outer(2), &late[0].bytes).is_empty());
    net.carry(retry, ALICE, second);
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"hello")]);
}

#[test]
fn a_message_too_far_behind_is_refused() {
    let (mut net, now) = Net::established();
    let sent: Vec<_> =
        (0..8194u16).flat_map(|number| net.nodes[ALICE].seal(now, &packet(1, 2, &number.to_be_bytes()))).collect();
    let bob = &mut net.nodes[BOB];
    let newest = sent.last().unwrap();
    for (sent, arrives) in [(newest, true), (&sent[1], false), (&sent[2], true), (&sent[2], false), (&sent[3], true)] {
        bob.open(now, outer(1), &sent.bytes);
        assert_eq!(bob.received().len(), usize::from(arrives), "{}", counter(newest) - counter(sent));
    }
}

#[test]
fn a_forged_message_does_not_count_as_received() {
    let (mut net, now) = Net::established();
    let sent = net.nodes[ALICE].seal(now, &packet(1, 2, b"true"));
    let mut forged = sent[0].bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut far = sent[0].bytes.clone();
    far[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
    for bytes in [&forged, &far, &sent[0].bytes] {
        net.nodes[BOB].open(now, outer(1), bytes);
    }
    assert_eq!(net.nodes[BOB].received(), [packet(1, 2, b"true")]);
}

#[test]
fn the_same_secret_never_seals_for_two_sessions() {
    // The same key, packet and counter in consecutive sessions: nothing on the wire repeats.
    let mut net = Net::new(2);
    let start = Instant::now();
    for round in 0..20u32 {
        net.send(start + 181 * SECOND * round, ALICE, &packet(1, 2, b"always the same"));
    }
    let sealed: Vec<_> = of_type(4, &net.heard).into_iter().map(|sent| &sent.bytes[message::OVERHEAD - 16..]).collect();
    assert_eq!(sealed.iter().collect::<BTreeSet<_>>().len(), sealed.len());
    assert!(sealed.len() >= 40);
}

#[test]
fn sessions_follow_each_other_under_load_without_losing_a_packet_or_repeating_a_nonce() {
    let (net, start) = Net::established();
    ten_minutes(net, start, vec![]);
}

/// Each side makes a session and sends with its own, and this continues.
#[test]
fn sessions_of_handshakes_that_cross_follow_each_other_without_losing_a_packet() {
    let mut net = Net::new(2);
    let start = Instant::now();
    let from_alice = net.nodes[ALICE].act(|protocol, _, outbox| protocol.greet(PeerId(2), false, start, outbox));
    let from_bob = net.nodes[BOB].act(|protocol, _, outbox| protocol.greet(PeerId(1), false, start, outbox));
    let under_way =
        from_alice.into_iter().map(|sent| (ALICE, sent)).chain(from_bob.into_iter().map(|sent| (BOB, sent)));
    ten_minutes(net, start, under_way.collect());
}

/// Ten minutes of traffic in both directions, with packets on their way whenever a session replaces
/// another.
fn ten_minutes(mut net: Net, start: Instant, mut under_way: Vec<(usize, Sent)>) {
    const STEPS: u32 = 6_000;
    const PACKETS: u32 = 3;
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
    // Packets of the last step are still on their way.
    for (to, arrived) in arrived.iter().enumerate() {
        let (own, other) = (net.nodes[to].number, net.nodes[1 - to].number);
        let sent = (0..(STEPS - 1) * PACKETS).map(|number| packet(other, own, &number.to_be_bytes()));
        assert!(arrived.iter().eq(sent.collect::<Vec<_>>().iter()), "lost, repeated or out of order");
    }
    let data = net.heard.iter().filter(|sent| sent.bytes[0] == 4);
    // The receiver's index and the counter: together they identify the key and its nonce
    // (WireGuard, 5.4.6).
    let headers: Vec<&[u8]> = data.map(|sent| &sent.bytes[4..16]).collect();
    let distinct: BTreeSet<&[u8]> = headers.iter().copied().collect();
    assert_eq!(distinct.len(), headers.len(), "a nonce was used twice");
    let sessions: BTreeSet<&[u8]> = headers.iter().map(|header| &header[..4]).collect();
    assert!(sessions.len() >= 2 * 5, "{} keys in ten minutes", sessions.len());
    assert!(net.nodes.iter().all(|node| node.counters.drops().of(TunnelDrop::ReplayOrForged) == 0));
}

#[test]
fn handshakes_that_nobody_answers_are_counted_while_the_session_lives() {
    let (mut net, now) = Net::established();
    let mut initiation = Vec::new();
    // Nothing is carried: Bob is gone. Alice starts a handshake after 15 s of silence, and repeats
    // it every 5 s or so.
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
            // Bob is back.
            net.carry(at, ALICE, initiation);
            assert_eq!(net.nodes[ALICE].stats(2).unanswered, 0);
            return;
        }
    }
    panic!("only {} of Alice's handshakes are counted", net.nodes[ALICE].stats(2).unanswered);
}

#[test]
fn a_peer_that_was_given_up_stays_unanswered_until_it_answers() {
    let (mut net, now) = Net::established();
    let mut given_up = false;
    // For two minutes Bob does not answer, though the session lives; then there is nothing to send;
    // then there is again.
    for second in 1..400 {
        let at = now + Duration::from_secs(second);
        let alice = &mut net.nodes[ALICE];
        let sends = !(120..=300).contains(&second);
        let mut sent = if sends { alice.seal(at, &packet(1, 2, b"anybody there?")) } else { Vec::new() };
        if alice.deadline().is_some_and(|deadline| deadline <= at) {
            sent.extend(alice.on_deadline(at));
        }
        let unanswered = alice.stats(2).unanswered;
        given_up |= second > 100 && unanswered >= 3;
        assert!(!given_up || unanswered >= 3, "{unanswered} after {second} s");
        if second == 250 {
            assert!(matches!(alice.stats(2).state, PeerState::Failed { .. }), "{:?}", alice.stats(2).state);
        }
        let initiation: Vec<Sent> = sent.into_iter().filter(|sent| sent.bytes[0] == 1).collect();
        if second > 350 && !initiation.is_empty() {
            assert!(given_up);
            net.carry(at, ALICE, initiation);
            assert_eq!(net.nodes[ALICE].stats(2).unanswered, 0);
            return;
        }
    }
    panic!("Alice has begun no handshake");
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
fn a_quiet_receiver_sends_one_keepalive_and_then_sleeps() {
    let (mut net, start) = Net::established();
    // Alice sends once more; Bob only receives.
    net.send(start, ALICE, &packet(1, 2, b"news"));
    let due = net.nodes[BOB].deadline().unwrap();
    assert_eq!(due, start + Duration::from_secs(10));
    let sent = net.nodes[BOB].on_deadline(due);
    assert_eq!((sent.len(), sent[0].bytes.len()), (1, 32));
    net.carry(due, BOB, sent);
    assert_eq!(net.nodes[ALICE].received().len(), 0, "a keepalive carries no packet");

    // From here on: the session ends, its keys are wiped, and nothing happens any more.
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn packets_in_any_order_arrive_exactly_once(order in Just((0..300usize).collect::<Vec<_>>()).prop_shuffle()) {
        let (mut net, now) = Net::established();
        let packets: Vec<_> = (0..300u16).map(|number| packet(1, 2, &number.to_be_bytes())).collect();
        let sent: Vec<_> = packets.iter().flat_map(|packet| net.nodes[ALICE].seal(now, packet)).collect();
        for index in &order {
            net.nodes[BOB].open(now, outer(1), &sent[*index].bytes);
            prop_assert_eq!(net.nodes[BOB].received(), [packets[*index].clone()]);
        }
        for index in &order {
            net.nodes[BOB].open(now, outer(1), &sent[*index].bytes);
        }
        prop_assert!(net.nodes[BOB].received().is_empty());
        prop_assert_eq!(net.nodes[BOB].drops(TunnelDrop::ReplayOrForged), 300);
    }
}
