//! One key type for both families: an IPv6 address is stored as it is, an IPv4 address as an
//! IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
//!
//! A packet that carries a mapped address *on the wire* is malformed (RFC 4038 section 4.2) and
//! never reaches a look-up, so the two families cannot be confused.

/// An address of either family, as a map key (16 bytes, network order).
///
/// It is stored as words and not as bytes, because BPF reads and writes memory in units no wider
/// than its alignment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Address(u32, u32, u32, u32);

const _: () = assert!(size_of::<Address>() == 16);

/// The third word of every IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// The unspecified IPv6 address.
    pub const UNSPECIFIED: Address = Address(0, 0, 0, 0);
    /// The highest address.
    pub const LAST: Address = Address(u32::MAX, u32::MAX, u32::MAX, u32::MAX);

    /// An IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Address {
        Address::v4_word(u32::from_ne_bytes(octets))
    }

    /// An IPv4 address as it lies in a packet.
    #[inline(always)]
    pub const fn v4_word(word: u32) -> Address {
        Address(0, 0, MAPPED, word)
    }

    /// An IPv6 address in network order.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Address {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Address(
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        )
    }

    /// An IPv6 address as it lies in a packet.
    #[inline(always)]
    pub const fn v6_words(words: [u32; 4]) -> Address {
        let [a, b, c, d] = words;
        Address(a, b, c, d)
    }

    /// The words as they lie in memory. The last word of an IPv4 address holds the whole address.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        [self.0, self.1, self.2, self.3]
    }

    /// The bytes, in network order.
    #[inline(always)]
    pub fn octets(&self) -> [u8; 16] {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = self.words().map(u32::to_ne_bytes);
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0 == 0 && self.1 == 0 && self.2 == MAPPED
    }

    /// Whether the address is all zero in its family (0.0.0.0 or ::).
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        self.0 == 0 && self.1 == 0 && self.3 == 0 && (self.2 == 0 || self.2 == MAPPED)
    }

    /// Whether no packet that comes from another host has this as its source: unspecified,
    /// loopback, multicast, broadcast or reserved (RFC 6890). Or it is link-local, and an answer
    /// cannot be sent there without its link.
    #[inline(always)]
    pub fn is_no_source(&self) -> bool {
        if self.is_unspecified() || self.is_multicast() || self.is_link_local() {
            return true;
        }
        if self.is_v4() {
            let first = u32::from_be(self.3) >> 24;
            return first == 0 || first == 127 || first >= 224;
        }
        (self.0, self.1, self.2) == (0, 0, 0) && u32::from_be(self.3) == 1
    }

    /// Whether the address never leaves the link it is used on. A pod needs these addresses to
    /// speak with its own node: IPv6 link-local (fe80::/10), IPv6 multicast of interface or link
    /// scope (ff01::/16, ff02::/16), IPv4 local multicast (224.0.0.0/24) and broadcast, and the
    /// pods' IPv4 gateway ([`GATEWAY_V4`]).
    #[inline(always)]
    pub fn is_link_scope(&self) -> bool {
        if self.is_v4() {
            let v4 = u32::from_be(self.3);
            return v4 == u32::MAX || (v4 >> 8) == 0x00e0_0000 || v4 == u32::from_be_bytes(GATEWAY_V4);
        }
        let first = u32::from_be(self.0);
        self.is_link_local() || ((first >> 24) == 0xff && matches!((first >> 16) & 0x0f, 1 | 2))
    }

    /// Whether this is an IPv6 link-local address (fe80::/10). Every host on a link assigns itself
    /// one.
    #[inline(always)]
    pub fn is_link_local(&self) -> bool {
        (u32::from_be(self.0) >> 22) == (0xfe80 >> 6)
    }

    /// Whether this is a multicast (224.0.0.0/4, ff00::/8) or the limited broadcast address.
    #[inline(always)]
    pub fn is_multicast(&self) -> bool {
        if self.is_v4() {
            let v4 = u32::from_be(self.3);
            return (v4 >> 28) == 0xe || v4 == u32::MAX;
        }
        (u32::from_be(self.0) >> 24) == 0xff
    }
}

// In network order, so that the addresses of a prefix sort next to each other.
impl Ord for Address {
    fn cmp(&self, other: &Address) -> core::cmp::Ordering {
        self.words().map(u32::from_be).cmp(&other.words().map(u32::from_be))
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Address) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The pods' IPv4 default gateway: a link-local address that the host side of every pod interface
/// answers for.
pub const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];
/// The pods' IPv6 default gateway.
pub const GATEWAY_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Key of a longest-prefix map (`BPF_MAP_TYPE_LPM_TRIE`): the number of significant bits, then the
/// address.
///
/// aya's `lpm_trie::Key<Address>` has the same layout. This copy is for code that does not use aya.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    /// Significant leading bits of `address`: 0..=128. For an IPv4 prefix this includes the 96 bits
    /// of the mapping.
    pub length: u32,
    /// The network address.
    pub address: Address,
}

#[cfg(feature = "std")]
mod std_conversions {
    use super::{Address, Prefix};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Address {
            match address {
                IpAddr::V4(v4) => Address::v4(v4.octets()),
                IpAddr::V6(v6) => Address::v6(v6.octets()),
            }
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> IpAddr {
            if address.is_v4() {
                Ipv4Addr::from(address.3.to_ne_bytes()).into()
            } else {
                Ipv6Addr::from(address.octets()).into()
            }
        }
    }

    impl std::fmt::Display for Address {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }

    impl Prefix {
        /// The prefix `address/length`. `length` counts in the address's own family.
        pub fn new(address: IpAddr, length: u8) -> Prefix {
            let mapped = if address.is_ipv4() { 96 } else { 0 };
            Prefix { length: mapped + u32::from(length), address: address.into() }
        }
    }
}
