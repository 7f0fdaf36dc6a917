//! Batches of packets as one: splits super-packets from the device, and joins packets from the
//! network.
//!
//! Pure functions over byte slices; nothing here does I/O. [`segment`] is between the TUN device
//! and encryption, [`coalesce`] between decryption and the TUN device; [`virtio`] is the header
//! that both exchange with the kernel.

pub mod checksum;
pub mod coalesce;
pub mod ip;
pub mod segment;
pub mod virtio;

#[cfg(any(test, feature = "samples"))]
#[allow(missing_docs, reason = "for tests; the names say it")]
pub mod samples;
