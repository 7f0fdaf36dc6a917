//! Other programs' tables, which may drop a packet that the tunnel gave to the stack.

use std::fs;

use super::super::HostError;
use super::{read, run, text};

/// Other programs' chains that see what the stack forwards or delivers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Neighbours {
    /// Chains with the policy drop: family, table, chain and hook of each.
    pub dropping: Vec<String>,
    /// The other chains, in the same form.
    pub accepting: Vec<String>,
    /// Whether there are tables of iptables-legacy, whose chains nftables cannot list.
    pub legacy: bool,
    /// Commands that let through what comes out of the tunnel, as far as they are known.
    pub cures: String,
}

impl Neighbours {
    /// Lists what is there now.
    ///
    /// # Errors
    /// [`HostError::NoNft`].
    pub async fn look() -> Result<Neighbours, HostError> {
        let output = run(&["-j", "list", "chains"], "").await?;
        let mut neighbours = parse(&String::from_utf8_lossy(&output.stdout));
        neighbours.legacy = has_legacy_tables();
        Ok(neighbours)
    }
}

/// The kernel lists the tables that iptables-legacy made; those of iptables-nft belong to nftables.
pub fn has_legacy_tables() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty()))
}

/// Reads `nft -j list chains`.
fn parse(json: &str) -> Neighbours {
    let mut neighbours = Neighbours::default();
    for chain in read::objects(json, "chain") {
        let word = |name: &str| chain[name].as_str().unwrap_or_default();
        let sees = matches!(word("family"), "ip" | "ip6" | "inet") && matches!(word("hook"), "forward" | "input");
        if !sees || word("type") != "filter" || word("table") == text::TABLE {
            continue;
        }
        let name = format!("{} {} {} ({})", word("family"), word("table"), word("name"), word("hook"));
        let list = if chain["policy"] == "drop" { &mut neighbours.dropping } else { &mut neighbours.accepting };
        list.push(name);
    }
    neighbours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_chains_of_others_are_told_by_their_policy() {
        let json = r#"{"nftables": [{"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_INPUT", "type": "filter", "hook": "input", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "type": "nat", "hook": "prerouting", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
            {"chain": {"family": "inet", "table": "hauberk", "name": "count_forwarded", "type": "filter", "hook": "forward", "policy": "accept"}}]}"#;
        let neighbours = parse(json);
        assert_eq!(neighbours.dropping, ["ip filter FORWARD (forward)"]);
        assert_eq!(neighbours.accepting, ["inet firewalld filter_INPUT (input)"]);
        assert_eq!(parse("nonsense"), Neighbours::default());
    }
}
