//! How a pod is protected, and which label or missing object decides it.
//!
//! The namespace's label decides; the pod's own label can strengthen it. A pod whose labels are not
//! known or cannot be read is protected.

use std::fmt;

pub use hauberk_abi::identity::Protection;

use crate::label::{ENCRYPTION_LABEL, parse_label};
use crate::local_node::LocalNode;
use crate::model::{Model, Pod};
use crate::names::PodName;
use crate::objects::NamespaceObject;

/// A pod's protection and the rule it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// How the pod is protected.
    pub protection: Protection,
    /// The rule that decided.
    pub rule: Rule,
}

/// Which label or missing object decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Neither the namespace nor the pod has a label, and the default is no protection.
    NoLabel,
    /// Neither the namespace nor the pod has a label; the configuration opts such pods in.
    Default,
    /// The namespace's label.
    NamespaceLabel,
    /// The namespace's label has an unknown value.
    NamespaceLabelUnknown,
    /// The pod's label, stricter than its namespace's.
    PodLabel,
    /// The pod's label, weaker than its namespace's, and the configuration lets pods opt out.
    PodOptOut,
    /// The pod's label would weaken the namespace's label or the configured default, and is
    /// refused.
    PodOptOutRefused,
    /// The pod's label has an unknown value.
    PodLabelUnknown,
    /// The pod's namespace has no Namespace object.
    NamespaceUnknown,
    /// The interface belongs to a pod that has no Pod object yet; its label could ask for anything,
    /// so the strictest is assumed.
    PodUnknown,
    /// The interface belongs to an earlier or later pod of the same name.
    PodReplaced,
    /// The interface came without a pod's name.
    PodUnnamed,
}

/// How a namespace protects its pods.
pub fn of_namespace(local: &LocalNode, namespace: Option<&NamespaceObject>) -> Ruling {
    let Some(namespace) = namespace else {
        return Ruling { protection: Protection::Enabled, rule: Rule::NamespaceUnknown };
    };
    match namespace.encryption.as_deref().map(parse_label) {
        None if local.settings.default_protection == Protection::None => {
            Ruling { protection: Protection::None, rule: Rule::NoLabel }
        }
        None => Ruling { protection: local.settings.default_protection, rule: Rule::Default },
        Some(None) => Ruling { protection: Protection::Enabled, rule: Rule::NamespaceLabelUnknown },
        Some(Some(protection)) => Ruling { protection, rule: Rule::NamespaceLabel },
    }
}

/// How a pod is protected.
pub fn of_pod(model: &Model, local: &LocalNode, pod: &Pod) -> Ruling {
    let namespace = of_namespace(local, model.namespace(&pod.namespace));
    strengthen(namespace, pod.encryption.as_deref(), local.settings.allow_pod_opt_out)
}

/// How the pod of an interface on this node is protected, by the name and uid that the runtime
/// gave.
pub fn of_attached(model: &Model, local: &LocalNode, pod: Option<(&PodName, Option<&str>)>) -> Ruling {
    let enabled = |rule| Ruling { protection: Protection::Enabled, rule };
    let Some((name, uid)) = pod else { return enabled(Rule::PodUnnamed) };
    let Some(object) = model.pod(name) else { return enabled(Rule::PodUnknown) };
    match (uid, object.uid.as_deref()) {
        (Some(uid), Some(other)) if uid != other => enabled(Rule::PodReplaced),
        _ => of_pod(model, local, object),
    }
}

