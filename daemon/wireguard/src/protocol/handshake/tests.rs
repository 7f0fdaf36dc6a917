//! Compared with another implementation of Noise, and messages that must be refused.

use super::*;
use crate::protocol::timestamp;

struct Party {
    secret: StaticSecret,
    public: PublicKey,
}

fn party(seed: u8) -> Party {
    let secret = StaticSecret::from([seed; 32]);
    Party { public: PublicKey::from(&secret), secret }
}

fn snow<'a>(local: &'a StaticSecret) -> snow::Builder<'a> {
    let name = std::str::from_utf8(CONSTRUCTION).unwrap();
    let builder = snow::Builder::new(name.parse().unwrap());
    let builder = builder.prologue(IDENTIFIER).unwrap().psk(2, &PRESHARED_KEY).unwrap();
    builder.local_private_key(local.as_bytes()).unwrap()
}

fn initiate(from: &Party, to: &Party) -> (Initiator, [u8; INITIATION_NOISE], Timestamp) {
    let timestamp = timestamp::next();
    let agreed = from.secret.diffie_hellman(&to.public);
    let (initiator, noise) = Initiator::begin(&from.public, &to.public, &agreed, &timestamp);
    (initiator, noise, timestamp)
}

#[test]
fn another_noise_answers_ours() {
    let (us, them) = (party(1), party(2));
    let (initiator, noise, sent) = initiate(&us, &them);

    let mut theirs = snow(&them.secret).build_responder().unwrap();
    let mut timestamp = NEVER;
    theirs.read_message(&noise, &mut timestamp).unwrap();
    assert_eq!((timestamp, theirs.get_remote_static()), (sent, Some(&us.public.as_bytes()[..])));
    let mut answer = [0; RESPONSE_NOISE];
    theirs.write_message(&[], &mut answer).unwrap();

    let keys = initiator.finish(&us.secret, &answer).unwrap();
    assert_eq!((*keys.sending, *keys.receiving), theirs.dangerously_get_raw_split());
}

#[test]
fn ours_answers_another_noise() {
    let (us, them) = (party(1), party(2));
    let mut theirs = snow(&them.secret).remote_public_key(us.public.as_bytes()).unwrap().build_initiator().unwrap();
    let sent = timestamp::next();
    let mut noise = [0; INITIATION_NOISE];
    theirs.write_message(&sent, &mut noise).unwrap();

    let mut responder = Responder::begin(&us.secret, &us.public, &noise).unwrap();
    assert_eq!(responder.remote(), &them.public);
    assert_eq!(responder.timestamp(&us.secret.diffie_hellman(&them.public)).unwrap(), sent);
    let (keys, answer) = responder.finish().unwrap();

    theirs.read_message(&answer, &mut []).unwrap();
    assert_eq!((*keys.receiving, *keys.sending), theirs.dangerously_get_raw_split());
}

#[test]
fn who_damages_a_message_is_noticed_wherever_it_is() {
    let (us, them) = (party(1), party(2));
    let (initiator, noise, _) = initiate(&us, &them);
    let agreed = them.secret.diffie_hellman(&us.public);
    let answer = |noise: &[u8; INITIATION_NOISE]| -> Result<_, TunnelDrop> {
        let mut responder = Responder::begin(&them.secret, &them.public, noise)?;
        responder.timestamp(&agreed)?;
        responder.finish()
    };
    for at in 0..INITIATION_NOISE {
        let mut damaged = noise;
        damaged[at] ^= 1;
        assert_eq!(answer(&damaged).err(), Some(TunnelDrop::ReplayOrForged), "byte {at} of the initiation");
    }
    let (keys, response) = answer(&noise).unwrap();
    for at in 0..RESPONSE_NOISE {
        let mut damaged = response;
        damaged[at] ^= 1;
        let finished = initiator.finish(&us.secret, &damaged);
        assert_eq!(finished.err(), Some(TunnelDrop::ReplayOrForged), "byte {at} of the response");
    }
    // After all that, the true response is still accepted.
    assert_eq!(initiator.finish(&us.secret, &response).unwrap().sending, keys.receiving);
}

#[test]
fn nobody_else_can_answer_or_be_taken_for_the_sender() {
    let (us, them, other) = (party(1), party(2), party(3));
    let (initiator, noise, _) = initiate(&us, &them);
    assert!(Responder::begin(&other.secret, &other.public, &noise).is_err(), "it was sealed for another key");

    // Without the secret a sender can claim any key, but cannot seal a timestamp.
    let agreed = other.secret.diffie_hellman(&them.public);
    let (_, noise) = Initiator::begin(&us.public, &them.public, &agreed, &timestamp::next());
    let mut responder = Responder::begin(&them.secret, &them.public, &noise).unwrap();
    assert_eq!(responder.remote(), &us.public);
    assert!(responder.timestamp(&them.secret.diffie_hellman(&us.public)).is_err());

    let mut own = Responder::begin(&them.secret, &them.public, &initiate(&other, &them).1).unwrap();
    own.timestamp(&agreed).unwrap();
    let (_, response) = own.finish().unwrap();
    assert!(initiator.finish(&us.secret, &response).is_err(), "it answers another handshake");
}

/// With such a key the shared secret does not depend on the other side: the message decrypts, but
/// everyone can compute the secret.
#[test]
fn ephemeral_keys_of_small_order_are_refused() {
    const SMALL: [u8; 32] = [0; 32];
    let (us, them) = (party(1), party(2));
    let agreed = us.secret.diffie_hellman(&them.public);

    let mut noise = [0; INITIATION_NOISE];
    let (_, rest) = noise.split_at_mut(32);
    let (sealed_static, sealed_timestamp) = rest.split_at_mut(32 + TAG);
    let mut transcript = Transcript::new(&them.public);
    transcript.mix_ephemeral(&SMALL);
    let key = transcript.mix_key(&SMALL);
    transcript.seal(&key, us.public.as_bytes(), sealed_static);
    let key = transcript.mix_key(agreed.as_bytes());
    transcript.seal(&key, &timestamp::next(), sealed_timestamp);
    assert!(Responder::begin(&them.secret, &them.public, &noise).is_err());

    let (initiator, noise, _) = initiate(&us, &them);
    let mut responder = Responder::begin(&them.secret, &them.public, &noise).unwrap();
    responder.timestamp(&agreed).unwrap();
    let mut response = [0; RESPONSE_NOISE];
    let mut transcript = responder.transcript.clone();
    transcript.mix_ephemeral(&SMALL);
    transcript.mix_key(&SMALL);
    transcript.mix_key(&SMALL);
    let key = transcript.mix_preshared_key();
    transcript.seal(&key, &[], &mut response[32..]);
    assert!(initiator.finish(&us.secret, &response).is_err());
}

#[test]
fn no_handshake_is_like_another() {
    let (us, them) = (party(1), party(2));
    let (first, second) = (initiate(&us, &them), initiate(&us, &them));
    assert_ne!(first.1[..32], second.1[..32]);
    assert!(first.2 < second.2);
}

#[test]
fn what_is_secret_is_overwritten_when_dropped() {
    // All of them are plain bytes, so having a destructor means that they are wiped.
    fn has_destructor<T: Zeroize>() {
        assert!(std::mem::needs_drop::<T>(), "{}", std::any::type_name::<T>());
    }
    has_destructor::<Transcript>();
    has_destructor::<Secret>();
    has_destructor::<ReusableSecret>();
    has_destructor::<SharedSecret>();
    has_destructor::<StaticSecret>();
}
