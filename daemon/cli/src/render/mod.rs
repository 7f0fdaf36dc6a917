//! Answers as text for people: pure functions from the agent's types to a string with colours, which the printer takes out
//! again where they are not wanted. Explicit words everywhere: never an empty place or a bare dash.

pub(crate) mod drops;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod flows;
pub(crate) mod maps;
pub(crate) mod page;
pub(crate) mod status;
pub(crate) mod version;
pub(crate) mod words;

#[cfg(test)]
pub(crate) mod samples;
