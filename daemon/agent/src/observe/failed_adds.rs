//! Pods that hauberk-cni could not give an interface. Only the container runtime reads the plugin's
//! answer, so the plugin tells the agent as well.
//!
//! After an ADD that failed, the runtime calls DEL, and later ADD for another container of the pod.
//! So DEL does not end the problem. It ends when the pod has its interface, when the pod needs none
//! any more, or some time after the last failure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hauberk_abi::identity::Protection;
use hauberk_api::{FailedAdd, Problem, Reserve, Severity};
use hauberk_core::local_node::LocalNode;
use hauberk_core::model::Model;
use hauberk_core::names::PodName;
use hauberk_core::{protection, unconnected};

use crate::attachments::domain;

/// How long a failure stays in the status if it does not happen again. The kubelet tries again
/// every few minutes or more often.
const TOLD: Duration = Duration::from_secs(600);
/// Most failures remembered. More pods do not start at the same time.
const MOST: usize = 64;
/// The longest message that is kept, characters.
const LONGEST: usize = 1_000;

/// The last failure of each pod, by the object's name in problems.
#[derive(Debug, Default)]
pub struct FailedAdds(BTreeMap<String, Failure>);

#[derive(Debug)]
struct Failure {
    pod: Option<PodName>,
    /// Whether the pod had an object when it failed.
    had_object: bool,
    message: String,
    last: Instant,
}

impl FailedAdds {
    /// Notes a failure. If there are too many, the oldest is dropped.
    pub fn note(&mut self, failed: FailedAdd, model: &Model, now: Instant) {
        self.0.retain(|_, failure| now.saturating_duration_since(failure.last) < TOLD);
        let object = object(&failed.request);
        if self.0.len() >= MOST && !self.0.contains_key(&object) {
            let oldest = self.0.iter().min_by_key(|(_, failure)| failure.last).map(|(object, _)| object.clone());
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        // A line break would look like another problem in the status.
        let plain = failed.message.chars().map(|c| if c.is_control() { ' ' } else { c });
        let message = plain.take(LONGEST).collect();
        let pod = failed.request.pod.as_ref().map(domain::pod_name);
        let had_object = pod.as_ref().is_some_and(|pod| model.pod(pod).is_some());
        self.0.insert(object, Failure { pod, had_object, message, last: now });
    }

    /// The pod has its interface, so its failure is over.
    pub fn succeeded(&mut self, request: &Reserve) {
        self.0.remove(&object(request));
    }

    /// One problem for each pod that still needs an interface.
    pub fn problems(&self, model: &Model, local: &LocalNode, now: Instant) -> impl Iterator<Item = Problem> {
        let lately = self.0.iter().filter(move |(_, failure)| now.saturating_duration_since(failure.last) < TOLD);
        lately.filter(move |(_, failure)| failure.is_needed(model)).map(move |(object, failure)| {
            let pod = failure.pod.as_ref().map(|pod| (pod, None));
            let protection = protection::of_attached(model, local, pod).protection;
            Problem {
                severity: if protection > Protection::None { Severity::Critical } else { Severity::Warning },
                object: object.clone(),
                message: format!("hauberk-cni cannot give it an interface, so it does not start: {}", failure.message),
            }
        })
    }
}

impl Failure {
    /// Whether the pod still needs an interface. A pod whose object is gone has ended. One that
    /// never had an object, as before it is written to the folder, still needs one.
    fn is_needed(&self, model: &Model) -> bool {
        let Some(name) = &self.pod else { return true };
        match model.pod(name) {
            Some(pod) => unconnected::needs_network(model, pod),
            None => !self.had_object || !model.synced(),
        }
    }
}

fn object(request: &Reserve) -> String {
    match &request.pod {
        Some(pod) => format!("pod/{}", domain::pod_name(pod)),
        None => format!("container/{}/{}", request.container, request.interface),
    }
}

#[cfg(test)]
mod tests {
    use hauberk_api::PodReference;
    use hauberk_core::model::Change;
    use hauberk_core::objects::PodObject;

