//! Tests on a real kernel, in a network namespace of each test's own. They need root, and say so
//! when they are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use hauberk_abi::framing::Framing;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use super::netfilter::PacketSocketGuard;
use super::*;

/// Runs `test` on a thread in a fresh network namespace with two veth pairs: `up0` (192.168.9.1,
/// default route) and `hbkpod`.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(io::stderr(), "SKIPPED: needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for line in [
            "link set lo up",
            "link add up0 type veth peer name wire0",
            "link add hbkpod type veth peer name pod0",
            "link set up0 up",
            "link set wire0 up",
            "addr add 192.168.9.1/24 dev up0",
            "addr add fd99::1/64 dev up0 nodad",
            "route add 192.168.0.0/16 via 192.168.9.254",
        ] {
            ip(line);
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    thread.join().unwrap();
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft(text: &str) -> String {
    let (options, text) = text.strip_prefix("-a ").map_or((&["-f", "-"][..], text), |text| (&["-a", "-f", "-"], text));
    let mut child = Command::new("nft").args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Names of the uplinks, and the configured names that do not exist.
async fn uplinks(
    netlink: &Netlink,
    configured: Option<&[String]>,
    addresses: &[&str],
    tunnel: &str,
    chained: Option<Chained<'_>>,
) -> (Vec<String>, Vec<String>) {
    let links = netlink.links().await.unwrap();
    let addresses = addresses.iter().map(|text| address(text)).collect();
    let (found, missing) = netlink.uplinks(&links, configured, &addresses, tunnel, chained).await.unwrap();
    (found.into_iter().map(|link| link.name).collect(), missing)
}

#[test]
fn uplinks_are_found_by_address_by_default_route_and_by_name() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        assert_eq!(uplinks(&netlink, None, &[], "hauberk0", None).await.0, [""; 0]);
        assert_eq!(uplinks(&netlink, None, &["fd99::1"], "hauberk0", None).await.0, ["up0"]);
        ip("route add default via 192.168.9.254");
        assert_eq!(uplinks(&netlink, None, &[], "hauberk0", None).await.0, ["up0"]);
        assert_eq!(uplinks(&netlink, None, &[], "up0", None).await.0, [""; 0], "the tunnel is no uplink");
        let named = ["wire0".to_owned(), "eth9".to_owned()];
        let (found, missing) = uplinks(&netlink, Some(&named), &[], "hauberk0", None).await;
        assert_eq!((found, missing), (vec!["wire0".to_owned()], vec!["eth9".to_owned()]));
        assert_eq!(netlink.link("eth9").await.unwrap(), None);
    });
}

#[test]
fn every_device_has_a_role_whether_or_not_it_is_an_uplink() {
    in_namespace(|| async {
        ip("link add br0 type bridge");
        ip("link set wire0 master br0");
        ip("tuntap add tun9 mode tun");
        ip("link set hbkpod down");
        let netlink = Netlink::connect().unwrap();
        let links = netlink.links().await.unwrap();
        let index = |name: &str| links.iter().find(|link| link.name == name).unwrap().index;
        let role = |name: &str, pods: &[u32]| {
            let link = links.iter().find(|link| link.name == name).unwrap();
            link.role("hauberk0", &pods.iter().copied().collect())
        };
        for name in ["up0", "wire0", "pod0"] {
            assert_eq!(role(name, &[]), Role::Wire(Framing::Ethernet), "{name}");
        }
        assert_eq!(role("tun9", &[]), Role::Wire(Framing::Ip));
        assert_eq!(role("up0", &[index("up0")]), Role::Pod, "what is attached is a pod's");
        assert_eq!(role("hbkpod", &[]), Role::Pod, "it was just made, and nothing can be sent by it");
        for name in ["lo", "br0"] {
            assert_eq!(role(name, &[]), Role::Harmless, "{name}");
        }
        let ports: Vec<&str> =
            links.iter().filter(|link| link.controller == Some(index("br0"))).map(|link| link.name.as_str()).collect();
        assert_eq!(ports, ["wire0"]);
        ip("link set hbkpod up");
        let link = netlink.link("hbkpod").await.unwrap().unwrap();
        assert_eq!(link.role("hauberk0", &BTreeSet::new()), Role::Wire(Framing::Ethernet), "a name proves nothing");
    });
}

