//! The tunnel on real devices, sockets and wires. Needs root.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use common::*;
use hauberk_engine::Device;
use hauberk_wireguard::{Error, Health, PeerChange, PeerId, PeerState, Tunnel, TunnelConfig, TunnelDrop};

const SECRET: &[u8] = b"nobody on the wire may read this";
const SOON: Duration = Duration::from_secs(20);

fn drops(tunnel: &Tunnel, reason: TunnelDrop) -> u64 {
    tunnel.stats().unwrap().drops.of(reason)
}

fn everything_crosses_sealed(outer: fn(Node) -> SocketAddr) {
    let playground = Playground::new();
    let [a, b] = connected(&playground, outer);
    let capture = playground.capture();

    for to in [Node::B.inner_v4(), Node::B.inner_v6()] {
        assert!(playground.nodes[0].succeeds(&format!("ping -c 3 -i 0.2 -W 5 -s 1000 {to}")), "ping {to}");
        let bytes = pattern(SECRET, 16 << 20);
        assert!(tcp_transfer(&playground, to, bytes.clone()) == bytes, "TCP to {to} was damaged");
    }
    for (from, to) in [(Node::A.inner_v4(), Node::B.inner_v4()), (Node::A.inner_v6(), Node::B.inner_v6())] {
        let (sender, receiver) = udp_sockets(&playground, from, to);
        for size in [0, 1, 15, 16, 17, 500, 1300, 1372] {
            let datagram = pattern(SECRET, size);
            sender.send(&datagram).unwrap();
            let mut buffer = [0; 2048];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], datagram);
        }
    }

    assert_sealed(&capture.finish(), SECRET);
    for tunnel in [&a, &b] {
        let stats = tunnel.stats().unwrap();
        assert_eq!(stats.peers[0].state, PeerState::Established);
        assert_eq!(stats.drops.of(TunnelDrop::ReplayOrForged), 0);
        assert_eq!(stats.drops.of(TunnelDrop::TunWriteFailed), 0);
        assert!(stats.peers[0].latest_handshake.is_some());
        assert_eq!((stats.peers[0].local_epoch, stats.peers[0].remote_epoch), (Some(1), Some(1)));
        assert_eq!(tunnel.health(), Health::Running);
    }
    let (sent, received) = (&a.stats().unwrap().peers[0], &b.stats().unwrap().peers[0]);
    assert!(sent.tx_bytes > 32 << 20 && received.rx_bytes > 32 << 20);
}

#[test]
fn everything_crosses_sealed_over_ipv4() {
    everything_crosses_sealed(Node::outer_v4);
}

#[test]
fn everything_crosses_sealed_over_ipv6() {
    everything_crosses_sealed(Node::outer_v6);
}

/// Every packet that a bad wire does not lose arrives once, even if it is repeated or reordered.
#[test]
fn a_wire_that_loses_repeats_and_reorders_costs_no_more_than_it_loses() {
    const COUNT: u32 = 20_000;
    /// The most packets in flight: fewer than any queue holds, so that only the wire loses packets.
    const WINDOW: u64 = 128;
    let playground = Playground::new();
    let wire = BadWire::start(&playground);
    let [_a, b] = connected(&playground, |_| BadWire::ADDRESS);
    let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
    sender.send(b"a session first").unwrap();
    receiver.recv(&mut [0; 64]).unwrap();

    wire.badness.lost.store(10, Ordering::Relaxed);
    wire.badness.repeated.store(30, Ordering::Relaxed);
    wire.badness.delayed.store(50, Ordering::Relaxed);
    let received = AtomicU64::new(0);
    let mut arrived = vec![0u32; COUNT as usize];
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for number in 0..COUNT {
                sender.send(&number.to_be_bytes()).unwrap();
                let under_way = || {
                    let gone = received.load(Ordering::Relaxed) + wire.badness.losses.load(Ordering::Relaxed);
                    u64::from(number + 1).saturating_sub(gone)
                };
                eventually(SOON, "what is under way to arrive or to be lost by the wire", || under_way() < WINDOW);
            }
        });
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut number = [0; 4];
        loop {
            if receiver.recv(&mut number).is_ok() {
                arrived[u32::from_be_bytes(number) as usize] += 1;
                received.fetch_add(1, Ordering::Relaxed);
            } else if sending.is_finished() {
                break;
            }
        }
    });
    assert!(arrived.iter().all(|times| *times <= 1), "a repeated packet was delivered twice");
    let missing = arrived.iter().filter(|times| **times == 0).count() as u64;
    assert_eq!(missing, wire.badness.losses.load(Ordering::Relaxed), "more was lost than the wire lost");
    assert!(missing > 0 && wire.badness.others.load(Ordering::Relaxed) > 0, "it was not a bad wire");
    assert!(drops(&b, TunnelDrop::ReplayOrForged) > 0, "repeated packets are counted");

    let bytes = pattern(SECRET, 2 << 20);
    assert!(tcp_transfer(&playground, Node::B.inner_v4(), bytes.clone()) == bytes, "TCP was damaged");
}

