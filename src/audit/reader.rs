//! Reads the logs for the audit, partition by partition, each on a thread, in bounded memory.
//!
//! What is remembered for the frames is bounded: when more requests than [`REMEMBERED_MAX`](super::plan::REMEMBERED_MAX)
//! may have frames, they are split into parts by a hash, and journal and frames are read once for each part.

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::ahead::{Ahead, read_ahead};
use super::frames::{Requests, Window};
use super::journal::{self, Counts, Journal, Read};
use super::money::Money;
use super::plan::{Answers, Extent, Plan, Scope, Source};
use super::rows::{Extremes, Rows};
use super::stages::Following;
use super::sums::Lag;
use super::{Check, Finding, Findings, Place};
use crate::causes::causes;
use crate::codec::{self, Codec};
use crate::config;
use crate::control::rules::Rules;
use crate::domain::ids::partition_of;
use crate::records::control::ControlRecord;
use crate::records::journal::{Entry, JournalRecord, Tenancy};
use crate::records::responses::{Frame, ResponseRecord};
use crate::records::{EnvelopeError, Record, Topic};
use crate::runtime::{checkpoints, kafka};
use crate::sink;

/// How long nothing may come although the end is not reached, and how long the registry may be away.
pub(crate) const STALL: Duration = Duration::from_secs(30);
const REGISTRY_INTERVAL: Duration = Duration::from_millis(200);
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// Records between two steps of the progress.
const PROGRESS_EVERY: u64 = 1_024;

/// Owners of a partition that are remembered by their tenure, the latest ones.
const OWNERS_MAX: usize = 64;

/// The checks that need a partition of `responses`; all need the journal.
const OF_RESPONSES: [Check; 3] = [Check::I2, Check::I3, Check::I8];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("kafka {brokers}: {source}")]
    Kafka { brokers: String, source: KafkaError },
    #[error("there is no topic {topic}; `tollstream topology apply` makes ours")]
    NoTopic { topic: String },
    #[error("the topics have the partitions 0 to {}, and not all of those asked for", .partitions.saturating_sub(1))]
    NoPartition { partitions: u32 },
    #[error("the journal has no record in that range of time; look at --from and --to")]
    NothingInRange,
    #[error("{topic}/{partition}: nothing came for {} s before offset {end}", STALL.as_secs())]
    Stalled { topic: &'static str, partition: i32, end: i64 },
    #[error(transparent)]
    Registry(codec::Error),
    #[error("{place} cannot be understood: {detail}")]
    Unreadable { place: Place, detail: String },
    #[error("journal/{partition}: {source}")]
    Bound { partition: i32, source: journal::Error },
}

/// What came of an audit.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Findings,
    pub counts: Counts,
    pub partitions: usize,
    pub frames: u64,
    /// Records of `requests` that are not decided yet.
    pub waiting: u64,
    pub lag: Lag,
    pub clickhouse: Compared,
}

/// Whether ClickHouse was compared with the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compared {
    #[default]
    Compared,
    /// On purpose.
    LeftOut,
    Unreachable,
}

/// Reads the logs.
pub struct Reader {
    pub kafka: config::Kafka,
    pub codec: Arc<Codec>,
    pub handle: Handle,
    pub progress: ProgressBar,
}

/// An entry of the journal, as a reader of it takes it.
#[derive(Debug)]
pub struct Given<'a> {
    pub offset: i64,
    pub entry: Entry,
    /// Whether it is an effective commit.
    pub counts: bool,
    /// Whose tenure it is of, if that is among the latest that were read.
    pub owner: Option<&'a str>,
}

/// The requests of each partition of the journal that could be read.
type Remembered = HashMap<i32, Mutex<Requests>>;

/// What came of a partition of `responses`.
struct Checked {
    findings: Findings,
    frames: u64,
    failed: Option<Error>,
}

