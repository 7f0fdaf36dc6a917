//! Which entries a plan has to compare. The caller of a plan knows that all others are as desired,
//! or that nothing could be done about them before every source has been read.

use std::collections::{BTreeMap, BTreeSet};

/// Keys of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys<K> {
    /// Every key: at the start, and after a failure.
    All,
    /// These only.
    These(BTreeSet<K>),
}

impl<K> Default for Keys<K> {
    fn default() -> Keys<K> {
        Keys::These(BTreeSet::new())
    }
}

impl<K: Ord> Keys<K> {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Keys::These(keys) if keys.is_empty())
    }

    pub(crate) fn insert(&mut self, key: K) {
        if let Keys::These(keys) = self {
            keys.insert(key);
        }
    }

    pub(crate) fn extend(&mut self, other: Keys<K>) {
        match (&mut *self, other) {
            (Keys::These(keys), Keys::These(more)) => keys.extend(more),
            _ => *self = Keys::All,
        }
    }

    /// Those of these keys that are in the set and not in the other, in order.
    pub(crate) fn of_set(&self, set: &BTreeSet<K>, other: &BTreeSet<K>) -> Vec<K>
    where
        K: Copy,
    {
        match self {
            Keys::All => set.difference(other).copied().collect(),
            Keys::These(keys) => keys.iter().filter(|key| set.contains(key) && !other.contains(key)).copied().collect(),
        }
    }

    /// The map's entries with these keys, in order.
    pub(crate) fn of<'a, V>(&'a self, map: &'a BTreeMap<K, V>) -> impl Iterator<Item = (&'a K, &'a V)> {
        let (all, some) = match self {
            Keys::All => (Some(map), None),
            Keys::These(keys) => (None, Some(keys)),
        };
        let some = some.into_iter().flatten().filter_map(|key| map.get_key_value(key));
        some.chain(all.into_iter().flatten())
    }
}
