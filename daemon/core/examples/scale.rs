//! How long the pure core takes for a large cluster: `cargo run --release -p hauberk-core --example scale`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use hauberk_core::desired::{Policy, desired};
use hauberk_core::model::{Change, Model, NamespaceObject, NodeAddress, NodeObject, PodObject};
use hauberk_core::plan::{Actual, plan};
use hauberk_keyring::published::{PublicKey, Published, render};

const NODES: u32 = 1_000;
const PODS: u32 = 20_000;

fn main() {
    let changes: Vec<Change> = (0..NODES).map(node).chain([namespace()]).chain((0..PODS).map(pod)).collect();
    let mut model = Model::new("node-0");
    let policy = Policy {
        node: "node-0".into(),
        cluster_ranges: ["10.0.0.0/8"].iter().flat_map(|range| range.parse()).collect(),
        ..Policy::default()
    };
    let mut actual = Actual::default();
    measure("read the whole cluster", || {
        for change in changes.into_iter().chain([Change::Synced]) {
            let _ = model.apply(change);
        }
    });
    measure("desired from scratch", || desired(&model, &policy));
    let first = desired(&model, &policy);
    let steps = measure("plan from nothing", || plan(&actual, &first));
    println!("{} steps", steps.len());
    measure("apply the steps to the actual state", || steps.iter().for_each(|step| actual.apply(step)));
    let _ = model.apply(Change::Pod(PodObject { encryption: Some("enabled".into()), ..pod_object(4711) }));
    let changed = measure("desired after one label", || desired(&model, &policy));
    let steps = measure("plan after one label", || plan(&actual, &changed));
    println!("{} step", steps.len());
}

fn measure<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

fn node(number: u32) -> Change {
    let mut bytes = [0x11; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Change::Node(NodeObject {
        name: format!("node-{number}"),
        addresses: vec![NodeAddress { address: IpAddr::V4(Ipv4Addr::from_bits(0xc633_0000 + number)), internal: true }],
        pod_ranges: format!("10.{}.{}.0/24", number / 256, number % 256).parse().into_iter().collect(),
        keys: Some(render(&Published { port: 51840, keys: vec![PublicKey { epoch: 1, bytes }] })),
        ..NodeObject::default()
    })
}

fn namespace() -> Change {
    Change::Namespace(NamespaceObject { name: "default".into(), ..NamespaceObject::default() })
}

fn pod(number: u32) -> Change {
    Change::Pod(pod_object(number))
}

fn pod_object(number: u32) -> PodObject {
    let node = number % NODES;
    let host = 2 + number / NODES;
    PodObject {
        namespace: "default".into(),
        name: format!("pod-{number}"),
        node: Some(format!("node-{node}")),
        addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + node * 256 + host).into()],
        ..PodObject::default()
    }
}
