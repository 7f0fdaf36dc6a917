//! What came to an engine and is another one's.

use std::time::Instant;

use super::message::{Data, Message};
use super::{FIRST_ENGINE, WireGuard};
use crate::crew::MOST_ENGINES;
use crate::io::outbox::Outbox;
use crate::protocol::{Datagram, Datagrams, Inbox, Protocol};
use crate::stats::TunnelDrop;

impl WireGuard {
    /// Gives a datagram that is another engine's to that one: the kernel joins what comes from one sender, and looks at the first alone.
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
        if !self.crew.hand_over(engine, bytes, work) {
            return Err(TunnelDrop::QueueFull);
        }
        self.around.settings.counters.hand_over(1);
        Ok(())
    }

    /// The engine that has what the message is for.
    pub(super) fn engine_of(&self, message: &Message<'_>) -> usize {
        match message {
            Message::Initiation { .. } => FIRST_ENGINE,
            Message::Response { receiver, .. }
            | Message::CookieReply { receiver, .. }
            | Message::Data(Data { receiver, .. }) => match (receiver >> 8) as usize % MOST_ENGINES {
                engine if engine < self.crew.count() => engine,
                // Nobody's, which anyone can find out.
                _ => self.crew.own(),
            },
        }
    }
}
