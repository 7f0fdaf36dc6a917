//! A value that the agent determines itself unless it is given: `auto`, or the value.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// `auto`, or a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Automatic<T> {
    /// The agent determines it.
    Auto,
    /// It is given.
    Value(T),
}

impl<T> Automatic<T> {
    /// The value, where one is given.
    pub fn given(&self) -> Option<&T> {
        match self {
            Automatic::Auto => None,
            Automatic::Value(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Automatic<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Automatic::Auto => serializer.serialize_str("auto"),
            Automatic::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Automatic<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `untagged`: its error would say that nothing matched, and not what is wrong with the
        // value.
        deserializer.deserialize_any(AutomaticVisitor(PhantomData))
    }
}

struct AutomaticVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for AutomaticVisitor<T> {
    type Value = Automatic<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto` or a value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        if text == "auto" {
            return Ok(Automatic::Auto);
        }
        T::deserialize(text.into_deserializer()).map(Automatic::Value)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(Automatic::Value)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        T::deserialize(number.into_deserializer()).map(Automatic::Value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(sequence)).map(Automatic::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Automatic::Value)
    }
}
