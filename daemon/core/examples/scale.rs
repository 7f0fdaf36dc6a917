//! Time and memory that the pure core needs in a large cluster:
//! `cargo run --release -p hauberk-core --example scale`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use hauberk_core::desired::{Incremental, desired};
use hauberk_core::local_node::{LocalNode, Settings};
use hauberk_core::model::{Change, Model};
use hauberk_core::names::{PodName, ServiceName};
use hauberk_core::objects::{
    Endpoint, EndpointPort, EndpointSliceObject, NamespaceObject, NodeAddress, NodeObject, PodObject, ServiceObject,
    ServicePort,
};
use hauberk_core::plan::{plan, plan_within};
use hauberk_core::state::{Scope, State};
use hauberk_keyring::published::{PublicKey, Published, render};

const NODES: u32 = 1_000;
const PODS: u32 = 50_000;
const NAMESPACES: u32 = 100;
/// Pods that are added and then removed.
const CHURN: u32 = 10_000;
/// Services, and endpoints behind all of them.
const SERVICES: [(u32, u32); 2] = [(5_000, 250_000), (44_000, 100_000)];

fn main() {
    let mut model = Model::new("node-0");
    let local = LocalNode {
        name: "node-0".into(),
        settings: Settings {
            cluster_ranges: ["10.0.0.0/8", "fd00::/16"].iter().flat_map(|range| range.parse()).collect(),
            ..Settings::default()
        },
        ..LocalNode::default()
    };
    let mut actual = State::default();
    let mut known = Incremental::default();
    let empty = resident();
    measure("read the whole cluster", || {
        let changes = (0..NODES).map(node).chain((0..NAMESPACES).map(namespace)).chain((0..PODS).map(pod));
        for change in changes.chain([Change::Synced]) {
            let _ = model.apply(change);
        }
    });
    println!("the model: {:.1} MiB", resident() - empty);
    let _ = measure("desired, from nothing", || known.follow(&mut model, &local));
    println!("the model and what is desired: {:.1} MiB", resident() - empty);
    let steps = measure("plan, from nothing", || plan(&actual, &known));
    measure("take note of the steps", || steps.iter().for_each(|step| actual.apply(step)));
    println!("{} steps", steps.len());
    drop(steps);
    println!("the model, what is desired and what there is: {:.1} MiB", resident() - empty);

    let start = Instant::now();
    let mut steps = 0;
    for number in 0..CHURN {
        let object = pod_object(PODS + number);
        let name = PodName { namespace: object.namespace.clone(), name: object.name.clone() };
        for change in [Change::Pod(object), Change::PodGone(name)] {
            let _ = model.apply(change);
            let followed = known.follow(&mut model, &local);
            for step in plan_within(&actual, &known, &followed.scope) {
                actual.apply(&step);
                steps += 1;
            }
        }
    }
    let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(2 * CHURN);
    println!("a pod that comes or goes: {each:.1} us, {} steps in all", steps);
    println!("after that: {:.1} MiB", resident() - empty);

    let Change::Node(mut changed) = node(4_711 % NODES) else { return };
    changed.addresses.push(NodeAddress { address: [198, 51, 200, 1].into(), internal: false });
    let _ = model.apply(Change::Node(changed));
    let followed = measure("desired, after a node changed", || known.follow(&mut model, &local));
    let steps = measure("plan, after a node changed", || plan_within(&actual, &known, &followed.scope));
    println!("{} steps", steps.len());
    let scratch = measure("desired, from scratch", || desired(&model, &local));
    assert_eq!(scratch, *known);
    assert_eq!(plan_within(&actual, &known, &Scope::everything()), steps);

    for (services, endpoints) in SERVICES {
        of_services(services, endpoints / services);
    }
}

