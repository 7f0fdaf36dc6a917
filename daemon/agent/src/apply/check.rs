//! Reads back what protects: whether each program still runs where it was attached, and whether the
//! kernel's settings are still as the agent left them. The kernel does not announce such changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hauberk_abi::framing::Framing;
use hauberk_abi::layout::Hook;
use hauberk_api::{Problem, Severity};
use hauberk_datapath::{Seat, query, rivals};
use hauberk_fault as fault;
use hauberk_host::{Filter, sysctl};

use super::devices::{WIRE, make_room, subject};
use super::{ApplyError, Kernel};
use crate::config::Config;

/// How often a program's place is taken back within [`LONG`]. Another program that wants the same
/// place would otherwise compete for it forever.
const TRIES: usize = 5;
/// The tries count for this long.
const LONG: Duration = Duration::from_secs(600);

/// When programs' places were taken back, by interface and hook.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<(u32, Hook), Vec<Instant>>);

impl Places {
    /// Notes one more try. False if there were too many recently.
    fn may(&mut self, interface: u32, hook: Hook, now: Instant) -> bool {
        self.0.retain(|_, tries| {
            tries.retain(|at| now.saturating_duration_since(*at) < LONG);
            !tries.is_empty()
        });
        let tries = self.0.entry((interface, hook)).or_default();
        if tries.len() >= TRIES {
            return false;
        }
        tries.push(now);
        true
    }
}

/// A program that is not as the agent left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it concerns, named as in problems.
    pub object: String,
    /// The program's hook.
    pub hook: Hook,
    /// Its interface.
    pub interface: String,
    index: u32,
    framing: Framing,
    /// What was found.
    pub found: Found,
}

/// What was found at a program's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: another program detached it.
    Missing,
    /// Other programs run before it. What they let pass or redirect does not reach it.
    Before(Vec<String>),
    /// It runs first, but other programs after it may change what it has judged.
    Behind(Vec<String>),
    /// It runs first, and after it another hauberk's program, which judges by its own tables. What
    /// to do about it.
    Rival(String),
}

/// The kernel did not say how a program's place is now, or its device is gone or renamed. What was
/// known stays in force.
struct Unseen;

/// Judges the filters of a clsact queueing discipline, given in the order in which they run.
fn among(filters: &[Filter], hook: Hook, is_guard: impl Fn(&Filter) -> bool) -> Option<Found> {
    let Some(place) = filters.iter().position(is_guard) else { return Some(Found::Missing) };
    let (before, behind) = filters.split_at(place);
    if !before.is_empty() {
        return Some(Found::Before(before.iter().map(ToString::to_string).collect()));
    }
    let others = behind.iter().filter(|filter| !query::is_own(filter));
    let others: Vec<String> = others.map(ToString::to_string).collect();
    (is_egress(hook) && !others.is_empty()).then_some(Found::Behind(others))
}

fn is_pods(hook: Hook) -> bool {
    matches!(hook, Hook::ToPod | Hook::FromPod)
}

fn is_egress(hook: Hook) -> bool {
    matches!(hook, Hook::ToPod | Hook::ToWire)
}

impl Finding {
    /// The problem for the status.
    pub fn problem(&self) -> Problem {
        let (severity, message) = match &self.found {
            Found::Missing => {
                (Severity::Critical, format!("{} does not run: another program detached it", self.hook.as_str()))
            }
            Found::Before(programs) => (
                Severity::Critical,
                format!(
                    "other programs ({}) run before {}, which does not see what they let pass or redirect; see `bpftool net` and `tc filter show`",
                    programs.join(", "),
                    self.hook.as_str()
                ),
            ),
            Found::Rival(words) => (Severity::Critical, words.clone()),
            Found::Behind(programs) => (
                Severity::Warning,
                format!(
                    "what other programs ({}) do to packets behind {} is not seen by it; see `bpftool net` and `tc filter show`",
                    programs.join(", "),
                    self.hook.as_str()
                ),
            ),
        };
        Problem { severity, object: self.object.clone(), message }
    }

    /// The event's text once it is put right; none if it cannot be put right from here.
    pub fn restored(&self) -> Option<String> {
        let hook = self.hook.as_str();
        match &self.found {
            Found::Missing => Some(format!("{hook} had been detached by another program; it is attached again")),
            Found::Before(programs) => {
                let programs = programs.join(", ");
                Some(format!("other programs ({programs}) had come before {hook}; it is the first again"))
            }
            Found::Behind(_) | Found::Rival(_) => None,
        }
    }
}

impl Kernel {
    /// Pins again what another program unpinned. Returns whether there was anything.
    ///
    /// # Errors
    /// [`ApplyError`] for the first that cannot be pinned.
    pub fn restore_pins(&mut self) -> Result<bool, ApplyError> {
        Ok(self.datapath.restore_pins()?)
    }

