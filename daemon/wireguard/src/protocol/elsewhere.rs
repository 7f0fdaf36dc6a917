//! Messages that arrive at one engine and belong to another.

use std::time::Instant;

use hauberk_engine::{Datagram, Datagrams, Inbox, MOST_ENGINES, Outbox, Protocol, TunnelDrop};

use super::message::{Data, Message};
use super::{FIRST_ENGINE, WireGuard};

impl WireGuard {
    /// Hands a datagram to the engine it belongs to. The kernel joins datagrams of one sender and
    /// steers them all by the first one, so a run can contain datagrams for several engines.
    pub(super) fn forward(&self, engine: usize, datagram: Datagram<'_>) -> Result<(), TunnelDrop> {
        let Datagram { from, ecn, bytes } = datagram;
        let bytes = bytes.to_vec();
        self.hand_over(engine, bytes.len(), move |protocol, now, inbox, outbox| {
            protocol.open(now, Datagrams { from, ecn, bytes: &bytes, size: bytes.len().max(1) }, inbox, outbox);
        })
    }

    pub(super) fn hand_over(
        &self,
        engine: usize,
        bytes: usize,
        work: impl FnOnce(&mut WireGuard, Instant, &mut dyn Inbox, &mut Outbox<'_>) + Send + 'static,
    ) -> Result<(), TunnelDrop> {
        if !self.channels.hand_over(engine, bytes, work) {
            return Err(TunnelDrop::QueueFull);
        }
        self.around.settings.counters.hand_over(1);
        Ok(())
    }

    /// The engine that has the session, or the peer, that the message is for.
    pub(super) fn engine_of(&self, message: &Message<'_>) -> usize {
        match message {
            Message::Initiation { .. } => FIRST_ENGINE,
            Message::Response { receiver, .. }
            | Message::CookieReply { receiver, .. }
            | Message::Data(Data { receiver, .. }) => match (receiver >> 8) as usize % MOST_ENGINES {
                engine if engine < self.channels.count() => engine,
                // No engine has it, which any engine can find out.
                _ => self.channels.own(),
            },
        }
    }
}
