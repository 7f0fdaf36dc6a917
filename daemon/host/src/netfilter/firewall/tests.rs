use super::*;

/// The output of `nft -j list table` and `nft -a list table` for `iptables -P FORWARD DROP` and a
/// test's rules.
fn iptables(rules: &[(&str, &str)], chains: &[&str]) -> (String, String) {
    let mut json =
        vec![r#"{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "policy": "drop"}}"#.to_owned()];
    json.extend(
        chains.iter().map(|name| format!(r#"{{"chain": {{"family": "ip", "table": "filter", "name": "{name}"}}}}"#)),
    );
    let mut text = String::new();
    for (handle, (expressions, words)) in rules.iter().enumerate() {
        json.push(format!(
            r#"{{"rule": {{"family": "ip", "table": "filter", "chain": "FORWARD", "handle": {}, "expr": [{expressions}]}}}}"#,
            handle + 10
        ));
        text += &format!("\t\t{words} # handle {}\n", handle + 10);
    }
    (format!(r#"{{"nftables": [{{"metainfo": {{}}}}, {}]}}"#, json.join(", ")), text)
}

const COUNTER: &str = r#"{"counter": {"packets": 0, "bytes": 0}}"#;

fn ways() -> Ways {
    Ways {
        ways: vec![Way::Out, Way::Opened],
        tunnel: "hauberk0".into(),
        port: 51840,
        pods: [Device::Prefix("hbk".into())].into(),
        uplinks: [Device::Named("eth0".into())].into(),
        own: vec!["10.244.1.0/24".parse().unwrap()],
        all: vec!["10.244.0.0/16".parse().unwrap()],
    }
}

fn by_interface(key: &str, name: &str) -> String {
    format!(
        r#"{{"match": {{"op": "==", "left": {{"meta": {{"key": "{key}"}}}}, "right": "{name}"}}}}, {COUNTER}, {{"accept": null}}"#
    )
}

fn conntrack() -> String {
    format!(r#"{{"xt": {{"type": "match", "name": "conntrack"}}}}, {COUNTER}, {{"accept": null}}"#)
}

fn found(rules: &[(&str, &str)]) -> Vec<Finding> {
    let (json, text) = iptables(rules, &[]);
    judge(&json, &text, &ways())
}

#[test]
fn a_policy_that_drops_is_cured_by_the_rules_that_are_given_and_by_half_of_them_in_part() {
    let established = conntrack();
    let established = (established.as_str(), "ct state related,established counter packets 0 bytes 0 accept");
    let findings = found(&[established]);
    assert_eq!(findings[0].ways(false), [Way::Out, Way::Opened]);
    assert_eq!(
        ways().cures(&findings[0], findings[0].ways(false)),
        "iptables -I FORWARD -i hbk+ -j ACCEPT; iptables -I FORWARD -i hauberk0 -j ACCEPT"
    );
    let (tunnel, pods) = (by_interface("iifname", "hauberk0"), by_interface("iifname", "hbk*"));
    let findings = found(&[(&tunnel, ""), established]);
    assert_eq!(findings[0].ways(false), [Way::Out], "half");
    assert!(found(&[(&pods, ""), (&tunnel, ""), established]).is_empty());
}

#[test]
fn what_iptables_matches_by_itself_is_read_in_words_and_may_do_anything_without() {
    let rule = conntrack();
    for (words, outcome) in [
        ("ct state related,established counter accept", Outcome::Drops),
        ("ct state new,related counter accept", Outcome::Passes),
        ("ct state != new counter accept", Outcome::Drops),
        ("ct status dnat counter accept", Outcome::Drops),
        ("xt match \"conntrack\" counter accept", Outcome::MayDrop),
    ] {
        let findings = found(&[(&rule, words)]);
        let is = findings.first().map_or(Outcome::Passes, |finding| finding.outcomes[&Way::Out]);
        assert_eq!(is, outcome, "{words}");
    }
}

#[test]
fn other_ways_to_be_accepted_are_understood_or_leave_it_open() {
    let range = |field: &str, address: &str, length: u8| {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "ip", "field": "{field}"}}}}, "right": {{"prefix": {{"addr": "{address}", "len": {length}}}}}}}}}, {COUNTER}, {{"accept": null}}"#
        )
    };
    let mark = |value: u32| {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"&": [{{"meta": {{"key": "mark"}}}}, {value}]}}, "right": {value}}}}}, {COUNTER}, {{"accept": null}}"#
        )
    };
    let icmp = format!(
        r#"{{"match": {{"op": "==", "left": {{"meta": {{"key": "l4proto"}}}}, "right": "icmp"}}}}, {COUNTER}, {{"accept": null}}"#
    );
    for (rule, outcome) in [
        (range("saddr", "10.244.0.0", 16), Outcome::Passes),
        (range("saddr", "10.244.1.128", 25), Outcome::MayDrop),
        (range("saddr", "172.17.0.0", 16), Outcome::Drops),
        (mark(0x4000), Outcome::Drops),
        (mark(0x10000), Outcome::MayDrop),
        (icmp, Outcome::Drops),
        (by_interface("iifname", "docker0"), Outcome::Drops),
        (by_interface("iifname", "hbk0a1b2c"), Outcome::MayDrop),
        (by_interface("oifname", "eth0"), Outcome::Passes),
        (format!(r#"{COUNTER}, {{"accept": null}}"#), Outcome::Passes),
        (format!(r#"{{"unheard": 1}}, {COUNTER}, {{"jump": {{"target": "NOWHERE"}}}}"#), Outcome::MayDrop),
        (format!(r#"{COUNTER}, {{"xt": {{"type": "target", "name": "LOG"}}}}"#), Outcome::Drops),
        ("{\"vmap\": {\"key\": {\"ct\": {\"key\": \"state\"}}, \"data\": {\"set\": [[\"new\", {\"accept\": null}]]}}}".into(), Outcome::Passes),
        ("{\"vmap\": {\"key\": {\"ct\": {\"key\": \"state\"}}, \"data\": \"@states\"}}".into(), Outcome::MayDrop),
    ] {
        let findings = found(&[(&rule, "")]);
        let is = findings.first().and_then(|finding| finding.outcomes.get(&Way::Out)).copied();
        assert_eq!(is.unwrap_or(Outcome::Passes), outcome, "{rule}");
    }
}

#[test]
fn a_last_rule_that_rejects_is_as_good_as_a_policy_and_each_tool_has_its_own_words() {
    let table = |table: &str, chain: &str, more: &str| {
        let base = format!(
            r#"{{"nftables": [{{"chain": {{"family": "inet", "table": "{table}", "name": "{chain}", "type": "filter", "hook": "forward", "policy": "accept"}}}},
            {{"chain": {{"family": "inet", "table": "{table}", "name": "zone"}}}}{more},
            {{"rule": {{"family": "inet", "table": "{table}", "chain": "{chain}", "handle": 3, "expr": [{{"match": {{"op": "==", "left": {{"meta": {{"key": "iifname"}}}}, "right": {{"set": ["eth0", "hbk*"]}}}}}}, {{"goto": {{"target": "zone"}}}}]}}}},
            {{"rule": {{"family": "inet", "table": "{table}", "chain": "{chain}", "handle": 4, "expr": [{{"reject": {{"type": "icmpx"}}}}]}}}}]}}"#
        );
        judge(&base, "", &ways())
    };
    let findings = table("mine", "f", "");
    assert_eq!(
        findings[0].ways(false),
        [Way::Opened],
        "the other one returns from the zone to the policy: {findings:?}"
    );
    assert_eq!(
        ways().cures(&findings[0], [Way::Opened, Way::Out]),
        "nft insert rule inet mine f iifname hauberk0 accept; nft insert rule inet mine f iifname '\"hbk*\"' accept"
    );
    let findings = table("firewalld", "filter_FORWARD", "");
    assert_eq!(ways().cures(&findings[0], [Way::Opened]), "firewall-cmd --zone=trusted --add-interface=hauberk0");
    let rule = conntrack();
    for (chain, cure) in [
        ("DOCKER-USER", "iptables -I DOCKER-USER -i hbk+ -j ACCEPT"),
        ("ufw-before-forward", "ufw route allow in on hbk+"),
    ] {
        let (json, text) = iptables(&[(&rule, "ct state established accept")], &[chain]);
        let findings = judge(&json, &text, &ways());
        assert_eq!(ways().cures(&findings[0], [Way::Out]), cure);
    }
}

#[test]
fn a_family_that_no_pod_has_and_a_table_of_ours_are_left_alone() {
    let (json, text) = iptables(&[], &[]);
    assert!(judge(&json.replace("\"ip\"", "\"ip6\""), &text, &ways()).is_empty());
    let chains = r#"{"nftables": [
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "policy": "drop"}},
        {"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "type": "nat", "hook": "prerouting", "policy": "accept"}},
        {"chain": {"family": "inet", "table": "hauberk", "name": "c", "type": "filter", "hook": "forward", "policy": "accept"}}]}"#;
    assert_eq!(tables(chains), [("ip".to_owned(), "filter".to_owned())].into());
}
