use super::*;

const HERE: u32 = 1;
const THERE: u32 = 2;
const KEYED: Peer = Peer { flags: peer_flag::KEY, epoch: 1 };
const READY: Peer = Peer { flags: peer_flag::KEY | peer_flag::READY, epoch: 1 };
const NONE: Peer = Peer { flags: 0, epoch: 0 };

fn pod(protection: Protection, node: u32) -> Identity {
    Identity::new(Kind::Pod, protection, node)
}

fn node(number: u32) -> Identity {
    Identity::new(Kind::Node, Protection::None, number)
}

fn unknown(number: u32) -> Identity {
    Identity::new(Kind::UnknownPod, Protection::None, number)
}

fn place(stack: bool) -> Place {
    Place { node: HERE, stack, carries_protected: false }
}

fn everyone() -> Vec<Identity> {
    let mut all = vec![Identity::WORLD, Identity::new(Kind::UnknownNode, Protection::None, 0), unknown(0)];
    for number in [HERE, THERE] {
        all.extend([node(number), unknown(number)]);
        all.extend([Protection::None, Protection::Permissive, Protection::Enabled].map(|p| pod(p, number)));
    }
    all
}

#[test]
fn an_opted_in_end_is_never_plain_between_nodes() {
    for source in everyone() {
        for destination in everyone() {
            for stack in [false, true] {
                for peer in [NONE, KEYED, READY] {
                    let need = need(&source, &destination, &place(stack));
                    let protected =
                        source.protection() == Protection::Enabled || destination.protection() == Protection::Enabled;
                    let same_node = is_here(&source, HERE) && is_here(&destination, HERE);
                    let world = source.is_world() || destination.is_world();
                    if protected && !same_node && !world {
                        assert!(matches!(need, Need::Encrypt(_)), "{source:?} {destination:?}");
                        let out = outgoing(need, &destination, &peer).encryption;
                        assert!(matches!(out, Encryption::Encrypted | Encryption::Refused));
                        assert!(arriving_in_clear(need, &source, &destination, HERE, true).is_refused());
                        for origin in [Origin::Pod, Origin::Node, Origin::Wire, Origin::Cluster, Origin::Unguarded] {
                            assert!(entering_pod(need, &source, &destination, origin, true).is_refused());
                        }
                    }
                    if outgoing(need, &destination, &peer).encryption == Encryption::Encrypted {
                        assert_ne!(peer.flags & peer_flag::KEY, 0, "handed to a tunnel without a key");
                    }
                }
            }
        }
    }
}

#[test]
fn a_protected_pod_accepts_nothing_in_clear_from_the_wire() {
    let protected = pod(Protection::Enabled, HERE);
    for source in everyone() {
        let need = need(&source, &protected, &place(false));
        assert!(arriving_in_clear(need, &source, &protected, HERE, false).is_refused(), "{source:?}");
    }
    let need = need(&Identity::WORLD, &protected, &place(false));
    assert!(!arriving_in_clear(need, &Identity::WORLD, &protected, HERE, true).is_refused());
}

#[test]
fn nobody_speaks_for_this_nodes_pods_from_outside() {
    for source in [pod(Protection::None, HERE), pod(Protection::Enabled, HERE), unknown(HERE)] {
        for destination in everyone() {
            let need = need(&source, &destination, &place(false));
            assert!(arriving_in_clear(need, &source, &destination, HERE, true).is_refused());
            assert_eq!(arriving_decrypted(need, &source, &destination, HERE).drop, DropReason::TunnelSource);
        }
    }
    assert!(arriving_decrypted(Need::Clear, &Identity::WORLD, &node(HERE), HERE).is_refused());
}

#[test]
fn translated_traffic_of_a_protected_pod_stays_protected() {
    let carrying = Place { carries_protected: true, ..place(true) };
    let plain = pod(Protection::None, THERE);
    assert_eq!(need(&node(HERE), &plain, &carrying), Need::Encrypt(Why::Translated));
    // The reply to a node's address also comes back through the tunnel, if another program
    // translates addresses.
    assert_eq!(need(&pod(Protection::None, HERE), &node(THERE), &place(true)), Need::Shelter);
    assert_eq!(need(&pod(Protection::None, HERE), &node(THERE), &place(false)), Need::Clear);
    // No program masquerades with an address that no node has, and no peer would accept it from a
    // tunnel.
    let stranger = Identity::new(Kind::UnknownNode, Protection::None, 0);
    for (source, destination) in [(stranger, plain), (plain, stranger)] {
        assert_eq!(need(&source, &destination, &place(true)), Need::Clear);
    }
    assert_eq!(outgoing(Need::Shelter, &node(THERE), &KEYED).encryption, Encryption::Encrypted);
    assert_eq!(outgoing(Need::Shelter, &node(THERE), &NONE).encryption, Encryption::Plain);
}

