//! Finds pods that another CNI plugin connected, including those that existed before this agent,
//! and forgets those whose interface is gone.
//!
//! The runtime's cache ([`super::results`]) says which pod it is and which addresses it has. The
//! kernel says whether that is still true: an interface is adopted only if it exists and its other
//! end has the cached MAC address.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use hauberk_api::{Adopt, Attach, Attachment, MacAddress};
use hauberk_core::events::{NewEvent, reason};
use hauberk_core::model::Change;
use hauberk_core::names::AttachmentKey;
use hauberk_host::{HostError, Link, LinkKind, Netlink};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::results::{self, ForeignInterface};
use super::{Attachments, domain};
use crate::reconcile::Input;
use crate::state::SharedState;

/// Between looks without a reason: the runtime writes its file only after the interface exists.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// Between looks while something could not be attached yet, or a file has no matching interface
/// yet.
const SOON: Duration = Duration::from_millis(500);
/// How long a burst of device changes is gathered.
const SETTLE: Duration = Duration::from_millis(100);

/// See the module.
pub struct Adoption {
    attachments: Attachments,
    inputs: mpsc::Sender<Input>,
    agent: SharedState,
    results: Option<PathBuf>,
    done: watch::Sender<bool>,
    /// On record, but not in the datapath yet.
    pending: Vec<Attachment>,
}

impl Adoption {
    /// Looks for pods in `results`; without it, only forgets interfaces that are gone. The receiver
    /// tells when the pods that existed at the start are in the datapath.
    pub fn new(
        attachments: Attachments,
        inputs: mpsc::Sender<Input>,
        agent: SharedState,
        results: Option<PathBuf>,
    ) -> (Adoption, watch::Receiver<bool>) {
        let (done, adopted) = watch::channel(false);
        (Adoption { attachments, inputs, agent, results, done, pending: Vec::new() }, adopted)
    }

    /// Runs until the agent ends.
    ///
    /// # Errors
    /// [`HostError::Netlink`] if there are no sockets left.
    pub async fn run(mut self) -> Result<(), HostError> {
        let netlink = Netlink::connect()?;
        let mut changes = Netlink::watch()?;
        loop {
            let complete = self.look(&netlink).await;
            let pause = if complete { LOOK_AROUND } else { SOON };
            if self.inputs.is_closed() {
                return Ok(());
            }
            wait(&mut changes, pause).await;
        }
    }

    /// One look. Returns whether nothing has to be retried soon.
    async fn look(&mut self, netlink: &Netlink) -> bool {
        let links = match netlink.links().await {
            Ok(links) => links,
            Err(error) => {
                warn!(%error, "cannot look for pods' interfaces");
                return false;
            }
        };
        self.forget(&links).await;
        let found = self.find(netlink, &links).await;
        self.attach().await;
        let complete = found && self.pending.is_empty();
        if complete && self.agent.read().running.is_some() {
            self.done.send_if_modified(|done| !std::mem::replace(done, true));
        }
        complete
    }

    async fn forget(&mut self, links: &[Link]) {
        let exists = |name: &str, index: u32| links.iter().any(|link| link.index == index && link.name == name);
        let gone = self.attachments.vanished(exists);
        for key in gone {
            self.pending.retain(|attachment| domain::key(attachment) != key);
            let (input, answer) = Input::release(key.clone());
            if self.inputs.send(input).await.is_err() || !matches!(answer.await, Ok(Ok(()))) {
                continue;
            }
            let AttachmentKey { container, interface } = key.clone();
            match self.attachments.change(move |keeper| keeper.release(&key.container, &key.interface)).await {
                Ok(_) => info!(container, interface, "its interface, which another plugin made, is gone"),
                Err(error) => warn!(%error, "cannot forget an interface that is gone"),
            }
        }
    }

