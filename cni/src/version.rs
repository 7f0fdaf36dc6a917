//! The versions of the specification that this plugin supports.

use serde::Deserialize;

use crate::error::CniError;

/// A version of the CNI specification, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// ADD and DEL; every address has the number of its family. Plugin lists that hauberk is
    /// chained to are often this old.
    V0_3_1,
    /// Adds CHECK.
    V0_4,
    /// Removes the number of the family.
    V1_0,
    /// Adds STATUS and GC; results have MTUs.
    V1_1,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 4] = [Version::V0_3_1, Version::V0_4, Version::V1_0, Version::V1_1];
    /// The version of errors before the caller's version is known.
    pub const LATEST: Version = Version::V1_1;

    /// The value of `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4 => "0.4.0",
            Version::V1_0 => "1.0.0",
            Version::V1_1 => "1.1.0",
        }
    }

    /// The version with exactly this text.
    pub fn parse(text: &str) -> Result<Version, CniError> {
        Version::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| CniError::Version { asked: text.chars().take(32).collect() })
    }

    /// All versions as text.
    pub fn list() -> String {
        Version::ALL.map(Version::as_str).join(", ")
    }
}

#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "cniVersion")]
    version: String,
}

/// The answer to VERSION: in the caller's version if it is supported, else in the latest. The rest
/// of stdin does not matter.
pub fn answer(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Asked>(input).ok().and_then(|asked| Version::parse(&asked.version).ok());
    let version = asked.unwrap_or(Version::LATEST);
    serde_json::json!({
        "cniVersion": version.as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_in_the_callers_version_where_we_speak_it() {
        assert!(
            answer(br#"{"cniVersion":"1.0.0"}"#)
                .starts_with(r#"{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","#)
        );
        for other in [&br#"{"cniVersion":"9.0.0"}"#[..], b"", b"nonsense"] {
            assert!(answer(other).starts_with(r#"{"cniVersion":"1.1.0""#));
        }
    }
}
