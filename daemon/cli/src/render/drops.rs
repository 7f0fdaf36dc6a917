//! `hauberk drops`: each reason, with what to do about it.

use hauberk_api::Drops;

use crate::render::page::{self, Page, painted};
use crate::render::words::counted;

/// The whole answer.
pub(crate) fn page(drops: &Drops) -> String {
    let mut page = Page::default();
    for leak in &drops.leaked {
        page.heading(page::BAD, "NOT DROPPED, IN THE CLEAR", painted(page::BAD, counted(leak.packets, "packet")));
        page.field("where", format_args!("left by {}", leak.device));
        page.field("what to do", "it had to be encrypted: `hauberk status` says what to look for");
    }
    if drops.reasons.is_empty() {
        page.line("no packet was dropped since the datapath was attached");
    }
    for drop in &drops.reasons {
        let style = if drop.packets == 0 || drop.expected { page::NEUTRAL } else { page::BAD };
        page.heading(style, &drop.reason, painted(style, counted(drop.packets, "packet")));
        page.field("where", &drop.place);
        if drop.expected {
            page.field("normal", "healthy nodes count some of these too");
        }
        page.field("what to do", &drop.advice);
    }
    page.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{drops, golden};

    #[test]
    fn some_and_none() {
        golden("drops", &page(&drops()));
        golden("drops-none", &page(&Drops { reasons: Vec::new(), leaked: Vec::new() }));
    }
}
