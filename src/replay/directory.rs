//! The directory of a run: what was asked, the rows of each partition, and the reports. Nothing of it is half-written: a file
//! is there once it is whole.

use std::fs::{File, TryLockError};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_avro_fast::Schema;
use serde_avro_fast::object_container_file_encoding::{Compression, CompressionLevel, Reader, Writer, WriterBuilder};
use serde_avro_fast::ser::SerializerConfig;

use super::row::Row;

const ROW_SCHEMA: &str = include_str!("../../schemas/files/replay-row.avsc");
/// Fixed, so that the same rows give the same bytes.
const SYNC_MARKER: [u8; 16] = *b"tollstream-rows.";
/// Bytes of rows that are compressed at once.
const BLOCK_BYTES: u32 = 256 * 1024;
/// Bytes of a run's name at the most.
const NAME_BYTES_MAX: usize = 64;

const SPEC: &str = "run.json";
const LOCK: &str = "lock";
const REPORT: &str = "report.json";
const PAGE: &str = "report.html";
/// The answers of a run that really called.
pub const ANSWERS: &str = "answers.jsonl";
/// All of a run but what it was asked for, and its partitions.
const FILES: [&str; 4] = [LOCK, REPORT, PAGE, ANSWERS];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is a run {name} already, in {}; look at it with `tollstream replay report {name}`, go on with one that was broken off with --resume, or give another name with --run",
        path.display()
    )]
    Exists { name: String, path: PathBuf },
    #[error("there is no run {name} in {}", path.display())]
    Missing { name: String, path: PathBuf },
    #[error(
        "run {name} was begun with other inputs ({what}), so it cannot be gone on with; give another name with --run"
    )]
    Differs { name: String, what: &'static str },
    #[error("{} is there, and is no run; give another name with --run, or another place with --dir", path.display())]
    Occupied { path: PathBuf },
    #[error("another process is at work on run {name}")]
    Busy { name: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {detail}", path.display())]
    Damaged { path: PathBuf, detail: String },
}

/// The name of a run: letters, digits and dashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunName(String);

impl FromStr for RunName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > NAME_BYTES_MAX || text.starts_with('-') || !text.chars().all(fits) {
            return Err(format!(
                "{text:?} is no name of a run; give 1 to {NAME_BYTES_MAX} lower-case letters, digits and dashes"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl RunName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a run is kept.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    /// Held by who works on the run.
    _lock: Option<Arc<File>>,
}

impl Directory {
    /// Makes the directory of a new run, or, to go on with one, finds it; what was asked must be the same.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Missing`] or [`Error::Differs`]; nothing is changed then.
    pub fn begin<S: Serialize + DeserializeOwned>(
        root: &Path,
        name: &RunName,
        spec: &S,
        resumes: bool,
        differs: impl Fn(&S, &S) -> Option<&'static str>,
    ) -> Result<(Self, Option<S>), Error> {
        Self::check(root, name, resumes)?;
        let mut directory = Self { path: root.join(name.as_str()), _lock: None };
        if resumes {
            directory.lock(name)?;
            let begun: S = directory.read(SPEC)?;
            return match differs(&begun, spec) {
                Some(what) => Err(Error::Differs { name: name.0.clone(), what }),
                None => Ok((directory, Some(begun))),
            };
        }
        std::fs::create_dir_all(&directory.path).map_err(failed(&directory.path))?;
        directory.lock(name)?;
        directory.write(SPEC, spec)?;
        Ok((directory, None))
    }

    /// Whether such a run can be begun, or gone on with.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::Missing`].
    pub fn check(root: &Path, name: &RunName, resumes: bool) -> Result<(), Error> {
        let path = root.join(name.as_str());
        match (path.join(SPEC).is_file(), resumes) {
            (true, false) => Err(Error::Exists { name: name.0.clone(), path }),
            (false, true) => Err(Error::Missing { name: name.0.clone(), path: root.to_owned() }),
            (false, false) if !is_vacant(&path) => Err(Error::Occupied { path }),
            (true, true) | (false, false) => Ok(()),
        }
    }

    /// Only one process works on a run.
    fn lock(&mut self, name: &RunName) -> Result<(), Error> {
        let path = self.path.join(LOCK);
        let file = File::create(&path).map_err(failed(&path))?;
        match file.try_lock() {
            Ok(()) => {
                self._lock = Some(Arc::new(file));
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(Error::Busy { name: name.0.clone() }),
            Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
        }
    }

    /// Finds the directory of a run that nobody is at work on.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Busy`].
    pub fn open_alone(root: &Path, name: &RunName) -> Result<Self, Error> {
        let mut directory = Self::open(root, name)?;
        directory.lock(name)?;
        Ok(directory)
    }

    /// Takes a run back: its files, and the directory if there is nothing else in it.
    pub fn remove(self) -> Result<(), Error> {
        let (mut spec, mut is_vacant) = (None, true);
        for entry in std::fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let path = entry.map_err(failed(&self.path))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == SPEC {
                // The last one, so that what is broken off is still a run.
                spec = Some(path);
            } else if FILES.contains(&name) || name.starts_with("partition-") {
                std::fs::remove_file(&path).map_err(failed(&path))?;
            } else {
                is_vacant = false;
            }
        }
        if let Some(path) = spec {
            std::fs::remove_file(&path).map_err(failed(&path))?;
        }
        if !is_vacant {
            return Ok(());
        }
        std::fs::remove_dir(&self.path).map_err(failed(&self.path))
    }

    /// Finds the directory of a run.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn open(root: &Path, name: &RunName) -> Result<Self, Error> {
        let directory = Self { path: root.join(name.as_str()), _lock: None };
        match directory.path.join(SPEC).is_file() {
            true => Ok(directory),
            false => Err(Error::Missing { name: name.0.clone(), path: root.to_owned() }),
        }
    }

    pub fn spec<S: DeserializeOwned>(&self) -> Result<S, Error> {
        self.read(SPEC)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The reports of a partition that is done, and whose rows are there.
    pub fn partition<R: DeserializeOwned>(&self, partition: i32) -> Result<Option<R>, Error> {
        let name = of_partition(partition, "json");
        let is_there =
            [of_partition(partition, "avro"), name.clone()].iter().all(|name| self.path.join(name).is_file());
        match is_there.then(|| self.read(&name)) {
            // What cannot be read is decided again.
            None | Some(Err(Error::Damaged { .. })) => Ok(None),
            Some(read) => read.map(Some),
        }
    }

    /// Says that a partition is done.
    pub fn done<R: Serialize>(&self, partition: i32, reports: &R) -> Result<(), Error> {
        self.write(&of_partition(partition, "json"), reports)
    }

    pub fn write_report<R: Serialize>(&self, report: &R) -> Result<(), Error> {
        self.write(REPORT, report)
    }

    /// The report of all partitions; `None`: the run was broken off.
    pub fn report<R: DeserializeOwned>(&self) -> Result<Option<R>, Error> {
        if self.path.join(REPORT).is_file() { self.read(REPORT).map(Some) } else { Ok(None) }
    }

    pub fn write_page(&self, html: &str) -> Result<PathBuf, Error> {
        self.put(PAGE, html.as_bytes())?;
        Ok(self.path.join(PAGE))
    }

    /// A file for the rows of a partition.
    pub fn rows_of(&self, partition: i32) -> Result<Rows<'static>, Error> {
        let path = self.path.join(of_partition(partition, "avro"));
        let part = self.path.join(of_partition(partition, "avro.part"));
        let schema = schema().map_err(|detail| Error::Damaged { path: path.clone(), detail })?;
        let file = Unfailing { file: BufWriter::new(File::create(&part).map_err(failed(&part))?), failed: None };
        let writer = WriterBuilder::with_owned_config(SerializerConfig::new(schema))
            .compression(Compression::Deflate { level: CompressionLevel::new(1) })
            .approx_block_size(BLOCK_BYTES)
            .sync_marker(SYNC_MARKER)
            .build(file)
            .map_err(|e| Error::Damaged { path: part.clone(), detail: e.to_string() })?;
        Ok(Rows { writer, part, path })
    }

    /// Gives the rows of a partition that is done, in their order.
    pub fn each_row(&self, partition: i32, mut take: impl FnMut(Row) -> Result<(), Error>) -> Result<(), Error> {
        let path = self.path.join(of_partition(partition, "avro"));
        let damaged = |detail: String| Error::Damaged { path: path.clone(), detail };
        let file = BufReader::new(File::open(&path).map_err(failed(&path))?);
        let mut reader = Reader::from_reader(file).map_err(|e| damaged(e.to_string()))?;
        while let Some(row) = reader.deserialize_next::<Row>().map_err(|e| damaged(e.to_string()))? {
            take(row)?;
        }
        Ok(())
    }

    /// The partitions that have rows.
    pub fn partitions(&self) -> Result<Vec<i32>, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let name = entry.map_err(failed(&self.path))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("partition-")?.strip_suffix(".avro"));
            found.extend(number.and_then(|number| number.parse::<i32>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let path = self.path.join(name);
        let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
        serde_json::from_str(&text).map_err(|e| Error::Damaged { path, detail: e.to_string() })
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        let path = self.path.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(|e| Error::Damaged { path, detail: e.to_string() })?;
        self.put(name, &text)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (path, part) = (self.path.join(name), self.path.join(format!("{name}.part")));
        let written = File::create(&part).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(failed(&part))?;
        std::fs::rename(&part, &path).map_err(failed(&path))
    }
}

/// The rows of a partition that is under way.
pub struct Rows<'s> {
    writer: Writer<'s, 's, Unfailing>,
    part: PathBuf,
    path: PathBuf,
}

/// A file that keeps the first error of a write and lets the rest pass: `Writer` panics when it is dropped with something that
/// it could not write.
struct Unfailing {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl Write for Unfailing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.is_none() {
            self.failed = self.file.write_all(bytes).err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.failed.is_none() {
            self.failed = self.file.flush().err();
        }
        Ok(())
    }
}

impl Rows<'_> {
    pub fn add(&mut self, row: &Row) -> Result<(), Error> {
        let written = self.writer.serialize(row);
        written.map_err(|e| Error::Damaged { path: self.part.clone(), detail: e.to_string() })?;
        match self.writer.inner_mut().failed.take() {
            Some(source) => Err(Error::Io { path: self.part.clone(), source }),
            None => Ok(()),
        }
    }

    /// The rows are whole.
    pub fn finish(self) -> Result<(), Error> {
        let Self { writer, part, path } = self;
        let written = writer.into_inner().map_err(|e| Error::Damaged { path: part.clone(), detail: e.to_string() })?;
        let Unfailing { file, failed: lost } = written;
        lost.map_or(Ok(()), |source| Err(Error::Io { path: part.clone(), source }))?;
        let file = file.into_inner().map_err(|e| Error::Io { path: part.clone(), source: e.into_error() })?;
        file.sync_all().map_err(failed(&part))?;
        std::fs::rename(&part, &path).map_err(failed(&path))
    }
}

/// Whether there is no such directory, or nothing in it but a lock.
fn is_vacant(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().all(|entry| entry.file_name() == LOCK),
        Err(_) => !path.exists(),
    }
}

fn of_partition(partition: i32, kind: &str) -> String {
    format!("partition-{partition:04}.{kind}")
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::Io { path: path.to_owned(), source }
}

fn schema() -> Result<&'static Schema, String> {
    static SCHEMA: LazyLock<Result<Schema, String>> =
        LazyLock::new(|| ROW_SCHEMA.parse::<Schema>().map_err(|e| e.to_string()));
    SCHEMA.as_ref().map_err(Clone::clone)
}