    use super::*;
    use crate::state::AgentState;

    fn failed(container: &str, pod: Option<&str>, message: &str) -> FailedAdd {
        let pod = pod.map(|name| PodReference { namespace: "payments".into(), name: name.into(), uid: None });
        let request = Reserve { container: container.into(), interface: "eth0".into(), pod, netns: "/x".into() };
        FailedAdd { request, message: message.into() }
    }

    fn pod(name: &str) -> PodObject {
        PodObject { namespace: "payments".into(), name: name.into(), node: Some("n1".into()), ..PodObject::default() }
    }

    fn agent(label: Option<&str>) -> AgentState {
        crate::testing::payments(label, "n1", "10.0.1.5")
    }

    fn told(agent: &AgentState, now: Instant) -> Vec<Problem> {
        agent.failed_adds.problems(&agent.model, &agent.local, now).collect()
    }

    fn note(agent: &mut AgentState, failed: FailedAdd, now: Instant) {
        agent.failed_adds.note(failed, &agent.model, now);
    }

    #[test]
    fn a_failure_is_told_until_the_pod_has_its_interface() {
        for (label, severity) in [(Some("enabled"), Severity::Critical), (None, Severity::Warning)] {
            let (mut agent, now) = (agent(label), Instant::now());
            note(&mut agent, failed("c1", Some("a"), "no veth pair"), now);
            note(&mut agent, failed("c2", Some("a"), "no veth pair at all"), now);
            let problems = told(&agent, now);
            assert_eq!(
                (problems.len(), problems[0].severity, problems[0].object.as_str()),
                (1, severity, "pod/payments/a")
            );
            assert!(problems[0].message.ends_with("no veth pair at all"), "{problems:?}");
            agent.failed_adds.succeeded(&failed("c3", Some("b"), "").request);
            assert_eq!(told(&agent, now).len(), 1, "another's");
            agent.failed_adds.succeeded(&failed("c3", Some("a"), "").request);
            assert!(told(&agent, now).is_empty());
        }
    }

    #[test]
    fn of_a_pod_that_ends_or_that_nobody_tries_again_nothing_is_told() {
        let (mut agent, now) = (agent(None), Instant::now());
        note(&mut agent, failed("c1", Some("a"), "x"), now);
        note(&mut agent, failed("c2", None, "y"), now);
        assert_eq!(told(&agent, now).len(), 2);
        let _ = agent.model.apply(Change::Pod(PodObject { terminating: true, ..pod("a") }));
        assert_eq!(told(&agent, now).len(), 1);
        let _ = agent.model.apply(Change::Pod(pod("a")));
        assert_eq!(told(&agent, now).len(), 2);
        let _ = agent.model.apply(Change::PodGone(PodName { namespace: "payments".into(), name: "a".into() }));
        assert_eq!(told(&agent, now)[0].object, "container/c2/eth0");
        assert!(told(&agent, now + TOLD).is_empty());
    }

    /// Without Kubernetes a pod's object is written after its ADD.
    #[test]
    fn a_failure_of_a_pod_without_an_object_is_told() {
        let (mut agent, now) = (agent(None), Instant::now());
        note(&mut agent, failed("c1", Some("new"), "this node is full"), now);
        assert_eq!(told(&agent, now)[0].object, "pod/payments/new");
        agent.failed_adds.succeeded(&failed("c2", Some("new"), "").request);
        assert!(told(&agent, now).is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (mut failures, begin) = (FailedAdds::default(), Instant::now());
        let model = Model::new("n1");
        let long = "x".repeat(2 * LONGEST);
        for number in 0..2 * MOST as u64 {
            let at = begin + Duration::from_secs(number);
            failures.note(failed(&format!("c{number}"), None, &long), &model, at);
        }
        assert_eq!(failures.0.len(), MOST);
        assert!(!failures.0.contains_key("container/c0/eth0"), "the oldest go");
        assert!(failures.0.values().all(|failure| failure.message.len() == LONGEST));
    }
}
