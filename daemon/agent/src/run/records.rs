//! What an earlier agent has left of this node's pods: records and interfaces.

use std::path::PathBuf;

use hauberk_api::{Attachment, Problem};
use hauberk_core::events::{NewEvent, reason};
use hauberk_core::local_node::LocalNode;
use hauberk_core::names::AttachmentKey;
use tracing::{info, warn};

use super::{RunError, warning};
use crate::apply::Prepared;
use crate::attachments::{self, Attachments};
use crate::config::Config;
use crate::reconcile::tunnelled_ranges;

/// The records of pods' interfaces. A record whose interface is gone, as after a reboot, only keeps
/// its addresses. An interface that exists in the kernel but has no record gets one again, and the
/// event says so.
pub(super) async fn restore(
    config: &Config,
    local: &LocalNode,
    prepared: &Prepared,
) -> Result<(Attachments, Vec<Problem>, Option<NewEvent>), RunError> {
    let folder: PathBuf = config.paths.state.join("attachments");
    let (attachments, sentences) = Attachments::open(folder, attachments::Settings::default())?;
    let held = prepared.held().await?;
    let route_mtu = prepared.earlier_tunnel_mtu();
    let given = attachments::Settings {
        cluster_ranges: tunnelled_ranges(&local.settings),
        route_mtu,
        gso_max_size: config.tunnel.backend.mechanism().gso_max_size(route_mtu),
        ..attachments::Settings::default()
    };
    let recovered = attachments.change(move |keeper| keeper.recover(&held, &given)).await?;
    let event = (!recovered.is_empty()).then(|| told(&local.name, config, &recovered));
    let interfaces = prepared.interfaces().await?;
    let exists = move |name: &str, index: u32| interfaces.iter().any(|(n, i)| n == name && *i == index);
    let vanished = attachments.vanished(&exists);
    match attachments.change(move |keeper| keeper.detach_missing(exists)).await {
        Ok(gone) => {
            for attachment in gone {
                info!(
                    container = attachment.request.container,
                    "its interface is gone; its addresses stay reserved until the runtime deletes it"
                );
            }
        }
        Err(error) => warn!(%error, "cannot note that interfaces are gone"),
    }
    for AttachmentKey { container, interface } in vanished {
        info!(container, interface, "its interface, which another plugin made, is gone");
        if let Err(error) = attachments.change(move |keeper| keeper.release(&container, &interface)).await {
            warn!(%error, "cannot forget an interface that is gone");
        }
    }
    let problems = sentences.into_iter().map(|sentence| warning("attachments", sentence)).collect();
    Ok((attachments, problems, event))
}

fn told(node: &str, config: &Config, recovered: &[Attachment]) -> NewEvent {
    let names: Vec<&str> = recovered.iter().take(3).map(|pod| pod.reservation.host_interface.as_str()).collect();
    let more = if recovered.len() > names.len() { ", ..." } else { "" };
    let message = format!(
        "{} of this node's pods had an interface and were on no record in {}, which was lost or is another than before \
         (paths.state): they are on record again as the kernel has them, and go on ({}{more})",
        recovered.len(),
        config.paths.state.display(),
        names.join(", "),
    );
    let objects = vec![format!("Node/{node}")];
    NewEvent { warning: true, reason: reason::ATTACHMENTS_RECOVERED, objects, message }
}
