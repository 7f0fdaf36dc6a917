//! One peer: its pairs of keys, the packets that wait for a session, and its statistics.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use hauberk_cipher::TAG;
use hauberk_engine::offload::ip;
use hauberk_engine::offload::segment::Segments;
use hauberk_engine::{DropCounts, Outbox, TunnelDrop};

use super::Surroundings;
use super::handshake::Responder;
use super::message::{COOKIE_REPLY, Data, INITIATION, OVERHEAD, RESPONSE, RESPONSE_NOISE};
use super::pair::{Due, GIVEN_UP, Pair, REKEY_AFTER_TIME, REKEY_AT_LAST};
use super::whereabouts::{self, Whereabouts};
use crate::config::{PeerConfig, PeerId};
use crate::stats::{PeerState, PeerStats};

/// The most packets that wait for a handshake, per peer.
const MOST_WAITING: usize = 256;

/// A message for a pair that carries no data.
pub(super) enum HandshakeMessage<'a> {
    /// Admitted; it names this peer's key.
    Initiation {
        sender: u32,
        responder: Responder,
    },
    Response {
        sender: u32,
        receiver: u32,
        noise: &'a [u8; RESPONSE_NOISE],
    },
    CookieReply {
        receiver: u32,
        nonce: &'a [u8; 24],
        sealed: &'a [u8; 16 + TAG],
    },
}

/// A peer and its complete state.
pub(super) struct Peer {
    pub(super) config: PeerConfig,
    /// Newest first: this node's newest key with the peer's newest key, and so on.
    pub(super) pairs: Vec<Pair>,
    whereabouts: Whereabouts,
    waiting: VecDeque<Vec<u8>>,
    state: PeerState,
    failed: Option<SystemTime>,
    latest_handshake: Option<SystemTime>,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_packets: u64,
    tx_packets: u64,
    drops: DropCounts,
    /// The deadline that the schedule has.
    armed: Option<Instant>,
}

impl Peer {
    pub(super) fn new(config: PeerConfig) -> Peer {
        Peer {
            config,
            pairs: Vec::new(),
            whereabouts: Whereabouts::default(),
            waiting: VecDeque::new(),
            state: PeerState::Idle,
            failed: None,
            latest_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
            drops: DropCounts::default(),
            armed: None,
        }
    }

    /// Encrypts packets for this peer, or queues them until there is a session.
    pub(super) fn send(
        &mut self,
        now: Instant,
        packets: &mut Segments<'_>,
        around: &mut Surroundings,
        outbox: &mut Outbox<'_>,
    ) {
        let Some(to) = self.destination() else {
            return self.drop_packets(TunnelDrop::NoEndpoint, packets.extent().1 as u64, around);
        };
        self.expire(now);
        while let Some(packet) = packets.next() {
            if !self.seal(now, to, packet, around, outbox) {
                if self.waiting.len() == MOST_WAITING {
                    self.drop_packet(TunnelDrop::QueueFull, around);
                } else {
                    self.waiting.push_back(packet.to_vec());
                }
                self.start_handshakes(now, outbox);
            }
        }
        if let Some(pair) = self.pairs.iter().position(Pair::is_usable) {
            self.renew(now, pair, REKEY_AFTER_TIME, outbox);
        }
        self.conclude(around);
    }

