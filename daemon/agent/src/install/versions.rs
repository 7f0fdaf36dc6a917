//! Reduces the versions of the CNI specification in another plugin's list to those that hauberk-cni
//! speaks.
//!
//! The runtime runs every plugin of a list in one version: the highest of `cniVersion` and
//! `cniVersions` that it knows. Some lists still have version 0.3.0, 0.2.0 or none, for which the
//! plugins' answers have another form.

use serde_json::{Map, Value};

/// The versions that hauberk-cni speaks, oldest first.
const SPOKEN: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Plugins whose releases since 2017 all speak the oldest of these versions: the CNI project's own,
/// and those that have that version in their lists.
const KNOWN: [&str; 22] = [
    "bandwidth",
    "bridge",
    "calico",
    "calico-ipam",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
    "hauberk-cni",
];

/// Keeps those versions of a list that hauberk-cni speaks. If there are none, an old list is raised
/// to the oldest of them, provided that its plugins can be expected to speak it.
///
/// # Errors
/// What is wrong, and what to do.
pub(super) fn raise(list: &mut Map<String, Value>) -> Result<(), String> {
    let given = match list.get("cniVersion") {
        None | Some(Value::Null) => "",
        Some(version) => version.as_str().ok_or_else(|| format!("its cniVersion, {version}, is not a string"))?,
    };
    let offered = list.get("cniVersions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let offered: Vec<&str> = offered.iter().filter_map(Value::as_str).collect();
    let spoken: Vec<&str> = SPOKEN.into_iter().filter(|own| given == *own || offered.contains(own)).collect();
    let version = match spoken.first() {
        Some(_) if spoken.contains(&given) => given.to_owned(),
        Some(oldest) => (*oldest).to_owned(),
        None => oldest_for(given, &offered, list)?,
    };
    if list.contains_key("cniVersions") {
        let kept = if spoken.is_empty() { vec![version.as_str()] } else { spoken };
        list.insert("cniVersions".to_owned(), Value::from(kept));
    }
    list.insert("cniVersion".to_owned(), Value::from(version));
    Ok(())
}

/// The version that a list is raised to.
fn oldest_for(given: &str, offered: &[&str], list: &Map<String, Value>) -> Result<String, String> {
    let [oldest, ..] = SPOKEN;
    let spoken = SPOKEN.join(", ");
    let shown = if given.is_empty() { "missing".to_owned() } else { given.chars().take(32).collect() };
    let is_old = |version: &str| number(version).zip(number(oldest)).is_some_and(|(one, other)| one < other);
    let all_old = (given.is_empty() || is_old(given)) && offered.iter().all(|version| is_old(version));
    if !all_old {
        return Err(format!("its cniVersion is {shown}, and hauberk-cni speaks {spoken}; set it to one of these"));
    }
    let mut kinds = Vec::new();
    for plugin in list.get("plugins").and_then(Value::as_array).into_iter().flatten() {
        kinds.extend([&plugin["type"], &plugin["ipam"]["type"], &plugin["delegate"]["type"]].map(Value::as_str));
    }
    match kinds.into_iter().flatten().find(|kind| !KNOWN.contains(kind)) {
        None => Ok(oldest.to_owned()),
        Some(kind) => Err(format!(
            "its cniVersion is {shown}, hauberk-cni speaks {spoken}, and the plugin {kind} is not known to answer in {oldest}; \
             if it does, set cniVersion in that file to {oldest}"
        )),
    }
}

/// A version's three numbers.
fn number(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let number = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raised(mut list: Value) -> Result<(Value, Value), String> {
        let Value::Object(list) = &mut list else { panic!() };
        list.entry("plugins").or_insert_with(|| json!([{"type": "bridge", "ipam": {"type": "host-local"}}]));
        raise(list)?;
        Ok((list["cniVersion"].clone(), list.get("cniVersions").cloned().unwrap_or_default()))
    }

    #[test]
    fn old_lists_of_known_plugins_are_raised_to_the_oldest_version_that_we_speak() {
        for old in
            [json!({}), json!({"cniVersion": ""}), json!({"cniVersion": "0.1.0"}), json!({"cniVersion": "0.2.0"})]
        {
            assert_eq!(raised(old).unwrap().0, "0.3.1");
        }
        assert_eq!(raised(json!({"cniVersion": "0.3.0"})).unwrap().0, "0.3.1");
        let both = raised(json!({"cniVersion": "0.3.0", "cniVersions": ["0.2.0", "0.3.0"]})).unwrap();
        assert_eq!(both, (json!("0.3.1"), json!(["0.3.1"])));
    }

    #[test]
    fn versions_that_we_speak_stay_and_others_beside_them_go() {
        for version in SPOKEN {
            assert_eq!(raised(json!({"cniVersion": version})).unwrap(), (json!(version), Value::Null));
        }
        let kept = raised(json!({"cniVersion": "0.2.0", "cniVersions": ["1.2.0", "1.0.0", "0.4.0"]})).unwrap();
        assert_eq!(kept, (json!("0.4.0"), json!(["0.4.0", "1.0.0"])));
        let kept = raised(json!({"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0"]})).unwrap();
        assert_eq!(kept, (json!("1.0.0"), json!(["0.4.0", "1.0.0"])));
    }

    #[test]
    fn what_plugins_cannot_be_expected_to_answer_is_refused_by_name() {
        let own = |kind: &str| json!({"cniVersion": "0.3.0", "plugins": [{"type": "bridge"}, {"type": kind}]});
        assert!(raised(own("weave-net")).unwrap_err().contains("weave-net"));
        let ipam = json!({"plugins": [{"type": "bridge", "ipam": {"type": "whereabouts"}}]});
        assert!(raised(ipam).unwrap_err().contains("whereabouts"));
        let delegate = json!({"plugins": [{"type": "flannel", "delegate": {"type": "mine"}}]});
        assert!(raised(delegate).unwrap_err().contains("mine"));
        for version in [json!("1.2.0"), json!("2.0.0"), json!("newest"), json!("0.3"), json!(1)] {
            let problem = raised(json!({"cniVersion": version})).unwrap_err();
            assert!(problem.contains("cniVersion"), "{problem}");
        }
    }
}
