//! What the reconciler is told.

use std::time::Instant;

use hauberk_api::{Attachment, SourceStatus};
use hauberk_core::events::NewEvent;
use hauberk_core::model::{AttachmentKey, Change, NodeNumber};
use tokio::sync::oneshot;

use crate::backend::Progress;
use crate::config::Config;

/// Something the reconciler should know.
#[derive(Debug)]
pub enum Input {
    /// Objects changed.
    Changes(Vec<Change>),
    /// Objects changed, as the source told at this time.
    Told(Vec<Change>, Instant),
    /// A change somebody waits for.
    Waiting(Box<Change>, Waiter),
    /// A peer's tunnel changed its state.
    Peer(NodeNumber, Progress),
    /// A device or an address came, changed or went.
    Devices,
    /// The source's own state, and what it has to say.
    Source(Box<SourceStatus>, Vec<NewEvent>),
    /// The configuration changed in what the running agent can take over.
    Configuration(Box<Config>),
}

/// Somebody who waits until an attachment is, or is not, in force.
#[derive(Debug)]
pub struct Waiter {
    /// Which attachment.
    pub(super) key: AttachmentKey,
    /// In force or not.
    pub(super) attached: bool,
    reply: oneshot::Sender<Result<(), String>>,
}

impl Waiter {
    pub(super) fn answer(self, answer: Result<(), String>) {
        // Who waited may have given up.
        let _ = self.reply.send(answer);
    }
}

impl Input {
    /// A pod's interface is attached; the answer comes once the kernel holds it.
    pub fn attach(attachment: Attachment) -> (Input, oneshot::Receiver<Result<(), String>>) {
        let key = AttachmentKey::of(&attachment);
        let (reply, answer) = oneshot::channel();
        (Input::Waiting(Box::new(Change::Attachment(attachment)), Waiter { key, attached: true, reply }), answer)
    }

    /// A pod's interface is no more; the answer comes once the kernel holds nothing of it.
    pub fn release(key: AttachmentKey) -> (Input, oneshot::Receiver<Result<(), String>>) {
        let (reply, answer) = oneshot::channel();
        (Input::Waiting(Box::new(Change::AttachmentGone(key.clone())), Waiter { key, attached: false, reply }), answer)
    }
}
