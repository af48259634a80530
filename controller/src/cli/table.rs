//! Tables and sizes for people.

use std::time::Duration;

/// `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `3 min ago`.
pub(super) fn ago(s: u64) -> String {
    match s {
        0..60 => format!("{s} s ago"),
        60..3600 => format!("{} min ago", s / 60),
        3600..172_800 => format!("{} h ago", s / 3600),
        _ => format!("{} days ago", s / 86_400),
    }
}

/// Print rows under a heading, columns aligned.
pub(super) fn print(heading: &[&str], rows: &[Vec<String>]) {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([heading[i].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(heading.to_vec());
    rows.iter().for_each(|row| line(row.iter().map(String::as_str).collect()));
}

/// A spinner for work whose length nobody knows.
pub(super) fn spinner(what: &'static str) -> indicatif::ProgressBar {
    let spinner = indicatif::ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(250));
    spinner
}

/// A progress bar on standard error that hides itself when nobody looks.
pub(super) fn bar(len: u64, what: &'static str) -> indicatif::ProgressBar {
    let style =
        indicatif::ProgressStyle::with_template("{prefix} [{bar:32}] {percent:>3}%  {msg}  {elapsed} (eta {eta})");
    let bar = indicatif::ProgressBar::new(len).with_prefix(what);
    bar.set_style(style.expect("the template is valid").progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
