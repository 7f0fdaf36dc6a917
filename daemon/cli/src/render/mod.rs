//! Answers as text for people: pure functions from the agent's types to a string with colours. The
//! printer removes the colours where they are not wanted. The text always uses words, never an
//! empty place or a dash.

pub(crate) mod drops;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod flows;
pub(crate) mod maps;
pub(crate) mod page;
pub(crate) mod services;
pub(crate) mod status;
pub(crate) mod version;
pub(crate) mod words;

#[cfg(test)]
pub(crate) mod samples;
