//! On the real engines.

pub mod fixture;

mod again;
pub mod audit;
mod cache;
mod checkpoints;
mod compose;
mod connections;
mod control;
mod detached;
mod end_to_end;
mod engines;
mod evolution;
mod explain;
mod facade;
mod limits;
mod metrics;
mod pressure;
pub mod process;
mod processes;
mod rolling;
mod slow;
pub mod stream;
mod topology;
mod traces;
mod usage;
