//! WireGuard as a [`Protocol`]: finds the peer of each packet, and the pair of keys of each
//! message.
//!
//! `message` has the wire format, `handshake` agrees on keys, `session` uses them, `pair` decides
//! when to send what, and `peer` which pair of keys to use.
//!
//! Each engine has its own [`WireGuard`]. All of them know the configuration of all peers, and so
//! which engine has which peer. Only the engine that has the peer makes keys and sessions.
//! Handshakes from strangers go to the first engine.
//!
//! A datagram is trusted only for what its cryptography proves. Which nodes are peers, and which
//! inner addresses belong to them, comes from the configuration alone. So does the address of a
//! peer, as long as its configured endpoint answers ([`whereabouts`]).

mod change;
mod cookie;
mod elsewhere;
mod handshake;
mod identity;
mod message;
mod pair;
mod peer;
mod replay;
mod session;
mod sessions;
mod source_limit;
mod steering;
#[cfg(test)]
mod tests;
pub mod timestamp;
mod whereabouts;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hauberk_cipher::{HEAD, Implementation};
use hauberk_engine::offload::ip;
use hauberk_engine::offload::segment::Segments;
use hauberk_engine::{
    Channels, Counters, Datagram, Datagrams, Elsewhere, Flow, Inbox, MOST_ENGINES, Outbox, Protocol, TunnelDrop,
};

pub(crate) use self::change::Plan;
use self::handshake::Responder;
pub(crate) use self::identity::Identities;
use self::identity::{Identity, Proof};
use self::message::{Data, INITIATION_NOISE, Message};
use self::pair::Pair;
use self::peer::{HandshakeMessage, Peer};
use self::source_limit::SourceLimit;
use crate::allowed::AllowedIps;
use crate::config::{PeerChange, PeerConfig, PeerId, StateCallback};
use crate::error::Error;
use crate::schedule::Schedule;
use crate::stats::PeerStats;
use crate::strangers::Strangers;

pub(crate) use self::steering::filter;

/// A pair's index has 24 bits; the lowest of them are the number of the engine that has the pair.
/// The other 8 bits of a session's index select one of the pair's sessions.
const INDEX_BITS: u32 = 24;
/// The engine that gets strangers' handshakes and messages that cannot be parsed.
const FIRST_ENGINE: usize = 0;

/// The `gso_max_size`, bytes, for the devices of pods whose packets are at most `mtu` bytes: a
/// super-packet then has as many packets as one send can carry after encryption.
pub fn gso_max_size(mtu: u32) -> u32 {
    hauberk_engine::gso_max_size(mtu, message::OVERHEAD as u32)
}

/// The complete state of the protocol in one engine.
pub(crate) struct WireGuard {
    identities: Vec<Arc<Identity>>,
    peers: HashMap<PeerId, Peer>,
    by_key: HashMap<[u8; 32], PeerId>,
    by_index: HashMap<u32, PeerId>,
    by_endpoint: HashMap<SocketAddr, PeerId>,
    allowed: AllowedIps,
    next_index: u32,
    sources: SourceLimit,
    channels: Channels<WireGuard>,
    around: Surroundings,
}

/// Settings that all engines share.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) counters: Arc<Counters>,
    pub(crate) strangers: Arc<Strangers>,
    pub(crate) on_state: Option<Arc<StateCallback>>,
    /// Largest inner packet, bytes.
    pub(crate) mtu: usize,
    pub(crate) copy_dscp: bool,
    pub(crate) cipher: Implementation,
}

/// State that the peers of one engine share.
pub(crate) struct Surroundings {
    settings: Settings,
    schedule: Schedule<PeerId>,
}

impl Surroundings {
    /// Length of a packet with its padding: a multiple of 16 bytes, as far as the MTU allows
    /// (WireGuard paper, 5.4.6).
    fn padded(&self, length: usize) -> usize {
        length.next_multiple_of(16).min(self.settings.mtu).max(length)
    }
}

impl WireGuard {
    /// The protocol state of the engine that `channels` belongs to.
    pub(crate) fn new(identities: Identities, settings: Settings, channels: Channels<WireGuard>) -> WireGuard {
        WireGuard {
            identities: identities.0,
            peers: HashMap::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            by_endpoint: HashMap::new(),
            allowed: AllowedIps::default(),
            // A random start, so that after a restart new sessions do not reuse the indices of old
            // ones.
            next_index: RandomState::new().build_hasher().finish() as u32,
            sources: SourceLimit::new(),
            channels,
            around: Surroundings { settings, schedule: Schedule::new() },
        }
    }

