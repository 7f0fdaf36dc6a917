//! A file in the folder of manifests, half written or hostile.
#![no_main]

use hauberk_source::directory::document::{Format, read, split};
use hauberk_source::directory::manifest::objects;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for format in [Format::Yaml, Format::Json] {
        let mut end = 0;
        for document in split(text, format) {
            assert!(document.range.start >= end, "documents overlap");
            end = document.range.end;
            // A malformed document or object is rejected alone.
            let Ok(value) = read(&text[document.range], format) else { continue };
            for object in objects(value, "fuzz") {
                match object {
                    Ok((key, _)) => assert!(!key.name.is_empty()),
                    Err(rejection) => assert!(!rejection.cause.is_empty()),
                }
            }
        }
    }
});
