//! Which steps of a plan are carried out, whatever fails.
//!
//! A step that fails does not stop the others. But some steps rely on earlier ones: a range may be
//! removed because another range, or an endpoint, now decides for its addresses. If the earlier
//! step has failed, such a step would leave an address less strict than before the plan and than
//! after it. Likewise, a pod's interface gets an address only after the interface that had it
//! before has given it up. A service's frontend is put only if its sets of backends are there, and,
//! if it admits only some clients, when its set admits no others any more. No set admits more
//! clients if a frontend that must go before could not be removed.
//! Such a step is withheld, and the next plan has it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hauberk_abi::address::{Address, Prefix};

use crate::identities::{IdentityStep, strictness};
use crate::lookup::truncate;
use crate::pods::{Claims, PodStep};
use crate::services::{self, ServiceStep, SetNumber};
use crate::state::Step;

/// A plan that is being carried out.
#[derive(Debug)]
pub struct Execution {
    steps: VecDeque<Step>,
    /// Entries of ENDPOINTS that are not as the plan wants them.
    endpoints: BTreeMap<Address, Failed>,
    /// Entries of RANGES that are not as the plan wants them.
    ranges: BTreeMap<Prefix, Failed>,
    /// Whether an entry could not be put.
    put_failed: bool,
    /// What pods' interfaces have that should not have it any more.
    not_given_up: Claims,
    /// Sets of backends that are not as the plan wants them.
    sets: BTreeSet<SetNumber>,
    /// Sets that still admit clients that they should not.
    too_wide: BTreeSet<SetNumber>,
    /// Whether some frontend is not as the plan wants it. It leads to a set as before.
    frontend_failed: bool,
}

/// What was to happen to an entry.
#[derive(Clone, Copy, Debug)]
enum Failed {
    /// It was to be as strict as this.
    Put(u8),
    /// It was to be removed; it still decides.
    Remove,
}

impl Execution {
    /// Begins with the first step.
    pub fn new(steps: Vec<Step>) -> Execution {
        Execution {
            steps: steps.into(),
            endpoints: BTreeMap::new(),
            ranges: BTreeMap::new(),
            put_failed: false,
            not_given_up: Claims::default(),
            sets: BTreeSet::new(),
            too_wide: BTreeSet::new(),
            frontend_failed: false,
        }
    }

    /// The next step. If it concerns the tunnel's peers, all that follow it and do so too: together
    /// they move a key or prefix from one peer to another. Withheld steps are left out.
    pub fn next_steps(&mut self) -> Option<Vec<Step>> {
        let first = loop {
            let step = self.steps.pop_front()?;
            if !self.must_wait(&step) {
                break step;
            }
            self.note(&step);
        };
        let mut next = vec![first];
        while next[0].is_peers()
            && let Some(step) = self.steps.pop_front_if(|step| step.is_peers())
        {
            next.push(step);
        }
        Some(next)
    }

    /// Notes that the step failed.
    pub fn failed(&mut self, step: &Step) {
        self.put_failed |= matches!(step, Step::Identity(IdentityStep::PutEndpoint(..) | IdentityStep::PutRange(..)));
        self.note(step);
    }

    fn note(&mut self, step: &Step) {
        match step {
            Step::Identity(IdentityStep::PutEndpoint(address, identity)) => {
                self.endpoints.insert(*address, Failed::Put(strictness(*identity)));
            }
            Step::Identity(IdentityStep::RemoveEndpoint(address)) => {
                self.endpoints.insert(*address, Failed::Remove);
            }
            Step::Identity(IdentityStep::PutRange(range, identity)) => {
                self.ranges.insert(*range, Failed::Put(strictness(*identity)));
            }
            Step::Identity(IdentityStep::RemoveRange(range)) => {
                self.ranges.insert(*range, Failed::Remove);
            }
            Step::Pod(PodStep::Remove(pod)) => self.not_given_up.add(pod),
            Step::Service(ServiceStep::PutSet(number, _)) => {
                self.sets.insert(*number);
            }
            Step::Service(ServiceStep::RemoveSource(range)) => {
                self.too_wide.insert(range.key.set());
            }
            Step::Service(ServiceStep::PutFrontend(..) | ServiceStep::RemoveFrontend(_)) => {
                self.frontend_failed = true;
            }
            Step::Identity(IdentityStep::SetUntranslated(_) | IdentityStep::SetSynced(_))
            | Step::Pod(PodStep::Put(_))
            | Step::Tunnel(_)
            // With fewer clients than planned a frontend is no wider than planned.
            | Step::Service(ServiceStep::RemoveSet(_) | ServiceStep::PutSource(_) | ServiceStep::Masquerade(_)) => {}
        }
    }

    /// Whether the step relies on something that is not as planned.
    fn must_wait(&self, step: &Step) -> bool {
        match step {
            Step::Identity(step) => match step {
                // A stricter entry inside was to decide instead of this range.
                IdentityStep::PutRange(range, identity) => {
                    let own = strictness(*identity);
                    self.has_inside(range, |failed| matches!(failed, Failed::Put(other) if other > own))
                }
                // Another entry is to decide when this one is gone.
                IdentityStep::RemoveRange(range) => self.has_inside(range, |_| true) || self.has_around(range),
                IdentityStep::RemoveEndpoint(address) => self.has_around(&truncate(*address, 128)),
                IdentityStep::SetSynced(synced) => *synced && self.put_failed,
                IdentityStep::PutEndpoint(..) | IdentityStep::SetUntranslated(_) => false,
            },
            Step::Pod(PodStep::Put(pod)) => self.not_given_up.overlap(pod),
            Step::Service(ServiceStep::PutFrontend(_, frontend)) => {
                let is_too_wide = services::is_limited(frontend) && self.too_wide.contains(&frontend.outside);
                is_too_wide || services::sets_of(frontend).any(|set| self.sets.contains(&set))
            }
            // Before the first range only those frontends are changed that must not get it.
            Step::Service(ServiceStep::PutSource(_)) => self.frontend_failed,
            // The frontend that failed may be one that still leads there.
            Step::Service(ServiceStep::RemoveSet(_)) => self.frontend_failed,
            Step::Service(
                ServiceStep::PutSet(..)
                | ServiceStep::RemoveFrontend(_)
                | ServiceStep::RemoveSource(_)
                | ServiceStep::Masquerade(_),
            ) => false,
            Step::Pod(PodStep::Remove(_)) | Step::Tunnel(_) => false,
        }
    }

    /// Whether an entry inside the range is not as planned, and `counts`.
    fn has_inside(&self, range: &Prefix, counts: impl Fn(Failed) -> bool) -> bool {
        let endpoints = self.endpoints.range(range.address..).take_while(|(address, _)| contains(range, **address));
        let ranges =
            self.ranges.iter().filter(|(other, _)| other.length >= range.length && contains(range, other.address));
        endpoints.map(|(_, failed)| *failed).chain(ranges.map(|(_, failed)| *failed)).any(counts)
    }

    /// Whether a range that holds this one is not as planned.
    fn has_around(&self, range: &Prefix) -> bool {
        self.ranges.keys().any(|other| other.length <= range.length && contains(other, range.address))
    }
}

impl Step {
    /// Whether the step changes the tunnel's peers.
    fn is_peers(&self) -> bool {
        matches!(self, Step::Tunnel(step) if step.is_peers())
    }
}

fn contains(range: &Prefix, address: Address) -> bool {
    truncate(address, range.length) == *range
}
