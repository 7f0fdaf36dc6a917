//! Names for a reader: of identities, prefixes, and the place where an object was read.

use hauberk_abi::address::Prefix;
use hauberk_abi::identity::Identity;
use hauberk_api::Vocabulary as _;

use crate::label::label_value;

/// A prefix in the usual notation, its length counted in its own family.
pub fn prefix_in_words(prefix: Prefix) -> String {
    let family_bits = if prefix.address.is_v4() { 96 } else { 0 };
    format!("{}/{}", prefix.address, prefix.length.saturating_sub(family_bits))
}

/// An identity for a reader: kind, protection, node.
pub fn identity_in_words(identity: Identity) -> String {
    let kind = identity.kind().as_word();
    let protection = label_value(identity.protection());
    format!("{kind}, {protection}, node {}", identity.node)
}

/// Where an object was read, for a message.
pub(crate) fn read_from(origin: &str) -> String {
    if origin.is_empty() { String::new() } else { format!(" ({origin})") }
}
