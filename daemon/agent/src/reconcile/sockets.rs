//! The programs that lead sockets to services' backends: attached while the configuration says so,
//! and proven to run.

use hauberk_api::Severity;

use crate::apply::{cgroup, prove_sockets};

use super::{Reconciler, Stage};

/// What problems with them concern.
const OBJECT: &str = "services";

impl Reconciler {
    /// Attaches what is missing, or detaches what is not wanted. What fails is tried again with the
    /// next look; connections are kube-proxy's meanwhile.
    pub(super) fn look_at_sockets(&mut self) {
        let Stage::Running(kernel) = &mut self.stage else { return };
        if !self.config.services.sockets {
            if std::mem::take(&mut self.sockets_due)
                && let Err(error) = kernel.leave_sockets_alone()
            {
                self.sockets_due = true;
                self.tell_once(OBJECT, Severity::Warning, format!("the socket programs stay attached: {error}"));
            }
            return;
        }
        let attached = cgroup(&self.config)
            .and_then(|cgroup| kernel.lead_sockets(&cgroup).map_err(|error| error.to_string()))
            .and_then(|()| prove_sockets());
        match attached {
            Ok(()) => self.succeed(OBJECT),
            Err(why) => {
                let message = format!("connections to services are not led to a backend: {why}");
                self.tell_once(OBJECT, Severity::Warning, message);
            }
        }
    }
}