/// The outer packet shows the traffic class only if that is configured.
#[test]
fn the_inner_class_is_copied_when_configured() {
    for (copy_dscp, shown) in [(false, 0x01), (true, 0xb9)] {
        let playground = Playground::new();
        let a = Node::A.start(&playground, TunnelConfig { copy_dscp, ..Node::A.config() });
        let b = Node::B.start(&playground, Node::B.config());
        a.apply(vec![PeerChange::Put(Node::B.as_peer(Node::B.outer_v4()))]).unwrap();
        b.apply(vec![PeerChange::Put(Node::A.as_peer(Node::A.outer_v4()))]).unwrap();
        let capture = playground.capture();
        // Expedited forwarding, and an ECN-capable transport.
        assert!(playground.nodes[0].succeeds(&format!("ping -c 1 -W 10 -s 700 -Q 0xb9 {}", Node::B.inner_v4())));
        let frames = capture.finish();
        let from_a = |frame: &&Vec<u8>| frame[12..14] == [8, 0] && frame[26..30] == [192, 0, 2, 1] && frame.len() > 700;
        let classes: Vec<u8> = frames.iter().filter(from_a).map(|frame| frame[15]).collect();
        assert!(!classes.is_empty() && classes.iter().all(|class| *class == shown), "{copy_dscp}: {classes:02x?}");
    }
}

#[test]
fn this_kernel_batches_everything() {
    let playground = Playground::new();
    let tunnel = Node::A.start(&playground, Node::A.config());
    let features = tunnel.features();
    assert!(features.vnet_header && features.checksum && features.tso, "{features:?}");
    assert!(features.udp_gso && features.udp_gro && features.ipv6, "{features:?}");
}

#[test]
fn a_spoofed_inner_source_is_dropped() {
    let playground = Playground::new();
    let [a, b] = connected(&playground, Node::outer_v4);
    // Node A sends from an address that no peer has in B's table, then from one of B's own.
    for spoofed in ["10.244.7.7", "10.244.1.9"] {
        let spoofed: std::net::IpAddr = spoofed.parse().unwrap();
        playground.nodes[0].ip(&format!("addr add {spoofed}/32 dev {DEVICE}"));
        let before = drops(&b, TunnelDrop::SourceNotAllowed);
        let (sender, receiver) = udp_sockets(&playground, spoofed, Node::B.inner_v4());
        sender.send(b"I am somebody else").unwrap();
        eventually(SOON, "the drop", || drops(&b, TunnelDrop::SourceNotAllowed) == before + 1);
        assert!(is_silent(&receiver, Duration::from_millis(200)));
    }
    assert_eq!(state(&a), PeerState::Established);
    let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
    sender.send(b"honest").unwrap();
    assert_eq!(receiver.recv(&mut [0; 64]).unwrap(), 6);
}