/// A node that knows nothing but services and as many endpoints of each.
fn of_services(services: u32, endpoints: u32) {
    println!("\n{services} services with {endpoints} endpoints each");
    let mut model = Model::new("node-0");
    let settings = Settings { services: true, ..Settings::default() };
    let local = LocalNode { name: "node-0".into(), settings, ..LocalNode::default() };
    let (mut actual, mut known) = (State::default(), Incremental::default());
    let empty = resident();
    measure("read them", || {
        for change in (0..services).map(service).chain((0..services).map(|number| slice(number, endpoints, 0))) {
            let _ = model.apply(change);
        }
        let _ = model.apply(Change::Synced);
    });
    println!("the model: {:.1} MiB", resident() - empty);
    let _ = measure("desired, from nothing", || known.follow(&mut model, &local));
    let steps = measure("plan, from nothing", || plan(&actual, &known));
    steps.iter().for_each(|step| actual.apply(step));
    println!("{} steps", steps.len());
    println!("the model, what is desired and what there is: {:.1} MiB", resident() - empty);

    let (start, mut steps, mut slowest) = (Instant::now(), 0, 0.0_f64);
    for number in 0..CHURN {
        let one = Instant::now();
        let _ = model.apply(slice(number % services, endpoints, 1 + number / services));
        let followed = known.follow(&mut model, &local);
        for step in plan_within(&actual, &known, &followed.scope) {
            actual.apply(&step);
            steps += 1;
        }
        slowest = slowest.max(one.elapsed().as_secs_f64());
    }
    let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(CHURN);
    println!("a change of endpoints: {each:.1} us, the slowest {:.1} us, {steps} steps in all", slowest * 1e6);
    let scratch = measure("desired, from scratch", || desired(&model, &local));
    assert_eq!(scratch, *known);
    assert_eq!(plan(&actual, &known), []);
}

fn measure<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

/// Resident memory of this process, MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

fn node(number: u32) -> Change {
    let mut bytes = [0x11; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    let ranges = [format!("10.{}.{}.0/24", number / 256, number % 256), format!("fd00:0:0:{number:x}::/64")];
    Change::Node(NodeObject {
        name: format!("node-{number}"),
        addresses: vec![NodeAddress { address: IpAddr::V4(Ipv4Addr::from_bits(0xc633_0000 + number)), internal: true }],
        pod_ranges: ranges.iter().flat_map(|range| range.parse()).collect(),
        keys: Some(render(&Published { port: 51840, keys: vec![PublicKey { epoch: 1, bytes }] })),
        ..NodeObject::default()
    })
}

fn namespace(number: u32) -> Change {
    let encryption = number.is_multiple_of(2).then(|| "enabled".to_owned());
    Change::Namespace(NamespaceObject { name: format!("team-{number}"), encryption, ..NamespaceObject::default() })
}

fn pod(number: u32) -> Change {
    Change::Pod(pod_object(number))
}

fn pod_object(number: u32) -> PodObject {
    let node = number % NODES;
    let host = 2 + number / NODES;
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, node as u16, 0, 0, 0, host as u16);
    PodObject {
        namespace: format!("team-{}", number % NAMESPACES),
        name: format!("checkout-7d9c6b5f4-{number:05}"),
        uid: Some(format!("0f1e2d3c-4b5a-4978-8695-a4b3c2d1{number:08x}")),
        node: Some(format!("node-{node}")),
        addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + node * 256 + host).into(), v6.into()],
        ..PodObject::default()
    }
}

fn service_name(number: u32, suffix: &str) -> ServiceName {
    ServiceName::new(&format!("team-{}", number % NAMESPACES), &format!("checkout-{number:05}{suffix}"))
}

fn service(number: u32) -> Change {
    Change::Service(ServiceObject {
        name: service_name(number, ""),
        cluster_addresses: vec![Ipv4Addr::from_bits(0xac10_0000 + number).into()],
        ports: vec![ServicePort { name: "http".into(), protocol: 6, port: 80, node_port: None }],
        ..ServiceObject::default()
    })
}

/// A slice whose first endpoint has another address at each `turn`.
fn slice(number: u32, endpoints: u32, turn: u32) -> Change {
    let endpoint = |place: u32| {
        let moved = if place == 0 { turn } else { 0 };
        Endpoint {
            address: Ipv4Addr::from_bits(0x0a00_0000 + number * endpoints + place + moved * 0x0010_0000).into(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(format!("node-{}", (number + place) % NODES).into()),
            hints: None,
        }
    };
    let name = service_name(number, "-x7k2p");
    Change::EndpointSlice(EndpointSliceObject {
        service: service_name(number, "").name,
        name,
        is_ipv4: true,
        ports: vec![EndpointPort { name: "http".into(), protocol: 6, port: 8080 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
        no_addresses: Vec::new(),
        origin: String::new(),
    })
}
