//! `tollstream audit`: whether the invariants hold on the logs as they are. Reads; writes nothing.
//!
//! [`journal`] follows one partition of the journal, [`frames`] the frames of its requests on `responses`, [`sums`] what
//! `usage` and ClickHouse have of it; all are pure, and are given what is on the logs in the order of the logs. [`plan`] says
//! what of the logs is read, [`reader`] reads it in bounded memory and gives it to them, [`stages`] what follows the journal. Which commits count is never decided here: `records::journal::Tenancy` says so.

pub(crate) mod ahead;
pub mod frames;
pub mod journal;
pub mod money;
pub mod plan;
pub mod reader;
mod rows;
pub mod stages;
pub mod statement;
pub mod sums;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

use crate::domain::RequestKey;
use crate::records::Topic;

/// Violations of one check that are told in full; the others are only counted.
pub const FIRST_MAX: usize = 5;

/// An invariant that is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Check {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    I13,
    /// Every decision, made again.
    Redecided,
}

impl Check {
    pub const ALL: [Self; 14] = [
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::I10,
        Self::I11,
        Self::I12,
        Self::I13,
        Self::Redecided,
    ];

    /// The name that the design has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I1 => "I1",
            Self::I2 => "I2",
            Self::I3 => "I3",
            Self::I4 => "I4",
            Self::I5 => "I5",
            Self::I6 => "I6",
            Self::I7 => "I7",
            Self::I8 => "I8",
            Self::I9 => "I9",
            Self::I10 => "I10",
            Self::I11 => "I11",
            Self::I12 => "I12",
            Self::I13 => "I13",
            Self::Redecided => "redecided",
        }
    }

    /// What must hold.
    pub const fn states(self) -> &'static str {
        match self {
            Self::I1 => "every accepted request has one effective terminal",
            Self::I2 => "nothing is promised before it is acknowledged",
            Self::I3 => "every provider call has a commit before it",
            Self::I4 => "attempts count from 1 to at most the policy's maximum",
            Self::I5 => "journal, usage and ClickHouse have the same sums",
            Self::I6 => "no admission takes more than a budget has",
            Self::I7 => "every reservation is resolved once",
            Self::I9 => "no provider call begins after the deadline",
            Self::I8 => "an answer is gap-free, and whole when it says so",
            Self::I10 => "committed offsets pass no undecided record",
            Self::I11 => "every record is decided exactly once",
            Self::I12 => "a rebuild of the journal gives the live state",
            Self::I13 => "no replay wrote anything live",
            Self::Redecided => "deciding again gives the recorded facts",
        }
    }

    /// What is counted as looked at.
    pub const fn counts(self) -> &'static str {
        match self {
            Self::I1 => "requests",
            Self::I2 | Self::I8 => "frames",
            Self::I3 => "postings and frames",
            Self::I4 | Self::I9 => "attempts",
            Self::I5 => "sums",
            Self::I6 => "budgets and limits",
            Self::I7 => "reservations and releases",
            Self::I10 => "partitions",
            Self::I11 => "records",
            Self::I12 | Self::I13 | Self::Redecided => "commits",
        }
    }
}

/// Where on the logs something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub topic: Topic,
    pub partition: i32,
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} offset {}", self.topic.name(), self.partition, self.offset)
    }
}

/// A violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub place: Place,
    pub request: Option<RequestKey>,
    pub what: String,
}

/// What one check has seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    pub looked_at: u64,
    pub violations: u64,
    /// The first violations, at most [`FIRST_MAX`].
    pub first: Vec<Finding>,
    /// Where it could not look, and why.
    pub blind: Vec<String>,
}

/// What all checks have seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings([Seen; Check::ALL.len()]);

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Holds,
    Violated,
    CouldNotLook,
}

impl Findings {
    pub fn of(&self, check: Check) -> &Seen {
        &self.0[check as usize]
    }

    fn seen(&mut self, check: Check) -> &mut Seen {
        &mut self.0[check as usize]
    }

    fn looked_at(&mut self, check: Check) {
        self.seen(check).looked_at += 1;
    }

    /// Notes a violation; it is only put into words while few are known.
    fn violated(&mut self, check: Check, finding: impl FnOnce() -> Finding) {
        let seen = self.seen(check);
        seen.violations += 1;
        if seen.first.len() < FIRST_MAX {
            seen.first.push(finding());
        }
    }

    /// Notes that some checks could not look somewhere.
    fn blind(&mut self, checks: &[Check], why: &str) {
        for check in checks {
            self.seen(*check).blind.push(why.to_owned());
        }
    }

    fn merge(&mut self, other: Self) {
        for (into, from) in self.0.iter_mut().zip(other.0) {
            into.looked_at += from.looked_at;
            into.violations += from.violations;
            into.first.extend(from.first);
            into.first.truncate(FIRST_MAX);
            into.blind.extend(from.blind);
        }
    }

    /// Of all checks: one violation outweighs everything that could not be seen.
    pub fn verdict(&self) -> Verdict {
        let verdicts = || self.0.iter().map(Seen::verdict);
        if verdicts().any(|verdict| verdict == Verdict::Violated) {
            Verdict::Violated
        } else if verdicts().any(|verdict| verdict == Verdict::CouldNotLook) {
            Verdict::CouldNotLook
        } else {
            Verdict::Holds
        }
    }
}

impl Seen {
    pub fn verdict(&self) -> Verdict {
        match (self.violations, self.blind.is_empty()) {
            (0, true) => Verdict::Holds,
            (0, false) => Verdict::CouldNotLook,
            _ => Verdict::Violated,
        }
    }
}
