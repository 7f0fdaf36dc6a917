//! Why a packet was dropped, and why a flow was or was not encrypted. The names are stable: they
//! appear in metrics, flow records and the CLI.

macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident, fallback $fallback:ident { $( $(#[$vmeta:meta])* $variant:ident = $value:literal, $text:literal; )* }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $( $(#[$vmeta])* $variant = $value, )* }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [$name] = &[$( $name::$variant, )*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )* }
            }

            /// The value for a number from a map or an event. A number this version does not know
            /// becomes the fallback.
            #[inline(always)]
            pub const fn from_u8(value: u8) -> $name {
                match value { $( $value => $name::$variant, )* _ => $name::$fallback }
            }
        }

        #[cfg(feature = "std")]
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named_enum! {
    /// Why a packet was dropped. Each reason has a counter per CPU.
    DropReason, fallback Unspecified {
        /// Not a reason. Its counter stays 0, unless a newer program wrote a reason this agent does
        /// not know.
        Unspecified = 0, "unspecified";
        /// Truncated, inconsistent lengths, or more extension headers than real senders use.
        Malformed = 1, "malformed";
        /// A pod sent from an address that is not its own.
        SpoofedSource = 2, "spoofed_source";
        /// The destination lies in a pod or node range, but no node owns it.
        UnknownDestination = 3, "unknown_destination";
        /// The other end's node has published no usable key.
        NoPeer = 4, "no_peer";
        /// Plaintext from another node, addressed to an opted-in (or unknown) pod.
        PlaintextToProtected = 5, "plaintext_to_protected";
        /// Plaintext from another node that claims to come from an opted-in (or unknown) pod.
        PlaintextFromProtected = 6, "plaintext_from_protected";
        /// Would have left this node in the clear and cannot be redirected into the tunnel.
        PlaintextLeaving = 7, "plaintext_leaving";
        /// For a pod that is not (or no longer) there: the packet was decrypted on another node
        /// than the pod's, would enter another pod, or would leave this node although it is for a
        /// pod of this node.
        NotLocal = 8, "not_local";
        /// Came through the tunnel with a source address that no other node may use.
        TunnelSource = 9, "tunnel_source";
        /// Neither IP nor ARP, from or to an opted-in pod; or from one behind a VLAN tag.
        NotIp = 10, "not_ip";
        /// Multicast or broadcast beyond the pod's link: it cannot be encrypted to one peer.
        Multicast = 11, "multicast";
        /// From an opted-in pod to outside the cluster, before the agent knows what is inside; or
        /// from or to a pod before the agent has written its settings.
        NotReady = 12, "not_ready";
        /// The agent's own probe. It must be dropped, which proves that the program runs.
        SelfTest = 13, "self_test";
        /// The kernel refused the redirection into the tunnel or the pod.
        RedirectFailed = 14, "redirect_failed";
        /// Claims to come from this node's own pods, but arrived from the wire.
        Martian = 15, "martian";
        /// From outside the cluster directly to an opted-in pod's address, while `worldIngress` is
        /// `translated`.
        WorldToProtected = 16, "world_to_protected";
        /// Larger than the tunnel's MTU. The sender is told what would have fitted, where that is
        /// possible.
        TooBig = 17, "too_big";
        /// A packet socket on the node sent a frame with a pod's address.
        PacketSocket = 18, "packet_socket";
        /// To a protected pod of another node, from an address that is not known to be this node's
        /// yet, or from outside the cluster.
        UnknownSource = 19, "unknown_source";
        /// Came sealed, but there is no room to remember that its answers must be sealed as well.
        SealedFull = 20, "sealed_full";
        /// ARP or neighbour discovery in which a pod claims an address that is not its own, or
        /// speaks as a router.
        SpoofedNeighbour = 21, "spoofed_neighbour";
        /// One more link-local address of a pod, or one more unknown neighbour, than its node has
        /// room for.
        NeighbourLimit = 22, "neighbour_limit";
        /// To a service that has no backend for this client. The client is told, unless another
        /// node has one.
        NoBackend = 23, "no_backend";
        /// To a service's load balancer, from a client that `loadBalancerSourceRanges` does not
        /// admit.
        SourceNotAdmitted = 24, "source_not_admitted";
        /// To a service, but there is no room to remember one more connection, or no port left for
        /// it.
        ConnectionsFull = 25, "connections_full";
        /// To a service or from its backend, but this node has no route there, or no address for
        /// packets that go on to another node.
        NoWay = 26, "no_way";
    }
}

/// Slots in the drop counters' map: room for reasons of later versions.
pub const DROP_SLOTS: u32 = 64;

named_enum! {
    /// What happened to a flow's packets between nodes.
    Encryption, fallback Refused {
        /// Dropped: not sent at all.
        Refused = 0, "refused";
        /// Through the tunnel.
        Encrypted = 1, "encrypted";
        /// In the clear, because neither end asked for encryption.
        Plain = 2, "plain";
        /// Never left this node's kernel.
        Local = 3, "local";
        /// To or from outside the cluster: hauberk does not encrypt that.
        World = 4, "world";
    }
}

named_enum! {
    /// The rule that decided a flow's encryption value.
    Why, fallback Unspecified {
        /// No rule of this version.
        Unspecified = 0, "unspecified";
        /// The source is opted in.
        SourceOptedIn = 1, "source_opted_in";
        /// The destination is opted in.
        DestinationOptedIn = 2, "destination_opted_in";
        /// An end lies in a pod range but is not known: treated as opted in.
        UnknownIsProtected = 3, "unknown_is_protected";
        /// Permissive, and the peer can encrypt.
        PermissivePeerReady = 4, "permissive_peer_ready";
        /// Permissive, and the peer cannot encrypt (yet).
        PermissivePeerNotReady = 5, "permissive_peer_not_ready";
        /// Neither end is opted in.
        NotOptedIn = 6, "not_opted_in";
        /// Both ends are on this node.
        SameNode = 7, "same_node";
        /// One end is outside the cluster.
        OutsideCluster = 8, "outside_cluster";
        /// The addresses were translated on the way, or may have been: a node's address can stand
        /// for a protected pod.
        Translated = 9, "translated";
        /// Dropped; the drop reason tells why.
        Dropped = 10, "dropped";
        /// Came out of the tunnel, hence sealed by the peer that owns the source.
        Decrypted = 11, "decrypted";
        /// Answers what came out of the tunnel.
        AnswersSealed = 12, "answers_sealed";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(DropReason::from_u8(i as u8), *reason);
            assert_eq!(DropReason::ALL.iter().filter(|r| r.as_str() == reason.as_str()).count(), 1);
        }
        assert!((DropReason::ALL.len() as u32) < DROP_SLOTS);
        assert_eq!(DropReason::from_u8(200), DropReason::Unspecified);
        assert_eq!(Encryption::from_u8(200), Encryption::Refused);
    }
}
