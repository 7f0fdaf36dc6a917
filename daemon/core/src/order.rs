//! The order of steps within a plan.

/// Steps of one subject in two halves.
#[derive(Debug)]
pub(crate) struct Order<S> {
    /// Steps that make nothing less strict.
    pub(crate) stricter: Vec<S>,
    /// The rest, removals included.
    pub(crate) weaker: Vec<S>,
}

impl<S> Default for Order<S> {
    fn default() -> Order<S> {
        Order { stricter: Vec::new(), weaker: Vec::new() }
    }
}
