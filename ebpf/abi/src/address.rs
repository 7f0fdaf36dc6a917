//! One key for both families: IPv6 as it is, IPv4 as an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
//!
//! A packet that carries a mapped address *on the wire* is malformed (RFC 4038 section 4.2) and never reaches a look-up, so
//! the two families cannot be confused.

/// An address of either family, as a map key (16 bytes, network order).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// The unspecified IPv6 address.
    pub const UNSPECIFIED: Address = Address([0; 16]);

    /// An IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Address {
        let [a, b, c, d] = octets;
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// An IPv6 address in network order.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Address {
        Address(octets)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        let (high, low) = self.halves();
        high == 0 && (low >> 32) == 0xffff
    }

    #[inline(always)]
    fn halves(&self) -> (u64, u64) {
        let b = &self.0;
        (
            u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        )
    }

    /// Whether the address is all zero in its family (0.0.0.0 or ::).
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        let (high, low) = self.halves();
        high == 0 && (low == 0 || low == 0xffff_0000_0000)
    }

    /// Addresses that never leave the link they are used on, and that a pod needs to speak with its own node: IPv6
    /// link-local (fe80::/10), IPv6 multicast of interface or link scope (ff01::/16, ff02::/16), IPv4 local multicast
    /// (224.0.0.0/24) and broadcast, and the pods' IPv4 gateway ([`GATEWAY_V4`]).
    #[inline(always)]
    pub fn is_link_scope(&self) -> bool {
        let b = &self.0;
        if self.is_v4() {
            let v4 = u32::from_be_bytes([b[12], b[13], b[14], b[15]]);
            return v4 == u32::MAX || (v4 >> 8) == 0x00e0_0000 || v4 == u32::from_be_bytes(GATEWAY_V4);
        }
        (b[0] == 0xfe && (b[1] & 0xc0) == 0x80) || (b[0] == 0xff && ((b[1] & 0x0f) == 1 || (b[1] & 0x0f) == 2))
    }

    /// Whether this is a multicast (224.0.0.0/4, ff00::/8) or the limited broadcast address.
    #[inline(always)]
    pub fn is_multicast(&self) -> bool {
        if self.is_v4() {
            return (self.0[12] & 0xf0) == 0xe0 || self.0[12..16] == [0xff; 4];
        }
        self.0[0] == 0xff
    }
}

/// The pods' IPv4 default gateway: a link-local address every pod interface's host side answers for.
pub const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];
/// The pods' IPv6 default gateway.
pub const GATEWAY_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Key of a longest-prefix map (`BPF_MAP_TYPE_LPM_TRIE`): significant bits, then the address.
///
/// aya's own `lpm_trie::Key<Address>` has the same layout; this alias-free copy is for code without aya.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    /// Significant leading bits of `address`: 0..=128; an IPv4 prefix counts its 96 mapped bits.
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
            let b = address.0;
            if address.is_v4() { Ipv4Addr::new(b[12], b[13], b[14], b[15]).into() } else { Ipv6Addr::from(b).into() }
        }
    }

    impl std::fmt::Display for Address {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }

    impl Prefix {
        /// The prefix `address/length`, length in the address's own family.
        pub fn new(address: IpAddr, length: u8) -> Prefix {
            let mapped = if address.is_ipv4() { 96 } else { 0 };
            Prefix { length: mapped + u32::from(length), address: address.into() }
        }
    }
}
