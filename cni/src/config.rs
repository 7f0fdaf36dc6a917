//! The network configuration on stdin: untrusted, of limited size, parsed once. Fields that concern
//! only the runtime or other plugins are ignored, as the specification requires. Fields that should
//! change the plugin's work and are not supported are refused.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::arguments::shortened;
use crate::error::CniError;
use crate::name;
use crate::version::Version;

/// The largest configuration that is accepted, bytes: enough for GC with tens of thousands of
/// attachments.
const LIMIT: u64 = 4 << 20;

/// How long ADD waits for the agent unless the configuration says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// In seconds. Runtimes give up after minutes; a longer timeout would only hide that.
const TIMEOUT_LIMIT: u64 = 600;

/// The administrator's configuration, with the runtime's additions.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Version of the specification to use in the answer.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// How long to wait for the agent.
    pub timeout: Duration,
    /// Copied to the result.
    pub dns: Dns,
    /// The result of the previous plugin (ADD) or of ADD itself (CHECK, DEL).
    pub previous: Option<Value>,
    /// Another plugin makes the pod's network, and its result is required.
    pub chained: bool,
    /// GC: the attachments that must stay. None if the runtime gave no list.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// Resolver settings for the pod, which the runtime applies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of DNS servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The pod's own domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An attachment that GC must leave alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// The runtime's container id.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The interface's name inside the pod.
    #[serde(rename = "ifname")]
    pub interface: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    name: String,
    socket: Option<PathBuf>,
    timeout_seconds: Option<u64>,
    #[serde(default)]
    chained: bool,
    #[serde(default)]
    dns: Option<Dns>,
    #[serde(default)]
    ipam: Option<Value>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments", deserialize_with = "given")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

/// Runtimes written in Go write `null` for an empty list. It counts as an empty list; only an
/// absent field is none.
fn given<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Vec<ValidAttachment>>, D::Error> {
    Option::deserialize(field).map(|list: Option<_>| Some(list.unwrap_or_default()))
}

#[derive(Deserialize)]
struct WrittenVersion {
    #[serde(default, rename = "cniVersion")]
    version: String,
}

/// Reads stdin, up to the limit.
pub fn read(stdin: impl Read) -> Result<Vec<u8>, CniError> {
    let mut input = Vec::new();
    stdin.take(LIMIT + 1).read_to_end(&mut input).map_err(CniError::Input)?;
    if input.len() as u64 > LIMIT {
        return Err(CniError::Decode(format!("more than {LIMIT} bytes")));
    }
    Ok(input)
}

/// The version alone: later errors are reported in this version.
pub fn version(input: &[u8]) -> Result<Version, CniError> {
    let written: WrittenVersion = decode(input)?;
    if written.version.is_empty() {
        // The specification's first versions had no such field, so a configuration without it
        // counts as one of them.
        return Err(CniError::Version { asked: "0.1.0 (no cniVersion given)".to_string() });
    }
    Version::parse(&written.version)
}

/// The whole configuration.
pub fn parse(input: &[u8]) -> Result<NetworkConfig, CniError> {
    let version = version(input)?;
    let written: Written = decode(input)?;
    if !name::is_identifier(&written.name) {
        return Err(CniError::Config(format!(
            "name is {}: it must begin with a letter or digit and go on with these, `_`, `.` or `-`",
            shortened(&written.name)
        )));
    }
    if let Some(ipam) = written.ipam.filter(|ipam| *ipam != Value::Null && *ipam != Value::Object(Default::default())) {
        return Err(CniError::Field {
            key: "ipam",
            value: shortened(&ipam.to_string()),
            reason: "the agent gives pods their addresses, from the node's podCIDRs; remove the field",
        });
    }
    let socket = written.socket.unwrap_or_else(|| PathBuf::from(hauberk_api::client::DEFAULT_SOCKET));
    if !socket.is_absolute() {
        return Err(CniError::Config(format!("socket is {}: it must be an absolute path", socket.display())));
    }
    let timeout = match written.timeout_seconds {
        None => DEFAULT_TIMEOUT,
        Some(seconds @ 1..=TIMEOUT_LIMIT) => Duration::from_secs(seconds),
        Some(seconds) => {
            return Err(CniError::Config(format!("timeoutSeconds is {seconds}: it must lie in 1..={TIMEOUT_LIMIT}")));
        }
    };
    Ok(NetworkConfig {
        version,
        name: written.name,
        socket,
        timeout,
        dns: written.dns.unwrap_or_default(),
        previous: written.prev_result.filter(|previous| *previous != Value::Null),
        chained: written.chained,
        valid_attachments: written.valid_attachments,
    })
}

