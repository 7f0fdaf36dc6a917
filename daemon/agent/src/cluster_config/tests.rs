use std::cell::Cell;
use std::path::Path;

use hauberk_core::local_node::Settings;
use serde_json::json;

use super::follow::{Verdict, decide, turn};
use super::merge::FIELDS;
use super::*;
use crate::config;

fn file() -> Config {
    config::parse(
        "source: {kubernetes: {}}\nclusterRanges: [10.0.0.0/16]\npaths: {state: /s}\ntunnel: {device: h7, port: 7}\n",
    )
    .unwrap()
}

fn spec(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => panic!("{other} is no object"),
    }
}

fn offer(generation: i64, value: Value) -> Offer {
    Offer { uid: "u".into(), generation, spec: spec(value) }
}

fn fine(_: &Config) -> Result<(), String> {
    Ok(())
}

#[test]
fn the_object_overrides_the_file_and_the_file_has_the_rest() {
    let config = merge(
        &file(),
        &spec(json!({
            "clusterRanges": ["10.1.0.0/16", "fd00::/48"], "hostRouting": "stack", "uplinks": ["eth0"], "nodeRanges": null,
            "tunnel": {"mtu": 1400, "port": 9}, "defaults": {"encryption": "permissive"}, "log": {"format": "json"},
        })),
    )
    .unwrap();
    assert_eq!(config.cluster_ranges.len(), 2);
    assert_eq!((config.tunnel.port, config.tunnel.device.as_str()), (9, "h7"));
    assert_eq!(config.tunnel.mtu, config::Automatic::Value(1400));
    assert_eq!(config.paths.state, Path::new("/s"));
    assert_eq!(config.log.level, config::LogLevel::Info);
    assert_eq!(merge(&file(), &Map::new()).unwrap(), file());
}

#[test]
fn every_reason_against_an_object_is_given_and_each_names_its_field() {
    let problems = |value| merge(&file(), &spec(value)).unwrap_err();
    let unknown = problems(json!({"tunnel": {"device": "x", "colour": 1}, "paths": {"state": "/"}, "attach": "tcx"}));
    assert_eq!(unknown.len(), 4, "{unknown:?}");
    for field in ["spec.tunnel.device", "spec.tunnel.colour", "spec.paths.state", "spec.attach"] {
        assert!(unknown.iter().any(|problem| problem.contains(field)), "{field}: {unknown:?}");
    }
    let impossible = problems(json!({"clusterRanges": [], "tunnel": {"port": 0, "mtu": 5}, "limits": {"events": 5}}));
    for field in ["clusterRanges", "tunnel.port", "tunnel.mtu", "limits.events"] {
        assert!(impossible.iter().any(|problem| problem.contains(field)), "{field}: {impossible:?}");
    }
    for (value, field) in [
        (json!({"tunnel": {"port": "many"}}), "spec.tunnel.port"),
        (json!({"tunnel": 7}), "spec.tunnel"),
        (json!({"hostRouting": "xdp"}), "spec.hostRouting"),
        (json!({"clusterRanges": ["10.0.0.0/33"]}), "spec.clusterRanges[0]"),
    ] {
        let problems = problems(value);
        assert!(problems[0].contains(field), "{field}: {problems:?}");
    }
}

/// The names of a schema's properties, two levels deep like [`FIELDS`].
fn properties(schema: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for (name, property) in schema["properties"].as_object().unwrap() {
        match property["properties"].as_object() {
            Some(inner) => names.extend(inner.keys().map(|field| format!("{name}.{field}"))),
            None => names.push(name.clone()),
        }
    }
    names.sort();
    names
}

