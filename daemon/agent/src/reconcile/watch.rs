//! What other programs do to the kernel: devices that come and go, and programs, rules, routes and
//! settings that are taken away. All of it is read back and repaired; until then the node is not
//! ready.

use std::collections::{BTreeMap, BTreeSet};

use hauberk_api::Problem;
use hauberk_core::events::{NewEvent, reason};
use hauberk_core::state::{Scope, State};
use hauberk_host::netfilter::{Counters, Neighbours};
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::apply::Kernel;
use crate::observe::losses;
use crate::state::SharedState;

use super::absorb::note;
use super::failures::Area;
use super::start::{devices, uplinks};
use super::{LOOK_AROUND, Reconciler, Stage, WHOLE_LOOK};

/// Problems with devices, and with pods' interfaces that no known pod has.
pub(super) fn device_problems(kernel: &Kernel, agent: &SharedState, actual: &State) -> BTreeMap<String, Problem> {
    let mut known: BTreeSet<u32> = actual.pods.values().map(|pod| pod.host_index).collect();
    let agent = agent.read();
    known.extend(agent.model.attachments().filter_map(|(_, on_record)| Some(on_record.pair.as_ref()?.host_index)));
    let mut problems = kernel.devices().problems.clone();
    problems.extend(kernel.devices().unknown_pods(&known));
    problems
}

impl Reconciler {
    /// Updates guards from the devices, and routes from the uplinks. Returns whether everything
    /// could be read.
    pub(super) async fn refresh_devices(&mut self, ways: bool) -> bool {
        // Names come first: under another name a device would be guarded as a different one.
        self.keep_names().await;
        let Some(node) = self.own_node() else {
            self.agent.write().interfaces = None;
            return true;
        };
        let Stage::Running(kernel) = &mut self.stage else { return true };
        let cluster_ranges = self.agent.read().local.settings.cluster_ranges.clone();
        let refreshed = kernel.refresh_devices(&self.config, &cluster_ranges, &node).await;
        let problems = device_problems(kernel, &self.agent, &self.actual);
        let (uplinks, devices, mtu) = (uplinks(kernel), devices(kernel), kernel.tunnel_mtu());
        let present = refreshed.is_ok().then(|| kernel.devices().present().clone());
        self.tell(Area::Devices, problems);
        self.agent.write().interfaces = present;
        let changed = match refreshed {
            Ok(changed) => changed,
            Err(error) => return self.fail("devices", format!("cannot follow this node's devices: {error}")),
        };
        self.succeed("devices");
        {
            let mut agent = self.agent.write();
            agent.local.route_mtu = Some(mtu);
            if let Some(running) = &mut agent.running {
                let is_new = devices.iter().any(|device| !running.devices.contains(device));
                running.devices = devices;
                running.uplinks.clone_from(&uplinks);
                running.mtu = mtu;
                if is_new {
                    // The new devices have not been tested yet.
                    agent.self_test.ask();
                }
            }
        }
        if changed {
            info!(?uplinks, mtu, "devices changed");
            self.settings_due = true;
            // Routes, and the settings of new pods, are updated at once: the next input may take
            // long.
            self.stale = true;
        }
        self.find_lost_routes(ways || changed).await && self.take_host_addresses().await
    }

    /// The addresses of this node's devices are its own, whatever its object says. Returns whether
    /// they could be read.
    pub(super) async fn take_host_addresses(&mut self) -> bool {
        let Stage::Running(kernel) = &self.stage else { return true };
        match kernel.host_addresses().await {
            Ok(addresses) => {
                {
                    let known = &mut self.agent.write().local.addresses;
                    self.stale |= addresses != *known;
                    *known = addresses;
                }
                self.succeed("addresses");
                true
            }
            Err(error) => self.fail("addresses", format!("cannot tell this node's own addresses: {error}")),
        }
    }

