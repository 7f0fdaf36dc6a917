//! What the operator should be told. An event here has no time and no count; the agent adds both.

use std::collections::{BTreeMap, BTreeSet};

/// The most events of one reason that are kept per computation; one more event gives the number of
/// the rest.
pub const LIMIT_PER_REASON: usize = 100;

/// Something that happened to an object, or a conflict between objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NewEvent {
    /// Whether the operator must act.
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
    /// A label's value is unknown: treated as `enabled`.
    pub const UNKNOWN_LABEL_VALUE: &str = "UnknownLabelValue";
    /// A pod's label would weaken its namespace's choice, and pods may not opt out.
    pub const POD_OPT_OUT_REFUSED: &str = "PodOptOutRefused";
    /// A pod's labels opt it in, but it is on the host network.
    pub const HOST_NETWORK_POD: &str = "HostNetworkPod";
    /// A pod's namespace has no object: the pod is treated as `enabled`.
    pub const NAMESPACE_UNKNOWN: &str = "NamespaceUnknown";
    /// Two parties claim one address.
    pub const ADDRESS_CONFLICT: &str = "AddressConflict";
    /// A node had an address until recently.
    pub const ADDRESS_DEPARTED: &str = "AddressDeparted";
    /// The record of addresses that nodes had cannot be read.
    pub const DEPARTED_LOST: &str = "DepartedLost";
    /// Devices of several nodes have one address, which is normal for some addresses.
    pub const ADDRESS_SHARED: &str = "AddressShared";
    /// A pod claims an address in the pod range of a node that it is not on.
    pub const POD_IN_FOREIGN_RANGE: &str = "PodInForeignRange";
    /// Devices of this node have addresses that other nodes do not accept as this node's.
    pub const ADDRESS_UNUSABLE: &str = "AddressUnusable";
    /// This node has more addresses than it can publish.
    pub const ADDRESSES_LEFT_OUT: &str = "AddressesLeftOut";
    /// A node's `addresses` annotation cannot be used.
    pub const ADDRESSES_INVALID: &str = "AddressesInvalid";
    /// An address that no pod or node can have.
    pub const ADDRESS_REFUSED: &str = "AddressRefused";
    /// Pod ranges of two nodes overlap.
    pub const RANGE_OVERLAP: &str = "RangeOverlap";
    /// A pod range that no node can have.
    pub const RANGE_REFUSED: &str = "RangeRefused";
    /// A pod range lies outside the cluster's ranges.
    pub const RANGE_OUTSIDE_CLUSTER: &str = "RangeOutsideCluster";
    /// A node's keys annotation cannot be used.
    pub const KEYS_INVALID: &str = "KeysInvalid";
    /// A node's key is also another node's.
    pub const KEY_REFUSED: &str = "KeyRefused";
    /// A node's `enforced` annotation cannot be read.
    pub const ENFORCED_INVALID: &str = "EnforcedInvalid";
    /// A node has keys, but no address at which its tunnel could be reached.
    pub const NO_ENDPOINT: &str = "NoEndpoint";
    /// The node has no address of a pod range's family, so there is no route to that range.
    pub const NO_ROUTE: &str = "NoRoute";
    /// A pod's attachment cannot be used.
    pub const ATTACHMENT_INVALID: &str = "AttachmentInvalid";
    /// The agent had no record of some pods' interfaces, and recovered them.
    pub const ATTACHMENTS_RECOVERED: &str = "AttachmentsRecovered";
    /// A packet that had to be encrypted left this node in the clear.
    pub const LEAK_SEEN: &str = "LeakSeen";
    /// Another node sent plaintext that had to be encrypted; it was dropped.
    pub const PLAINTEXT_SEEN: &str = "PlaintextSeen";
    /// Another node reports that this node sent it such plaintext.
    pub const PLAINTEXT_REPORTED: &str = "PlaintextReported";
    /// There is no room for a service.
    pub const SERVICE_LEFT_OUT: &str = "ServiceLeftOut";
    /// A service claims an address that it must not have, or an endpoint has one.
    pub const SERVICE_ADDRESS_REFUSED: &str = "ServiceAddressRefused";
    /// Two services claim one address and port.
    pub const SERVICE_CONFLICT: &str = "ServiceConflict";
    /// Two services' sets of backends have the same number.
    pub const SERVICE_SET_TAKEN: &str = "ServiceSetTaken";
    /// Two nodes' names hash to the same number.
    pub const NODE_NUMBER_TAKEN: &str = "NodeNumberTaken";
    /// A node without an object has pods, or asks for a session.
    pub const NODE_MISSING: &str = "NodeMissing";
    /// Another program removed a part of this node's protection, and the agent put it back.
    pub const RESTORED: &str = "Restored";
}

/// Number of events by reason.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// Collects events, bounded per reason: one mistake can affect every pod of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collector {
    events: BTreeSet<NewEvent>,
    seen: BTreeMap<&'static str, usize>,
    /// Events are counted but not kept.
    counts_only: bool,
}

impl Collector {
    /// A collector that only counts.
    pub(crate) fn counting() -> Collector {
        Collector { counts_only: true, ..Collector::default() }
    }

    /// Adds a warning. The message is only made if it is kept.
    pub(crate) fn warn<const N: usize>(
        &mut self,
        reason: &'static str,
        objects: [String; N],
        message: impl FnOnce() -> String,
    ) {
        self.add(true, reason, || objects.to_vec(), message);
    }

    /// Adds a warning or another event. Objects and message are only made if they are kept.
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

    /// Whether no event was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The number of events added, by reason.
    pub(crate) fn counts(self) -> Counts {
        self.seen
    }

    /// Adds events by their number alone, if every reason's limit is already reached, so that none
    /// of them would be kept. Returns whether that is so.
    pub(crate) fn add_counts(&mut self, counts: &Counts) -> bool {
        let full = counts.keys().all(|reason| self.seen.get(reason).is_some_and(|seen| *seen >= LIMIT_PER_REASON));
        if full {
            for (reason, count) in counts {
                *self.seen.entry(reason).or_default() += count;
            }
        }
        full
    }

    /// The kept events, plus one event for each reason that exceeded its limit.
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
