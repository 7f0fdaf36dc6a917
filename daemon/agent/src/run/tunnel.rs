//! What the tunnel is started with, and what the other nodes are told about it.

use std::sync::Arc;
use std::time::Duration;

use hauberk_backend::{LocalKey, StartConfig};
use hauberk_keyring::{NodeKey, PublicKey, Published, Store};
use tokio::sync::mpsc;
use tracing::warn;

use crate::config::Config;
use crate::reconcile::Input;

/// What the other nodes need to reach this one.
pub(super) fn publish(config: &Config, keys: &[NodeKey]) -> String {
    hauberk_keyring::published::render(&Published { port: config.tunnel.port, keys: public_keys(keys) })
}

pub(super) fn public_keys(keys: &[NodeKey]) -> Vec<PublicKey> {
    keys.iter().map(|key| PublicKey { epoch: key.epoch, bytes: key.public }).collect()
}

pub(super) fn maker(
    config: &Arc<Config>,
    keys: Arc<Store>,
    inputs: mpsc::Sender<Input>,
) -> Box<dyn Fn(u32) -> StartConfig + Send + Sync> {
    let tunnel = config.tunnel.clone();
    Box::new(move |mtu| {
        let inputs = inputs.clone();
        StartConfig {
            device: tunnel.device.clone(),
            mtu,
            port: tunnel.port,
            keys: keys.keys().iter().map(|key| LocalKey { epoch: key.epoch, secret: key.secret.expose() }).collect(),
            handshakes_per_second: u64::from(tunnel.handshakes_per_second),
            spin: Duration::from_micros(tunnel.spin_microseconds.into()),
            copy_dscp: tunnel.copy_dscp,
            threads: tunnel.threads(),
            cipher: tunnel.cipher,
            // This runs on the tunnel's own thread, which must not wait. If the queue is full, the
            // next state change reports the state again, and permissive traffic waits until then.
            on_state: Box::new(move |number, progress| {
                if inputs.try_send(Input::Peer(number, progress)).is_err() {
                    warn!(peer = number.0, "the reconciler is busy: a change of a peer's state was not told");
                }
            }),
        }
    })
}
