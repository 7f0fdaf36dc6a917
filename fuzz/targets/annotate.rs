//! Annotations written back into a manifest that another program wrote.
#![no_main]

use std::collections::BTreeMap;

use hauberk_source::directory::annotate::edit;
use hauberk_source::directory::document::{Format, read, split};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let annotations = BTreeMap::from([
        ("hauberk.io/keys".to_owned(), Some(r#"{"version":1,"port":51840,"keys":[]}"#.to_owned())),
        ("hauberk.io/enforced".to_owned(), None),
    ]);
    for format in [Format::Yaml, Format::Json] {
        let Ok(Some(edited)) = edit(text, format, "n1", &annotations) else { continue };
        assert_eq!(edit(&edited, format, "n1", &annotations), Ok(None), "once is enough");
        let (before, after) = (split(text, format), split(&edited, format));
        assert_eq!(before.len(), after.len(), "no document comes or goes");
        let changed = before.iter().zip(&after).filter(|(before, after)| {
            let before = read(&text[before.range.clone()], format);
            let after = read(&edited[after.range.clone()], format);
            before.is_ok() != after.is_ok() || before.is_ok_and(|before| Ok(before) != after)
        });
        assert_eq!(changed.count(), 1, "one document is another now");
    }
});
