//! Observers read maps, statistics and the [`crate::state`]. They never write to the kernel, with
//! exceptions that decide nothing: [`flows`] removes idle flows, and [`connections`] connections
//! that are over.

pub mod changes;
pub mod connections;
pub mod contests;
pub mod drops;
pub mod explain;
pub mod failed_adds;
pub mod firewalls;
pub mod flows;
pub mod leaks;
pub mod losses;
pub mod maps;
pub mod metrics;
pub mod missing;
pub mod plaintext;
pub mod self_test;
pub mod services;
pub mod status;
pub mod unconnected;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hauberk_abi::packet::protocol;
use hauberk_api::AttachMethod;
use hauberk_datapath::{How, Maps};

/// Handles to the maps, for readers.
#[derive(Clone)]
pub struct MapReader(Arc<Mutex<Maps>>);

impl MapReader {
    /// Shares a set of handles.
    pub fn new(maps: Maps) -> MapReader {
        MapReader(Arc::new(Mutex::new(maps)))
    }

    /// The handles, for one caller at a time.
    pub fn maps(&self) -> MutexGuard<'_, Maps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How programs are attached, as the API says it.
fn attach_method(how: How) -> AttachMethod {
    match how {
        How::Tcx => AttachMethod::Tcx,
        How::Clsact => AttachMethod::Clsact,
    }
}

/// A transport protocol as the API says it: by its name, or by its number.
fn protocol_in_words(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMP => "icmp".into(),
        protocol::ICMPV6 => "icmpv6".into(),
        number => number.to_string(),
    }
}
