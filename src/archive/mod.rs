//! `tollstream archive`: closed ranges of the logs as files that outlive the topics.
//!
//! An archive is a directory, or a bucket of an S3-compatible store. [`Manifest`] says which files there are, what range of
//! which partition each has, and their checksums; a file counts once it is named there. Files are Avro containers of the
//! topics' own records ([`container`]), so anything that reads Avro reads them. [`mod@write`] adds what came since the last time,
//! [`read`] gives it back to a replay, [`redact`] takes the words out of what was asked.

pub mod container;
pub mod read;
pub mod redact;
mod sound;
pub mod write;

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::audit::reader;
use crate::domain::Timestamp;
use crate::records::Topic;

/// Of the form of the manifest and of the files.
pub const VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{url:?} is no place for an archive: {problem}; give a directory, or s3://BUCKET/PREFIX")]
    Url { url: String, problem: String },
    #[error("archive {url}: {what}: {source}")]
    Store { url: String, what: String, source: object_store::Error },
    #[error(
        "archive {url}: {file} is damaged: {detail}; the others are whole, get this one from a copy or archive its range again"
    )]
    Damaged { url: String, file: String, detail: String },
    #[error(
        "archive {url}: {MANIFEST} is damaged: {detail}; get it back from a copy, or archive into another place as long as the topics have everything"
    )]
    DamagedManifest { url: String, detail: String },
    #[error(
        "archive {url}: {MANIFEST} contradicts itself: {problem}; `tollstream archive check {url}` tells everything"
    )]
    Unsound { url: String, problem: String },
    #[error("archive {url} has no {MANIFEST}: nothing was archived there")]
    NoManifest { url: String },
    #[error("archive {url} was broken off before it had everything once; run `tollstream archive write` again")]
    Unfinished { url: String },
    #[error("archive {url} is of version {found}; this program reads version {VERSION}")]
    Version { url: String, found: u32 },
    #[error("archive {url} has {topic} {had}, and now {wanted} is asked for; use another place for it")]
    Content { url: String, topic: &'static str, had: &'static str, wanted: &'static str },
    #[error(
        "{topic}/{partition} has nothing from offset {wanted} to {begins}: retention has cut what was not archived in time"
    )]
    Gap { topic: &'static str, partition: i32, wanted: i64, begins: i64 },
    #[error(
        "archive {url} lacks {topic}/{partition} from offset {from} to {to}; `tollstream archive write` fills it in as long as the topic has it"
    )]
    Lacks { url: String, topic: &'static str, partition: i32, from: i64, to: i64 },
    #[error(transparent)]
    Reader(#[from] reader::Error),
    #[error("{topic}/{partition} offset {offset} cannot be archived: {detail}")]
    Record { topic: &'static str, partition: i32, offset: i64, detail: String },
}

/// What of the content an archive keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// As it was asked.
    Keep,
    /// Every letter and digit of what people said is replaced; its shape stays.
    Redact,
    /// Bodies are empty.
    Drop,
}

impl Content {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "with its content",
            Self::Redact => "redacted",
            Self::Drop => "without its content",
        }
    }
}

/// What an archive has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    /// Of each `TOPIC/PARTITION`, those without records included: what was archived of it as a whole. Files that go beyond are of
    /// a write that was broken off.
    pub ranges: BTreeMap<String, Range<i64>>,
    /// In the order in which they were written; those of a partition follow each other.
    pub files: Vec<FileEntry>,
}

/// One file: a range of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub file: String,
    pub topic: String,
    pub partition: i32,
    /// First offset, and the one after the last.
    pub start: i64,
    pub end: i64,
    pub records: u64,
    pub bytes: u64,
    pub sha256: String,
    pub first_at: Option<Timestamp>,
    pub last_at: Option<Timestamp>,
    /// Of `requests`.
    pub content: Option<Content>,
}

impl Default for Manifest {
    fn default() -> Self {
        Self { version: VERSION, ranges: BTreeMap::new(), files: Vec::new() }
    }
}

impl Manifest {
    pub fn of(&self, topic: Topic, partition: i32) -> impl Iterator<Item = &FileEntry> {
        self.files.iter().filter(move |file| file.topic == topic.name() && file.partition == partition)
    }

    /// What was archived of a partition; its files may be gone since.
    pub fn range(&self, topic: Topic, partition: i32) -> Range<i64> {
        self.ranges.get(&range_name(topic, partition)).cloned().unwrap_or(0..0)
    }