#[test]
fn routes_follow_the_way_to_the_node_whatever_it_is() {
    in_namespace(|| async {
        for line in [
            "addr add 192.0.2.1/32 dev up0",
            "route add 198.51.100.7/32 via 203.0.113.1 dev up0 onlink",
            "route add 198.51.100.8/32 via inet6 fd99::9 dev up0",
        ] {
            ip(line);
        }
        let netlink = Netlink::connect().unwrap();
        let put = async |destination: &str, node: &str, source: Option<&str>| {
            let via = Via::Node(address(node));
            let route = Route { destination: net(destination), via, source: source.map(address), mtu: Some(1400) };
            netlink.put_route(&route).await.unwrap();
            netlink.put_route(&route).await.unwrap();
        };
        put("10.244.7.0/24", "198.51.100.7", Some("192.168.9.1")).await;
        put("10.244.8.0/24", "198.51.100.8", None).await;
        put("10.244.9.0/24", "192.168.9.9", Some("192.168.77.77")).await;
        let held = netlink.own_routes().await.unwrap();
        let up0 = netlink.link("up0").await.unwrap().unwrap().index;
        let hop = |gateway: &str| Hop { device: up0, gateway: Some(address(gateway)) };
        assert_eq!(held[&net("10.244.7.0/24")], (hop("203.0.113.1"), Some(address("192.168.9.1"))));
        assert_eq!(held[&net("10.244.8.0/24")], (hop("fd99::9"), None));
        // The host does not have this address (yet).
        assert_eq!(held[&net("10.244.9.0/24")], (hop("192.168.9.9"), None));
        assert_eq!(netlink.way_to(address("198.51.100.8")).await.unwrap(), hop("fd99::9"));
    });
}

#[test]
fn a_pods_side_is_set_up_and_only_our_routes_are_removed() {
    in_namespace(|| async {
        let netlink = Netlink::connect().unwrap();
        sysctl::prepare_host(&["up0".into()]).unwrap();
        sysctl::prepare_pod_interface("hbkpod", true).unwrap();
        let link = netlink.link("hbkpod").await.unwrap().unwrap();
        netlink.set_mtu(link.index, 1400).await.unwrap();
        netlink.put_gateways(link.index, true, true).await.unwrap();
        netlink.put_gateways(link.index, true, true).await.unwrap();
        netlink.set_up(link.index).await.unwrap();
        let to_pod = |destination: &str, source: &str| Route {
            destination: net(destination),
            via: Via::Device(link.index),
            source: Some(address(source)),
            mtu: None,
        };
        for route in [to_pod("10.244.1.5/32", "192.168.9.1"), to_pod("fd00::5/128", "fd99::1")] {
            netlink.put_route(&route).await.unwrap();
            netlink.put_route(&route).await.unwrap();
            netlink.put_neighbour(link.index, route.destination.addr(), [2, 0, 0, 0, 0, 5]).await.unwrap();
            netlink.put_neighbour(link.index, route.destination.addr(), [2, 0, 0, 0, 0, 6]).await.unwrap();
        }
        let addresses = ip("addr show dev hbkpod");
        assert!(addresses.contains("inet 169.254.1.1/32 scope link"), "{addresses}");
        assert!(addresses.contains("inet6 fe80::1/64") && !addresses.contains("tentative"), "{addresses}");
        assert!(addresses.contains("mtu 1400"), "{addresses}");
        let got = ip("route get 10.244.1.5");
        assert!(got.contains("dev hbkpod src 192.168.9.1"), "{got}");
        assert!(ip("-6 route get fd00::5").contains("dev hbkpod"));
        let neighbours = ip("neigh show dev hbkpod");
        assert!(neighbours.contains("10.244.1.5 lladdr 02:00:00:00:00:06 PERMANENT"), "{neighbours}");
        assert!(neighbours.contains("fd00::5 lladdr 02:00:00:00:00:06 PERMANENT"), "{neighbours}");

        ip("route add 10.244.2.0/24 via 192.168.9.77 proto static");
        let near = Route {
            destination: net("10.244.2.0/24"),
            via: Via::Node(address("192.168.9.2")),
            source: None,
            mtu: Some(1420),
        };
        let far = Route {
            destination: net("10.244.3.0/24"),
            via: Via::Node(address("192.168.77.3")),
            source: None,
            mtu: Some(1420),
        };
        let six = Route {
            destination: net("fd00:3::/64"),
            via: Via::Node(address("fd99::3")),
            source: Some(address("fd99::1")),
            mtu: Some(1400),
        };
        for route in [&near, &far, &six] {
            netlink.put_route(route).await.unwrap();
        }
        netlink.put_route(&Route { mtu: Some(1300), ..near.clone() }).await.unwrap();
        let routes = ip("route show proto 72");
        assert!(routes.contains("10.244.2.0/24 via 192.168.9.2 dev up0 metric 72 mtu 1300"), "{routes}");
        assert!(routes.contains("10.244.3.0/24 via 192.168.9.254 dev up0 metric 72 mtu 1420"), "{routes}");
        let routes = ip("-6 route show proto 72");
        assert!(routes.contains("fd00:3::/64 via fd99::3 dev up0 src fd99::1 metric 72 mtu 1400"), "{routes}");
        assert!(netlink.put_route(&Route { via: Via::Node(address("203.0.113.1")), ..near.clone() }).await.is_err());

        assert_eq!(netlink.own_routes().await.unwrap().len(), 5);
        netlink.remove_route(&near.destination).await.unwrap();
        netlink.remove_route(&near.destination).await.unwrap();
        netlink.remove_own_routes().await.unwrap();
        assert!(netlink.own_routes().await.unwrap().is_empty());
        assert!(ip("route show").contains("10.244.2.0/24 via 192.168.9.77"), "somebody else's route stays");
        netlink.remove_link(link.index).await.unwrap();
        netlink.remove_link(link.index).await.unwrap();
    });
}

