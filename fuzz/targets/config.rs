//! `hauberkd.yaml`.
#![no_main]

use hauberk_agent::config::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(config) => {
            assert!(!config.cluster_ranges.is_empty());
            let shown = config.to_yaml().expect("the configuration can be shown");
            assert_eq!(parse(&shown).expect("what is shown can be read"), config);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