/// How a pod with this label is protected in a namespace with this ruling.
pub(crate) fn strengthen(namespace: Ruling, label: Option<&str>, allow_opt_out: bool) -> Ruling {
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
            Rule::Default => write!(
                f,
                "neither its namespace nor the pod has the label {ENCRYPTION_LABEL}, and the configuration protects such pods (defaults.encryption)"
            ),
            Rule::NamespaceLabel => write!(f, "its namespace's label {ENCRYPTION_LABEL}"),
            Rule::NamespaceLabelUnknown => {
                write!(f, "its namespace's label {ENCRYPTION_LABEL} has an unknown value, which counts as enabled")
            }
            Rule::PodLabel => write!(f, "the pod's own label {ENCRYPTION_LABEL}, stricter than its namespace"),
            Rule::PodOptOut => {
                write!(f, "the pod's own label {ENCRYPTION_LABEL}, weaker than its namespace (allowPodOptOut)")
            }
            Rule::PodOptOutRefused => write!(
                f,
                "its namespace's label {ENCRYPTION_LABEL}, or the configuration's default; the pod's own label would weaken it and is refused (allowPodOptOut is off)"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{convergence, enforced};
    use crate::model::Change;
    use crate::objects::PodObject;
    use crate::testing::{World, namespace, pod};

    fn world(default: Protection) -> World {
        let mut world = World::new();
        world.local.settings.default_protection = default;
        world.apply(namespace("unlabelled", None));
        world.apply(namespace("off", Some("disabled")));
        for name in ["unlabelled/plain", "off/plain", "nowhere/plain"] {
            world.apply(Change::Pod(pod(name, 2, &["10.0.2.5"])));
        }
        for (name, label) in [("unlabelled/weak", "disabled"), ("unlabelled/strong", "enabled")] {
            world.apply(Change::Pod(PodObject { encryption: Some(label.into()), ..pod(name, 2, &["10.0.2.6"]) }));
        }
        world
    }

    fn ruling(world: &World, pod: &str) -> (Protection, Rule) {
        let (namespace, name) = pod.split_once('/').unwrap();
        let name = PodName { namespace: namespace.into(), name: name.into() };
        let ruling = of_pod(&world.model, &world.local, world.model.pod(&name).unwrap());
        (ruling.protection, ruling.rule)
    }

    #[test]
    fn the_default_holds_where_no_label_says_anything() {
        for default in [Protection::Permissive, Protection::Enabled] {
            let world = world(default);
            assert_eq!(ruling(&world, "unlabelled/plain"), (default, Rule::Default));
            assert_eq!(ruling(&world, "off/plain"), (Protection::None, Rule::NamespaceLabel), "a label is a word");
            assert_eq!(ruling(&world, "nowhere/plain"), (Protection::Enabled, Rule::NamespaceUnknown));
        }
        assert_eq!(ruling(&world(Protection::None), "unlabelled/plain"), (Protection::None, Rule::NoLabel));
        assert!(Rule::Default.to_string().contains("defaults.encryption"));
    }

    #[test]
    fn a_pod_weakens_the_default_no_more_than_its_namespace() {
        let mut world = world(Protection::Permissive);
        assert_eq!(ruling(&world, "unlabelled/weak"), (Protection::Permissive, Rule::PodOptOutRefused));
        assert_eq!(ruling(&world, "unlabelled/strong"), (Protection::Enabled, Rule::PodLabel));
        world.local.settings.allow_pod_opt_out = true;
        assert_eq!(ruling(&world, "unlabelled/weak"), (Protection::None, Rule::PodOptOut));
    }

    #[test]
    fn what_is_opted_in_by_default_is_acknowledged_as_if_by_label() {
        let by_default = world(Protection::Enabled);
        let mut by_label = world(Protection::None);
        by_label.apply(namespace("unlabelled", Some("enabled")));
        let word = |world: &World| enforced(&world.model, &world.local).remove("unlabelled");
        assert!(word(&by_default).is_some());
        assert_eq!(word(&by_default), word(&by_label));
        let names = |world: &World| {
            let all = convergence(&world.model, &world.local);
            all.into_iter().map(|status| (status.name, status.protection, status.protected_pods)).collect::<Vec<_>>()
        };
        assert_eq!(names(&by_default), names(&by_label));
        assert!(word(&world(Protection::None)).is_some(), "one of its pods has a label");
        assert_ne!(word(&world(Protection::None)), word(&by_default));
    }
}
