//! Node numbers: the datapath's maps identify nodes by 32 bits.
//!
//! A number is a hash of the node's name, so it is the same after a restart, when the pinned maps
//! still hold the old numbers. If two names have the same hash, the later one takes its next hash.
//! A node keeps its number as long as its object exists: if a number moved to another node, it
//! would mean two nodes in one map for a moment.

use std::collections::HashMap;

use blake2::{Blake2s256, Digest};

use crate::names::NodeNumber;

/// Which node has which number.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    by_name: HashMap<String, NodeNumber>,
    by_number: HashMap<NodeNumber, String>,
}

impl Numbers {
    /// Gives the node a number unless it has one. If its first choice was taken, returns the node
    /// that has that number.
    pub(crate) fn assign(&mut self, name: &str) -> Option<String> {
        if self.by_name.contains_key(name) {
            return None;
        }
        let mut holder = None;
        for attempt in 0u32.. {
            let number = hash(name, attempt);
            match self.by_number.get(&number) {
                Some(other) => holder = holder.or_else(|| Some(other.clone())),
                None => {
                    self.by_number.insert(number, name.to_owned());
                    self.by_name.insert(name.to_owned(), number);
                    break;
                }
            }
        }
        holder
    }

    /// Takes the number back.
    pub(crate) fn release(&mut self, name: &str) {
        if let Some(number) = self.by_name.remove(name) {
            self.by_number.remove(&number);
        }
    }

    /// The node's number.
    pub(crate) fn number(&self, name: &str) -> Option<NodeNumber> {
        self.by_name.get(name).copied()
    }

    /// The number's node.
    pub(crate) fn name(&self, number: NodeNumber) -> Option<&str> {
        self.by_number.get(&number).map(String::as_str)
    }
}

/// The number a name hashes to at the given attempt; never 0.
pub(crate) fn hash(name: &str, attempt: u32) -> NodeNumber {
    let digest = Blake2s256::new().chain_update(name.as_bytes()).chain_update(attempt.to_be_bytes()).finalize();
    NodeNumber(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two names with the same hash: among 77,000 names a collision is as likely as not.
    fn colliding() -> (String, String) {
        let mut seen = HashMap::new();
        for index in 0u32.. {
            let name = format!("node-{index}");
            if let Some(other) = seen.insert(hash(&name, 0), name.clone()) {
                return (other, name);
            }
        }
        unreachable!("32 bits are fewer than names")
    }

    #[test]
    fn a_number_is_the_same_after_a_restart() {
        let (mut before, mut after) = (Numbers::default(), Numbers::default());
        before.assign("a");
        before.assign("b");
        after.assign("b");
        after.assign("a");
        assert_eq!(before.number("a"), after.number("a"));
        assert_eq!(before.number("a"), Some(hash("a", 0)));
        assert_ne!(before.number("a"), before.number("b"));
    }

    #[test]
    fn names_that_hash_alike_have_two_numbers_and_keep_them() {
        let (first, second) = colliding();
        let mut numbers = Numbers::default();
        assert_eq!(numbers.assign(&first), None);
        assert_eq!(numbers.assign(&second), Some(first.clone()));
        let taken = numbers.number(&second);
        assert_eq!(taken, Some(hash(&second, 1)));
        numbers.release(&first);
        assert_eq!(numbers.assign(&second), None);
        assert_eq!(numbers.number(&second), taken, "a number does not change hands");
        assert_eq!(taken.and_then(|number| numbers.name(number)), Some(second.as_str()));
        assert_eq!(numbers.number(&first), None);
    }
}
