//! The ring buffer in which the programs tell of flows that start, end or are refused.

use std::mem::offset_of;
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

/// Reads an event from its bytes, each field at its place in the layout.
fn read_event(bytes: &[u8]) -> Option<FlowEvent> {
    if bytes.len() != size_of::<FlowEvent>() {
        return None;
    }
    let key = &bytes[offset_of!(FlowEvent, key)..];
    let flow = &bytes[offset_of!(FlowEvent, flow)..];
    Some(FlowEvent {
        kind: u32::from_ne_bytes(field(bytes, offset_of!(FlowEvent, kind))?),
        reserved: 0,
        key: FlowKey {
            source: Address::v6(field(key, offset_of!(FlowKey, source))?),
            destination: Address::v6(field(key, offset_of!(FlowKey, destination))?),
            source_port: u16::from_ne_bytes(field(key, offset_of!(FlowKey, source_port))?),
            destination_port: u16::from_ne_bytes(field(key, offset_of!(FlowKey, destination_port))?),
            protocol: *key.get(offset_of!(FlowKey, protocol))?,
            hook: *key.get(offset_of!(FlowKey, hook))?,
            reserved: 0,
        },
        flow: Flow {
            first: u64::from_ne_bytes(field(flow, offset_of!(Flow, first))?),
            last: u64::from_ne_bytes(field(flow, offset_of!(Flow, last))?),
            packets: u64::from_ne_bytes(field(flow, offset_of!(Flow, packets))?),
            bytes: u64::from_ne_bytes(field(flow, offset_of!(Flow, bytes))?),
            node: u32::from_ne_bytes(field(flow, offset_of!(Flow, node))?),
            epoch: u32::from_ne_bytes(field(flow, offset_of!(Flow, epoch))?),
            encryption: *flow.get(offset_of!(Flow, encryption))?,
            why: *flow.get(offset_of!(Flow, why))?,
            drop: *flow.get(offset_of!(Flow, drop))?,
            tcp_flags: *flow.get(offset_of!(Flow, tcp_flags))?,
            interface: u32::from_ne_bytes(field(flow, offset_of!(Flow, interface))?),
            reserved: 0,
        },
    })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
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
