//! Why a backend did not do what it was asked, and whether to ask again.

/// A backend refused a request, or cannot start. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The same request may succeed later, or another one at once.
    #[error("{0}")]
    Recoverable(String),
    /// No request to this backend can succeed any more, or no start with this configuration.
    #[error("{0}")]
    Fatal(String),
}

impl BackendError {
    /// Whether it is of no use to try again.
    pub fn is_fatal(&self) -> bool {
        matches!(self, BackendError::Fatal(_))
    }
}