fn ruleset() -> Ruleset {
    Ruleset {
        mark_shift: 20,
        tunnel: "hauberk0".into(),
        uplinks: vec!["up0".into()],
        outward: vec!["up0".into()],
        passable: [1].into(),
        bridges: BTreeMap::new(),
        local: [net("10.244.1.0/24"), net("fd00:1::/64")].into(),
        untranslated: [net("10.244.0.0/16"), net("fd00::/16"), net("192.168.9.1/32")].into(),
        guarded: [net("10.244.0.0/16"), net("fd00::/16")].into(),
        chained: None,
    }
}

#[test]
fn rules_are_installed_changed_in_place_kept_over_a_restart_and_removed() {
    in_namespace(|| async {
        nft("add table inet theirs\n");
        let mut netfilter = Netfilter::install(&ruleset()).await.unwrap();
        assert!(netfilter.look().await.unwrap().intact);
        let mut next = ruleset();
        next.untranslated.insert(net("192.168.9.2/32"));
        next.guarded.insert(net("172.30.0.9/32"));
        netfilter.apply(&next).await.unwrap();
        let listed = nft("list ruleset\n");
        for part in ["192.168.9.2", "172.30.0.9", "priority srcnat - 10", "masquerade", "0x00800000"] {
            assert!(listed.contains(part), "{part} is missing in\n{listed}");
        }
        // A new agent knows less at first, so it removes nothing before it is told to.
        let mut netfilter = Netfilter::install(&ruleset()).await.unwrap();
        assert!(nft("list table inet hauberk\n").contains("192.168.9.2"));
        netfilter.apply(&ruleset()).await.unwrap();
        let listed = nft("list ruleset\n");
        assert!(!listed.contains("192.168.9.2") && !listed.contains("172.30.0.9"), "{listed}");
        assert!(listed.contains("192.168.9.1"));
        let narrower = Ruleset { untranslated: [net("10.244.0.0/17")].into(), ..ruleset() };
        netfilter.apply(&narrower).await.unwrap();
        assert!(nft("list table inet hauberk\n").contains("10.244.0.0/17"));
        netfilter.apply(&Ruleset { uplinks: vec!["up0".into(), "wire0".into()], ..ruleset() }).await.unwrap();
        assert!(nft("list table netdev hauberk\n").contains("\"wire0\""));

        assert!(netfilter.look().await.unwrap().intact);

        // A device whose name cannot be written, or that does not exist, does not affect the
        // others.
        ip("link add no\"name type veth peer name odd0");
        let odd = if_nametoindex("no\"name").unwrap();
        let uplinks = ["up0", "no\"name", "gone0"].map(str::to_owned).into();
        let passable = [1, odd].into();
        netfilter.apply(&Ruleset { uplinks, passable, ..ruleset() }).await.unwrap();
        let listed = nft("list ruleset\n");
        assert!(listed.contains("\"up0\"") && !listed.contains("no\"name") && !listed.contains("wire0"), "{listed}");
        let refused = netfilter
            .apply(&Ruleset {
                outward: vec!["a-name-of-more-than-fifteen-bytes".into()],
                chained: Some(Beside { tunnel_mtu: 1420 }),
                ..ruleset()
            })
            .await
            .unwrap_err();
        assert!(matches!(&refused, HostError::Nft { message, .. } if message.contains("rror")), "{refused}");
        assert_eq!(nft("list ruleset\n"), listed, "what was in force stays");
        nft("add table inet theirs\n");
        Netfilter::remove().await.unwrap();
        Netfilter::remove().await.unwrap();
        assert_eq!(nft("list tables\n").trim(), "table inet theirs");
    });
}

