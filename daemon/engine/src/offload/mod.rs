//! Batches of packets as one: splits super-packets from the device, and joins packets from the
//! network.
//!
//! Pure functions over byte slices; nothing here does I/O. [`segment`] is between the TUN device
//! and encryption, [`coalesce`] between decryption and the TUN device; [`virtio`] is the header
//! that both exchange with the kernel.

pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod ip;
pub(crate) mod segment;
pub(crate) mod virtio;

#[cfg(test)]
pub(crate) mod samples;
