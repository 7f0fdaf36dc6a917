//! Other programs' chains that drop what pods send or receive, which nothing else would report.

use hauberk_api::{Problem, Severity};

use hauberk_host::netfilter::firewall::{Finding, Way, Ways};

/// Findings, and the paths that were judged.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Firewalls {
    /// The paths that were judged.
    pub ways: Ways,
    /// What was found there.
    pub findings: Vec<Finding>,
}

/// A chain that drops everything on these paths, and what to run.
fn sentence(finding: &Finding, ways: &Ways, on: &[Way]) -> String {
    let what: Vec<String> = on.iter().map(|way| way.words(&ways.tunnel)).collect();
    format!(
        "the chain {} of another program drops {}; run: {}",
        finding.chain.words(),
        what.join(", and "),
        ways.cures(finding, on.iter().copied())
    )
}

impl Firewalls {
    /// Chains that certainly drop. If only plain pods are affected, it is a warning.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for finding in &self.findings {
            let (plain, others): (Vec<Way>, Vec<Way>) =
                finding.ways(false).into_iter().partition(|way| *way == Way::Plain);
            for (severity, ways) in [(Severity::Critical, others), (Severity::Warning, plain)] {
                if !ways.is_empty() {
                    let message = sentence(finding, &self.ways, &ways);
                    problems.push(Problem { severity, object: "netfilter".into(), message });
                }
            }
        }
        problems
    }

    /// What drops on one path now, for `hauberk explain`.
    pub fn on(&self, way: Way) -> Vec<String> {
        let found = self.findings.iter().filter(|finding| finding.ways(false).contains(&way));
        found.map(|finding| format!("it does so now: {}", sentence(finding, &self.ways, &[way]))).collect()
    }

    /// For `hauberkd check`: what drops, and what may; none if everything passes.
    pub fn summary(&self) -> Option<String> {
        let mut sentences = Vec::new();
        for finding in &self.findings {
            let (surely, perhaps) = (finding.ways(false), finding.ways(true));
            if !surely.is_empty() {
                sentences.push(sentence(finding, &self.ways, &surely));
            }
            if !perhaps.is_empty() {
                sentences.push(sentence(finding, &self.ways, &perhaps).replacen(" drops ", " may drop ", 1));
            }
        }
        (!sentences.is_empty()).then(|| sentences.join(". Also, "))
    }
}
