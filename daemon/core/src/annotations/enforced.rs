//! The annotation `hauberk.io/enforced`: a digest of what the node enforces for its opted-in
//! namespaces, `{"version":2,"buckets":{"0a":"0123456789abcdef"}}`. A hash of the namespace's name
//! selects one of at most 256 buckets, so the annotation stays short for any number of namespaces.
//!
//! Version 1 had one digest for each namespace,
//! `{"version":1,"namespaces":{"payments":"0123456789abcdef"}}`. It is still read, so that agents
//! of both versions can run in one cluster.

use std::collections::BTreeMap;

use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Serialize};

/// The version of the format that this agent writes.
pub const VERSION: u64 = 2;
/// The older version of the format, which this agent also reads.
const BY_NAMESPACE: u64 = 1;

/// The most bytes an annotation may have: the limit of Kubernetes for all annotations of an object.
/// Version 1 could need that much.
pub const MAX_LENGTH: usize = 256 * 1024;

/// Why an annotation was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnforcedError {
    /// Longer than [`MAX_LENGTH`].
    #[error("it is {length} bytes long, more than the {MAX_LENGTH} an object's annotations may have")]
    TooLong {
        /// Its length, bytes.
        length: usize,
    },
    /// Not the JSON it should be.
    #[error("it is not the JSON that hauberk writes ({reason})")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// Written by an agent with another version of the format.
    #[error(
        "it has version {version}, and this agent reads versions up to {VERSION} only: upgrade the older of the two agents"
    )]
    Version {
        /// The version it has.
        version: u64,
    },
    /// A bucket or a digest in a form that no agent writes.
    #[error("it has a bucket {bucket:?} of digest {digest:?}: these are not two and 16 hexadecimal digits")]
    Bucket {
        /// The bucket's name.
        bucket: String,
        /// Its digest.
        digest: String,
    },
}

#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Deserialize)]
struct ByNamespace {
    namespaces: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    version: u64,
    buckets: BTreeMap<String, String>,
}

/// What a node acknowledges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// Digest by namespace.
    Namespaces(BTreeMap<String, String>),
    /// Digest by bucket.
    Buckets(Buckets),
}

/// Digests of what is enforced, by bucket. A bucket without a namespace has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets(BTreeMap<u8, String>);

impl Buckets {
    /// The buckets of these namespaces' digests.
    pub fn of(enforced: &BTreeMap<String, String>) -> Buckets {
        let mut hashes: BTreeMap<u8, Blake2s256> = BTreeMap::new();
        for (namespace, digest) in enforced {
            let hash = hashes.entry(bucket(namespace)).or_default();
            for part in [namespace, digest] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part.as_bytes());
            }
        }
        Buckets(hashes.into_iter().map(|(bucket, hash)| (bucket, short(hash))).collect())
    }

    /// The digest of the bucket that the namespace is in.
    pub(crate) fn of_namespace(&self, namespace: &str) -> Option<&str> {
        self.0.get(&bucket(namespace)).map(String::as_str)
    }
}

/// The bucket of a namespace: the same on every node and in every version.
fn bucket(namespace: &str) -> u8 {
    Blake2s256::digest(namespace.as_bytes())[0]
}

/// The first eight bytes of a hash.
pub(crate) fn short(hash: Blake2s256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Default for Acknowledged {
    fn default() -> Acknowledged {
        Acknowledged::Buckets(Buckets::default())
    }
}

/// Reads an annotation.
///
/// # Errors
/// [`EnforcedError`].
pub fn parse(text: &str) -> Result<Acknowledged, EnforcedError> {
    if text.len() > MAX_LENGTH {
        return Err(EnforcedError::TooLong { length: text.len() });
    }
    let json = |error: serde_json::Error| EnforcedError::Json { reason: error.to_string() };
    let head: Head = serde_json::from_str(text).map_err(json)?;
    match head.version {
        BY_NAMESPACE => {
            let body: ByNamespace = serde_json::from_str(text).map_err(json)?;
            Ok(Acknowledged::Namespaces(body.namespaces))
        }
        VERSION => {
            let body: Body = serde_json::from_str(text).map_err(json)?;
            let buckets = body.buckets.into_iter().map(|(bucket, digest)| read_bucket(bucket, digest));
            Ok(Acknowledged::Buckets(Buckets(buckets.collect::<Result<_, _>>()?)))
        }
        version => Err(EnforcedError::Version { version }),
    }
}

fn read_bucket(bucket: String, digest: String) -> Result<(u8, String), EnforcedError> {
    let is_hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let number = u8::from_str_radix(&bucket, 16).ok().filter(|_| bucket.len() == 2 && is_hexadecimal(&bucket));
    match number {
        Some(number) if digest.len() == 16 && is_hexadecimal(&digest) => Ok((number, digest)),
        _ => Err(EnforcedError::Bucket { bucket, digest }),
    }
}

/// Writes an annotation of what is enforced, by namespace; [`parse`] reads it back.
pub fn render(enforced: &BTreeMap<String, String>) -> String {
    let Buckets(buckets) = Buckets::of(enforced);
    let buckets = buckets.into_iter().map(|(bucket, digest)| (format!("{bucket:02x}"), digest)).collect();
    // The body has only a number and strings, so this cannot fail.
    serde_json::to_string(&Body { version: VERSION, buckets }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_annotation_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read_back(enforced in prop::collection::btree_map(".{0,20}", "[0-9a-f]{16}", 0..5)) {
            prop_assert_eq!(parse(&render(&enforced)).unwrap(), Acknowledged::Buckets(Buckets::of(&enforced)));
        }
    }
}