#[test]
fn whatever_is_taken_from_the_rules_is_noticed_and_put_back() {
    in_namespace(|| async {
        ip("link add br0 type bridge");
        let rules = Ruleset { bridges: [(if_nametoindex("br0").unwrap(), "br0".into())].into(), ..ruleset() };
        let mut netfilter = Netfilter::install(&rules).await.unwrap();
        let whole = nft("list ruleset\n");
        let handle = nft("-a list chain netdev hauberk egress_up0\n");
        let handle =
            handle.lines().find(|line| line.contains("skuid")).and_then(|line| line.split("handle ").nth(1)).unwrap();
        for harm in [
            &format!("delete rule netdev hauberk egress_up0 handle {handle}"),
            "flush set inet hauberk pods4",
            "flush set bridge hauberk passable",
            "delete element inet hauberk untranslated6 { fd00::/16 }",
            "add element inet hauberk passable { 4711 }",
            "flush chain inet hauberk unguarded",
            "insert rule inet hauberk mark_stack accept",
            "delete table bridge hauberk",
            "flush ruleset",
        ] {
            nft(&format!("{harm}\n"));
            assert!(!netfilter.look().await.unwrap().intact, "{harm} was not noticed");
            netfilter.restore().await.unwrap();
            assert!(netfilter.look().await.unwrap().intact, "{harm}");
            assert_eq!(nft("list ruleset\n"), whole, "{harm}");
        }
        // Traffic and other programs' tables do not count as damage.
        nft("add table inet theirs\n");
        let _ = std::net::UdpSocket::bind("192.168.9.1:0").unwrap().send_to(b"x", "192.168.9.2:9");
        assert!(netfilter.look().await.unwrap().intact);
        // When a device disappears and comes back, some kernels remove its chain; none keeps a dead
        // one.
        for _ in 0..2 {
            ip("link del up0");
            assert!(netfilter.look().await.unwrap().intact, "its device is gone, and so may be its chain");
            netfilter.apply(&rules).await.unwrap();
            ip("link add up0 type veth peer name wire0");
            netfilter.apply(&rules).await.unwrap();
            assert!(netfilter.look().await.unwrap().intact);
            assert_eq!(nft("list chain netdev hauberk egress_up0\n").matches("jump addressed").count(), 2);
            ip("link set up0 up");
            send_frame("up0", b"", 0x0800, &packet_v4("10.244.1.5", "8.8.8.8"), true);
        }
        assert_eq!(netfilter.look().await.unwrap().counters.packet_socket, 2);
    });
}

