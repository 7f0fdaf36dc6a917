//! The JSON on the wire: other versions read it, so it stays as it is to the byte.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

/// What an agent wrote before is understood, and written again as it was.
#[track_caller]
fn stays<T: Serialize + DeserializeOwned>(lines: &str) {
    let text: String = lines.lines().map(str::trim).collect();
    let read: T = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
}

#[test]
fn attachments_stay() {
    stays::<Attach>(r#"{"host_index":7,"host_mac":"0a:1b:2c:3d:4e:5f","pod_mac":"0a:00:00:00:00:ff"}"#);
    stays::<Attachment>(
        r#"{"request":{"container":"c1","interface":"eth0","pod":{"namespace":"payments","name":"api","uid":"u-1"},
        "netns":"/var/run/netns/c1"},"reservation":{"addresses":["10.244.1.2/32","fd00:244:1::2/128"],
        "gateways":["169.254.1.1","fe80::1"],"route_mtu":1420,"device_mtu":1500,"host_interface":"hbk0123456789a",
        "cluster_ranges":["10.244.0.0/16"],"gso_max_size":65536},
        "attach":{"host_index":7,"host_mac":"02:00:00:00:00:01","pod_mac":"02:00:00:00:00:02"},
        "adopted":false,"recovered":true}"#,
    );
    stays::<Attachment>(
        r#"{"request":{"container":"c1","interface":"eth0","pod":null,"netns":""},"reservation":{"addresses":[],
        "gateways":[],"route_mtu":0,"device_mtu":0,"host_interface":"veth7","cluster_ranges":[],"gso_max_size":0},
        "attach":null,"adopted":true,"recovered":false}"#,
    );
    stays::<Adopt>(
        r#"{"request":{"container":"c1","interface":"eth0","pod":null,"netns":"/x"},"addresses":["10.244.1.2"],
        "host_interface":"veth7","attach":{"host_index":7,"host_mac":"02:00:00:00:00:01",
        "pod_mac":"02:00:00:00:00:02"}}"#,
    );
}

#[test]
fn explanations_stay() {
    stays::<Explanation>(
        r#"{"source":{"asked":"payments/api","address":"10.244.1.5","kind":"pod","name":"payments/api","node":"n1",
        "protection":"enabled","rule":"by its namespace","unmet":null},
        "destination":{"asked":"10.0.0.9","address":"10.0.0.9","kind":"unknown_node","name":null,"node":null,
        "protection":"none","rule":"nobody has it","unmet":"permissive"},
        "encryption":"refused","why":"dropped","drop":"unknown_destination","sentence":"It is dropped.","peer":"n2",
        "peer_key":{"epoch":1,"public_key":"a2V5"},"cipher":null,"would_drop":["something"],
        "last_proven":"2026-11-22T09:59:57Z"}"#,
    );
    for kind in ["pod", "node", "unknown_pod", "unknown_node", "world"] {
        stays::<Party>(&format!(
            r#"{{"asked":"x","address":"fd00::1","kind":"{kind}","name":null,"node":null,"protection":"none",
            "rule":"","unmet":null}}"#
        ));
    }
}

/// A record with these words stays.
#[track_caller]
fn flow_stays(event: &str, protocol: &str, encryption: &str, why: &str, drop: &str) {
    stays::<FlowRecord>(&format!(
        r#"{{"time":"2026-11-22T09:59:57.25Z","event":"{event}","node":"n1","hook":"from_pod","source":"10.244.1.5",
        "source_port":40000,"source_name":"payments/api","destination":"10.244.2.7","destination_port":5432,
        "destination_name":null,"protocol":"{protocol}","encryption":"{encryption}","why":"{why}","drop":{drop},
        "peer":null,"epoch":1,"packets":3,"bytes":1536,"lost_events":0}}"#
    ));
}

#[test]
fn flow_records_stay() {
    for event in ["start", "end", "refused", "ongoing"] {
        flow_stays(event, "tcp", "encrypted", "source_opted_in", "null");
    }
    for protocol in ["tcp", "udp", "icmp", "icmpv6", "132"] {
        flow_stays("start", protocol, "plain", "not_opted_in", "null");
    }
    for encryption in ["refused", "encrypted", "plain", "local", "world"] {
        flow_stays("start", "udp", encryption, "unspecified", "null");
    }
    for why in [
        "unspecified",
        "source_opted_in",
        "destination_opted_in",
        "unknown_is_protected",
        "permissive_peer_ready",
        "permissive_peer_not_ready",
        "not_opted_in",
        "same_node",
        "outside_cluster",
        "translated",
        "dropped",
        "decrypted",
        "answers_sealed",
    ] {
        flow_stays("start", "udp", "plain", why, "null");
    }
    for drop in [
        "unspecified",
        "malformed",
        "spoofed_source",
        "unknown_destination",
        "no_peer",
        "plaintext_to_protected",
        "plaintext_from_protected",
        "plaintext_leaving",
        "not_local",
        "tunnel_source",
        "not_ip",
        "multicast",
        "not_ready",
        "self_test",
        "redirect_failed",
        "martian",
        "world_to_protected",
        "too_big",
        "packet_socket",
        "unknown_source",
        "sealed_full",
        "spoofed_neighbour",
        "neighbour_limit",
        "no_backend",
        "source_not_admitted",
        "connections_full",
        "no_way",
    ] {
        flow_stays("refused", "udp", "refused", "dropped", &format!("\"{drop}\""));
    }
}

#[test]
fn drops_stay() {
    stays::<Drops>(
        r#"{"reasons":[{"reason":"no_peer","place":"datapath","packets":12,"advice":"look","expected":false},
        {"reason":"handshake_failed","place":"tunnel","packets":1,"advice":"look","expected":false},
        {"reason":"unguarded_device","place":"netfilter","packets":1,"advice":"look","expected":true}],
        "leaked":[{"device":"eth1","packets":2}]}"#,
    );
}

