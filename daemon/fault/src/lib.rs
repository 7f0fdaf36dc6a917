//! Fault injection for tests: the agent kills itself before its n-th kernel operation.
//!
//! Compiled in only with the cargo feature `fault-injection`; otherwise [`point`] is empty. At each
//! point the invariant is: what has been done so far is no more open than before.
#![forbid(unsafe_code)]

/// Environment variable with the number, from 1, of the operation before which the agent dies.
#[cfg(feature = "fault-injection")]
pub const VARIABLE: &str = "HAUBERK_FAULT_KILL_AT";

/// Called before every kernel operation.
#[cfg(feature = "fault-injection")]
pub fn point(operation: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static KILL_AT: LazyLock<Option<u64>> = LazyLock::new(|| std::env::var(VARIABLE).ok()?.parse().ok());
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(kill_at) = *KILL_AT else { return };
    let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    if count == kill_at {
        eprintln!("fault injection: killed before operation {count}, {operation}");
        // SIGKILL and not exit, so that nothing is cleaned up.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}

/// Called before every kernel operation.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn point(_operation: &str) {}