    /// Marks what the routing table lacks, so that it is put again.
    async fn find_lost_routes(&mut self, ways: bool) -> bool {
        let Stage::Running(kernel) = &self.stage else { return true };
        // A route that was never put is not lost.
        let wanted = {
            let agent = self.agent.read();
            let routes = agent.desired.state.tunnels.routes.iter();
            routes
                .filter(|(to, _)| self.actual.tunnels.routes.contains_key(*to))
                .map(|(to, route)| (*to, *route))
                .collect()
        };
        match kernel.lost_routes(&wanted, ways).await {
            Ok(lost) => {
                for destination in &lost.routes {
                    self.actual.tunnels.routes.remove(destination);
                }
                for key in &lost.pods {
                    // Makes the entry differ from what is desired, so that it is put again. The
                    // entry stays, because the pod may be ending and must then still be removed.
                    if let Some(pod) = self.actual.pods.get_mut(key) {
                        pod.host_mac = [0; 6];
                    }
                }
                if !lost.routes.is_empty() || !lost.pods.is_empty() {
                    info!(routes = ?lost.routes, pods = ?lost.pods, "routes are gone or lead elsewhere by now; they are put again");
                    self.pending = Scope::everything();
                    self.stale = true;
                }
                self.succeed("routes");
                true
            }
            Err(error) => self.fail("routes", format!("cannot read the routing table: {error}")),
        }
    }

    /// Checks what the kernel does not announce. Returns whether something must be reconciled.
    pub(super) async fn look(&mut self) -> bool {
        self.look_at_writes();
        self.look_at_programs().await;
        let now = Instant::now();
        if now < self.look_around_due {
            return self.stale;
        }
        self.look_around_due = now + LOOK_AROUND;
        if !self.refresh_devices(true).await {
            return true;
        }
        self.look_at_netfilter().await;
        self.look_at_firewalls().await;
        self.look_at_hops().await;
        self.look_at_settings().await;
        self.look_at_sockets();
        self.start_handshakes();
        self.stale
    }

    /// Attaches programs again that another program detached, and moves those to the front that
    /// others came before. The problem stays until the next look has seen them run.
    async fn look_at_programs(&mut self) {
        self.look_at_pins();
        let Stage::Running(kernel) = &mut self.stage else { return };
        let whole = self.looked.is_none_or(|at| at.elapsed() >= WHOLE_LOOK);
        if whole {
            self.looked = Some(Instant::now());
        }
        let findings = kernel.look(&self.config, whole).await;
        let mendable: Vec<_> = findings.iter().filter_map(|finding| Some((finding, finding.restored()?))).collect();
        if !whole && mendable.is_empty() && !self.failures.is_empty(Area::Programs) {
            // Earlier findings stay until the next whole look.
            return;
        }
        let mut problems: BTreeMap<String, Problem> = BTreeMap::new();
        for finding in &findings {
            let problem = finding.problem();
            let known = problems.entry(problem.object.clone()).or_insert_with(|| problem.clone());
            if problem.severity < known.severity {
                *known = problem;
            }
        }
        self.tell(Area::Programs, problems.clone());
        if mendable.is_empty() {
            return;
        }
        // The problem stays until the next whole look.
        self.looked = Some(Instant::now());
        let Stage::Running(kernel) = &mut self.stage else { return };
        let (mut restored, mut shuts) = (Vec::new(), false);
        for (finding, message) in mendable {
            let failed = match kernel.repair(finding).await {
                Ok(true) => {
                    restored.push((finding.object.clone(), message));
                    continue;
                }
                Ok(false) => {
                    shuts |= kernel.shut_contested(finding);
                    "it took its place back again and again, and another program does likewise: it leaves them there \
                     for ten minutes, and this device is shut meanwhile: the host sends no pod's packets by it"
                        .into()
                }
                Err(error) => {
                    shuts = true;
                    self.look_around_due = Instant::now();
                    format!("it cannot be attached again: {error}")
                }
            };
            if let Some(problem) = problems.get_mut(&finding.object) {
                problem.message = format!("{}; {failed}", problem.message);
            }
        }
        if shuts {
            // A device that cannot have its guard is shut before anyone is told that it is.
            self.follow_rules(&mut problems).await;
        }
        if shuts || !restored.is_empty() {
            // The node is not ready until the self-test has passed again.
            self.agent.write().self_test.ask();
        }
        self.tell(Area::Programs, problems);
        for (object, message) in restored {
            self.restored(object, message);
        }
    }

