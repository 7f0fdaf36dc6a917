//! The ring buffer in which the programs tell of flows that start, end or are refused.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use hauberk_abi::address::Address;
use hauberk_abi::flow::{Flow, FlowEvent, FlowKey};
use hauberk_abi::layout::map;

use super::{Maps, Opener, Table};
use crate::DatapathError;

pub(super) const TABLES: &[&Table] = &[&EVENTS];

/// [`FlowEvent`]s; its size is in bytes.
pub static EVENTS: Table = Table::sized(map::EVENTS, "flow events", "limits.events", |limits| limits.events);

/// The events that the programs have sent, oldest first. The iterator ends when no event waits, and
/// goes on when the descriptor is readable again. An `Err` is the size in bytes of an item that is
/// no event: then programs of another version are attached.
pub struct Events(RingBuf<MapData>);

pub(super) struct Handles {
    events: Option<Events>,
}

impl Handles {
    pub(super) fn open(opener: &mut Opener<'_>) -> Result<Handles, DatapathError> {
        Ok(Handles { events: Some(Events(opener.open(&EVENTS)?)) })
    }
}

impl Maps {
    /// The flow events. Only the first call returns them.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.events.take()
    }
}

impl Iterator for Events {
    type Item = Result<FlowEvent, usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.0.next()?;
        Some(read_event(&item).ok_or(item.len()))
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Reads an event from its bytes, field by field in the layout's order.
fn read_event(bytes: &[u8]) -> Option<FlowEvent> {
    if bytes.len() != size_of::<FlowEvent>() {
        return None;
    }
    let address = |at: usize| Some(Address::v6(bytes.get(at..at + 16)?.try_into().ok()?));
    let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (key, flow) = (8, 48);
    Some(FlowEvent {
        kind: u32_at(0)?,
        reserved: 0,
        key: FlowKey {
            source: address(key)?,
            destination: address(key + 16)?,
            source_port: u16_at(key + 32)?,
            destination_port: u16_at(key + 34)?,
            protocol: *bytes.get(key + 36)?,
            hook: *bytes.get(key + 37)?,
            reserved: 0,
        },
        flow: Flow {
            first: u64_at(flow)?,
            last: u64_at(flow + 8)?,
            packets: u64_at(flow + 16)?,
            bytes: u64_at(flow + 24)?,
            node: u32_at(flow + 32)?,
            epoch: u32_at(flow + 36)?,
            encryption: *bytes.get(flow + 40)?,
            why: *bytes.get(flow + 41)?,
            drop: *bytes.get(flow + 42)?,
            tcp_flags: *bytes.get(flow + 43)?,
            interface: u32_at(flow + 44)?,
            reserved: 0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_another_size_are_told_apart() {
        assert!(read_event(&[0; 3]).is_none());
        let event = read_event(&[1; size_of::<FlowEvent>()]).unwrap();
        assert_eq!(event.kind, 0x0101_0101);
        assert_eq!(event.flow.packets, 0x0101_0101_0101_0101);
        assert_eq!(event.flow.interface, 0x0101_0101);
    }
}
