//! On the real engines.

pub mod fixture;

mod audit;
mod compose;
mod connections;
mod end_to_end;
mod engines;
mod evolution;
mod facade;
mod limits;
mod pressure;
mod processes;
mod stream;
mod topology;
mod usage;
