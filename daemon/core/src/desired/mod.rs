//! What this node's kernel and tunnel should hold, derived from the whole model.
//!
//! Several people and programs write the objects, and these may contradict each other. Then the
//! protected answer wins: the stricter label holds, a range that two nodes claim belongs to no
//! node, a key that two nodes publish is refused. An event reports each such decision and names the
//! objects.

mod incremental;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_abi::address::{Address, Prefix};
use hauberk_abi::identity::{Identity, Kind};

use crate::events::NewEvent;
use crate::identities::{Contest, Owner, claims};
use crate::local_node::LocalNode;
use crate::lookup::Ranges;
use crate::model::Model;
use crate::names::{NodeNumber, ServiceName};
use crate::services;
use crate::state::{State, Step};

pub use incremental::{Followed, Incremental};

/// The state to reach.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Desired {
    /// This node's number, for SETTINGS.
    pub node: NodeNumber,
    /// What the kernel and the tunnel should hold.
    pub state: State,
    /// What to acknowledge in the annotation `hauberk.io/enforced` once the plan is carried out, by
    /// namespace. None until every source has been read: then the annotation stays as it is.
    pub enforced: Option<BTreeMap<String, String>>,
    /// Number of ENDPOINTS entries of permissive pods.
    pub permissive_endpoints: usize,
    /// Addresses that several nodes claim, so they belong to no node.
    pub contested: BTreeMap<IpAddr, Contest>,
    /// What services claim, and which of them has it.
    pub services: services::Claims,
    /// Conflicts between objects: all that exist now. An event that was not in the previous set is
    /// new.
    pub events: BTreeSet<NewEvent>,
}

/// The state to reach, computed from scratch. Pure: the same model and local node give the same
/// answer. A caller that sees the model change keeps an [`Incremental`] instead.
pub fn desired(model: &Model, local: &LocalNode) -> Desired {
    Incremental::computed(model, local)
}

impl Desired {
    /// Whether every source has been read once. Until then the plan removes and weakens nothing.
    pub fn prune(&self) -> bool {
        self.state.identities.synced
    }

    /// The datapath's identity for an address: that of its endpoint, else of the longest range that
    /// holds it, else the world.
    pub fn identity(&self, address: IpAddr) -> Identity {
        self.state.identities.resolve(address.into())
    }

    /// The owner of the address, if one is known.
    pub fn owner(&self, model: &Model, local: &LocalNode, address: Address) -> Option<Owner> {
        let identity = self.state.identities.endpoints.get(&address)?;
        if identity.is_node() {
            return model.node_name(NodeNumber(identity.node)).map(|name| Owner::Node(name.to_owned()));
        }
        claims::owner(model, local, address)
    }

    /// The nodes that claim the address, if several do and it therefore belongs to none of them.
    pub fn contest(&self, address: IpAddr) -> Option<&Contest> {
        self.contested.get(&address).filter(|_| self.identity(address).kind() == Kind::UnknownNode)
    }

    /// The service that a step is about, if it is known: one that is gone is not.
    pub fn service_of(&self, step: &Step) -> Option<&ServiceName> {
        match step {
            Step::Service(step) => self.services.of_step(step),
            _ => None,
        }
    }

    /// The longest range that holds the address.
    pub fn range_of(&self, address: IpAddr) -> Option<Prefix> {
        Ranges::new(&self.state.identities.ranges).longest(address.into()).map(|(prefix, _)| prefix)
    }
}

#[cfg(test)]
mod tests;
