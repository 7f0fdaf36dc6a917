//! What the reader sees: progress, blocks of other programs' output, verdicts. Colours only on a terminal.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};

/// For what matters.
pub const BOLD: Style = Style::new().bold();
/// For what does not.
pub const DIM: Style = Style::new().dimmed();
/// For what is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For what is not.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// `text` in a style.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A tick or a cross.
pub fn mark(good: bool) -> String {
    if good { styled(GOOD, "✓") } else { styled(BAD, "✗") }
}

/// Whether the reader is at a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// A line as it is.
pub fn line(text: impl Display) {
    println!("{text}");
}

/// A chapter begins.
pub fn chapter(number: u8, title: &str) {
    println!();
    println!("{}", styled(BOLD, format!("{number}  {title}")));
}

/// Something was done, and how long it took.
pub fn done(since: Instant, text: impl Display) {
    println!("   {} {text} {}", mark(true), styled(DIM, format!("({})", seconds(since.elapsed()))));
}

/// A remark.
pub fn note(text: impl Display) {
    println!("   {text}");
}

/// What failed, for the error stream.
pub fn failure(text: &str) {
    eprintln!("{}", styled(BAD, format!("hauberk-demo: {text}")));
}

/// A command as one would type it, and what it printed.
pub fn command(prompt: &str, output: &str) {
    println!();
    println!("   {}", styled(BOLD, prompt));
    for line in output.trim_end().lines() {
        println!("   {} {line}", styled(DIM, "│"));
    }
}

/// A duration for people.
pub fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
