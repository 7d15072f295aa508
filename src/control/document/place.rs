//! Where in a document something is, and where what is wrong with it goes.

use std::fmt;

use serde::Serialize;

/// Something that is not right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The member, for example `deployments[0].prices[1].input`; empty for the document as a whole.
    pub at: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl Problem {
    pub fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at.as_str() {
            "" => f.write_str(&self.problem),
            at => write!(f, "{at}: {}", self.problem),
        }
    }
}

/// A place and the list of problems.
pub(super) struct Place<'a> {
    at: String,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Place<'a> {
    pub fn root(problems: &'a mut Vec<Problem>) -> Self {
        Self { at: String::new(), problems }
    }

    /// The member `key` of this place.
    pub fn within(&mut self, key: &str) -> Place<'_> {
        Place { at: self.path(key), problems: self.problems }
    }

    /// Notes what is wrong with `key`.
    pub fn problem(&mut self, key: &str, problem: impl Into<String>) {
        self.problems.push(Problem::new(self.path(key), problem));
    }

    /// Takes a value, or notes why there is none.
    pub fn take<T, E: fmt::Display>(&mut self, key: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.problem(key, e.to_string())).ok()
    }

    /// All of them parsed, or notes about those that could not be.
    pub fn names<T: std::str::FromStr<Err: fmt::Display> + PartialEq>(
        &mut self,
        key: &str,
        names: &[String],
    ) -> Option<Vec<T>> {
        let mut parsed = Vec::with_capacity(names.len());
        let mut whole = true;
        for name in names {
            match self.take(key, name.parse::<T>()) {
                Some(name_) if parsed.contains(&name_) => {
                    self.problem(key, format!("{name} is there more than once"));
                    whole = false;
                }
                Some(name_) => parsed.push(name_),
                None => whole = false,
            }
        }
        whole.then_some(parsed)
    }

    fn path(&self, key: &str) -> String {
        match (self.at.as_str(), key) {
            ("", key) => key.to_owned(),
            (at, "") => at.to_owned(),
            (at, key) => format!("{at}.{key}"),
        }
    }
}
