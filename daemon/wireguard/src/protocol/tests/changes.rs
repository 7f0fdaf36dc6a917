//! Peers and keys that are added, changed and removed.

use super::*;

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
    // Bob installs it: a session with it is made at once and used.
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

    // Moving it in one batch is allowed, in either order of the peers.
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
    for epochs in [&[][..], &[1, 2, 3], &[1, 1]] {
        let refused = Identities::new(local_keys(1, epochs), 1);
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
    // When added again, it starts from scratch.
    net.nodes[BOB].put(peer(1, &[1]));
    net.send(now, BOB, &packet(2, 1, b"hello again"));
    assert_eq!(net.nodes[ALICE].received(), [packet(2, 1, b"hello again")]);
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
