//! The built plugin in separate network namespaces, called as a runtime calls it; needs root.
//! Results are read with `ip`.
#![allow(clippy::unwrap_used)]

mod node;

use axum::http::StatusCode;
use node::{Netns, Node};
use serde_json::{Value, json};

/// How long to wait for an agent that answers, seconds: enough even for a machine that starts two
/// hundred pods at once.
const PATIENCE: u32 = 300;

/// The values of `key` in a list of objects.
fn values(list: &Value, key: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    // `ip` writes an empty object for each address that its filter hides.
    let shown = list.as_array().unwrap().iter().filter(|item| item.as_object().is_some_and(|item| !item.is_empty()));
    shown.map(|item| text(&item[key])).collect()
}

fn route<'a>(routes: &'a Value, destination: &str) -> &'a Value {
    let found = routes.as_array().unwrap().iter().find(|route| route["dst"] == destination);
    found.unwrap_or_else(|| panic!("no route to {destination} in {routes}"))
}

#[test]
fn add_sets_up_what_it_answers_and_del_removes_it() {
    let (node, pod) = (Node::new(), Netns::new());
    let config = node.config("1.1.0", PATIENCE, "");
    let result = node.plugin("ADD", "c1", &pod.path(), &config).succeeded();

    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(values(&result["ips"], "address"), ["10.244.0.1/32", "fd00:10:244::1/128"]);
    assert_eq!(node.agent.lock().unwrap().up_too_early, [""; 0]);

    let link = &pod.ip("link show dev eth0")[0];
    let host = &node.netns.ip("link show dev hbk00000001")[0];
    assert_eq!(link["address"], result["interfaces"][1]["mac"]);
    assert_eq!(host["address"], result["interfaces"][0]["mac"]);
    assert_eq!((&link["mtu"], &link["operstate"], &host["operstate"]), (&json!(1500), &json!("UP"), &json!("UP")));
    assert_eq!(link["gso_max_size"], 65000);
    assert_eq!(host["ifalias"], "hauberk:c1/eth0");

    let addresses = &pod.ip("address show dev eth0 scope global")[0]["addr_info"];
    assert_eq!(values(addresses, "local"), ["10.244.0.1", "fd00:10:244::1"]);
    assert_eq!(values(addresses, "prefixlen"), ["32", "128"]);
    assert_eq!(values(addresses, "tentative"), ["null", "null"]);

    let v4 = pod.ip("-4 route show");
    assert_eq!(route(&v4, "default")["gateway"], "169.254.1.1");
    assert_eq!(route(&v4, "10.244.0.0/16")["metrics"][0]["mtu"], 1420);
    assert_eq!(route(&v4, "169.254.1.1")["scope"], "link");
    let v6 = pod.ip("-6 route show");
    assert_eq!(route(&v6, "default")["gateway"], "fe80::1");
    assert_eq!(route(&v6, "fd00:10:244::/48")["metrics"][0]["mtu"], 1420);

    let neighbours = pod.ip("neighbour show nud permanent");
    for gateway in ["169.254.1.1", "fe80::1"] {
        let known = neighbours.as_array().unwrap().iter().find(|neighbour| neighbour["dst"] == gateway).unwrap();
        assert_eq!(known["lladdr"], host["address"]);
    }

    // The pair carries packets: an address on the host side stands for the world.
    node.netns.run("ip address add 192.0.2.1/32 dev hbk00000001");
    node.netns.run("ip address add 2001:db8::1/128 dev hbk00000001 nodad");
    node.netns.run("ip route add 10.244.0.1/32 dev hbk00000001");
    node.netns.run("ip route add fd00:10:244::1/128 dev hbk00000001");
    pod.run("ping -c 1 -W 5 192.0.2.1");
    pod.run("ping -c 1 -W 5 2001:db8::1");

    for _ in 0..2 {
        node.plugin("DEL", "c1", &pod.path(), &config).succeeded();
        assert_eq!((pod.links(), node.netns.links()), (vec![], vec![]));
        assert!(node.agent.lock().unwrap().attachments.is_empty());
    }
    // The same container can be added again.
    node.plugin("ADD", "c1", &pod.path(), &config).succeeded();
}

