//! A run: what was asked for is fixed, the partitions are replayed in parallel, and their rows and reports are put under the
//! run's name. One that is broken off goes on with the partitions that are not done; since a partition always gives the same
//! rows, nobody sees that it was.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::candidate::{self, Asked};
use super::directory::{self, Directory, Rows};
use super::log::{Kept, Log, Requests};
use super::partition::{Candidate, Filter, Partition, Span};
use super::report::Report;
use super::row::Row;
use crate::archive;
use crate::audit::reader::{self, in_parallel};
use crate::control::rules::Rules;
use crate::domain::ids::partition_of;
use crate::domain::{OrganizationId, Timestamp};
use crate::failpoint::{Failpoint, reached};
use crate::processor::content;
use crate::processor::intent::Builtin;
use crate::records::Topic;
use crate::records::journal::{Commit, Entry, Fact, Features, Tenancy};
use crate::records::requests::Request;
use crate::sink;

/// Entries between two steps of the progress.
const PROGRESS_EVERY: u64 = 1_024;
/// Most requests that can be asked for as the last ones.
pub const LAST_MAX: usize = 10_000_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reader(#[from] reader::Error),
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Candidate(#[from] candidate::Error),
    #[error(transparent)]
    ClickHouse(#[from] sink::Error),
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error(
        "journal/{partition} begins at offset {begins}: what was before is missing, so its state at the beginning of the range is not known; {}", hint(.archive.as_deref())
    )]
    JournalCut { partition: i32, begins: i64, archive: Option<String> },
    #[error(
        "requests/{partition} has nothing before offset {begins}, and --reclassify needs the content from offset {wanted} on; begin the range later, or {}", hint(.archive.as_deref())
    )]
    ContentCut { partition: i32, begins: i64, wanted: i64, archive: Option<String> },
    #[error(
        "archive {url} has no content, and --reclassify and --mode live need it; replay the topics, or an archive that was written with --content keep"
    )]
    NoContent { url: String },
    #[error(
        "journal/{partition} offset {offset} was decided by control at offset {wanted}, and that ends at {ends} here; if this is an archive, `tollstream archive write` completes it"
    )]
    ControlCut { partition: i32, offset: i64, ends: i64, wanted: i64 },
    #[error("there is no partition {partition}; the journal has {partitions}")]
    NoPartition { partition: i32, partitions: usize },
    #[error(
        "no request was decided in that range; look at --from, --until, --offsets, --last, --organization and --where"
    )]
    NothingInRange,
    #[error("{topic}/{partition}: nothing came before offset {offset}")]
    Stalled { topic: &'static str, partition: i32, offset: i64 },
    /// Nothing more is wanted; never told.
    #[error("enough")]
    Enough,
}

/// Where what is missing may be found.
fn hint(archive: Option<&str>) -> String {
    match archive {
        Some(url) => format!("archive {url} has it: replay that with --archive {url}"),
        None => {
            "replay an archive that has it with --archive URL (no archive.url that has it is configured)".to_owned()
        }
    }
}

/// What is replayed. It is fixed when a run begins, so that going on with it later means the same.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Spec {
    pub version: String,
    #[serde(default)]
    pub mode: Mode,
    /// Its rows are in ClickHouse, too.
    #[serde(default)]
    pub with_clickhouse: bool,
    /// `None`: from the topics.
    pub archive: Option<String>,
    pub candidates: Vec<Asked>,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Of single partitions; then the others are left out.
    pub offsets: BTreeMap<i32, Range<i64>>,
    /// The times as they were asked for, which may have been ages.
    pub asked: String,
    pub last: Option<usize>,
    pub organizations: Vec<OrganizationId>,
    pub filter: FilterSpec,
    /// Of the journal, by partition, and of control: what there was when the run began.
    pub journal: BTreeMap<i32, i64>,
    pub control: i64,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Decides again.
    #[default]
    Decide,
    /// Really calls providers, too.
    Live,
    /// Follows the running system, and cannot be gone on with.
    Shadow,
}

/// What is told of, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilterSpec {
    pub tiers: Vec<u8>,
    pub requested_models: Vec<crate::domain::ModelName>,
    pub policies: Vec<crate::domain::PolicyName>,
    pub user_tiers: Vec<String>,
    pub tags: Vec<(String, String)>,
}

