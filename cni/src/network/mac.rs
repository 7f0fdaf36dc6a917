//! Random MAC addresses, so that a reused IP address never meets a stale neighbour entry of its
//! predecessor.

use std::fmt;
use std::fs::File;
use std::io::Read;

use crate::error::CniError;

/// A MAC address, written `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    /// A random one, unicast and locally administered (IEEE 802, the two lowest bits of the first
    /// byte).
    pub(crate) fn random() -> Result<Mac, CniError> {
        let mut bytes = [0; 6];
        File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).map_err(|source| {
            CniError::Kernel { action: "read /dev/urandom".to_string(), place: "the node".to_string(), source }
        })?;
        bytes[0] = bytes[0] & 0b1111_1100 | 0b10;
        Ok(Mac(bytes))
    }

    /// From netlink's bytes; none if the length is wrong.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Mac> {
        bytes.try_into().ok().map(Mac)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ones_are_unicast_and_local() {
        for _ in 0..100 {
            let mac = Mac::random().unwrap();
            assert_eq!(mac.as_bytes()[0] & 0b11, 0b10, "{mac}");
        }
        assert_eq!(Mac([0x0a, 0, 0, 0, 0, 0xff]).to_string(), "0a:00:00:00:00:ff");
    }
}