    /// Restores pins that another program removed. Devices' guards run all the time: the agent has
    /// handles of their links.
    fn look_at_pins(&mut self) {
        let Stage::Running(kernel) = &mut self.stage else { return };
        match kernel.restore_pins() {
            Ok(false) => self.succeed("pins"),
            Ok(true) => {
                self.succeed("pins");
                let message = "pins of programs or maps had been removed by another program; they are back";
                self.restored("pins".into(), message.into());
            }
            Err(error) => {
                self.fail("pins", format!("somebody removed them, and they cannot be made again: {error}"));
            }
        }
    }

    async fn look_at_netfilter(&mut self) {
        let Stage::Running(kernel) = &mut self.stage else { return };
        match kernel.look_at_netfilter().await {
            Ok(look) if look.intact => {
                self.succeed("netfilter");
                self.count(look.counters).await;
            }
            Ok(_) => {
                let restored = kernel.restore_netfilter().await;
                // Look again soon, to see whether the rules stay. Until then the problem stays.
                self.look_around_due = Instant::now() + WHOLE_LOOK;
                match restored {
                    Ok(()) => {
                        self.fail(
                            "netfilter",
                            "the rules had been changed or removed by another program; they are back".into(),
                        );
                        self.restored("netfilter".into(), "the rules had been removed by another program".into());
                    }
                    Err(error) => {
                        self.fail("netfilter", format!("the rules are gone and cannot be put back: {error}"));
                    }
                }
            }
            Err(error) => {
                self.fail("netfilter", format!("cannot see whether the rules are there: {error}"));
            }
        }
    }

    /// Notes what netfilter has counted, and which programs' rules may be why packets are lost.
    async fn count(&self, counters: Counters) {
        let before = self.agent.read().running.as_ref().map(|running| running.netfilter);
        let news = before.and_then(|before| losses::compare(before, counters));
        let lost = match &news {
            Some(Some(lost)) => {
                let neighbours = Neighbours::look().await.unwrap_or_default();
                Some((lost.clone(), Neighbours { cures: self.cures_of_losses().await, ..neighbours }))
            }
            _ => None,
        };
        if let Some(running) = &mut self.agent.write().running {
            running.netfilter = counters;
            if news.is_some() {
                running.losses = lost;
            }
        }
    }

    async fn look_at_settings(&mut self) {
        let Stage::Running(kernel) = &mut self.stage else { return };
        match kernel.heal_host(&self.config).await {
            Ok(changed) => {
                self.succeed("kernel settings");
                if !changed.is_empty() {
                    let message = format!("changed by another program and put back: {}", changed.join(", "));
                    self.restored("kernel settings".into(), message);
                }
            }
            Err(error) => {
                self.fail("kernel settings", format!("cannot be put back: {error}"));
            }
        }
    }

    /// Tells netfilter of the devices and interfaces as they are after the steps.
    pub(super) async fn follow_rules(&mut self, failures: &mut BTreeMap<String, Problem>) {
        let Stage::Running(kernel) = &mut self.stage else { return };
        if let Err(error) = kernel.follow_rules(&self.config).await {
            warn!(%error, "cannot change the netfilter rules");
            let (severity, object) = (hauberk_api::Severity::Critical, "netfilter".to_owned());
            let message = format!("the rules cannot be changed: {error}");
            self.enforces = false;
            failures.insert(object.clone(), Problem { severity, object, message });
        }
    }

    /// Updates the source of local packets, and what is masqueraded, from the node's object.
    pub(super) fn follow_node(&mut self) {
        let Some(node) = self.own_node() else { return };
        let Stage::Running(kernel) = &mut self.stage else { return };
        let agent = self.agent.read();
        let pods = agent.desired.state.pods.values().filter(|pod| !pod.adopted);
        kernel.follow_node(&node, pods.flat_map(|pod| pod.addresses.iter().copied()));
    }

    pub(super) fn restored(&mut self, object: String, message: String) {
        let event = NewEvent { warning: true, reason: reason::RESTORED, objects: vec![object], message };
        note(&mut self.agent.write(), &event, Timestamp::now());
    }
}