#[test]
fn a_wrong_key_fails_and_delivers_nothing() {
    let playground = Playground::new();
    let (states, changes) = channel();
    let on_state = move |_, state| states.send(state).unwrap();
    let a = Node::A.start(&playground, TunnelConfig { on_state: Some(Box::new(on_state)), ..Node::A.config() });
    let b = Node::B.start(&playground, Node::B.config());
    let imposter = Node { secret: 66, ..Node::B };
    a.apply(vec![PeerChange::Put(imposter.as_peer(Node::B.outer_v4()))]).unwrap();
    b.apply(vec![PeerChange::Put(Node::A.as_peer(Node::A.outer_v4()))]).unwrap();
    let capture = playground.capture();
    let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
    sender.send(SECRET).unwrap();

    assert!(matches!(changes.recv_timeout(SOON), Ok(PeerState::Handshaking { .. })));
    // WireGuard tries for 90 s before it gives up (paper, 6.4).
    assert!(matches!(changes.recv_timeout(Duration::from_secs(110)), Ok(PeerState::Failed { .. })));
    assert_eq!(drops(&a, TunnelDrop::HandshakeFailed), 1);
    assert!(drops(&b, TunnelDrop::NotForOurKey) >= 15);
    assert!(is_silent(&receiver, Duration::from_millis(200)));
    assert_sealed(&capture.finish(), SECRET);

    // The right key is installed after the failure: the next packet passes.
    a.apply(vec![PeerChange::Put(Node::B.as_peer(Node::B.outer_v4()))]).unwrap();
    sender.send(b"now").unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(receiver.recv(&mut [0; 64]).unwrap(), 3);
}

#[test]
fn peers_come_and_go_under_traffic() {
    let playground = Playground::new();
    let [a, b] = connected(&playground, Node::outer_v4);
    let bytes = pattern(SECRET, 48 << 20);
    let capture = playground.capture();
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp_transfer(&playground, Node::B.inner_v4(), bytes.clone()));
        let mut round = 0u32;
        while !transfer.is_finished() {
            round += 1;
            for tunnel in [&a, &b] {
                let mut other = Node::A.as_peer(SocketAddr::from(([192, 0, 2, 99], PORT)));
                other.id = PeerId(100 + round % 3);
                other.name = format!("other-{}", round % 3);
                other.keys[0].public = [(round % 3) as u8 + 100; 32];
                other.allowed = vec![format!("10.245.{}.0/24", round % 3).parse().unwrap()];
                let id = other.id;
                tunnel.apply(vec![PeerChange::Put(other)]).unwrap();
                let extra = vec![format!("10.246.{}.0/24", round % 200).parse().unwrap()];
                tunnel.apply(vec![PeerChange::Allowed { id, add: extra.clone(), remove: vec![] }]).unwrap();
                tunnel.apply(vec![PeerChange::Allowed { id, add: vec![], remove: extra }]).unwrap();
                if round.is_multiple_of(2) {
                    tunnel.apply(vec![PeerChange::Remove(id)]).unwrap();
                }
            }
            // Applying the same configuration again must not disturb anything either.
            a.apply(vec![PeerChange::Put(Node::B.as_peer(Node::B.outer_v4()))]).unwrap();
        }
        assert!(transfer.join().unwrap() == bytes, "the stream was damaged");
        assert!(round > 10, "only {round} changes during the transfer");
    });
    for tunnel in [&a, &b] {
        // Drops of the real peer only; the kernel's own multicast traffic has no peer.
        assert_eq!(tunnel.stats().unwrap().peers[0].drops.total(), 0);
    }
    assert_sealed(&capture.finish(), SECRET);

    // Once the real peer is removed, nothing crosses any more.
    let capture = playground.capture();
    a.apply(vec![PeerChange::Remove(Node::B.id())]).unwrap();
    let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
    sender.send(SECRET).unwrap();
    assert!(is_silent(&receiver, Duration::from_millis(300)));
    eventually(SOON, "the drop", || drops(&a, TunnelDrop::NoPeer) > 0);
    for frame in capture.finish() {
        assert_ne!(classify(&frame), Frame::Other);
    }
}

