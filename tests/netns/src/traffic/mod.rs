//! Clients and servers that run in pods, on nodes and outside.
//!
//! [`mod@exchange`] is one request and one reply of any protocol. [`stream`] is traffic that
//! continues while a test changes the cluster. [`bulk`] sends as fast as possible.

mod bulk;
mod datagram;
mod echo;
mod exchange;
mod flood;
mod raw;
mod segment;
mod size;
mod socket;
mod stream;

pub use bulk::{BulkReport, bulk_tcp};
pub use exchange::{Exchange, Outcome, Protocol, assert_answered, exchange, exchange_all, wait_answered};
pub use flood::Flood;
pub use raw::{internet_checksum, sctp_checksum};
pub use size::{SizeOutcome, send_of_size, super_datagram};
pub use stream::{TcpReport, TcpStreamer, UdpReport, UdpStreamer};
