//! Problems by what they concern. A problem stays until that same thing succeeds; the success of
//! other work does not clear it.

use std::collections::BTreeMap;

use hauberk_api::{Problem, Severity};
use tracing::warn;

use super::Reconciler;

/// The part of the reconciler's work that a problem belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Area {
    /// The plan's steps.
    Steps,
    /// Devices that come and go.
    Devices,
    /// Programs that do not run as attached.
    Programs,
    /// Next hops of pods' packets.
    Hops,
    /// Anything else, reported one by one.
    Others,
}

/// All problems.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<Area, BTreeMap<String, Problem>>);

impl Failures {
    /// Whether an area has no problem.
    pub(super) fn is_empty(&self, area: Area) -> bool {
        self.0.get(&area).is_none_or(BTreeMap::is_empty)
    }

    /// All problems; of two with the same object, the worse one.
    fn all(&self) -> BTreeMap<String, Problem> {
        let mut all: BTreeMap<String, Problem> = BTreeMap::new();
        for (object, problem) in self.0.values().flatten() {
            let known = all.entry(object.clone()).or_insert_with(|| problem.clone());
            if problem.severity < known.severity {
                known.clone_from(problem);
            }
        }
        all
    }
}

impl Reconciler {
    /// Replaces an area's problems by those it has now.
    pub(super) fn tell(&mut self, area: Area, problems: BTreeMap<String, Problem>) {
        self.failures.0.insert(area, problems);
        self.agent.write().failures = self.failures.all();
    }

    /// Adds a problem. Returns false.
    pub(super) fn fail(&mut self, object: &str, message: String) -> bool {
        self.add(object, Severity::Critical, message);
        false
    }

    fn add(&mut self, object: &str, severity: Severity, message: String) {
        warn!(object, "{message}");
        let problem = Problem { severity, object: object.to_owned(), message };
        self.failures.0.entry(Area::Others).or_default().insert(object.to_owned(), problem);
        self.agent.write().failures = self.failures.all();
    }

    /// Adds a problem, for a check that runs often: the same message is not logged twice.
    pub(super) fn tell_once(&mut self, object: &str, severity: Severity, message: String) {
        let known = self.failures.0.get(&Area::Others).and_then(|others| others.get(object));
        if known.is_none_or(|known| known.message != message) {
            self.add(object, severity, message);
        }
    }

    /// Removes the problem of an object that works again.
    pub(super) fn succeed(&mut self, object: &str) {
        if self.failures.0.get_mut(&Area::Others).and_then(|others| others.remove(object)).is_some() {
            self.agent.write().failures = self.failures.all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(severity: Severity) -> Problem {
        Problem { severity, object: "device/eth0".into(), message: format!("{severity:?}") }
    }

    #[test]
    fn of_two_problems_with_one_thing_the_worse_is_told() {
        let mut failures = Failures::default();
        for (area, severity) in [(Area::Devices, Severity::Critical), (Area::Programs, Severity::Warning)] {
            failures.0.entry(area).or_default().insert("device/eth0".into(), problem(severity));
        }
        assert_eq!(failures.all()["device/eth0"].message, "Critical");
        failures.0.remove(&Area::Devices);
        assert_eq!(failures.all()["device/eth0"].message, "Warning");
    }
}
