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

/// Writes a line to standard output, or says that nobody reads on (a closed pipe).
///
/// # Errors
/// When the line cannot be written.
pub fn stream(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

/// Writes a table to standard output.
pub fn table(headers: &[&str], rows: &[Vec<String>]) {
    line(&columns(headers, rows));
}

/// A table as text: columns without borders, as wide as they need to be.
pub fn columns(headers: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(headers.iter().map(|h| h.to_uppercase()));
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.add_rows(rows);
    table.lines().map(|text| text.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
