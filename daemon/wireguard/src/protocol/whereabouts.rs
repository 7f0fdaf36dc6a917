//! Where a peer is reached: at its configured endpoint. While that does not answer, at another
//! configured address of the peer, or where the peer was last heard, as behind an address
//! translator.
//!
//! A peer counts as heard only if its key proves it, and this changes nothing else: neither keys
//! nor allowed IPs. Nothing is sent to a peer without an endpoint.

use std::net::SocketAddr;

/// What is known about a peer's address; see the module.
#[derive(Default)]
pub(super) struct Whereabouts {
    /// An address other than the endpoint at which it was heard, if it has not been heard at the
    /// endpoint since.
    elsewhere: Option<SocketAddr>,
    /// The endpoint has answered, and no initiation has gone unanswered since.
    answers: bool,
    /// The latest initiation went to the endpoint alone, so an answer to it proves the endpoint.
    alone: bool,
    /// The endpoint has been sent an initiation since the peer was heard elsewhere.
    tried: bool,
}

impl Whereabouts {
    /// Where data is sent.
    pub(super) fn destination(&self, endpoint: Option<SocketAddr>) -> Option<SocketAddr> {
        let endpoint = endpoint?;
        Some(if self.answers { endpoint } else { self.elsewhere.unwrap_or(endpoint) })
    }

    /// Where else an initiation is sent: where the peer was heard, and to the next of its other
    /// addresses. `attempts` counts the initiations of this handshake, including this one.
    pub(super) fn beside_endpoint(&mut self, attempts: u32, fallbacks: &[SocketAddr]) -> [Option<SocketAddr>; 2] {
        if attempts > 1 {
            self.answers = false;
        }
        let elsewhere = self.elsewhere.filter(|_| !self.answers && (attempts > 1 || self.tried));
        let is_news = |other: &SocketAddr| elsewhere.is_none_or(|elsewhere| !is_same(elsewhere, *other));
        let turn = attempts.checked_sub(2).map(|turn| turn as usize);
        let fallback = turn.and_then(|turn| fallbacks.iter().cycle().nth(turn)).copied().filter(is_news);
        self.tried |= self.elsewhere.is_some();
        self.alone = elsewhere.is_none() && fallback.is_none();
        [elsewhere, fallback]
    }

    /// The peer sent a message from there that its key authenticates.
    pub(super) fn hear(&mut self, endpoint: Option<SocketAddr>, from: SocketAddr) {
        if endpoint.is_some_and(|endpoint| is_same(endpoint, from)) {
            if !self.answers || self.elsewhere.is_some() {
                *self = Whereabouts { answers: true, alone: self.alone, ..Whereabouts::default() };
            }
        } else if self.elsewhere != Some(from) {
            self.elsewhere = Some(from);
        }
    }

    /// The peer began a handshake from there. If that is not the endpoint, it may receive nothing
    /// that is sent to the endpoint.
    pub(super) fn begin(&mut self, endpoint: Option<SocketAddr>, from: SocketAddr) {
        self.hear(endpoint, from);
        if self.elsewhere.is_some() {
            (self.answers, self.tried) = (false, false);
        }
    }

    /// The peer answered the latest initiation.
    pub(super) fn complete(&mut self, endpoint: Option<SocketAddr>, from: SocketAddr) {
        self.hear(endpoint, from);
        // The answer may come from elsewhere although the peer is reached at the endpoint.
        self.answers |= self.alone;
    }

    /// Whether to send an initiation to the endpoint, because it is unknown whether the peer is
    /// reached there.
    pub(super) fn is_doubtful(&self) -> bool {
        self.elsewhere.is_some() && !self.answers && !self.tried
    }
}

/// Whether two addresses are the same, apart from the scope that the kernel adds to an IPv6
/// address.
pub(super) fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip() == other.ip() && one.port() == other.port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_addresses_are_asked_in_turn_from_the_second_attempt_on() {
        let [endpoint, one, two] = ["192.0.2.1:1", "[2001:db8::1]:1", "198.51.100.1:1"].map(|it| it.parse().unwrap());
        let mut whereabouts = Whereabouts::default();
        let mut asked = |attempts| whereabouts.beside_endpoint(attempts, &[one, two]);
        assert_eq!([1, 2, 3, 4].map(&mut asked), [[None; 2], [None, Some(one)], [None, Some(two)], [None, Some(one)]]);
        assert_eq!(whereabouts.beside_endpoint(2, &[]), [None; 2]);
        // The address at which the peer was heard is always tried.
        whereabouts.hear(Some(endpoint), two);
        assert_eq!(whereabouts.beside_endpoint(2, &[one, two]), [Some(two), Some(one)]);
        assert_eq!(whereabouts.beside_endpoint(3, &[one, two]), [Some(two), None]);
    }
}
