//! Services: their tables after any history, and the socket programs on real sockets of the
//! loopback device.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;

use hauberk_abi::packet::protocol;
use hauberk_abi::service::{Backend, Frontend, FrontendKey, frontend_flag, socket_counter};
use nix::mount::{MsFlags, mount};

use super::*;

fn backend(text: &str) -> Backend {
    let at: SocketAddr = text.parse().unwrap();
    Backend { address: at.ip().into(), port: at.port(), reserved: 0 }
}

fn key(at: SocketAddr, protocol: u8) -> FrontendKey {
    FrontendKey { address: at.ip().into(), port: at.port(), protocol, reserved: 0 }
}

fn loaded() -> (Datapath, tempfile::TempDir) {
    let folder = pins();
    let mut datapath = Datapath::load(&folder.path().join("hauberk"), &Limits::default(), AttachMode::Auto).unwrap();
    datapath.configure(&Settings { node: HERE, tunnel_port: 51_840, ..Settings::default() }).unwrap();
    (datapath, folder)
}

/// Numbers that look random and are the same in each run (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn after_any_history_the_tables_hold_the_sets_and_nothing_else() {
    let (mut datapath, _pins) = loaded();
    let maps = datapath.maps_mut();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut sets: BTreeMap<u64, Vec<Backend>> = BTreeMap::new();
    for _ in 0..600 {
        let number = numbers.below(4);
        if numbers.below(8) == 0 {
            maps.remove_set(number).unwrap();
            sets.remove(&number);
        } else {
            let count = numbers.below(9);
            let wanted: BTreeSet<Backend> =
                (0..count).map(|_| backend(&format!("10.0.0.{}:80", numbers.below(12)))).collect();
            let wanted: Vec<Backend> = wanted.into_iter().collect();
            maps.put_set(number, &wanted).unwrap();
            sets.insert(number, wanted);
        }
        assert_eq!(maps.sets().unwrap().into_iter().collect::<BTreeMap<_, _>>(), sets);
        let members: BTreeSet<_> = maps.members().unwrap().into_iter().map(|key| (key.set, key.backend)).collect();
        let expected: BTreeSet<_> =
            sets.iter().flat_map(|(number, backends)| backends.iter().map(|backend| (*number, *backend))).collect();
        assert_eq!(members, expected);
    }
    maps.tidy_services().unwrap();
    assert_eq!(maps.sets().unwrap().into_iter().collect::<BTreeMap<_, _>>(), sets);
}

/// An agent may end between any two writes; the next one finds all that is in the tables.
#[test]
fn what_an_agent_did_not_finish_is_tidied_up() {
    let (mut datapath, _pins) = loaded();
    let maps = datapath.maps_mut();
    let [a, b, c] = ["10.0.0.1:80", "10.0.0.2:80", "[fd00::3]:80"].map(backend);
    maps.put_set(1, &[a, b]).unwrap();
    maps.leave_half_written(1, 7, c);
    maps.tidy_services().unwrap();
    assert_eq!(maps.sets().unwrap(), [(1, vec![a, b])]);
    assert_eq!(maps.members().unwrap().len(), 2);
    maps.leave_half_written(9, 0, c);
    assert_eq!(maps.sets().unwrap(), [(1, vec![a, b]), (9, vec![c])], "a set without a count is told, to be removed");
    maps.remove_set(9).unwrap();
    maps.tidy_services().unwrap();
    assert_eq!(maps.sets().unwrap(), [(1, vec![a, b])]);
}

#[test]
fn only_tables_that_can_be_forgotten_are_made_anew_when_their_size_changes() {
    let (mut datapath, folder) = loaded();
    let own = [backend("10.0.0.1:80")];
    datapath.maps_mut().put_set(1, &own).unwrap();
    let limits = Limits { sockets: 1_024, backends: 7, ..Limits::default() };
    let next = Datapath::load(&folder.path().join("hauberk"), &limits, AttachMode::Auto).unwrap();
    assert_eq!(next.maps().capacity(&tables::services::SOCKETS), Some(1_024));
    assert_eq!(next.maps().capacity(&tables::services::BACKENDS), Some(Limits::default().backends));
    assert_eq!(next.maps().sets().unwrap(), [(1, own.to_vec())]);
    assert!(next.resized().iter().all(|sentence| !sentence.contains("SOCKETS")), "{:?}", next.resized());
}

