//! Which file says what about which object, and what is told when several files describe the same
//! object.
//!
//! The first file by name wins, with one exception: of several labels the strictest is told. A
//! second manifest of a namespace therefore cannot weaken its protection.

use std::collections::BTreeMap;
use std::sync::Arc;

use hauberk_core::events::NewEvent;
use hauberk_core::label::parse_label;
use hauberk_core::model::Change;
use hauberk_core::protection::Protection;

use super::manifest::Key;
use crate::reason;

/// One file's word on one object.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Whether this is the last good version: the file has changed since and what it says now
    /// cannot be read.
    pub(super) is_kept: bool,
    /// The file's name.
    pub(super) file: Arc<str>,
    /// The document's number in the file, from 1.
    pub(super) document: usize,
    /// The object, as the model is told of it; none of a kind that the model does not hold.
    pub(super) object: Arc<Option<Change>>,
}

/// Every file's word on every object.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_key: BTreeMap<Key, Vec<Claim>>,
    duplicates: BTreeMap<Key, NewEvent>,
}

impl Claims {
    /// What is told of an object now.
    pub(super) fn effective(&self, key: &Key) -> Option<Arc<Option<Change>>> {
        let claims = self.by_key.get(key)?;
        let first = claims.first()?;
        if claims.len() == 1 {
            return Some(Arc::clone(&first.object));
        }
        let mut object = Option::clone(&first.object);
        if let Some(label) = encryption_of(&mut object) {
            *label = strictest(claims.iter().map(|claim| encryption(&claim.object)));
        }
        Some(Arc::new(object))
    }

    /// The claims on an object, the one that wins first.
    pub(super) fn on(&self, key: &Key) -> &[Claim] {
        self.by_key.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Adds a claim.
    pub(super) fn add(&mut self, key: Key, claim: Claim) {
        let claims = self.by_key.entry(key).or_default();
        claims.push(claim);
        claims.sort_by(|a, b| (a.is_kept, &a.file, a.document).cmp(&(b.is_kept, &b.file, b.document)));
    }

    /// Removes a file's claims on an object and returns them.
    pub(super) fn take(&mut self, key: &Key, file: &str) -> Vec<Claim> {
        let Some(claims) = self.by_key.get_mut(key) else { return Vec::new() };
        let (taken, left) = std::mem::take(claims).into_iter().partition(|claim| &*claim.file == file);
        *claims = left;
        if claims.is_empty() {
            self.by_key.remove(key);
        }
        taken
    }

    /// Notes whether an object is there more than once. Returns the event if that is new.
    pub(super) fn note_duplicates(&mut self, key: &Key, location: &str) -> Option<NewEvent> {
        let claims = self.by_key.get(key).map(Vec::as_slice).unwrap_or_default();
        if claims.len() < 2 {
            self.duplicates.remove(key);
            return None;
        }
        let places: Vec<String> =
            claims.iter().map(|claim| format!("{location}/{} (document {})", claim.file, claim.document)).collect();
        let event = NewEvent {
            warning: true,
            reason: reason::DUPLICATE_OBJECT,
            objects: vec![key.to_string()],
            message: format!(
                "{key} is in {}: the first is in force, with the strictest of their encryption labels; remove the others",
                places.join(" and in ")
            ),
        };
        if self.duplicates.get(key) == Some(&event) {
            return None;
        }
        self.duplicates.insert(key.clone(), event.clone());
        Some(event)
    }

    /// The number of objects that are told.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// The change that tells the model that an object is as given, or gone.
pub(super) fn change(key: &Key, object: Option<&Option<Change>>) -> Option<Change> {
    match object {
        Some(object) => object.clone(),
        None => key.kind.gone(&key.namespace, &key.name),
    }
}

fn encryption(object: &Option<Change>) -> Option<&str> {
    match object {
        Some(Change::Namespace(namespace)) => namespace.encryption.as_deref(),
        Some(Change::Pod(pod)) => pod.encryption.as_deref(),
        _ => None,
    }
}

fn encryption_of(object: &mut Option<Change>) -> Option<&mut Option<String>> {
    match object {
        Some(Change::Namespace(namespace)) => Some(&mut namespace.encryption),
        Some(Change::Pod(pod)) => Some(&mut pod.encryption),
        _ => None,
    }
}

/// The strictest of several labels. An unknown value counts as `enabled`. `permissive` and no label
/// cannot be ranked (a pod without a label has its namespace's), so together they make `enabled`.
fn strictest<'a>(labels: impl Iterator<Item = Option<&'a str>> + Clone) -> Option<String> {
    let rank = |label: &str| parse_label(label).unwrap_or(Protection::Enabled);
    let strictest = labels.clone().flatten().max_by_key(|label| rank(label))?;
    let has_none = labels.clone().any(|label| label.is_none());
    match rank(strictest) {
        Protection::Enabled => Some(strictest.to_owned()),
        Protection::Permissive if has_none => Some("enabled".to_owned()),
        Protection::Permissive => Some(strictest.to_owned()),
        Protection::None if has_none => None,
        Protection::None => Some(strictest.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_label_is_told() {
        for (labels, expected) in [
            (&[Some("enabled"), None][..], Some("enabled")),
            (&[None, Some("enabled")], Some("enabled")),
            (&[Some("disabled"), Some("permissive")], Some("permissive")),
            (&[Some("permissive"), None], Some("enabled")),
            (&[Some("disabled"), None], None),
            (&[Some("disabled"), Some("disabled")], Some("disabled")),
            (&[Some("disabled"), Some("enbled")], Some("enbled")),
            (&[None, None], None),
        ] {
            assert_eq!(strictest(labels.iter().copied()).as_deref(), expected, "{labels:?}");
        }
    }
}
