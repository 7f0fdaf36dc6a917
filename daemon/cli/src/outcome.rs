//! The meaning of the exit code. Scripts and probes rely on it.

use std::process::ExitCode;

use hauberk_api::{Encryption, Explanation, Protection, Severity, Status};

/// The outcome of a command.
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
    /// A node protects everything it must if its datapath is proven and there is no critical
    /// problem.
    pub(crate) fn of_status(status: &Status) -> Outcome {
        let critical = status.problems.iter().any(|problem| problem.severity == Severity::Critical);
        if critical || !status.ready { Outcome::Unprotected } else { Outcome::Fine }
    }

    /// Traffic of an opted-in end must not be in the clear between nodes, or to an address that may
    /// be a node's. Refused traffic is safe.
    pub(crate) fn of_explanation(explanation: &Explanation) -> Outcome {
        let opted_in = [&explanation.source, &explanation.destination]
            .into_iter()
            .any(|party| party.protection == Protection::Enabled || party.unmet == Some(Protection::Enabled));
        let plain = explanation.encryption == Encryption::Plain;
        if plain && opted_in { Outcome::Unprotected } else { Outcome::Fine }
    }
}