#[test]
fn where_the_tables_are_full_backends_can_still_be_replaced() {
    let folder = pins();
    let limits = Limits { backends: 3, ..Limits::default() };
    let mut datapath = Datapath::load(&folder.path().join("hauberk"), &limits, AttachMode::Auto).unwrap();
    let maps = datapath.maps_mut();
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|last| backend(&format!("10.0.0.{last}:80")));
    maps.put_set(1, &[a, b, c]).unwrap();
    maps.put_set(1, &[a, d, e]).unwrap();
    assert_eq!(maps.sets().unwrap(), [(1, vec![a, d, e])]);
    // Of what does not fit, at least those that are gone are led to no more.
    assert!(maps.put_set(1, &[b, c, d, e]).is_err());
    let held = &maps.sets().unwrap()[0].1;
    assert!(!held.contains(&a) && held.len() == 3, "{held:?}");
    maps.put_set(1, &[b, c]).unwrap();
    assert_eq!(maps.sets().unwrap(), [(1, vec![b, c])]);
}

#[test]
#[ignore = "prints figures"]
fn how_long_it_takes_to_write_many_services() {
    for (services, endpoints) in [(5_000_u32, 50_u32), (44_000, 2)] {
        let folder = pins();
        let limits = Limits { backends: services * endpoints, ..Limits::default() };
        let mut datapath = Datapath::load(&folder.path().join("hauberk"), &limits, AttachMode::Auto).unwrap();
        let maps = datapath.maps_mut();
        let of = |service: u32, turn: u32| -> Vec<Backend> {
            let last = |place: u32| if place == 0 { turn << 20 } else { place };
            (0..endpoints)
                .map(|place| Backend {
                    address: Address::v4_word((0x0a00_0000 | service << 8 | last(place)).to_be()),
                    port: 8080,
                    reserved: 0,
                })
                .collect()
        };
        let key = |service: u32| FrontendKey {
            address: Address::v4_word((0xac10_0000 + service).to_be()),
            port: 80,
            protocol: protocol::TCP,
            reserved: 0,
        };
        let start = std::time::Instant::now();
        for service in 0..services {
            maps.put_set(service.into(), &of(service, 0)).unwrap();
            maps.put_frontend(key(service), Frontend { set: service.into(), ..Frontend::default() }).unwrap();
        }
        println!("{services} services with {endpoints} endpoints each, from nothing: {:.2?}", start.elapsed());
        let start = std::time::Instant::now();
        for service in 0..1_000 {
            maps.put_set(service.into(), &of(service, 1)).unwrap();
        }
        println!("a change of one endpoint: {:.1?}", start.elapsed() / 1_000);
        let start = std::time::Instant::now();
        maps.tidy_services().unwrap();
        let held = (maps.sets().unwrap().len(), maps.frontends().unwrap().len());
        println!("read back by the next agent: {:.2?}", start.elapsed());
        assert_eq!(held, (services as usize, services as usize));
    }
}

/// A cgroup with this thread alone in it.
struct Cgroup {
    mount: PathBuf,
    root: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    fn enter(folder: &Path) -> Cgroup {
        let mount_point = folder.with_extension("cgroup");
        fs::create_dir_all(&mount_point).unwrap();
        mount(Some("cgroup2"), &mount_point, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        let thread = nix::unistd::gettid();
        let root = mount_point.join(format!("hauberk-datapath-{thread}"));
        let own = root.join("own");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("cgroup.procs"), "0").unwrap();
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("cgroup.type"), "threaded").unwrap();
        fs::write(own.join("cgroup.threads"), "0").unwrap();
        Cgroup { mount: mount_point, root, own }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.mount.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.own);
        let _ = fs::remove_dir(&self.root);
        let _ = nix::mount::umount(&self.mount);
        let _ = fs::remove_dir(&self.mount);
    }
}

