//! Gives an archive to a replay, as the topics would be.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, Range};

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::container::{Archived, each};
use super::{Content, Error, FileEntry, Manifest, Place};
use crate::control::rules::Rules;
use crate::records::control::ControlRecord;
use crate::records::journal::{Entry, JournalRecord};
use crate::records::requests::{Request, RequestRecord};
use crate::records::{Record, Topic};
use crate::replay::log::{Kept, Log, Requests};
use crate::replay::run;

/// An archive that is replayed.
pub struct Archive {
    place: Place,
    manifest: Manifest,
}

/// The bytes of a file, if they are those that the manifest names.
pub(super) fn whole(place: &Place, file: &FileEntry) -> Result<Vec<u8>, Error> {
    let bytes = match place.get(&file.file) {
        Ok(bytes) => bytes,
        Err(Error::Store { source: object_store::Error::NotFound { .. }, .. }) => {
            return Err(place.damaged(&file.file, "it is not there".to_owned()));
        }
        Err(error) => return Err(error),
    };
    let found = hex::encode(Sha256::digest(&bytes));
    match found == file.sha256 {
        true => Ok(bytes),
        false => Err(place.damaged(&file.file, format!("its SHA-256 is {found}, and should be {}", file.sha256))),
    }
}

/// Gives the records of a file, if they are those that the manifest names: so many, each after the one before it, and all
/// within the file's range.
pub(super) fn records<T: Record + DeserializeOwned, E: From<Error>>(
    place: &Place,
    file: &FileEntry,
    mut take: impl FnMut(Archived<T>) -> Result<ControlFlow<()>, E>,
) -> Result<ControlFlow<()>, E> {
    let bytes = whole(place, file)?;
    let damaged = |detail: String| E::from(place.damaged(&file.file, detail));
    let (mut count, mut next) = (0_u64, file.start);
    let flow = each(&bytes, damaged, |record: Archived<T>| {
        if !(next..file.end).contains(&record.offset) {
            let (offset, end) = (record.offset, file.end);
            return Err(damaged(format!("it has a record of offset {offset} where one of {next} to {end} should be")));
        }
        (count, next) = (count + 1, record.offset + 1);
        take(record)
    })?;
    if flow.is_continue() && count != file.records {
        return Err(damaged(format!("it has {count} records, and should have {}", file.records)));
    }
    Ok(flow)
}

impl Archive {
    /// # Errors
    /// There is none, or its manifest contradicts itself.
    pub fn open(place: Place) -> Result<Self, Error> {
        let manifest = place.manifest()?.ok_or_else(|| Error::NoManifest { url: place.url().to_owned() })?;
        match manifest.contradictions().into_iter().next() {
            Some(problem) => Err(Error::Unsound { url: place.url().to_owned(), problem }),
            None => Ok(Self { place, manifest }),
        }
    }

    /// The files of a range, in the order of their offsets.
    ///
    /// # Errors
    /// Something in between is not here.
    fn files(&self, topic: Topic, partition: i32, offsets: &Range<i64>) -> Result<Vec<&FileEntry>, Error> {
        let here = self.manifest.range(topic, partition);
        let within = offsets.start.max(here.start)..offsets.end.min(here.end);
        if let Some(missing) = self.manifest.missing(topic, partition, within).first() {
            let (url, topic, from, to) = (self.place.url().to_owned(), topic.name(), missing.start, missing.end);
            return Err(Error::Lacks { url, topic, partition, from, to });
        }
        let mut files: Vec<&FileEntry> = self
            .manifest
            .of(topic, partition)
            .filter(|file| file.end > offsets.start && file.start < offsets.end)
            .collect();
        files.sort_by_key(|file| file.start);
        Ok(files)
    }

    fn damaged(&self, file: &FileEntry, detail: String) -> run::Error {
        self.place.damaged(&file.file, detail).into()
    }
}

impl Log for Archive {
    fn kept(&self) -> Result<Kept, run::Error> {
        let ranges = |topic: Topic| -> BTreeMap<i32, Range<i64>> {
            let partitions = self.manifest.partitions(topic);
            partitions.into_iter().map(|partition| (partition, self.manifest.range(topic, partition))).collect()
        };
        let partitions = self.manifest.partitions(Topic::Journal).len();
        if partitions == 0 {
            return Err(Error::Unfinished { url: self.place.url().to_owned() }.into());
        }
        Ok(Kept {
            journal: ranges(Topic::Journal),
            requests: ranges(Topic::Requests),
            control: self.manifest.range(Topic::Control, 0),
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX),
        })
    }

    fn rules(&self, end: i64) -> Result<Rules, run::Error> {
        let mut found = Vec::new();
        let begins = self.manifest.range(Topic::Control, 0).start;
        if begins > 0 {
            let (url, topic) = (self.place.url().to_owned(), Topic::Control.name());
            return Err(Error::Lacks { url, topic, partition: 0, from: 0, to: begins }.into());
        }
        for file in self.files(Topic::Control, 0, &(0..end))? {
            _ = records(&self.place, file, |record: Archived<ControlRecord>| {
                if record.offset < end {
                    found.push((record.offset, record.value));
                }
                Ok::<_, run::Error>(ControlFlow::Continue(()))
            })?;
        }
        Ok(Rules::new(found.into()))
    }

    fn journal(
        &self,
        partition: i32,
        offsets: Range<i64>,
        take: &mut dyn FnMut(i64, Entry) -> Result<ControlFlow<()>, run::Error>,
    ) -> Result<(), run::Error> {
        for file in self.files(Topic::Journal, partition, &offsets)? {
            let flow = records(&self.place, file, |record: Archived<JournalRecord>| {
                if !offsets.contains(&record.offset) {
                    return Ok(ControlFlow::Continue(()));
                }
                let entry = Entry::try_from(record.value).map_err(|e| self.damaged(file, e.to_string()))?;
                take(record.offset, entry)
            })?;
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn requests(&self, partition: i32, from: i64) -> Result<Box<dyn Requests + '_>, run::Error> {
        let files = self.files(Topic::Requests, partition, &(from..i64::MAX))?.into_iter().collect();
        Ok(Box::new(OfArchive { archive: self, files, records: VecDeque::new() }))
    }

    fn has_content(&self) -> bool {
        self.manifest.files.iter().filter_map(|file| file.content).all(|content| content == Content::Keep)
    }
}

/// A partition of `requests`, one file of it at a time.
struct OfArchive<'a> {
    archive: &'a Archive,
    files: VecDeque<&'a FileEntry>,
    records: VecDeque<(i64, RequestRecord)>,
}

impl Requests for OfArchive<'_> {
    fn at(&mut self, wanted: i64) -> Result<Option<Request>, run::Error> {
        loop {
            while let Some((offset, record)) = self.records.pop_front_if(|(offset, _)| *offset <= wanted) {
                if offset == wanted {
                    return Ok(Request::try_from(record).ok());
                }
            }
            if !self.records.is_empty() {
                return Ok(None);
            }
            let Some(file) = self.files.pop_front() else { return Ok(None) };
            _ = records(&self.archive.place, file, |record: Archived<RequestRecord>| {
                self.records.push_back((record.offset, record.value));
                Ok::<_, run::Error>(ControlFlow::Continue(()))
            })?;
        }
    }
}
