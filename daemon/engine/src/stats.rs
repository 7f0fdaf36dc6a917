//! The engines' counters and drop reasons, and whether they run.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was not passed on. Each reason has one counter. Some reasons only some protocols
/// have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum TunnelDrop {
    /// No peer's allowed IPs match the destination.
    NoPeer,
    /// Sent to a multicast group, which belongs to no peer: usually the kernel's own traffic on the
    /// device.
    Multicast,
    /// The peer has no configured endpoint.
    NoEndpoint,
    /// Too many packets wait for this peer's handshake.
    QueueFull,
    /// The packet waited for a handshake that was given up.
    HandshakeFailed,
    /// Authentication failed, or the message counter was already received.
    ReplayOrForged,
    /// The receiver index or the static key belongs to no known peer.
    UnknownSender,
    /// A handshake for a public key that this node does not have, or no longer has.
    NotForOurKey,
    /// The inner source address is not in the allowed IPs of the peer that encrypted the packet.
    SourceNotAllowed,
    /// The outer or the inner packet could not be parsed.
    Malformed,
    /// Larger than the tunnel's MTU.
    Oversized,
    /// The kernel refused the decrypted packet.
    TunWriteFailed,
    /// The kernel refused the encrypted packet.
    UdpSendFailed,
    /// A handshake under load, answered with a cookie reply.
    UnderLoadCookie,
    /// A handshake under load from an address that proved itself but exceeds its rate limit.
    SourceRateLimited,
}

impl TunnelDrop {
    /// Every reason, in the order of the counters.
    pub const ALL: [TunnelDrop; 15] = [
        TunnelDrop::NoPeer,
        TunnelDrop::Multicast,
        TunnelDrop::NoEndpoint,
        TunnelDrop::QueueFull,
        TunnelDrop::HandshakeFailed,
        TunnelDrop::ReplayOrForged,
        TunnelDrop::UnknownSender,
        TunnelDrop::NotForOurKey,
        TunnelDrop::SourceNotAllowed,
        TunnelDrop::Malformed,
        TunnelDrop::Oversized,
        TunnelDrop::TunWriteFailed,
        TunnelDrop::UdpSendFailed,
        TunnelDrop::UnderLoadCookie,
        TunnelDrop::SourceRateLimited,
    ];

    /// Stable name, for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            TunnelDrop::NoPeer => "no_peer",
            TunnelDrop::Multicast => "multicast",
            TunnelDrop::NoEndpoint => "no_endpoint",
            TunnelDrop::QueueFull => "queue_full",
            TunnelDrop::HandshakeFailed => "handshake_failed",
            TunnelDrop::ReplayOrForged => "replay_or_forged",
            TunnelDrop::UnknownSender => "unknown_sender",
            TunnelDrop::NotForOurKey => "not_for_our_key",
            TunnelDrop::SourceNotAllowed => "source_not_allowed",
            TunnelDrop::Malformed => "malformed",
            TunnelDrop::Oversized => "oversized",
            TunnelDrop::TunWriteFailed => "tun_write_failed",
            TunnelDrop::UdpSendFailed => "udp_send_failed",
            TunnelDrop::UnderLoadCookie => "under_load_cookie",
            TunnelDrop::SourceRateLimited => "source_rate_limited",
        }
    }
}

/// Packets dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounts([u64; TunnelDrop::ALL.len()]);

impl DropCounts {
    /// Packets dropped for one reason.
    pub fn of(&self, reason: TunnelDrop) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (TunnelDrop, u64)> + '_ {
        TunnelDrop::ALL.iter().map(|reason| (*reason, self.of(*reason)))
    }

    /// Packets dropped for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds packets dropped for one reason.
    #[inline]
    pub fn add(&mut self, reason: TunnelDrop, packets: u64) {
        self.0[reason as usize] += packets;
    }
}

/// What the kernel agreed to do in bulk. Determined once, at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadFeatures {
    /// Packets have a virtio header: without it, nothing is batched on the device.
    pub vnet_header: bool,
    /// The device's packets may have partial checksums.
    pub checksum: bool,
    /// TCP super-packets of up to 64 KB.
    pub tso: bool,
    /// UDP super-packets.
    pub uso: bool,
    /// Many datagrams per send. False until the sockets are open.
    pub udp_gso: bool,
    /// Many datagrams per receive. False until the sockets are open.
    pub udp_gro: bool,
    /// An IPv6 socket exists. False until the sockets are open.
    pub ipv6: bool,
    /// The kernel brings packets directly to the thread that has their peer. Without this, and for
    /// packets that the kernel cannot assign, threads hand them over. True for a single thread.
    /// False until the sockets are open.
    pub steering: bool,
}

/// Whether the engines run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// All engines run.
    Running,
    /// One engine ended, so all were stopped, and no packet passes any more.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Counters that the engines' threads write and any thread reads. A packet that passes normally
/// touches none of them.
#[derive(Debug, Default)]
pub struct Counters {
    drops: [AtomicU64; TunnelDrop::ALL.len()],
    probes_seen: AtomicU64,
    handed_over: AtomicU64,
}

impl Counters {
    /// Counts packets dropped for one reason.
    #[inline]
    pub fn drop_packets(&self, reason: TunnelDrop, packets: u64) {
        self.drops[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// Counts one dropped packet.
    #[inline]
    pub fn drop_packet(&self, reason: TunnelDrop) {
        self.drop_packets(reason, 1);
    }

    /// Packets dropped so far.
    pub fn drops(&self) -> DropCounts {
        let mut counts = DropCounts::default();
        for reason in TunnelDrop::ALL {
            counts.add(reason, self.drops[reason as usize].load(Ordering::Relaxed));
        }
        counts
    }

    /// Counts packets, or handshakes, that were handed over to another engine.
    #[inline]
    pub fn hand_over(&self, packets: u64) {
        self.handed_over.fetch_add(packets, Ordering::Relaxed);
    }

    /// Packets and handshakes that were handed over so far.
    pub fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// Counts a self-test packet.
    #[inline]
    pub fn see_probe(&self) {
        self.probes_seen.fetch_add(1, Ordering::Relaxed);
    }

    /// Self-test packets so far.
    pub fn probes_seen(&self) -> u64 {
        self.probes_seen.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_under_its_own_name() {
        let counters = Counters::default();
        for (index, reason) in TunnelDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            counters.drop_packets(reason, index as u64 + 1);
        }
        let counts = counters.drops();
        let mut names: Vec<_> = counts.iter().map(|(reason, _)| reason.as_str()).collect();
        assert!(counts.iter().all(|(reason, count)| count == reason as u64 + 1));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TunnelDrop::ALL.len());
    }
}
