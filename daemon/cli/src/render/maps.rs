//! `hauberk bpf`: what the kernel holds, in words.

use hauberk_api::{MapContent, Maps};

use crate::render::page::{self, Page, painted};
use crate::render::words::counted;

/// Rows per map that are shown without `--verbose`.
const ROWS: usize = 20;
/// From this percentage of its capacity on, a map is marked. If it is full, entries that do not fit
/// are treated as protected.
const NEARLY_FULL_PERCENT: usize = 90;

/// The whole answer; `only_map` leaves out everything except maps.
pub(crate) fn page(maps: &Maps, only_map: bool, verbose: bool) -> String {
    let mut page = Page::default();
    if !only_map {
        overview(&mut page, maps);
    }
    for map in &maps.maps {
        one_map(&mut page, map, if verbose { usize::MAX } else { ROWS });
    }
    page.into_text()
}

fn overview(page: &mut Page, maps: &Maps) {
    page.heading(page::NODE, "datapath", format_args!("pinned in {}", maps.pin_directory));
    if maps.settings.is_empty() {
        page.field("settings", "none written yet");
    }
    for (name, value) in &maps.settings {
        page.field(name, value);
    }
    page.heading(page::NODE, "programs", counted(maps.links.len() as u64, "link"));
    for link in &maps.links {
        page.field(&link.interface, format_args!("{} ({})", link.hook.as_str(), link.how));
    }
}

fn one_map(page: &mut Page, map: &MapContent, limit: usize) {
    page.heading(page::PEER, "map", painted(page::PEER, &map.name));
    page.field("purpose", &map.purpose);
    let filled = format!("{} of {}", map.entries, map.capacity);
    let nearly_full = map.capacity > 0 && map.entries >= map.capacity.saturating_mul(NEARLY_FULL_PERCENT) / 100;
    match nearly_full && map.capacity > 1 {
        true if map.makes_room => {
            page.field("entries", format_args!("{filled}: a new one takes the place of the least recently used"));
        }
        true => page.field("entries", painted(page::BAD, format_args!("{filled}: nearly full, raise its limit"))),
        false => page.field("entries", filled),
    }
    for (key, value) in map.rows.iter().take(limit) {
        page.item(format_args!("{key}: {value}"));
    }
    let more = map.rows.len().saturating_sub(limit);
    if more > 0 {
        page.item(format_args!("and {more} more (--verbose)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{golden, maps};

    #[test]
    fn everything_and_one_map() {
        golden("bpf", &page(&maps(), false, false));
        let one = page(&maps(), true, true);
        assert!(!one.contains("datapath") && one.contains("10.244.1.24"), "{one}");
    }
}
