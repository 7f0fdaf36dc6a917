//! Chains of other programs that drop what pods send or are sent: the ways that nobody else would tell of.

use hauberk_api::{Problem, Severity};

use hauberk_host::netfilter::firewall::{Finding, Way, Ways};

/// What was found, and on which ways it was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Firewalls {
    /// Where was looked.
    pub ways: Ways,
    /// What was found there.
    pub findings: Vec<Finding>,
}

/// A chain that drops everything on these ways, and what to run.
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
    /// Chains that surely drop. What only plain pods miss is no more than a warning.
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

    /// What drops on one way now, for `hauberk explain`.
    pub fn on(&self, way: Way) -> Vec<String> {
        let found = self.findings.iter().filter(|finding| finding.ways(false).contains(&way));
        found.map(|finding| format!("it does so now: {}", sentence(finding, &self.ways, &[way]))).collect()
    }

    /// For `hauberkd check`: what drops, and what may; nothing if all passes.
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