#[test]
fn under_load_the_sender_proves_its_address() {
    let playground = Playground::new();
    let a = Node::A.start(&playground, Node::A.config());
    // With a limit of zero, every handshake counts as load.
    let b = Node::B.start(&playground, TunnelConfig { handshake_limit_per_second: 0, ..Node::B.config() });
    a.apply(vec![PeerChange::Put(Node::B.as_peer(Node::B.outer_v4()))]).unwrap();
    b.apply(vec![PeerChange::Put(Node::A.as_peer(Node::A.outer_v4()))]).unwrap();
    let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
    sender.send(b"worth a cookie").unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(receiver.recv(&mut [0; 64]).unwrap(), 14);
    assert_eq!(drops(&b, TunnelDrop::UnderLoadCookie), 1);
}

#[test]
fn a_smaller_path_fragments_instead_of_swallowing() {
    let playground = Playground::new();
    let [a, _b] = connected(&playground, Node::outer_v4);
    for node in &playground.nodes {
        node.ip("link set uplink mtu 1300");
    }
    for port in ["port0", "port1"] {
        playground.wire.ip(&format!("link set {port} mtu 1300"));
    }
    let capture = playground.capture();
    let bytes = pattern(SECRET, 4 << 20);
    assert!(tcp_transfer(&playground, Node::B.inner_v4(), bytes.clone()) == bytes);
    assert_eq!(drops(&a, TunnelDrop::UdpSendFailed), 0);
    assert_sealed(&capture.finish(), SECRET);
}

#[test]
fn a_persistent_device_stays_closed_and_can_be_taken_up_again() {
    let playground = Playground::new();
    let [a, _b] = connected(&playground, Node::outer_v4);
    let index = a.index();
    let node = &playground.nodes[0];
    a.close();
    let capture = playground.capture();
    assert!(node.succeeds(&format!("ip link show {DEVICE}")), "the device is gone");
    assert!(!node.succeeds(&format!("ping -c 1 -W 1 {}", Node::B.inner_v4())));
    for frame in capture.finish() {
        assert_eq!(classify(&frame), Frame::Housekeeping, "something left without an agent");
    }

    let a = restart(&playground, Node::A);
    assert_eq!(a.index(), index);
    a.apply(vec![PeerChange::Put(Node::B.as_peer(Node::B.outer_v4()))]).unwrap();
    assert!(node.succeeds(&format!("ping -c 1 -W 10 {}", Node::B.inner_v4())));
    a.close();
    node.within(|| Device::remove(DEVICE).unwrap());
    assert!(!node.succeeds(&format!("ip link show {DEVICE}")));
    node.within(|| Device::remove(DEVICE).unwrap());
}

#[test]
fn an_open_device_without_a_tunnel_takes_no_packets_from_one() {
    let playground = Playground::new();
    let config = Node::A.config().device;
    // As the agent does: open first, attach programs, start later, and keep the first handle.
    let device = playground.nodes[0].within(move || Device::open(&config).unwrap());
    let [a, _b] = connected(&playground, Node::outer_v4);
    assert_eq!(device.index(), a.index());
    for port in 0..20 {
        let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
        sender.send(&[port]).unwrap();
        assert_eq!(receiver.recv(&mut [0; 64]).unwrap(), 1, "flow {port} went into the idle queue");
    }
}

#[test]
fn a_stream_survives_the_restart_of_either_end() {
    let playground = Playground::new();
    let [a, b] = connected(&playground, Node::outer_v4);
    let bytes = pattern(SECRET, 96 << 20);
    let capture = playground.capture();
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp_transfer(&playground, Node::B.inner_v4(), bytes.clone()));
        let ends =
            [(Node::A, Node::B.as_peer(Node::B.outer_v4()), a), (Node::B, Node::A.as_peer(Node::A.outer_v4()), b)];
        let restarted: Vec<_> = ends
            .into_iter()
            .map(|(node, peer, tunnel)| {
                eventually(SOON, "some traffic", || {
                    let stats = tunnel.stats().unwrap();
                    stats.peers[0].rx_packets + stats.peers[0].tx_packets > 1000
                });
                assert!(!transfer.is_finished(), "too fast to restart anything");
                tunnel.close();
                let tunnel = restart(&playground, node);
                tunnel.apply(vec![PeerChange::Put(peer)]).unwrap();
                tunnel
            })
            .collect();
        assert!(transfer.join().unwrap() == bytes, "the stream was damaged");
        drop(restarted);
    });
    assert_sealed(&capture.finish(), SECRET);
}