    /// The outcome of a batch of changes in every engine, or why it is impossible. Changes nothing
    /// yet.
    pub(crate) fn plan(&self, changes: Vec<PeerChange>) -> Result<Plan, Error> {
        let peers = &self.peers;
        let installed = change::Installed {
            config: &|id| peers.get(&id).map(|peer| &peer.config),
            allowed: &self.allowed,
            by_key: &self.by_key,
            identities: &self.identities,
        };
        change::plan(changes, &installed)
    }

    /// Carries out a complete plan between two packets.
    pub(crate) fn carry_out(&mut self, plan: Plan, now: Instant, outbox: &mut Outbox<'_>) {
        // First remove what peers give up: another peer of the plan may take it over.
        for (id, wanted) in &plan {
            self.release(*id, wanted.as_ref());
        }
        for (id, wanted) in plan {
            match wanted {
                Some(config) => self.put(config, now, outbox),
                None => self.remove(id),
            }
        }
    }

    /// Whether these can be this node's keys, given the keys of the peers.
    pub(crate) fn check_keys(&self, keys: &Identities) -> Result<(), Error> {
        for peer in self.peers.values() {
            if let Some(reason) = change::unusable_keys(&peer.config.keys, &keys.0) {
                return Err(Error::PeerKeys { id: peer.config.id, name: peer.config.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// Replaces this node's keys, which were checked. Sessions of keys that stay are kept.
    pub(crate) fn set_keys(&mut self, keys: Identities, now: Instant, outbox: &mut Outbox<'_>) {
        let mut identities = keys.0;
        for identity in &mut identities {
            let is_same = |old: &Arc<Identity>| old.epoch == identity.epoch && old.public == identity.public;
            // A key that stays keeps its cookies and counts.
            if let Some(kept) = self.identities.iter().find(|old| is_same(old)) {
                *identity = kept.clone();
            }
        }
        self.identities = identities;
        let ids: Vec<_> = self.peers.keys().copied().filter(|id| self.channels.is_own(id.0)).collect();
        for id in ids {
            self.renew_pairs(id, now, outbox);
        }
    }

    /// Starts handshakes with a peer of this engine, except where one is under way. With `anew`,
    /// also with the pair whose session is in use. Ignores unknown peers.
    pub(crate) fn greet(&mut self, id: PeerId, anew: bool, now: Instant, outbox: &mut Outbox<'_>) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.expire(now);
            peer.start_handshakes(now, outbox);
            if anew {
                peer.look_for(now, outbox);
            }
            peer.conclude(&mut self.around);
        }
    }

    /// The peers installed in all engines, ordered by id.
    pub(crate) fn configs(&self) -> Vec<PeerConfig> {
        let mut configs: Vec<_> = self.peers.values().map(|peer| peer.config.clone()).collect();
        configs.sort_by_key(|config| config.id);
        configs
    }

    /// The statistics of this engine's peers.
    pub(crate) fn stats(&self) -> Vec<PeerStats> {
        let own = self.peers.values().filter(|peer| self.channels.is_own(peer.config.id.0));
        own.map(|peer| peer.stats(self.channels.own())).collect()
    }

    /// Removes what the peer should no longer have. Its endpoint is added again with the rest.
    fn release(&mut self, id: PeerId, wanted: Option<&PeerConfig>) {
        let Some(peer) = self.peers.get(&id) else { return };
        for address in peer.config.addresses() {
            if self.by_endpoint.get(&address) == Some(&id) {
                self.by_endpoint.remove(&address);
            }
        }
        for prefix in &peer.config.allowed {
            if wanted.is_none_or(|wanted| !wanted.allowed.contains(prefix)) {
                self.allowed.remove(*prefix, id);
            }
        }
        for key in &peer.config.keys {
            if wanted.is_none_or(|wanted| wanted.keys.iter().all(|kept| kept.public != key.public)) {
                self.by_key.remove(&key.public);
            }
        }
    }

    fn put(&mut self, config: PeerConfig, now: Instant, outbox: &mut Outbox<'_>) {
        let id = config.id;
        for prefix in &config.allowed {
            self.allowed.insert(*prefix, id);
        }
        for key in &config.keys {
            self.by_key.insert(key.public, id);
        }
        for address in config.addresses() {
            self.by_endpoint.insert(address, id);
        }
        let peer = self.peers.entry(id).or_insert_with(|| Peer::new(config.clone()));
        let new_keys = peer.config.keys != config.keys || peer.pairs.is_empty();
        let new_endpoint = !peer.config.addresses().eq(config.addresses());
        peer.config = config;
        if !self.channels.is_own(id.0) {
            return;
        }
        if new_keys || new_endpoint {
            peer.forgive();
        }
        if new_keys {
            self.renew_pairs(id, now, outbox);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            if new_endpoint {
                peer.retry_handshakes(now, outbox);
            }
            peer.conclude(&mut self.around);
        }
    }

    fn remove(&mut self, id: PeerId) {
        if let Some(mut peer) = self.peers.remove(&id) {
            peer.drop_waiting(TunnelDrop::NoPeer, &self.around);
            self.around.schedule.disarm(id);
            for pair in &peer.pairs {
                self.by_index.remove(&pair.index);
            }
        }
    }

    /// Makes a pair for each key of this node with each key of the peer, and keeps existing pairs.
    fn renew_pairs(&mut self, id: PeerId, now: Instant, outbox: &mut Outbox<'_>) {
        let Some(mut peer) = self.peers.remove(&id) else { return };
        let mut old = std::mem::take(&mut peer.pairs);
        for identity in &self.identities {
            for key in &peer.config.keys {
                let pair = match old.iter().position(|pair| pair.is_of(identity, &key.public)) {
                    Some(position) => {
                        let mut kept = old.swap_remove(position);
                        kept.remote_epoch = key.epoch;
                        kept
                    }
                    None => {
                        let index = free_index(&mut self.next_index, self.channels.own(), &self.by_index);
                        self.by_index.insert(index, id);
                        Pair::new(identity.clone(), key, index, self.around.settings.cipher)
                    }
                };
                peer.pairs.push(pair);
            }
        }
        for gone in &old {
            self.by_index.remove(&gone.index);
        }
        // There is traffic: make the newer sessions while an older one may still carry it.
        if peer.is_established() || peer.has_waiting() {
            peer.start_handshakes(now, outbox);
        }
        peer.conclude(&mut self.around);
        self.peers.insert(id, peer);
    }

    /// Handles an initiation.
    fn open_initiation(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        sender: u32,
        noise: &[u8; INITIATION_NOISE],
        outbox: &mut Outbox<'_>,
    ) -> Result<(), TunnelDrop> {
        let (identity, proof) = self.pass_gate(datagram, outbox)?;
        // Only messages that prove their source address count towards its limit.
        if proof == Proof::Address && !self.sources.admit(now, datagram.from.ip()) {
            return Err(TunnelDrop::SourceRateLimited);
        }
        let responder = Responder::begin(&identity.secret, &identity.public, noise)?;
        let Some(id) = self.by_key.get(responder.remote().as_bytes()).copied() else {
            self.around.settings.strangers.note(datagram.from, now);
            return Err(TunnelDrop::UnknownSender);
        };
        if self.channels.is_own(id.0) {
            return self.answer_initiation(now, (id, datagram.from), &identity, sender, responder, outbox);
        }
        let from = datagram.from;
        let answer = move |protocol: &mut WireGuard, now, _: &mut dyn Inbox, outbox: &mut Outbox<'_>| {
            let answered = protocol.answer_initiation(now, (id, from), &identity, sender, responder, outbox);
            protocol.count(answered);
        };
        self.hand_over(self.channels.engine_of(id.0), datagram.bytes.len(), answer)
    }

    /// Handles an initiation from one of this engine's peers.
    fn answer_initiation(
        &mut self,
        now: Instant,
        (id, from): (PeerId, SocketAddr),
        identity: &Identity,
        sender: u32,
        responder: Responder,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), TunnelDrop> {
        let peer = self.peers.get_mut(&id).ok_or(TunnelDrop::UnknownSender)?;
        let remote = responder.remote().as_bytes();
        let pair = peer.pairs.iter().position(|pair| pair.is_of(identity, remote)).ok_or(TunnelDrop::UnknownSender)?;
        let message = HandshakeMessage::Initiation { sender, responder };
        peer.shake_hands(now, from, pair, message, &mut self.around, outbox);
        Ok(())
    }

    /// Handles a response or a cookie reply.
    fn open_answer(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        receiver: u32,
        answer: HandshakeMessage<'_>,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), TunnelDrop> {
        let (_, peer, pair) = find(&mut self.peers, &self.by_index, receiver)?;
        if let HandshakeMessage::Response { .. } = answer {
            peer.pairs[pair].identity().admit(datagram, outbox)?;
        }
        peer.shake_hands(now, datagram.from, pair, answer, &mut self.around, outbox);
        Ok(())
    }

    /// Handles data messages for a session: the first one, and as many of the rest as are for the
    /// same session.
    fn open_data<'d>(
        &mut self,
        now: Instant,
        mut datagram: Datagram<'d>,
        mut data: Data<'d>,
        rest: &mut Peekable<impl Iterator<Item = Datagram<'d>>>,
        inbox: &mut dyn Inbox,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), TunnelDrop> {
        let (id, peer, pair) = find(&mut self.peers, &self.by_index, data.receiver)?;
        if peer.config.endpoint.is_none() {
            // Without a configured endpoint, nothing is sent to the peer, so nothing is accepted
            // either.
            peer.drop_packet(TunnelDrop::NoEndpoint, &self.around);
            return Ok(());
        }
        peer.expire(now);
        // Packets of one flow come together, so the result for the last source is kept.
        let mut source = None;
        let allowed = &self.allowed;
        let mut is_allowed = |address: IpAddr| {
            if source.is_none_or(|(known, _)| known != address) {
                source = Some((address, allowed.lookup(address) == Some(id)));
            }
            source.is_some_and(|(_, is_allowed)| is_allowed)
        };
        loop {
            if let Some(length) = peer.open(now, pair, (data, datagram.from), inbox.room(), &mut self.around, outbox) {
                let packet = &mut inbox.room()[..length];
                // There may be padding behind the packet; the packet's own header says where it
                // ends.
                match ip::envelope(packet) {
                    None => peer.drop_packet(TunnelDrop::Malformed, &self.around),
                    Some(envelope) if !is_allowed(envelope.source) => {
                        peer.drop_packet(TunnelDrop::SourceNotAllowed, &self.around);
                    }
                    Some(envelope) => {
                        ip::mark_congestion(datagram.ecn, packet);
                        peer.count_received();
                        inbox.deliver(envelope.length);
                    }
                }
            }
            let Some((next, alike)) = rest.peek().and_then(|next| Some((*next, data.alike(next.bytes)?))) else {
                break;
            };
            rest.next();
            (datagram, data) = (next, alike);
        }
        peer.finish_receiving(now, pair, &mut self.around, outbox);
        Ok(())
    }

    /// Handles data for an unknown session from the endpoint of a peer. One of the two nodes has
    /// restarted. A handshake tells the peer so; otherwise it would notice only after 15 s of
    /// silence. A forged message makes this node start a handshake with a configured peer, at most
    /// once per session lifetime.
    fn greet_sender(&mut self, now: Instant, from: SocketAddr, outbox: &mut Outbox<'_>) {
        let Some(id) = self.by_endpoint.get(&from).copied() else { return };
        if self.channels.is_own(id.0) {
            self.greet_stranger(id, now, outbox);
        } else {
            let greet = move |protocol: &mut WireGuard, now, _: &mut dyn Inbox, outbox: &mut Outbox<'_>| {
                protocol.greet_stranger(id, now, outbox);
            };
            // If the engine has too much to do, more messages of that peer will follow.
            let _ = self.hand_over(self.channels.engine_of(id.0), 0, greet);
        }
    }

    fn greet_stranger(&mut self, id: PeerId, now: Instant, outbox: &mut Outbox<'_>) {
        if self.peers.get(&id).is_some_and(|peer| !peer.is_established()) {
            self.greet(id, false, now, outbox);
        }
    }

    fn count(&self, outcome: Result<(), TunnelDrop>) {
        if let Err(reason) = outcome {
            self.around.settings.counters.drop_packet(reason);
        }
    }

    /// Admits an initiation that was made for a key of this node, and returns that key.
    fn pass_gate(&self, datagram: Datagram<'_>, outbox: &mut Outbox<'_>) -> Result<(Arc<Identity>, Proof), TunnelDrop> {
        for identity in &self.identities {
            match identity.admit(datagram, outbox) {
                Ok(proof) => return Ok((identity.clone(), proof)),
                Err(TunnelDrop::NotForOurKey) => {}
                Err(reason) => return Err(reason),
            }
        }
        Err(TunnelDrop::NotForOurKey)
    }
}

impl Protocol for WireGuard {
    fn seal(
        &mut self,
        now: Instant,
        destination: IpAddr,
        packets: &mut Segments<'_>,
        outbox: &mut Outbox<'_>,
    ) -> Result<(), Elsewhere> {
        let id = self.allowed.lookup(destination);
        if let Some(id) = id.filter(|id| !self.channels.is_own(id.0)) {
            return Err(Elsewhere { engine: self.channels.engine_of(id.0), packets: packets.extent().1 });
        }
        match id.and_then(|id| self.peers.get_mut(&id)) {
            Some(peer) => peer.send(now, packets, &mut self.around, outbox),
            None => {
                let reason = if destination.is_multicast() { TunnelDrop::Multicast } else { TunnelDrop::NoPeer };
                self.around.settings.counters.drop_packets(reason, packets.extent().1 as u64);
            }
        }
        Ok(())
    }

