use proptest::prelude::*;

use super::*;

const SMALLEST: &str = "clusterRanges: [10.244.0.0/16, \"fd00:10:244::/48\"]\n";

fn problems(text: &str) -> Vec<String> {
    match parse(text) {
        Err(ConfigError::Invalid(problems)) => problems,
        other => panic!("expected a list of problems, got {other:?}"),
    }
}

#[test]
fn cluster_ranges_alone_are_enough() {
    let config = parse(SMALLEST).unwrap();
    assert_eq!(config.tunnel.device, "hauberk0");
    assert_eq!(config.metrics, "127.0.0.1:9551".parse().ok());
}

#[test]
fn every_field_of_the_effective_configuration_is_read_back() {
    let config = parse(SMALLEST).unwrap();
    assert_eq!(parse(&config.to_yaml().unwrap()).unwrap(), config);
    let text = "node: n1\nclusterRanges: [10.0.0.0/8]\nnodeRanges: [192.168.0.0/24]\nhostRouting: stack\nworldIngress: direct\n\
        allowPodOptOut: true\ntunnel: {backend: userspace, device: h1, port: 1, mtu: 1400, threads: 3, handshakesPerSecond: 1, spinMicroseconds: 0, copyDscp: true, cipher: ring}\n\
        uplinks: [eth0, eth1]\nattach: clsact\nmarkShift: 0\nmetrics: null\nlog: {level: debug, format: json}\n\
        services: {sockets: true, outside: true}\npaths: {state: /a, socket: /b, uapi: /c, pins: /d, cgroup: /e}\nsource: {directory: /m}\n\
        limits: {endpoints: 1, ranges: 1, flows: 1, attachments: 1, events: 4096, frontends: 1, backends: 1, sockets: 1, connections: 1}\n";
    let config = parse(text).unwrap();
    assert_eq!(config.tunnel.mtu, Automatic::Value(1400));
    assert_eq!(config.metrics, None);
    assert_eq!(parse(&config.to_yaml().unwrap()).unwrap(), config);
}

#[test]
fn an_empty_file_is_told_how_to_find_the_cluster_ranges() {
    for text in ["", "---\n", "{}", "# nothing\n"] {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{text:?}");
        assert!(problems[0].contains("clusterRanges") && problems[0].contains("--cluster-cidr"), "{problems:?}");
    }
}

#[test]
fn unknown_fields_are_all_named_with_path_and_nearest() {
    let problems = problems("clusterRange: []\ntunnel: {prot: 1, device: x}\nlimits: {endpoint: 1, xyzzy: 2}\n");
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems[0].contains("`clusterRange`") && problems[0].contains("`clusterRanges`"), "{problems:?}");
    assert!(problems[1].contains("`tunnel.prot`") && problems[1].contains("`tunnel.port`"), "{problems:?}");
    assert!(problems[2].contains("`limits.endpoint`") && problems[2].contains("`limits.endpoints`"), "{problems:?}");
    assert!(problems[3].contains("`limits.xyzzy`") && problems[3].contains("attachments"), "{problems:?}");
}

