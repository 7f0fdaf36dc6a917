//! What the exit code says. Scripts and probes rely on it.

use std::process::ExitCode;

use hauberk_api::{Explanation, Protection, Severity, Status};

/// The end of a command that was answered, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// 0.
    Fine,
    /// 1: no answer.
    Error,
    /// 2: something that must be encrypted is not.
    Unprotected,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(match outcome {
            Outcome::Fine => 0,
            Outcome::Error => 1,
            Outcome::Unprotected => 2,
        })
    }
}

impl Outcome {
    /// A node protects what it must if its datapath is proven and nothing critical is wrong.
    pub(crate) fn of_status(status: &Status) -> Outcome {
        let critical = status.problems.iter().any(|problem| problem.severity == Severity::Critical);
        if critical || !status.ready { Outcome::Unprotected } else { Outcome::Fine }
    }

    /// Traffic of an opted-in end must not be in the clear between nodes, or to what may be a node. Refused is safe.
    pub(crate) fn of_explanation(explanation: &Explanation) -> Outcome {
        let opted_in = [&explanation.source, &explanation.destination]
            .into_iter()
            .any(|party| party.protection == Protection::Enabled || party.unmet == Some(Protection::Enabled));
        let plain = explanation.encryption == "plain";
        if plain && opted_in { Outcome::Unprotected } else { Outcome::Fine }
    }
}
