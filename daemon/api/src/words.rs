//! Words of fixed sets. They are read leniently: a word that a newer agent says and this version
//! does not know is kept as it is, and the rest of the answer is not lost.

use std::borrow::Cow;
use std::fmt;

use hauberk_abi::identity::Kind;
use hauberk_abi::reason::{DropReason, Encryption, Why};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A fixed set of words.
pub trait Vocabulary: Copy + PartialEq + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// How it is written.
    fn as_word(self) -> &'static str;
}

/// A word as it was read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word<T> {
    /// One of the set.
    Known(T),
    /// One that only a newer version knows.
    Other(String),
}

impl<T: Vocabulary> Word<T> {
    /// How it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Word::Known(known) => known.as_word(),
            Word::Other(text) => text,
        }
    }

    /// None if only a newer version knows it.
    pub fn known(&self) -> Option<T> {
        match self {
            Word::Known(known) => Some(*known),
            Word::Other(_) => None,
        }
    }
}

impl<T: Vocabulary> From<T> for Word<T> {
    fn from(known: T) -> Word<T> {
        Word::Known(known)
    }
}

impl<T: Vocabulary> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        self.known() == Some(*other)
    }
}

impl<T: Vocabulary> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<T: Vocabulary> fmt::Debug for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<T: Vocabulary> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, T: Vocabulary> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word<T>, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let known = T::ALL.iter().find(|known| known.as_word() == text);
        Ok(known.map_or_else(|| Word::Other(text.into_owned()), |known| Word::Known(*known)))
    }
}

/// What a flow record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowStage {
    /// The flow's first packet.
    Start,
    /// It is over, or idle for long.
    End,
    /// Its packets are dropped.
    Refused,
    /// It is in the table.
    Ongoing,
}

/// How packets cross a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostRouting {
    /// From hook to hook.
    Bpf,
    /// Through the host's IP stack.
    Stack,
}

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttachMethod {
    /// As TCX links.
    Tcx,
    /// As filters on the clsact queueing discipline.
    Clsact,
}

/// What objects are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A folder of manifests.
    Directory,
    /// An API server.
    Kubernetes,
}

/// What the cluster-wide part of the configuration is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConfigurationOrigin {
    /// The object on the API server.
    Object,
    /// The last accepted object, kept by this node.
    Copy,
    /// Only this node's file.
    File,
}

/// What dropped packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropPlace {
    /// An eBPF program.
    Datapath,
    /// The tunnel: its device, or the agent's threads behind it.
    Tunnel,
    /// A rule of netfilter.
    Netfilter,
}

/// Gives an enum its words. A variant without one does not compile.
macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl Vocabulary for $name {
            const ALL: &'static [$name] = &[$($name::$variant),*];

            fn as_word(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
        }
    };
}

words!(FlowStage { Start = "start", End = "end", Refused = "refused", Ongoing = "ongoing" });
words!(HostRouting { Bpf = "bpf", Stack = "stack" });
words!(AttachMethod { Tcx = "tcx", Clsact = "clsact" });
words!(SourceKind { Directory = "directory", Kubernetes = "kubernetes" });
words!(ConfigurationOrigin { Object = "object", Copy = "copy", File = "file" });
words!(DropPlace { Datapath = "datapath", Tunnel = "tunnel", Netfilter = "netfilter" });
words!(Kind {
    World = "world",
    Pod = "pod",
    Node = "node",
    UnknownPod = "unknown_pod",
    UnknownNode = "unknown_node",
    Probe = "probe",
});

/// The programs' own sets have their words already.
macro_rules! words_of_programs {
    ($($name:ident),*) => { $(
        impl Vocabulary for $name {
            const ALL: &'static [$name] = $name::ALL;

            fn as_word(self) -> &'static str {
                self.as_str()
            }
        }
    )* };
}

words_of_programs!(Encryption, Why, DropReason);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{AddressFamily, BackendCondition, FrontendKind, ServiceKind, ServiceMode};

    #[test]
    fn a_word_of_a_newer_version_is_shown_and_is_none_of_the_known_ones() {
        let read: Vec<Word<Encryption>> = serde_json::from_str(r#"["plain","sealed_twice","Plain",""]"#).unwrap();
        assert_eq!(read[0], Encryption::Plain);
        assert_eq!(read[0], Word::Known(Encryption::Plain));
        for (other, text) in read[1..].iter().zip(["sealed_twice", "Plain", ""]) {
            assert_eq!((other.known(), other.to_string().as_str()), (None, text));
            assert!(Encryption::ALL.iter().all(|known| other != known), "{other}");
        }
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"["plain","sealed_twice","Plain",""]"#);
        assert!(serde_json::from_str::<Word<Encryption>>("3").is_err());
    }

    #[test]
    fn words_have_a_width() {
        assert_eq!(format!("{:<7}|", Word::from(FlowStage::End)), "end    |");
    }

    #[test]
    fn no_word_means_two_things() {
        fn unique<T: Vocabulary>() {
            for known in T::ALL {
                let read: Word<T> = serde_json::from_str(&format!("\"{}\"", known.as_word())).unwrap();
                assert!(read == *known, "{read}");
            }
        }
        unique::<FlowStage>();
        unique::<HostRouting>();
        unique::<AttachMethod>();
        unique::<SourceKind>();
        unique::<ConfigurationOrigin>();
        unique::<DropPlace>();
        unique::<Kind>();
        unique::<Encryption>();
        unique::<Why>();
        unique::<DropReason>();
        unique::<ServiceKind>();
        unique::<FrontendKind>();
        unique::<AddressFamily>();
        unique::<BackendCondition>();
        unique::<ServiceMode>();
    }
}
