//! Which inner addresses belong to which peer: longest-prefix match across all peers.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::config::PeerId;

/// One table for destinations (which peer to encrypt to) and sources (which peer may have sent it).
#[derive(Default)]
pub(crate) struct AllowedIps {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
}

impl AllowedIps {
    /// The peer with the longest prefix that holds the address.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, id)| *id),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, id)| *id),
        }
    }

    /// The peer that has exactly this prefix.
    pub(crate) fn owner(&self, prefix: IpNet) -> Option<PeerId> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(&prefix).copied(),
            IpNet::V6(prefix) => self.v6.get(&prefix).copied(),
        }
    }

    /// Gives a prefix to a peer.
    pub(crate) fn insert(&mut self, prefix: IpNet, id: PeerId) {
        match prefix {
            IpNet::V4(prefix) => self.v4.insert(prefix, id),
            IpNet::V6(prefix) => self.v6.insert(prefix, id),
        };
    }

    /// Removes a prefix from a peer; does nothing if another peer has it by now.
    pub(crate) fn remove(&mut self, prefix: IpNet, id: PeerId) {
        if self.owner(prefix) == Some(id) {
            match prefix {
                IpNet::V4(prefix) => self.v4.remove(&prefix),
                IpNet::V6(prefix) => self.v6.remove(&prefix),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn prefix() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that prefixes nest and collide.
        prop_oneof![
            (0u32..16, 24u8..=32).prop_map(|(host, length)| {
                IpNet::V4(Ipv4Net::new((0x0a00_0000 | host).into(), length).unwrap()).trunc()
            }),
            (0u128..16, prop::sample::select(vec![0u8, 48, 120, 124, 126, 127, 128])).prop_map(|(host, length)| {
                IpNet::V6(Ipv6Net::new((0xfd00u128 << 112 | host).into(), length).unwrap()).trunc()
            }),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_search(
            steps in prop::collection::vec((any::<bool>(), prefix(), 0u32..4), 0..60),
            probes in prop::collection::vec((any::<bool>(), 0u32..300), 20),
        ) {
            let mut table = AllowedIps::default();
            let mut model: HashMap<IpNet, PeerId> = HashMap::new();
            for (insert, prefix, id) in steps {
                let id = PeerId(id);
                if insert {
                    table.insert(prefix, id);
                    model.insert(prefix, id);
                } else {
                    table.remove(prefix, id);
                    if model.get(&prefix) == Some(&id) {
                        model.remove(&prefix);
                    }
                }
                prop_assert_eq!(table.owner(prefix), model.get(&prefix).copied());
            }
            for (v4, host) in probes {
                let address = if v4 {
                    IpAddr::V4((0x0a00_0000 + host).into())
                } else {
                    IpAddr::V6((0xfd00u128 << 112 | u128::from(host)).into())
                };
                let expected = model
                    .iter()
                    .filter(|(prefix, _)| prefix.contains(&address))
                    .max_by_key(|(prefix, _)| prefix.prefix_len())
                    .map(|(_, id)| *id);
                prop_assert_eq!(table.lookup(address), expected);
            }
        }
    }
}
