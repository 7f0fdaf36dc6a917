//! The start-up taint: a new node has it so that no pod starts there before hauberk can protect it.

use k8s_openapi::api::core::v1::Taint;

/// The taint's key.
pub const KEY: &str = "hauberk.io/agent-not-ready";

/// The other taints in their order, if hauberk's is among them.
pub fn without_ours(taints: &[Taint]) -> Option<Vec<Taint>> {
    let others: Vec<Taint> = taints.iter().filter(|taint| taint.key != KEY).cloned().collect();
    (others.len() < taints.len()).then_some(others)
}