#[test]
fn translation_to_an_unknown_address_does_not_make_protected_traffic_the_worlds() {
    let carrying = Place { carries_protected: true, ..place(true) };
    for destination in everyone().into_iter().filter(|destination| !destination.is_world()) {
        let need = need(&Identity::WORLD, &destination, &carrying);
        assert_eq!(need, Need::Encrypt(Why::Translated), "{destination:?}");
    }
    assert_eq!(need(&node(HERE), &Identity::WORLD, &carrying), Need::World);
}

#[test]
fn only_a_pods_interface_and_the_node_itself_prove_that_a_packet_is_local() {
    let enters = |source: Identity, destination: Identity, origin: Origin| {
        let need = need(&source, &destination, &place(true));
        entering_pod(need, &source, &destination, origin, false)
    };
    let (plain, protected) = (pod(Protection::None, HERE), pod(Protection::Enabled, HERE));
    for (source, destination) in [(plain, protected), (protected, plain), (protected, protected)] {
        for origin in [Origin::Wire, Origin::Unguarded] {
            assert_eq!(enters(source, destination, origin).drop, DropReason::Martian, "{origin:?}");
        }
        for origin in [Origin::Pod, Origin::Node] {
            assert_eq!(enters(source, destination, origin).encryption, Encryption::Local, "{origin:?}");
        }
    }
    // Masquerading gives the node's address to packets from the world that came by a guarded
    // device.
    assert_eq!(enters(node(HERE), protected, Origin::Wire).encryption, Encryption::Local);
    assert_eq!(enters(node(HERE), protected, Origin::Unguarded).drop, DropReason::Martian);
    assert_eq!(enters(Identity::WORLD, protected, Origin::Unguarded).drop, DropReason::WorldToProtected);
    // It also gives it to plaintext from another node, which should have been sealed.
    for source in [node(HERE), Identity::WORLD, node(THERE)] {
        assert_eq!(enters(source, protected, Origin::Cluster).drop, DropReason::PlaintextToProtected);
    }
    assert_eq!(enters(node(HERE), plain, Origin::Cluster).encryption, Encryption::Local);
    assert_eq!(enters(plain, protected, Origin::Cluster).drop, DropReason::PlaintextToProtected);
    // A service address was translated after the guard had let the packet pass.
    assert_eq!(enters(Identity::WORLD, protected, Origin::Wire).encryption, Encryption::World);
    assert_eq!(enters(plain, plain, Origin::Unguarded).encryption, Encryption::Local);
}

#[test]
fn permissive_follows_the_peer() {
    let permissive = pod(Protection::Permissive, THERE);
    let need = need(&pod(Protection::None, HERE), &permissive, &place(false));
    assert_eq!(outgoing(need, &permissive, &READY).why, Why::PermissivePeerReady);
    assert_eq!(outgoing(need, &permissive, &KEYED).encryption, Encryption::Plain);
    assert!(
        !arriving_in_clear(need, &pod(Protection::None, THERE), &pod(Protection::Permissive, HERE), HERE, false)
            .is_refused()
    );
}

#[test]
fn nodes_among_themselves_and_plain_pods_are_left_alone() {
    for stack in [false, true] {
        assert_eq!(need(&node(HERE), &node(THERE), &place(stack)), Need::Clear);
        assert_eq!(need(&pod(Protection::None, HERE), &pod(Protection::None, THERE), &place(stack)), Need::Clear);
    }
}

#[test]
fn unknown_kinds_and_protections_read_as_the_strictest() {
    let odd = Identity { kind: 99, protection: 0, reserved: 0, node: THERE };
    assert_eq!(odd.protection(), Protection::Enabled);
    let odd = Identity { kind: Kind::Pod as u8, protection: 99, reserved: 0, node: THERE };
    assert_eq!(odd.protection(), Protection::Enabled);
}

#[test]
fn what_passes_over_the_stack_is_answered_past_it() {
    let past = |source: &Identity, destination: &Identity, peer, by_uplink| {
        is_answered_past_the_stack(need(source, destination, &place(false)), source, &peer, by_uplink)
    };
    let [plain, permissive, protected] =
        [Protection::None, Protection::Permissive, Protection::Enabled].map(|protection| pod(protection, HERE));
    let other = pod(Protection::None, THERE);
    assert!(past(&other, &plain, READY, true), "from pod to pod by the host's routes");
    assert!(!past(&other, &plain, READY, false), "the answer cannot leave without the stack");
    for destination in [protected, permissive] {
        assert!(past(&other, &destination, READY, false), "by the tunnel");
        assert!(past(&node(THERE), &destination, READY, false), "by the tunnel");
    }
    assert!(!past(&node(THERE), &plain, READY, true), "the host's stack carries what goes to nodes");
    assert!(!past(&node(THERE), &permissive, KEYED, true), "it has not answered yet");
    for destination in [protected, permissive, plain] {
        assert!(!past(&Identity::WORLD, &destination, READY, true));
    }
}
