//! Where a stack keeps its things inside its data directory.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Engine, Error};

/// Characters that one of the engines' configuration formats gives a meaning: properties files, lists of
/// directories, class paths, JDBC addresses, XML.
const FORBIDDEN: &str = "\\ , : ; \" ' & < > * $ and control characters";

/// The paths of one stack. The root is absolute and free of symbolic links, since it also identifies the stack's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    text: String,
}

impl Layout {
    /// Makes the data directory where needed, for its owner only, and resolves it.
    pub fn create(data: &Path) -> Result<Self, Error> {
        if !data.exists() {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(data)
                .map_err(Error::file("create the directory", data))?;
        }
        Self::open(data)
    }

    /// Resolves a data directory that exists.
    pub fn open(data: &Path) -> Result<Self, Error> {
        let root = fs::canonicalize(data).map_err(Error::file("open the directory", data))?;
        let text = plain_path(&root)?;
        Ok(Self { root, text })
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The data directory as text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Held with an exclusive lock as long as somebody runs this stack.
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("stack.lock")
    }

    /// Who runs this stack, and which processes belong to it.
    pub fn record(&self) -> PathBuf {
        self.root.join("stack.json")
    }

    /// What an engine prints.
    pub fn log(&self, engine: Engine) -> PathBuf {
        self.logs().join(format!("{engine}.log"))
    }

    /// What the supervising process prints.
    pub fn supervisor_log(&self) -> PathBuf {
        self.logs().join("supervisor.log")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What belongs to one engine.
    pub(super) fn engine(&self, engine: Engine) -> PathBuf {
        self.root.join(engine.name())
    }
}

/// The path as text, if every engine can carry it in its configuration.
pub(super) fn plain_path(path: &Path) -> Result<String, Error> {
    path.to_str()
        .filter(|text| !text.chars().any(|c| c.is_control() || "\\,:;\"'&<>*$".contains(c)))
        .map(str::to_owned)
        .ok_or_else(|| Error::Path { path: path.to_owned(), forbidden: FORBIDDEN.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_a_configuration_file_would_misread_is_refused() {
        assert_eq!(plain_path(Path::new("/home/a b/ü")).unwrap(), "/home/a b/ü");
        for path in ["/a,b", "/a;b", "/a:b", "/a<b", "/a\\b", "/a\nb"] {
            assert!(matches!(plain_path(Path::new(path)), Err(Error::Path { .. })), "{path:?} was accepted");
        }
    }
}
