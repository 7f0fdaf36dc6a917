//! Pods of this node without an interface, for example because it was deleted by hand. No other
//! check finds them, and `explain` would go on to say "encrypted".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hauberk_abi::identity::Protection;
use hauberk_api::{Problem, Severity};
use hauberk_core::local_node::LocalNode;
use hauberk_core::names::PodName;
use hauberk_core::unconnected::{self, Lack, Unconnected};

use crate::state::{AgentState, SharedState};

/// Interval of the looks.
const LOOK: Duration = Duration::from_secs(2);
/// A pod that starts or ends has an address and no interface, but for a shorter time than this.
const GRACE: Duration = Duration::from_secs(10);

/// Looks for such pods until the runtime ends.
pub async fn watch(agent: SharedState) {
    let mut seen: Option<Seen> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let found = {
            let agent = agent.read();
            if seen.as_ref().is_some_and(|seen| seen.is_still(&agent)) {
                continue;
            }
            seen = Some(Seen::of(&agent));
            find(&agent)
        };
        agent.write().unconnected.take(found, Instant::now());
    }
}

/// What the last look read. The result stays the same until this changes.
#[derive(Debug)]
struct Seen {
    generation: u64,
    local: LocalNode,
    interfaces: Option<BTreeSet<u32>>,
}

impl Seen {
    fn of(agent: &AgentState) -> Seen {
        Seen { generation: agent.model.generation(), local: agent.local.clone(), interfaces: agent.interfaces.clone() }
    }

    fn is_still(&self, agent: &AgentState) -> bool {
        self.generation == agent.model.generation() && self.interfaces == agent.interfaces && self.local == agent.local
    }
}

/// Finds nothing before all objects have been read, or while the kernel does not list its devices:
/// then something that is absent may only be unknown.
fn find(agent: &AgentState) -> BTreeMap<String, Unconnected> {
    match &agent.interfaces {
        Some(interfaces) if agent.model.synced() => {
            unconnected::unconnected(&agent.model, &agent.local, |index| interfaces.contains(&index))
        }
        _ => BTreeMap::new(),
    }
}

/// Pods without an interface and the time since when, by the object's name in problems.
#[derive(Debug, Default)]
pub struct Missed(BTreeMap<String, (Unconnected, Instant)>);

impl Missed {
    /// Takes over the result of a look.
    fn take(&mut self, found: BTreeMap<String, Unconnected>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for (object, one) in found {
            let since = before.remove(&object).map_or(now, |(_, since)| since);
            self.0.insert(object, (one, since));
        }
    }

    /// The pods that have had no interface for at least this long.
    fn lasting(&self, long: Duration, now: Instant) -> impl Iterator<Item = (&String, &Unconnected)> {
        let lasts = move |since: Instant| now.saturating_duration_since(since) >= long;
        self.0.iter().filter(move |(_, (_, since))| lasts(*since)).map(|(object, (one, _))| (object, one))
    }

    /// One problem for each pod.
    pub fn problems(&self, now: Instant) -> impl Iterator<Item = Problem> {
        self.lasting(GRACE, now).map(|(object, one)| Problem {
            severity: if one.protection > Protection::None { Severity::Critical } else { Severity::Warning },
            object: object.clone(),
            message: format!("{}, so {}; {}", why(&one.lack), consequence(&one.lack), what_to_do(&one.lack)),
        })
    }

    /// What is wrong with the pod's network ("has no interface ..."), if it has none.
    pub fn of_pod(&self, name: &PodName, now: Instant) -> Option<String> {
        let object = format!("pod/{name}");
        self.lasting(GRACE, now).find(|(missed, _)| **missed == object).map(|(_, one)| why(&one.lack))
    }

    /// The same by an address, for `hauberk explain`. It waits only for one look, because an
    /// interface may be in the making.
    pub fn of_address(&self, address: IpAddr, now: Instant) -> Option<String> {
        let mut missed = self.lasting(LOOK, now);
        missed
            .find(|(_, one)| one.addresses.contains(&address))
            .map(|(_, one)| format!("{}, so {}", why(&one.lack), consequence(&one.lack)))
    }
}

fn why(lack: &Lack) -> String {
    match lack {
        Lack::Gone(interface) => {
            format!("has no interface on this node: {interface} was removed, but not by the container runtime")
        }
        Lack::Unmade => {
            "has no interface on this node: it was removed while no agent ran (a reboot, `hauberkd uninstall`), or \
                         the CNI plugin was stopped before it had made one"
                .into()
        }
        Lack::Unknown => {
            "has no interface on this node that hauberk knows: another CNI plugin connected it, or it was removed"
                .into()
        }
    }
}

fn consequence(lack: &Lack) -> &'static str {
    match lack {
        Lack::Gone(_) | Lack::Unmade => "nothing that it sends arrives, and it receives nothing",
        Lack::Unknown => "encrypted packets to it are dropped",
    }
}

