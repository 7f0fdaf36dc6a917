//! Allows aya to copy these types into and out of maps.

use crate::address::Address;
use crate::connection::{Connection, Direction};
use crate::flow::{Flow, FlowEvent, FlowKey, Tally};
use crate::identity::Identity;
use crate::layout::{Answer, AnswerKey, Attachment, Counter, Interface, Pair, Peer, Settings};
use crate::service::{
    Backend, Choice, ClientKey, Frontend, FrontendKey, MemberKey, OutsideClientKey, Seen, Set, SlotKey, SocketKey,
    SourceKey,
};

macro_rules! plain_data {
    ($($name:ty),*) => {
        // SAFETY: each is `Copy`, `repr(C)` or `repr(transparent)`, made of integers only and
        // without padding, so that every bit pattern is valid and every byte initialized.
        $(unsafe impl aya::Pod for $name {})*
    };
}

plain_data!(Address, Identity, Attachment, Interface, Peer, Pair, AnswerKey, Answer, Counter, Settings);
plain_data!(FlowKey, Flow, FlowEvent, Tally);
plain_data!(FrontendKey, Frontend, Set, SlotKey, Backend, MemberKey, ClientKey, Choice, SocketKey, Seen);
plain_data!(SourceKey, OutsideClientKey, Connection, Direction);