    /// Asks the kernel for every program; unless `whole`, without those of pods' interfaces. A
    /// program that cannot be asked for, because its device is gone, is left to the next look.
    pub async fn look(&mut self, config: &Config, whole: bool) -> Vec<Finding> {
        let mut seats = vec![(
            Hook::FromTunnel,
            self.settings.tunnel,
            config.tunnel.device.clone(),
            Framing::Ip,
            subject(&config.tunnel.device),
        )];
        for (index, guarded) in &self.devices.guarded {
            let object = subject(&guarded.name);
            seats.extend(WIRE.map(|hook| (hook, *index, guarded.name.clone(), guarded.framing, object.clone())));
        }
        for (index, pod) in self.pods.iter().filter(|_| whole) {
            let object = format!("pod interface/{}", pod.host_interface);
            let hooks = [Hook::FromPod, Hook::ToPod];
            seats.extend(
                hooks.map(|hook| (hook, *index, pod.host_interface.clone(), Framing::Ethernet, object.clone())),
            );
        }
        // On a device with an `ingress` queueing discipline no filter runs at egress. If the
        // disciplines cannot be listed now, the next look lists them.
        let displaced = match self.datapath.is_clsact() {
            true => self.netlink.old_disciplines().await.unwrap_or_default(),
            false => BTreeSet::new(),
        };
        let mut findings = Vec::new();
        for (hook, index, interface, framing, object) in seats {
            if displaced.contains(&index) {
                findings.push(Finding { object, hook, interface, index, framing, found: Found::Missing });
                continue;
            }
            let Ok(found) = self.ask(hook, index, &interface, framing, whole).await else { continue };
            if !matches!(found, Some(Found::Before(_))) {
                self.devices.contested.remove(&(index, hook));
            }
            findings.extend(found.map(|found| Finding { object, hook, interface, index, framing, found }));
        }
        findings
    }

    /// What is wrong with a program's place; none if it runs, and runs first. Unless `whole`,
    /// programs behind it are not asked for.
    async fn ask(
        &mut self,
        hook: Hook,
        index: u32,
        interface: &str,
        framing: Framing,
        whole: bool,
    ) -> Result<Option<Found>, Unseen> {
        let found = if self.datapath.is_clsact() {
            let is_guard = self.datapath.is_filter_of(hook, framing).map_err(|_| Unseen)?;
            among(&self.filters(index, !is_egress(hook)).await?, hook, is_guard)
        } else {
            match self.datapath.seat(hook, interface, framing) {
                Ok(Seat::Attached { before, behind }) if before.is_empty() => match whole && is_egress(hook) {
                    true => self.behind(hook, index, interface, behind).await?,
                    false => None,
                },
                Ok(Seat::Attached { before, .. }) => {
                    Some(Found::Before(before.into_iter().map(query::name_of).collect()))
                }
                Ok(Seat::Missing) | Err(_) => Some(Found::Missing),
            }
        };
        // A device that is gone, or has another name, is left to the next refresh.
        match self.netlink.link(interface).await {
            Ok(Some(link)) if link.index == index => Ok(found),
            _ => Err(Unseen),
        }
    }

    /// What runs after TCX's guard, which is the first: other programs of TCX, and then filters.
    async fn behind(
        &self,
        hook: Hook,
        index: u32,
        interface: &str,
        programs: Vec<u32>,
    ) -> Result<Option<Found>, Unseen> {
        if !programs.is_empty()
            && let Some(words) = rivals::words(self.datapath.pins(), interface)
        {
            return Ok(Some(Found::Rival(words)));
        }
        let mut names: Vec<String> = programs.into_iter().map(query::name_of).collect();
        if hook == Hook::ToWire {
            names.extend(self.filters(index, false).await?.iter().map(ToString::to_string));
        }
        Ok((!names.is_empty()).then_some(Found::Behind(names)))
    }

    async fn filters(&self, index: u32, ingress: bool) -> Result<Vec<Filter>, Unseen> {
        self.netlink.filters(index, ingress).await.map_err(|_| Unseen)
    }

