//! Answers for the tests, and the comparison with the golden files of their expected text.

use hauberk_api::{
    AddressFamily, AttachMethod, BackendCondition, DropCount, DropPlace, Drops, Encryption, Event, Explanation,
    FlowRecord, FlowStage, FromOutside, FrontendKind, Hook, HostRouting, KeyStatus, LeakCount, LinkStatus, MapContent,
    Maps, NamespaceStatus, Party, PartyKind, PeerState, PeerStatus, Problem, Protection, Service, ServiceBackend,
    ServiceFrontend, ServiceKind, ServiceMode, ServicesStatus, Severity, SourceKind, SourceStatus, Status,
    TrafficPolicy, TunnelStatus, Why, Word,
};
use jiff::Timestamp;

/// Compares text without its colours to `tests/golden/NAME.txt`. `UPDATE_GOLDEN=1` writes the file.
#[track_caller]
pub(crate) fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = anstream::adapter::strip_str(text).to_string();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{path} differs (UPDATE_GOLDEN=1 writes it):\n{text}");
}

pub(crate) fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn key(epoch: u32, public_key: &str) -> KeyStatus {
    KeyStatus { epoch, public_key: public_key.to_string() }
}

fn problem(severity: Severity, object: &str, message: &str) -> Problem {
    Problem { severity, object: object.to_string(), message: message.to_string() }
}

pub(crate) fn status() -> Status {
    let ranges = |node: u8| (0..6).map(move |n| format!("10.244.{}.0/24", node * 10 + n).parse().unwrap());
    Status {
        node: "n1".to_string(),
        version: "0.1.0".to_string(),
        started: at("2026-11-22T07:56:59Z"),
        now: now(),
        ready: true,
        problems: vec![
            problem(
                Severity::Critical,
                "node/n3",
                "its key equals that of node/n2: one of them was cloned; delete the key of one and restart its agent",
            ),
            problem(Severity::Warning, "map/ENDPOINTS", "91 % full: raise limits.endpoints"),
        ],
        tunnel: TunnelStatus {
            backend: "userspace".to_string(),
            backend_reason: "auto: the kernel has no WireGuard".to_string(),
            device: "hauberk0".to_string(),
            port: 51840,
            mtu: 1420,
            keys: vec![key(2, "bmV3ZXN0LWtleS1vZi1uMQ=="), key(1, "b2xkZXIta2V5LW9mLW4x")],
            offloads: vec!["TSO".to_string(), "USO".to_string(), "UDP GRO refused by the kernel".to_string()],
            cipher: "ChaCha20-Poly1305 (ring)".to_string(),
            threads: 4,
            handed_over: 12,
        },
        host_routing: HostRouting::Bpf.into(),
        attach: AttachMethod::Tcx.into(),
        uplinks: vec!["eth0".to_string(), "eth1".to_string()],
        peers: vec![
            PeerStatus {
                node: "n2".to_string(),
                state: PeerState::Established,
                keys: vec![key(1, "a2V5LW9mLW4y")],
                endpoint: Some("10.0.0.2:51840".parse().unwrap()),
                allowed_ips: ranges(2).collect(),
                latest_handshake: Some(at("2026-11-22T09:57:57Z")),
                received_bytes: 1536,
                sent_bytes: 5 << 20,
                thread: Some(3),
            },
            PeerStatus {
                node: "n3".to_string(),
                state: PeerState::Idle,
                keys: vec![key(1, "a2V5LW9mLW4z")],
                endpoint: Some("[fd00::3]:51840".parse().unwrap()),
                allowed_ips: vec!["10.244.3.0/24".parse().unwrap()],
                latest_handshake: None,
                received_bytes: 0,
                sent_bytes: 0,
                thread: None,
            },
        ],
        namespaces: vec![
            NamespaceStatus {
                name: "legacy".to_string(),
                protection: Protection::None,
                pods: 1,
                protected_pods: 1,
                converged_nodes: 3,
                nodes: 3,
                waiting_for: Vec::new(),
                since: Some(at("2026-11-20T08:30:00Z")),
                host_network: Vec::new(),
            },
            NamespaceStatus {
                name: "payments".to_string(),
                protection: Protection::Enabled,
                pods: 12,
                protected_pods: 12,
                converged_nodes: 2,
                nodes: 3,
                waiting_for: vec!["n3".to_string()],
                since: None,
                host_network: vec!["proxy-x7k2p".to_string()],
            },
        ],
        attachments: 4,
        source: SourceStatus {
            kind: SourceKind::Directory.into(),
            location: "/etc/hauberk/manifests".to_string(),
            synced: true,
            unavailable_since: None,
            unavailable_because: None,
            rejected: 1,
        },
        configuration: None,
        services: Some(services_status()),
    }
}

