//! `hauberk services`: a table of all, and for one service its addresses and who answers there.

use std::net::SocketAddr;

use hauberk_api::{
    AddressFamily, BackendCondition, FromOutside, FrontendKind, Service, ServiceBackend, ServiceFrontend, ServiceMode,
    ServicesStatus, TrafficPolicy,
};

use crate::render::page::{self, Page, painted};
use crate::render::words::{counted, duration, encryption};

/// How many addresses and ports of a service the table shows.
const SHORT: usize = 3;

const HEADINGS: [&str; 5] = ["SERVICE", "TYPE", "BACKENDS", "ADDRESSES AND PORTS", "NOTES"];

/// All services, one a line.
pub(crate) fn table(services: &[Service]) -> String {
    let mut page = Page::default();
    if services.is_empty() {
        page.line("no service has been read");
        return page.into_text();
    }
    let rows: Vec<[String; 5]> = services.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default().max(HEADINGS[column].len())
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    page.line(line(&HEADINGS, &widths));
    for row in &rows {
        page.line(line(&row.each_ref().map(String::as_str), &widths));
    }
    page.into_text()
}

/// The columns, padded except for the last.
fn line(cells: &[&str; 5], widths: &[usize]) -> String {
    let [first @ .., last] = cells;
    let padded = first.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  "));
    padded.collect::<String>() + last
}

fn row(service: &Service) -> [String; 5] {
    let used = service.backends.iter().filter(|backend| backend.used).count();
    let shown: Vec<String> = service.frontends.iter().take(SHORT).map(address).collect();
    let addresses = match service.frontends.len().saturating_sub(SHORT) {
        0 if shown.is_empty() => "none".to_string(),
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    };
    [
        format!("{}/{}", service.namespace, service.name),
        service.kind.to_string(),
        format!("{used}/{}", service.backends.len()),
        addresses,
        notes(service),
    ]
}

/// What is special of a service, in few words.
fn notes(service: &Service) -> String {
    let (left, led): (Vec<_>, Vec<_>) = service.frontends.iter().partition(|frontend| frontend.left_out.is_some());
    let refused = led.iter().filter(|frontend| frontend.usable == 0).count();
    let mut notes = Vec::new();
    match refused {
        0 => {}
        _ if refused == led.len() => notes.push("no usable backend: connections are refused".to_string()),
        _ => notes.push(format!("{refused} of {} without a usable backend", led.len())),
    }
    match left.len() {
        0 => {}
        _ if led.is_empty() => notes.push("left out".to_string()),
        count => notes.push(format!("{count} of {} addresses left out", service.frontends.len())),
    }
    if let Some(seconds) = led.iter().map(|frontend| frontend.affinity_seconds).max().filter(|seconds| *seconds > 0) {
        notes.push(format!("clients keep their backend for {}", duration(seconds.into())));
    }
    if let Some(connections) = service.connections.filter(|connections| *connections > 0) {
        notes.push(format!("{} from outside", counted(connections, "connection")));
    }
    if notes.is_empty() { "none".to_string() } else { notes.join("; ") }
}

/// Everything about each of these services.
pub(crate) fn details(services: &[Service]) -> String {
    let mut page = Page::default();
    for service in services {
        let name = format!("{}/{}", service.namespace, service.name);
        page.heading(page::NODE, "service", painted(page::NODE, name));
        page.field("type", &service.kind);
        if let Some(connections) = service.connections {
            page.field("connections from outside the cluster", connections);
        }
        match service.frontends.is_empty() {
            true => page.field("reached at", "no address: clients use the addresses of its pods, or a name"),
            false => page.list("reached at"),
        }
        service.frontends.iter().for_each(|frontend| page.item(one_frontend(frontend)));
        match service.backends.is_empty() {
            true => page.field("answered by", painted(page::DOUBTFUL, "nobody: no endpoint is known")),
            false => page.list("answered by"),
        }
        service.backends.iter().for_each(|backend| page.item(one_backend(backend)));
    }
    page.into_text()
}

