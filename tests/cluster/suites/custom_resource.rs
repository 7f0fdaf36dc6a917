//! HauberkConfig on a real API server: valid objects are accepted, invalid ones are refused with a
//! sentence that says why.

use anyhow::{Result, ensure};
use hauberk_cluster::{Context, ControlPlane, Kubectl, Options, Test};
use serde_json::{Value, json};

use crate::chart;

pub const TESTS: &[Test] = &[Test::new("custom_resource::nonsense_is_refused_with_the_reason", custom_resource)];

fn custom_resource(context: &Context) -> Result<()> {
    let control_plane = ControlPlane::start(&context.directory, &Options::default())?;
    let kubectl = &control_plane.kubectl;
    chart::install(kubectl, &[])?;
    installed(kubectl)?;
    sound(kubectl)?;
    nonsense(kubectl)?;
    there_is_one(kubectl)?;
    status(kubectl)
}

/// Checks the object that was made from the chart's values.
fn installed(kubectl: &Kubectl) -> Result<()> {
    let object: Value = kubectl.get(&["hauberkconfig", "cluster"])?;
    ensure!(object["spec"]["clusterRanges"] == json!(hauberk_cluster::control_plane::POD_RANGES), "{object}");
    ensure!(object["spec"]["tunnel"]["port"] == 51840 && object["spec"]["hostRouting"] == "stack", "{object}");
    // No value instead of "auto": then the agent's file decides.
    ensure!(object["spec"]["uplinks"].is_null(), "{object}");
    Ok(())
}

fn sound(kubectl: &Kubectl) -> Result<()> {
    let ranges = json!(["10.0.0.0/8", "fd00::/48"]);
    for spec in [
        json!({"clusterRanges": ranges}),
        json!({"clusterRanges": ["192.168.7.1/32", "2001:db8::1/128"]}),
        json!({"clusterRanges": ranges, "nodeRanges": ["192.168.0.0/16", "fd01::/64"]}),
        json!({"clusterRanges": ranges, "tunnel": {"mtu": 1280, "threads": 64}}),
        json!({"clusterRanges": ranges, "tunnel": {"mtu": "auto", "threads": "auto", "port": 65535, "backend": "userspace", "handshakesPerSecond": 1, "spinMicroseconds": 0, "copyDscp": true, "cipher": "ring"}}),
        json!({"clusterRanges": ranges, "uplinks": ["eth0", "bond0.100", "wan@1"]}),
        json!({"clusterRanges": ranges, "limits": {"endpoints": 1, "ranges": 16777216, "flows": 1, "attachments": 1, "events": 4096}}),
        json!({"clusterRanges": ranges, "hostRouting": "bpf", "worldIngress": "direct", "allowPodOptOut": true,
            "defaults": {"encryption": "enabled"}, "log": {"level": "trace", "format": "text"}}),
    ] {
        kubectl.apply(&config("cluster", &spec))?;
    }
    Ok(())
}

