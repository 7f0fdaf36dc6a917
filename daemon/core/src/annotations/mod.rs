//! What agents publish on their own Node objects and read on others': the annotations' names, and a
//! format each. The format of the keys is `hauberk_keyring::published`.

pub mod addresses;
pub mod enforced;
pub mod plaintext;

/// The keys (`hauberk_keyring::published`).
pub const KEYS_ANNOTATION: &str = "hauberk.io/keys";
/// The addresses of the node's devices ([`addresses`]).
pub const ADDRESSES_ANNOTATION: &str = "hauberk.io/addresses";
/// What the node enforces for which namespaces ([`enforced`]).
pub const ENFORCED_ANNOTATION: &str = "hauberk.io/enforced";
/// The nodes that send in the clear ([`plaintext`]).
pub const PLAINTEXT_ANNOTATION: &str = "hauberk.io/plaintext-seen";