fn one_frontend(frontend: &ServiceFrontend) -> String {
    let kind = match frontend.kind.known() {
        Some(FrontendKind::ClusterAddress) => "cluster address",
        Some(FrontendKind::NodePort) => "node port",
        Some(FrontendKind::LoadBalancer) => "load balancer",
        Some(FrontendKind::ExternalAddress) => "external address",
        None => frontend.kind.as_str(),
    };
    let state = match (&frontend.left_out, frontend.usable) {
        (Some(why), _) => painted(page::DOUBTFUL, format_args!("left out: {why}")),
        (None, 0) => painted(page::BAD, "no usable backend: connections are refused"),
        (None, usable) => counted(usable as u64, "usable backend"),
    };
    let affinity = match frontend.affinity_seconds {
        0 => String::new(),
        seconds => format!("; a client keeps its backend for {}", duration(seconds.into())),
    };
    let port = if frontend.port_name.is_empty() { String::new() } else { format!(", port {}", frontend.port_name) };
    let outside = frontend.outside.as_ref().map(from_outside).unwrap_or_default();
    format!("{} ({kind}{port}): {state}{outside}{affinity}", address(frontend))
}

/// How clients outside the cluster are led.
fn from_outside(outside: &FromOutside) -> String {
    let place = match outside.policy.known() {
        Some(TrafficPolicy::Cluster) => String::new(),
        Some(TrafficPolicy::Local) => " on this node (externalTrafficPolicy: Local)".to_string(),
        None => format!(" by the policy {}", outside.policy),
    };
    let whom = match outside.usable {
        0 => painted(page::BAD, format_args!("no usable backend{place}")),
        usable => counted(usable as u64, "usable backend") + &place,
    };
    let clients = match outside.source_ranges.as_deref() {
        None => String::new(),
        Some([]) => painted(page::DOUBTFUL, ", for nobody: no range of loadBalancerSourceRanges is of this family"),
        Some(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            format!(", only for clients in {}", ranges.join(", "))
        }
    };
    format!("; from outside: {whom}{clients}")
}

fn one_backend(backend: &ServiceBackend) -> String {
    let condition = match backend.condition.known() {
        Some(BackendCondition::Ready) => painted(page::GOOD, "ready"),
        Some(BackendCondition::Terminating) => painted(page::DOUBTFUL, "terminating"),
        Some(BackendCondition::NotReady) => painted(page::BAD, "not ready"),
        None => backend.condition.to_string(),
    };
    let used = match (backend.used, backend.outside) {
        (true, None | Some(true)) => "used",
        (false, None | Some(false)) => "not used",
        (true, Some(false)) => "used, but not from outside",
        (false, Some(true)) => "used from outside only",
    };
    let place = match &backend.node {
        Some(node) => format!("on node {node}"),
        None => "on a node that is not known".to_string(),
    };
    let way = match (&backend.encryption, &backend.why) {
        (Some(verdict), Some(why)) => format!("; from this node: {} ({why})", encryption(verdict)),
        (Some(verdict), None) => format!("; from this node: {}", encryption(verdict)),
        (None, _) => String::new(),
    };
    let end = SocketAddr::new(backend.address, backend.port);
    let port = if backend.port_name.is_empty() { String::new() } else { format!(" (port {})", backend.port_name) };
    format!("{end}{port} {place}: {condition}, {used}{way}")
}

/// `10.96.0.10:80/tcp`, `any node:30080/tcp`.
fn address(frontend: &ServiceFrontend) -> String {
    let (port, protocol) = (frontend.port, &frontend.protocol);
    match (frontend.address, frontend.family.known()) {
        (Some(address), _) => format!("{}/{protocol}", SocketAddr::new(address, port)),
        (None, Some(AddressFamily::V4)) => format!("any node:{port}/{protocol}"),
        (None, Some(AddressFamily::V6)) => format!("[any node]:{port}/{protocol}"),
        (None, None) => format!("any node ({}):{port}/{protocol}", frontend.family),
    }
}

/// One line of `hauberk status`.
pub(crate) fn summary(services: &ServicesStatus) -> String {
    let known = counted(services.services as u64, "service");
    let failed = failed(services);
    match services.mode.known() {
        Some(ServiceMode::Sockets) => {
            format!("{known}, led to backends where connections are made (hauberk services){failed}")
        }
        Some(ServiceMode::SocketsAndDevices) => {
            format!(
                "{known}, led to backends where connections are made and where packets arrive (hauberk services){failed}"
            )
        }
        Some(ServiceMode::BesideKubeProxy) => "left to kube-proxy (services.sockets is off)".to_string(),
        None => services.mode.to_string(),
    }
}

