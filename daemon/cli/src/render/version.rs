//! `hauberk version`: the versions of this command and of the agent, which may differ during an
//! upgrade.

use serde::Serialize;

use crate::render::page::{self, Page, painted};

/// Both versions.
#[derive(Debug, Serialize)]
pub(crate) struct Versions {
    client: &'static str,
    /// None if the agent did not answer.
    agent: Option<String>,
    node: Option<String>,
    /// Why the agent did not answer.
    agent_error: Option<String>,
}

impl Versions {
    /// From the agent's version and node, or the error.
    pub(crate) fn new(client: &'static str, agent: Result<(String, String), String>) -> Versions {
        match agent {
            Ok((version, node)) => Versions { client, agent: Some(version), node: Some(node), agent_error: None },
            Err(error) => Versions { client, agent: None, node: None, agent_error: Some(error) },
        }
    }
}

/// The whole answer.
pub(crate) fn page(versions: &Versions) -> String {
    let mut page = Page::default();
    page.line(format_args!("hauberk {}", versions.client));
    match (&versions.agent, &versions.node) {
        (Some(agent), Some(node)) => {
            let differ = if agent == versions.client { "" } else { " (differs: an upgrade is under way?)" };
            page.line(format_args!("hauberkd {agent} on node {node}{differ}"));
        }
        _ => {
            let why = versions.agent_error.as_deref().unwrap_or("it did not answer");
            page.line(format_args!("hauberkd {}: {why}", painted(page::DOUBTFUL, "unknown")));
        }
    }
    page.into_text()
}
