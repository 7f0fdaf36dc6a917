//! The kernel interfaces: network namespaces, netlink, sysctls. Nothing here makes decisions.

pub(crate) mod mac;
pub(crate) mod namespace;
pub(crate) mod netlink;
