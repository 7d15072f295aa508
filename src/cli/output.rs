//! What people and scripts see: the only place that writes to the terminal.

use std::io::Write as _;

/// Writes a line to standard output. A reader that went away (a closed pipe) is no error.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Writes a line to standard error: progress and notes, which are no result.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes a table to standard output.
pub fn table(headers: &[&str], rows: &[Vec<String>]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(headers.iter().map(|h| h.to_uppercase()));
    table.add_rows(rows);
    for text in table.lines() {
        line(text.trim_end());
    }
}