pub(crate) fn services_status() -> ServicesStatus {
    ServicesStatus {
        mode: ServiceMode::Sockets.into(),
        services: 2,
        frontends: 5,
        backends: 7,
        balanced: 12,
        refused: 1,
        failed: 0,
        connections: None,
    }
}

pub(crate) fn services() -> Vec<Service> {
    let frontend = |address: Option<&str>, port, kind: FrontendKind, usable| ServiceFrontend {
        address: address.map(|address| address.parse().unwrap()),
        family: AddressFamily::V4.into(),
        port,
        protocol: "tcp".to_string(),
        kind: kind.into(),
        port_name: "http".to_string(),
        affinity_seconds: 0,
        usable,
        left_out: None,
        outside: None,
    };
    let backend = |address: &str, node: Option<&str>, condition: BackendCondition, encryption, why| ServiceBackend {
        address: address.parse().unwrap(),
        port: 8080,
        port_name: "http".to_string(),
        node: node.map(str::to_string),
        condition: condition.into(),
        used: condition == BackendCondition::Ready,
        outside: None,
        encryption: Some(Word::Known(encryption)),
        why: Some(Word::Known(why)),
    };
    let service = |name: &str, kind: ServiceKind, frontends, backends| Service {
        namespace: "payments".to_string(),
        name: name.to_string(),
        kind: kind.into(),
        frontends,
        backends,
        connections: None,
    };
    let source_ranges = "spec.loadBalancerSourceRanges admits only some clients: left to kube-proxy";
    vec![
        service(
            "api",
            ServiceKind::LoadBalancer,
            vec![
                frontend(Some("10.96.0.10"), 80, FrontendKind::ClusterAddress, 2),
                frontend(None, 30080, FrontendKind::NodePort, 2),
                ServiceFrontend {
                    family: AddressFamily::V6.into(),
                    ..frontend(None, 30080, FrontendKind::NodePort, 2)
                },
                ServiceFrontend {
                    left_out: Some(source_ranges.to_string()),
                    ..frontend(Some("203.0.113.7"), 80, FrontendKind::LoadBalancer, 0)
                },
            ],
            vec![
                backend("10.244.1.5", Some("n1"), BackendCondition::Ready, Encryption::Local, Why::SameNode),
                backend(
                    "10.244.2.7",
                    Some("n2"),
                    BackendCondition::Ready,
                    Encryption::Encrypted,
                    Why::DestinationOptedIn,
                ),
                backend("fd00:10:244:2::7", None, BackendCondition::NotReady, Encryption::Plain, Why::NotOptedIn),
            ],
        ),
        service(
            "cache",
            ServiceKind::ClusterIp,
            vec![ServiceFrontend {
                affinity_seconds: 10_800,
                port_name: String::new(),
                ..frontend(Some("fd00:10:96::b"), 6379, FrontendKind::ClusterAddress, 0)
            }],
            vec![ServiceBackend {
                port_name: String::new(),
                encryption: None,
                why: None,
                ..backend("10.244.2.8", Some("n2"), BackendCondition::Terminating, Encryption::Plain, Why::NotOptedIn)
            }],
        ),
        service("headless", ServiceKind::ClusterIp, Vec::new(), Vec::new()),
    ]
}

/// A service that clients outside the cluster reach.
pub(crate) fn service_from_outside() -> Service {
    let [mut service, ..]: [Service; 3] = services().try_into().unwrap();
    let from_outside = |usable, source_ranges: Option<&[&str]>| {
        let ranges = source_ranges.map(|ranges| ranges.iter().map(|range| range.parse().unwrap()).collect());
        Some(FromOutside { policy: TrafficPolicy::Local.into(), usable, source_ranges: ranges })
    };
    service.connections = Some(12);
    service.frontends[1].outside = from_outside(1, None);
    service.frontends[2].outside = from_outside(0, None);
    service.frontends[3].left_out = None;
    service.frontends[3].usable = 2;
    service.frontends[3].outside = from_outside(1, Some(&["192.0.2.0/24", "198.51.100.0/24"]));
    let policy = TrafficPolicy::Cluster.into();
    let nobody = FromOutside { policy, usable: 2, source_ranges: Some(Vec::new()) };
    service.frontends.push(ServiceFrontend { outside: Some(nobody), ..service.frontends[3].clone() });
    for (backend, outside) in service.backends.iter_mut().zip([true, false, false]) {
        backend.outside = Some(outside);
    }
    service
}

