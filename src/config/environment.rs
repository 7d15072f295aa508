//! The environment: the one place that reads it. Secrets stand in files as references to it (`env:NAME`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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

/// Where the operators' first key is: its SHA-256 in hex, or the key itself.
const ADMIN_KEY_HASH: &str = "TOLLSTREAM_ADMIN_KEY_SHA256";
const ADMIN_KEY: &str = "TOLLSTREAM_ADMIN_KEY";
/// Fewest characters of a key that people choose.
const ADMIN_KEY_CHARACTERS_MIN: usize = 32;

/// The operators' first key, as its SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminKey([u8; 32]);

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl AdminKey {
    /// The key with this hash, in hex.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_hash(hash: &str) -> Result<Self, Error> {
        let mut bytes = [0; 32];
        let problem = "is no SHA-256 in hex; make it with: printf %s \"$KEY\" | sha256sum";
        hex::decode_to_slice(hash, &mut bytes)
            .map_err(|_| Error::AdminKey { variable: ADMIN_KEY_HASH, problem: problem.to_owned() })?;
        Ok(Self(bytes))
    }

    /// The key itself.
    ///
    /// # Errors
    /// When it is so short that it could be guessed.
    pub fn of_secret(key: &str) -> Result<Self, Error> {
        if key.len() < ADMIN_KEY_CHARACTERS_MIN {
            let problem =
                format!("has fewer than {ADMIN_KEY_CHARACTERS_MIN} characters; make one with: openssl rand -hex 32");
            return Err(Error::AdminKey { variable: ADMIN_KEY, problem });
        }
        Ok(Self(Sha256::digest(key).into()))
    }

    /// Whether this is the key. How long the answer takes does not depend on how much of it is right.
    pub fn is(&self, secret: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(secret).into();
        let differing = self.0.iter().zip(&given).fold(0, |differing, (a, b)| differing | (a ^ b));
        std::hint::black_box(differing) == 0
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

    /// Takes the operators' first key out, so that nothing else, such as a deployment's credential, can name it.
    ///
    /// # Errors
    /// When it is no hash, too short to be a secret, or there twice.
    pub fn take_admin_key(&mut self) -> Result<Option<AdminKey>, Error> {
        match (self.0.remove(ADMIN_KEY_HASH), self.0.remove(ADMIN_KEY)) {
            (None, None) => Ok(None),
            (Some(hash), None) => AdminKey::of_hash(hash.expose()).map(Some),
            (None, Some(key)) => AdminKey::of_secret(key.expose()).map(Some),
            (Some(_), Some(_)) => {
                let problem = format!("{ADMIN_KEY} is there, too; give one of them");
                Err(Error::AdminKey { variable: ADMIN_KEY_HASH, problem })
            }
        }
    }

    /// A variable that is no secret.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose).filter(|value| !value.is_empty())
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
    fn the_admin_key_is_taken_out_and_is_itself_only() {
        let key = "0123456789abcdef0123456789abcdef";
        let hash = hex::encode(Sha256::digest(key));
        let of = |pairs: &[(&str, &str)]| -> Environment {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        for pair in [(ADMIN_KEY, key), (ADMIN_KEY_HASH, hash.as_str())] {
            let mut environment = of(&[pair, ("A", "1")]);
            let admin = environment.take_admin_key().unwrap().unwrap();
            assert!(admin.is(key.as_bytes()) && !admin.is(hash.as_bytes()) && !admin.is(b""));
            assert_eq!((environment, format!("{admin:?}")), (of(&[("A", "1")]), "***".to_owned()));
        }
        assert_eq!(of(&[]).take_admin_key().unwrap(), None);
        for wrong in
            [vec![(ADMIN_KEY, "short")], vec![(ADMIN_KEY_HASH, "abc")], vec![(ADMIN_KEY, key), (ADMIN_KEY_HASH, &hash)]]
        {
            let error = of(&wrong).take_admin_key().unwrap_err().to_string();
            assert!(error.starts_with("TOLLSTREAM_ADMIN_KEY") && !error.contains("short"), "{error}");
        }
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
