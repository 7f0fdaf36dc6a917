//! The last timestamp of this node's handshakes, kept over restarts. A peer refuses a handshake
//! whose timestamp is not later than the last one (WireGuard paper, 5.1). Without this, a peer
//! would refuse this node after a restart with a clock that was set back, until the clock has
//! caught up.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use hauberk_backend::handshake_clock;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tracing::warn;

const FILE: &str = "handshake-clock.json";
const VERSION: u32 = 1;
/// How often a new timestamp is written.
const PERIOD: Duration = Duration::from_secs(1);
/// How far timestamps may have advanced after the last write of an agent that was killed. Longer
/// than [`PERIOD`], for a slow disk.
const UNWRITTEN: Duration = Duration::from_secs(10);
/// A clock that is further behind causes a warning.
const BEHIND: Duration = Duration::from_secs(60);

/// The file in the state directory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    version: u32,
    /// Nanoseconds since 1970.
    latest: u64,
}

/// Makes this process's handshakes later than those of its predecessors, and writes the first
/// timestamp, because an agent may be killed before [`keep`] writes for the first time. If the file
/// cannot be read or written, only this protection is lost.
pub fn restore(state: &Path) {
    let kept = match fs::read(state.join(FILE)) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.to_string()),
    };
    let kept = kept.unwrap_or_else(|reason| {
        warn!(
            state = %state.display(), reason,
            "the time of the last handshake is lost: if the clock was set back, peers refuse this node until it has caught up"
        );
        0
    });
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let behind = Duration::from_nanos(kept).saturating_sub(clock);
    if behind > BEHIND {
        warn!(
            seconds = behind.as_secs(),
            "the clock is behind this node's last handshake, it was set back: handshakes go on from that one's time"
        );
    }
    let begin = begin(kept, clock);
    handshake_clock::not_before(begin);
    if let Err(error) = write(state, begin) {
        warn_unwritten(&error, state);
    }
}

/// The first timestamp of a process that found `kept`, in nanoseconds since 1970.
fn begin(kept: u64, clock: Duration) -> u64 {
    let clock = u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX);
    kept.saturating_add(UNWRITTEN.as_nanos() as u64).max(clock)
}

/// Keeps the last timestamp on disk, for as long as the agent runs.
pub async fn keep(state: PathBuf) {
    let mut written = 0;
    let mut failing = false;
    loop {
        tokio::time::sleep(PERIOD).await;
        let latest = handshake_clock::latest();
        if latest == written {
            continue;
        }
        let folder = state.clone();
        // A disk that hangs blocks this task only.
        let outcome = spawn_blocking(move || write(&folder, latest)).await;
        match outcome.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => (written, failing) = (latest, false),
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn_unwritten(&error, &state);
                }
            }
        }
    }
}

fn warn_unwritten(error: &io::Error, state: &Path) {
    warn!(%error, state = %state.display(), "cannot keep the time of the last handshake");
}

fn parse(bytes: &[u8]) -> Result<u64, String> {
    let kept: Kept = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match kept.version {
        // Close to the maximum, no later handshake would be possible.
        VERSION if kept.latest < u64::MAX / 2 => Ok(kept.latest),
        VERSION => Err(format!("{} ns since 1970 is no time", kept.latest)),
        other => Err(format!("it has version {other}")),
    }
}

/// At every moment the old or the new file exists. It is not synced to the disk: a power cut may
/// lose the last seconds, or the file.
fn write(state: &Path, latest: u64) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(state)?;
    serde_json::to_writer(&mut file, &Kept { version: VERSION, latest })?;
    file.flush()?;
    file.persist(state.join(FILE)).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_killed_at_once_has_kept_when_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let kept = || parse(&fs::read(folder.path().join(FILE)).unwrap()).unwrap();
        restore(folder.path());
        let first = kept();
        assert!(first > 1_700_000_000_000_000_000, "the clock's time: {first}");
        // A day ahead of the clock: each start is later than everything its predecessor may have
        // used.
        let tomorrow = first + 86_400_000_000_000;
        write(folder.path(), tomorrow).unwrap();
        restore(folder.path());
        assert_eq!(kept(), tomorrow + UNWRITTEN.as_nanos() as u64);
        restore(folder.path());
        assert_eq!(kept(), tomorrow + 2 * UNWRITTEN.as_nanos() as u64);
        assert!(handshake_clock::latest() >= kept());
        // A file that cannot be read is replaced.
        fs::write(folder.path().join(FILE), "{").unwrap();
        restore(folder.path());
        assert!((first..tomorrow).contains(&kept()));
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 17).unwrap();
        write(folder.path(), 1_700_000_000_000_000_000).unwrap();
        let bytes = fs::read(folder.path().join(FILE)).unwrap();
        assert_eq!(parse(&bytes).unwrap(), 1_700_000_000_000_000_000);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        for (bad, why) in [
            (r#"{"version":2,"latest":1}"#, "version 2"),
            (r#"{"version":1,"latest":18446744073709551615}"#, "is no time"),
            (r#"{"version":1}"#, "latest"),
            ("", "EOF"),
        ] {
            assert!(parse(bad.as_bytes()).unwrap_err().contains(why), "{bad}");
        }
    }
}
