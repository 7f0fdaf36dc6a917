//! `hauberk.io/keys` as another node may have written it.
#![no_main]

use hauberk_keyring::published::{check, parse, render};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(published) = parse(text) else { return };
    assert_ne!(published.port, 0);
    assert!((1..=2).contains(&published.keys.len()));
    assert!(published.keys.iter().all(|key| check(&key.bytes).is_ok()));
    assert_eq!(parse(&render(&published)).as_ref(), Ok(&published));
});
