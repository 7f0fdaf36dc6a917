//! What the user sees: progress, blocks of other programs' output, verdicts. Colours only on a
//! terminal.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};

/// For important text.
pub const BOLD: Style = Style::new().bold();
/// For unimportant text.
pub const DIM: Style = Style::new().dimmed();
/// For results that are as they should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For results that are not.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// `text` in a style.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A tick or a cross.
pub fn mark(good: bool) -> String {
    if good { styled(GOOD, "✓") } else { styled(BAD, "✗") }
}

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Prints a line as it is.
pub fn line(text: impl Display) {
    println!("{text}");
}

/// Prints the heading of a chapter.
pub fn chapter(number: u8, title: &str) {
    println!();
    println!("{}", styled(BOLD, format!("{number}  {title}")));
}

/// Prints that a step is done, and how long it took.
pub fn done(since: Instant, text: impl Display) {
    println!("   {} {text} {}", mark(true), styled(DIM, format!("({})", seconds(since.elapsed()))));
}

/// Prints a remark.
pub fn note(text: impl Display) {
    println!("   {text}");
}

/// Prints what failed to standard error.
pub fn failure(text: &str) {
    eprintln!("{}", styled(BAD, format!("hauberk-demo: {text}")));
}

/// Prints a command as the user would type it, and its output.
pub fn command(prompt: &str, output: &str) {
    println!();
    println!("   {}", styled(BOLD, prompt));
    for line in output.trim_end().lines() {
        println!("   {} {line}", styled(DIM, "│"));
    }
}

/// A duration in a readable form.
pub fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
