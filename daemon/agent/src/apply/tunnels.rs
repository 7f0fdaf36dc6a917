//! The tunnel to other nodes: its peers, PEERS, and the routes into it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hauberk_backend::PeerStep;
use hauberk_core::names::NodeNumber;
use hauberk_core::tunnels::{TunnelStep, Tunnels};
use hauberk_fault as fault;
use ipnet::IpNet;

use super::{ApplyError, Kernel};

impl Kernel {
    /// Reads what the kernel and the tunnel hold.
    pub(super) fn read_tunnels(&self) -> Result<Tunnels, ApplyError> {
        let entries = self.datapath.maps().peers()?.into_iter();
        Ok(Tunnels {
            peers: self.backend.read()?.into_iter().map(|peer| (peer.number, peer)).collect(),
            peer_entries: entries.map(|(number, peer)| (NodeNumber(number), peer)).collect(),
            // Routes are always put again, because their next hops are not read back.
            routes: BTreeMap::new(),
        })
    }

    /// Carries out one step.
    pub(super) async fn apply_tunnel(&mut self, step: &TunnelStep) -> Result<(), ApplyError> {
        match step {
            TunnelStep::PutPeer(_) | TunnelStep::RemovePeer(_) => self.apply_peers(&[step])?,
            TunnelStep::PutPeerEntry(number, peer) => self.datapath.maps_mut().put_peer(number.0, *peer)?,
            TunnelStep::RemovePeerEntry(number) => self.datapath.maps_mut().remove_peer(number.0)?,
            TunnelStep::PutRoute(route) => {
                let source = self.source_for(route.destination.addr());
                let route = hauberk_host::Route {
                    destination: route.destination,
                    via: hauberk_host::Via::Node(route.via),
                    source,
                    mtu: route.mtu,
                };
                self.netlink.put_route(&route).await?;
            }
            TunnelStep::RemoveRoute(route) => self.netlink.remove_route(&route.destination).await?,
        }
        Ok(())
    }

    /// Carries out peer steps of the tunnel as one change, so that a key or prefix that moves
    /// between two peers always belongs to one of them. If it fails, none has been carried out.
    pub(super) fn apply_peers(&self, steps: &[&TunnelStep]) -> Result<(), ApplyError> {
        let peers: Vec<PeerStep<'_>> = steps
            .iter()
            .filter_map(|step| match step {
                TunnelStep::PutPeer(peer) => Some(PeerStep::Put(peer)),
                TunnelStep::RemovePeer(number) => Some(PeerStep::Remove(*number)),
                _ => None,
            })
            .collect();
        Ok(self.backend.apply(&peers)?)
    }

    /// Removes an earlier agent's routes that are not wanted any more. Call it once the plan is
    /// empty and everything is synced.
    ///
    /// # Errors
    /// [`ApplyError::Host`].
    pub async fn remove_foreign_routes(&self, wanted: &BTreeSet<IpNet>) -> Result<(), ApplyError> {
        for destination in self.netlink.own_routes().await?.into_keys().filter(|held| !wanted.contains(held)) {
            fault::point("remove a route");
            self.netlink.remove_route(&destination).await?;
        }
        Ok(())
    }

    pub(super) fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        self.sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4()).copied()
    }
}