    /// Puts new interfaces on record. Returns whether the runtime's cache could be read.
    async fn find(&mut self, netlink: &Netlink, links: &[Link]) -> bool {
        let Some(folder) = self.results.clone() else { return true };
        let read = tokio::task::spawn_blocking(move || (results::read(&folder), folder)).await;
        let (told, problems) = match read {
            Ok((Ok(read), _)) => read,
            Ok((Err(error), folder)) => {
                self.note(
                    &folder.display().to_string(),
                    format!("cannot look for pods in {}: {error}", folder.display()),
                );
                return false;
            }
            Err(_) => return false,
        };
        for problem in problems {
            let file = problem.split(": ").next().unwrap_or_default().to_owned();
            self.note(&file, problem);
        }
        let ids: BTreeSet<AttachmentKey> = told.iter().map(|one| domain::key_of_request(&one.request)).collect();
        self.attachments.forget_released(&ids);
        for one in told {
            if self.attachments.is_known(&domain::key_of_request(&one.request)) {
                continue;
            }
            let Some(adopt) = match_link(netlink, links, &one).await else { continue };
            match self.attachments.change(move |keeper| keeper.adopt(&adopt)).await {
                Ok((attachment, superseded)) => {
                    let container = &attachment.request.container;
                    let interface = &attachment.reservation.host_interface;
                    info!(container, pod = ?attachment.request.pod, interface, "adopted a pod");
                    let gone = superseded.iter().map(|old| Change::AttachmentGone(domain::key(old))).collect();
                    let _ = self.inputs.send(Input::Changes(gone)).await;
                    self.pending.push(attachment);
                }
                Err(error) => self.note(&one.request.container, error.to_string()),
            }
        }
        true
    }

    async fn attach(&mut self) {
        for attachment in std::mem::take(&mut self.pending) {
            let (input, answer) = Input::attach(&attachment);
            if self.inputs.send(input).await.is_err() || !matches!(answer.await, Ok(Ok(()))) {
                self.pending.push(attachment);
            }
        }
    }

    fn note(&self, object: &str, message: String) {
        let objects = vec![format!("Attachment/{object}")];
        let event = NewEvent { warning: true, reason: reason::ATTACHMENT_INVALID, objects, message };
        if self.agent.write().events.note(&event, Timestamp::now()) {
            warn!(reason = event.reason, objects = ?event.objects, "{}", event.message);
        }
    }
}

/// Waits for a change of a device and the end of its burst, or for `pause`.
async fn wait(changes: &mut (impl Stream<Item = ()> + Unpin), pause: Duration) {
    if tokio::time::timeout(pause, changes.next()).await.is_ok() {
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(())) = changes.next().now_or_never() {}
    }
}

/// The interface that the result describes, if it exists: one of those named, or the host side of
/// any pair whose other end has the given name and MAC address.
async fn match_link(netlink: &Netlink, links: &[Link], result: &ForeignInterface) -> Option<Adopt> {
    let pairs = links.iter().filter(|link| link.kind == LinkKind::Veth && link.peer.is_some());
    let named = |link: &&Link| result.host_interfaces.contains(&link.name);
    let candidates: Vec<&Link> = match result.pod_mac {
        Some(_) if !pairs.clone().any(|link| named(&link)) => pairs.collect(),
        _ => pairs.filter(named).collect(),
    };
    for link in candidates {
        let peer = match netlink.peer(link).await {
            Ok(Some(peer)) => peer,
            Ok(None) => continue,
            Err(error) => {
                warn!(%error, "cannot tell whose interface this is; it is not adopted yet");
                continue;
            }
        };
        let mac = |link: &Link| link.mac.map(MacAddress::from);
        let (Some(host_mac), Some(pod_mac)) = (mac(link), mac(&peer)) else { continue };
        let is_its_mac = result.pod_mac.as_ref().is_none_or(|mac| *mac == pod_mac.to_string());
        if peer.name == result.request.interface && is_its_mac {
            return Some(Adopt {
                request: result.request.clone(),
                addresses: result.addresses.clone(),
                host_interface: link.name.clone(),
                attach: Attach { host_index: link.index, host_mac, pod_mac },
            });
        }
    }
    None
}
