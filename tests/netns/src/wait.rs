//! Waits for conditions, with deadlines that only a hung program reaches.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for a loaded machine to do anything that a test waits for.
pub const GENEROUS: Duration = Duration::from_secs(60);

/// Evaluates `condition` until it holds, for at most [`GENEROUS`].
///
/// # Errors
/// It never held. The message names `what` was waited for and the condition's last error.
pub fn eventually<T>(what: impl Display, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    within(GENEROUS, what, condition)
}

/// Evaluates `condition` until it holds, for at most `limit`.
///
/// # Errors
/// As [`eventually`].
pub fn within<T>(limit: Duration, what: impl Display, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            match last {
                Some(error) => return Err(error.context(format!("waited {limit:?} for {what}"))),
                None => bail!("waited {limit:?} for {what}"),
            }
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
