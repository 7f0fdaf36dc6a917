//! The programs that lead sockets to services' backends: attached while the configuration says so,
//! and proven to run.

use hauberk_api::Severity;
use tracing::warn;

use crate::apply::{Kernel, cgroup, prove_sockets};
use crate::config::Config;

use super::{Reconciler, Stage};

/// What problems with them concern.
const OBJECT: &str = "services";

/// What is known of the programs.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Whether an earlier agent's may be attached although they are not wanted.
    leave_due: bool,
    /// Whether they may be attached anew when they do not run: once, until they have run again.
    may_attach_anew: bool,
    are_looked_at: bool,
}

impl Default for Sockets {
    fn default() -> Sockets {
        Sockets { leave_due: true, may_attach_anew: true, are_looked_at: false }
    }
}

impl Reconciler {
    /// Attaches what is missing or does not run, or detaches what is not wanted. What fails is
    /// tried again with the next look; connections are kube-proxy's meanwhile.
    pub(super) fn look_at_sockets(&mut self) {
        let Stage::Running(kernel) = &mut self.stage else { return };
        if !self.config.services.sockets {
            if std::mem::take(&mut self.sockets.leave_due)
                && let Err(error) = kernel.leave_sockets_alone()
            {
                self.sockets.leave_due = true;
                self.tell_once(OBJECT, Severity::Warning, format!("the socket programs stay attached: {error}"));
            }
            return;
        }
        // Until every object is read, an earlier agent's programs lead by what that agent knew.
        // Their tables may be of another version than this agent's, and those are still empty.
        if !self.agent.read().model.synced() {
            return;
        }
        self.sockets.are_looked_at = true;
        match self.sockets.lead(&self.config, kernel) {
            Ok(restored) => {
                self.succeed(OBJECT);
                if restored {
                    let message = "another program had detached the socket programs; they are attached again";
                    self.restored(OBJECT.into(), message.into());
                }
            }
            Err(why) => {
                let message = format!("connections to services are not led to a backend: {why}");
                self.tell_once(OBJECT, Severity::Warning, message);
            }
        }
    }
}

impl Sockets {
    /// Whether they were looked at since every object is read.
    pub(super) fn are_looked_at(&self) -> bool {
        self.are_looked_at
    }

    /// Sees to it that the programs run. Returns whether that took attaching them anew.
    fn lead(&mut self, config: &Config, kernel: &mut Kernel) -> Result<bool, String> {
        let cgroup = cgroup(config)?;
        kernel.lead_sockets(&cgroup).map_err(|error| error.to_string())?;
        let run_now = || kernel.lead_sockets_anew(&cgroup).map_err(|error| error.to_string());
        self.prove(prove_sockets, run_now)
    }

    fn prove(
        &mut self,
        proof: impl Fn() -> Result<(), String>,
        attach_anew: impl FnOnce() -> Result<(), String>,
    ) -> Result<bool, String> {
        let Err(why) = proof() else {
            self.may_attach_anew = true;
            return Ok(false);
        };
        // Where the agent is outside of the cgroup, attaching does not help, however often.
        if !std::mem::take(&mut self.may_attach_anew) {
            return Err(why);
        }
        warn!(%why, "the socket programs are attached and do not run: they are attached anew");
        attach_anew()?;
        proof()?;
        self.may_attach_anew = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn programs_that_do_not_run_are_attached_anew_once() {
        let mut sockets = Sockets::default();
        let (runs, attached) = (Cell::new(false), Cell::new(0));
        let proof = || if runs.get() { Ok(()) } else { Err("a probe passed".to_owned()) };
        let attach = |helps: bool| {
            attached.set(attached.get() + 1);
            runs.set(helps);
            Ok(())
        };
        assert_eq!(sockets.prove(proof, || attach(true)), Ok(true), "it helped");
        assert_eq!(sockets.prove(proof, || attach(true)), Ok(false), "there was nothing to do");
        runs.set(false);
        assert!(sockets.prove(proof, || attach(false)).is_err());
        assert_eq!(attached.get(), 2);
        assert!(sockets.prove(proof, || attach(true)).is_err(), "it did not help, so it is not done again");
        assert_eq!(attached.get(), 2);
        runs.set(true);
        assert_eq!(sockets.prove(proof, || attach(true)), Ok(false));
        runs.set(false);
        assert_eq!(sockets.prove(proof, || attach(true)), Ok(true), "once more after they have run");
    }
}
