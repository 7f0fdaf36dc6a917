//! `hauberk events`: what happened to objects.

use hauberk_api::Event;
use jiff::Timestamp;

use crate::render::page::{self, Page, painted};
use crate::render::words::ago;

/// The whole answer, in the agent's order.
pub(crate) fn page(events: &[Event], now: Timestamp) -> String {
    let mut page = Page::default();
    if events.is_empty() {
        page.line("no events since the agent started");
    }
    for event in events {
        let style = if event.warning { page::DOUBTFUL } else { page::NEUTRAL };
        let kind = if event.warning { "warning" } else { "normal" };
        page.heading(style, kind, painted(style, &event.reason));
        page.field("objects", event.objects.join(", "));
        page.field("message", &event.message);
        let times = if event.count == 1 { "once".to_string() } else { format!("{} times", event.count) };
        page.field("seen", format_args!("{times}, first {} ({})", ago(event.time, now), event.time));
    }
    page.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{events, golden, now};

    #[test]
    fn some_and_none() {
        golden("events", &page(&events(), now()));
        assert_eq!(page(&[], now()), "no events since the agent started\n");
    }
}
