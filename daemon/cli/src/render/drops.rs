//! `hauberk drops`: each reason with what to do about it.

use hauberk_core::api::Drops;

use crate::render::page::{self, Page, painted};
use crate::render::words::counted;

/// The whole answer.
pub(crate) fn page(drops: &Drops) -> String {
    let mut page = Page::default();
    if drops.reasons.is_empty() {
        page.line("no packet was dropped since the datapath was attached");
    }
    for drop in &drops.reasons {
        let style = if drop.packets == 0 { page::NEUTRAL } else { page::BAD };
        page.heading(style, &drop.reason, painted(style, counted(drop.packets, "packet")));
        page.field("where", &drop.place);
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
        golden("drops-none", &page(&Drops { reasons: Vec::new() }));
    }
}
