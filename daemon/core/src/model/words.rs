//! Strings that many objects share: names of nodes and ports, values of labels.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// The words in use, each kept once.
#[derive(Debug)]
pub(super) struct Words<T: ?Sized = str> {
    words: HashSet<Arc<T>>,
    /// How many words were left after the last time unused ones were dropped.
    kept: usize,
}

impl<T: ?Sized> Default for Words<T> {
    fn default() -> Words<T> {
        Words { words: HashSet::new(), kept: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Words<T> {
    /// The same word as others have it.
    pub(super) fn share(&mut self, word: impl AsRef<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(word) = self.words.get(word.as_ref()) {
            return Arc::clone(word);
        }
        if self.words.len() >= 2 * self.kept.max(512) {
            self.words.retain(|word| Arc::strong_count(word) > 1);
            self.kept = self.words.len();
        }
        let word: Arc<T> = word.into();
        self.words.insert(Arc::clone(&word));
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shared_and_those_nobody_has_are_forgotten() {
        let mut words = Words::default();
        let mut share = |word: String| words.share(word);
        let kept: Vec<Arc<str>> = (0..600).map(|number| share(format!("node-{number}"))).collect();
        assert!(Arc::ptr_eq(&kept[0], &share("node-0".into())));
        for number in 0..10_000 {
            drop(share(format!("gone-{number}")));
        }
        assert!(Arc::ptr_eq(&kept[599], &share("node-599".into())));
        assert!(words.words.len() <= 2 * 1_024 + 1, "{}", words.words.len());
    }
}
