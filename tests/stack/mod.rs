//! On the real engines.

pub mod fixture;

mod compose;
mod end_to_end;
mod engines;
mod facade;
mod usage;
