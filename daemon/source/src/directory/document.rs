//! Cuts a manifest file into documents, so that a malformed one rejects only itself.

use std::ops::Range;

use serde_json::Value;

use super::strict::Strict;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2, documents between `---`.
    Yaml,
    /// JSON values one after the other.
    Json,
}

impl Format {
    /// By the file's extension; none for files that are not manifests.
    pub fn of(name: &str) -> Option<Format> {
        let (stem, extension) = name.rsplit_once('.')?;
        match extension {
            _ if stem.is_empty() || name.starts_with('.') => None,
            "yaml" | "yml" => Some(Format::Yaml),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// A part of a file's text that holds one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its bytes in the text.
    pub range: Range<usize>,
    /// The line its bytes begin on, from 1.
    pub line: usize,
}

/// The documents of a text, without empty ones.
pub fn split(text: &str, format: Format) -> Vec<Document> {
    match format {
        Format::Yaml => split_yaml(text),
        Format::Json => split_json(text),
    }
}

/// A document that is malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// The line, counted from 1 at the document's beginning.
    pub line: usize,
    /// What is wrong.
    pub cause: String,
}

/// Reads one document.
///
/// # Errors
/// [`ReadError`] with the line and the cause.
pub fn read(text: &str, format: Format) -> Result<Value, ReadError> {
    match format {
        Format::Yaml => serde_yaml_ng::from_str::<Strict>(text).map(|strict| strict.0).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            ReadError { line, cause: without_place(&error.to_string()) }
        }),
        Format::Json => serde_json::from_str::<Strict>(text)
            .map(|strict| strict.0)
            .map_err(|error| ReadError { line: error.line().max(1), cause: without_place(&error.to_string()) }),
    }
}

/// An error's text without its position, which counts from the document's beginning and not from
/// the file's.
fn without_place(text: &str) -> String {
    match text.rfind(" at line ") {
        Some(place) => text[..place].to_owned(),
        None => text.to_owned(),
    }
}

/// A `---` at the start of a line always begins a document: no scalar can contain it (YAML 1.2.2,
/// section 9.1.2). `...` ends one.
fn split_yaml(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut begin = text.len() - text.trim_start_matches('\u{feff}').len();
    let mut begin_line = 1;
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if is_marker("---") || is_marker("...") {
            push_yaml(text, begin..offset, begin_line, &mut documents);
            begin = offset + 3;
            begin_line = number + 1;
        }
        offset += line.len();
    }
    push_yaml(text, begin.min(text.len())..text.len(), begin_line, &mut documents);
    documents
}

fn push_yaml(text: &str, range: Range<usize>, line: usize, documents: &mut Vec<Document>) {
    // Comments and directives (%YAML) alone are not a document.
    let has_content = text.get(range.clone()).is_some_and(|part| {
        part.lines()
            .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#') && !line.starts_with('%'))
    });
    if has_content {
        documents.push(Document { range, line });
    }
}

/// Values follow each other with or without space between them. A value that cannot be read takes
/// the rest of the text as its document, because the beginning of the next one is unknown.
fn split_json(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut line = Lines { text, offset: 0, line: 1 };
    let mut begin = text.len() - text.trim_start_matches('\u{feff}').len();
    loop {
        begin += text[begin..].len() - text[begin..].trim_start().len();
        if begin >= text.len() {
            return documents;
        }
        let mut values = serde_json::Deserializer::from_str(&text[begin..]).into_iter::<serde::de::IgnoredAny>();
        let end = match values.next() {
            Some(Ok(_)) => begin + values.byte_offset(),
            _ => text.len(),
        };
        documents.push(Document { range: begin..end, line: line.at(begin) });
        begin = end;
    }
}

/// Counts lines as the offset goes on.
struct Lines<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl Lines<'_> {
    fn at(&mut self, offset: usize) -> usize {
        self.line += self.text[self.offset..offset].bytes().filter(|byte| *byte == b'\n').count();
        self.offset = offset;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(text: &str, format: Format) -> Vec<(&str, usize)> {
        split(text, format).into_iter().map(|d| (text[d.range.clone()].trim(), d.line)).collect()
    }

    #[test]
    fn yaml_documents_are_cut_at_markers() {
        let text = "%YAML 1.2\n# head\n---\na: 1\n---\n---  # nothing\n\n--- {b: 2}\n...\n# tail\n---\nc: |\n  --- not here\n---x: 3\n";
        assert_eq!(parts(text, Format::Yaml), [("a: 1", 3), ("{b: 2}", 8), ("c: |\n  --- not here\n---x: 3", 11)]);
        assert_eq!(parts("\u{feff}a: 1", Format::Yaml), [("a: 1", 1)]);
        assert_eq!(parts("a: 1\r\n---\r\nb: 2\r\n", Format::Yaml), [("a: 1", 1), ("b: 2", 2)]);
        assert_eq!(parts("", Format::Yaml), []);
        assert_eq!(parts("---", Format::Yaml), []);
    }

    #[test]
    fn json_documents_follow_each_other_until_one_is_broken() {
        assert_eq!(
            parts("{\"a\":\n1}{\"b\":2}\n\n[3]", Format::Json),
            [("{\"a\":\n1}", 1), ("{\"b\":2}", 2), ("[3]", 4)]
        );
        assert_eq!(parts("{\"a\":1}\n{\"b\":{\"c\":3}", Format::Json), [("{\"a\":1}", 1), ("{\"b\":{\"c\":3}", 2)]);
        assert_eq!(parts("  \n", Format::Json), []);
    }

    #[test]
    fn a_key_that_is_there_twice_or_merged_in_is_malformed() {
        assert!(read("a: 1\nb: {c: 1, c: 2}\n", Format::Yaml).unwrap_err().cause.contains("\"c\" is there twice"));
        assert!(read("{\"a\":1,\"a\":1}", Format::Json).unwrap_err().cause.contains("\"a\" is there twice"));
        assert!(read("a: &x {b: 1}\nc:\n  <<: *x\n", Format::Yaml).unwrap_err().cause.contains("merge keys"));
        assert!(read("a: !tag 1\n", Format::Yaml).is_err());
        assert!(read("a: .nan\n", Format::Yaml).is_err());
        assert_eq!(read("8080: x\n", Format::Yaml).unwrap()["8080"], "x");
        assert_eq!(read("a: &x {b: 1}\nc: *x\n", Format::Yaml).unwrap()["c"]["b"], 1);
    }

    #[test]
    fn formats_go_by_name() {
        assert_eq!(Format::of("a.yaml"), Some(Format::Yaml));
        assert_eq!(Format::of("a.b.yml"), Some(Format::Yaml));
        assert_eq!(Format::of("a.json"), Some(Format::Json));
        for other in [".a.yaml", ".yaml", "a.yaml~", "a.yaml.swp", "README", "a.txt", ""] {
            assert_eq!(Format::of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn documents_lie_in_the_text_in_order(text in "(---|\\.\\.\\.|\n|\r\n|a: 1|\\{|\\}|\"|#|%|é| |[0-9]){0,30}") {
            for format in [Format::Yaml, Format::Json] {
                let mut end = 0;
                for document in split(&text, format) {
                    prop_assert!(document.range.start >= end && document.range.end <= text.len());
                    prop_assert!(text.get(document.range.clone()).is_some());
                    let _ = read(&text[document.range.clone()], format);
                    end = document.range.end;
                }
            }
        }
    }
}