    fn open(&mut self, now: Instant, datagrams: Datagrams<'_>, inbox: &mut dyn Inbox, outbox: &mut Outbox<'_>) {
        let mut datagrams = datagrams.iter().peekable();
        while let Some(datagram) = datagrams.next() {
            let message = Message::parse(datagram.bytes);
            let engine = message.as_ref().map_or(self.channels.own(), |message| self.engine_of(message));
            let opened = match message {
                _ if engine != self.channels.own() => self.forward(engine, datagram),
                Some(Message::Initiation { sender, noise }) => {
                    self.open_initiation(now, datagram, sender, noise, outbox)
                }
                Some(Message::Response { sender, receiver, noise }) => {
                    let answer = HandshakeMessage::Response { sender, receiver, noise };
                    self.open_answer(now, datagram, receiver, answer, outbox)
                }
                Some(Message::CookieReply { receiver, nonce, sealed }) => {
                    let answer = HandshakeMessage::CookieReply { receiver, nonce, sealed };
                    self.open_answer(now, datagram, receiver, answer, outbox)
                }
                Some(Message::Data(data)) => {
                    let opened = self.open_data(now, datagram, data, &mut datagrams, inbox, outbox);
                    if opened == Err(TunnelDrop::UnknownSender) {
                        self.greet_sender(now, datagram.from, outbox);
                    }
                    opened
                }
                None => Err(TunnelDrop::Malformed),
            };
            self.count(opened);
        }
    }

