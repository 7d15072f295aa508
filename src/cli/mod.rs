//! The command line: one file per command.

pub mod audit;
pub mod connection;
pub mod demo;
pub mod explain;
pub mod keys;
pub mod output;
pub mod reprice;
pub mod run;
pub mod signals;
pub mod simulate;
pub mod stack;
pub mod topics;
pub mod topology;
pub mod up;
