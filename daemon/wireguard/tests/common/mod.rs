//! Two nodes and a wire, as network namespaces. Needs root.
//!
//! ```text
//!  node 0 (hauberk0, uplink) ── wire namespace (bridge) ── (uplink, hauberk0) node 1
//! ```
//! The wire is a separate namespace, so that a capture in it sees everything that leaves a node and
//! nothing else.

mod bad_wire;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hauberk_wireguard::{
    CipherImplementation, DeviceConfig, LocalKey, PeerChange, PeerConfig, PeerId, PeerKey, PeerState, Tunnel,
    TunnelConfig,
};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use x25519_dalek::{PublicKey, StaticSecret};

pub use bad_wire::BadWire;

pub const PORT: u16 = 51840;
pub const DEVICE: &str = "hauberk0";

/// A network namespace, deleted when dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    fn new(role: &str) -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hbt-{}-{number}-{role}", std::process::id());
        run(&format!("ip netns add {name}"));
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.name));
    }

    /// Runs a command inside; true if it succeeded.
    pub fn succeeds(&self, command: &str) -> bool {
        let line = format!("ip netns exec {} {command}", self.name);
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        output.status.success()
    }

    /// Runs a closure on a thread inside.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name);
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Runs a closure inside and waits for it.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors} (these tests need root and iproute2)");
}

/// Two nodes on one wire.
pub struct Playground {
    pub nodes: [Namespace; 2],
    pub wire: Namespace,
}

impl Playground {
    pub fn new() -> Playground {
        let wire = Namespace::new("w");
        let nodes = [Namespace::new("a"), Namespace::new("b")];
        wire.ip("link add bridge0 type bridge");
        wire.ip("link set bridge0 up");
        for (index, node) in nodes.iter().enumerate() {
            run(&format!("ip -n {} link add uplink type veth peer name port{index} netns {}", node.name, wire.name));
            wire.ip(&format!("link set port{index} master bridge0 up"));
            node.ip(&format!("addr add 192.0.2.{}/24 dev uplink", index + 1));
            node.ip(&format!("addr add 2001:db8::{}/64 dev uplink nodad", index + 1));
            node.ip("link set uplink up");
        }
        Playground { nodes, wire }
    }

    /// Captures everything that crosses the wire until dropped or finished.
    pub fn capture(&self) -> Capture {
        let socket = self.wire.within(|| {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                .expect("a packet socket");
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 100_000)).unwrap();
            socket
        });
        Capture::start(socket)
    }
}

/// Frames seen on the wire.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<u8>>>>,
}

impl Capture {
    fn start(socket: OwnedFd) -> Capture {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut frames = Vec::new();
                let mut buffer = vec![0; 1 << 17];
                loop {
                    match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                        Ok(length) => frames.push(buffer[..length].to_vec()),
                        Err(_) if stop.load(Ordering::Relaxed) => return frames,
                        Err(_) => {}
                    }
                }
            }
        });
        Capture { stop, thread: Some(thread) }
    }

    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The kind of a frame, as far as these tests need it.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Encrypted, or a tunnel packet that will be refused.
    Tunnel,
    /// ARP, neighbour discovery, multicast group reports.
    Housekeeping,
    /// Anything else.
    Other,
}

pub fn classify(frame: &[u8]) -> Frame {
    let is_tunnel = |udp: &[u8]| udp[2..4] == PORT.to_be_bytes();
    match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0806 => Frame::Housekeeping,
        0x0800 => {
            // IGMP, from the bridge.
            if frame[23] == 2 {
                return Frame::Housekeeping;
            }
            // The ICMP answer of a closed port, which quotes the beginning of the encrypted packet.
            if frame[23] == 1 && frame[34] == 3 && frame[51] == 17 && is_tunnel(&frame[62..]) {
                return Frame::Tunnel;
            }
            let fragment_offset = u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff;
            if frame[23] == 17 && (fragment_offset > 0 || is_tunnel(&frame[34..])) {
                Frame::Tunnel
            } else {
                Frame::Other
            }
        }
        0x86dd => match frame[20] {
            17 if is_tunnel(&frame[54..]) => Frame::Tunnel,
            44 if frame[54] == 17 => Frame::Tunnel,
            0 => Frame::Housekeeping,
            58 if (130..=143).contains(&frame[54]) => Frame::Housekeeping,
            _ => Frame::Other,
        },
        // Spanning tree and the like.
        _ => Frame::Housekeeping,
    }
}

/// Asserts that only encrypted packets crossed, and at least one did.
pub fn assert_sealed(frames: &[Vec<u8>], never: &[u8]) {
    let tunnel = frames.iter().filter(|frame| classify(frame) == Frame::Tunnel).count();
    assert!(tunnel > 0, "nothing crossed the wire");
    for frame in frames {
        assert_ne!(classify(frame), Frame::Other, "in the clear: {:02x?}", &frame[..frame.len().min(80)]);
        assert!(!frame.windows(never.len()).any(|window| window == never), "plaintext inside a frame");
    }
}

/// One of the two ends.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    pub index: usize,
    pub secret: u8,
}

impl Node {
    pub const A: Node = Node { index: 0, secret: 1 };
    pub const B: Node = Node { index: 1, secret: 2 };

