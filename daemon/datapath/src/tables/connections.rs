//! Connections whose packets are translated at a device. The programs make and use them; the agent
//! removes those that are over. What packets are judged by does not depend on it.

use std::collections::BTreeSet;

use aya::maps::{HashMap, MapData};
use hauberk_abi::connection::{Connection, Direction, lifetime};
use hauberk_abi::layout::map;

use super::{Maps, Opener, Table};
use crate::DatapathError;

const SECOND: u64 = 1_000_000_000;

pub(super) const TABLES: &[&Table] = &[&CONNECTIONS, &REPLIES];

/// [`Connection`] by the [`Direction`] of the client's packets.
pub static CONNECTIONS: Table =
    Table::sized(map::CONNECTIONS, "connections that are translated at a device", "limits.connections", |limits| {
        limits.connections
    });

/// The [`Direction`] of the client's packets by that of the answers.
pub static REPLIES: Table =
    Table::sized(map::REPLIES, "the answers of these connections", "limits.connections", |limits| limits.connections);

pub(super) struct Handles {
    connections: HashMap<MapData, Direction, Connection>,
    replies: HashMap<MapData, Direction, Direction>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { connections: opener.open(&CONNECTIONS)?, replies: opener.open(&REPLIES)? })
    }
}

impl Maps {
    /// Every connection.
    pub fn connections(&self) -> Result<Vec<(Direction, Connection)>, DatapathError> {
        self.connections.connections.iter().collect::<Result<_, _>>().map_err(CONNECTIONS.failed())
    }

    /// The directions of all answers, each with that of the client's packets.
    pub fn replies(&self) -> Result<Vec<(Direction, Direction)>, DatapathError> {
        self.connections.replies.iter().collect::<Result<_, _>>().map_err(REPLIES.failed())
    }

    /// Whether there is any connection.
    pub fn has_connections(&self) -> Result<bool, DatapathError> {
        let first = self.connections.connections.keys().next();
        Ok(first.transpose().map_err(CONNECTIONS.failed())?.is_some())
    }

    /// Removes connections that are over or have been silent for too long, both directions of each,
    /// and returns how many are left. `now` is a time of the monotonic clock, nanoseconds.
    pub fn forget_connections(&mut self, now: u64) -> Result<usize, DatapathError> {
        // First, so that every answer's connection that is there now is in the second list.
        let replies = self.replies()?;
        let connections = self.connections()?;
        let crowded = connections.len() * 4 > self.capacity(&CONNECTIONS).unwrap_or(0) as usize * 3;
        let mut kept = BTreeSet::new();
        for (key, connection) in connections {
            let seconds = lifetime(key.protocol, connection.state, crowded);
            if now.saturating_sub(connection.last) > u64::from(seconds) * SECOND {
                self.remove_connection(key, &connection)?;
            } else {
                kept.insert(key);
            }
        }
        // A program that found no room for one of the two entries has left the other alone.
        for (answers, of) in replies.into_iter().filter(|(_, of)| !kept.contains(of)) {
            if self.connections.connections.get(&of, 0).is_err() {
                REPLIES.absent_is_fine(self.connections.replies.remove(&answers))?;
            }
        }
        Ok(kept.len())
    }

    fn remove_connection(&mut self, key: Direction, connection: &Connection) -> Result<(), DatapathError> {
        // In this order an answer never leads to a connection that is not there.
        REPLIES.absent_is_fine(self.connections.replies.remove(&connection.answers(key.protocol)))?;
        CONNECTIONS.absent_is_fine(self.connections.connections.remove(&key))
    }
}
