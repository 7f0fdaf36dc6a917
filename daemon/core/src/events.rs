//! What the operator should hear of. An event here has no time and no count: the agent adds both.

use std::collections::{BTreeMap, BTreeSet};

/// Events of one reason kept per computation; the rest is summed up in one.
pub const LIMIT_PER_REASON: usize = 100;

/// Something that happened to an object, or that stands between objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NewEvent {
    /// Whether it asks for action.
    pub warning: bool,
    /// CamelCase, as Kubernetes events have it; one of [`reason`].
    pub reason: &'static str,
    /// The objects concerned, as `kind/name` or `kind/namespace/name`.
    pub objects: Vec<String>,
    /// What failed, on which object, the likely cause, what to do.
    pub message: String,
}

/// Every reason.
pub mod reason {
    /// A label's value is none of those hauberk knows: treated as `enabled`.
    pub const UNKNOWN_LABEL_VALUE: &str = "UnknownLabelValue";
    /// A pod's label would weaken its namespace's choice, and pods may not opt out.
    pub const POD_OPT_OUT_REFUSED: &str = "PodOptOutRefused";
    /// A pod's labels opt it in, but it is on its node's network.
    pub const HOST_NETWORK_POD: &str = "HostNetworkPod";
    /// A pod's namespace has no object: the pod is treated as `enabled`.
    pub const NAMESPACE_UNKNOWN: &str = "NamespaceUnknown";
    /// Two parties claim one address.
    pub const ADDRESS_CONFLICT: &str = "AddressConflict";
    /// A node had an address until lately.
    pub const ADDRESS_DEPARTED: &str = "AddressDeparted";
    /// What was kept of addresses that nodes had cannot be read.
    pub const DEPARTED_LOST: &str = "DepartedLost";
    /// Devices of several nodes have one address, as is usual for some.
    pub const ADDRESS_SHARED: &str = "AddressShared";
    /// A pod claims an address in the pod range of a node that it is not on.
    pub const POD_IN_FOREIGN_RANGE: &str = "PodInForeignRange";
    /// Devices of this node have addresses that other nodes do not take for its own.
    pub const ADDRESS_UNUSABLE: &str = "AddressUnusable";
    /// This node has more addresses than it can publish.
    pub const ADDRESSES_LEFT_OUT: &str = "AddressesLeftOut";
    /// A node's `addresses` annotation cannot be used.
    pub const ADDRESSES_INVALID: &str = "AddressesInvalid";
    /// An address no pod or node can have.
    pub const ADDRESS_REFUSED: &str = "AddressRefused";
    /// Pod ranges of two nodes overlap.
    pub const RANGE_OVERLAP: &str = "RangeOverlap";
    /// A pod range no node can have.
    pub const RANGE_REFUSED: &str = "RangeRefused";
    /// A pod range lies outside the cluster's ranges.
    pub const RANGE_OUTSIDE_CLUSTER: &str = "RangeOutsideCluster";
    /// A node's keys annotation cannot be used.
    pub const KEYS_INVALID: &str = "KeysInvalid";
    /// A node's key is another's.
    pub const KEY_REFUSED: &str = "KeyRefused";
    /// A node's `enforced` annotation cannot be read.
    pub const ENFORCED_INVALID: &str = "EnforcedInvalid";
    /// A node has keys, but no address its tunnel could be reached at.
    pub const NO_ENDPOINT: &str = "NoEndpoint";
    /// A node's pod range has no address of its family to route it by.
    pub const NO_ROUTE: &str = "NoRoute";
    /// A pod's attachment cannot be used as it is.
    pub const ATTACHMENT_INVALID: &str = "AttachmentInvalid";
    /// Pods' interfaces were on no record and are put on record again.
    pub const ATTACHMENTS_RECOVERED: &str = "AttachmentsRecovered";
    /// A packet that had to be encrypted left this node in the clear.
    pub const LEAK_SEEN: &str = "LeakSeen";
    /// Another node sent plaintext that had to be encrypted; it was dropped.
    pub const PLAINTEXT_SEEN: &str = "PlaintextSeen";
    /// Another node says that this one sent it such plaintext.
    pub const PLAINTEXT_REPORTED: &str = "PlaintextReported";
    /// Two nodes' names hash to one number.
    pub const NODE_NUMBER_TAKEN: &str = "NodeNumberTaken";
    /// Pods are on a node that has no object, or a node that has none asks for a session.
    pub const NODE_MISSING: &str = "NodeMissing";
    /// Something of this node's protection was taken away by another program, and is back.
    pub const RESTORED: &str = "Restored";
}

/// Number of events by reason.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// Collects events, bounded per reason: a mistake in one place can touch every pod of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collector {
    events: BTreeSet<NewEvent>,
    seen: BTreeMap<&'static str, usize>,
    /// Events are counted, but none is made.
    counts_only: bool,
}

impl Collector {
    /// One that only counts.
    pub(crate) fn counting() -> Collector {
        Collector { counts_only: true, ..Collector::default() }
    }

    /// Adds a warning. The message is only made when it is kept.
    pub(crate) fn warn<const N: usize>(
        &mut self,
        reason: &'static str,
        objects: [String; N],
        message: impl FnOnce() -> String,
    ) {
        self.add(true, reason, || objects.to_vec(), message);
    }

    /// Adds an event that asks for action or does not. Objects and message are only made when they are kept.
    pub(crate) fn add(
        &mut self,
        warning: bool,
        reason: &'static str,
        objects: impl FnOnce() -> Vec<String>,
        message: impl FnOnce() -> String,
    ) {
        let seen = self.seen.entry(reason).or_default();
        *seen += 1;
        if *seen <= LIMIT_PER_REASON && !self.counts_only {
            self.events.insert(NewEvent { warning, reason, objects: objects(), message: message() });
        }
    }

    /// Whether nothing was seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// How many were seen, by reason.
    pub(crate) fn counts(self) -> Counts {
        self.seen
    }

    /// Adds events of which only the number is known, if none of them would be kept. Returns whether that is so.
    pub(crate) fn add_counts(&mut self, counts: &Counts) -> bool {
        let full = counts.keys().all(|reason| self.seen.get(reason).is_some_and(|seen| *seen >= LIMIT_PER_REASON));
        if full {
            for (reason, count) in counts {
                *self.seen.entry(reason).or_default() += count;
            }
        }
        full
    }

    /// What was collected, plus one event for each reason that had more than its share.
    pub(crate) fn finish(mut self) -> BTreeSet<NewEvent> {
        for (reason, seen) in self.seen {
            if seen > LIMIT_PER_REASON {
                let message = format!(
                    "{} more objects have the same problem as the {LIMIT_PER_REASON} named",
                    seen - LIMIT_PER_REASON
                );
                let warning = self.events.iter().any(|event| event.reason == reason && event.warning);
                self.events.insert(NewEvent { warning, reason, objects: Vec::new(), message });
            }
        }
        self.events
    }
}
