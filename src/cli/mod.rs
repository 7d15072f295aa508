//! The command line: one file per command.

pub mod connection;
pub mod keys;
pub mod output;
pub mod stack;
pub mod topics;
pub mod topology;
