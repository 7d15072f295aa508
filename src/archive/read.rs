//! Gives an archive to a replay, as the topics would be.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, Range};

use sha2::{Digest as _, Sha256};

use super::container::{Archived, each};
use super::{Content, Error, FileEntry, Manifest, Place};
use crate::control::rules::Rules;
use crate::records::Topic;
use crate::records::control::ControlRecord;
use crate::records::journal::{Entry, JournalRecord};
use crate::records::requests::{Request, RequestRecord};
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

impl Archive {
    /// # Errors
    /// There is none.
    pub fn open(place: Place) -> Result<Self, Error> {
        let manifest = place.manifest()?.ok_or_else(|| Error::NoManifest { url: place.url().to_owned() })?;
        Ok(Self { place, manifest })
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

    fn damaged<'a>(&'a self, file: &'a FileEntry) -> impl Fn(String) -> run::Error + 'a {
        move |detail| self.place.damaged(&file.file, detail).into()
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
        let mut records = Vec::new();
        let begins = self.manifest.range(Topic::Control, 0).start;
        if begins > 0 {
            let (url, topic) = (self.place.url().to_owned(), Topic::Control.name());
            return Err(Error::Lacks { url, topic, partition: 0, from: 0, to: begins }.into());
        }
        for file in self.files(Topic::Control, 0, &(0..end))? {
            let bytes = whole(&self.place, file)?;
            _ = each(&bytes, self.damaged(file), |record: Archived<ControlRecord>| {
                if record.offset < end {
                    records.push((record.offset, record.value));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(Rules::new(records.into()))
    }

    fn journal(
        &self,
        partition: i32,
        offsets: Range<i64>,
        take: &mut dyn FnMut(i64, Entry) -> Result<ControlFlow<()>, run::Error>,
    ) -> Result<(), run::Error> {
        for file in self.files(Topic::Journal, partition, &offsets)? {
            let bytes = whole(&self.place, file)?;
            let flow = each(&bytes, self.damaged(file), |record: Archived<JournalRecord>| {
                if !offsets.contains(&record.offset) {
                    return Ok(ControlFlow::Continue(()));
                }
                let entry = Entry::try_from(record.value).map_err(|e| self.damaged(file)(e.to_string()))?;
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
            let bytes = whole(&self.archive.place, file)?;
            _ = each(&bytes, self.archive.damaged(file), |record: Archived<RequestRecord>| {
                self.records.push_back((record.offset, record.value));
                Ok(ControlFlow::Continue(()))
            })?;
        }
    }
}