#[test]
fn check_finds_each_kind_of_damage() {
    let (node, pod) = (Node::new(), Netns::new());
    let result = node.plugin("ADD", "c1", &pod.path(), &node.config("1.0.0", PATIENCE, "")).succeeded();
    let config = node.config("1.0.0", PATIENCE, &format!("\"prevResult\":{result}"));
    assert_eq!(node.plugin("CHECK", "c1", &pod.path(), &config).succeeded(), Value::Null);

    let mac = result["interfaces"][0]["mac"].as_str().unwrap();
    for (damage, repair, named) in [
        (
            "ip route del 10.244.0.0/16",
            "ip route add 10.244.0.0/16 via 169.254.1.1 dev eth0 mtu 1420 onlink",
            "10.244.0.0/16",
        ),
        ("ip address del fd00:10:244::1/128 dev eth0", "ip address add fd00:10:244::1/128 dev eth0", "fd00:10:244::1"),
        ("ip link set eth0 mtu 1450", "ip link set eth0 mtu 1500", "MTU"),
        (
            "ip neighbour del 169.254.1.1 dev eth0",
            &format!("ip neighbour add 169.254.1.1 lladdr {mac} dev eth0 nud permanent"),
            "169.254.1.1",
        ),
    ] {
        pod.run(damage);
        let message = node.plugin("CHECK", "c1", &pod.path(), &config).failed(104);
        assert!(message.contains(named), "{damage}: {message}");
        pod.run(repair);
        node.plugin("CHECK", "c1", &pod.path(), &config).succeeded();
    }
    node.agent.lock().unwrap().attachments.clear();
    let message = node.plugin("CHECK", "c1", &pod.path(), &config).failed(104);
    assert!(message.contains("the agent knows nothing"), "{message}");
    node.plugin("CHECK", "c1", &pod.path(), &node.config("1.0.0", PATIENCE, "")).failed(7);
}

#[test]
fn a_refused_attachment_leaves_nothing_behind() {
    let (node, pod) = (Node::new(), Netns::new());
    node.agent.lock().unwrap().refuse_attach = Some(StatusCode::INTERNAL_SERVER_ERROR);
    let message = node.plugin("ADD", "c1", &pod.path(), &node.config("1.1.0", PATIENCE, "")).failed(103);
    assert!(message.contains("the verifier says no"), "{message}");
    assert_eq!((pod.links(), node.netns.links()), (vec![], vec![]));
    assert!(node.agent.lock().unwrap().attachments.is_empty());

    node.agent.lock().unwrap().refuse_attach = Some(StatusCode::SERVICE_UNAVAILABLE);
    node.plugin("ADD", "c1", &pod.path(), &node.config("1.1.0", 1, "")).failed(11);
    assert_eq!((pod.links(), node.netns.links()), (vec![], vec![]));
    assert!(node.agent.lock().unwrap().attachments.is_empty());
}

#[test]
fn add_waits_for_the_agent_and_says_try_again() {
    let (node, pod) = (Node::without_agent(), Netns::new());
    let message = node.plugin("ADD", "c1", &pod.path(), &node.config("1.1.0", 1, "")).failed(11);
    assert!(message.contains("no agent on this node"), "{message}");
    assert_eq!(pod.links(), [""; 0]);

    std::thread::scope(|scope| {
        let add = scope.spawn(|| node.plugin("ADD", "c1", &pod.path(), &node.config("1.1.0", PATIENCE, "")));
        std::thread::sleep(std::time::Duration::from_millis(300));
        node.start_agent();
        add.join().unwrap().succeeded();
    });
}

#[test]
fn an_interface_of_somebody_else_is_left_alone() {
    let (node, pod) = (Node::new(), Netns::new());
    pod.run("ip link add eth0 type veth peer name eth1");
    let config = node.config("1.1.0", PATIENCE, "");
    let message = node.plugin("ADD", "c1", &pod.path(), &config).failed(100);
    assert!(message.contains("eth0"), "{message}");
    assert_eq!(node.agent.lock().unwrap().given, 0);
    node.plugin("DEL", "c1", &pod.path(), &config).succeeded();
    assert_eq!(pod.links().len(), 2);
}

