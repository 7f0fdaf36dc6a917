//! The CNI plugin's calls: reserve, attach, release. Each is answered when the kernel holds what was asked for.

use std::sync::PoisonError;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hauberk_abi::address::Address;
use hauberk_core::api::{Adopt, Adopted, Attach, Attachment, Reservation, Reserve};
use hauberk_core::model::{AttachmentKey, Change};

use super::{Context, Refusal};
use crate::attachments::{AttachmentError, Attachments};
use crate::reconcile::Input;

pub(super) async fn list(State(context): State<Context>) -> Result<Json<Vec<Attachment>>, Refusal> {
    with(&context, |attachments, _| Ok(attachments.list().cloned().collect())).await.map(Json)
}

pub(super) async fn reserve(
    State(context): State<Context>,
    Json(request): Json<Reserve>,
) -> Result<Json<Reservation>, Refusal> {
    let attachment = with(&context, move |attachments, context| {
        // Only addresses somebody is known to have matter; which endpoints there are is read under the world's lock.
        let world = context.world.read();
        let claimed = |address| world.desired.endpoints.contains_key(&Address::from(address));
        let reservation = attachments.reserve(&request, claimed)?;
        let attach = attachments.find(&request.container, &request.interface).and_then(|known| known.attach.clone());
        Ok(Attachment { request, reservation, attach, adopted: false })
    })
    .await?;
    let reservation = attachment.reservation.clone();
    tell(&context, Input::Changes(vec![Change::Attachment(attachment)])).await?;
    Ok(Json(reservation))
}

pub(super) async fn attach(
    State(context): State<Context>,
    Path((container, interface)): Path<(String, String)>,
    Json(request): Json<Attach>,
) -> Result<StatusCode, Refusal> {
    let attachment = with(&context, move |attachments, _| attachments.attach(&container, &interface, request)).await?;
    let (input, answer) = Input::attach(attachment);
    tell(&context, input).await?;
    wait(answer).await
}

/// Answered with the tunnel's MTU, hence only once there is a tunnel.
pub(super) async fn adopt(
    State(context): State<Context>,
    Json(request): Json<Adopt>,
) -> Result<Json<Adopted>, Refusal> {
    let (attachment, superseded) = with(&context, move |attachments, _| attachments.adopt(&request)).await?;
    for gone in superseded {
        tell(&context, Input::Changes(vec![Change::AttachmentGone(AttachmentKey::of(&gone))])).await?;
    }
    let (input, answer) = Input::attach(attachment);
    tell(&context, input).await?;
    wait(answer).await?;
    let running = context.world.read().running.as_ref().map(|running| running.mtu);
    let route_mtu = running.ok_or_else(|| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "there is no tunnel yet"))?;
    Ok(Json(Adopted { route_mtu }))
}

pub(super) async fn release(
    State(context): State<Context>,
    Path((container, interface)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let key = AttachmentKey { container: container.clone(), interface: interface.clone() };
    // The kernel lets go before the address is free for another pod.
    let (input, answer) = Input::release(key);
    tell(&context, input).await?;
    wait(answer).await?;
    with(&context, move |attachments, _| attachments.release(&container, &interface)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Runs a call on the attachments, which writes files, on a blocking thread.
async fn with<T: Send + 'static>(
    context: &Context,
    call: impl FnOnce(&mut Attachments, &Context) -> Result<T, AttachmentError> + Send + 'static,
) -> Result<T, Refusal> {
    let context = context.clone();
    let done = tokio::task::spawn_blocking(move || {
        let attachments = context.attachments.clone();
        let mut attachments = attachments.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut attachments, &context)
    });
    match done.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Refusal::new(status_of(&error), error)),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)),
    }
}

fn status_of(error: &AttachmentError) -> StatusCode {
    match error {
        AttachmentError::Name { .. } | AttachmentError::NotAdoptable { .. } => StatusCode::BAD_REQUEST,
        AttachmentError::Unknown { .. } => StatusCode::NOT_FOUND,
        AttachmentError::NoRanges { .. } => StatusCode::SERVICE_UNAVAILABLE,
        AttachmentError::Exhausted { .. } | AttachmentError::TooMany { .. } => StatusCode::INSUFFICIENT_STORAGE,
        AttachmentError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn tell(context: &Context, input: Input) -> Result<(), Refusal> {
    context.inputs.send(input).await.map_err(|_| stopping())
}

async fn wait(answer: tokio::sync::oneshot::Receiver<Result<(), String>>) -> Result<StatusCode, Refusal> {
    match answer.await {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(reason)) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
        Err(_) => Err(stopping()),
    }
}

fn stopping() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping; try again once it is back")
}