    /// What of a range is not here.
    pub fn missing(&self, topic: Topic, partition: i32, within: Range<i64>) -> Vec<Range<i64>> {
        let mut files: Vec<&FileEntry> = self.of(topic, partition).collect();
        files.sort_by_key(|file| file.start);
        let (mut next, mut missing) = (within.start, Vec::new());
        for file in files.into_iter().filter(|file| file.end > within.start && file.start < within.end) {
            if file.start > next {
                missing.push(next..file.start);
            }
            next = next.max(file.end);
        }
        if next < within.end {
            missing.push(next..within.end);
        }
        missing
    }

    pub fn partitions(&self, topic: Topic) -> Vec<i32> {
        let of_topic = |name: &String| name.strip_prefix(topic.name())?.strip_prefix('/')?.parse::<i32>().ok();
        let mut partitions: Vec<i32> = self.ranges.keys().filter_map(of_topic).collect();
        partitions.sort_unstable();
        partitions
    }
}

/// By which a partition's range is found.
pub fn range_name(topic: Topic, partition: i32) -> String {
    format!("{}/{partition}", topic.name())
}

/// Where a range of a partition lies.
pub fn file_name(topic: Topic, partition: i32, offsets: &Range<i64>) -> String {
    let Range { start, end } = offsets;
    format!("{}/{partition:04}/{start:012}-{end:012}.avro", topic.name())
}

/// An archive's place.
#[derive(Clone)]
pub struct Place {
    url: String,
    store: Arc<dyn ObjectStore>,
    handle: Handle,
}

impl Place {
    /// A directory (made if it is not there and `makes`), or `s3://BUCKET/PREFIX` with the usual variables of the environment
    /// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`).
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn open(url: &str, makes: bool, handle: Handle) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Url { url: url.to_owned(), problem };
        let store: Arc<dyn ObjectStore> = match url.split_once("://") {
            None => {
                let path = Path::new(url);
                if makes {
                    // What people asked is in it: nobody else looks into a directory that is made for it.
                    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
                    made.map_err(|e| wrong(e.to_string()))?;
                }
                Arc::new(LocalFileSystem::new_with_prefix(path).map_err(|e| wrong(e.to_string()))?)
            }
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let allows_http = std::env::var("AWS_ENDPOINT_URL").is_ok_and(|endpoint| endpoint.starts_with("http:"));
                let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(allows_http);
                let bucket = builder.build().map_err(|e| wrong(e.to_string()))?;
                match prefix.trim_matches('/') {
                    "" => Arc::new(bucket),
                    prefix => Arc::new(PrefixStore::new(bucket, prefix)),
                }
            }
            Some((scheme, _)) => return Err(wrong(format!("{scheme}:// is not known"))),
        };
        Ok(Self { url: url.to_owned(), store, handle })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The manifest; `None`: nothing was archived here.
    ///
    /// # Errors
    /// It cannot be read, or is of a version that this program does not know.
    pub fn manifest(&self) -> Result<Option<Manifest>, Error> {
        let bytes = match self.get(MANIFEST) {
            Ok(bytes) => bytes,
            Err(Error::Store { source: object_store::Error::NotFound { .. }, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |e: serde_json::Error| self.damaged_manifest(&e);
        let version = serde_json::from_slice::<serde_json::Value>(&bytes).map_err(damaged)?["version"].as_u64();
        match version {
            Some(found) if found != u64::from(VERSION) => {
                Err(Error::Version { url: self.url.clone(), found: u32::try_from(found).unwrap_or(u32::MAX) })
            }
            _ => serde_json::from_slice(&bytes).map(Some).map_err(damaged),
        }
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(manifest).map_err(|e| self.damaged_manifest(&e))?;
        self.put(MANIFEST, text)
    }

    fn get(&self, file: &str) -> Result<Vec<u8>, Error> {
        let path = ObjectPath::from(file);
        let got = self.handle.block_on(async { self.store.get(&path).await?.bytes().await });
        got.map(|bytes| bytes.to_vec()).map_err(|source| self.failed(format!("reading {file}"), source))
    }

    fn put(&self, file: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let path = ObjectPath::from(file);
        let put = self.handle.block_on(self.store.put(&path, PutPayload::from(bytes)));
        put.map(|_| ()).map_err(|source| self.failed(format!("writing {file}"), source))
    }

    fn failed(&self, what: String, source: object_store::Error) -> Error {
        Error::Store { url: self.url.clone(), what, source }
    }

    fn damaged_manifest(&self, error: &serde_json::Error) -> Error {
        Error::DamagedManifest { url: self.url.clone(), detail: error.to_string() }
    }

    fn damaged(&self, file: &str, detail: String) -> Error {
        Error::Damaged { url: self.url.clone(), file: file.to_owned(), detail }
    }
}
