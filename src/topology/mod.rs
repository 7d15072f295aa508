//! What has to be there before anything runs: topics, schemas, and the first contents of `control`.
//!
//! The files in `topology/` and `schemas/avro/` say it; [`check`] compares them with each other offline, [`describe`]
//! shows them, [`apply`] makes a cluster so, after showing the difference and refusing what would lose data.

pub mod apply;
pub mod check;
pub mod cluster;
pub mod compatibility;
pub mod describe;
pub mod files;
pub mod keys;
pub mod plan;
pub mod schemas;
pub mod seeds;
pub mod topics;

use std::fmt;

use serde::Serialize;

pub use files::Files;
pub use seeds::Seeds;
pub use topics::Topics;

/// Something in the files that is not right: where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Path within the files, for example `topology/topics.toml`.
    pub file: String,
    /// The item and the key, for example `models.gpt-4o.tier`; empty for the file as a whole.
    pub item: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl Problem {
    pub fn new(file: &str, item: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), item: item.into(), problem: problem.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item.as_str() {
            "" => write!(f, "{}: {}", self.file, self.problem),
            item => write!(f, "{}: {item}: {}", self.file, self.problem),
        }
    }
}

/// The files do not hold; every problem is listed.
#[derive(Debug, thiserror::Error)]
#[error("{} in the topology: {}", problems(.0.len()), list(.0))]
pub struct Invalid(pub Vec<Problem>);

fn problems(count: usize) -> String {
    if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// The parsed files: what `apply` makes real.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    pub topics: Topics,
    pub seeds: Seeds,
}

impl Topology {
    /// The topology that this program was built with.
    ///
    /// # Errors
    /// [`Invalid`]; a test makes sure that it is not.
    pub fn embedded() -> Result<Self, Invalid> {
        Self::parse(&Files::embedded())
    }

    /// Parses topics and seeds.
    ///
    /// # Errors
    /// [`Invalid`] with all problems found.
    pub fn parse(files: &Files) -> Result<Self, Invalid> {
        let mut problems = Vec::new();
        let topics = Topics::parse(files, &mut problems);
        let seeds = Seeds::parse(files, &mut problems);
        match topics {
            Some(topics) if problems.is_empty() => Ok(Self { topics, seeds }),
            _ => Err(Invalid(problems)),
        }
    }
}
