//! On the real engines.

pub mod fixture;

pub mod audit;
mod compose;
mod connections;
mod end_to_end;
mod engines;
mod evolution;
mod facade;
pub mod process;
mod processes;
pub mod stream;
mod topology;
mod usage;