    pub fn id(self) -> PeerId {
        PeerId(self.index as u32)
    }

    pub fn outer_v4(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(192, 0, 2, self.index as u8 + 1), PORT))
    }

    pub fn outer_v6(self) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.index as u16 + 1), PORT))
    }

    pub fn inner_v4(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 244, self.index as u8, 1))
    }

    pub fn inner_v6(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, self.index as u16, 0, 0, 0, 0, 1))
    }

    pub fn public(self) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from([self.secret; 32])).to_bytes()
    }

    /// The node as the other node's peer.
    pub fn as_peer(self, endpoint: SocketAddr) -> PeerConfig {
        PeerConfig {
            id: self.id(),
            name: format!("node-{}", self.index),
            keys: vec![PeerKey { epoch: 1, public: self.public() }],
            endpoint: Some(endpoint),
            fallbacks: Vec::new(),
            allowed: vec![
                format!("10.244.{}.0/24", self.index).parse().unwrap(),
                format!("fd00:244:{}::/64", self.index).parse().unwrap(),
            ],
        }
    }

    pub fn config(self) -> TunnelConfig {
        TunnelConfig {
            device: DeviceConfig { name: DEVICE.to_owned(), mtu: 1420, persist: true },
            threads: 2,
            listen_port: PORT,
            keys: vec![LocalKey { epoch: 1, secret: StaticSecret::from([self.secret; 32]) }],
            fwmark: None,
            handshake_limit_per_second: 100,
            spin: Duration::from_micros(100),
            copy_dscp: false,
            cipher: CipherImplementation::best(),
            on_state: None,
        }
    }

    /// Starts a tunnel in the node's namespace and gives the device the node's inner addresses.
    pub fn start(self, playground: &Playground, config: TunnelConfig) -> Tunnel {
        let namespace = &playground.nodes[self.index];
        let tunnel = namespace.within(move || Tunnel::start(config).unwrap());
        namespace.ip(&format!("addr add {}/32 dev {DEVICE}", self.inner_v4()));
        namespace.ip(&format!("addr add {}/128 dev {DEVICE} nodad", self.inner_v6()));
        namespace.ip(&format!("route add 10.244.0.0/16 dev {DEVICE} src {}", self.inner_v4()));
        namespace.ip(&format!("route add fd00:244::/32 dev {DEVICE} src {}", self.inner_v6()));
        tunnel
    }
}

/// Starts a node's tunnel again, on the device that was left behind.
pub fn restart(playground: &Playground, node: Node) -> Tunnel {
    let mut tunnel = None;
    // A child process of another test, forked but not yet executing its program, may still hold a
    // copy of the socket.
    eventually(Duration::from_secs(20), "the port", || {
        tunnel = playground.nodes[node.index].within(move || Tunnel::start(node.config()).ok());
        tunnel.is_some()
    });
    tunnel.unwrap()
}

/// Both ends, knowing each other.
pub fn connected(playground: &Playground, outer: impl Fn(Node) -> SocketAddr) -> [Tunnel; 2] {
    let a = Node::A.start(playground, Node::A.config());
    let b = Node::B.start(playground, Node::B.config());
    a.apply(vec![PeerChange::Put(Node::B.as_peer(outer(Node::B)))]).unwrap();
    b.apply(vec![PeerChange::Put(Node::A.as_peer(outer(Node::A)))]).unwrap();
    [a, b]
}

/// The state of the only peer.
pub fn state(tunnel: &Tunnel) -> PeerState {
    tunnel.stats().unwrap().peers[0].state
}

/// Waits until the condition holds; otherwise the message says what did not happen.
pub fn eventually(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes without repetition, in which `marker` occurs regularly.
pub fn pattern(marker: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 64);
    let mut block = 0u32;
    while bytes.len() < length {
        bytes.extend_from_slice(marker);
        bytes.extend_from_slice(&block.to_be_bytes());
        bytes.extend((0..200).map(|n| (n as u32 ^ block) as u8));
        block += 1;
    }
    bytes.truncate(length);
    bytes
}

/// Sends the bytes from node 0 to node 1 over TCP and returns what arrived.
pub fn tcp_transfer(playground: &Playground, to: IpAddr, bytes: Vec<u8>) -> Vec<u8> {
    let listener = playground.nodes[1].within(move || TcpListener::bind((to, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    let mut stream =
        playground.nodes[0].within(move || TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap());
    stream.write_all(&bytes).unwrap();
    drop(stream);
    receiver.join().unwrap()
}

/// UDP sockets at both ends, bound to the inner addresses.
pub fn udp_sockets(playground: &Playground, from: IpAddr, to: IpAddr) -> (UdpSocket, UdpSocket) {
    let receiver = playground.nodes[1].within(move || UdpSocket::bind((to, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = receiver.local_addr().unwrap();
    let sender = playground.nodes[0].within(move || {
        let sender = UdpSocket::bind((from, 0)).unwrap();
        sender.connect(address).unwrap();
        sender
    });
    (sender, receiver)
}

/// Whether the next read times out.
pub fn is_silent(receiver: &UdpSocket, within: Duration) -> bool {
    receiver.set_read_timeout(Some(within)).unwrap();
    let mut buffer = [0; 2048];
    let error = receiver.recv(&mut buffer).err().map(|error| error.kind());
    matches!(error, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}
