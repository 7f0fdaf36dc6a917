//! The CNI plugin's calls: reserve, attach, release. Each is answered once the kernel holds what
//! was asked for.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hauberk_abi::address::Address;
use hauberk_api::{Adopt, Adopted, Attach, Attachment, FailedAdd, Reservation, Reserve};
use hauberk_core::model::Change;
use hauberk_core::names::AttachmentKey;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::warn;

use super::{Context, Refusal};
use crate::attachments::{AttachmentError, Keeper, check_names, domain};
use crate::reconcile::Input;

/// How long a caller waits for the disk at most; the plugin asks again.
const DISK: Duration = Duration::from_secs(3);

pub(super) async fn list(State(context): State<Context>) -> Json<Vec<Attachment>> {
    Json(context.attachments.list())
}

pub(super) async fn reserve(
    State(context): State<Context>,
    Json(request): Json<Reserve>,
) -> Result<Json<Reservation>, Refusal> {
    let agent = context.agent.clone();
    let reservation = change(&context, move |keeper| {
        // Only addresses of known owners matter. The state is not locked while this waits for the
        // disk.
        let claimed = |address| agent.read().desired.state.identities.endpoints.contains_key(&Address::from(address));
        let reservation = keeper.reserve(&request, claimed)?;
        let attach = keeper.find(&request.container, &request.interface).and_then(|known| known.attach);
        let attachment =
            Attachment { request, reservation: reservation.clone(), attach, adopted: false, recovered: false };
        Ok((reservation, vec![Input::Changes(vec![domain::change(&attachment)])]))
    })
    .await?;
    Ok(Json(reservation))
}

