//! The reconciler's inputs.

use std::time::Instant;

use hauberk_api::{Attachment, SourceStatus};
use hauberk_backend::Progress;
use hauberk_core::events::NewEvent;
use hauberk_core::model::Change;
use hauberk_core::names::{AttachmentKey, NodeNumber};
use tokio::sync::oneshot;

use crate::attachments::domain;
use crate::config::Config;

/// An input of the reconciler.
#[derive(Debug)]
pub enum Input {
    /// Objects changed.
    Changes(Vec<Change>),
    /// Objects changed; the source told it at this time.
    FromSource(Vec<Change>, Instant),
    /// A change that a caller waits for.
    Waiting(Box<Change>, Waiter),
    /// A peer's tunnel changed its state.
    Peer(NodeNumber, Progress),
    /// A device, an address or a route appeared, changed or disappeared.
    Devices,
    /// The source's own state, and its events.
    Source(Box<SourceStatus>, Vec<NewEvent>),
    /// The configuration changed in fields that the running agent can take over.
    Configuration(Box<Config>),
}

/// A caller that waits until an attachment is, or is not, in force.
#[derive(Debug)]
pub struct Waiter {
    /// The attachment.
    pub(super) key: AttachmentKey,
    /// Whether it waits for the attachment to be in force.
    pub(super) attached: bool,
    reply: oneshot::Sender<Result<(), String>>,
}

impl Waiter {
    pub(super) fn answer(self, answer: Result<(), String>) {
        // The caller may have given up.
        let _ = self.reply.send(answer);
    }
}

impl Input {
    /// A pod's interface is attached; the answer comes once the kernel holds it.
    pub fn attach(record: &Attachment) -> (Input, oneshot::Receiver<Result<(), String>>) {
        let key = domain::key(record);
        let (reply, answer) = oneshot::channel();
        (Input::Waiting(Box::new(domain::change(record)), Waiter { key, attached: true, reply }), answer)
    }

    /// A pod's interface is gone; the answer comes once the kernel holds nothing of it.
    pub fn release(key: AttachmentKey) -> (Input, oneshot::Receiver<Result<(), String>>) {
        let (reply, answer) = oneshot::channel();
        (Input::Waiting(Box::new(Change::AttachmentGone(key.clone())), Waiter { key, attached: false, reply }), answer)
    }
}
