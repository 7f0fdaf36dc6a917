//! The edge to the kernel: TUN device, UDP sockets, and the batches that go through them.

pub(crate) mod outbox;
pub(crate) mod queues;
#[allow(unsafe_code, reason = "see the module")]
mod syscalls;
pub(crate) mod tun;
pub(crate) mod udp;