    /// Attaches again what is missing, and moves a program back to the front if others got there.
    /// Returns whether it did. It takes a place back at most [`TRIES`] times within [`LONG`],
    /// because the other program may take it again each time. On a pod's interface, which nothing
    /// else would shut, it goes on.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub async fn repair(&mut self, finding: &Finding) -> Result<bool, ApplyError> {
        let Finding { hook, interface, framing, .. } = finding;
        match finding.found {
            Found::Missing => {
                fault::point("attach a program again");
                if let Err(error) = self.attach_again(finding).await {
                    // The rules shut a device without a guard. The next look at the devices
                    // tries to guard it.
                    self.devices.guarded.remove(&finding.index);
                    return Err(error);
                }
            }
            Found::Before(_) if is_pods(*hook) || self.places.may(finding.index, *hook, Instant::now()) => {
                self.datapath.reseat(*hook, interface, *framing)?;
            }
            Found::Before(_) | Found::Behind(_) | Found::Rival(_) => return Ok(false),
        }
        Ok(true)
    }

    /// An interface whose place could not be kept counts as one without a guard, until its
    /// program is seen to be the first again. Returns whether it did not yet.
    pub fn shut_contested(&mut self, finding: &Finding) -> bool {
        self.devices.contested.insert((finding.index, finding.hook))
    }

    async fn attach_again(&mut self, finding: &Finding) -> Result<(), ApplyError> {
        make_room(&self.datapath, &self.netlink, finding.index).await?;
        Ok(self.datapath.attach_and_look(finding.hook, &finding.interface, finding.framing)?)
    }

    /// Restores kernel settings, the tunnel device and its address. Returns what had to be
    /// restored.
    ///
    /// # Errors
    /// [`ApplyError::Host`] for the first thing that cannot be restored.
    pub async fn heal_host(&mut self, config: &Config) -> Result<Vec<String>, ApplyError> {
        let device = &config.tunnel.device;
        let mut changed = Vec::new();
        let names: Vec<String> = self.devices.uplinks.iter().map(|uplink| uplink.name.clone()).collect();
        changed.extend(sysctl::prepare_host(&names)?);
        if let Some(link) = self.netlink.link(device).await? {
            // With a smaller MTU than IPv6 needs, the device has none of IPv6's settings.
            if link.mtu != self.settings.tunnel_mtu {
                fault::point("set the tunnel's MTU");
                self.netlink.set_mtu(link.index, self.settings.tunnel_mtu).await?;
                changed.push(format!("{device} had an MTU of {}", link.mtu));
            }
            changed.extend(sysctl::prepare_tunnel(device)?);
            if !link.up {
                fault::point("bring the tunnel up");
                self.netlink.set_up(link.index).await?;
                changed.push(format!("{device} was down"));
            }
            self.netlink.put_gateways(link.index, true, false).await?;
        }
        let links = self.netlink.links().await?;
        for pod in self.pods.values().filter(|pod| !pod.adopted) {
            let link = links.iter().find(|link| link.index == pod.host_index);
            // The pod sends to the address that its interface had when it was made.
            if link.is_some_and(|link| link.mac != Some(pod.host_mac)) {
                fault::point("set a pod interface's MAC address");
                self.netlink.set_mac(pod.host_index, pod.host_mac).await?;
                changed.push(format!("{} had another MAC address", pod.host_interface));
            }
            let ipv6 = pod.addresses.iter().any(|address| address.is_ipv6());
            // An interface that is gone is left to the next refresh.
            if let Ok(settings) = sysctl::prepare_pod_interface(&pod.host_interface, ipv6) {
                changed.extend(settings);
            }
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hauberk_datapath::query::OBSERVER_MINOR;
    use hauberk_datapath::{CLSACT_MINOR, CLSACT_NEXT_MINOR};

    #[test]
    fn filters_are_told_by_their_place() {
        let filter = |preference, handle, program| Filter { preference, handle, kind: "bpf".into(), program };
        let (ours, next) = (filter(1, CLSACT_MINOR, Some(5)), filter(1, CLSACT_NEXT_MINOR, Some(5)));
        let observer = filter(0xfff0, OBSERVER_MINOR, Some(6));
        let (first, later) = (filter(1, 7, Some(8)), filter(9, 1, None));
        let is_guard = |filter: &Filter| filter.program == Some(5);
        let named = |filter: &Filter| vec![filter.to_string()];
        for hook in [Hook::ToWire, Hook::FromWire] {
            let among =
                |filters: &[&Filter]| among(&filters.iter().copied().cloned().collect::<Vec<_>>(), hook, is_guard);
            assert_eq!(among(&[]), Some(Found::Missing));
            assert_eq!(among(&[&first, &observer]), Some(Found::Missing));
            assert_eq!(among(&[&ours, &observer]), None);
            assert_eq!(among(&[&next, &first, &ours]), among(&[&ours, &first]), "whichever of ours is first");
            assert_eq!(among(&[&first, &ours, &later]), Some(Found::Before(named(&first))));
            let behind = (hook == Hook::ToWire).then(|| Found::Behind(named(&later)));
            assert_eq!(among(&[&ours, &later, &observer]), behind);
        }
    }

    #[test]
    fn a_place_is_taken_back_some_times_and_after_a_while_again() {
        let (mut places, start) = (Places::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..5 {
            assert!(places.may(2, Hook::ToWire, at(second)), "{second}");
        }
        assert!(!places.may(2, Hook::ToWire, at(5)));
        assert!(places.may(2, Hook::FromWire, at(5)), "another's");
        assert!(places.may(3, Hook::ToWire, at(5)), "another's");
        assert!(!places.may(2, Hook::ToWire, at(599)));
        assert!(places.may(2, Hook::ToWire, at(600)));
        assert!(!places.may(2, Hook::ToWire, at(600)), "the others are still of late");
    }
}