fn refused<T>(outcome: io::Result<T>) -> bool {
    outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// One test, because the cgroup of a process holds one of its threads at a time.
#[test]
fn sockets_are_led_to_a_backend_and_told_the_services_address() {
    let (mut datapath, folder) = loaded();
    let cgroup = Cgroup::enter(folder.path());
    datapath.attach_sockets(&cgroup.own).unwrap();
    assert!(datapath.has_sockets());
    for (family, local, service) in [("v4", "127.0.0.1:0", "192.0.2.7:80"), ("v6", "[::1]:0", "[2001:db8::7]:80")] {
        let service: SocketAddr = service.parse().unwrap();
        let listener = TcpListener::bind(local).unwrap();
        let answering = UdpSocket::bind(listener.local_addr().unwrap()).unwrap();
        let own = listener.local_addr().unwrap();
        let target = Backend { address: own.ip().into(), port: own.port(), reserved: 0 };
        let maps = datapath.maps_mut();
        for (set, protocol) in [(1, protocol::TCP), (2, protocol::UDP)] {
            maps.put_set(set, &[target]).unwrap();
            maps.put_frontend(key(service, protocol), Frontend { set, ..Frontend::default() }).unwrap();
        }
        let stream = TcpStream::connect(service).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), service, "{family}");
        let socket = UdpSocket::bind(local).unwrap();
        socket.send_to(b"?", service).unwrap();
        let (_, client) = answering.recv_from(&mut [0; 8]).unwrap();
        answering.send_to(b"!", client).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).unwrap().1, service, "{family}");

        // A process that names the backend itself is told the backend's address.
        socket.send_to(b"?", own).unwrap();
        let (_, client) = answering.recv_from(&mut [0; 8]).unwrap();
        answering.send_to(b"!", client).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).unwrap().1, own, "{family}");

        // The set of another protocol and of another port is another one.
        assert!(!refused(UdpSocket::bind(local).unwrap().connect(own)), "{family}");
        datapath.maps_mut().put_set(1, &[]).unwrap();
        assert!(refused(TcpStream::connect(service)), "{family}");
        assert!(UdpSocket::bind(local).unwrap().send_to(b"?", service).is_ok(), "{family}");
        datapath.maps_mut().put_set(2, &[]).unwrap();
        assert!(refused(UdpSocket::bind(local).unwrap().send_to(b"?", service)), "{family}");
    }
    let counters = datapath.maps().socket_counters().unwrap();
    assert_eq!(counters[socket_counter::REFUSED as usize], 4);
    assert_eq!(counters[socket_counter::FAILED as usize], 0);

    node_ports(&mut datapath);
    let probe = SocketAddr::from((probe::SOCKET, 9));
    assert!(refused(UdpSocket::bind("[::]:0").unwrap().connect(probe)));
    // The next agent's programs take over; then none is left.
    datapath.attach_sockets(&cgroup.own).unwrap();
    assert!(refused(UdpSocket::bind("[::]:0").unwrap().connect(probe)));
    datapath.detach_sockets().unwrap();
    assert!(!datapath.has_sockets());
    // The kernel releases a link whose pin is gone in the background.
    let left_alone = || !refused(UdpSocket::bind("[::]:0").unwrap().connect(probe));
    assert!((0..1_200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        left_alone()
    }));
}

/// A node port is at nodes' addresses alone, and the tunnel's port is never one.
fn node_ports(datapath: &mut Datapath) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap();
    let target = Backend { address: own.ip().into(), port: own.port(), reserved: 0 };
    let any = |port, protocol| FrontendKey { address: hauberk_abi::service::ANY_NODE_V4, port, protocol, reserved: 0 };
    let maps = datapath.maps_mut();
    for (last, kind, node) in [(1, Kind::Node, HERE), (2, Kind::Node, THERE), (3, Kind::Pod, THERE)] {
        maps.put_endpoint(address(&format!("127.0.2.{last}")), Identity::new(kind, Protection::None, node)).unwrap();
    }
    maps.put_set(3, &[target]).unwrap();
    maps.put_set(4, &[]).unwrap();
    maps.put_frontend(any(30_080, protocol::TCP), Frontend { set: 3, ..Frontend::default() }).unwrap();
    let local = Frontend { set: 3, flags: frontend_flag::OWN_NODE, ..Frontend::default() };
    maps.put_frontend(any(30_081, protocol::TCP), local).unwrap();
    // The kernel takes these addresses for the loopback, where another server may be.
    let own_server = TcpListener::bind("[::]:0").unwrap();
    let port = own_server.local_addr().unwrap().port();
    let theft = Frontend { set: 4, ..Frontend::default() };
    maps.put_frontend(any(port, protocol::TCP), theft).unwrap();
    for own in ["0.0.0.0", "::", "::ffff:0.0.0.0", "127.0.0.1"] {
        assert!(TcpStream::connect((own, port)).is_ok(), "{own}");
    }
    // At a node's address a node port comes before an external address of another service.
    maps.put_frontend(key("127.0.2.1:30080".parse().unwrap(), protocol::TCP), theft).unwrap();
    let connects = |last: u8, port: u16| TcpStream::connect(format!("127.0.2.{last}:{port}")).is_ok();
    assert!(connects(1, 30_080) && connects(2, 30_080), "at each node's address");
    assert!(!connects(3, 30_080) && !connects(4, 30_080), "not at a pod's, and not at a stranger's");
    assert!(connects(1, 30_081) && !connects(2, 30_081), "another node's own backends are that node's");
    let (tunnel, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let tunnel_port = tunnel.local_addr().unwrap().port().into();
    datapath.configure(&Settings { node: HERE, tunnel_port, ..Settings::default() }).unwrap();
    for at in ["127.0.2.2:51840", "127.0.2.2:51999", "127.0.2.4:51999"] {
        datapath.maps_mut().put_frontend(key(at.parse().unwrap(), protocol::UDP), theft).unwrap();
        assert!(tunnel.send_to(b"sealed", at).is_ok(), "the tunnel's datagrams go to {at}");
        assert!(refused(other.send_to(b"other", at)), "others' do not go to {at}");
    }
}
