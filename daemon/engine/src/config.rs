//! What the engines need to start, whatever the protocol.

use std::time::Duration;

/// The TUN device to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Largest inner IP packet, in bytes.
    pub mtu: u32,
    /// Whether the device stays when the process is gone, so that packets routed to it are dropped
    /// instead of taking another way.
    pub persist: bool,
}

/// The device, the sockets and the threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The TUN device.
    pub device: DeviceConfig,
    /// Threads that carry packets, 1 to [`crate::MOST_ENGINES`]. The peer's number selects the
    /// thread.
    pub threads: usize,
    /// UDP port to listen on, for IPv4 and IPv6.
    pub listen_port: u16,
    /// Mark on outgoing UDP packets (`SO_MARK`).
    pub fwmark: Option<u32>,
    /// For how long after a packet the engine polls for the next one before it sleeps, as long as
    /// that pays. It costs CPU time and saves latency. Zero means never.
    pub spin: Duration,
}
