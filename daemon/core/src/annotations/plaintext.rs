//! The annotation `hauberk.io/plaintext-seen` of a node's own Node object: the nodes that recently
//! sent it plaintext that should have been encrypted,
//! `{"version":1,"nodes":{"n2":{"packets":12,"last":"2026-11-28T19:07:00Z"}}}`. The agent of the
//! named node reads it there. It is an alarm and decides nothing.

use std::collections::BTreeMap;

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};

/// The version of the format that this agent writes and reads.
pub const VERSION: u64 = 1;
/// The most nodes that are named; the ones seen last are kept.
pub const MAX_NODES: usize = 64;
/// The most bytes of an annotation that is read.
const MAX_LENGTH: usize = 64 * 1024;

/// What was seen from one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Number of packets at the time of writing.
    pub packets: u64,
    /// Time of the last one, rounded to the minute so that the annotation is not rewritten all the
    /// time.
    pub last: Timestamp,
}

#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    version: u64,
    nodes: BTreeMap<String, Report>,
}

impl Report {
    /// This many packets, the last one at this time.
    pub fn new(packets: u64, last: Timestamp) -> Report {
        Report { packets, last: last.round(Unit::Minute).unwrap_or(last) }
    }
}

/// Reads an annotation: reports by node; none if it has another format.
pub fn parse(text: &str) -> Option<BTreeMap<String, Report>> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let head: Head = serde_json::from_str(text).ok()?;
    if head.version != VERSION {
        return None;
    }
    let body: Body = serde_json::from_str(text).ok()?;
    (body.nodes.len() <= MAX_NODES).then_some(body.nodes)
}

/// Writes an annotation; [`parse`] reads it back. At most the [`MAX_NODES`] nodes seen last are
/// named.
pub fn render(nodes: &BTreeMap<String, Report>) -> String {
    let mut latest: Vec<(&String, &Report)> = nodes.iter().collect();
    latest.sort_by_key(|(_, report)| std::cmp::Reverse(report.last));
    let nodes = latest.into_iter().take(MAX_NODES).map(|(name, report)| (name.clone(), *report)).collect();
    // The body has only strings and numbers, so this cannot fail.
    serde_json::to_string(&Body { version: VERSION, nodes }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes() {
        let last: Timestamp = "2026-11-28T19:07:12.5Z".parse().unwrap();
        let nodes = BTreeMap::from([("n2".to_owned(), Report::new(12, last))]);
        let text = render(&nodes);
        assert_eq!(text, r#"{"version":1,"nodes":{"n2":{"packets":12,"last":"2026-11-28T19:07:00Z"}}}"#);
        assert_eq!(parse(&text), Some(nodes));
    }

    #[test]
    fn it_is_bounded_and_what_is_odd_is_not_read() {
        let report = |minute: i64| Report::new(1, Timestamp::from_second(minute * 60).unwrap());
        let nodes: BTreeMap<String, Report> = (0..200).map(|n| (format!("n{n:03}"), report(n))).collect();
        let read = parse(&render(&nodes)).unwrap();
        assert_eq!(read.len(), MAX_NODES);
        assert!(read.contains_key("n199") && !read.contains_key("n100"));
        let body = serde_json::to_string(&Body { version: VERSION, nodes }).unwrap();
        for text in ["", "{}", r#"{"version":2,"nodes":{}}"#, r#"{"version":1,"nodes":{"n":{}}}"#, &body] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&format!("{}{}", render(&BTreeMap::new()), " ".repeat(MAX_LENGTH))), None);
    }
}
