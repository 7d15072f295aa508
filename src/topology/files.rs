//! The files of the topology: those that the program was built with, or those of a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};

static TOPOLOGY: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/topology");
static SCHEMAS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/schemas/avro");

/// Largest file that is read from a folder.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path} has no topology/topics.toml; give the folder that holds topology/")]
    NotThere { path: PathBuf },
}

/// Texts by path, for example `topology/topics.toml` or `schemas/avro/history/requests/0001.avsc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files(BTreeMap<String, String>);

impl Files {
    /// The files that the program was built with.
    pub fn embedded() -> Self {
        let mut files = BTreeMap::new();
        embed(&TOPOLOGY, "topology", &mut files);
        embed(&SCHEMAS, "schemas/avro", &mut files);
        Self(files)
    }

    /// The files of a folder that holds `topology/`, and `schemas/avro/` if the schemas are to be checked too; without
    /// it, those that the program was built with are taken.
    ///
    /// # Errors
    /// When a file cannot be read, or `topology/topics.toml` is not there.
    pub fn folder(root: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        read(root, "topology", &mut files)?;
        if !files.contains_key("topology/topics.toml") {
            return Err(Error::NotThere { path: root.to_owned() });
        }
        match root.join("schemas/avro").is_dir() {
            true => read(root, "schemas/avro", &mut files)?,
            false => embed(&SCHEMAS, "schemas/avro", &mut files),
        }
        Ok(Self(files))
    }

    /// The text of one file.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// The files below a folder, in the order of their paths.
    pub fn below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        all.filter(move |(path, _)| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Replaces or adds a file; for tests and for planted changes.
    pub fn set(&mut self, path: &str, text: &str) {
        self.0.insert(path.to_owned(), text.to_owned());
    }
}

fn wanted(path: &str) -> bool {
    path.ends_with(".toml") || path.ends_with(".avsc")
}

fn embed(dir: &Dir<'_>, root: &str, files: &mut BTreeMap<String, String>) {
    for file in dir.files() {
        let path = format!("{root}/{}", file.path().to_string_lossy().replace('\\', "/"));
        if let (true, Some(text)) = (wanted(&path), file.contents_utf8()) {
            files.insert(path, text.to_owned());
        }
    }
    for inner in dir.dirs() {
        embed(inner, root, files);
    }
}

fn read(root: &Path, folder: &str, files: &mut BTreeMap<String, String>) -> Result<(), Error> {
    let at = root.join(folder);
    let failed = |source| Error::Read { path: at.clone(), source };
    for entry in std::fs::read_dir(&at).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        let metadata = std::fs::metadata(entry.path()).map_err(failed)?;
        if metadata.is_dir() {
            read(root, &path, files)?;
        } else if wanted(&path) {
            if metadata.len() > FILE_BYTES_MAX {
                return Err(Error::TooLarge { path: entry.path() });
            }
            let text = std::fs::read_to_string(entry.path());
            files.insert(path, text.map_err(|source| Error::Read { path: entry.path(), source })?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_is_what_is_on_disk() {
        // A new file in these folders is only built in when this crate is compiled again.
        let disk = Files::folder(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let names = |files: &Files| files.0.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&Files::embedded()), names(&disk), "touch src/topology/files.rs and build again");
        assert_eq!(Files::embedded(), disk);
    }

    #[test]
    fn a_folder_without_topics_says_so() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("topology")).unwrap();
        assert!(matches!(Files::folder(folder.path()), Err(Error::NotThere { .. })));
    }
}
