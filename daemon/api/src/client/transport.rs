//! One request, one connection: connect, write, check the status, read a bounded body.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ClientError;
use crate::ApiError;

/// The largest answer that is accepted, bytes: a full dump of the largest configured maps is a
/// tenth of it.
const ANSWER_LIMIT: usize = 256 << 20;
/// The largest error text that is accepted, bytes.
const ERROR_LIMIT: usize = 64 << 10;

/// Sends a request and returns the answer if its status is a success.
pub(crate) async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Response<Incoming>, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| ClientError::connecting(socket, error))?;
    let broken = |source| ClientError::Broken { socket: socket.to_path_buf(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The task ends when the answer has been read or dropped; the answer reports the connection's
    // error.
    tokio::spawn(async move { connection.await.ok() });

    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "hauberk");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| ClientError::Request { call: path.to_string(), reason: error.to_string() })?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status().is_success() { Ok(response) } else { Err(refused(path, response).await) }
}

/// The request's body.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(value)
        .map_err(|error| ClientError::Request { call: "body".to_string(), reason: error.to_string() })
}

/// The answer's body as JSON.
pub(crate) async fn decode<T: DeserializeOwned>(path: &str, response: Response<Incoming>) -> Result<T, ClientError> {
    let not_understood = |reason: String| ClientError::Answer { call: path.to_string(), reason };
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
    let body = body.map_err(|error| not_understood(error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| not_understood(error.to_string()))
}

async fn refused(path: &str, response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let body = Limited::new(response.into_body(), ERROR_LIMIT).collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    let message = match serde_json::from_slice::<ApiError>(&body) {
        Ok(error) => error.error,
        // /readyz answers in plain text.
        Err(_) => match String::from_utf8_lossy(&body).trim() {
            "" => format!("the agent answered {path} with {status} and no explanation"),
            text => text.to_string(),
        },
    };
    ClientError::Refused { status, message }
}
