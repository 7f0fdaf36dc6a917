//! Who has an address, and how it is protected: ENDPOINTS, RANGES, and what netfilter must not
//! translate.

pub(crate) mod addresses;
pub(crate) mod claims;
mod order;
pub(crate) mod ranges;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::Identity;
use ipnet::IpNet;

use crate::lookup::Ranges;
use crate::names::{AttachmentKey, PodName};
use crate::scope::Keys;
use crate::words::{identity_in_words as in_words, prefix_in_words};

pub use addresses::Contest;
pub(crate) use order::order;

/// What the datapath knows about addresses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Identities {
    /// ENDPOINTS.
    pub endpoints: BTreeMap<Address, Identity>,
    /// RANGES.
    pub ranges: BTreeMap<Prefix, Identity>,
    /// Destinations that netfilter does not masquerade.
    pub untranslated: BTreeSet<IpNet>,
    /// `flag::SYNCED` in SETTINGS.
    pub synced: bool,
}

impl Identities {
    /// The identity of an address, looked up as the datapath does.
    pub fn resolve(&self, address: Address) -> Identity {
        self.endpoints.get(&address).copied().unwrap_or_else(|| Ranges::new(&self.ranges).identity(address))
    }

    /// How strictly packets of the address are judged: the higher, the stricter.
    pub fn strictness(&self, address: Address) -> u8 {
        strictness(self.resolve(address))
    }

    pub(crate) fn apply(&mut self, step: &IdentityStep) {
        match step {
            IdentityStep::PutEndpoint(address, identity) => {
                self.endpoints.insert(*address, *identity);
            }
            IdentityStep::RemoveEndpoint(address) => {
                self.endpoints.remove(address);
            }
            IdentityStep::PutRange(prefix, identity) => {
                self.ranges.insert(*prefix, *identity);
            }
            IdentityStep::RemoveRange(prefix) => {
                self.ranges.remove(prefix);
            }
            IdentityStep::SetUntranslated(untranslated) => self.untranslated.clone_from(untranslated),
            IdentityStep::SetSynced(synced) => self.synced = *synced,
        }
    }
}

/// How strictly packets of an address are judged: world, cluster, permissive, enabled or unknown,
/// in this order.
pub(crate) fn strictness(identity: Identity) -> u8 {
    if identity.is_world() { 0 } else { 1 + identity.protection() as u8 }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A pod.
    Pod(PodName),
    /// A pod's interface on this node that came without the pod's name.
    Attachment(AttachmentKey),
    /// A node, by name.
    Node(String),
}

/// A change of what the datapath knows about addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityStep {
    /// ENDPOINTS: this address has that identity.
    PutEndpoint(Address, Identity),
    /// ENDPOINTS: no party is known to have this address any more; its range decides.
    RemoveEndpoint(Address),
    /// RANGES: an address in this range that is no endpoint has that identity.
    PutRange(Prefix, Identity),
    /// RANGES: remove the range.
    RemoveRange(Prefix),
    /// Destinations that netfilter must not masquerade.
    SetUntranslated(BTreeSet<IpNet>),
    /// SETTINGS: whether every source has been read once.
    SetSynced(bool),
}

impl IdentityStep {
    pub(crate) fn object(&self) -> String {
        match self {
            IdentityStep::PutEndpoint(address, _) | IdentityStep::RemoveEndpoint(address) => {
                format!("address/{address}")
            }
            IdentityStep::PutRange(range, _) | IdentityStep::RemoveRange(range) => format!("range/{}", range.address),
            IdentityStep::SetUntranslated(_) => "netfilter".into(),
            IdentityStep::SetSynced(_) => "settings".into(),
        }
    }
}

impl fmt::Display for IdentityStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityStep::PutEndpoint(address, identity) => {
                write!(f, "put endpoint {address}: {}", in_words(*identity))
            }
            IdentityStep::RemoveEndpoint(address) => write!(f, "remove endpoint {address}"),
            IdentityStep::PutRange(prefix, identity) => {
                write!(f, "put range {}: {}", prefix_in_words(*prefix), in_words(*identity))
            }
            IdentityStep::RemoveRange(prefix) => write!(f, "remove range {}", prefix_in_words(*prefix)),
            IdentityStep::SetUntranslated(untranslated) => {
                write!(f, "exempt {} prefixes from translation", untranslated.len())
            }
            IdentityStep::SetSynced(synced) => write!(f, "set synced to {synced}"),
        }
    }
}

/// Where what the datapath knows about addresses may differ from what it should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub(crate) endpoints: Keys<Address>,
    pub(crate) ranges: bool,
    pub(crate) untranslated: bool,
}

impl Scope {
    pub(crate) fn everything() -> Scope {
        Scope { endpoints: Keys::All, ranges: true, untranslated: true }
    }

    pub(crate) fn extend(&mut self, other: Scope) {
        self.endpoints.extend(other.endpoints);
        self.ranges |= other.ranges;
        self.untranslated |= other.untranslated;
    }
}