#[test]
fn a_second_add_does_not_harm_the_first() {
    let (node, pod) = (Node::new(), Netns::new());
    let config = node.config("1.1.0", PATIENCE, "");
    node.plugin("ADD", "c1", &pod.path(), &config).succeeded();
    node.plugin("ADD", "c1", &pod.path(), &config).failed(100);
    assert_eq!(pod.links(), ["eth0"]);
    assert_eq!(node.agent.lock().unwrap().attachments.len(), 1);
}

#[test]
fn del_needs_the_agent_but_not_the_namespace() {
    let node = Node::new();
    let config = node.config("1.1.0", PATIENCE, "");
    let pod = Netns::new();
    let path = pod.path();
    node.plugin("ADD", "c1", &path, &config).succeeded();
    drop(pod);
    // What remains of a namespace's path after it has been unmounted.
    let left_over = tempfile::NamedTempFile::new().unwrap();
    for path in [&path, left_over.path().to_str().unwrap(), ""] {
        node.plugin("DEL", "c1", path, &config).succeeded();
    }
    assert!(node.agent.lock().unwrap().attachments.is_empty());

    std::fs::remove_file(node.socket()).unwrap();
    node.plugin("DEL", "c1", "", &node.config("1.1.0", 1, "")).failed(11);
}

#[test]
fn gc_keeps_what_is_valid_and_status_says_whether_add_would_work() {
    let node = Node::new();
    let pods: Vec<Netns> = (0..3).map(|_| Netns::new()).collect();
    for (number, pod) in pods.iter().enumerate() {
        node.plugin("ADD", &format!("c{number}"), &pod.path(), &node.config("1.1.0", PATIENCE, "")).succeeded();
    }
    let valid = r#""cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#;
    node.plugin("GC", "", "", &node.config("1.1.0", PATIENCE, valid)).succeeded();
    assert_eq!(node.netns.links(), ["hbk00000002"]);
    assert_eq!(node.agent.lock().unwrap().attachments.len(), 1);
    node.plugin("GC", "", "", &node.config("1.1.0", PATIENCE, "")).failed(7);
    node.plugin("GC", "", "", &node.config("1.0.0", PATIENCE, valid)).failed(1);
    assert_eq!(node.agent.lock().unwrap().attachments.len(), 1);

    assert_eq!(node.plugin("STATUS", "", "", &node.config("1.1.0", PATIENCE, "")).succeeded(), Value::Null);
    node.agent.lock().unwrap().not_ready = true;
    let message = node.plugin("STATUS", "", "", &node.config("1.1.0", PATIENCE, "")).failed(50);
    assert!(message.contains("self-test"), "{message}");
    std::fs::remove_file(node.socket()).unwrap();
    node.plugin("STATUS", "", "", &node.config("1.1.0", 1, "")).failed(50);
}

#[test]
fn many_at_once_leave_nothing() {
    const PODS: usize = 200;
    let node = Node::new();
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new()).collect();
    let config = node.config("1.1.0", PATIENCE, "");
    for command in ["ADD", "DEL"] {
        std::thread::scope(|scope| {
            for (number, pod) in pods.iter().enumerate() {
                let (node, config) = (&node, &config);
                scope.spawn(move || node.plugin(command, &format!("c{number}"), &pod.path(), config).succeeded());
            }
        });
        let expected = if command == "ADD" { PODS } else { 0 };
        assert_eq!(node.netns.links().len(), expected);
        assert_eq!(node.agent.lock().unwrap().attachments.len(), expected);
        assert!(pods.iter().all(|pod| pod.links().len() == expected / PODS));
    }
    assert_eq!(node.agent.lock().unwrap().up_too_early, [""; 0]);
}

