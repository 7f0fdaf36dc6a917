//! The results as an SVG bar chart for the documentation, one panel per number.

use std::fmt::Write as _;

use crate::results::{Results, is_floor};

const PANEL_WIDTH: usize = 360;
const BAR_HEIGHT: usize = 18;
const LABEL_WIDTH: usize = 130;
const TITLE_HEIGHT: usize = 34;
const PANELS: [(&str, &str); 6] = [
    ("tcp1_gbps", "TCP, 1 stream, Gb/s (more is better)"),
    ("tcp4_gbps", "TCP, 4 streams, Gb/s (more is better)"),
    ("cpu_s_per_gb", "CPU s/GB, whole machine (less is better)"),
    ("udp64_mpps", "UDP, 64 bytes, million packets/s (more is better)"),
    ("latency_p50_us", "latency idle, median, us (less is better)"),
    ("latency_loaded_p99_us", "latency under load, p99, us (less is better)"),
];

/// Bars with a whisker from the minimum to the maximum. Bars of limits are hollow.
pub fn tunnel(results: &Results) -> String {
    let systems = results.systems();
    let height = TITLE_HEIGHT + systems.len() * (BAR_HEIGHT + 4) + 16;
    let (width, total) = (2 * PANEL_WIDTH, PANELS.len().div_ceil(2) * height);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{total}\" fill=\"#fff\"/>\n"
    );
    for (index, (metric, title)) in PANELS.iter().enumerate() {
        let (left, top) = (index % 2 * PANEL_WIDTH, index / 2 * height);
        panel(&mut svg, results, &systems, metric, title, left, top);
    }
    svg += "</svg>\n";
    svg
}

fn panel(svg: &mut String, results: &Results, systems: &[&str], metric: &str, title: &str, left: usize, top: usize) {
    let most =
        systems.iter().filter_map(|system| results.summary(system, metric)).map(|found| found.max).fold(0.0, f64::max);
    let room = (PANEL_WIDTH - LABEL_WIDTH - 60) as f64;
    let scale = |value: f64| if most > 0.0 { value / most * room } else { 0.0 };
    // Writing to a string does not fail.
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>", left + 8, top + 22);
    for (row, system) in systems.iter().enumerate() {
        let y = top + TITLE_HEIGHT + row * (BAR_HEIGHT + 4);
        let middle = y + BAR_HEIGHT / 2;
        let label = if is_floor(system) { format!("{system} (floor)") } else { (*system).to_owned() };
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{label}</text>", left + 8, middle + 4);
        let Some(found) = results.summary(system, metric) else { continue };
        let paint = match system {
            system if is_floor(system) => "fill=\"#fff\" stroke=\"#9e9e9e\"",
            system if system.starts_with("hauberk") => "fill=\"#1565c0\"",
            _ => "fill=\"#9e9e9e\"",
        };
        let start = (left + LABEL_WIDTH) as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{start}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" {paint}/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#000\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.3}</text>",
            scale(found.median),
            start + scale(found.min),
            start + scale(found.max),
            start + scale(found.max) + 5.0,
            middle + 4,
            found.median
        );
    }
}
