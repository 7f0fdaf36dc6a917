//! Sets annotations in a YAML document line by line, so that its author's comments and formatting
//! stay.
//!
//! It understands the plain block style that people and `kubectl` write, and gives up on anything
//! else. Its result is never trusted: [`super::annotate`] reads it back.

use super::annotate::Annotations;

/// The document with the annotations set; none if its form is not understood.
pub(super) fn edit(text: &str, annotations: &Annotations) -> Option<String> {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    if let Some(last) = lines.last_mut()
        && !last.ends_with('\n')
    {
        last.push('\n');
    }
    let end_of_line = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let metadata = block(&lines, 0..lines.len(), 0, "metadata")?;
    let inner = metadata.indent?;
    for (name, value) in annotations {
        let annotations = match block(&lines, metadata.body_in(&lines), inner, "annotations") {
            Some(block) => block,
            None if value.is_none() || has_key(&lines, metadata.body_in(&lines), inner, "annotations") => return None,
            None => {
                lines.insert(metadata.line + 1, format!("{}annotations:{end_of_line}", " ".repeat(inner)));
                block(&lines, metadata.body_in(&lines), inner, "annotations")?
            }
        };
        let indent = annotations.indent.unwrap_or(inner * 2);
        let entry = entry(&lines, annotations.body_in(&lines), indent, name);
        let line = value.as_ref().map(|value| format!("{}{name}: {}{end_of_line}", " ".repeat(indent), quoted(value)));
        match entry {
            Some(range) => {
                lines.splice(range, line);
            }
            None => {
                let end = annotations.body_in(&lines).end;
                // Comments and empty lines at the end belong to what follows.
                let end = (annotations.line + 1..end)
                    .rev()
                    .find(|i| is_content(&lines[*i]))
                    .map_or(annotations.line + 1, |i| i + 1);
                lines.splice(end..end, line);
            }
        }
    }
    Some(lines.concat())
}

/// A mapping in block style below a key.
struct Block {
    /// The line of the key.
    line: usize,
    /// The key's own indentation.
    key_indent: usize,
    /// The indentation of its entries; none if it is empty.
    indent: Option<usize>,
}

impl Block {
    /// The lines that belong to it.
    fn body_in(&self, lines: &[String]) -> std::ops::Range<usize> {
        let begin = self.line + 1;
        let length =
            lines[begin..].iter().take_while(|line| !is_content(line) || indent_of(line) > self.key_indent).count();
        begin..begin + length
    }
}

/// The block below `key`. The key must stand at `indent` in `range`, followed by nothing but a
/// comment.
fn block(lines: &[String], range: std::ops::Range<usize>, indent: usize, key: &str) -> Option<Block> {
    let line = range.clone().find(|i| {
        let line = &lines[*i];
        is_content(line)
            && indent_of(line) == indent
            && line.trim_start().strip_prefix(key).and_then(|rest| rest.strip_prefix(':')).is_some_and(|rest| {
                let rest = rest.trim();
                rest.is_empty() || rest.starts_with('#')
            })
    })?;
    let mut block = Block { line, key_indent: indent, indent: None };
    block.indent = lines[block.body_in(lines)].iter().find(|line| is_content(line)).map(|line| indent_of(line));
    Some(block)
}

/// Whether `key` stands at `indent` in `range`, whatever follows it.
fn has_key(lines: &[String], range: std::ops::Range<usize>, indent: usize, key: &str) -> bool {
    lines[range].iter().any(|line| indent_of(line) == indent && names(line.trim_start(), key))
}

/// The lines of an entry: the key's and the value's.
fn entry(lines: &[String], range: std::ops::Range<usize>, indent: usize, key: &str) -> Option<std::ops::Range<usize>> {
    let begin = range
        .clone()
        .find(|i| is_content(&lines[*i]) && indent_of(&lines[*i]) == indent && names(lines[*i].trim_start(), key))?;
    // Up to the last line that is indented deeper; comments and empty lines after it belong to what
    // follows.
    let mut end = begin + 1;
    for (i, line) in lines.iter().enumerate().take(range.end).skip(begin + 1).filter(|(_, line)| is_content(line)) {
        if indent_of(line) <= indent {
            break;
        }
        end = i + 1;
    }
    Some(begin..end)
}

/// Whether a line begins with this key, quoted or not.
fn names(line: &str, key: &str) -> bool {
    [key.to_owned(), format!("'{key}'"), format!("\"{key}\"")]
        .iter()
        .any(|form| line.strip_prefix(form.as_str()).is_some_and(|rest| rest.trim_start().starts_with(':')))
}

fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// A scalar on one line. In single quotes only the single quote itself is doubled, so JSON stays
/// readable.
fn quoted(value: &str) -> String {
    let is_printable = value.chars().all(|c| matches!(c, ' '..='~'));
    if is_printable {
        return format!("'{}'", value.replace('\'', "''"));
    }
    // A JSON string is a YAML string (YAML 1.2.2, section 1.3).
    serde_json::Value::String(value.to_owned()).to_string()
}
