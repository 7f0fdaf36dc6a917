//! The plugin's stdin as a container runtime gives it.
#![no_main]

use hauberk_cni::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = config::read(bytes) else { return };
    let version = config::version(&input);
    match config::parse(&input) {
        Ok(config) => {
            assert_eq!(version.ok(), Some(config.version));
            assert!(config.socket.is_absolute());
        }
        // Every error can be reported to the runtime.
        Err(error) => {
            let answer = error.to_json(version.unwrap_or(hauberk_cni::version::Version::LATEST));
            assert!(answer.starts_with('{') && answer.contains("\"code\""), "{answer}");
        }
    }
});
