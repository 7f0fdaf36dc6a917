//! Forgets the addresses that nodes had ([`Change::AddressForgotten`]): somebody outside of the cluster may have one of them by then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hauberk_core::model::Change;
use tokio::sync::mpsc;

use crate::reconcile::Input;
use crate::world::Shared;

/// How long an address stays closed: longer than connections and caches of names that still lead to it.
const CLOSED: Duration = Duration::from_secs(3600);
/// Between looks.
const LOOK: Duration = Duration::from_secs(20);

/// Runs until the agent ends.
pub async fn forget(world: Shared, inputs: mpsc::Sender<Input>) {
    let mut since = Since::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let departed = world.read().model.departed().map(|(address, _)| address).collect();
        let forgotten: Vec<Change> = since.due(&departed, Instant::now()).map(Change::AddressForgotten).collect();
        if !forgotten.is_empty() && inputs.send(Input::Changes(forgotten)).await.is_err() {
            return;
        }
    }
}

/// Since when nobody has had an address.
#[derive(Debug, Default)]
struct Since(BTreeMap<IpAddr, Instant>);

impl Since {
    /// Those of `departed` that nobody has had for long enough.
    fn due(&mut self, departed: &BTreeSet<IpAddr>, now: Instant) -> impl Iterator<Item = IpAddr> {
        self.0.retain(|address, _| departed.contains(address));
        for address in departed {
            self.0.entry(*address).or_insert(now);
        }
        self.0.iter().filter(move |(_, since)| now.duration_since(**since) >= CLOSED).map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_forgotten_an_hour_after_it_went_for_the_last_time() {
        let (mut since, start) = (Since::default(), Instant::now());
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let mut due = |departed: &[IpAddr], minutes: u64| -> Vec<IpAddr> {
            since.due(&departed.iter().copied().collect(), start + Duration::from_secs(60 * minutes)).collect()
        };
        assert!(due(&[a], 0).is_empty());
        assert!(due(&[a, b], 59).is_empty());
        assert_eq!(due(&[a, b], 60), [a]);
        // A node had it in between.
        assert_eq!(due(&[a], 100), [a]);
        assert_eq!(due(&[a, b], 120), [a]);
        assert_eq!(due(&[a, b], 179), [a]);
        assert_eq!(due(&[b], 180), [b]);
    }
}