#[test]
fn a_wrong_type_is_named_with_its_path() {
    for (text, part) in [
        ("tunnel: {port: many}", "tunnel.port"),
        ("tunnel: {mtu: small}", "tunnel.mtu"),
        ("tunnel: {threads: some}", "tunnel.threads"),
        ("uplinks: eth0", "uplinks"),
        ("clusterRanges: [10.0.0.0/33]", "clusterRanges"),
        ("hostRouting: xdp", "hostRouting"),
        ("[1, 2]", "fields"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn every_impossible_value_is_listed() {
    let text = "node: Not_A_Name\nclusterRanges: [10.0.0.1/8, 0.0.0.0/0, \"::ffff:10.0.0.0/104\", 224.0.0.0/8]\n\
        nodeRanges: [10.1.0.0/16]\ntunnel: {device: a/b, port: 0, mtu: 100, threads: 65, handshakesPerSecond: 0, spinMicroseconds: 1001}\n\
        uplinks: [\"\", eth0, eth0, a/b]\nmarkShift: 29\npaths: {state: relative, socket: /s, uapi: /s}\n\
        limits: {endpoints: 0, events: 5000}\nsource: {directory: x}\n";
    let problems = problems(text);
    for part in [
        "`node`",
        "10.0.0.1/8",
        "0.0.0.0/0",
        "::ffff:",
        "224.0.0.0/8",
        "10.1.0.0/16",
        "tunnel.device",
        "tunnel.port",
        "tunnel.mtu",
        "tunnel.threads",
        "handshakesPerSecond",
        "spinMicroseconds",
        "`uplinks`",
        "eth0",
        "markShift",
        "paths.state",
        "paths.uapi",
        "limits.endpoints",
        "limits.events",
        "source.directory",
    ] {
        assert!(problems.iter().any(|p| p.contains(part)), "{part} is missing in {problems:#?}");
    }
}

#[test]
fn the_node_is_named_by_flag_file_or_host_in_this_order() {
    let mut config = parse(&format!("node: from-file\n{SMALLEST}")).unwrap();
    assert_eq!(config.clone().resolve_node(Some("from-flag")).unwrap(), "from-flag");
    assert_eq!(config.resolve_node(None).unwrap(), "from-file");
    assert!(config.resolve_node(Some("No Name")).is_err());
    assert!(!parse(SMALLEST).unwrap().resolve_node(None).unwrap().is_empty());
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_yaml_panics(text in "((clusterRanges|tunnel|mtu|uplinks|paths|limits|node|x): ?|[\\[\\]{},&*a!\"'|>-]|auto|1|10.0.0.0/8|\n|  ){0,40}") {
        let _ = parse(&text);
    }
}

#[test]
fn objects_come_from_a_folder_or_from_a_server_never_from_both() {
    let source = |text: &str| parse(&format!("{SMALLEST}source: {text}")).map(|config| config.source);
    assert_eq!(source("{}").unwrap(), Source::Directory("/etc/hauberk/manifests".into()));
    assert_eq!(source("{directory: /m}").unwrap(), Source::Directory("/m".into()));
    for defaults in ["{kubernetes: {}}", "{kubernetes: }", "{kubernetes: null}"] {
        assert_eq!(source(defaults).unwrap(), Source::Kubernetes(Kubernetes::default()), "{defaults}");
    }
    let error = source("{directory: /m, kubernetes: {}}").unwrap_err().to_string();
    assert!(error.contains("source.directory") && error.contains("source.kubernetes"), "{error}");
    let problems = problems(&format!("{SMALLEST}source: {{kubernetes: {{namespce: x}}}}"));
    assert!(problems[0].contains("`source.kubernetes.namespace`"), "{problems:?}");
}

#[test]
fn the_cluster_s_own_configuration_may_bring_the_ranges() {
    let mut config = parse("source: {kubernetes: {kubeconfig: /k, namespace: hauberk}}").unwrap();
    assert_eq!(parse(&config.to_yaml().unwrap()).unwrap(), config);
    let error = config.validate_effective().unwrap_err().to_string();
    assert!(error.contains("clusterRanges"), "{error}");
    config.cluster_ranges.push("10.0.0.0/8".parse().unwrap());
    config.validate_effective().unwrap();
}

#[test]
fn a_chained_plugin_needs_the_stack_and_its_files_names_the_runtime_reads() {
    let cni = |text: &str| format!("{SMALLEST}cni: {text}");
    let chained = problems(&cni("{install: chained}"));
    assert!(chained.len() == 1 && chained[0].contains("hostRouting: stack"), "{chained:?}");
    let config = parse(&format!("{}\nhostRouting: stack", cni("{install: chained}"))).unwrap();
    assert_eq!(config.cni.install, CniInstall::Chained);
    assert_eq!(parse(&config.to_yaml().unwrap()).unwrap(), config);
    parse(&cni("{install: primary, configurationName: 00-x.conflist}")).unwrap();
    for name in ["x.conf", ".conflist", "a/b.conflist", "\"\""] {
        let problems = problems(&cni(&format!("{{configurationName: {name}}}")));
        assert!(problems[0].contains("cni.configurationName"), "{name}: {problems:?}");
    }
    let problems = problems(&cni("{binaryDirectory: x, configurationDirectory: /var/lib/cni/results}"));
    assert!(
        problems[0].contains("cni.binaryDirectory") && problems[1].contains("cni.resultsDirectory"),
        "{problems:?}"
    );
}

#[test]
fn clients_outside_the_cluster_need_the_services_that_sockets_are_led_to() {
    let services = |text: &str| format!("{SMALLEST}services: {text}");
    for alone in ["{outside: true}", "{sockets: false, outside: true}"] {
        let problems = problems(&services(alone));
        assert!(problems.len() == 1 && problems[0].contains("services.sockets: true"), "{alone}: {problems:?}");
    }
    let on = parse(&services("{sockets: true, outside: true}")).unwrap().services;
    assert!(on.sockets && on.outside);
    assert!(!parse(&services("{sockets: true}")).unwrap().services.outside);
}

#[test]
fn a_server_s_namespace_and_kubeconfig_are_checked() {
    let problems = problems(&format!("{SMALLEST}source: {{kubernetes: {{namespace: Hauberk, kubeconfig: k}}}}"));
    assert!(problems.iter().any(|problem| problem.contains("kubeconfig")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("namespace")), "{problems:?}");
}

#[test]
fn the_default_protection_has_the_label_s_values() {
    for (value, protection) in
        [("disabled", Protection::None), ("permissive", Protection::Permissive), ("enabled", Protection::Enabled)]
    {
        let config = parse(&format!("{SMALLEST}defaults: {{encryption: {value}}}")).unwrap();
        assert_eq!(Protection::from(config.defaults.encryption), protection);
        assert_eq!(hauberk_core::label::label_value(protection), value);
    }
    assert_eq!(parse(SMALLEST).unwrap().defaults.encryption, Encryption::Disabled);
}