/// The same line of `hauberk status --verbose`: who leads connections, and where.
pub(crate) fn mode(services: &ServicesStatus) -> String {
    let failed = failed(services);
    match services.mode.known() {
        Some(ServiceMode::BesideKubeProxy) => "beside kube-proxy (services.sockets is off)".to_string(),
        Some(ServiceMode::Sockets) => format!("at sockets, beside kube-proxy{failed}"),
        Some(ServiceMode::SocketsAndDevices) => format!("at sockets and devices (kube-proxy is not needed){failed}"),
        None => services.mode.to_string(),
    }
}

fn failed(services: &ServicesStatus) -> String {
    match services.failed {
        0 => String::new(),
        failed => painted(page::BAD, format_args!(", {failed} connections refused for want of a readable table")),
    }
}

/// What `hauberk status --verbose` adds; nothing where services are left to kube-proxy.
pub(crate) fn figures(services: &ServicesStatus) -> Option<String> {
    let outside = match services.connections {
        Some(connections) => format!("; {} from outside", counted(connections, "connection")),
        None => String::new(),
    };
    matches!(services.mode.known(), Some(ServiceMode::Sockets | ServiceMode::SocketsAndDevices)).then(|| {
        format!(
            "{}, {}; {} balanced, {} refused, {} failed{outside}",
            counted(services.frontends as u64, "frontend"),
            counted(services.backends as u64, "backend"),
            counted(services.balanced, "connection"),
            services.refused,
            services.failed,
        )
    })
}

#[cfg(test)]
mod tests {
    use hauberk_api::Word;

    use super::*;
    use crate::render::samples::{golden, service_from_outside, services, services_status};

    #[test]
    fn all_of_them_and_none() {
        golden("services", &table(&services()));
        assert_eq!(table(&[]), "no service has been read\n");
    }

    #[test]
    fn each_with_its_addresses_and_who_answers() {
        golden("services-details", &details(&services()));
    }

    #[test]
    fn clients_outside_the_cluster_have_their_own_backends() {
        let service = [service_from_outside()];
        golden("services-outside", &(table(&service) + "\n" + &details(&service)));
    }

    #[test]
    fn words_of_a_newer_agent_are_shown_as_they_are() {
        let mut services = services();
        services.truncate(1);
        services[0].kind = Word::Other("Mesh".to_string());
        services[0].frontends[0].kind = Word::Other("anycast".to_string());
        services[0].backends[0].condition = Word::Other("draining".to_string());
        services[0].frontends[1].family = Word::Other("ipv8".to_string());
        let text = anstream::adapter::strip_str(&(table(&services) + &details(&services))).to_string();
        for word in ["Mesh", "(anycast, port http)", ": draining, used", "any node (ipv8):30080/tcp"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn the_status_says_who_leads_connections() {
        let mut status = services_status();
        let words = |status: &ServicesStatus| anstream::adapter::strip_str(&summary(status)).to_string();
        assert_eq!(words(&status), "2 services, led to backends where connections are made (hauberk services)");
        assert_eq!(figures(&status).unwrap(), "5 frontends, 7 backends; 12 connections balanced, 1 refused, 0 failed");
        status.failed = 3;
        assert!(words(&status).ends_with(", 3 connections refused for want of a readable table"));
        status.mode = ServiceMode::BesideKubeProxy.into();
        assert_eq!(words(&status), "left to kube-proxy (services.sockets is off)");
        assert_eq!(figures(&status), None);
        assert_eq!(mode(&status), "beside kube-proxy (services.sockets is off)");
        status.mode = ServiceMode::SocketsAndDevices.into();
        status.connections = Some(40);
        assert!(words(&status).contains("where connections are made and where packets arrive"));
        assert!(figures(&status).unwrap().ends_with("; 40 connections from outside"));
        let named = |status: &ServicesStatus| anstream::adapter::strip_str(&mode(status)).to_string();
        assert!(named(&status).starts_with("at sockets and devices (kube-proxy is not needed), 3 connections refused"));
        status.mode = ServiceMode::Sockets.into();
        status.failed = 0;
        assert_eq!(mode(&status), "at sockets, beside kube-proxy");
        status.mode = Word::Other("everything".to_string());
        assert_eq!(words(&status), "everything");
    }
}
