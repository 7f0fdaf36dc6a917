//! Which of several sockets gets a message: that of the engine that has the message's session.

use hauberk_engine::MOST_ENGINES;

use super::{FIRST_ENGINE, INDEX_BITS};

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const RETURN_ACCUMULATOR: u16 = (libc::BPF_RET | libc::BPF_A) as u16;

const _: () = assert!(MOST_ENGINES.is_power_of_two() && MOST_ENGINES <= 256 && INDEX_BITS == 24);

/// A classic BPF program that gets a UDP payload and returns the engine's number.
///
/// Responses have the receiver's index at byte 8, cookie replies and data at byte 4 (WireGuard
/// paper, 5.4), in little-endian order. Its lowest byte selects the session; the lowest bits of the
/// next byte are the engine's number. If the payload is too short, the result is 0.
pub(crate) fn filter() -> [libc::sock_filter; 10] {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        step(LOAD_BYTE, 0, 0, 0),
        step(IF_EQUAL, 2, 0, 2),
        step(IF_EQUAL, 3, 0, 3),
        step(IF_EQUAL, 2, 5, 4),
        step(LOAD_BYTE, 0, 0, 9),
        step(JUMP, 0, 0, 1),
        step(LOAD_BYTE, 0, 0, 5),
        step(AND, 0, 0, MOST_ENGINES as u32 - 1),
        step(RETURN_ACCUMULATOR, 0, 0, 0),
        step(RETURN, 0, 0, FIRST_ENGINE as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::message;
    use super::*;

    /// Runs the program as the kernel does (Documentation/networking/filter.rst), for the
    /// instructions used here.
    fn run(payload: &[u8]) -> u32 {
        let program = filter();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD_BYTE if k as usize >= payload.len() => return 0,
                LOAD_BYTE => accumulator = payload[k as usize].into(),
                IF_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                JUMP => at += k as usize,
                AND => accumulator &= k,
                RETURN => return k,
                RETURN_ACCUMULATOR => return accumulator,
                _ => panic!("code {code:#x}"),
            }
        }
    }

    #[test]
    fn each_message_goes_to_the_engine_in_its_receivers_index() {
        for engine in [0u32, 1, 5, 63] {
            let receiver = ((7 << 6) | engine) << 8 | 0xa5;
            let mut data = [0xff; 64];
            message::data(receiver, u64::MAX, &mut data);
            assert_eq!(run(&data), engine);
            assert_eq!(run(&message::response(u32::MAX, receiver, &[0xff; message::RESPONSE_NOISE])), engine);
            let mut cookie = [0xff; message::COOKIE_REPLY];
            cookie[..4].copy_from_slice(&[3, 0, 0, 0]);
            cookie[4..8].copy_from_slice(&receiver.to_le_bytes());
            assert_eq!(run(&cookie), engine);
            assert_eq!(run(&message::initiation(receiver, &[0xff; message::INITIATION_NOISE])), 0);
        }
        for nothing in [&[][..], &[4], &[4, 0, 0, 0, 0], &[9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]] {
            assert_eq!(run(nothing), 0, "{nothing:?}");
        }
    }
}
