//! Errors in the specification's form: a number, a message and details, as JSON on stdout.

use serde::Serialize;

use crate::version::Version;

/// Why a command failed. Codes up to 99 are the specification's, the others are this plugin's.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The plugin does not support the configuration's version.
    #[error("CNI version {asked} is not supported; this plugin speaks {}; set cniVersion accordingly", Version::list())]
    Version {
        /// What the configuration says.
        asked: String,
    },

    /// The command is newer than the configuration's version.
    #[error(
        "{command} came with CNI version {since}, and this network's cniVersion is {asked}: a runtime uses it only where cniVersion is {since} or later"
    )]
    Command {
        /// The command.
        command: &'static str,
        /// The version that introduced it.
        since: &'static str,
        /// What the configuration says.
        asked: &'static str,
    },

    /// A field that the plugin cannot support.
    #[error("the field {key} = {value} is not supported: {reason}")]
    Field {
        /// Its name.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// Why it is not supported.
        reason: &'static str,
    },

    /// An environment variable is missing or invalid.
    #[error("{variable} {problem}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },

    /// stdin could not be read.
    #[error("cannot read the network configuration from stdin: {0}")]
    Input(#[source] std::io::Error),

    /// stdin is not JSON.
    #[error("the network configuration on stdin is not understood: {0}")]
    Decode(String),

    /// The configuration is valid JSON, but cannot be used.
    #[error("the network configuration is invalid: {0}")]
    Config(String),

    /// The agent is not available yet.
    #[error("try again later: {0}")]
    TryAgain(String),

    /// STATUS: ADD would fail now.
    #[error("cannot attach pods now: {0}")]
    NotReady(String),

    /// The interface already exists.
    #[error(
        "the interface {interface} exists already in {place}: an earlier ADD was not followed by DEL, or another plugin made it"
    )]
    InterfaceExists {
        /// Its name.
        interface: String,
        /// Its namespace.
        place: String,
    },

    /// The pod's network namespace cannot be used.
    #[error("the pod's network namespace {path} cannot be used: {problem}")]
    Namespace {
        /// As the runtime named it.
        path: String,
        /// What is wrong.
        problem: String,
    },

    /// The kernel refused.
    #[error("cannot {action} in {place}: {source}")]
    Kernel {
        /// What was attempted, on which object.
        action: String,
        /// The namespace.
        place: String,
        /// The kernel's error.
        source: std::io::Error,
    },

    /// The agent refused, or its answer is invalid.
    #[error("the agent refused: {0}")]
    Agent(String),

    /// CHECK found a difference.
    #[error("the pod's network is not as it was set up: {0}")]
    Different(String),

    /// GC could not remove everything.
    #[error("{} of {attachments} stale attachments could not be removed: {}", failures.len(), failures.join("; "))]
    Leftovers {
        /// How many were to be removed.
        attachments: usize,
        /// The errors, each with its attachment.
        failures: Vec<String>,
    },

    /// A command failed, and undoing it failed too.
    #[error("{first}")]
    NotUndone {
        /// Why the command failed.
        first: Box<CniError>,
        /// What could not be undone.
        remains: String,
    },
}

/// The error in the specification's form.
#[derive(Serialize)]
struct ErrorAnswer<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}

impl CniError {
    /// The number in the answer.
    pub fn code(&self) -> u32 {
        match self {
            CniError::Version { .. } | CniError::Command { .. } => 1,
            CniError::Field { .. } => 2,
            CniError::Environment { .. } => 4,
            CniError::Input(_) => 5,
            CniError::Decode(_) => 6,
            CniError::Config(_) => 7,
            CniError::TryAgain(_) => 11,
            CniError::NotReady(_) => 50,
            CniError::InterfaceExists { .. } => 100,
            CniError::Namespace { .. } => 101,
            CniError::Kernel { .. } => 102,
            CniError::Agent(_) => 103,
            CniError::Different(_) => 104,
            CniError::Leftovers { .. } => 105,
            CniError::NotUndone { first, .. } => first.code(),
        }
    }

    /// The answer for stdout.
    pub fn to_json(&self, version: Version) -> String {
        let details = match self {
            CniError::NotUndone { remains, .. } => format!("{remains}; DEL will remove the rest"),
            _ => String::new(),
        };
        let answer = ErrorAnswer { version: version.as_str(), code: self.code(), msg: self.to_string(), details };
        // A struct of strings and a number always serializes.
        serde_json::to_string(&answer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_undone_keeps_the_first_error_and_its_code() {
        let first = Box::new(CniError::TryAgain("the agent is away".to_string()));
        let error = CniError::NotUndone { first, remains: "interface hbk1 remains".to_string() };
        let json: serde_json::Value = serde_json::from_str(&error.to_json(Version::V1_0)).unwrap();
        assert_eq!(json["cniVersion"], "1.0.0");
        assert_eq!(json["code"], 11);
        assert_eq!(json["msg"], "try again later: the agent is away");
        assert_eq!(json["details"], "interface hbk1 remains; DEL will remove the rest");
    }
}