fn decode<'a, T: Deserialize<'a>>(input: &'a [u8]) -> Result<T, CniError> {
    if input.trim_ascii_start().starts_with(b"[") {
        // serde would read the items of a list as the fields in order.
        return Err(CniError::Config("it is a list, not an object".to_string()));
    }
    serde_json::from_slice(input).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => CniError::Config(error.to_string()),
        _ => CniError::Decode(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<NetworkConfig, CniError> {
        parse(text.as_bytes())
    }

    #[test]
    fn the_smallest_configuration() {
        let config = parse_text(r#"{"cniVersion":"1.1.0","name":"hauberk","type":"hauberk-cni"}"#).unwrap();
        assert_eq!(config.socket, PathBuf::from("/run/hauberk/agent.sock"));
        assert_eq!(config.timeout, Duration::from_secs(30));
        assert_eq!(config.valid_attachments, None);
        assert!(!config.chained);
    }

    #[test]
    fn everything_we_know() {
        let config = parse_text(
            r#"{"cniVersion":"1.0.0","name":"hauberk","socket":"/tmp/a.sock","timeoutSeconds":5,"dns":{"nameservers":["10.0.0.10"]},
            "capabilities":{"portMappings":true},"runtimeConfig":{},"prevResult":null,"ipam":{},
            "cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#,
        )
        .unwrap();
        assert_eq!(config.version, Version::V1_0);
        assert_eq!(config.timeout, Duration::from_secs(5));
        assert_eq!(config.previous, None);
        assert_eq!(config.valid_attachments.unwrap().len(), 1);
    }

    #[test]
    fn null_is_an_empty_list_of_attachments_and_absence_is_none() {
        let null = parse_text(r#"{"cniVersion":"1.1.0","name":"a","cni.dev/valid-attachments":null}"#).unwrap();
        assert_eq!(null.valid_attachments, Some(Vec::new()));
        assert_eq!(parse_text(r#"{"cniVersion":"1.1.0","name":"a"}"#).unwrap().valid_attachments, None);
    }

    #[test]
    fn each_mistake_has_its_code() {
        for (text, code) in [
            ("", 6),
            ("{", 6),
            ("[]", 7),
            (r#"{"name":"a"}"#, 1),
            (r#"{"cniVersion":"0.3.0","name":"a"}"#, 1),
            (r#"{"cniVersion":"1.1.0","name":"a","chained":"yes"}"#, 7),
            (r#"{"cniVersion":1,"name":"a"}"#, 7),
            (r#"{"cniVersion":"1.1.0"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a/b"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a","socket":"agent.sock"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a","timeoutSeconds":0}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a","timeoutSeconds":-1}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a","cni.dev/valid-attachments":[{}]}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a","ipam":{"type":"host-local"}}"#, 2),
        ] {
            assert_eq!(parse_text(text).unwrap_err().code(), code, "{text}");
        }
    }

    #[test]
    fn stdin_is_bounded() {
        assert_eq!(read(std::io::repeat(b' ')).unwrap_err().code(), 6);
        assert_eq!(read(&b"{}"[..]).unwrap(), b"{}");
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in ".{0,300}", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(text.as_bytes());
            let _ = parse(&bytes);
        }
    }
}
