//! Which parts of the state a plan has to compare.

use std::collections::{BTreeMap, BTreeSet};

use hauberk_abi::address::Address;

use crate::names::NodeNumber;

/// Where the desired state may differ from the actual one. A caller that leaves something out knows
/// that it is as desired, or that nothing could be done about it before every source has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Anywhere: at the start, and after a failure.
    everything: bool,
    endpoints: BTreeSet<Address>,
    /// The tunnel's peers, PEERS and the routes of every node.
    nodes: bool,
    /// The tunnel's peers and PEERS.
    peers: BTreeSet<NodeNumber>,
    /// Pods' interfaces. There are few, so the plan looks at all of them.
    pub(crate) attachments: bool,
    pub(crate) untranslated: bool,
}

impl Scope {
    /// Everything.
    pub fn everything() -> Scope {
        Scope { everything: true, ..Scope::default() }
    }

    /// The peers and routes of all nodes.
    pub(super) fn all_nodes() -> Scope {
        Scope { nodes: true, ..Scope::default() }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Scope::default()
    }

    /// Addresses whose party or protection may differ; none if that can be any address.
    pub fn addresses(&self) -> Option<&BTreeSet<Address>> {
        (!self.everything).then_some(&self.endpoints)
    }

    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Adds the other scope to this one.
    pub fn extend(&mut self, other: Scope) {
        if self.everything || other.everything {
            *self = Scope::everything();
            return;
        }
        self.endpoints.extend(other.endpoints);
        self.nodes |= other.nodes;
        self.peers.extend(other.peers);
        self.attachments |= other.attachments;
        self.untranslated |= other.untranslated;
    }

    pub(crate) fn endpoint(&mut self, address: Address) {
        if !self.everything {
            self.endpoints.insert(address);
        }
    }

    pub(crate) fn peer(&mut self, number: NodeNumber) {
        if !self.everything {
            self.peers.insert(number);
        }
    }

    pub(crate) fn nodes(&mut self) {
        self.nodes = !self.everything;
    }

    pub(super) fn has_nodes(&self) -> bool {
        self.everything || self.nodes
    }

    pub(super) fn has_peers(&self) -> bool {
        self.has_nodes() || !self.peers.is_empty()
    }

    pub(super) fn endpoints_of<'a, V>(
        &'a self,
        map: &'a BTreeMap<Address, V>,
    ) -> impl Iterator<Item = (&'a Address, &'a V)> {
        within(map, (!self.everything).then_some(&self.endpoints))
    }

    pub(super) fn peers_of<'a, V>(
        &'a self,
        map: &'a BTreeMap<NodeNumber, V>,
    ) -> impl Iterator<Item = (&'a NodeNumber, &'a V)> {
        within(map, (!self.has_nodes()).then_some(&self.peers))
    }
}

/// The map's entries with these keys, or all entries, in order.
fn within<'a, K: Ord, V>(
    map: &'a BTreeMap<K, V>,
    keys: Option<&'a BTreeSet<K>>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let some = keys.into_iter().flatten().filter_map(|key| map.get_key_value(key));
    let all = keys.is_none().then_some(map).into_iter().flatten();
    some.chain(all)
}
