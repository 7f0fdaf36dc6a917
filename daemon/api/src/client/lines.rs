//! An answer of JSON objects, one per line, read as they arrive.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::ClientError;

/// The longest line that is accepted, bytes: a record has a few hundred.
const LINE_LIMIT: usize = 1 << 20;

/// Records of type `T`, in the order the agent sent them.
pub struct Lines<T> {
    socket: PathBuf,
    body: Incoming,
    buffer: BytesMut,
    ended: bool,
    deadline: Option<Duration>,
    record: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(crate) fn new(socket: PathBuf, response: Response<Incoming>, deadline: Option<Duration>) -> Lines<T> {
        Lines {
            socket,
            body: response.into_body(),
            buffer: BytesMut::new(),
            ended: false,
            deadline,
            record: PhantomData,
        }
    }

    /// The next record; none at the end of the answer. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<T, ClientError>> {
        loop {
            if let Some(line) = self.line() {
                if line.is_empty() {
                    continue;
                }
                return Some(serde_json::from_slice(&line).map_err(|error| not_understood(error.to_string())));
            }
            if self.ended {
                return None;
            }
            if self.buffer.len() > LINE_LIMIT {
                self.ended = true;
                self.buffer.clear();
                return Some(Err(not_understood(format!("a line of more than {LINE_LIMIT} bytes"))));
            }
            if let Err(error) = self.fill().await {
                self.ended = true;
                self.buffer.clear();
                return Some(Err(error));
            }
        }
    }

    /// Takes a complete line (or the rest, at the end) out of the buffer.
    fn line(&mut self) -> Option<BytesMut> {
        match self.buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                Some(line)
            }
            None if self.ended && !self.buffer.is_empty() => Some(self.buffer.split()),
            None => None,
        }
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        let frame = match self.deadline {
            None => self.body.frame().await,
            Some(deadline) => {
                tokio::time::timeout(deadline, self.body.frame()).await.map_err(|_| ClientError::Deadline {
                    call: "/v1/flows".to_string(),
                    socket: self.socket.clone(),
                    seconds: deadline.as_secs_f32(),
                })?
            }
        };
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
            }
            Some(Err(source)) => return Err(ClientError::Broken { socket: self.socket.clone(), source }),
        }
        Ok(())
    }
}

fn not_understood(reason: String) -> ClientError {
    ClientError::Answer { call: "/v1/flows".to_string(), reason }
}
