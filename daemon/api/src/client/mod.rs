//! Client of the agent's API ([`crate`]): JSON over HTTP on a unix socket. The CLI, the
//! CNI plugin and the test harness use only this client to talk to the agent.
//!
//! One connection per call: the agent is on the same machine, and a call that hangs cannot block
//! the next one. Every call has a deadline.

mod error;
mod lines;
mod transport;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::{
    Adopt, Adopted, Attach, Attachment, Drops, Event, Explanation, FailedAdd, FlowRecord, Maps, Reservation, Reserve,
    Service, Status,
};
pub use error::ClientError;
pub use lines::Lines;

/// The agent's socket, unless its configuration names another.
pub const DEFAULT_SOCKET: &str = "/run/hauberk/agent.sock";

/// The deadline of a call, unless [`Client::with_deadline`] sets another.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Calls one node's agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

/// The answer of `GET /readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The datapath is attached and proven.
    Ready,
    /// Not yet, or no longer, with the agent's explanation.
    NotReady(String),
}

impl Client {
    /// A client of the agent that listens on `socket`. It connects only when a method is called.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into(), deadline: DEFAULT_DEADLINE }
    }

    /// The same client with another deadline for each call.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Client {
        Client { deadline, ..self }
    }

    /// The socket that this client connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.read("/v1/status").await
    }

    /// `GET /v1/explain`: both ends as pod (`namespace/name`), node name or address.
    pub async fn explain(&self, source: &str, destination: &str) -> Result<Explanation, ClientError> {
        let (source, destination) = (percent_encoded(source), percent_encoded(destination));
        self.read(&format!("/v1/explain?source={source}&destination={destination}")).await
    }

    /// `GET /v1/flows`: the flows in the table now; with `follow` also later events, without end.
    /// The deadline applies to the beginning of the answer, and without `follow` also to each line.
    pub async fn flows(&self, follow: bool) -> Result<Lines<FlowRecord>, ClientError> {
        let path = if follow { "/v1/flows?follow=true" } else { "/v1/flows" };
        let response = self.call(Method::GET, path, None).await?;
        Ok(Lines::new(self.socket.clone(), response, (!follow).then_some(self.deadline)))
    }

    /// `GET /v1/drops`.
    pub async fn drops(&self) -> Result<Drops, ClientError> {
        self.read("/v1/drops").await
    }

    /// `GET /v1/maps`.
    pub async fn maps(&self) -> Result<Maps, ClientError> {
        self.read("/v1/maps").await
    }

    /// `GET /v1/events`.
    pub async fn events(&self) -> Result<Vec<Event>, ClientError> {
        self.read("/v1/events").await
    }

    /// `GET /v1/services`: all of them, or those of a namespace, with a name, or both.
    pub async fn services(&self, namespace: Option<&str>, name: Option<&str>) -> Result<Vec<Service>, ClientError> {
        self.read(&services_path(namespace, name)).await
    }

    /// `GET /v1/attachments`.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, ClientError> {
        self.read("/v1/attachments").await
    }

    /// `POST /v1/attachments`: addresses for a pod's interface. The same id again gets the same
    /// answer.
    pub async fn reserve(&self, request: &Reserve) -> Result<Reservation, ClientError> {
        let body = transport::encode(request)?;
        self.answer(Method::POST, "/v1/attachments", Some(body)).await
    }

    /// `POST .../attach`: returns when the datapath holds the interface.
    pub async fn attach(&self, container: &str, interface: &str, attach: &Attach) -> Result<(), ClientError> {
        let body = transport::encode(attach)?;
        self.call(Method::POST, &format!("{}/attach", attachment_path(container, interface)), Some(body)).await?;
        Ok(())
    }

    /// `POST /v1/attachments/adopt`: returns when the datapath holds the interface that another
    /// plugin made.
    pub async fn adopt(&self, request: &Adopt) -> Result<Adopted, ClientError> {
        let body = transport::encode(request)?;
        self.answer(Method::POST, "/v1/attachments/adopt", Some(body)).await
    }

    /// `POST /v1/attachments/failed`: the agent remembers it. One of an earlier version does not
    /// know of this.
    pub async fn tell_failed(&self, failed: &FailedAdd) -> Result<(), ClientError> {
        let body = transport::encode(failed)?;
        self.call(Method::POST, "/v1/attachments/failed", Some(body)).await?;
        Ok(())
    }

    /// `DELETE /v1/attachments/...`: also succeeds if there was no attachment.
    pub async fn detach(&self, container: &str, interface: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &attachment_path(container, interface), None).await?;
        Ok(())
    }

    /// `GET /readyz`. "Not ready" is an answer, not an error.
    pub async fn readiness(&self) -> Result<Readiness, ClientError> {
        match self.call(Method::GET, "/readyz", None).await {
            Ok(_) => Ok(Readiness::Ready),
            Err(ClientError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, message }) => {
                Ok(Readiness::NotReady(message))
            }
            Err(error) => Err(error),
        }
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.answer(Method::GET, path, None).await
    }

    async fn answer<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        self.within_deadline(path, async {
            let response = transport::call(&self.socket, method, path, body).await?;
            transport::decode(path, response).await
        })
        .await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, ClientError> {
        self.within_deadline(path, transport::call(&self.socket, method, path, body)).await
    }

    async fn within_deadline<T>(
        &self,
        path: &str,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.deadline, call).await.unwrap_or_else(|_| {
            Err(ClientError::Deadline {
                call: path.to_string(),
                socket: self.socket.clone(),
                seconds: self.deadline.as_secs_f32(),
            })
        })
    }
}

fn attachment_path(container: &str, interface: &str) -> String {
    format!("/v1/attachments/{}/{}", percent_encoded(container), percent_encoded(interface))
}

fn services_path(namespace: Option<&str>, name: Option<&str>) -> String {
    let wanted = [("namespace", namespace), ("name", name)];
    let wanted = wanted.into_iter().filter_map(|(field, value)| Some(format!("{field}={}", percent_encoded(value?))));
    match wanted.collect::<Vec<_>>().join("&").as_str() {
        "" => "/v1/services".to_string(),
        query => format!("/v1/services?{query}"),
    }
}

/// RFC 3986: encodes everything except unreserved characters, so that a name can neither leave its
/// path segment nor end the query.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_segment() {
        assert_eq!(attachment_path("a/../b", "eth0"), "/v1/attachments/a%2F..%2Fb/eth0");
        assert_eq!(percent_encoded("payments/api?x=1&y"), "payments%2Fapi%3Fx%3D1%26y");
        assert_eq!(percent_encoded("fd00::1"), "fd00%3A%3A1");
    }

    #[test]
    fn services_are_asked_for_by_what_is_known_of_them() {
        assert_eq!(services_path(None, None), "/v1/services");
        assert_eq!(services_path(None, Some("api")), "/v1/services?name=api");
        assert_eq!(services_path(Some("a&b"), Some("api")), "/v1/services?namespace=a%26b&name=api");
    }
}
