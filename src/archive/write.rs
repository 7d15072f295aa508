//! Adds to an archive what came since the last time.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rdkafka::Message as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::container::{Archived, Writing};
use super::redact::redact;
use super::{Content, Error, FileEntry, Manifest, Place, file_name, range_name};
use crate::audit;
use crate::audit::plan::{Extent, kept};
use crate::audit::reader::{Reader, in_parallel};
use crate::domain::Timestamp;
use crate::records::control::ControlRecord;
use crate::records::journal::JournalRecord;
use crate::records::requests::RequestRecord;
use crate::records::{Record, Topic};

/// A file is ended at so many compressed bytes, so that it can be read into memory as a whole.
const FILE_BYTES: usize = 16 << 20;
/// Or at so many records.
const FILE_RECORDS: u64 = 500_000;

/// What was added.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Added {
    pub files: u64,
    pub records: u64,
    pub bytes: u64,
}

/// What is archived: closed ranges, up to where the topics end now.
pub struct Archiver<'a> {
    pub reader: &'a Reader,
    pub place: &'a Place,
    pub content: Content,
}

/// A range that is to be written.
struct Part {
    topic: Topic,
    partition: i32,
    offsets: Range<i64>,
}

impl Archiver<'_> {
    /// Archives the journal, control and `requests` as far as they go now. A part counts once the manifest names it, so one
    /// that is broken off is done again the next time.
    ///
    /// # Errors
    /// Retention has cut what was not archived in time: everything else is written all the same. Or what could not be read or
    /// written.
    pub fn run(&self) -> Result<BTreeMap<&'static str, Added>, Error> {
        let manifest = self.place.manifest()?.unwrap_or_default();
        let had = manifest.files.iter().find_map(|file| file.content).filter(|had| *had != self.content);
        if let Some(had) = had {
            let (url, topic) = (self.place.url().to_owned(), Topic::Requests.name());
            return Err(Error::Content { url, topic, had: had.name(), wanted: self.content.name() });
        }
        // The journal's end is asked for first, so that control and `requests` have what it was decided on; it is written last, so
        // that an archive that was broken off has no commit without them.
        let kept = kept(self.reader)?;
        let (mut parts, mut ranges, mut gap) = (Vec::new(), Vec::new(), None);
        let all = [
            (Topic::Control, BTreeMap::from([(0, kept.control)])),
            (Topic::Requests, kept.requests),
            (Topic::Journal, kept.journal),
        ];
        for (topic, offsets) in all {
            for (partition, offsets) in offsets {
                let name = range_name(topic, partition);
                let start = manifest.ranges.get(&name).map_or(offsets.start, |range| range.start);
                ranges.push((topic, name, start..offsets.end));
                for missing in manifest.missing(topic, partition, start..offsets.end) {
                    if missing.start < offsets.start {
                        // Nobody has it any more. What is there is written all the same.
                        let (wanted, begins) = (missing.start, offsets.start.min(missing.end));
                        gap = gap.or(Some(Error::Gap { topic: topic.name(), partition, wanted, begins }));
                    }
                    let offsets = missing.start.max(offsets.start)..missing.end;
                    if !offsets.is_empty() {
                        parts.push(Part { topic, partition, offsets });
                    }
                }
            }
        }
        let all: i64 = parts.iter().map(|part| part.offsets.end - part.offsets.start).sum();
        self.reader.progress.set_length(all.unsigned_abs());
        let (manifest, added) = (Mutex::new(manifest), Mutex::new(BTreeMap::<&'static str, Added>::new()));
        let write = |part: &Part| {
            let done = |file: FileEntry| {
                let mut added = added.lock().unwrap_or_else(PoisonError::into_inner);
                let of = added.entry(part.topic.name()).or_default();
                of.files += 1;
                of.records += file.records;
                of.bytes += file.bytes;
                let mut manifest = manifest.lock().unwrap_or_else(PoisonError::into_inner);
                manifest.files.push(file);
                self.place.put_manifest(&manifest)
            };
            match part.topic {
                Topic::Journal => self.part::<JournalRecord>(part, done, |_| {}),
                Topic::Control => self.part::<ControlRecord>(part, done, |_| {}),
                _ => self.part::<RequestRecord>(part, done, |record| self.without_content(record)),
            }
        };
        for topic in [Topic::Control, Topic::Requests, Topic::Journal] {
            let of: Vec<&Part> = parts.iter().filter(|part| part.topic == topic).collect();
            in_parallel(&of, |part| write(part)).into_iter().collect::<Result<Vec<()>, Error>>()?;
            let mut manifest = manifest.lock().unwrap_or_else(PoisonError::into_inner);
            let of_topic = ranges.iter().filter(|(of, _, _)| *of == topic);
            manifest.ranges.extend(of_topic.map(|(_, name, range)| (name.clone(), range.clone())));
            self.place.put_manifest(&manifest)?;
        }
        if let Some(gap) = gap {
            return Err(gap);
        }
        Ok(added.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn without_content(&self, record: &mut RequestRecord) {
        let Some(chat) = &mut record.chat else { return };
        match self.content {
            Content::Keep => {}
            Content::Redact => chat.body = redact(&chat.body),
            Content::Drop => chat.body = Bytes::new(),
        }
    }

    fn part<T: Record + Serialize + DeserializeOwned>(
        &self,
        part: &Part,
        done: impl Fn(FileEntry) -> Result<(), Error>,
        change: impl Fn(&mut T),
    ) -> Result<(), Error> {
        let Part { topic, partition, ref offsets } = *part;
        let failed = |offset: i64, detail: String| Error::Record { topic: topic.name(), partition, offset, detail };
        let begin = |start: i64| {
            let writing = Writing::begin(topic).map_err(|detail| failed(start, detail))?;
            Ok::<_, Error>(Open { start, writing, records: 0, first_at: None, last_at: None })
        };
        let mut open = begin(offsets.start)?;
        let mut ended = None;
        let extent = Extent { topic, partition, offsets: offsets.clone() };
        let read = self.reader.each(&extent, |message| {
            let offset = message.offset();
            let mut take = || {
                let at = Timestamp::from_millis(message.timestamp().to_millis().unwrap_or_default());
                let key = message.key().map(|key| String::from_utf8_lossy(key).into_owned());
                let place = audit::Place { topic, partition, offset };
                let value = self.reader.decode::<T>(place, message.payload().unwrap_or_default());
                let mut value = match value {
                    Ok(value) => value,
                    // Every reader passes over what cannot be understood, and on the journal there is nothing such.
                    Err(audit::reader::Error::Unreadable { .. }) if topic != Topic::Journal => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
                change(&mut value);
                let record = Archived { offset, timestamp: at, key, value };
                open.writing.add(&record).map_err(|detail| failed(offset, detail))?;
                open.records += 1;
                open.first_at.get_or_insert(at);
                open.last_at = Some(at);
                if open.records >= FILE_RECORDS || open.writing.bytes() >= FILE_BYTES {
                    let next = begin(offset + 1)?;
                    let whole = std::mem::replace(&mut open, next);
                    done(self.put(part, whole, offset + 1)?)?;
                }
                Ok::<(), Error>(())
            };
            match take() {
                Ok(()) => Ok(ControlFlow::Continue(())),
                Err(error) => {
                    ended = Some(error);
                    Ok(ControlFlow::Break(()))
                }
            }
        });
        if let Some(error) = ended {
            return Err(error);
        }
        read?;
        if open.start < offsets.end {
            done(self.put(part, open, offsets.end)?)?;
        }
        Ok(())
    }

    fn put(&self, part: &Part, open: Open, end: i64) -> Result<FileEntry, Error> {
        let Open { start, writing, records, first_at, last_at } = open;
        let (topic, partition) = (part.topic.name(), part.partition);
        let file = file_name(part.topic, partition, &(start..end));
        let bytes = writing.finish().map_err(|detail| Error::Record { topic, partition, offset: start, detail })?;
        let entry = FileEntry {
            file: file.clone(),
            topic: topic.to_owned(),
            partition,
            start,
            end,
            records,
            bytes: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(&bytes)),
            first_at,
            last_at,
            content: (part.topic == Topic::Requests).then_some(self.content),
        };
        self.place.put(&file, bytes)?;
        Ok(entry)
    }
}

/// A file that is being filled.
struct Open {
    start: i64,
    writing: Writing,
    records: u64,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
}

/// Checks an archive: that the manifest does not contradict itself and is complete, and that every file has the bytes and the
/// records that it names.
///
/// # Errors
/// The archive cannot be read at all. What is wrong with it is in the answer.
pub fn check(place: &Place) -> Result<(Manifest, Vec<String>), Error> {
    let manifest = place.manifest()?.ok_or_else(|| Error::NoManifest { url: place.url().to_owned() })?;
    let mut problems = manifest.contradictions();
    problems.extend(manifest.incomplete());
    for file in &manifest.files {
        let checked = match Topic::ALL.into_iter().find(|topic| topic.name() == file.topic) {
            Some(Topic::Journal) => check_file::<JournalRecord>(place, file),
            Some(Topic::Control) => check_file::<ControlRecord>(place, file),
            Some(Topic::Requests) => check_file::<RequestRecord>(place, file),
            // It is among the contradictions.
            _ => Ok(()),
        };
        problems.extend(checked.err().map(|error| error.to_string()));
    }
    Ok((manifest, problems))
}

fn check_file<T: Record + DeserializeOwned>(place: &Place, file: &FileEntry) -> Result<(), Error> {
    let (mut first_at, mut last_at) = (None, None);
    _ = super::read::records(place, file, |record: Archived<T>| {
        first_at.get_or_insert(record.timestamp);
        last_at = Some(record.timestamp);
        Ok::<_, Error>(ControlFlow::Continue(()))
    })?;
    match (first_at, last_at) == (file.first_at, file.last_at) {
        true => Ok(()),
        false => Err(place.damaged(&file.file, "its records are of other times than the manifest says".to_owned())),
    }
}
