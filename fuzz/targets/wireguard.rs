//! WireGuard messages as anyone may send them: no input panics, and a parsed message can be written
//! back to the same bytes.
#![no_main]

// This module is private to its crate and needs nothing else there, so it is compiled here again.
#[allow(dead_code)]
#[path = "../../daemon/wireguard/src/protocol/message.rs"]
mod message;

use libfuzzer_sys::fuzz_target;
use message::{Data, Message};

fuzz_target!(|bytes: &[u8]| {
    let message = Message::parse(bytes);
    assert_eq!(message.is_some(), is_message(bytes));
    assert_eq!(Data::of(bytes).is_some(), matches!(message, Some(Message::Data(_))));
    let Some(message) = message else { return };
    write(message, bytes);
    if let Message::Data(data) = message {
        compare(data, bytes);
    }
});

/// The types and lengths, stated again independently of the parser.
fn is_message(bytes: &[u8]) -> bool {
    match bytes {
        [1, 0, 0, 0, rest @ ..] => rest.len() == 144,
        [2, 0, 0, 0, rest @ ..] => rest.len() == 88,
        [3, 0, 0, 0, rest @ ..] => rest.len() == 60,
        [4, 0, 0, 0, rest @ ..] => rest.len() >= 28,
        _ => false,
    }
}

/// A parsed message contains every byte, except the two MACs, which are checked elsewhere.
fn write(message: Message, bytes: &[u8]) {
    let before_macs = bytes.len().saturating_sub(32);
    match message {
        Message::Initiation { sender, noise } => {
            let written = message::initiation(sender, noise);
            assert_eq!(written[..before_macs], bytes[..before_macs]);
            assert_eq!(written[before_macs..], [0; 32]);
        }
        Message::Response { sender, receiver, noise } => {
            let written = message::response(sender, receiver, noise);
            assert_eq!(written[..before_macs], bytes[..before_macs]);
            assert_eq!(written[before_macs..], [0; 32]);
        }
        Message::CookieReply { receiver, nonce, sealed } => {
            assert_eq!([&[3, 0, 0, 0], &receiver.to_le_bytes()[..], nonce, sealed].concat(), bytes);
        }
        Message::Data(Data { receiver, counter, sealed }) => {
            let mut written = vec![0; bytes.len()];
            message::data(receiver, counter, &mut written).copy_from_slice(sealed);
            assert_eq!(written, bytes);
        }
    }
}

/// A run of messages for one session ends where another session, or another kind of message,
/// begins.
fn compare(data: Data, bytes: &[u8]) {
    let again = data.alike(bytes).expect("a message is like itself");
    assert_eq!((again.receiver, again.counter, again.sealed), (data.receiver, data.counter, data.sealed));
    // As receive offload joins datagrams: of any length, and the last one may hold anything.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    assert_eq!(data.alike(first).is_some(), is_message(first));
    let same_session = is_message(second) && second[0] == 4 && second[4..8] == bytes[4..8];
    assert_eq!(data.alike(second).is_some(), same_session);
    let at = usize::from(data.sealed[0] % 16);
    let mut other = bytes.to_vec();
    other[at] ^= 1 << (data.sealed[0] >> 5);
    // A type other than a data message, another session, or another counter of the same session.
    assert_eq!(data.alike(&other).is_some(), at >= 8, "byte {at}");
}
