//! The valid names in a request. All of them end up in paths, netlink messages or the agent's
//! state, and all of them are untrusted.

/// Longest interface name, bytes (`IFNAMSIZ` without the terminating zero).
const INTERFACE_LIMIT: usize = 15;
/// Longest container id or network name, bytes; runtimes use 64.
const IDENTIFIER_LIMIT: usize = 200;

/// A valid interface name for the kernel that is also safe as a folder name under `/proc/sys/net`.
pub fn is_interface(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    // The last two are folders there that do not belong to one interface.
    plain && (1..=INTERFACE_LIMIT).contains(&name.len()) && ![".", "..", "lo", "all", "default"].contains(&name)
}

/// A container id or network name: a letter or digit, then letters, digits and `_.-` (CNI spec,
/// section 1 and 2).
pub fn is_identifier(name: &str) -> bool {
    name.len() <= IDENTIFIER_LIMIT
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A Kubernetes namespace: a DNS label (RFC 1123).
pub fn is_namespace(name: &str) -> bool {
    name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.is_empty()
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A pod's name: DNS labels joined by dots.
pub fn is_pod(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for good in ["eth0", "net1", "a", "abcdefghijklmno", "eth0.5"] {
            assert!(is_interface(good), "{good}");
        }
        for bad in
            ["", "abcdefghijklmnop", "a/b", "a b", "..", ".", "all", "default", "lo", "a\n", "eth0:1", "veth%d", "é"]
        {
            assert!(!is_interface(bad), "{bad:?}");
        }
    }

    #[test]
    fn identifiers() {
        for good in ["a", "0123abc", "cni-1_2.3"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "-a", ".", "../x", "a/b", "a b", "a\0", &"a".repeat(201)] {
            assert!(!is_identifier(bad), "{bad:?}");
        }
    }

    #[test]
    fn kubernetes_names() {
        assert!(is_namespace("payments") && is_pod("api-0.v2"));
        for bad in ["", "-a", "a-", "A", "a/b", "a..b"] {
            assert!(!is_pod(bad), "{bad:?}");
        }
        assert!(!is_namespace("a.b"));
    }
}