pub(super) async fn attach(
    State(context): State<Context>,
    Path((container, interface)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Result<StatusCode, Refusal> {
    let request: Attach = read(body, &container, &interface)?;
    let (answer, request) = change(&context, move |keeper| {
        let attachment = keeper.attach(&container, &interface, request)?;
        let request = attachment.request.clone();
        let (input, answer) = Input::attach(&attachment);
        Ok(((answer, request), vec![input]))
    })
    .await?;
    let attached = wait(answer).await?;
    context.agent.write().failed_adds.succeeded(&request);
    Ok(attached)
}

/// The answer has the tunnel's MTU, so it comes only once there is a tunnel.
pub(super) async fn adopt(State(context): State<Context>, Json(body): Json<Value>) -> Result<Json<Adopted>, Refusal> {
    let name = |of: &str| body["request"][of].as_str().unwrap_or_default().to_owned();
    let (container, interface) = (name("container"), name("interface"));
    let request: Adopt = read(body, &container, &interface)?;
    let whose = request.request.clone();
    let answer = change(&context, move |keeper| {
        let (attachment, superseded) = keeper.adopt(&request)?;
        let gone = superseded.iter().map(|gone| Change::AttachmentGone(domain::key(gone))).collect();
        let (input, answer) = Input::attach(&attachment);
        Ok((answer, vec![Input::Changes(gone), input]))
    })
    .await?;
    wait(answer).await?;
    context.agent.write().failed_adds.succeeded(&whose);
    let running = context.agent.read().running.as_ref().map(|running| running.mtu);
    let route_mtu = running.ok_or_else(|| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "there is no tunnel yet"))?;
    Ok(Json(Adopted { route_mtu }))
}

/// What the plugin could not do. A pod that has its interface lacks none: another ADD of it failed.
pub(super) async fn failed(
    State(context): State<Context>,
    Json(failed): Json<FailedAdd>,
) -> Result<StatusCode, Refusal> {
    let request = &failed.request;
    check_names(request).map_err(|error| Refusal::new(status_of(&error), error))?;
    let known = context.attachments.find(&request.container, &request.interface);
    if known.is_none_or(|known| known.attach.is_none()) {
        warn!(container = request.container, pod = ?request.pod, "hauberk-cni failed: {}", failed.message);
        let agent = &mut *context.agent.write();
        agent.failed_adds.note(failed, &agent.model, Instant::now());
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn release(
    State(context): State<Context>,
    Path((container, interface)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let key = AttachmentKey { container: container.clone(), interface: interface.clone() };
    // The kernel drops the interface before its address is free for another pod.
    let (input, answer) = Input::release(key.clone());
    context.inputs.send(input).await.map_err(|_| stopping())?;
    wait(answer).await?;
    change(&context, move |keeper| {
        keeper.release(&container, &interface)?;
        // An attachment that waited for the disk may have been told meanwhile.
        Ok(((), vec![Input::Changes(vec![Change::AttachmentGone(key)])]))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads what is asked for an interface; an error names the interface, and what is wrong of it.
fn read<T: DeserializeOwned>(body: Value, container: &str, interface: &str) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(body).map_err(|error| {
        let (field, why) = (error.path().to_string(), error.inner());
        let place = if field == "." { String::new() } else { format!("{field}: ") };
        let message = format!(
            "interface {interface:?} of container {container:?} cannot be attached: {place}{why}; are the CNI plugin and the \
             agent of different versions?"
        );
        Refusal::new(StatusCode::BAD_REQUEST, message)
    })
}

/// Changes the records and tells the reconciler. A change that has begun is completed, even if the
/// disk takes so long that the caller gives up: every record is told, in the order in which the
/// records changed.
async fn change<T: Send + 'static>(
    context: &Context,
    change: impl FnOnce(&mut Keeper) -> Result<(T, Vec<Input>), AttachmentError> + Send + 'static,
) -> Result<T, Refusal> {
    let keeper = tokio::time::timeout(DISK, context.attachments.keeper()).await.map_err(|_| late())?;
    let inputs = context.inputs.clone();
    let work = tokio::spawn(async move {
        let (keeper, (done, told)) =
            keeper.work(change).await.map_err(|error| Refusal::new(status_of(&error), error))?;
        for input in told {
            inputs.send(input).await.map_err(|_| stopping())?;
        }
        drop(keeper);
        Ok(done)
    });
    match tokio::time::timeout(DISK, work).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)),
        Err(_) => Err(late()),
    }
}

fn late() -> Refusal {
    let message = format!("the disk of paths.state has not answered for {} s; try again", DISK.as_secs());
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

fn status_of(error: &AttachmentError) -> StatusCode {
    match error {
        AttachmentError::Name { .. } | AttachmentError::NotAdoptable { .. } => StatusCode::BAD_REQUEST,
        AttachmentError::Unknown { .. } => StatusCode::NOT_FOUND,
        AttachmentError::NoRanges { .. } => StatusCode::SERVICE_UNAVAILABLE,
        AttachmentError::Exhausted { .. } | AttachmentError::TooMany { .. } => StatusCode::INSUFFICIENT_STORAGE,
        AttachmentError::Store(_) | AttachmentError::BrokenOff(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bad_mac_address_is_refused_with_the_interface_and_the_side() {
        let refused = |answer: Result<(), Refusal>| {
            let Refusal(status, error) = answer.unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            error
        };
        let attach = |mac: &str| json!({"host_index": 7, "host_mac": mac, "pod_mac": "02:00:00:00:00:02"});
        let read_attach = |mac: &str| read::<Attach>(attach(mac), "c1", "eth0").map(drop);
        assert!(read_attach("02:00:00:00:00:01").is_ok());
        for bad in ["", "no", "02:00:00:00:00"] {
            let error = refused(read_attach(bad));
            let expected =
                format!("interface \"eth0\" of container \"c1\" cannot be attached: host_mac: {bad:?} is not a");
            assert!(error.starts_with(&expected), "{error}");
        }
        let request = json!({"container": "c1", "interface": "eth0", "pod": null, "netns": "/x"});
        let adopt =
            json!({"request": request, "addresses": ["10.244.1.2"], "host_interface": "veth7", "attach": attach("no")});
        let error = refused(read::<Adopt>(adopt, "c1", "eth0").map(drop));
        assert!(error.contains("attached: attach.host_mac: \"no\" is not a MAC address"), "{error}");
        let error = refused(read::<Attach>(json!({"host_index": 7}), "c1", "eth0").map(drop));
        assert!(error.contains("attached: missing field `host_mac`"), "{error}");
    }
}
