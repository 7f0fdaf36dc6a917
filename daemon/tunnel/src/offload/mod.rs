//! Batches of packets as one: cutting what the device hands us, joining what the network brings.
//!
//! Pure functions over byte slices; nothing here does I/O. [`segment`] stands between the TUN
//! device and sealing, [`coalesce`] between opening and the TUN device, [`virtio`] is the header
//! both speak with the kernel.

pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod ip;
pub(crate) mod segment;
pub(crate) mod virtio;

#[cfg(test)]
pub(crate) mod samples;
