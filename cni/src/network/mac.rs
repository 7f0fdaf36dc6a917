//! Random MAC addresses, so that a reused IP address never meets a stale neighbour entry of its
//! predecessor.

use std::fs::File;
use std::io::Read;

use hauberk_api::MacAddress;

use crate::error::CniError;

/// A random one, unicast and locally administered (IEEE 802, the two lowest bits of the first
/// byte).
pub(crate) fn random() -> Result<MacAddress, CniError> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).map_err(|source| {
        CniError::Kernel { action: "read /dev/urandom".to_string(), place: "the node".to_string(), source }
    })?;
    bytes[0] = bytes[0] & 0b1111_1100 | 0b10;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ones_are_unicast_and_local() {
        for _ in 0..100 {
            let mac = random().unwrap();
            assert_eq!(mac.octets()[0] & 0b11, 0b10, "{mac}");
        }
    }
}