#[test]
fn statuses_stay() {
    for mode in ["beside kube-proxy", "sockets", "sockets and devices"] {
        stays::<ServicesStatus>(&format!(
            r#"{{"mode":"{mode}","services":2,"frontends":5,"backends":7,"balanced":12,"refused":1,"failed":0}}"#
        ));
    }
    stays::<ServicesStatus>(
        r#"{"mode":"sockets and devices","services":2,"frontends":5,"backends":7,"balanced":12,"refused":1,"failed":0,
        "connections":40}"#,
    );
    for (routing, attach, source, origin) in [
        ("bpf", "tcx", "directory", "object"),
        ("stack", "clsact", "kubernetes", "copy"),
        ("bpf", "tcx", "directory", "file"),
    ] {
        stays::<Status>(&format!(
            r#"{{"node":"n1","version":"0.1.0","started":"2026-11-22T07:56:59Z","now":"2026-11-22T10:00:00Z",
            "ready":true,"problems":[{{"severity":"warning","object":"map/ENDPOINTS","message":"nearly full"}}],
            "tunnel":{{"backend":"kernel","backend_reason":"auto","device":"hauberk0","port":51840,"mtu":1420,
            "keys":[{{"epoch":2,"public_key":"a2V5"}}],"offloads":["TSO"],"cipher":"ChaCha20-Poly1305 (ring)",
            "threads":4,"handed_over":12}},"host_routing":"{routing}","attach":"{attach}","uplinks":["eth0"],
            "peers":[],"namespaces":[],"attachments":4,
            "source":{{"kind":"{source}","location":"/etc","synced":true,"unavailable_since":null,
            "unavailable_because":null,"rejected":0}},
            "configuration":{{"origin":"{origin}","generation":3,"refused":null,"message":null}},
            "services":null}}"#
        ));
    }
    stays::<LinkStatus>(r#"{"interface":"eth0","hook":"to_wire","how":"clsact"}"#);
}

#[test]
fn services_stay() {
    stays::<Vec<Service>>(
        r#"[{"namespace":"payments","name":"api","kind":"LoadBalancer","frontends":[
        {"address":"10.96.0.10","family":"ipv4","port":80,"protocol":"tcp","kind":"cluster_address",
        "port_name":"http","affinity_seconds":10800,"usable":2,"left_out":null},
        {"address":null,"family":"ipv6","port":30080,"protocol":"udp","kind":"node_port","port_name":"",
        "affinity_seconds":0,"usable":0,"left_out":null},
        {"address":"203.0.113.7","family":"ipv4","port":80,"protocol":"sctp","kind":"load_balancer",
        "port_name":"http","affinity_seconds":0,"usable":0,"left_out":"it is SCTP"}],"backends":[
        {"address":"10.244.2.7","port":8080,"port_name":"http","node":"n2","condition":"ready","used":true,
        "encryption":"encrypted","why":"destination_opted_in"},
        {"address":"192.0.2.9","port":8080,"port_name":"","node":null,"condition":"not_ready","used":false,
        "encryption":null,"why":null}]}]"#,
    );
    for (policy, ranges) in [("cluster", "null"), ("local", r#"["192.0.2.0/24","fd00::/16"]"#), ("local", "[]")] {
        stays::<Service>(&format!(
            r#"{{"namespace":"payments","name":"api","kind":"LoadBalancer","frontends":[
            {{"address":"203.0.113.7","family":"ipv4","port":80,"protocol":"tcp","kind":"load_balancer",
            "port_name":"","affinity_seconds":0,"usable":2,"left_out":null,
            "outside":{{"policy":"{policy}","usable":1,"source_ranges":{ranges}}}}}],"backends":[
            {{"address":"10.244.2.7","port":8080,"port_name":"","node":"n2","condition":"ready","used":true,
            "outside":false,"encryption":"local","why":"same_node"}}],"connections":12}}"#
        ));
    }
    for kind in ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] {
        stays::<Service>(&format!(
            r#"{{"namespace":"payments","name":"api","kind":"{kind}","frontends":[],"backends":[]}}"#
        ));
    }
    for kind in ["cluster_address", "node_port", "load_balancer", "external_address"] {
        stays::<ServiceFrontend>(&format!(
            r#"{{"address":"fd00::a","family":"ipv6","port":80,"protocol":"tcp","kind":"{kind}","port_name":"",
            "affinity_seconds":0,"usable":1,"left_out":null}}"#
        ));
    }
    for condition in ["ready", "terminating", "not_ready"] {
        stays::<ServiceBackend>(&format!(
            r#"{{"address":"10.244.2.7","port":8080,"port_name":"","node":"n2","condition":"{condition}",
            "used":true,"encryption":"local","why":"same_node"}}"#
        ));
    }
}

/// An agent of an earlier version says nothing of services.
#[test]
fn a_status_without_services_is_understood() {
    let text = r#"{"node":"n1","version":"0.1.0","started":"2026-11-22T07:56:59Z","now":"2026-11-22T10:00:00Z",
        "ready":true,"problems":[],"tunnel":{"backend":"kernel","backend_reason":"auto","device":"hauberk0",
        "port":51840,"mtu":1420,"keys":[],"offloads":[]},"host_routing":"stack","attach":"tcx","uplinks":[],
        "peers":[],"namespaces":[],"attachments":0,"source":{"kind":"directory","location":"/etc","synced":true,
        "unavailable_since":null,"rejected":0}}"#;
    assert_eq!(serde_json::from_str::<Status>(text).unwrap().services, None);
}
