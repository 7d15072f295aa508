//! The environment: the one place that reads it. Secrets stand in files as references to it (`env:NAME`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Error;

/// A secret value, which prints as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Variables as they were when the process started: its own, then those of the `.env` file of the working directory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, Secret>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} variables", self.0.len())
    }
}

impl Environment {
    /// Reads it; variables that are empty or not UTF-8 are left out.
    pub fn read() -> Self {
        let dotenv = std::fs::read_to_string(".env").map(|text| parse_dotenv(&text)).unwrap_or_default();
        let own =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::from_iter(dotenv.into_iter().chain(own))
    }

    /// The value of a reference (`env:NAME`), if there is one.
    pub fn get(&self, reference: &str) -> Option<&Secret> {
        self.0.get(reference.strip_prefix("env:")?)
    }

    /// The value of the reference that the file has for `key`.
    pub(super) fn resolve(&self, key: &'static str, reference: &str) -> Result<Secret, Error> {
        if !reference.starts_with("env:") {
            return Err(Error::NotAReference { key });
        }
        self.get(reference).cloned().ok_or_else(|| Error::NotInEnvironment { key, reference: reference.to_owned() })
    }
}

impl FromIterator<(String, String)> for Environment {
    /// Of two variables with one name the later counts, unless it is empty.
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        let filled = variables.into_iter().filter(|(_, value)| !value.trim().is_empty());
        Self(filled.map(|(name, value)| (name, Secret::new(value.trim().to_owned()))).collect())
    }
}

/// `NAME=value` lines; comments, blank lines and a leading `export` are passed over, surrounding quotes are taken off.
fn parse_dotenv(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        (!line.starts_with('#')).then(|| (name.trim().to_owned(), unquoted.unwrap_or(value).to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dotenv_file_is_read_as_people_write_it() {
        let read = parse_dotenv("# A=1\nexport B='two'\nC = \"3\"\n\nD=4 5\nbroken\n");
        let pairs: Vec<_> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("B", "two"), ("C", "3"), ("D", "4 5")]);
    }

    #[test]
    fn a_variable_of_the_process_wins_unless_it_is_empty() {
        let variables = [("A", "file"), ("B", "file"), ("A", "own"), ("B", " ")];
        let environment: Environment = variables.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
        assert_eq!(environment.get("env:A").map(Secret::expose), Some("own"));
        assert_eq!(environment.get("env:B").map(Secret::expose), Some("file"));
        assert_eq!((environment.get("A"), environment.get("env:C")), (None, None));
        assert_eq!(format!("{environment:?}"), "2 variables");
    }
}