fn what_to_do(lack: &Lack) -> &'static str {
    match lack {
        Lack::Gone(_) => "delete the pod, so that its controller makes a new one",
        Lack::Unmade => {
            "delete the pod, so that its controller makes a new one; after a reboot the kubelet does that by itself"
        }
        Lack::Unknown => {
            "delete the pod, so that its controller makes a new one with hauberk-cni; see `hauberk events`"
        }
    }
}

#[cfg(test)]
mod tests {
    use hauberk_core::attachment::{Attachment, NamedPod, VethPair};
    use hauberk_core::model::Change;
    use hauberk_core::names::{AttachmentKey, PodName};

    use super::*;

    /// A pod of this node whose interface has the index 7.
    fn agent(label: Option<&str>) -> AgentState {
        let mut agent = crate::testing::payments(label, "n1", "10.0.1.5");
        let name = PodName { namespace: "payments".into(), name: "a".into() };
        let pod = NamedPod { name, uid: None };
        let attachment = Attachment {
            key: AttachmentKey::new("c1", "eth0"),
            pod: Some(pod),
            addresses: vec!["10.0.1.5".parse().unwrap()],
            host_interface: "hbk1".into(),
            pair: Some(VethPair {
                host_index: 7,
                host_mac: [2, 0, 0, 0, 0, 1].into(),
                pod_mac: [2, 0, 0, 0, 0, 2].into(),
            }),
            adopted: false,
            recovered: false,
        };
        let _ = agent.model.apply(Change::Attachment(attachment));
        agent.interfaces = Some([1, 7].into());
        agent
    }

    fn look(agent: &mut AgentState, now: Instant) -> Vec<Problem> {
        let found = find(agent);
        agent.unconnected.take(found, now);
        agent.unconnected.problems(now).collect()
    }

    #[test]
    fn an_interface_that_went_is_told_after_a_while_and_until_it_is_there() {
        for (label, severity) in [(Some("enabled"), Severity::Critical), (None, Severity::Warning)] {
            let (mut agent, begin) = (agent(label), Instant::now());
            assert!(look(&mut agent, begin).is_empty());
            agent.interfaces = Some([1].into());
            assert!(look(&mut agent, begin).is_empty());
            assert!(look(&mut agent, begin + GRACE / 2).is_empty(), "its pod may be ending");
            let told = look(&mut agent, begin + GRACE);
            assert_eq!((told.len(), told[0].object.as_str(), told[0].severity), (1, "pod/payments/a", severity));
            assert!(told[0].message.contains("hbk1") && told[0].message.contains("delete the pod"), "{told:?}");
            let name = PodName { namespace: "payments".into(), name: "a".into() };
            assert!(agent.unconnected.of_pod(&name, begin + GRACE).is_some());
            agent.interfaces = Some([1, 7].into());
            assert!(look(&mut agent, begin + GRACE).is_empty());
            agent.interfaces = Some([1].into());
            assert!(look(&mut agent, begin + 2 * GRACE).is_empty(), "it begins anew");
        }
    }

    #[test]
    fn nothing_is_missed_by_one_who_does_not_see() {
        let (mut agent, begin) = (agent(None), Instant::now());
        for interfaces in [None, Some([1].into())] {
            agent.interfaces = interfaces.clone();
            let _ = look(&mut agent, begin);
            assert_eq!(look(&mut agent, begin + GRACE).len(), usize::from(interfaces.is_some()));
        }
    }

    #[test]
    fn by_its_address_it_is_told_sooner() {
        let (mut agent, begin) = (agent(None), Instant::now());
        agent.interfaces = Some([1].into());
        let _ = look(&mut agent, begin);
        let told = |now, address: &str| agent.unconnected.of_address(address.parse().unwrap(), now);
        assert_eq!(told(begin, "10.0.1.5"), None, "it may be about to come");
        let message = told(begin + LOOK, "10.0.1.5").unwrap();
        assert!(message.contains("nothing that it sends"), "{message}");
        assert_eq!(told(begin + GRACE, "10.0.1.6"), None);
    }

    #[test]
    fn it_is_looked_at_again_only_when_something_changed() {
        let mut agent = agent(None);
        let seen = Seen::of(&agent);
        assert!(seen.is_still(&agent));
        let _ = agent.model.apply(Change::Synced);
        assert!(seen.is_still(&agent), "that was known");
        let _ = agent.model.apply(Change::NamespaceGone("payments".into()));
        assert!(!seen.is_still(&agent));
        let seen = Seen::of(&agent);
        agent.interfaces = None;
        assert!(!seen.is_still(&agent));
        let seen = Seen::of(&agent);
        agent.local.settings.chained = true;
        assert!(!seen.is_still(&agent));
    }
}
