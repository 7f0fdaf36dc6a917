//! Other nodes' tunnels. Verdicts follow from them: each change begins a new generation.

use aya::maps::{HashMap, MapData};
use hauberk_abi::layout::{Peer, map};

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&PEERS];

/// [`Peer`] by node number: what the programs may expect of the node's tunnel.
pub static PEERS: Table =
    Table::sized(map::PEERS, "other nodes' tunnels", "limits.ranges", |limits| limits.ranges).governing();

pub(super) struct Handles {
    peers: HashMap<MapData, u32, Peer>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { peers: opener.open(&PEERS)? })
    }
}

impl Maps {
    /// Stores what the programs may expect of a node's tunnel.
    pub fn put_peer(&mut self, node: u32, peer: Peer) -> Result<(), DatapathError> {
        let written = self.tunnels.peers.insert(node, peer, 0).map_err(PEERS.failed());
        self.changed(written)
    }

    /// Removes a node's tunnel.
    pub fn remove_peer(&mut self, node: u32) -> Result<(), DatapathError> {
        let removed = PEERS.absent_is_fine(self.tunnels.peers.remove(&node));
        self.changed(removed)
    }

    /// Every node's tunnel.
    pub fn peers(&self) -> Result<Vec<(u32, Peer)>, DatapathError> {
        self.tunnels.peers.iter().collect::<Result<_, _>>().map_err(PEERS.failed())
    }
}
