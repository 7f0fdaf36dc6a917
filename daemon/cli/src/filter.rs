//! Selects the flows that the user asked for. The agent does not filter: the table is small, and
//! its answer stays simple.

use std::net::IpAddr;

use hauberk_api::FlowRecord;

use crate::arguments::FilterArguments;

impl FilterArguments {
    /// Every kind of filter that is given must match, with one of its values.
    pub(crate) fn matches(&self, flow: &FlowRecord) -> bool {
        any(&self.namespace, |namespace| names(flow).any(|name| pod_is_of(name, namespace)))
            && any(&self.pod, |pod| names(flow).any(|name| name == pod))
            && any(&self.node, |node| {
                flow.node == *node || flow.peer.as_ref() == Some(node) || names(flow).any(|name| name == node)
            })
            && any(&self.address, |range| ends(flow).iter().any(|address| range.contains(address)))
            && any(&self.port, |port| [flow.source_port, flow.destination_port].contains(port))
            && any(&self.protocol, |protocol| flow.protocol.eq_ignore_ascii_case(protocol))
            && any(&self.encryption, |encryption| flow.encryption == encryption.meant())
            && any(&self.drop, |reason| flow.drop.as_ref().is_some_and(|drop| drop.as_str() == reason))
    }
}

/// A filter without values matches everything.
fn any<T>(values: &[T], matches: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(matches)
}

fn names(flow: &FlowRecord) -> impl Iterator<Item = &str> {
    [&flow.source_name, &flow.destination_name].into_iter().filter_map(Option::as_deref)
}

fn ends(flow: &FlowRecord) -> [IpAddr; 2] {
    [flow.source, flow.destination]
}

fn pod_is_of(name: &str, namespace: &str) -> bool {
    name.split_once('/').is_some_and(|(of, _)| of == namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::EncryptionArgument;
    use crate::render::samples::flow;

    #[test]
    fn kinds_are_joined_by_and_values_by_or() {
        let none = FilterArguments::default();
        assert!(none.matches(&flow()));

        let both = |namespace: &str, encryption| FilterArguments {
            namespace: vec!["other".to_string(), namespace.to_string()],
            encryption: vec![encryption],
            ..FilterArguments::default()
        };
        assert!(both("payments", EncryptionArgument::Encrypted).matches(&flow()));
        assert!(!both("payments", EncryptionArgument::Plain).matches(&flow()));
        assert!(!both("pay", EncryptionArgument::Encrypted).matches(&flow()));
    }

    #[test]
    fn either_end_counts() {
        type Set = fn(&mut FilterArguments);
        let filters: [(Set, bool); 9] = [
            (|f| f.pod = vec!["payments/db".to_string()], true),
            (|f| f.pod = vec!["payments/d".to_string()], false),
            (|f| f.node = vec!["n2".to_string()], true),
            (|f| f.node = vec!["n3".to_string()], false),
            (|f| f.address = vec!["10.244.2.0/24".parse().unwrap()], true),
            (|f| f.address = vec!["fd00::/8".parse().unwrap()], false),
            (|f| f.port = vec![5432], true),
            (|f| f.protocol = vec!["TCP".to_string()], true),
            (|f| f.drop = vec!["no_peer".to_string()], false),
        ];
        for (number, (set, expected)) in filters.into_iter().enumerate() {
            let mut filter = FilterArguments::default();
            set(&mut filter);
            assert_eq!(filter.matches(&flow()), expected, "filter {number}");
        }
    }
}
