//! The common layout of all answers, as in `wg show`: a coloured heading, indented fields, an empty
//! line.

use std::fmt::{Display, Write};

use anstyle::{AnsiColor, Style};

pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const DOUBTFUL: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const NEUTRAL: Style = AnsiColor::Cyan.on_default();
pub(crate) const NODE: Style = AnsiColor::Green.on_default().bold();
pub(crate) const PEER: Style = AnsiColor::Yellow.on_default();
pub(crate) const NAMESPACE: Style = AnsiColor::Blue.on_default().bold();
const LABEL: Style = Style::new().bold();

/// Text under construction.
#[derive(Default)]
pub(crate) struct Page {
    text: String,
}

impl Page {
    /// `kind: name`, after an empty line unless it is the first.
    pub(crate) fn heading(&mut self, style: Style, kind: &str, name: impl Display) {
        self.gap();
        self.line(format_args!("{style}{kind}{style:#}: {name}"));
    }

    /// `  label: value`.
    pub(crate) fn field(&mut self, label: &str, value: impl Display) {
        self.line(format_args!("  {LABEL}{label}{LABEL:#}: {value}"));
    }

    /// `  label:`, followed by items.
    pub(crate) fn list(&mut self, label: &str) {
        self.line(format_args!("  {LABEL}{label}{LABEL:#}:"));
    }

    /// A line below a field or in a list.
    pub(crate) fn item(&mut self, value: impl Display) {
        self.line(format_args!("    {value}"));
    }

    /// A line without changes.
    pub(crate) fn line(&mut self, value: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{value}");
    }

    /// An empty line between two parts.
    pub(crate) fn gap(&mut self) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// A word in a style.
pub(crate) fn painted(style: Style, word: impl Display) -> String {
    format!("{style}{word}{style:#}")
}