    /// Decrypts a data message for one of the pairs. Returns the length of packet and padding. The
    /// caller calls [`Peer::expire`] before the first message, and [`Peer::finish_receiving`] after
    /// the last one.
    pub(super) fn open(
        &mut self,
        now: Instant,
        pair: usize,
        (data, from): (Data<'_>, SocketAddr),
        room: &mut [u8],
        around: &mut Surroundings,
        outbox: &mut Outbox<'_>,
    ) -> Option<usize> {
        let opened = self.pairs[pair].open(now, data, room);
        let opened = opened.map_err(|reason| self.drop_packet(reason, around)).ok()?;
        self.rx_bytes += (opened.length + OVERHEAD) as u64;
        self.whereabouts.hear(self.config.endpoint, from);
        if opened.confirmed {
            self.established(now, pair, false, around, outbox);
        }
        (opened.length > 0).then_some(opened.length)
    }

    /// The last step after a run of data messages for one pair.
    pub(super) fn finish_receiving(
        &mut self,
        now: Instant,
        pair: usize,
        around: &mut Surroundings,
        outbox: &mut Outbox<'_>,
    ) {
        self.renew(now, pair, REKEY_AT_LAST, outbox);
        self.conclude(around);
    }

    /// Handles a handshake message for one of the pairs.
    pub(super) fn shake_hands(
        &mut self,
        now: Instant,
        from: SocketAddr,
        pair: usize,
        message: HandshakeMessage<'_>,
        around: &mut Surroundings,
        outbox: &mut Outbox<'_>,
    ) {
        self.expire(now);
        let taken = match message {
            // Without a configured endpoint, no handshake takes place.
            _ if self.config.endpoint.is_none() => Err(TunnelDrop::NoEndpoint),
            HandshakeMessage::Initiation { sender, responder } => {
                self.pairs[pair].answer(now, sender, responder).map(|answer| {
                    self.answer(now, from, pair, &answer, outbox);
                    INITIATION
                })
            }
            HandshakeMessage::Response { sender, receiver, noise } => {
                self.pairs[pair].complete(now, sender, receiver, noise).map(|()| {
                    self.whereabouts.complete(self.config.endpoint, from);
                    self.keep_alive(pair, outbox);
                    self.established(now, pair, true, around, outbox);
                    RESPONSE
                })
            }
            HandshakeMessage::CookieReply { receiver, nonce, sealed } => {
                self.pairs[pair].macs.take_reply(now, receiver, nonce, sealed).map(|()| COOKIE_REPLY)
            }
        };
        match taken {
            Ok(length) => self.rx_bytes += length as u64,
            Err(reason) => self.drop_packet(reason, around),
        }
        self.conclude(around);
    }

    /// Does everything that is due and sets the next deadline.
    pub(super) fn on_deadline(&mut self, now: Instant, around: &mut Surroundings, outbox: &mut Outbox<'_>) {
        self.armed = None;
        self.expire(now);
        let sending = self.pairs.iter().position(Pair::is_usable);
        let (mut gave_up, mut is_silent) = (false, false);
        for pair in 0..self.pairs.len() {
            while let Some(due) = self.pairs[pair].next_due(now) {
                match due {
                    Due::Initiation => self.initiate(now, pair, outbox),
                    Due::Keepalive => self.keep_alive(pair, outbox),
                    Due::GaveUp => {
                        gave_up = true;
                        is_silent |= sending == Some(pair);
                    }
                }
            }
        }
        let hopeless = gave_up && self.pairs.iter().all(|pair| !pair.is_usable() && pair.attempts().is_none());
        if hopeless {
            self.drop_waiting(TunnelDrop::HandshakeFailed, around);
        }
        // A session that is left still sends, but the peer no longer answers.
        if hopeless || is_silent {
            self.failed = Some(SystemTime::now());
        }
        self.conclude(around);
    }

    /// Drops expired sessions. The first step of every event of a peer.
    pub(super) fn expire(&mut self, now: Instant) {
        for pair in &mut self.pairs {
            pair.expire(now);
        }
    }

    /// Starts handshakes with every pair that is better than the one in use.
    ///
    /// During a key rotation this node does not know which of its keys the peer has already read. A
    /// handshake with each key at once costs a message more; one after the other would cost
    /// seconds.
    pub(super) fn start_handshakes(&mut self, now: Instant, outbox: &mut Outbox<'_>) {
        if self.config.endpoint.is_none() {
            return;
        }
        let usable = self.pairs.iter().position(Pair::is_usable).unwrap_or(self.pairs.len());
        for pair in 0..usable {
            if self.pairs[pair].attempts().is_none() {
                self.initiate(now, pair, outbox);
            }
        }
    }

    /// Also starts a handshake with the pair whose session is in use: the peer's address may have
    /// changed.
    pub(super) fn look_for(&mut self, now: Instant, outbox: &mut Outbox<'_>) {
        let used = self.pairs.iter().position(|pair| pair.is_usable() && pair.attempts().is_none());
        if let (Some(pair), Some(_)) = (used, self.config.endpoint) {
            self.initiate(now, pair, outbox);
        }
    }

    /// Sends the initiation of each handshake under way again, because the endpoint is new.
    pub(super) fn retry_handshakes(&mut self, now: Instant, outbox: &mut Outbox<'_>) {
        if self.config.endpoint.is_none() {
            return;
        }
        for pair in 0..self.pairs.len() {
            if self.pairs[pair].attempts().is_some() {
                self.initiate(now, pair, outbox);
            }
        }
    }

    /// A failure, and what was learnt about an endpoint, apply only to the configuration at that
    /// time.
    pub(super) fn forgive(&mut self) {
        self.failed = None;
        self.whereabouts = Whereabouts::default();
    }

    pub(super) fn is_established(&self) -> bool {
        self.pairs.iter().any(Pair::is_usable)
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn count_received(&mut self) {
        self.rx_packets += 1;
    }

    pub(super) fn drop_packet(&mut self, reason: TunnelDrop, around: &Surroundings) {
        self.drop_packets(reason, 1, around);
    }

    fn drop_packets(&mut self, reason: TunnelDrop, packets: u64, around: &Surroundings) {
        self.drops.add(reason, packets);
        around.settings.counters.drop_packets(reason, packets);
    }

    pub(super) fn drop_waiting(&mut self, reason: TunnelDrop, around: &Surroundings) {
        let packets = self.waiting.len() as u64;
        self.waiting.clear();
        self.drop_packets(reason, packets, around);
    }

    /// Arms the next deadline and reports a new state. The last step of every event of a peer.
    pub(super) fn conclude(&mut self, around: &mut Surroundings) {
        if let Some(deadline) = self.pairs.iter().filter_map(Pair::deadline).min()
            && self.armed.is_none_or(|armed| deadline < armed)
        {
            self.armed = Some(deadline);
            around.schedule.arm(self.config.id, deadline);
        }
        let state = self.current_state();
        let is_news = std::mem::discriminant(&state) != std::mem::discriminant(&self.state);
        self.state = state;
        if is_news {
            self.announce(around);
        }
    }

    /// The statistics; `thread` is the number of its engine.
    pub(super) fn stats(&self, thread: usize) -> PeerStats {
        let sending = self.pairs.iter().find(|pair| pair.is_usable());
        let unanswered = match sending {
            // Other pairs may never succeed, for instance with a key that the peer does not use
            // yet.
            Some(pair) => pair.attempts(),
            None => self.pairs.iter().filter_map(Pair::attempts).max(),
        };
        PeerStats {
            id: self.config.id,
            name: self.config.name.clone(),
            state: self.state,
            unanswered: unanswered.unwrap_or(0).max(if self.failed.is_some() { GIVEN_UP } else { 0 }),
            latest_handshake: self.latest_handshake,
            local_epoch: sending.map(|pair| pair.identity().epoch),
            remote_epoch: sending.map(|pair| pair.remote_epoch),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            rx_packets: self.rx_packets,
            tx_packets: self.tx_packets,
            endpoint: self.destination(),
            thread,
            drops: self.drops,
        }
    }

    /// Encrypts with the newest pair that has a session. False if no pair has one.
    fn seal(
        &mut self,
        now: Instant,
        to: SocketAddr,
        packet: &[u8],
        around: &mut Surroundings,
        outbox: &mut Outbox<'_>,
    ) -> bool {
        while let Some(pair) = self.pairs.iter_mut().find(|pair| pair.is_usable()) {
            let class = if around.settings.copy_dscp { ip::traffic_class(packet) } else { ip::ecn(packet) };
            let size = around.padded(packet.len()) + OVERHEAD;
            let sealed = outbox.post_with(to, class, size, |room| pair.seal(now, packet, room));
            if sealed {
                self.tx_bytes += size as u64;
                self.tx_packets += 1;
            }
            // A pair whose session is used up is no longer usable. A packet too large for a
            // datagram has been dropped.
            if sealed || pair.is_usable() {
                return true;
            }
        }
        false
    }

    /// Starts a new session if the one in use is `age` old and this node is responsible for its
    /// renewal.
    fn renew(&mut self, now: Instant, pair: usize, age: Duration, outbox: &mut Outbox<'_>) {
        if self.pairs[pair].is_to_be_renewed(now, age) {
            self.initiate(now, pair, outbox);
        }
    }

    fn initiate(&mut self, now: Instant, pair: usize, outbox: &mut Outbox<'_>) {
        let message = self.pairs[pair].initiate(now);
        let attempts = self.pairs[pair].attempts().unwrap_or(1);
        let beside = self.whereabouts.beside_endpoint(attempts, &self.config.fallbacks);
        for to in self.config.endpoint.into_iter().chain(beside.into_iter().flatten()) {
            self.post(to, &message, outbox);
        }
    }

    /// Answers both to the source address and to the endpoint: the peer accepts the answer that
    /// comes first.
    fn answer(&mut self, now: Instant, from: SocketAddr, pair: usize, answer: &[u8], outbox: &mut Outbox<'_>) {
        self.whereabouts.begin(self.config.endpoint, from);
        let endpoint = self.config.endpoint;
        let beside = endpoint.filter(|endpoint| !whereabouts::is_same(*endpoint, from)).map(|_| from);
        for to in endpoint.into_iter().chain(beside) {
            self.post(to, answer, outbox);
        }
        if self.whereabouts.is_doubtful() && self.pairs[pair].attempts().is_none() {
            self.initiate(now, pair, outbox);
        }
    }

    fn keep_alive(&mut self, pair: usize, outbox: &mut Outbox<'_>) {
        let Some(to) = self.destination() else { return };
        if let Some(message) = self.pairs[pair].keepalive() {
            self.post(to, &message, outbox);
        }
    }

    fn post(&mut self, to: SocketAddr, message: &[u8], outbox: &mut Outbox<'_>) {
        self.tx_bytes += message.len() as u64;
        outbox.post(to, message);
    }

    /// Where data is sent.
    fn destination(&self) -> Option<SocketAddr> {
        self.whereabouts.destination(self.config.endpoint)
    }

    fn established(
        &mut self,
        now: Instant,
        index: usize,
        initiated: bool,
        around: &mut Surroundings,
        outbox: &mut Outbox<'_>,
    ) {
        self.latest_handshake = Some(SystemTime::now());
        self.failed = None;
        for older in &mut self.pairs[index + 1..] {
            older.abandon_handshake();
        }
        let pair = &self.pairs[index];
        tracing::debug!(
            peer = self.config.name,
            local_epoch = pair.identity().epoch,
            remote_epoch = pair.remote_epoch,
            initiated,
            "handshake complete"
        );
        let Some(to) = self.destination() else { return };
        while let Some(packet) = self.waiting.pop_front() {
            if !self.seal(now, to, &packet, around, outbox) {
                self.waiting.push_front(packet);
                break;
            }
        }
    }

    fn current_state(&self) -> PeerState {
        let attempts = self.pairs.iter().filter_map(Pair::attempts).max();
        match (self.is_established(), attempts, self.failed) {
            (true, ..) => PeerState::Established,
            (_, Some(attempts), _) => PeerState::Handshaking { attempts },
            (_, _, Some(since)) => PeerState::Failed { since },
            _ => PeerState::Idle,
        }
    }

    fn announce(&self, around: &Surroundings) {
        let (id, peer) = (self.id(), &self.config.name);
        match self.state {
            PeerState::Failed { .. } => tracing::warn!(
                peer,
                endpoint = ?self.config.endpoint,
                "no handshake for 90 s: is the peer's agent running, its key current, and the UDP port open on the way?"
            ),
            PeerState::Established => tracing::info!(peer, endpoint = ?self.config.endpoint, "session established"),
            state => tracing::debug!(peer, ?state, "state changed"),
        }
        if let Some(on_state) = &around.settings.on_state {
            on_state(id, self.state);
        }
    }

    fn id(&self) -> PeerId {
        self.config.id
    }
}
