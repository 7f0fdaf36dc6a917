//! `hauberk bpf`: the maps in words.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hauberk_abi::address::Address;
use hauberk_abi::connection::{Connection, Direction, state};
use hauberk_abi::identity::{Identity, Kind};
use hauberk_abi::layout::{Settings, flag, peer_flag};
use hauberk_abi::service::{Backend, ClientKey, Frontend, OutsideClientKey, SocketKey, client, frontend_flag};
use hauberk_api::{LinkStatus, MacAddress, MapContent, Maps};
use hauberk_core::names::NodeNumber;
use hauberk_core::words::prefix_in_words;
use hauberk_datapath::tables::{Table, answers, connections, identities, pods, services, tunnels};
use hauberk_datapath::{DatapathError, Pins};

use super::{MapReader, attach_method, protocol_in_words};
use crate::state::{AgentState, SharedState};

/// Everything the datapath holds.
///
/// # Errors
/// [`DatapathError`] if a map cannot be read.
pub fn maps(agent: &SharedState, map_reader: &MapReader, pins: &Pins) -> Result<Maps, DatapathError> {
    let links = pins
        .attached()?
        .into_iter()
        .map(|link| LinkStatus { interface: link.interface, hook: link.hook, how: attach_method(link.how).into() })
        .collect();
    let maps = map_reader.maps();
    let agent = agent.read();
    let row = |table: &Table, rows: Vec<(String, String)>| MapContent {
        name: table.name().into(),
        purpose: table.holds.into(),
        entries: rows.len(),
        capacity: maps.capacity(table).unwrap_or(0) as usize,
        rows,
        makes_room: false,
    };
    let passing = |table: &Table, rows: Vec<(String, String)>| MapContent { makes_room: true, ..row(table, rows) };
    let endpoints =
        maps.endpoints()?.into_iter().map(|(address, id)| (address.to_string(), identity(&agent, &id, Some(&address))));
    let ranges = maps.ranges()?.into_iter().map(|(range, id)| (prefix_in_words(range), identity(&agent, &id, None)));
    let attachments = maps.attachments()?.into_iter().map(|(address, attachment)| {
        (
            address.to_string(),
            format!("interface {} with MAC {}", attachment.interface, MacAddress::from(attachment.macs[0])),
        )
    });
    let interfaces = maps.interfaces()?.into_iter().map(|(index, interface)| {
        let protection = Identity { kind: Kind::Pod as u8, protection: interface.protection, reserved: 0, node: 0 };
        (format!("interface {index}"), format!("pod, {}", protection_in_words(&protection)))
    });
    let peers = maps.peers()?.into_iter().map(|(number, peer)| {
        let key = if peer.flags & peer_flag::KEY != 0 { "has a key" } else { "has no key" };
        let ready = if peer.flags & peer_flag::READY != 0 { ", answered a handshake" } else { "" };
        (node(&agent, number), format!("{key}{ready}, epoch {}", peer.epoch))
    });
    let sealed = maps.sealed()?.into_iter().map(|(flow, answer)| {
        let (source, destination) = (flow.source, flow.destination);
        let what = match flow.protocol {
            0 => format!("{source} -> {destination}, ICMP"),
            protocol => {
                format!(
                    "{source} -> {destination}, protocol {protocol}, {} -> {}",
                    flow.source_port, flow.destination_port
                )
            }
        };
        (what, format!("sealed to {}", node(&agent, answer.node)))
    });
    let sets = maps.sets()?;
    let frontends = maps.frontends()?.into_iter().map(|(key, to)| (key.to_string(), frontend(&to)));
    let backends =
        sets.iter().flat_map(|(number, backends)| backends.iter().map(move |backend| (set(*number), end(backend))));
    let sizes = sets.iter().map(|(number, backends)| (set(*number), format!("backends: {}", backends.len())));
    let choices = maps.choices()?.into_iter().map(|(client, choice)| (client_of(&client), end(&choice.backend)));
    let sockets = maps.sockets()?.into_iter().map(|(socket, seen)| {
        (socket_of(&socket), format!("is told {}", SocketAddr::new(seen.address.into(), seen.port)))
    });
    let sources = maps.sources()?.into_iter().map(|range| (range.to_string(), "admitted".to_owned()));
    let clients = maps.clients()?.into_iter().map(|(client, choice)| (outside_client(&client), end(&choice.backend)));
    let now = hauberk_datapath::now();
    let led = maps.connections()?.into_iter().map(|(client, to)| (direction(&client), connection(&client, &to, now)));
    let replies = maps.replies()?.into_iter().map(|(answers, client)| (direction(&answers), direction(&client)));
    Ok(Maps {
        pin_directory: pins.display(),
        settings: settings(&agent, &maps.settings()?, maps.masquerade()?),
        maps: vec![
            row(&identities::ENDPOINTS, endpoints.collect()),
            row(&identities::RANGES, ranges.collect()),
            row(&pods::ATTACHMENTS, attachments.collect()),
            row(&pods::INTERFACES, interfaces.collect()),
            row(&tunnels::PEERS, peers.collect()),
            row(&answers::SEALED, sealed.collect()),
            row(&services::FRONTENDS, frontends.collect()),
            row(&services::SETS, sizes.collect()),
            row(&services::BACKENDS, backends.collect()),
            row(&services::SOURCES, sources.collect()),
            row(&connections::CONNECTIONS, led.collect()),
            row(&connections::REPLIES, replies.collect()),
            passing(&services::CLIENTS, clients.collect()),
            passing(&services::CHOICES, choices.collect()),
            passing(&services::SOCKETS, sockets.collect()),
        ],
        links,
    })
}