    fn flows(&mut self, datagrams: Datagrams<'_>, flows: &mut Vec<Flow>) -> bool {
        // Only data messages contain packets.
        let mut messages = datagrams.iter().filter_map(|datagram| Data::of(datagram.bytes)).peekable();
        while let Some(first) = messages.next() {
            let Ok((_, peer, pair)) = find(&mut self.peers, &self.by_index, first.receiver) else { continue };
            let mut next = Some(first);
            while let Some(data) = next {
                let mut head = [0; HEAD];
                match peer.pairs[pair].peek(data, &mut head) {
                    Some(true) => flows.extend(ip::flow(&head)),
                    Some(false) => return false,
                    None => {}
                }
                next = messages.next_if(|data| data.receiver == first.receiver);
            }
        }
        flows.dedup();
        true
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        self.around.schedule.next()
    }

    fn on_deadline(&mut self, now: Instant, outbox: &mut Outbox<'_>) {
        while let Some(id) = self.around.schedule.pop_due(now) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.on_deadline(now, &mut self.around, outbox);
            }
        }
    }
}

/// The next index that no pair of this engine has. Pairs of other engines cannot have it.
fn free_index(next: &mut u32, engine: usize, taken: &HashMap<u32, PeerId>) -> u32 {
    const STEPS: u32 = (1 << INDEX_BITS) / MOST_ENGINES as u32;
    loop {
        *next = next.wrapping_add(1) % STEPS;
        let index = *next * MOST_ENGINES as u32 + engine as u32;
        if !taken.contains_key(&index) {
            return index;
        }
    }
}

/// The peer and the pair that a message is for.
fn find<'p>(
    peers: &'p mut HashMap<PeerId, Peer>,
    by_index: &HashMap<u32, PeerId>,
    receiver: u32,
) -> Result<(PeerId, &'p mut Peer, usize), TunnelDrop> {
    let index = receiver >> 8;
    let id = *by_index.get(&index).ok_or(TunnelDrop::UnknownSender)?;
    let peer = peers.get_mut(&id).ok_or(TunnelDrop::UnknownSender)?;
    let pair = peer.pairs.iter().position(|pair| pair.index == index).ok_or(TunnelDrop::UnknownSender)?;
    Ok((id, peer, pair))
}