impl Spec {
    /// In what two runs differ that were asked for; where the logs ended is none of it.
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let range = |of: &Self| (of.asked.clone(), of.offsets.clone(), of.last, of.organizations.clone());
        let tests: [(&str, bool); 7] = [
            ("another mode", self.mode != other.mode),
            ("--no-clickhouse, or not, as now", self.with_clickhouse != other.with_clickhouse),
            ("another source", self.archive != other.archive),
            ("another version of this program", self.version != other.version),
            ("other candidates", !candidate::are_same(&self.candidates, &other.candidates)),
            ("another range", range(self) != range(other)),
            ("another filter", self.filter != other.filter),
        ];
        tests.into_iter().find_map(|(what, differs)| differs.then_some(what))
    }

    pub fn filter(&self) -> Filter {
        Filter {
            organizations: self.organizations.iter().cloned().collect(),
            tiers: self.filter.tiers.iter().copied().collect(),
            requested_models: self.filter.requested_models.iter().cloned().collect(),
            policies: self.filter.policies.iter().cloned().collect(),
            user_tiers: self.filter.user_tiers.iter().cloned().collect(),
            tags: self.filter.tags.clone(),
        }
    }
}

/// Who is told of each partition's rows once they are whole, before the partition counts as done.
pub trait Destination: Sync {
    /// Takes the rows of a partition; taking them again must change nothing.
    fn take(&self, directory: &Directory, partition: i32) -> Result<(), Error>;
}

/// Nobody beside the directory.
pub struct Nowhere;

impl Destination for Nowhere {
    fn take(&self, _: &Directory, _: i32) -> Result<(), Error> {
        Ok(())
    }
}

/// A replay that is about to run.
pub struct Run<'a> {
    pub log: &'a dyn Log,
    pub spec: Spec,
    pub rules: Rules,
    pub candidates: Vec<Candidate>,
    pub kept: Kept,
    /// An archive that may have what the topics do not have any more.
    pub archive: Option<archive::Place>,
    /// Where the last so many requests begin.
    pub since: Option<(Timestamp, i32, i64)>,
    pub progress: ProgressBar,
}

