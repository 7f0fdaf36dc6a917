//! How a pod is protected, and which label or missing object says so.
//!
//! The namespace's label decides; the pod's own label can strengthen it. What is not known, or cannot be read, protects.

use std::fmt;

pub use hauberk_abi::identity::Protection;

use crate::desired::Policy;
use crate::model::{ENCRYPTION_LABEL, Model, NamespaceObject, PodName, PodObject};

/// A pod's protection and the rule it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// How the pod is protected.
    pub protection: Protection,
    /// By which rule.
    pub rule: Rule,
}

/// Which label or missing object decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Neither the namespace nor the pod has a label.
    NoLabel,
    /// The namespace's label.
    NamespaceLabel,
    /// The namespace's label has a value nobody knows.
    NamespaceLabelUnknown,
    /// The pod's label, stricter than its namespace's.
    PodLabel,
    /// The pod's label, weaker than its namespace's, and the configuration lets pods opt out.
    PodOptOut,
    /// The namespace's label: the pod's own would weaken it and is refused.
    PodOptOutRefused,
    /// The pod's label has a value nobody knows.
    PodLabelUnknown,
    /// The pod's namespace has no object.
    NamespaceUnknown,
    /// The interface is a pod's that has no object yet: a label on it could be the strictest.
    PodUnknown,
    /// The interface is of an earlier or later pod of the same name.
    PodReplaced,
    /// The interface came without a pod's name.
    PodUnnamed,
}

/// What a label's value means; none if nobody knows it.
pub fn parse_label(value: &str) -> Option<Protection> {
    match value {
        "enabled" => Some(Protection::Enabled),
        "permissive" => Some(Protection::Permissive),
        "disabled" => Some(Protection::None),
        _ => None,
    }
}

/// The value a label has for a protection.
pub fn label_value(protection: Protection) -> &'static str {
    match protection {
        Protection::Enabled => "enabled",
        Protection::Permissive => "permissive",
        Protection::None => "disabled",
    }
}

/// How a namespace protects its pods.
pub fn of_namespace(namespace: Option<&NamespaceObject>) -> Ruling {
    let Some(namespace) = namespace else {
        return Ruling { protection: Protection::Enabled, rule: Rule::NamespaceUnknown };
    };
    match namespace.encryption.as_deref().map(parse_label) {
        None => Ruling { protection: Protection::None, rule: Rule::NoLabel },
        Some(None) => Ruling { protection: Protection::Enabled, rule: Rule::NamespaceLabelUnknown },
        Some(Some(protection)) => Ruling { protection, rule: Rule::NamespaceLabel },
    }
}

/// How a pod is protected.
pub fn of_pod(model: &Model, policy: &Policy, pod: &PodObject) -> Ruling {
    strengthen(of_namespace(model.namespace(&pod.namespace)), pod.encryption.as_deref(), policy.allow_pod_opt_out)
}

/// How the pod of an interface on this node is protected, by the name and uid the runtime gave.
pub fn of_attached(model: &Model, policy: &Policy, pod: Option<(&PodName, Option<&str>)>) -> Ruling {
    let enabled = |rule| Ruling { protection: Protection::Enabled, rule };
    let Some((name, uid)) = pod else { return enabled(Rule::PodUnnamed) };
    let Some(object) = model.pod(name) else { return enabled(Rule::PodUnknown) };
    match (uid, object.uid.as_deref()) {
        (Some(uid), Some(other)) if uid != other => enabled(Rule::PodReplaced),
        _ => of_pod(model, policy, object),
    }
}

fn strengthen(namespace: Ruling, label: Option<&str>, allow_opt_out: bool) -> Ruling {
    let Some(value) = label.filter(|_| namespace.rule != Rule::NamespaceUnknown) else { return namespace };
    let Some(protection) = parse_label(value) else {
        return Ruling { protection: Protection::Enabled, rule: Rule::PodLabelUnknown };
    };
    match protection.cmp(&namespace.protection) {
        std::cmp::Ordering::Greater => Ruling { protection, rule: Rule::PodLabel },
        std::cmp::Ordering::Equal => namespace,
        std::cmp::Ordering::Less if allow_opt_out => Ruling { protection, rule: Rule::PodOptOut },
        std::cmp::Ordering::Less => Ruling { protection: namespace.protection, rule: Rule::PodOptOutRefused },
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::NoLabel => write!(f, "neither its namespace nor the pod has the label {ENCRYPTION_LABEL}"),
            Rule::NamespaceLabel => write!(f, "its namespace's label {ENCRYPTION_LABEL}"),
            Rule::NamespaceLabelUnknown => {
                write!(f, "its namespace's label {ENCRYPTION_LABEL} has an unknown value, which counts as enabled")
            }
            Rule::PodLabel => write!(f, "the pod's own label {ENCRYPTION_LABEL}, stricter than its namespace's"),
            Rule::PodOptOut => {
                write!(f, "the pod's own label {ENCRYPTION_LABEL}, weaker than its namespace's (allowPodOptOut)")
            }
            Rule::PodOptOutRefused => write!(
                f,
                "its namespace's label {ENCRYPTION_LABEL}; the pod's own would weaken it and is refused (allowPodOptOut is off)"
            ),
            Rule::PodLabelUnknown => {
                write!(f, "the pod's own label {ENCRYPTION_LABEL} has an unknown value, which counts as enabled")
            }
            Rule::NamespaceUnknown => f.write_str("its Namespace object is not known, and unknown is protected"),
            Rule::PodUnknown => f.write_str("its Pod object is not known yet, and unknown is protected"),
            Rule::PodReplaced => {
                f.write_str("the Pod object of that name is of another instance (uid), and unknown is protected")
            }
            Rule::PodUnnamed => f.write_str("the runtime did not name the pod, and unknown is protected"),
        }
    }
}
