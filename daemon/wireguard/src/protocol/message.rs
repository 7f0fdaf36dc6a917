//! The four messages in wire format (WireGuard paper, 5.4): types, lengths, fields. Nothing here is
//! secret.

use hauberk_cipher::TAG;

/// Lengths of the messages with a fixed length (5.4.2, 5.4.3, 5.4.7).
pub(super) const INITIATION: usize = 148;
pub(super) const RESPONSE: usize = 92;
pub(super) const COOKIE_REPLY: usize = 64;
/// The Noise parts of the first two: ephemeral key, static key, timestamp; ephemeral key and a tag
/// over nothing.
pub(super) const INITIATION_NOISE: usize = 32 + (32 + TAG) + (12 + TAG);
pub(super) const RESPONSE_NOISE: usize = 32 + TAG;
/// Length of each of the two MACs at the end of an initiation or a response.
pub(super) const MAC: usize = 16;
/// Type, receiver and counter of a data message (5.4.6).
const DATA_HEADER: usize = 16;
/// How many bytes longer a data message is than its content.
pub(super) const OVERHEAD: usize = DATA_HEADER + TAG;

/// A message whose type and length were checked, but nothing else.
#[derive(Clone, Copy)]
pub(super) enum Message<'a> {
    Initiation { sender: u32, noise: &'a [u8; INITIATION_NOISE] },
    Response { sender: u32, receiver: u32, noise: &'a [u8; RESPONSE_NOISE] },
    CookieReply { receiver: u32, nonce: &'a [u8; 24], sealed: &'a [u8; 16 + TAG] },
    Data(Data<'a>),
}

/// A data message.
#[derive(Clone, Copy)]
pub(super) struct Data<'a> {
    pub(super) receiver: u32,
    pub(super) counter: u64,
    /// Ciphertext and tag.
    pub(super) sealed: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        // The type is one byte, followed by three zero bytes.
        let (kind, rest) = word(bytes)?;
        match (kind, bytes.len()) {
            (1, INITIATION) => {
                let (sender, rest) = word(rest)?;
                Some(Message::Initiation { sender, noise: rest.first_chunk()? })
            }
            (2, RESPONSE) => {
                let (sender, rest) = word(rest)?;
                let (receiver, rest) = word(rest)?;
                Some(Message::Response { sender, receiver, noise: rest.first_chunk()? })
            }
            (3, COOKIE_REPLY) => {
                let (receiver, rest) = word(rest)?;
                let (nonce, rest) = rest.split_first_chunk()?;
                Some(Message::CookieReply { receiver, nonce, sealed: rest.first_chunk()? })
            }
            (4, OVERHEAD..) => Data::parse(rest).map(Message::Data),
            _ => None,
        }
    }
}

impl<'a> Data<'a> {
    /// The bytes, if they are a data message.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Data<'a>> {
        match Message::parse(bytes) {
            Some(Message::Data(data)) => Some(data),
            _ => None,
        }
    }

    /// The data message in the bytes, if they are one for the same session as this message.
    pub(super) fn alike(&self, bytes: &'a [u8]) -> Option<Data<'a>> {
        Data::of(bytes).filter(|data| data.receiver == self.receiver)
    }

    fn parse(bytes: &'a [u8]) -> Option<Data<'a>> {
        let (receiver, rest) = word(bytes)?;
        let (counter, sealed) = rest.split_first_chunk()?;
        Some(Data { receiver, counter: u64::from_le_bytes(*counter), sealed })
    }
}

/// An initiation with both MACs still zero.
pub(super) fn initiation(sender: u32, noise: &[u8; INITIATION_NOISE]) -> [u8; INITIATION] {
    let mut message = [0; INITIATION];
    message[0] = 1;
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..8 + INITIATION_NOISE].copy_from_slice(noise);
    message
}

/// A response with both MACs still zero.
pub(super) fn response(sender: u32, receiver: u32, noise: &[u8; RESPONSE_NOISE]) -> [u8; RESPONSE] {
    let mut message = [0; RESPONSE];
    message[0] = 2;
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..12].copy_from_slice(&receiver.to_le_bytes());
    message[12..12 + RESPONSE_NOISE].copy_from_slice(noise);
    message
}

/// Writes the header of a data message; returns the rest of the room.
pub(super) fn data(receiver: u32, counter: u64, room: &mut [u8]) -> &mut [u8] {
    let (header, rest) = room.split_at_mut(DATA_HEADER);
    header[..4].copy_from_slice(&[4, 0, 0, 0]);
    header[4..8].copy_from_slice(&receiver.to_le_bytes());
    header[8..].copy_from_slice(&counter.to_le_bytes());
    rest
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let bytes = initiation(0x0102_0304, &[7; INITIATION_NOISE]);
        let Some(Message::Initiation { sender: 0x0102_0304, noise }) = Message::parse(&bytes) else { panic!() };
        assert_eq!(noise, &[7; INITIATION_NOISE]);
        let bytes = response(5, 6, &[8; RESPONSE_NOISE]);
        let Some(Message::Response { sender: 5, receiver: 6, noise }) = Message::parse(&bytes) else { panic!() };
        assert_eq!(noise, &[8; RESPONSE_NOISE]);
        let mut bytes = [9; 50];
        assert_eq!(data(10, 11, &mut bytes).len(), 34);
        let Some(Message::Data(Data { receiver: 10, counter: 11, sealed })) = Message::parse(&bytes) else { panic!() };
        assert_eq!(sealed, [9; 34]);
    }

    proptest! {
        #[test]
        fn only_the_right_lengths_are_messages(kind in 0u8..8, reserved in 0u8..2, length in 0usize..200) {
            let mut bytes = vec![0; length];
            for (byte, value) in bytes.iter_mut().zip([kind, 0, reserved]) {
                *byte = value;
            }
            let expected = reserved == 0
                && matches!((kind, length), (1, INITIATION) | (2, RESPONSE) | (3, COOKIE_REPLY) | (4, OVERHEAD..));
            prop_assert_eq!(Message::parse(&bytes).is_some(), expected && length > 0);
        }
    }
}
