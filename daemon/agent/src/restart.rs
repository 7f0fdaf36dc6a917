//! Restarts in place: the same process executes the same program with the same arguments again.
//! Devices, programs and maps stay as at any stop, and the kernel closes every file and socket of
//! the old program (`O_CLOEXEC`).

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The running program, even if its file was replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Returns only if it fails.
pub(crate) fn restart() -> std::io::Error {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(PROGRAM);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).exec()
}