/// Tries invalid specs. Each case has a spec and the expected part of the refusal.
fn nonsense(kubectl: &Kubectl) -> Result<()> {
    let with = |field: Value| {
        let mut spec = json!({"clusterRanges": ["10.244.0.0/16"]});
        for (name, value) in field.as_object().into_iter().flatten() {
            spec[name] = value.clone();
        }
        spec
    };
    let ranges = |range: &str| json!({"clusterRanges": [range]});
    let no_range = "this is not a range: write it like 10.244.0.0/16 or fd00:10:244::/48";
    let unlinked = "no address in it leaves its link or belongs to one party";
    let mtu = "the MTU must be auto, or a number of bytes from 1280 (what IPv6 needs) to 65455";
    let device = "no network device can be named so";
    let cases: Vec<(Value, &str)> = vec![
        (json!({"hostRouting": "stack"}), "spec.clusterRanges: Required value"),
        (json!({"clusterRanges": []}), "should have at least 1 items"),
        (ranges("10.244.0.0"), no_range),
        (ranges("10.244.0.0/33"), no_range),
        (ranges("10.244.0/16"), no_range),
        (ranges("fd00::/129"), no_range),
        (ranges("::ffff:10.0.0.0/104"), no_range),
        (ranges("pods"), no_range),
        (ranges("10.244.0.1/16"), "the bits behind the prefix must be zero"),
        (ranges("fd00::1/64"), "the bits behind the prefix must be zero"),
        (ranges("0.0.0.0/0"), "this is the whole Internet"),
        (ranges("::/0"), "this is the whole Internet"),
        (ranges("127.0.0.0/8"), unlinked),
        (ranges("169.254.0.0/16"), unlinked),
        (ranges("fe80::/10"), unlinked),
        (ranges("224.0.0.0/8"), unlinked),
        (ranges("ff02::/16"), unlinked),
        (json!({"clusterRanges": ["10.0.0.0/8", "10.0.0.0/8"]}), "Duplicate value"),
        (json!({"clusterRanges": "10.0.0.0/8"}), "must be of type array"),
        (with(json!({"nodeRanges": ["10.244.7.0/24"]})), "a range of clusterRanges and one of nodeRanges overlap"),
        (with(json!({"nodeRanges": ["10.0.0.0/8"]})), "a range of clusterRanges and one of nodeRanges overlap"),
        (with(json!({"nodeRanges": ["nodes"]})), no_range),
        (with(json!({"hostRouting": "xdp"})), "supported values: \"bpf\", \"stack\""),
        (with(json!({"worldIngress": "open"})), "supported values: \"translated\", \"direct\""),
        (with(json!({"allowPodOptOut": "yes"})), "must be of type boolean"),
        (
            with(json!({"defaults": {"encryption": "on"}})),
            "supported values: \"disabled\", \"permissive\", \"enabled\"",
        ),
        (with(json!({"tunnel": {"backend": "openvpn"}})), "supported values: \"auto\", \"userspace\""),
        (with(json!({"tunnel": {"port": 0}})), "should be greater than or equal to 1"),
        (with(json!({"tunnel": {"port": 65536}})), "should be less than or equal to 65535"),
        (with(json!({"tunnel": {"mtu": 1279}})), mtu),
        (with(json!({"tunnel": {"mtu": 65456}})), mtu),
        (with(json!({"tunnel": {"mtu": "1400"}})), mtu),
        (with(json!({"tunnel": {"threads": 0}})), "threads must be auto, or a number from 1 to 64"),
        (with(json!({"tunnel": {"threads": "4"}})), "threads must be auto, or a number from 1 to 64"),
        (with(json!({"tunnel": {"handshakesPerSecond": 0}})), "should be greater than or equal to 1"),
        (with(json!({"tunnel": {"spinMicroseconds": 1001}})), "should be less than or equal to 1000"),
        (with(json!({"uplinks": []})), "should have at least 1 items"),
        (with(json!({"uplinks": ["eth0", "eth0"]})), "Duplicate value"),
        (with(json!({"uplinks": ["eth0/1"]})), device),
        (with(json!({"uplinks": ["eth%d"]})), device),
        (with(json!({"uplinks": [".."]})), device),
        (with(json!({"uplinks": ["a-name-too-long-for-linux"]})), "Too long: may not be more than 15 bytes"),
        (with(json!({"limits": {"endpoints": 0}})), "should be greater than or equal to 1"),
        (with(json!({"limits": {"flows": 16777217}})), "should be less than or equal to 16777216"),
        (with(json!({"limits": {"events": 5000}})), "the ring buffer's size must be a power of two"),
        (with(json!({"log": {"level": "loud"}})), "supported values: \"error\""),
    ];
    // As on a first installation: no object exists yet.
    kubectl.run(&["delete", "hauberkconfig", "cluster"])?;
    for (spec, sentence) in &cases {
        let refusal = kubectl.refused(&["create", "-f", "-"], &config("cluster", spec))?;
        ensure!(refusal.contains(sentence), "{spec} should be refused with {sentence:?}, not {refusal}");
    }
    // A field that does not exist is reported to a client that asks for validation.
    for unknown in
        [json!({"clusterRange": ["10.0.0.0/8"]}), json!({"tunnel": {"prot": 1}}), json!({"paths": {"state": "/x"}})]
    {
        let text = config("cluster", &with(unknown));
        let refusal = kubectl.refused(&["create", "--validate=strict", "-f", "-"], &text)?;
        ensure!(refusal.contains("unknown field"), "{text}: {refusal}");
    }
    // A change cannot turn a valid object into one that could not be created.
    kubectl.apply(&config("cluster", &with(json!({"tunnel": {"port": 4500}}))))?;
    let patch = json!({"spec": {"clusterRanges": ["0.0.0.0/0"]}}).to_string();
    let refusal = kubectl.refused(&["patch", "hauberkconfig", "cluster", "--type=merge", "-p", &patch], "")?;
    ensure!(refusal.contains("this is the whole Internet"), "{refusal}");
    Ok(())
}

fn there_is_one(kubectl: &Kubectl) -> Result<()> {
    let refusal = kubectl.apply_refused(&config("another", &json!({"clusterRanges": ["10.244.0.0/16"]})))?;
    ensure!(refusal.contains("there is one HauberkConfig in a cluster, and its name is cluster"), "{refusal}");
    Ok(())
}

/// Only the status subresource writes the status, which has one entry per node.
fn status(kubectl: &Kubectl) -> Result<()> {
    let node = |name: &str, generation: u32| json!({"name": name, "generation": generation, "accepted": true});
    let patch = |nodes: Value| json!({"status": {"acceptedNodes": 2, "nodes": nodes}}).to_string();
    let write = ["patch", "hauberkconfig", "cluster", "--type=merge", "-p"];
    let good = patch(json!([node("n1", 1), node("n2", 1)]));
    kubectl.run(&[&write[..], &[&good]].concat())?;
    let object: Value = kubectl.get(&["hauberkconfig", "cluster"])?;
    ensure!(object["status"].is_null(), "the status was written with the spec: {object}");

    kubectl.run(&[&write[..], &[&good, "--subresource=status"]].concat())?;
    let twice = patch(json!([node("n1", 1), node("n1", 2)]));
    let refusal = kubectl.refused(&[&write[..], &[&twice, "--subresource=status"]].concat(), "")?;
    ensure!(refusal.contains("Duplicate value"), "{refusal}");

    let table = kubectl.run(&["get", "hauberkconfig"])?;
    let mut lines = table.lines();
    let heading: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    ensure!(heading == ["NAME", "BACKEND", "ROUTING", "DEFAULT", "ACCEPTED", "AGE"], "{table}");
    ensure!(lines.next().is_some_and(|line| line.starts_with("cluster ") && line.contains(" 2 ")), "{table}");
    Ok(())
}

fn config(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "hauberk.io/v1alpha1", "kind": "HauberkConfig", "metadata": {"name": name}, "spec": spec})
        .to_string()
}