#[test]
fn beside_another_plugin_overlays_are_uplinks_and_their_absence_from_the_rules_drops() {
    in_namespace(|| async {
        for line in [
            "link add cni0 type bridge",
            "link set cni0 up",
            "address add 10.244.1.1/24 dev cni0",
            "route add 10.245.0.0/24 via 192.168.9.7 dev up0",
            "link add flannel.1 type vxlan id 1 dev up0 dstport 8472",
        ] {
            ip(line);
        }
        let netlink = Netlink::connect().unwrap();
        let (cluster_ranges, own_ranges) = ([net("10.244.0.0/15")], [net("10.244.1.0/24")]);
        let chained = Chained { cluster_ranges: &cluster_ranges, own_ranges: &own_ranges };
        let (found, _) = uplinks(&netlink, None, &[], "hauberk0", Some(chained)).await;
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ["flannel.1".to_owned(), "up0".to_owned()].into());
        let overlay = netlink.link("flannel.1").await.unwrap().unwrap();
        assert_eq!((overlay.kind, overlay.header), (LinkKind::Overlay, Header::Ethernet));

        let beside = |passable: &[u32]| Ruleset {
            passable: passable.iter().copied().collect(),
            chained: Some(Beside { tunnel_mtu: 1420 }),
            ..ruleset()
        };
        let mut netfilter = Netfilter::install(&beside(&[])).await.unwrap();
        ip("link set flannel.1 up");
        ip("address add 10.244.1.0/32 dev flannel.1");
        ip("route add 10.244.2.0/24 dev flannel.1");
        let send = || {
            let socket = std::net::UdpSocket::bind("10.244.1.0:0").unwrap();
            socket.send_to(b"x", "10.244.2.5:9").is_ok()
        };
        send();
        assert_eq!(netfilter.look().await.unwrap().counters.unguarded_device, 1);
        netfilter.apply(&beside(&[overlay.index])).await.unwrap();
        send();
        assert_eq!(
            netfilter.look().await.unwrap().counters.unguarded_device,
            1,
            "it is guarded now, and the count goes on"
        );
        let listed = nft("list table inet hauberk\n");
        for part in ["tcp option maxseg size set 1380", "size set 1360", "snat ip to ip saddr", "snat ip6 to ip6 saddr"]
        {
            assert!(listed.contains(part), "{part} is missing in\n{listed}");
        }
        let mut wider = beside(&[overlay.index]);
        wider.guarded.insert(net("172.30.0.0/16"));
        netfilter.apply(&wider).await.unwrap();
        assert!(nft("list set inet hauberk pods4\n").contains("172.30.0.0/16"));
    });
}

#[test]
fn the_other_end_of_a_pair_is_found_in_the_namespace_it_is_in() {
    in_namespace(|| async {
        let ((tell, told), (end, ended)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let pod = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            let _ = ended.recv();
        });
        ip(&format!("link set pod0 netns {}", told.recv().unwrap()));
        let netlink = Netlink::connect().unwrap();
        let link = netlink.links().await.unwrap().into_iter().find(|link| link.name == "hbkpod").unwrap();
        let peer = netlink.peer(&link).await.unwrap().expect("it is there");
        assert_eq!((peer.name.as_str(), Some(peer.index)), ("pod0", link.peer.map(|(index, _)| index)));
        // A veth whose peer is in this namespace is not a pod's.
        let up = netlink.links().await.unwrap().into_iter().find(|link| link.name == "up0").unwrap();
        assert_eq!(netlink.peer(&up).await.unwrap().map(|peer| peer.name), None);
        drop(end);
        pod.join().unwrap();
    });
}

