//! The label with which namespaces and pods opt in.

use hauberk_abi::identity::Protection;

/// The label on namespaces and pods.
pub const ENCRYPTION_LABEL: &str = "hauberk.io/encryption";

/// The protection that a label's value asks for; none if the value is unknown.
pub fn parse_label(value: &str) -> Option<Protection> {
    match value {
        "enabled" => Some(Protection::Enabled),
        "permissive" => Some(Protection::Permissive),
        "disabled" => Some(Protection::None),
        _ => None,
    }
}

/// The label value for a protection.
pub fn label_value(protection: Protection) -> &'static str {
    match protection {
        Protection::Enabled => "enabled",
        Protection::Permissive => "permissive",
        Protection::None => "disabled",
    }
}