impl Reader {
    /// Audits; blocks, so it runs on a thread for that.
    ///
    /// # Errors
    /// Nothing could be looked at. What could not be looked at in single partitions is in the report.
    pub fn audit(&self, scope: &Scope) -> Result<Report, Error> {
        // Before the journal's ends are asked for: whatever it has comes from there.
        let clickhouse = scope.clickhouse.as_ref().map(|config| self.clickhouse(config)).transpose();
        let plan = Plan::make(self, scope)?;
        let rules = self.rules(&plan.control)?;
        self.progress.set_length(plan.records());
        let mut report = Report { partitions: plan.sources.len(), ..Report::default() };
        if let Some(error) = &plan.unstaged {
            report.findings.blind(&[Check::I5], &error.to_string());
        }
        let rows = match clickhouse {
            Ok(Some((rows, extremes))) => {
                strange(&extremes, &plan, scope, &mut report.findings);
                Some(rows)
            }
            Ok(None) => {
                report.clickhouse = Compared::LeftOut;
                None
            }
            Err(error) => {
                report.clickhouse = Compared::Unreachable;
                report.findings.blind(&[Check::I5], &causes(&error));
                None
            }
        };
        let hasher = RandomState::new();
        for part in 0..plan.parts {
            let window = Window { since: plan.since, part, parts: plan.parts, hasher: hasher.clone() };
            let money = || (part == 0).then(|| Money::new(rules.clone(), scope.settings.redecides));
            let follows = |source: &Source| source.stage.clone().filter(|_| part == 0);
            let read = in_parallel(&plan.sources, |source| {
                let stage = follows(source);
                let following =
                    stage.as_ref().map(|stage| Following::begin(self, source.journal.partition, stage, rows.as_ref()));
                self.journal(source, scope, window.clone(), money(), following)
            });
            let mut remembered = Remembered::new();
            for (source, read) in plan.sources.iter().zip(read) {
                match read {
                    Ok((read, requests, lag)) => {
                        report.lag.add(lag);
                        remembered.insert(source.journal.partition, Mutex::new(requests));
                        if part == 0 {
                            self.decided(source, read, &mut report);
                        }
                    }
                    Err(error) if part == 0 => report.findings.blind(&Check::ALL, &error.to_string()),
                    Err(_) => {}
                }
            }
            for checked in in_parallel(&plan.answers, |answers| self.frames(answers, plan.partitions, &remembered)) {
                report.findings.merge(checked.findings);
                report.frames += checked.frames;
                if let Some(error) = checked.failed.filter(|_| part == 0) {
                    report.findings.blind(&OF_RESPONSES, &error.to_string());
                }
            }
        }
        Ok(report)
    }

    /// Reads a partition of the journal.
    fn journal(
        &self,
        source: &Source,
        scope: &Scope,
        window: Window,
        money: Option<Money>,
        following: Option<Result<Following<'_>, Error>>,
    ) -> Result<(Read, Requests, Lag), Error> {
        let Extent { partition, offsets, .. } = &source.journal;
        let mut journal = Journal::new(*partition, source.begins, scope.settings, window);
        if source.cut {
            journal.begins_late(offsets.start);
        }
        journal.compare(self.checkpoints(*partition)?.into_markers());
        if let Some(money) = money {
            journal.reckon(money);
        }
        let (mut following, unable) = match following.transpose() {
            Ok(following) => (following, None),
            Err(error) => (None, Some(error)),
        };
        let bound = |error| Error::Bound { partition: *partition, source: error };
        let read = |ahead: &mut Ahead| self.each_given(&source.journal, ahead);
        read_ahead(read, |offset, payload| {
            let place = Place { topic: Topic::Journal, partition: *partition, offset };
            let entry = self.entry(place, payload)?;
            if let Some(following) = &mut following {
                following.take(offset, &entry);
            }
            journal.take(offset, &entry).map_err(bound)
        })?;
        let (mut read, requests) = journal.finish(scope.now);
        let mut lag = Lag::default();
        if let Some(following) = following {
            let (findings, behind) = following.finish();
            read.findings.merge(findings);
            lag = behind;
        }
        if let Some(error) = unable {
            read.findings.blind(&[Check::I5], &error.to_string());
        }
        Ok((read, requests, lag))
    }

    /// The table of rows, and how far they reach.
    fn clickhouse(&self, config: &config::ClickHouse) -> Result<(Rows, Vec<Extremes>), sink::Error> {
        let rows = Rows::new(config)?;
        let extremes = self.handle.block_on(rows.extremes())?;
        Ok((rows, extremes))
    }

