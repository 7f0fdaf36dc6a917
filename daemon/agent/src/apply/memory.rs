//! The kernel's double in memory, for tests without root.

use hauberk_core::identities::IdentityStep;
use hauberk_core::pods::PodStep;
use hauberk_core::services::ServiceStep;
use hauberk_core::state::{State, Step};
use hauberk_core::tunnels::TunnelStep;

use super::ApplyError;
use super::sink::Sink;

/// Holds what a kernel would hold, and refuses the steps that it is told to refuse.
pub(crate) struct Memory {
    pub(crate) held: State,
    /// Whether a step is refused.
    pub(crate) refuses: Box<dyn FnMut(&Step) -> bool + Send>,
    /// Every step that was tried, with whether it was carried out.
    pub(crate) tried: Vec<(Step, bool)>,
}

impl Memory {
    /// Empty; refuses what `refuses` says.
    pub(crate) fn new(refuses: impl FnMut(&Step) -> bool + Send + 'static) -> Memory {
        Memory { held: State::default(), refuses: Box::new(refuses), tried: Vec::new() }
    }

    fn take(&mut self, steps: Vec<Step>) -> Result<(), ApplyError> {
        // All of them, or none.
        let refused = steps.iter().any(|step| (self.refuses)(step));
        for step in steps {
            if !refused {
                self.held.apply(&step);
            }
            self.tried.push((step, !refused));
        }
        if !refused {
            return Ok(());
        }
        let source = std::io::Error::other("the double was told to refuse it");
        Err(ApplyError::Host(hauberk_host::HostError::Netlink { action: "take a step".into(), source }))
    }
}

impl Sink for Memory {
    async fn identity(&mut self, step: &IdentityStep) -> Result<(), ApplyError> {
        self.take(vec![Step::Identity(step.clone())])
    }

    async fn pod(&mut self, step: &PodStep) -> Result<(), ApplyError> {
        self.take(vec![Step::Pod(step.clone())])
    }

    async fn tunnel(&mut self, steps: &[&TunnelStep]) -> Result<(), ApplyError> {
        self.take(steps.iter().map(|step| Step::Tunnel((*step).clone())).collect())
    }

    async fn service(&mut self, step: &ServiceStep) -> Result<(), ApplyError> {
        self.take(vec![Step::Service(step.clone())])
    }
}
