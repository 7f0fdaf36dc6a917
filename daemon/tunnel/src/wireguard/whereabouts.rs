//! Where a peer is reached: at its endpoint, which the configuration names; while that does not answer, at one of the addresses that
//! the configuration names beside it, or, as behind a translation of addresses, where the peer itself was last heard.
//!
//! Only what the peer's key proves counts as hearing the peer, and nothing else follows from it: neither keys nor allowed
//! addresses. A peer without an endpoint is sent nothing.

use std::net::SocketAddr;

/// See the module.
#[derive(Default)]
pub(super) struct Whereabouts {
    /// Where else than at the endpoint it was heard, and not at the endpoint since.
    elsewhere: Option<SocketAddr>,
    /// The endpoint has answered, and has left no initiation unanswered since.
    answers: bool,
    /// The latest initiation went to the endpoint alone: whatever answers it, answers there.
    alone: bool,
    /// The endpoint was once asked alone since the peer was heard elsewhere.
    tried: bool,
}

impl Whereabouts {
    /// Where data goes.
    pub(super) fn destination(&self, endpoint: Option<SocketAddr>) -> Option<SocketAddr> {
        let endpoint = endpoint?;
        Some(if self.answers { endpoint } else { self.elsewhere.unwrap_or(endpoint) })
    }

    /// Where an initiation goes beside the endpoint: where the peer was heard, and to the next of its other addresses. `attempts`
    /// are those in this handshake, with this one.
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

    /// The peer sent something from there that its key proves.
    pub(super) fn hear(&mut self, endpoint: Option<SocketAddr>, from: SocketAddr) {
        if endpoint.is_some_and(|endpoint| is_same(endpoint, from)) {
            if !self.answers || self.elsewhere.is_some() {
                *self = Whereabouts { answers: true, alone: self.alone, ..Whereabouts::default() };
            }
        } else if self.elsewhere != Some(from) {
            self.elsewhere = Some(from);
        }
    }

    /// The peer began a handshake from there. From elsewhere, that may be because it hears nothing of what goes to the endpoint.
    pub(super) fn begin(&mut self, endpoint: Option<SocketAddr>, from: SocketAddr) {
        self.hear(endpoint, from);
        if self.elsewhere.is_some() {
            (self.answers, self.tried) = (false, false);
        }
    }

    /// The peer answered the latest initiation.
    pub(super) fn complete(&mut self, endpoint: Option<SocketAddr>, from: SocketAddr) {
        self.hear(endpoint, from);
        // Its answers may come from elsewhere although it is reached at the endpoint.
        self.answers |= self.alone;
    }

    /// Whether the endpoint is to be asked, because nothing says whether the peer is reached there.
    pub(super) fn is_doubtful(&self) -> bool {
        self.elsewhere.is_some() && !self.answers && !self.tried
    }
}

/// Whether two addresses are one: a scope that the kernel adds to an IPv6 address does not matter.
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
        // Where it was heard it is asked in any case.
        whereabouts.hear(Some(endpoint), two);
        assert_eq!(whereabouts.beside_endpoint(2, &[one, two]), [Some(two), Some(one)]);
        assert_eq!(whereabouts.beside_endpoint(3, &[one, two]), [Some(two), None]);
    }
}