#[test]
fn the_custom_resource_has_the_fields_that_the_agent_reads_and_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/hauberk/crds/hauberkconfigs.yaml");
    let definition: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(definition["spec"]["names"]["plural"], "hauberkconfigs");
    let version = &definition["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    let schema = &version["schema"]["openAPIV3Schema"]["properties"];
    let mut fields = FIELDS.map(str::to_owned).to_vec();
    fields.sort();
    assert_eq!(properties(&schema["spec"]), fields);

    let node = NodeAcceptance { name: "n1".into(), generation: 1, accepted: false, message: "no".into() };
    let condition = Condition {
        type_: "Accepted".into(),
        status: "True".into(),
        observed_generation: 1,
        last_transition_time: jiff::Timestamp::UNIX_EPOCH,
        reason: "Accepted".into(),
        message: "yes".into(),
    };
    let status = HauberkConfigStatus { accepted_nodes: 1, nodes: vec![node], conditions: vec![condition] };
    let written = serde_json::to_value(status).unwrap();
    let names = |value: &Value| {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let status = &schema["status"];
    assert_eq!(names(&written), properties(status));
    assert_eq!(names(&written["nodes"][0]), properties(&status["properties"]["nodes"]["items"]));
    assert_eq!(names(&written["conditions"][0]), properties(&status["properties"]["conditions"]["items"]));
}

#[test]
fn settings_are_taken_over_and_all_others_need_a_start() {
    let with = |value| merge(&file(), &spec(value)).unwrap();
    let live = with(json!({
        "clusterRanges": ["10.0.0.0/8"], "nodeRanges": ["192.0.2.0/24"], "allowPodOptOut": true,
        "defaults": {"encryption": "enabled"},
    }));
    assert!(needs_start(&file(), &live).is_empty());
    let running = Settings { chained: true, ..Settings::default() };
    let settings = settings(&running, &live);
    assert_eq!((settings.chained, settings.allow_pod_opt_out), (true, true));
    assert_eq!(settings.default_protection, hauberk_api::Protection::Enabled);
    assert_eq!((settings.cluster_ranges, settings.node_ranges), (live.cluster_ranges, live.node_ranges));

    let other = with(json!({"tunnel": {"port": 8, "mtu": 1300}, "uplinks": ["eth9"], "log": {"level": "debug"}}));
    assert_eq!(needs_start(&file(), &other), ["tunnel.port", "tunnel.mtu", "uplinks", "log.level"]);
}

#[test]
fn an_object_is_refused_taken_over_or_waits_for_a_start() {
    let judged = |value| decide(&file(), &file(), &offer(2, value), fine);
    assert!(matches!(judged(json!({"tunnel": {"port": 0}})), Verdict::Refuse(problems) if problems.len() == 1));
    assert_eq!(judged(json!({})), Verdict::TakeOver(Box::new(file())));
    assert!(matches!(judged(json!({"allowPodOptOut": true})), Verdict::TakeOver(config) if config.allow_pod_opt_out));
    assert_eq!(judged(json!({"worldIngress": "direct"})), Verdict::Start(vec!["worldIngress"]));
    let cannot = |_: &Config| Err("this node cannot".to_owned());
    let verdict = decide(&file(), &file(), &offer(2, json!({})), cannot);
    assert_eq!(verdict, Verdict::Refuse(vec!["this node cannot".into()]));
}

#[test]
fn a_start_takes_the_object_else_the_last_accepted_one_else_the_file() {
    let copy = || Some(Copy::new("u".into(), 3, spec(json!({"allowPodOptOut": true}))));
    let good = || Some(Some(offer(4, json!({"allowPodOptOut": true, "tunnel": {"port": 4}}))));
    let bad = || Some(Some(offer(5, json!({"tunnel": {"port": 0}}))));
    let cases = [
        // answer, copy: origin, in force, refused, whether there is something to say
        (good(), copy(), "object", Some(4), None, false),
        (good(), None, "object", Some(4), None, false),
        (bad(), copy(), "copy", Some(3), Some(5), true),
        (bad(), None, "file", None, Some(5), true),
        (Some(None), copy(), "copy", Some(3), None, true),
        (Some(None), None, "file", None, None, false),
        (None, copy(), "copy", Some(3), None, true),
        (None, None, "file", None, None, true),
    ];
    for (number, (answer, copy, origin, generation, refused, says)) in cases.into_iter().enumerate() {
        let (start, kept) = choose(&file(), copy, answer, fine).unwrap();
        let status = start.status;
        assert_eq!(
            (status.origin.as_str(), status.generation, status.refused),
            (origin, generation, refused),
            "{number}"
        );
        assert_eq!(status.message.is_some(), says, "{number}: {:?}", status.message);
        assert_eq!(start.config.allow_pod_opt_out, origin != "file", "{number}");
        assert_eq!(kept.is_some(), origin == "object", "{number}: only what was accepted is kept");
    }
}

#[test]
fn without_ranges_from_anywhere_there_is_no_start() {
    let mut file = file();
    file.cluster_ranges.clear();
    let error = choose(&file, None, None, fine).unwrap_err().to_string();
    assert!(error.contains("clusterRanges"), "{error}");
    let brought = choose(&file, None, Some(Some(offer(1, json!({"clusterRanges": ["10.0.0.0/8"]})))), fine).unwrap();
    assert_eq!(brought.0.config.cluster_ranges.len(), 1);
}

#[test]
fn a_copy_that_does_not_fit_the_file_any_more_is_not_used() {
    let copy = Copy::new("u".into(), 3, spec(json!({"hostRouting": "bpf"})));
    let mut file = file();
    file.host_routing = config::HostRouting::Stack;
    file.cni.install = config::CniInstall::Chained;
    let (start, _) = choose(&file, Some(copy), None, fine).unwrap();
    assert_eq!((start.status.origin.as_str(), start.config), ("file", file));
}

#[test]
fn what_the_node_lacks_is_asked_of_the_whole_configuration() {
    let asked = Cell::new(0);
    let check = |config: &Config| {
        asked.set(config.tunnel.port);
        Err("no".to_owned())
    };
    let (start, kept) = choose(&file(), None, Some(Some(offer(1, json!({"tunnel": {"port": 9}})))), check).unwrap();
    assert_eq!((asked.get(), start.config.tunnel.port, kept), (9, 7, None));
    assert_eq!(start.status.refused, Some(1));
}

#[test]
fn the_copy_survives_and_a_broken_one_says_which_file_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    assert_eq!(Copy::read(&state).unwrap(), None);
    let copy = Copy::new("u".into(), 3, spec(json!({"tunnel": {"port": 5}})));
    copy.write(&state).unwrap();
    copy.write(&state).unwrap();
    assert_eq!(Copy::read(&state).unwrap(), Some(copy));
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1, "nothing else is left behind");
    let mut file = file();
    file.paths.state = state.clone();
    assert_eq!(with_copy(&file).tunnel.port, 5);
    for text in ["", "{}", "{\"version\":2,\"uid\":\"\",\"generation\":1,\"spec\":{}}"] {
        std::fs::write(state.join("cluster-config.json"), text).unwrap();
        let error = Copy::read(&state).unwrap_err().to_string();
        assert!(error.contains("cluster-config.json"), "{error}");
        assert_eq!(with_copy(&file), file);
    }
}

