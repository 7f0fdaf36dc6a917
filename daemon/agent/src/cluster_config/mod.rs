//! The cluster's own configuration: the HauberkConfig object named `cluster`, merged over this
//! node's file.
//!
//! The object overrides the file. An unusable object is refused as a whole, with every reason, and
//! the last accepted one stays in force. The same holds when the object is deleted or the API
//! server is away: absence does not open anything. The annotation `hauberk.io/config` says whether
//! this node accepts the object.

mod copy;
mod follow;
mod merge;
mod object;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hauberk_api::{ConfigurationOrigin, ConfigurationStatus};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{info, warn};

use crate::config::{Config, ConfigError};
use crate::selfcheck;

pub use copy::{Copy, CopyError};
pub use follow::{Parts, follow};
pub use merge::{merge, needs_start, settings};
pub use object::{Condition, HauberkConfig, HauberkConfigStatus, NAME, NodeAcceptance};

/// The node annotation that says whether this node accepts the object.
pub const CONFIG_ANNOTATION: &str = "hauberk.io/config";
/// How long a start waits for the API server.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);
/// The format's version that this agent writes and reads.
const VERSION: u64 = 1;
/// Longest message in an annotation, bytes. A Node has room for 256 KiB of annotations.
const MAX_MESSAGE: usize = 2_048;
const ABSENT: &str = "there is no HauberkConfig cluster";
const KEPT: &str = "the last accepted one stays in force";

/// What the agent starts with.
#[derive(Debug)]
pub struct Start {
    /// The file's configuration, with the object merged over it.
    pub config: Config,
    /// Its origin, for `hauberk status`.
    pub status: ConfigurationStatus,
}

/// The configuration to start with: with the object if the API server returns it in time, else with
/// the copy of the last accepted one, else the file's alone.
///
/// # Errors
/// [`ConfigError::Invalid`] if a required field is left without a value.
pub async fn start(file: &Config, client: &Client) -> Result<Start, ConfigError> {
    let copy = Copy::read(&file.paths.state).unwrap_or_else(|error| {
        warn!("{error}");
        None
    });
    let logged = with_copy(file).log;
    let answer = tokio::time::timeout(PATIENCE, fetch(client)).await;
    let (start, accepted) = choose(file, copy, answer.ok().map(|object| object.map(Offer::from)), node_can)?;
    match accepted.map(|copy| copy.write(&file.paths.state)) {
        // The agent runs with the object even if the copy cannot be written.
        Some(Err(error)) => warn!("{error}"),
        // Logging was set up before the object was known.
        Some(Ok(())) if start.config.log != logged => {
            info!("HauberkConfig changes how is logged: hauberkd starts anew");
            let error = crate::restart::restart();
            warn!(%error, "cannot start anew; logging stays as it was");
        }
        _ => {}
    }
    info!(origin = start.status.origin.as_str(), generation = start.status.generation, "configuration settled");
    Ok(start)
}

/// The file's configuration with the last accepted object merged over it: what a start uses before
/// it has asked the API server.
pub fn with_copy(file: &Config) -> Config {
    let copy = Copy::read(&file.paths.state).ok().flatten();
    copy.and_then(|copy| merge(file, &copy.spec).ok()).unwrap_or_else(|| file.clone())
}

/// Asks the API server for the object until it answers.
async fn fetch(client: &Client) -> Option<HauberkConfig> {
    let api: Api<HauberkConfig> = Api::all(client.clone());
    let mut told = false;
    loop {
        match api.get_opt(NAME).await {
            Ok(object) => return object,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "cannot read HauberkConfig {NAME} yet");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The parts of an object that matter here.
#[derive(Clone, Debug)]
struct Offer {
    uid: String,
    generation: i64,
    spec: Map<String, Value>,
}

impl From<HauberkConfig> for Offer {
    fn from(object: HauberkConfig) -> Offer {
        Offer {
            uid: object.metadata.uid.unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            spec: object.spec.fields,
        }
    }
}

/// Decides what a start uses, and which object to keep as the last accepted one. `answer` is none
/// if the API server did not answer, else the object if there is one.
fn choose(
    file: &Config,
    copy: Option<Copy>,
    answer: Option<Option<Offer>>,
    check: impl Fn(&Config) -> Result<(), String>,
) -> Result<(Start, Option<Copy>), ConfigError> {
    let never_was = matches!(answer, Some(None)) && copy.is_none();
    let (refused, why) = match answer {
        Some(Some(offer)) => match judge(file, &offer.spec, &check) {
            Ok(config) => {
                let status = in_force(ConfigurationOrigin::Object, offer.generation);
                return Ok((Start { config, status }, Some(Copy::new(offer.uid, offer.generation, offer.spec))));
            }
            Err(problems) => (Some(offer.generation), refusal(offer.generation, &problems)),
        },
        Some(None) => (None, ABSENT.to_owned()),
        None => (None, "the API server did not answer".to_owned()),
    };
    if let Some(copy) = copy {
        match merge(file, &copy.spec) {
            Ok(config) => {
                let message = Some(format!("{why}; {KEPT}"));
                let status =
                    ConfigurationStatus { refused, message, ..in_force(ConfigurationOrigin::Copy, copy.generation) };
                return Ok((Start { config, status }, None));
            }
            Err(problems) => warn!(?problems, "the last accepted HauberkConfig does not fit this node's file any more"),
        }
    }
    file.validate_effective()?;
    let message = (!never_was).then(|| format!("{why}; the file alone counts"));
    let status = ConfigurationStatus { origin: ConfigurationOrigin::File.into(), generation: None, refused, message };
    Ok((Start { config: file.clone(), status }, None))
}

/// The configuration with the object, if its values are valid and the node can do what they ask
/// for.
fn judge(
    file: &Config,
    spec: &Map<String, Value>,
    check: impl Fn(&Config) -> Result<(), String>,
) -> Result<Config, Vec<String>> {
    let config = merge(file, spec)?;
    check(&config).map_err(|problem| vec![problem])?;
    Ok(config)
}

/// Whether this node can do what a configuration asks for.
fn node_can(config: &Config) -> Result<(), String> {
    selfcheck::require(&selfcheck::run(config)).map_err(|error| error.to_string())
}

fn in_force(origin: ConfigurationOrigin, generation: i64) -> ConfigurationStatus {
    ConfigurationStatus { origin: origin.into(), generation: Some(generation), refused: None, message: None }
}

fn refusal(generation: i64, problems: &[String]) -> String {
    format!("generation {generation} of HauberkConfig {NAME} is refused: {}", problems.join("; "))
}

/// The annotation `hauberk.io/config`: `{"version":1,"generation":3,"accepted":true,"message":""}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    version: u64,
    /// The object's generation that is in force, or is refused.
    pub generation: i64,
    /// Whether it is in force.
    pub accepted: bool,
    /// The reason, if it is refused.
    pub message: String,
}

impl Acceptance {
    /// What a node publishes; none while it does not know an object.
    pub fn of(status: &ConfigurationStatus) -> Option<Acceptance> {
        let mut message = status.message.clone().unwrap_or_default();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        let generation = status.refused.or(status.generation)?;
        Some(Acceptance { version: VERSION, generation, accepted: status.refused.is_none(), message })
    }

    /// Reads the annotation; none if it is not of this version.
    pub fn parse(text: &str) -> Option<Acceptance> {
        serde_json::from_str(text).ok().filter(|acceptance: &Acceptance| acceptance.version == VERSION)
    }

    /// Writes the annotation.
    pub fn render(&self) -> String {
        // It has only numbers and text, so this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
