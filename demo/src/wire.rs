//! What the capture shows for a period of time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use hauberk_netns::Marker;
use hauberk_netns::analysis::{self, Kind, Packet};
use hauberk_netns::capture::{Capture, Frame, Moment};

/// Counts for a period of time. A packet is counted where it enters the wire. A packet that is
/// segmented later counts once.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Readable packets from or to the requested addresses.
    pub clear: usize,
    /// Tunnel packets that carry data.
    pub encrypted: usize,
    /// Markers of readable payloads.
    pub seen: BTreeSet<Marker>,
}

/// Waits until the wire is quiet, and counts what crossed it since `since`.
///
/// # Errors
/// The capture is incomplete.
pub fn window(capture: &Capture, since: Moment, addresses: &HashSet<IpAddr>) -> Result<Window> {
    settle(capture)?;
    let frames = capture.since(since)?;
    let mut window = Window { seen: analysis::markers(&frames).into_keys().collect(), ..Window::default() };
    for frame in frames.iter().filter(|frame| !frame.to_machine) {
        match analysis::dissect(&frame.bytes) {
            (Kind::Tunnel, Some(packet)) if carries_data(&frame.bytes, &packet) => window.encrypted += 1,
            (Kind::Clear, Some(packet)) => {
                let ours = addresses.contains(&packet.source) || addresses.contains(&packet.destination);
                window.clear += usize::from(ours);
            }
            _ => {}
        }
    }
    Ok(window)
}

/// Frames in which packets of `addresses` or payloads of `markers` are readable, each once, with
/// the reason.
///
/// # Errors
/// The capture is incomplete.
pub fn leaks(
    capture: &Capture,
    since: Moment,
    addresses: &[IpAddr],
    markers: &BTreeSet<Marker>,
) -> Result<Vec<analysis::Sighting>> {
    let frames = capture.since(since)?;
    let sightings =
        analysis::cleartext_of(&frames, addresses).into_iter().chain(analysis::payload_of(&frames, markers));
    let mut by_frame = BTreeMap::new();
    for sighting in sightings {
        by_frame.entry(Arc::as_ptr(&sighting.frame)).or_insert(sighting);
    }
    Ok(by_frame.into_values().collect())
}

/// Waits until late packets (last acknowledgements, closing connections) are through, for a limited
/// time.
fn settle(capture: &Capture) -> Result<()> {
    const QUIET: Duration = Duration::from_millis(60);
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut last = capture.sync()?;
    loop {
        sleep(QUIET);
        let now = capture.sync()?;
        let busy = capture
            .since(last)?
            .iter()
            .any(|frame: &Arc<Frame>| matches!(analysis::dissect(&frame.bytes).0, Kind::Tunnel | Kind::Clear));
        if !busy || Instant::now() > deadline {
            return Ok(());
        }
        last = now;
    }
}

/// Whether this is a WireGuard data message that is longer than a keepalive (16 bytes of header, 16
/// of authentication tag).
fn carries_data(bytes: &[u8], packet: &Packet) -> bool {
    let network_header = if packet.source.is_ipv4() { 20 } else { 40 };
    let message = 14 + network_header + 8;
    bytes.get(message) == Some(&4) && bytes.len() > message + 32
}
