//! On the real engines.

pub mod fixture;

mod again;
mod audit;
mod checkpoints;
mod compose;
mod connections;
mod end_to_end;
mod engines;
mod evolution;
mod facade;
mod limits;
mod pressure;
mod processes;
mod rolling;
mod slow;
mod stream;
mod topology;
mod usage;