fn settings(agent: &AgentState, settings: &Settings, masquerade: [Address; 2]) -> BTreeMap<String, String> {
    let on = |bit: u32| if settings.flags & bit != 0 { "yes" } else { "no" }.to_owned();
    BTreeMap::from([
        ("node".into(), node(agent, settings.node)),
        ("tunnel interface".into(), settings.tunnel.to_string()),
        ("tunnel MTU".into(), settings.tunnel_mtu.to_string()),
        ("host routing by the stack".into(), on(flag::STACK)),
        ("every object read".into(), on(flag::SYNCED)),
        ("world may reach pods directly".into(), on(flag::WORLD_DIRECT)),
        ("mark bits".into(), format!("{:#x}", 0xfu32.checked_shl(settings.mark_shift).unwrap_or(0))),
        ("flow idle time".into(), format!("{} ms", settings.flow_idle_ms)),
        ("source of outside clients' packets to other nodes".into(), masquerade_in_words(masquerade)),
    ])
}

fn masquerade_in_words(addresses: [Address; 2]) -> String {
    let known: Vec<String> = addresses.iter().filter(|address| !unspecified(address)).map(Address::to_string).collect();
    if known.is_empty() { "none".into() } else { known.join(", ") }
}

fn unspecified(address: &Address) -> bool {
    std::net::IpAddr::from(*address).is_unspecified()
}

fn frontend(to: &Frontend) -> String {
    let affinity = match to.affinity {
        0 => String::new(),
        seconds => format!(", a client keeps its backend for {seconds} s"),
    };
    let own = match to.flags & frontend_flag::OWN_NODE {
        0 => "",
        _ => ", left alone at other nodes' addresses",
    };
    let outside = match to.flags & frontend_flag::OUTSIDE {
        0 => String::new(),
        _ => format!(", from outside {}", set(to.outside)),
    };
    let limited = match to.flags & frontend_flag::LIMITED {
        0 => "",
        _ => " for clients in SOURCES alone",
    };
    format!("{}{outside}{limited}{affinity}{own}", set(to.set))
}

fn outside_client(client: &OutsideClientKey) -> String {
    format!("client {} at {}", client.address, set(client.set))
}

fn direction(of: &Direction) -> String {
    // Wider than a protocol's number only for the alignment.
    let protocol = protocol_in_words(of.protocol as u8);
    let from = SocketAddr::new(of.source.into(), of.source_port);
    format!("{protocol} {from} -> {}", SocketAddr::new(of.destination.into(), of.destination_port))
}

fn connection(client: &Direction, to: &Connection, now: u64) -> String {
    let masqueraded = match (to.source, to.source_port) == (client.source, client.source_port) {
        true => String::new(),
        false => format!(" as {}", SocketAddr::new(to.source.into(), to.source_port)),
    };
    let stage = match to.state {
        reset if reset & state::RESET != 0 => "broken off",
        closed if closed & state::CLOSED == state::CLOSED => "closed",
        half if half & state::CLOSED != 0 => "half closed",
        answered if answered & state::ANSWERED != 0 => "answered",
        _ => "not answered yet",
    };
    let silent = now.saturating_sub(to.last) / 1_000_000_000;
    format!("{} of {}{masqueraded}, {stage}, silent for {silent} s", end(&to.backend), set(to.set))
}

fn set(number: u64) -> String {
    format!("set {number:016x}")
}

fn end(backend: &Backend) -> String {
    SocketAddr::new(backend.address.into(), backend.port).to_string()
}

fn client_of(client: &ClientKey) -> String {
    let kind = if client.kind == client::SOCKET { "socket" } else { "network namespace" };
    format!("{kind} {} at {}", client.cookie, set(client.set))
}

fn socket_of(socket: &SocketKey) -> String {
    format!("socket {}, protocol {}, with {}", socket.cookie, socket.protocol, end(&socket.backend))
}

fn identity(agent: &AgentState, identity: &Identity, address: Option<&Address>) -> String {
    let name = address.and_then(|address| agent.name_of(address)).map(|name| format!(" {name}")).unwrap_or_default();
    let place = if identity.node == 0 { "no known node".to_owned() } else { node(agent, identity.node) };
    match identity.kind() {
        Kind::Pod => format!("pod{name} on {place}, {}", protection_in_words(identity)),
        Kind::Node => format!("node{name}"),
        Kind::UnknownPod => format!("unknown pod on {place}, treated as enabled"),
        Kind::UnknownNode => "unknown node".into(),
        Kind::World => "outside the cluster".into(),
        Kind::Probe => "self-test".into(),
    }
}

fn protection_in_words(identity: &Identity) -> &'static str {
    match identity.protection() {
        hauberk_abi::identity::Protection::None => "not opted in",
        hauberk_abi::identity::Protection::Permissive => "permissive",
        hauberk_abi::identity::Protection::Enabled => "enabled",
    }
}

fn node(agent: &AgentState, number: u32) -> String {
    agent.model.node_name(NodeNumber(number)).map_or_else(|| format!("node number {number}"), str::to_owned)
}
