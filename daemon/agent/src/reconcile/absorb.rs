//! The memory step: inputs go into the model.

use hauberk_backend::Progress;
use hauberk_core::events::NewEvent;
use hauberk_core::model::Change;
use jiff::Timestamp;
use tracing::{info, warn};

use crate::cluster_config;
use crate::state::AgentState;

use super::input::Waiter;
use super::{BATCH, Input, Reconciler};

impl Reconciler {
    /// Takes in the inputs. Returns whether anything is different, and the callers that wait for
    /// it.
    pub(super) fn absorb(&mut self, batch: Vec<Input>) -> (bool, Vec<Waiter>) {
        let mut changed = false;
        let mut waiting = Vec::new();
        let now = Timestamp::now();
        let mut agent = self.agent.write();
        for input in batch {
            let changes = match input {
                Input::Changes(changes) => changes,
                Input::FromSource(changes, at) => {
                    // Before everything is known, most changes wait for the rest and would distort
                    // the measurement.
                    if agent.model.synced() && self.waiting_since.len() < BATCH {
                        self.waiting_since.push(at);
                    }
                    changes
                }
                Input::Waiting(change, waiter) => {
                    waiting.push(waiter);
                    vec![*change]
                }
                Input::Peer(number, progress) => match (agent.model.node_name(number).map(str::to_owned), progress) {
                    (Some(node), Progress::Established) => vec![Change::PeerReady { node, ready: true }],
                    (Some(node), Progress::Failed) => vec![Change::PeerReady { node, ready: false }],
                    _ => Vec::new(),
                },
                Input::Devices => Vec::new(),
                Input::Source(status, events) => {
                    agent.source = *status;
                    for event in events {
                        note(&mut agent, &event, now);
                    }
                    Vec::new()
                }
                Input::Configuration(config) => {
                    let settings = cluster_config::settings(&agent.local.settings, &config);
                    changed |= settings != agent.local.settings;
                    agent.local.settings = settings;
                    Vec::new()
                }
            };
            for change in changes {
                let applied = agent.model.apply(change);
                changed |= applied.changed;
                for event in &applied.events {
                    note(&mut agent, event, now);
                }
            }
        }
        (changed, waiting)
    }
}

/// Notes an event, and logs it if it is new.
pub(super) fn note(agent: &mut AgentState, event: &NewEvent, now: Timestamp) {
    if agent.events.note(event, now) {
        if event.warning {
            warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
        } else {
            info!(reason = event.reason, objects = ?event.objects, "{}", event.message);
        }
    }
}
