//! Requests of clients of the WireGuard interface. Bounded and total: any bytes are a request, a
//! part of one, or too many.

/// In bytes. A longer request is invalid: `wg setconf` with thousands of peers stays below.
const MAX_BYTES: usize = 1 << 20;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To read the interface.
    Get,
    /// To change it.
    Set,
    /// Something that the protocol does not have.
    Unknown,
}

/// How much of a request has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More must be read.
    Incomplete,
    /// A request is complete, in the first `length` bytes.
    Complete {
        /// What it asks for.
        request: Request,
        /// Its bytes, with the empty line that ends it.
        length: usize,
    },
    /// More bytes than any request has.
    TooLong,
}

/// Reads the first request in `bytes`: lines up to an empty one. The first line says what the
/// request is.
pub fn parse(bytes: &[u8]) -> Progress {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") else {
        return if bytes.len() >= MAX_BYTES { Progress::TooLong } else { Progress::Incomplete };
    };
    let request = match bytes[..end].split(|byte| *byte == b'\n').next() {
        Some(b"get=1") => Request::Get,
        Some(b"set=1") => Request::Set,
        _ => Request::Unknown,
    };
    Progress::Complete { request, length: end + 2 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_told_apart_and_end_at_the_empty_line() {
        let complete = |request, length| Progress::Complete { request, length };
        assert_eq!(parse(b"get=1\n\n"), complete(Request::Get, 7));
        assert_eq!(parse(b"get=1\n\nset=1\n\n"), complete(Request::Get, 7));
        assert_eq!(parse(b"set=1\nlisten_port=1\n\n"), complete(Request::Set, 21));
        assert_eq!(parse(b"get=2\n\n"), complete(Request::Unknown, 7));
        assert_eq!(parse(b"\n\n"), complete(Request::Unknown, 2));
        assert_eq!(parse(b"get=1\n"), Progress::Incomplete);
        assert_eq!(parse(b""), Progress::Incomplete);
        assert_eq!(parse(&vec![b'x'; MAX_BYTES]), Progress::TooLong);
    }

    proptest! {
        #[test]
        fn any_bytes_are_understood_within_their_bounds(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'='), any::<u8>()], 0..200)) {
            if let Progress::Complete { length, .. } = parse(&bytes) {
                prop_assert!(length <= bytes.len() && length >= 2);
                prop_assert_eq!(&bytes[length - 2..length], b"\n\n");
            }
        }
    }
}
