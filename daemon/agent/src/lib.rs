//! hauberk's per-node agent.
//!
//! ```text
//! source -> model -> desired -> plan -> apply -> observe
//! ```

pub mod attachments;
pub mod config;
pub mod host;
pub mod datapath;
pub mod selfcheck;
pub mod uapi;
