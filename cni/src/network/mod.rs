//! The kernel's side: network namespaces, netlink, sysctls. Nothing in here decides anything.

pub(crate) mod mac;
pub(crate) mod namespace;
pub(crate) mod netlink;