#[test]
fn a_packet_socket_cannot_send_from_or_to_a_pods_address() {
    in_namespace(|| async {
        let mut netfilter = Netfilter::install(&ruleset()).await.unwrap();
        if netfilter.packet_socket_guard() == PacketSocketGuard::None {
            let _ = writeln!(io::stderr(), "SKIPPED: this kernel has no netdev egress hook");
            return;
        }
        let mut expected = 0;
        for bypass in [false, true] {
            for tag in
                [&b""[..], &b"\x81\x00\x00\x05"[..], &b"\x88\xa8\x00\x05"[..], &b"\x88\xa8\x00\x05\x81\x00\x00\x06"[..]]
            {
                for (source, destination) in
                    [("10.244.1.5", "8.8.8.8"), ("8.8.8.8", "10.244.9.9"), ("192.168.9.1", "192.168.9.2")]
                {
                    send_frame("up0", tag, 0x0800, &packet_v4(source, destination), bypass);
                    expected += u64::from(source != "192.168.9.1");
                }
                for (source, destination) in
                    [("fd00:1::5", "2001:db8::1"), ("2001:db8::1", "fd00:2::9"), ("fd99::1", "fd99::2")]
                {
                    let v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
                    let mut packet = vec![0x60, 0, 0, 0, 0, 20, 17, 64];
                    packet.extend(v6(source).into_iter().chain(v6(destination)));
                    send_frame("up0", tag, 0x86dd, &packet, bypass);
                    expected += u64::from(source != "fd99::1");
                }
                let counted = netfilter.look().await.unwrap().counters.packet_socket;
                assert_eq!(counted, expected, "tag {tag:?}, bypass {bypass}");
            }
        }
        // The stack's own packets pass, and a new agent continues the counters.
        ip("neigh add 192.168.9.2 lladdr 02:00:00:00:00:02 dev up0");
        ip("route add 10.244.9.9/32 via 192.168.9.2");
        let socket = std::net::UdpSocket::bind("192.168.9.1:0").unwrap();
        // "up0" is not passable yet, so the first packet is dropped earlier.
        let _ = socket.send_to(b"hello", "10.244.9.9:9");
        assert_eq!(netfilter.look().await.unwrap().counters.unguarded_device, 1);
        netfilter.open(if_nametoindex("up0").unwrap()).await.unwrap();
        socket.send_to(b"hello", "10.244.9.9:9").unwrap();
        assert_eq!(netfilter.look().await.unwrap().counters.unguarded_device, 1);
        let netfilter = Netfilter::install(&ruleset()).await.unwrap();
        assert_eq!(netfilter.look().await.unwrap().counters.packet_socket, expected);
    });
}

/// A packet header that claims 60 bytes, without payload.
fn packet_v4(source: &str, destination: &str) -> Vec<u8> {
    let v4 = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(v4(source).into_iter().chain(v4(destination)));
    packet
}

/// Sends a frame through a packet socket, optionally past the queueing discipline.
#[allow(unsafe_code, reason = "no crate has the option")]
fn send_frame(device: &str, tag: &[u8], ether_type: u16, packet: &[u8], bypass: bool) {
    use nix::libc;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;

    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).unwrap();
    if bypass {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is an int, which outlives the call, and its size is given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0);
    }
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(tag);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(packet);
    frame.resize(frame.len() + 60, 0);
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: if_nametoindex(device).unwrap() as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: both pointers are to values that outlive the call, with their sizes. A dropped frame
    // may be reported as ENOBUFS, hence the result says nothing here.
    unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        );
    }
}

#[test]
fn a_hint_is_not_given_where_files_ran_out() {
    let nft = |errno: nix::errno::Errno| HostError::NoNft(errno.into()).to_string();
    assert!(nft(nix::errno::Errno::ENOENT).ends_with("; install nftables"));
    assert!(nft(nix::errno::Errno::EMFILE).ends_with("raise its limit (LimitNOFILE)"));
    assert!(nft(nix::errno::Errno::ENFILE).ends_with("raise fs.file-max"));
    let sysctl = |errno: nix::errno::Errno| {
        HostError::Sysctl { name: "a".into(), value: "1".into(), source: errno.into() }.to_string()
    };
    assert!(sysctl(nix::errno::Errno::EROFS).ends_with("is /proc/sys mounted read-only?"));
    assert!(!sysctl(nix::errno::Errno::EMFILE).contains("read-only"));
    assert!(!sysctl(nix::errno::Errno::ENOENT).contains("read-only"));
}
