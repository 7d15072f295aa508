//! The command line: one file per command.

pub mod output;
pub mod simulate;
