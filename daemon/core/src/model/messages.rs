//! Events about one object by itself.

use hauberk_keyring::published;

use crate::annotations::addresses::AddressesError;
use crate::annotations::enforced::EnforcedError;
use crate::annotations::{ADDRESSES_ANNOTATION, ENFORCED_ANNOTATION, KEYS_ANNOTATION};
use crate::events::{NewEvent, reason};
use crate::label::{ENCRYPTION_LABEL, parse_label};
use crate::objects::NodeObject;
use crate::words::read_from;

pub(super) fn unknown_label(kind: &str, name: &str, label: Option<&str>, origin: &str) -> Option<NewEvent> {
    let value = label.filter(|value| parse_label(value).is_none())?;
    Some(NewEvent {
        warning: true,
        reason: reason::UNKNOWN_LABEL_VALUE,
        objects: vec![format!("{kind}/{name}")],
        message: format!(
            "{kind} {name}{}: label {ENCRYPTION_LABEL}={value:?} is not enabled, permissive or disabled; treated as \
             enabled until it is corrected",
            read_from(origin)
        ),
    })
}

pub(super) fn keys_invalid(object: &NodeObject, error: &published::PublishedError, kept: bool) -> NewEvent {
    let consequence = if kept {
        "its last good keys stay in use, existing tunnels are kept"
    } else {
        "it has no tunnel: what must be encrypted to it is dropped"
    };
    NewEvent {
        warning: true,
        reason: reason::KEYS_INVALID,
        objects: vec![format!("Node/{}", object.name)],
        message: format!(
            "Node {}{}: annotation {KEYS_ANNOTATION} is refused: {error}; {consequence}",
            object.name,
            read_from(&object.origin)
        ),
    }
}

pub(super) fn addresses_invalid(object: &NodeObject, error: &AddressesError, kept: bool) -> NewEvent {
    let consequence =
        if kept { "its last good addresses stay its own" } else { "only the addresses in its status are its own" };
    NewEvent {
        warning: true,
        reason: reason::ADDRESSES_INVALID,
        objects: vec![format!("Node/{}", object.name)],
        message: format!(
            "Node {}{}: annotation {ADDRESSES_ANNOTATION} is refused: {error}; {consequence}",
            object.name,
            read_from(&object.origin)
        ),
    }
}

pub(super) fn enforced_invalid(object: &NodeObject, error: &EnforcedError) -> NewEvent {
    NewEvent {
        warning: true,
        reason: reason::ENFORCED_INVALID,
        objects: vec![format!("Node/{}", object.name)],
        message: format!(
            "Node {}{}: annotation {ENFORCED_ANNOTATION} is refused: {error}; the node counts as enforcing nothing until \
             its agent writes it anew",
            object.name,
            read_from(&object.origin)
        ),
    }
}

pub(super) fn number_taken(name: &str, other: &str) -> NewEvent {
    NewEvent {
        warning: false,
        reason: reason::NODE_NUMBER_TAKEN,
        objects: vec![format!("Node/{name}"), format!("Node/{other}")],
        message: format!("the names of nodes {name} and {other} hash to one number; {name} has been given another"),
    }
}
