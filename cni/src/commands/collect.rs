//! GC: removes every attachment that the runtime does not list as valid, and tries all of them even
//! if some fail.

use hauberk_api::Attachment;

use crate::agent::Agent;
use crate::config::{NetworkConfig, ValidAttachment};
use crate::error::CniError;
use crate::network::netlink::Network;

/// Removes stale attachments. Returns the failures after all have been tried.
pub(super) async fn collect(config: &NetworkConfig) -> Result<(), CniError> {
    // Without the list, every attachment would count as stale.
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        CniError::Config("cni.dev/valid-attachments is missing: GC cannot know what must stay".to_string())
    })?;
    let agent = Agent::new(config);
    let attachments = agent.call(async |client| client.attachments().await).await?;
    let stale: Vec<Attachment> = attachments.into_iter().filter(|attachment| is_stale(attachment, valid)).collect();
    if stale.is_empty() {
        return Ok(());
    }
    let node = Network::of_node()?;
    let mut failures = Vec::new();
    for attachment in &stale {
        if let Err(error) = remove(&agent, &node, attachment).await {
            failures.push(format!("{}/{}: {error}", attachment.request.container, attachment.request.interface));
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(CniError::Leftovers { attachments: stale.len(), failures }),
    }
}

fn is_stale(attachment: &Attachment, valid: &[ValidAttachment]) -> bool {
    let request = &attachment.request;
    // Another plugin's interface is for that plugin to remove; the agent forgets it when it is
    // gone.
    !attachment.adopted
        && !valid.iter().any(|valid| valid.container == request.container && valid.interface == request.interface)
}

async fn remove(agent: &Agent, node: &Network, attachment: &Attachment) -> Result<(), CniError> {
    if let Some(link) = node.link(&attachment.reservation.host_interface).await?.filter(|link| link.veth) {
        node.remove_link(link.index).await?;
    }
    let request = &attachment.request;
    agent.call(async |client| client.detach(&request.container, &request.interface).await).await
}