#[test]
fn the_annotation_says_what_is_in_force_or_refused() {
    let mut status = in_force(ConfigurationOrigin::Object, 3);
    let accepted = Acceptance::of(&status).unwrap();
    assert_eq!(accepted.render(), r#"{"version":1,"generation":3,"accepted":true,"message":""}"#);
    assert_eq!(Acceptance::parse(&accepted.render()), Some(accepted));
    status.refused = Some(4);
    status.message = Some("ü".repeat(MAX_MESSAGE));
    let refused = Acceptance::of(&status).unwrap();
    assert_eq!((refused.generation, refused.accepted), (4, false));
    assert!(refused.message.len() <= MAX_MESSAGE);
    let file = ConfigurationStatus {
        origin: ConfigurationOrigin::File.into(),
        generation: None,
        refused: None,
        message: None,
    };
    assert_eq!(Acceptance::of(&file), None);
    for text in ["", "{}", r#"{"version":2,"generation":3,"accepted":true,"message":""}"#] {
        assert_eq!(Acceptance::parse(text), None, "{text}");
    }
}

#[test]
fn nodes_take_turns_to_start_anew() {
    assert_eq!(turn("n1", 1), Duration::ZERO);
    let turns: std::collections::BTreeSet<u64> = (0..100).map(|n| turn(&format!("n{n}"), 100).as_secs()).collect();
    assert!(turns.len() > 5 && turns.iter().all(|second| *second < 10), "{turns:?}");
}
