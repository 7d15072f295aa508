//! `tollstream replay`: yesterday's traffic through tomorrow's rules.
//!
//! A range of the journal is decided again by other policies, prices, plans or models, at its own times and on a state of
//! its own, and held against what is recorded. [`course`] decides, `estimate` says what calls would have used that nobody
//! made, [`report`] sums up; these are pure. [`run`] reads the logs and writes under the run's name, never elsewhere.

pub mod account;
pub mod calls;
pub mod candidate;
pub mod clickhouse;
pub mod course;
pub mod directory;
mod estimate;
pub mod log;
pub mod page;
pub mod partition;
pub mod report;
pub mod row;
pub mod run;
pub mod shadow;

#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod tests;
