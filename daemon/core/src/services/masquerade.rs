//! This node's address in packets that go on to another node for a client outside the cluster: the
//! other node answers this node, and not the client.

use hauberk_abi::address::Address;

use crate::identities::addresses::NodeAddresses;
use crate::local_node::LocalNode;
use crate::model::Model;

/// IPv4, then IPv6: of each family the first address at which other nodes reach this node and that
/// one of its devices has. Unspecified if there is none, if nobody asks for it, or before
/// everything is known.
pub(crate) fn masquerade(model: &Model, local: &LocalNode, nodes: &NodeAddresses) -> [Address; 2] {
    let is_needed = local.settings.services && local.settings.services_outside && model.synced();
    let Some(own) = model.node_object(model.node()).filter(|_| is_needed) else { return Default::default() };
    // A translator in front of the node may have the others. Before the devices have been read, the
    // object's addresses are all there is.
    let is_here = |address: &_| local.addresses.is_empty() || local.addresses.contains(address);
    [true, false].map(|is_ipv4| {
        let mut addresses = nodes.reached_at(own).filter(|address| address.is_ipv4() == is_ipv4 && is_here(address));
        addresses.next().map_or(Address::UNSPECIFIED, Address::from)
    })
}
