//! Tasks that tell the reconciler what changed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use hauberk_host::Netlink;
use hauberk_source::{Batch, Source};
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

use crate::reconcile::Input;

/// How long a burst of device changes is gathered.
const SETTLE: Duration = Duration::from_millis(50);

/// Passes batches from the source to the reconciler, each with the source's own state.
pub(super) async fn tell_reconciler(
    source: Arc<dyn Source>,
    inputs: mpsc::Sender<Input>,
    stopped: watch::Receiver<bool>,
) {
    let (sender, mut batches) = mpsc::channel::<Batch>(64);
    let running = tokio::spawn(Arc::clone(&source).run(sender, stopped));
    let mut look = tokio::time::interval(Duration::from_secs(1));
    let mut told = None;
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else { break };
                let status = Input::Source(Box::new(source.status()), batch.events);
                let told = Input::FromSource(batch.changes, std::time::Instant::now());
                if inputs.send(told).await.is_err() || inputs.send(status).await.is_err() {
                    return;
                }
            }
            _ = look.tick() => {
                let status = source.status();
                let key = (status.synced, status.unavailable_since, status.rejected);
                if told.replace(key) != Some(key) && inputs.send(Input::Source(Box::new(status), Vec::new())).await.is_err() {
                    return;
                }
            }
        }
    }
    if let Ok(Err(error)) = running.await {
        error!(%error, "the source has stopped; what was known stays in force");
    }
}

/// Tells the reconciler when devices change: once for a burst, for example when pods arrive.
pub(super) async fn watch_devices(inputs: mpsc::Sender<Input>) {
    let mut changes = match Netlink::watch() {
        Ok(changes) => changes,
        Err(error) => return warn!(%error, "new uplinks are found by looking around only"),
    };
    while changes.next().await.is_some() {
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(())) = changes.next().now_or_never() {}
        if inputs.send(Input::Devices).await.is_err() {
            return;
        }
    }
}
