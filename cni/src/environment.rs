//! The runtime's request: the environment, parsed into one request per command.

use std::path::PathBuf;

use hauberk_api::{PodReference, Reserve};

use crate::arguments::{self, shortened};
use crate::error::CniError;
use crate::name;

/// A command with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Gives a pod its interface.
    Add(PodInterface),
    /// Removes it. The namespace may be gone already, or was never named.
    Del {
        /// The runtime's container id.
        container: String,
        /// The interface's name inside the pod.
        interface: String,
        /// The pod's network namespace, if the runtime still has one.
        netns: Option<PathBuf>,
    },
    /// Compares it with what ADD set up.
    Check(PodInterface),
    /// Asks whether ADD would work now.
    Status,
    /// Removes all attachments except the listed ones.
    Gc,
    /// Asks which versions of the specification this plugin supports.
    Version,
}

/// A pod's interface as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The runtime's container id.
    pub container: String,
    /// The interface's name inside the pod.
    pub interface: String,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The pod, if the runtime names it.
    pub pod: Option<PodReference>,
}

impl PodInterface {
    /// As the agent is asked for it.
    pub(crate) fn reserve(&self) -> Reserve {
        Reserve {
            container: self.container.clone(),
            interface: self.interface.clone(),
            pod: self.pod.clone(),
            netns: self.netns.display().to_string(),
        }
    }
}

impl Request {
    /// Reads the request from the variables that `variable` looks up.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Request, CniError> {
        let environment = Environment { variable };
        match environment.required("CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Request::Add(environment.pod_interface()?)),
            "CHECK" => Ok(Request::Check(environment.pod_interface()?)),
            "DEL" => Ok(Request::Del {
                container: environment.container()?,
                interface: environment.interface()?,
                netns: environment.optional("CNI_NETNS").map(PathBuf::from),
            }),
            "STATUS" => Ok(Request::Status),
            "GC" => Ok(Request::Gc),
            "VERSION" => Ok(Request::Version),
            other => Err(CniError::Environment {
                variable: "CNI_COMMAND",
                problem: format!("is {}, not one of ADD, DEL, CHECK, STATUS, GC, VERSION", shortened(other)),
            }),
        }
    }
}

struct Environment<V> {
    variable: V,
}

impl<V: Fn(&str) -> Option<String>> Environment<V> {
    fn pod_interface(&self) -> Result<PodInterface, CniError> {
        Ok(PodInterface {
            container: self.container()?,
            interface: self.interface()?,
            netns: self.netns()?,
            pod: arguments::parse(&self.optional("CNI_ARGS").unwrap_or_default())?,
        })
    }

    fn container(&self) -> Result<String, CniError> {
        let rule = "must begin with a letter or digit and go on with these, `_`, `.` or `-`, at most 200";
        self.checked("CNI_CONTAINERID", name::is_identifier, rule)
    }

    fn interface(&self) -> Result<String, CniError> {
        let rule = "must be 1 to 15 printable characters without `/`, `:` and `%`, and not lo, all or default";
        self.checked("CNI_IFNAME", name::is_interface, rule)
    }

    fn netns(&self) -> Result<PathBuf, CniError> {
        let rule = "must be an absolute path";
        self.checked("CNI_NETNS", |path| path.starts_with('/') && path.len() < 4096, rule).map(PathBuf::from)
    }

    fn checked(&self, name: &'static str, valid: impl Fn(&str) -> bool, rule: &str) -> Result<String, CniError> {
        let value = self.required(name)?;
        if valid(&value) {
            return Ok(value);
        }
        Err(CniError::Environment { variable: name, problem: format!("is {}: {rule}", shortened(&value)) })
    }

    fn required(&self, name: &'static str) -> Result<String, CniError> {
        self.optional(name).ok_or_else(|| CniError::Environment {
            variable: name,
            problem: "is not set: this is a CNI plugin, which a container runtime runs (or cnitool, to try it)"
                .to_string(),
        })
    }

    fn optional(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Request, CniError> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Request::from_environment(find)
    }

    const FULL: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/a")];

    #[test]
    fn add_takes_all_of_them() {
        let Request::Add(pod) = parse(&FULL).unwrap() else { panic!("not ADD") };
        assert_eq!((pod.container.as_str(), pod.interface.as_str()), ("c1", "eth0"));
        for (missing, _) in FULL {
            let rest: Vec<_> = FULL.into_iter().filter(|(name, _)| *name != missing).collect();
            let error = parse(&rest).unwrap_err();
            assert_eq!(error.code(), 4);
            assert!(error.to_string().starts_with(missing), "{error}");
        }
    }

    #[test]
    fn del_goes_without_a_namespace() {
        let del =
            parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")]);
        let expected = Request::Del { container: "c1".to_string(), interface: "eth0".to_string(), netns: None };
        assert_eq!(del.unwrap(), expected);
    }

    #[test]
    fn strange_values_are_refused_by_name() {
        for (index, value) in [(0, "add"), (1, "../c"), (2, "eth0/.."), (3, "netns")] {
            let mut variables = FULL;
            variables[index].1 = value;
            let error = parse(&variables).unwrap_err();
            assert_eq!(error.code(), 4, "{error}");
            assert!(error.to_string().contains(value), "{error}");
        }
    }
}