    /// The rules of every moment.
    pub fn rules(&self, control: &Extent) -> Result<Rules, Error> {
        let mut records = Vec::new();
        self.each(control, |message| {
            let place = Place { topic: Topic::Control, partition: control.partition, offset: message.offset() };
            match self.decode::<ControlRecord>(place, message.payload().unwrap_or_default()) {
                Ok(record) => records.push((message.offset(), record)),
                // Every reader passes over it.
                Err(Error::Unreadable { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Rules::new(records.into()))
    }

    /// Reads parts of the journal, each on a thread, and gives each entry to what `make` makes for its partition; blocks.
    pub fn entries<T: Send>(
        &self,
        extents: &[Extent],
        make: impl Fn(i32) -> T + Sync,
        take: impl Fn(&mut T, Given<'_>) + Sync,
    ) -> Vec<Result<T, Error>> {
        let records: i64 = extents.iter().map(|extent| extent.offsets.end - extent.offsets.start).sum();
        self.progress.set_length(records.unsigned_abs());
        in_parallel(extents, |extent| {
            let (mut made, mut tenancy) = (make(extent.partition), None::<Tenancy>);
            let mut owners = VecDeque::<(i64, String)>::new();
            let read = |ahead: &mut Ahead| self.each_given(extent, ahead);
            read_ahead(read, |offset, payload| {
                let place = Place { topic: Topic::Journal, partition: extent.partition, offset };
                let entry = self.entry(place, payload)?;
                let tenure = match &entry {
                    Entry::OwnershipTaken(taken) => {
                        owners.truncate(OWNERS_MAX - 1);
                        owners.push_front((offset, taken.owner.clone()));
                        offset
                    }
                    Entry::Commit(commit) => commit.tenure,
                };
                let counts = tenancy.get_or_insert_with(|| beginning(&entry)).accept(offset, &entry);
                let owner = owners.iter().find(|(of, _)| *of == tenure).map(|(_, owner)| owner.as_str());
                take(&mut made, Given { offset, entry, counts, owner });
                Ok(())
            })?;
            Ok(made)
        })
    }

    /// The checkpoints of a partition.
    pub(super) fn checkpoints(&self, partition: i32) -> Result<checkpoints::Found, Error> {
        let (consumer, topic) = (self.consumer("audit")?, kafka::topic_name(&self.kafka, Topic::State));
        let found = checkpoints::read(&consumer, &topic, partition, |payload| self.decode_payload(payload));
        found.map_err(|e| self.failed(e))
    }

    /// Holds what a partition of the journal decides against `requests` and its consumer group.
    fn decided(&self, source: &Source, mut read: Read, report: &mut Report) {
        if let Some(committed) = source.committed {
            read.committed(committed, source.requests.start);
        }
        for offsets in read.undecided(source.requests.start) {
            let extent = Extent { topic: Topic::Requests, partition: read.partition, offsets };
            let looked = self.each(&extent, |message| {
                read.found_undecided(message.offset());
                Ok(ControlFlow::Continue(()))
            });
            if let Err(error) = looked {
                read.findings.blind(&[Check::I11], &error.to_string());
            }
        }
        let next = read.sources.last.map_or(source.requests.start, |last| last + 1);
        report.waiting += u64::try_from(source.requests.end - next).unwrap_or(0);
        report.counts.add(&read.counts);
        report.findings.merge(read.findings);
    }

    /// Reads a partition of `responses`.
    fn frames(&self, answers: &Answers, partitions: u32, remembered: &Remembered) -> Checked {
        let mut checked = Checked { findings: Findings::default(), frames: 0, failed: None };
        let read = |ahead: &mut Ahead| self.each_given(&answers.extent, ahead);
        let read = read_ahead(read, |offset, payload| {
            let place = Place { topic: Topic::Responses, partition: answers.extent.partition, offset };
            let unreadable = |e: EnvelopeError| Error::Unreadable { place, detail: e.to_string() };
            let record = self.decode::<ResponseRecord>(place, payload);
            let frame = match record.and_then(|record| Frame::try_from(record).map_err(unreadable)) {
                Ok(frame) => frame,
                // What is behind it can be checked all the same.
                Err(error @ Error::Unreadable { .. }) => {
                    checked.failed.get_or_insert(error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let owner = remembered.get(&partition_of(frame.organization.as_str(), partitions));
            if let Some(requests) = owner {
                let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
                checked.frames += u64::from(requests.take(place, &frame, answers.retained, &mut checked.findings));
            }
            Ok(())
        });
        checked.failed = read.err().or(checked.failed);
        checked
    }

    pub(crate) fn failed(&self, source: KafkaError) -> Error {
        Error::Kafka { brokers: self.kafka.brokers.clone(), source }
    }

    pub(crate) fn consumer(&self, group: &str) -> Result<BaseConsumer, Error> {
        let mut client = kafka::cold_consumer(&self.kafka, group);
        // Control records leave gaps, so only the broker can say where the end is; and what is read is there already.
        client.set("enable.partition.eof", "true").set("fetch.min.bytes", "1");
        // A full queue is read empty within milliseconds; by default librdkafka then pauses for a second.
        client.set("fetch.queue.backoff.ms", "2");
        client.create().map_err(|e| self.failed(e))
    }

    /// Reads records in order until the end of the extent, or until it is told to end.
    pub(crate) fn each(
        &self,
        extent: &Extent,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        if extent.offsets.is_empty() {
            return Ok(());
        }
        let (consumer, mut list) = (self.consumer("audit")?, TopicPartitionList::new());
        let (name, end) = (kafka::topic_name(&self.kafka, extent.topic), extent.offsets.end);
        let start = Offset::Offset(extent.offsets.start);
        list.add_partition_offset(&name, extent.partition, start).map_err(|e| self.failed(e))?;
        consumer.assign(&list).map_err(|e| self.failed(e))?;
        let (mut taken, mut came) = (0, Instant::now());
        let ended = loop {
            match consumer.poll(POLL) {
                Some(Ok(message)) if message.offset() >= end => break Ok(()),
                Some(Ok(message)) => {
                    came = Instant::now();
                    match take(&message) {
                        Ok(ControlFlow::Continue(())) if message.offset() + 1 < end => {}
                        Ok(_) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                    taken += 1;
                    if taken % PROGRESS_EVERY == 0 {
                        self.progress.inc(PROGRESS_EVERY);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break Ok(()),
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => break Err(self.failed(error)),
                // The client comes back from other errors by itself.
                Some(Err(_)) | None if came.elapsed() > STALL => {
                    let (topic, partition) = (extent.topic.name(), extent.partition);
                    break Err(Error::Stalled { topic, partition, end });
                }
                Some(Err(_)) | None => {}
            }
        };
        self.progress.inc(taken % PROGRESS_EVERY);
        ended
    }

    /// Gives the records of the extent on.
    pub(crate) fn each_given(&self, extent: &Extent, ahead: &mut Ahead) -> Result<(), Error> {
        self.each(extent, |message| Ok(ahead.give(message.offset(), message.payload().unwrap_or_default())))
    }

    pub(crate) fn entry(&self, place: Place, payload: &[u8]) -> Result<Entry, Error> {
        let unreadable = |e: EnvelopeError| Error::Unreadable { place, detail: e.to_string() };
        Entry::try_from(self.decode::<JournalRecord>(place, payload)?).map_err(unreadable)
    }

    pub(crate) fn decode<T: Record + DeserializeOwned>(&self, place: Place, payload: &[u8]) -> Result<T, Error> {
        self.decode_payload(payload).map_err(|error| match error {
            error @ codec::Error::Registry { .. } => Error::Registry(error),
            error => Error::Unreadable { place, detail: error.to_string() },
        })
    }

    fn decode_payload<T: Record + DeserializeOwned>(&self, payload: &[u8]) -> Result<T, codec::Error> {
        let since = Instant::now();
        loop {
            match self.codec.decode::<T>(payload) {
                Err(codec::Error::UnknownSchema { id }) => match self.handle.block_on(self.codec.learn(id)) {
                    Err(codec::Error::Registry { .. }) if since.elapsed() < STALL => {
                        std::thread::sleep(REGISTRY_INTERVAL);
                    }
                    Err(error) => return Err(error),
                    Ok(()) => {}
                },
                decoded => return decoded,
            }
        }
    }
}

/// What is in force at the first entry that there is: where retention took the tenure's beginning, what the entry says.
fn beginning(first: &Entry) -> Tenancy {
    match first {
        Entry::OwnershipTaken(_) => Tenancy::VACANT,
        Entry::Commit(commit) => Tenancy { tenure: Some(commit.tenure), next_sequence: commit.sequence },
    }
}

/// I5: rows of what has never been on the journal.
fn strange(extremes: &[Extremes], plan: &Plan, scope: &Scope, findings: &mut Findings) {
    for Extremes { partition, first, last } in extremes {
        let source = plan.sources.iter().find(|source| source.journal.partition == *partition);
        let end = match (source.and_then(|source| source.stage.as_ref()), u32::try_from(*partition)) {
            (Some(stage), _) => stage.journal_end,
            (None, Ok(number)) if number < plan.partitions => continue,
            (None, _) if scope.partitions.is_empty() => 0,
            (None, _) => continue,
        };
        for offset in [first, last].into_iter().filter(|offset| !(0..end).contains(*offset)) {
            let place = Place { topic: Topic::Journal, partition: *partition, offset: *offset };
            let what = format!("ClickHouse has rows of offset {offset}; the journal ends at {end}");
            findings.violated(Check::I5, || Finding { place, request: None, what });
        }
    }
}

/// Works on the items on as many threads as there are processors; the results are in the order of the items.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(items.len());
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { return };
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
