//! etcd, through its JSON gateway: each request is a transaction.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// The largest number of operations that etcd takes in one transaction.
pub const TRANSACTION: usize = 128;

/// A change of one object.
pub enum Operation {
    /// Writes the object at this key.
    Put(String, Value),
    /// Deletes the object at this key.
    Delete(String),
}

impl Operation {
    fn request(&self) -> Value {
        match self {
            Operation::Put(key, object) => {
                json!({"requestPut": {"key": BASE64.encode(key), "value": BASE64.encode(object.to_string())}})
            }
            Operation::Delete(key) => json!({"requestDeleteRange": {"key": BASE64.encode(key)}}),
        }
    }
}

/// Carries out operations in one transaction. Call it where etcd runs.
pub fn write(operations: &[Operation]) -> Result<()> {
    let requests: Vec<Value> = operations.iter().map(Operation::request).collect();
    let body = json!({"success": requests}).to_string();
    let mut stream = TcpStream::connect("127.0.0.1:2379").context("connect to etcd")?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "POST /v3/kv/txn HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).context("ask etcd")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read etcd's answer")?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "etcd refuses a transaction: {answer}");
    Ok(())
}
