//! A new start in place: the same process runs the same program with the same arguments anew. Devices, programs and maps stay
//! as they do at any stop, and every file and socket of the old life is closed by the kernel (`O_CLOEXEC`).

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where the kernel keeps the program that runs, also when its file was replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Does not return unless it fails.
pub(crate) fn restart() -> std::io::Error {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(PROGRAM);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).exec()
}
