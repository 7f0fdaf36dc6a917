//! `target/demo/summary.json`: the figures for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The figures. Packets are counted where they enter the wire. The three figures that must be 0
/// count frames on any cable.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Whether every claim was made and held.
    pub all_claims_held: bool,
    /// The error that ended the demo early.
    pub error: Option<String>,
    /// Frames that showed a packet or a payload of an opted-in pod (except traffic to the world).
    /// Must be 0.
    pub protected_cleartext_packets: usize,
    /// Tunnel packets that carried traffic of opted-in pods.
    pub protected_encrypted_packets: usize,
    /// Packets in the clear between parties that are not opted in: they prove that the capture sees
    /// plaintext.
    pub plain_cleartext_packets: usize,
    /// Exchanges of opted-in pods that got through.
    pub protected_delivered: usize,
    /// Exchanges of opted-in pods.
    pub protected_exchanges: usize,
    /// Exchanges of parties that are not opted in that got through.
    pub plain_delivered: usize,
    /// Exchanges of parties that are not opted in.
    pub plain_exchanges: usize,
    /// Frames in the clear of the namespace that was opted in live, after `hauberk status` said
    /// that all nodes had converged. Must be 0.
    pub cleartext_after_live_enable: usize,
    /// Time from the label to the last node's acknowledgement, milliseconds.
    pub live_enable_converged_ms: u128,
    /// Connections that were open when the label changed.
    pub live_enable_connections: usize,
    /// Those of them that went on.
    pub live_enable_connections_survived: usize,
    /// Frames in the clear of opted-in pods since the SIGKILL, including the recovery. Must be 0.
    pub cleartext_after_kill: usize,
    /// Datagrams sent to and from the node without an agent.
    pub sent_during_outage: u64,
    /// Time from the restart of the agent until all streams flowed again, milliseconds.
    pub recovered_ms: u128,
    /// Frames in the capture.
    pub captured_frames: usize,
    /// Wall clock time of the demo, seconds.
    pub duration_seconds: f64,
    /// Each claim by name.
    pub claims: BTreeMap<&'static str, bool>,
}

impl Summary {
    /// Writes the summary into `directory`.
    ///
    /// # Errors
    /// File access fails.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let text = serde_json::to_string_pretty(self).context("write JSON")?;
        fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

/// The summary's file name.
pub const FILE: &str = "summary.json";

/// Whether the summary in `directory` says that all claims held; false if there is none.
pub fn all_claims_held(directory: &Path) -> bool {
    let text = fs::read_to_string(directory.join(FILE)).unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    summary["all_claims_held"].as_bool().unwrap_or(false)
}