impl<'a> Run<'a> {
    /// Checks everything that can be checked before anything is read or written: what the logs have, and the candidates.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn prepare(
        log: &'a dyn Log,
        mut spec: Spec,
        archive: Option<archive::Place>,
        progress: ProgressBar,
    ) -> Result<Self, Error> {
        let kept = log.kept()?;
        if spec.journal.is_empty() {
            spec.control = kept.control.end;
            spec.journal = kept.journal.iter().map(|(partition, range)| (*partition, range.end)).collect();
        }
        if let Some(partition) = spec.offsets.keys().find(|partition| !spec.journal.contains_key(partition)) {
            return Err(Error::NoPartition { partition: *partition, partitions: spec.journal.len() });
        }
        let rules = log.rules(spec.control)?;
        let candidates = candidate::candidates(&spec.candidates, &rules, spec.control)?;
        let mut run = Self { log, spec, rules, candidates, kept, archive, since: None, progress };
        for partition in run.partitions() {
            let begins = run.kept.journal.get(&partition).map_or(0, |range| range.start);
            if begins > 0 {
                let archive = run.archive_with(Topic::Journal, partition, 0);
                return Err(Error::JournalCut { partition, begins, archive });
            }
        }
        if let Some(last) = run.spec.last {
            run.since = run.since(&run.partitions(), last)?;
        }
        if run.candidates.iter().any(|candidate| candidate.reclassifies) {
            if !log.has_content() {
                return Err(Error::NoContent { url: run.spec.archive.clone().unwrap_or_default() });
            }
            run.check_content()?;
        }
        Ok(run)
    }

    /// The configured archive, if it has a partition from an offset on.
    fn archive_with(&self, topic: Topic, partition: i32, offset: i64) -> Option<String> {
        let place = self.archive.as_ref()?;
        let manifest = place.manifest().ok()??;
        let is_there = manifest.range(topic, partition).contains(&offset)
            && manifest.missing(topic, partition, offset..offset + 1).is_empty()
            && manifest.of(topic, partition).all(|file| file.content.is_none_or(|of| of == archive::Content::Keep));
        is_there.then(|| place.url().to_owned())
    }

    /// That the content of the range is kept, before anything is written.
    fn check_content(&self) -> Result<(), Error> {
        for partition in self.partitions() {
            let span = self.span(partition);
            let mut first = None;
            let end = self.spec.journal.get(&partition).copied().unwrap_or(0);
            self.log.journal(partition, 0..end, &mut |offset, entry| {
                if let Entry::Commit(commit) = &entry
                    && span.has(partition, offset, commit.at)
                    && features_of(commit).is_some()
                    && let Some(wanted) = commit.source_offset
                {
                    first = Some(wanted);
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let begins = self.kept.requests.get(&partition).map_or(0, |range| range.start);
            if let Some(wanted) = first.filter(|wanted| *wanted < begins) {
                let archive = self.archive_with(Topic::Requests, partition, wanted);
                return Err(Error::ContentCut { partition, begins, wanted, archive });
            }
        }
        Ok(())
    }

    /// The partitions that have something of the range, as far as that is known beforehand.
    pub fn partitions(&self) -> Vec<i32> {
        let of: Vec<i32> =
            self.spec.organizations.iter().map(|id| partition_of(id.as_str(), self.kept.partitions)).collect();
        let is_wanted = |partition: &i32| {
            (of.is_empty() || of.contains(partition))
                && (self.spec.offsets.is_empty() || self.spec.offsets.contains_key(partition))
        };
        self.spec.journal.keys().copied().filter(is_wanted).collect()
    }

    /// Replays what is not done yet, and sums up.
    ///
    /// # Errors
    /// What could not be read or written; what is done stays, and the run can be gone on with.
    pub fn run(&self, directory: &Directory, destination: &dyn Destination) -> Result<Vec<Report>, Error> {
        let partitions = self.partitions();
        let all: i64 = partitions.iter().filter_map(|partition| self.spec.journal.get(partition)).sum();
        self.progress.set_position(0);
        self.progress.set_length(all.unsigned_abs());
        let filter = Arc::new(self.spec.filter());
        let ended = in_parallel(&partitions, |partition| {
            if let Some(reports) = directory.partition::<Vec<Report>>(*partition)? {
                self.progress.inc(self.spec.journal.get(partition).map_or(0, |end| end.unsigned_abs()));
                return Ok(reports);
            }
            let reports = self.partition(directory, *partition, filter.clone())?;
            destination.take(directory, *partition)?;
            directory.done(*partition, &reports)?;
            reached(Failpoint::PartitionReplayed);
            Ok::<_, Error>(reports)
        });
        let mut reports: Vec<Report> = self.candidates.iter().map(|candidate| Report::of(&candidate.name)).collect();
        for of_partition in ended {
            reports.iter_mut().zip(of_partition?).for_each(|(all, of)| all.merge(of));
        }
        Ok(reports)
    }

    fn span(&self, partition: i32) -> Span {
        let Spec { from, until, .. } = self.spec;
        Span { from, until, offsets: self.spec.offsets.get(&partition).cloned(), since: self.since }
    }

    fn partition(&self, directory: &Directory, number: i32, filter: Arc<Filter>) -> Result<Vec<Report>, Error> {
        let mut partition = Partition::new(number, self.span(number), filter, &self.rules, &self.candidates);
        let reports = self.candidates.iter().map(|candidate| Report::of(&candidate.name)).collect();
        let mut taken_in = TakenIn { reports, rows: directory.rows_of(number)?, failed: None };
        let mut contents = None::<Contents<'_>>;
        let (mut taken, classifier) = (0_u64, Builtin::new());
        let end = self.spec.journal.get(&number).copied().unwrap_or(0);
        self.log.journal(number, 0..end, &mut |offset, entry| {
            taken += 1;
            if taken.is_multiple_of(PROGRESS_EVERY) {
                self.progress.inc(PROGRESS_EVERY);
            }
            if let Entry::Commit(Commit { control_offset, .. }) = &entry
                && *control_offset >= self.spec.control
            {
                let (ends, wanted) = (self.spec.control, *control_offset);
                return Err(Error::ControlCut { partition: number, offset, ends, wanted });
            }
            let features = match &entry {
                Entry::Commit(commit) if partition.wants_content(&entry, offset) => {
                    self.content(number, commit, &mut contents, &classifier)?
                }
                _ => None,
            };
            Ok(partition.take(offset, &entry, features.as_ref(), |candidate, row| taken_in.take(candidate, &row)))
        })?;
        let counts = partition.finish(|candidate, row| taken_in.take(candidate, &row));
        let TakenIn { mut reports, rows, failed } = taken_in;
        if let Some(error) = failed {
            return Err(error.into());
        }
        rows.finish()?;
        reports.iter_mut().zip(counts).for_each(|(report, counts)| report.count(counts));
        self.progress.inc(end.unsigned_abs().saturating_sub(taken / PROGRESS_EVERY * PROGRESS_EVERY));
        Ok(reports)
    }

    /// The features of a record whose content is read and classified again.
    fn content<'l>(
        &'l self,
        partition: i32,
        commit: &Commit,
        contents: &mut Option<Contents<'l>>,
        classifier: &Builtin,
    ) -> Result<Option<Features>, Error> {
        let (Some(wanted), Some(recorded)) = (commit.source_offset, features_of(commit)) else { return Ok(None) };
        if contents.is_none() {
            let begins = self.kept.requests.get(&partition).map_or(0, |range| range.start);
            if begins > wanted {
                return Err(Error::ContentCut { partition, begins, wanted, archive: None });
            }
            *contents = Some(Contents { requests: self.log.requests(partition, wanted)? });
        }
        let Some(contents) = contents else { return Ok(None) };
        let Some(Request::Chat(chat)) = contents.requests.at(wanted)? else { return Ok(None) };
        let Ok(mut content) = content::read(&chat.body) else { return Ok(None) };
        content.classify(classifier);
        let Features { likelihoods, measures, .. } = content.features;
        Ok(Some(Features { likelihoods, measures, ..*recorded }))
    }

    /// Where the last so many requests begin.
    fn since(&self, partitions: &[i32], last: usize) -> Result<Option<(Timestamp, i32, i64)>, Error> {
        let all: i64 = partitions.iter().filter_map(|partition| self.spec.journal.get(partition)).sum();
        self.progress.set_position(0);
        self.progress.set_length(all.unsigned_abs());
        let found = in_parallel(partitions, |partition| {
            let (mut latest, mut tenancy) = (BinaryHeap::new(), Tenancy::VACANT);
            let (span, filter) = (self.span(*partition), self.spec.filter());
            let end = self.spec.journal.get(partition).copied().unwrap_or(0);
            self.log.journal(*partition, 0..end, &mut |offset, entry| {
                let counts = tenancy.accept(offset, &entry);
                if let Entry::Commit(commit) = &entry
                    && counts
                    && is_request(commit)
                    && span.has(*partition, offset, commit.at)
                    && filter.has_commit(commit)
                {
                    latest.push(Reverse((commit.at, *partition, offset)));
                    if latest.len() > last {
                        latest.pop();
                    }
                }
                if offset % PROGRESS_EVERY as i64 == 0 {
                    self.progress.inc(PROGRESS_EVERY);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok::<_, Error>(latest)
        });
        let mut all = Vec::new();
        for latest in found {
            all.extend(latest?.into_iter().map(|Reverse(place)| place));
        }
        all.sort_unstable();
        Ok(all.get(all.len().saturating_sub(last)).copied())
    }
}

/// The rows of a partition, as they come.
struct TakenIn {
    reports: Vec<Report>,
    rows: Rows<'static>,
    failed: Option<directory::Error>,
}

impl TakenIn {
    fn take(&mut self, candidate: usize, row: &Row) {
        if let Some(report) = self.reports.get_mut(candidate) {
            report.add(row);
        }
        if self.failed.is_none() {
            self.failed = self.rows.add(row).err();
        }
    }
}

/// A partition's records, as they are read beside its journal.
struct Contents<'l> {
    requests: Box<dyn Requests + 'l>,
}

fn is_request(commit: &Commit) -> bool {
    matches!(commit.facts.first(), Some(Fact::RequestAdmitted(_) | Fact::RequestRefused(_)))
}

fn features_of(commit: &Commit) -> Option<&Features> {
    commit.facts.iter().find_map(|fact| match fact {
        Fact::RequestAdmitted(admitted) => Some(&admitted.features),
        Fact::RequestRefused(refused) => refused.features.as_ref(),
        _ => None,
    })
}
