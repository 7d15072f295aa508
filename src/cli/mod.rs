//! The command line: one file per command.

pub mod archive;
pub mod audit;
pub mod balance;
pub mod cache;
pub mod connection;
pub mod control;
pub mod demo;
pub mod explain;
pub mod metrics;
pub mod output;
pub mod policy;
pub mod providers;
pub mod query;
pub mod replay;
pub mod reprice;
pub mod run;
pub mod signals;
pub mod simulate;
pub mod stack;
pub mod topics;
pub mod topology;
pub mod traffic;
pub mod up;