pub(crate) fn explanation() -> Explanation {
    let party = |name: &str, address: &str, node: &str| Party {
        asked: name.to_string(),
        address: address.parse().unwrap(),
        kind: PartyKind::Pod.into(),
        name: Some(name.to_string()),
        node: Some(node.to_string()),
        protection: Protection::Enabled,
        rule: "label hauberk.io/encryption=enabled of namespace payments".to_string(),
        unmet: None,
    };
    Explanation {
        source: party("payments/api", "10.244.1.5", "n1"),
        destination: party("payments/db", "10.244.2.7", "n2"),
        encryption: Encryption::Encrypted.into(),
        why: Why::SourceOptedIn.into(),
        drop: None,
        sentence: "packets go through the tunnel to n2, because payments/api is opted in".to_string(),
        peer: Some("n2".to_string()),
        peer_key: Some(key(1, "a2V5LW9mLW4y")),
        cipher: Some("WireGuard, ChaCha20-Poly1305".to_string()),
        would_drop: vec!["n2 withdraws its key".to_string(), "no handshake with n2 succeeds".to_string()],
        last_proven: Some(at("2026-11-22T09:59:57Z")),
    }
}

pub(crate) fn flow() -> FlowRecord {
    FlowRecord {
        time: at("2026-11-22T09:59:57.25Z"),
        event: FlowStage::Start.into(),
        node: "n1".to_string(),
        hook: Hook::FromPod,
        source: "10.244.1.5".parse().unwrap(),
        source_port: 40000,
        source_name: Some("payments/api".to_string()),
        destination: "10.244.2.7".parse().unwrap(),
        destination_port: 5432,
        destination_name: Some("payments/db".to_string()),
        protocol: "tcp".to_string(),
        encryption: Encryption::Encrypted.into(),
        why: Why::SourceOptedIn.into(),
        drop: None,
        peer: Some("n2".to_string()),
        epoch: Some(1),
        packets: 3,
        bytes: 1536,
        lost_events: 0,
    }
}

pub(crate) fn drops() -> Drops {
    let count = |reason: &str, place: DropPlace, packets, advice: &str| DropCount {
        reason: reason.to_string(),
        place: place.into(),
        packets,
        advice: advice.to_string(),
        expected: false,
    };
    let multicast = count("multicast", DropPlace::Datapath, 7, "cannot be encrypted to one peer");
    Drops {
        leaked: vec![LeakCount { device: "eth1".to_string(), packets: 2 }],
        reasons: vec![
            count(
                "no_peer",
                DropPlace::Datapath,
                12,
                "the other node has published no usable key: is its agent running?",
            ),
            count(
                "handshake_rate",
                DropPlace::Tunnel,
                0,
                "peers start more handshakes than tunnel.handshakesPerSecond allows",
            ),
            DropCount { expected: true, ..multicast },
        ],
    }
}

pub(crate) fn events() -> Vec<Event> {
    vec![Event {
        time: at("2026-11-22T09:00:00Z"),
        warning: true,
        reason: "KeyRefused".to_string(),
        objects: vec!["node/n2".to_string(), "node/n3".to_string()],
        message: "both publish the same key: one was cloned; delete the key of one and restart its agent".to_string(),
        count: 3,
    }]
}

pub(crate) fn maps() -> Maps {
    let row = |n: usize| (format!("10.244.1.{n}"), "pod, enabled, on node 1".to_string());
    Maps {
        pin_directory: "/sys/fs/bpf/hauberk".to_string(),
        settings: [("node".to_string(), "1 (n1)".to_string())].into(),
        maps: vec![
            MapContent {
                name: "ENDPOINTS".to_string(),
                purpose: "who has an address".to_string(),
                entries: 24,
                capacity: 65536,
                rows: (1..=24).map(row).collect(),
                makes_room: false,
            },
            MapContent {
                name: "RANGES".to_string(),
                purpose: "who has the rest of a range".to_string(),
                entries: 95,
                capacity: 100,
                rows: vec![("10.244.0.0/16".to_string(), "unknown pod".to_string())],
                makes_room: false,
            },
            MapContent {
                name: "SOCKETS".to_string(),
                purpose: "sockets that were led to a backend".to_string(),
                entries: 100,
                capacity: 100,
                rows: vec![(
                    "socket 7, protocol 6, with 10.244.1.5:8080".to_string(),
                    "is told 10.96.0.10:80".to_string(),
                )],
                makes_room: true,
            },
        ],
        links: vec![LinkStatus { interface: "eth0".to_string(), hook: Hook::ToWire, how: AttachMethod::Tcx.into() }],
    }
}