#[test]
fn a_device_that_is_down_for_a_while_carries_again() {
    let playground = Playground::new();
    let [a, _b] = connected(&playground, Node::outer_v4);
    let node = &playground.nodes[0];
    let ping = format!("ping -c 1 -W 10 {}", Node::B.inner_v4());
    assert!(node.succeeds(&ping));
    node.ip(&format!("link set {DEVICE} down"));
    a.inject(vec![0x45; 40]);
    eventually(SOON, "the drop", || drops(&a, TunnelDrop::TunWriteFailed) == 1);
    node.ip(&format!("link set {DEVICE} up"));
    node.ip(&format!("route add 10.244.0.0/16 dev {DEVICE} src {}", Node::A.inner_v4()));
    assert!(node.succeeds(&ping));
    assert_eq!(a.health(), Health::Running);
}

#[test]
fn a_removed_device_stops_the_engine_and_says_so() {
    let playground = Playground::new();
    let a = Node::A.start(&playground, Node::A.config());
    playground.nodes[0].ip(&format!("link del {DEVICE}"));
    eventually(SOON, "the engine's end", || a.health() != Health::Running);
    let error = a.stats().unwrap_err();
    assert!(matches!(error, Error::Engine(hauberk_engine::Error::Stopped { .. })));
    assert!(error.to_string().contains("was the device removed?"), "{error}");
}

#[test]
fn probes_are_seen_and_injected_packets_arrive() {
    let playground = Playground::new();
    let [a, _b] = connected(&playground, Node::outer_v4);
    let node = &playground.nodes[0];
    let probe = SocketAddr::from((hauberk_engine::SELF_TEST_DESTINATION, 9));
    node.ip(&format!("route add {}/128 dev {DEVICE}", probe.ip()));
    let capture = playground.capture();
    node.within(move || {
        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        socket.send_to(b"probe", probe).unwrap();
    });
    eventually(SOON, "the probe", || a.probes_seen() == 1);
    for frame in capture.finish() {
        assert_eq!(classify(&frame), Frame::Housekeeping, "a probe left the node");
    }

    // A UDP packet from B's inner address, as if B had sent it, without a checksum.
    let receiver = node.within(|| std::net::UdpSocket::bind((Node::A.inner_v4(), 0)).unwrap());
    let port = receiver.local_addr().unwrap().port();
    let mut packet = vec![0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 1, 1, 10, 244, 0, 1];
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&9u16.to_be_bytes());
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&[0, 13, 0, 0]);
    packet.extend_from_slice(b"hello");
    receiver.set_read_timeout(Some(SOON)).unwrap();
    a.inject(packet);
    let mut buffer = [0; 64];
    let (length, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"hello"[..], Node::B.inner_v4()));
}

#[test]
fn packets_larger_than_the_mtu_are_counted() {
    let playground = Playground::new();
    let [a, _b] = connected(&playground, Node::outer_v4);
    // The kernel obeys the device's MTU; larger packets come only if another program changes it.
    playground.nodes[0].ip(&format!("link set {DEVICE} mtu 1500"));
    let (sender, receiver) = udp_sockets(&playground, Node::A.inner_v4(), Node::B.inner_v4());
    sender.send(&[0; 1472]).unwrap();
    eventually(SOON, "the drop", || drops(&a, TunnelDrop::Oversized) == 1);
    sender.send(b"fits").unwrap();
    assert_eq!(receiver.recv(&mut [0; 2048]).unwrap(), 4);
}

#[test]
fn a_taken_port_is_named() {
    let playground = Playground::new();
    let _a = Node::A.start(&playground, Node::A.config());
    let mut config = Node::A.config();
    config.device.name = "other0".to_owned();
    let error = playground.nodes[0].within(move || Tunnel::start(config).err().unwrap());
    assert!(error.to_string().contains("another WireGuard or another agent listens on this port"), "{error}");
}
