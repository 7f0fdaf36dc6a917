//! Who has an address and how it is protected: ENDPOINTS, RANGES, the settings and what netfilter
//! must not masquerade.

use std::collections::BTreeSet;

use hauberk_abi::layout::{Settings, flag};
use hauberk_core::identities::{Identities, IdentityStep};
use hauberk_fault as fault;
use hauberk_host::Ruleset;
use ipnet::IpNet;

use super::{ApplyError, Kernel};

impl Kernel {
    /// Reads what the kernel holds.
    pub(super) fn read_identities(&self) -> Result<Identities, ApplyError> {
        let maps = self.datapath.maps();
        Ok(Identities {
            endpoints: maps.endpoints()?.into_iter().collect(),
            ranges: maps.ranges()?.into_iter().collect(),
            // The rules are always written again: they are not read back.
            untranslated: BTreeSet::new(),
            synced: maps.settings()?.flags & flag::SYNCED != 0,
        })
    }

    /// Carries out one step.
    pub(super) async fn apply_identity(&mut self, step: &IdentityStep) -> Result<(), ApplyError> {
        let maps = self.datapath.maps_mut();
        match step {
            IdentityStep::PutEndpoint(address, identity) => maps.put_endpoint(*address, *identity)?,
            IdentityStep::RemoveEndpoint(address) => maps.remove_endpoint(*address)?,
            IdentityStep::PutRange(range, identity) => maps.put_range(*range, *identity)?,
            IdentityStep::RemoveRange(range) => maps.remove_range(*range)?,
            IdentityStep::SetUntranslated(destinations) => self.set_untranslated(destinations).await?,
            IdentityStep::SetSynced(synced) => {
                let flags =
                    if *synced { self.settings.flags | flag::SYNCED } else { self.settings.flags & !flag::SYNCED };
                self.configure(Settings { flags, ..self.settings })?;
            }
        }
        Ok(())
    }

    /// Also tells the guard against packet sockets which addresses to look for: all of these except
    /// the nodes' own.
    async fn set_untranslated(&mut self, destinations: &BTreeSet<IpNet>) -> Result<(), ApplyError> {
        let maps = self.datapath.maps();
        let mut guarded = BTreeSet::new();
        for destination in destinations {
            let node = destination.prefix_len() == destination.max_prefix_len()
                && maps.endpoint(destination.addr().into())?.is_some_and(|identity| identity.is_node());
            if !node {
                guarded.insert(*destination);
            }
        }
        let ruleset = Ruleset { untranslated: destinations.clone(), guarded, ..self.ruleset.clone() };
        self.netfilter.apply(&ruleset).await?;
        self.ruleset = ruleset;
        Ok(())
    }

    pub(super) fn configure(&mut self, settings: Settings) -> Result<(), ApplyError> {
        fault::point("write the settings");
        self.datapath.configure(&settings)?;
        self.settings = settings;
        Ok(())
    }
}