#[test]
fn requests_without_sense_are_answered_in_json() {
    let node = Node::without_agent();
    let version = node.plugin("VERSION", "", "", r#"{"cniVersion":"1.0.0"}"#).succeeded();
    assert_eq!(version["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    node.plugin("FOO", "c1", "/x", "{}").failed(4);
    node.plugin("ADD", "../c1", "/x", "{}").failed(4);
    node.plugin("ADD", "c1", "/x", "{").failed(6);
    node.plugin("ADD", "c1", "/x", r#"{"cniVersion":"0.2.0","name":"a"}"#).failed(1);
    node.plugin("ADD", "c1", "/nonexistent", &node.config("1.1.0", 1, "")).failed(101);
    node.plugin("ADD", "c1", &node.netns.path(), &node.config("1.1.0", 1, "")).failed(101);
    node.plugin("ADD", "c1", "/x", &node.config("1.1.0", 1, r#""prevResult":{}"#)).failed(7);
}

/// Connects a pod as a plugin like ptp does, and returns that plugin's result.
fn connect(node: &Node, pod: &Netns, version: &str) -> Value {
    node.netns.run(&format!("ip link add veth7 type veth peer name eth0 netns {}", pod.name));
    node.netns.run("ip link set veth7 up");
    for command in [
        "ip link set eth0 up",
        "ip address add 10.9.0.5/24 dev eth0",
        "ip address add fd09::5/64 dev eth0 nodad",
        "ip route add default via 10.9.0.1 dev eth0",
        "ip route add 10.8.0.0/16 via 10.9.0.1 dev eth0 mtu 1300",
        "ip route add default via fd09::1 dev eth0",
    ] {
        pod.run(command);
    }
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "veth7", "mac": "xx"}, {"name": "eth0", "mac": "xx", "sandbox": pod.path()}],
        "ips": [{"address": "10.9.0.5/24", "interface": 1}, {"address": "fd09::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {}, "more": {"kept": true},
    })
}

#[test]
fn behind_another_plugin_its_interface_is_guarded_and_its_result_passed_on() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (node, pod) = (Node::new(), Netns::new());
        let previous = connect(&node, &pod, version);
        let chained = node.config(version, PATIENCE, &format!(r#""chained":true,"prevResult":{previous}"#));
        assert_eq!(node.plugin("ADD", "c1", &pod.path(), &chained).succeeded(), previous, "{version}");

        let host = &node.netns.ip("link show dev veth7")[0];
        let known = node.agent.lock().unwrap().attachments[&("c1".to_string(), "eth0".to_string())].clone();
        assert_eq!(known.reservation.host_interface, "veth7");
        assert_eq!(known.attach.as_ref().unwrap().host_mac.to_string(), host["address"].as_str().unwrap());
        assert_eq!(known.attach.as_ref().unwrap().host_index, host["ifindex"].as_u64().unwrap() as u32);
        assert_eq!(known.reservation.addresses.len(), 2);
        assert_eq!(known.request.pod.unwrap().name, "api-0");

        // Routes through gateways get the tunnel's MTU; on-link routes and smaller MTUs do not
        // change.
        let (v4, v6) = (pod.ip("-4 route show"), pod.ip("-6 route show"));
        assert_eq!(route(&v4, "default")["metrics"][0]["mtu"], 1420);
        assert_eq!(route(&v4, "10.8.0.0/16")["metrics"][0]["mtu"], 1300);
        assert_eq!(route(&v4, "10.9.0.0/24")["metrics"], Value::Null);
        assert_eq!(route(&v6, "default")["metrics"][0]["mtu"], 1420);
        assert_eq!(v4.as_array().unwrap().len(), 3, "{v4}");
        assert_eq!(pod.ip("link show dev eth0")[0]["mtu"], 1500);

        if version != "0.3.1" {
            node.plugin("CHECK", "c1", &pod.path(), &chained).succeeded();
            node.agent.lock().unwrap().attachments.clear();
            assert!(node.plugin("CHECK", "c1", &pod.path(), &chained).failed(104).contains("knows nothing"));
        }
        if version == "1.1.0" {
            node.plugin("ADD", "c1", &pod.path(), &chained).succeeded();
            let stale = node.config(version, PATIENCE, r#""chained":true,"cni.dev/valid-attachments":[]"#);
            node.plugin("GC", "", "", &stale).succeeded();
            assert_eq!(
                node.agent.lock().unwrap().attachments.len(),
                1,
                "what another plugin made is not ours to collect"
            );
        }
        let without = node.config(version, PATIENCE, r#""chained":true"#);
        for config in [&chained, &without] {
            node.plugin("DEL", "c1", &pod.path(), config).succeeded();
            assert!(node.agent.lock().unwrap().attachments.is_empty());
        }
        assert_eq!((pod.links(), node.netns.links()), (vec!["eth0".to_string()], vec!["veth7".to_string()]));
    }
}

#[test]
fn behind_another_plugin_what_cannot_be_guarded_is_refused() {
    let (node, pod) = (Node::new(), Netns::new());
    let chained = |more: &str| node.config("1.0.0", PATIENCE, &format!(r#""chained":true{more}"#));
    assert!(node.plugin("ADD", "c1", &pod.path(), &chained("")).failed(7).contains("prevResult is missing"));
    let result = |ips: &str| format!(r#","prevResult":{{"cniVersion":"1.0.0","interfaces":[],"ips":{ips}}}"#);
    assert!(node.plugin("ADD", "c1", &pod.path(), &chained(&result("[]"))).failed(7).contains("no address of eth0"));
    let config = chained(&result(r#"[{"address":"10.9.0.5/24"}]"#));
    node.plugin("ADD", "c1", &pod.path(), &config).failed(102);
    pod.run("ip link add eth0 type bridge");
    assert!(node.plugin("ADD", "c1", &pod.path(), &config).failed(7).contains("veth pair"));
    pod.run("ip link del eth0");
    // Both ends are in the pod.
    pod.run("ip link add eth0 type veth peer name eth1");
    assert!(node.plugin("ADD", "c1", &pod.path(), &config).failed(7).contains("veth pair"));
    assert!(node.agent.lock().unwrap().attachments.is_empty());
}

#[test]
fn the_agent_is_told_what_the_runtime_is_told() {
    let (node, pod) = (Node::new(), Netns::new());
    let result = r#""prevResult":{"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"10.9.0.5/24"}]}"#;
    let config = node.config("1.0.0", PATIENCE, &format!(r#""chained":true,{result}"#));
    pod.run("ip link add eth0 type bridge");
    let refused = node.plugin("ADD", "c1", &pod.path(), &config).failed(7);
    node.agent.lock().unwrap().failures = Some(Vec::new());
    assert_eq!(node.plugin("ADD", "c1", &pod.path(), &config).failed(7), refused, "an agent that listens or not");
    let told = node.agent.lock().unwrap().failures.clone().unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].message.as_str(), told[0].request.container.as_str()), (refused.as_str(), "c1"));
    assert_eq!(told[0].request.pod.as_ref().unwrap().name, "api-0");
    pod.run("ip link del eth0");
    node.agent.lock().unwrap().refuse_attach = Some(StatusCode::BAD_REQUEST);
    let refused = node.plugin("ADD", "c2", &pod.path(), &node.config("1.1.0", PATIENCE, "")).failed(103);
    assert_eq!(node.agent.lock().unwrap().failures.as_ref().unwrap()[1].message, refused);
}

#[test]
fn behind_another_plugin_add_waits_for_the_agent_and_del_does_not() {
    let (node, pod) = (Node::without_agent(), Netns::new());
    let previous = connect(&node, &pod, "1.0.0");
    let config = node.config("1.0.0", 1, &format!(r#""chained":true,"prevResult":{previous}"#));
    assert!(node.plugin("ADD", "c1", &pod.path(), &config).failed(11).contains("waited 1 s"));
    node.plugin("DEL", "c1", &pod.path(), &config).succeeded();
    assert_eq!(pod.links(), ["eth0"]);
}
