//! The annotation `hauberk.io/addresses`: every address of the node's devices, as its own agent
//! reads them from the kernel. `status.addresses` of a Node lists only the few that its kubelet was
//! told of.
//!
//! ```json
//! {"version":1,"addresses":["192.0.2.2","192.0.2.77","2001:db8::2"]}
//! ```
//! Another machine writes it, so one invalid part makes the agent refuse all of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::reserved;

/// The version of the format that this agent writes and reads.
pub const VERSION: u64 = 1;

/// The most addresses that a node publishes.
pub const MAX_COUNT: usize = 256;

/// The most bytes an annotation may have: enough for [`MAX_COUNT`] addresses of the longest form,
/// with quotes and commas.
pub const MAX_LENGTH: usize = 16 * 1024;

/// Why an annotation was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressesError {
    /// Longer than [`MAX_LENGTH`].
    #[error("it is {length} bytes long, more than the {MAX_LENGTH} that {MAX_COUNT} addresses can need")]
    TooLong {
        /// Its length, bytes.
        length: usize,
    },
    /// Not the JSON it should be.
    #[error("it is not the JSON that hauberk writes ({reason}); the agent of that node writes it anew when restarted")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// Written by an agent with another version of the format.
    #[error(
        "it has version {version}, and this agent reads version {VERSION} only: upgrade the older of the two agents"
    )]
    Version {
        /// The version it has.
        version: u64,
    },
    /// More than [`MAX_COUNT`].
    #[error("it holds {count} addresses, and {MAX_COUNT} are allowed")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// One address twice.
    #[error("it holds {address} more than once")]
    Duplicate {
        /// The address.
        address: IpAddr,
    },
    /// An address that no node can have.
    #[error("it holds {address}, which is {what} and no node's")]
    Reserved {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
}

#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    version: u64,
    addresses: Vec<IpAddr>,
}

/// Whether a node can have the address. It cannot be loopback, link-local or multicast, or another
/// address with the same meaning on every host.
pub fn is_possible(address: IpAddr) -> bool {
    reserved::address(address).is_none()
}

/// Reads an annotation.
///
/// # Errors
/// [`AddressesError`].
pub fn parse(text: &str) -> Result<BTreeSet<IpAddr>, AddressesError> {
    if text.len() > MAX_LENGTH {
        return Err(AddressesError::TooLong { length: text.len() });
    }
    let json = |error: serde_json::Error| AddressesError::Json { reason: error.to_string() };
    // Reads the version alone first, because the rest of another version's format is not known.
    let head: Head = serde_json::from_str(text).map_err(json)?;
    if head.version != VERSION {
        return Err(AddressesError::Version { version: head.version });
    }
    let body: Body = serde_json::from_str(text).map_err(json)?;
    if body.addresses.len() > MAX_COUNT {
        return Err(AddressesError::TooMany { count: body.addresses.len() });
    }
    let mut addresses = BTreeSet::new();
    for address in body.addresses {
        if let Some(what) = reserved::address(address) {
            return Err(AddressesError::Reserved { address, what });
        }
        if !addresses.insert(address) {
            return Err(AddressesError::Duplicate { address });
        }
    }
    Ok(addresses)
}

/// Writes an annotation; [`parse`] reads it back.
pub fn render(addresses: &BTreeSet<IpAddr>) -> String {
    let addresses = addresses.iter().copied().collect();
    // The body has only numbers and strings, so this cannot fail.
    serde_json::to_string(&Body { version: VERSION, addresses }).unwrap_or_default()
}

/// The addresses of a node that are published, and how many are left out because there are more
/// than [`MAX_COUNT`]. Those that `comes_first` accepts come first, then the lowest, so that the
/// selection is always the same.
pub fn published(addresses: &BTreeSet<IpAddr>, comes_first: impl Fn(&IpAddr) -> bool) -> (BTreeSet<IpAddr>, usize) {
    let (first, rest): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| comes_first(address));
    let published: BTreeSet<IpAddr> = first.into_iter().chain(rest).take(MAX_COUNT).collect();
    let left_out = addresses.len() - published.len();
    (published, left_out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::ip;

    #[test]
    fn anything_odd_refuses_the_annotation_whole() {
        for (text, expected) in [
            ("{", "not the JSON"),
            (r#"{"version":2}"#, "version 2"),
            (r#"{"version":1}"#, "not the JSON"),
            (r#"{"version":1,"addresses":["192.0.2.1"],"more":1}"#, "not the JSON"),
            (r#"{"version":1,"addresses":["192.0.2.1","192.0.2.x"]}"#, "not the JSON"),
            (r#"{"version":1,"addresses":["192.0.2.1/24"]}"#, "not the JSON"),
            (r#"{"version":1,"addresses":["192.0.2.1","192.0.2.1"]}"#, "more than once"),
            (r#"{"version":1,"addresses":["fe80::1"]}"#, "link-local"),
            (r#"{"version":1,"addresses":["127.0.0.1"]}"#, "loopback"),
            (r#"{"version":1,"addresses":["169.254.1.1"]}"#, "link-local"),
            (r#"{"version":1,"addresses":["ff02::1"]}"#, "multicast"),
            (r#"{"version":1,"addresses":["::ffff:192.0.2.1"]}"#, "mapped"),
            (&" ".repeat(MAX_LENGTH + 1), "bytes long"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many: Vec<String> = (0..=MAX_COUNT).map(|n| format!("\"10.0.{}.{}\"", n / 256, n % 256)).collect();
        let many = format!(r#"{{"version":1,"addresses":[{}]}}"#, many.join(","));
        assert_eq!(parse(&many), Err(AddressesError::TooMany { count: MAX_COUNT + 1 }));
    }

    #[test]
    fn the_most_and_longest_addresses_fit() {
        let longest = |n: u16| IpAddr::from([0x2001, 0xdb88, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xf000 | n]);
        let most: BTreeSet<IpAddr> = (0..MAX_COUNT as u16).map(longest).collect();
        assert_eq!(parse(&render(&most)).unwrap(), most);
    }

    #[test]
    fn of_too_many_the_important_ones_are_published_and_always_the_same() {
        let all: BTreeSet<IpAddr> = (0..400u16).map(|n| IpAddr::from([10, 1, (n / 256) as u8, n as u8])).collect();
        let important = |address: &IpAddr| *address >= ip("10.1.1.100");
        let (some, left_out) = published(&all, important);
        assert_eq!((some.len(), left_out), (MAX_COUNT, 144));
        assert!(all.iter().filter(|address| important(address)).all(|address| some.contains(address)));
        assert!(some.contains(&ip("10.1.0.0")));
        assert_eq!(published(&some, important), (some.clone(), 0));
    }

    proptest! {
        #[test]
        fn no_annotation_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read_back(numbers in prop::collection::btree_set(0x0a00_0000u32..0x0aff_ffff, 0..20)) {
            let addresses: BTreeSet<IpAddr> = numbers.into_iter().map(|n| IpAddr::from(n.to_be_bytes())).collect();
            prop_assert_eq!(parse(&render(&addresses)).unwrap(), addresses);
        }
    }
}
