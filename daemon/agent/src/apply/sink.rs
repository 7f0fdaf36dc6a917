//! Where steps are carried out: one method per subject.

use hauberk_core::identities::IdentityStep;
use hauberk_core::plan::Execution;
use hauberk_core::pods::PodStep;
use hauberk_core::services::ServiceStep;
use hauberk_core::state::{State, Step};
use hauberk_core::tunnels::TunnelStep;
use hauberk_fault as fault;
use tracing::{error, warn};

use super::{ApplyError, Kernel};

/// The most failed steps of a plan that are logged one by one.
const LOGGED: usize = 20;

/// This node's kernel and tunnel, or a double in memory. A step that fails can be repeated.
pub(crate) trait Sink {
    /// Changes what the datapath knows about addresses.
    async fn identity(&mut self, step: &IdentityStep) -> Result<(), ApplyError>;

    /// Changes a pod's interface.
    async fn pod(&mut self, step: &PodStep) -> Result<(), ApplyError>;

    /// Changes the tunnel or the routes into it. Several steps concern its peers, and are carried
    /// out as one change: all of them, or none if that fails.
    async fn tunnel(&mut self, steps: &[&TunnelStep]) -> Result<(), ApplyError>;

    /// Changes where services are reached, or their backends.
    async fn service(&mut self, step: &ServiceStep) -> Result<(), ApplyError>;
}

impl Sink for Kernel {
    async fn identity(&mut self, step: &IdentityStep) -> Result<(), ApplyError> {
        fault::point("a step");
        self.apply_identity(step).await
    }

    async fn pod(&mut self, step: &PodStep) -> Result<(), ApplyError> {
        fault::point("a step");
        self.apply_pod(step).await
    }

    async fn tunnel(&mut self, steps: &[&TunnelStep]) -> Result<(), ApplyError> {
        if let [step] = steps {
            fault::point("a step");
            return self.apply_tunnel(step).await;
        }
        fault::point("peer steps");
        self.apply_peers(steps)
    }

    async fn service(&mut self, step: &ServiceStep) -> Result<(), ApplyError> {
        fault::point("a step");
        self.apply_service(step)
    }
}

/// Carries a plan out, and notes in `actual` what succeeded. Returns the steps that failed, each
/// with its reason. They stop no other step but those that would be wrong without them.
pub(crate) async fn carry_out(steps: Vec<Step>, sink: &mut impl Sink, actual: &mut State) -> Vec<(Step, ApplyError)> {
    let mut failed = Vec::new();
    let mut execution = Execution::new(steps);
    while let Some(next) = execution.next_steps() {
        // What moves from one peer to another moves at once. If that is refused, each step is tried
        // alone.
        if next.len() > 1 && sink.tunnel(&tunnel_steps(&next)).await.is_ok() {
            next.iter().for_each(|step| actual.apply(step));
            continue;
        }
        for step in next {
            let done = match &step {
                Step::Identity(step) => sink.identity(step).await,
                Step::Pod(step) => sink.pod(step).await,
                Step::Tunnel(step) => sink.tunnel(&[step]).await,
                Step::Service(step) => sink.service(step).await,
            };
            match done {
                Ok(()) => actual.apply(&step),
                Err(error) => {
                    if failed.len() == LOGGED {
                        warn!("more steps failed; the status names the objects");
                    }
                    let later = if error.is_fatal() { "the agent must be restarted" } else { "it will be tried again" };
                    if failed.len() < LOGGED {
                        error!(step = %step.object(), %error, "a step failed; {later}");
                    }
                    execution.failed(&step);
                    failed.push((step, error));
                }
            }
        }
    }
    failed
}

fn tunnel_steps(steps: &[Step]) -> Vec<&TunnelStep> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Tunnel(step) => Some(step),
            Step::Identity(_) | Step::Pod(_) | Step::Service(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
