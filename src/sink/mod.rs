//! usage -> ClickHouse: one row per posting, in batches by rows or time.
//!
//! A batch is kept until ClickHouse has acknowledged its insert; only then are its offsets committed. So every row
//! arrives at least once, and `ReplacingMergeTree` with the posting's id in its key, read through views with `FINAL`,
//! makes that exactly once. While ClickHouse is away the sink holds two batches at the most and reads no further (see
//! [`Gate`] for how it stays a member of its group meanwhile).

mod batch;
mod metrics;
pub mod migrations;
mod row;
pub mod writer;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::causes::causes;
use crate::codec::{self, Codec};
use crate::config::{self, millis};
use crate::domain::Timestamp;
use crate::failpoint::{Failpoint, reached};
use crate::records::Topic;
use crate::records::usage::UsageRecord;
use crate::runtime::kafka;
use crate::runtime::lag::Lag;
use crate::runtime::member::{self, Change, Gate, Member, Position, Reader, Received};
use crate::runtime::publisher::Publisher;
use crate::runtime::schema_wait::{Freed, SchemaWait};
use crate::telemetry::Metrics;
use crate::telemetry::health::Health;
use batch::{Batch, Letter};
use metrics::Counters;
use writer::Writer;
pub(crate) use writer::{bounded, client};

/// Name of the component and of its consumer group.
pub(crate) const NAME: &str = "sink";
/// How often what is due is looked after; also heals a lost wake-up of the consumer.
const TICK: Duration = Duration::from_millis(100);
/// How long a clean stop waits for ClickHouse; what is not in it then is read again next time.
const DRAIN_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reader(#[from] member::Error),
    #[error("clickhouse.database = {name:?}: a database is named by letters, digits and _, not beginning with a digit")]
    DatabaseName { name: String },
    #[error("the connection with clickhouse cannot be set up: {0}")]
    Tls(#[from] crate::tls::Error),
    #[error("clickhouse at {url} did not {what}: {}", causes(source))]
    ClickHouse { url: String, what: String, source: clickhouse::error::Error },
    #[error("clickhouse at {url} did not {what} within {timeout_ms} ms")]
    Timeout { url: String, what: String, timeout_ms: u64 },
    #[error(
        "migration {number} ({name}) was changed after it had been applied to the database {database}; \
         put it back, and write the change as a new migration"
    )]
    ChangedMigration { number: u32, name: String, database: String },
}

/// Registers its metrics, for those who list them.
pub(crate) fn register(metrics: &Metrics) {
    Counters::register(metrics);
}

/// What the sink needs.
pub struct Options {
    pub kafka: config::Kafka,
    /// Name of this process among all.
    pub instance: String,
    pub sink: config::Sink,
    pub clickhouse: config::ClickHouse,
    /// Most bytes of a dead letter's payload that are kept.
    pub dead_letter_bytes_max: usize,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub health: Health,
    pub metrics: Metrics,
    pub cancel: CancellationToken,
}

/// Writes the partitions that the consumer group gives this process until `cancel`; then writes what it holds, commits
/// and leaves the group.
///
/// # Errors
/// Only what a new start may heal: the Kafka client could not be made, or is broken; or a wrong configuration.
/// ClickHouse being away is no error: it is waited for.
pub async fn run(options: Options) -> Result<(), Error> {
    let usage = kafka::topic_name(&options.kafka, Topic::Usage);
    let mut running = Running::new(options)?;
    let options = &running.options;
    let client = kafka::member(&options.kafka, kafka::cold_consumer(&options.kafka, NAME), &options.instance);
    let member = Member::join(&client, &usage, Lag::register(&options.metrics, NAME))?;
    running.options.health.missing(NAME, "joining its consumer group");
    let ended = running.until_cancelled(&member).await;
    running.drain(&member).await;
    let health = running.options.health.clone();
    drop(running);
    member.leave(&[]).await;
    health.forget(NAME);
    ended
}

struct Running {
    options: Options,
    writer: Arc<Writer>,
    counters: Counters,
    assigned: BTreeSet<i32>,
    /// What is collected; at most one more batch is being written.
    collecting: Batch,
    writing: JoinSet<Batch>,
    /// Rows of the batch that is being written, and when the oldest of its records was.
    in_writing: (usize, Option<Timestamp>),
    waiting: SchemaWait,
}

impl Reader for Running {
    fn has_room(&self) -> bool {
        !self.collecting.is_full(&self.options.sink)
    }

    fn record(&mut self, member: &Member, record: Received<'_>) {
        if self.waiting.keeps(record) {
            return;
        }
        match self.options.codec.decode::<UsageRecord>(record.payload) {
            Ok(posting) => self.collecting.add(record, posting),
            Err(codec::Error::UnknownSchema { id }) => self.waiting.hold(member, record, id),
            Err(error) => self.dead_letter(member, record, &error),
        }
    }
}

impl Running {
    fn new(options: Options) -> Result<Self, Error> {
        let counters = Counters::register(&options.metrics);
        let writer = Arc::new(Writer::new(&options, counters.clone())?);
        Ok(Self {
            writer,
            counters,
            assigned: BTreeSet::new(),
            collecting: Batch::default(),
            writing: JoinSet::new(),
            in_writing: (0, None),
            waiting: SchemaWait::new(options.codec.clone()),
            options,
        })
    }

    async fn until_cancelled(&mut self, member: &Member) -> Result<(), Error> {
        let cancel = self.options.cancel.clone();
        let mut stream = member.stream();
        let mut gate = Gate::Open;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.write_if_due(false);
            self.tell_lag();
            gate.update(member, self.has_room());
            let due = self.collecting.due_at(millis(self.options.sink.batch_ms));
            let waits = due.is_some() && self.writing.is_empty();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                change = member.changed() => self.change(member, change),
                Some(written) = self.writing.join_next() => self.written(member, written.ok()),
                freed = self.waiting.freed(member) => self.freed(member, freed),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if waits => {}
                _ = tick.tick() => {}
                item = stream.next(), if gate.polls() => gate.take(member, &mut stream, item, self)?,
            }
        }
    }

    fn change(&mut self, member: &Member, change: Change) {
        match change {
            Change::Assigned(partitions) => {
                member.assign_committed(&partitions);
                self.assigned.extend(&partitions);
                tracing::info!(?partitions, "usage partitions are written to clickhouse");
                self.options.health.ready(NAME);
            }
            // Their rows in hand are written all the same; the next owner writes them once more, which does no harm.
            Change::Revoked(partitions) => {
                member.unassign(&partitions);
                for partition in &partitions {
                    self.assigned.remove(partition);
                    self.waiting.forget(*partition);
                }
                tracing::info!(?partitions, "usage partitions handed on");
            }
        }
    }

    /// A partition need not wait for a schema any longer.
    fn freed(&mut self, member: &Member, freed: Freed) {
        let Freed { mut records, unreadable } = freed;
        if let Some(error) = unreadable
            && let Some(first) = records.pop_front()
        {
            self.dead_letter(member, first.received(), &error);
        }
        for kept in records {
            self.record(member, kept.received());
        }
    }

    fn dead_letter(&mut self, member: &Member, record: Received<'_>, error: &codec::Error) {
        let reason = match error {
            codec::Error::NoSuchSchema { .. } | codec::Error::BadSchema { .. } => "unknown_schema",
            _ => "undecodable",
        };
        let letter = Letter::new(member.topic(), record, reason, error, self.options.dead_letter_bytes_max);
        match letter.encoded(&self.options.codec) {
            Ok(letter) => self.collecting.add_letter(record.partition, record.offset, letter),
            // The offset is held back by nothing then; the log is the only place left to say it.
            Err(error) => tracing::error!(
                kafka.topic = member.topic(),
                kafka.partition = record.partition,
                kafka.offset = record.offset,
                %error,
                "a usage record can be neither read nor put aside"
            ),
        }
        tracing::warn!(
            kafka.topic = member.topic(),
            kafka.partition = record.partition,
            kafka.offset = record.offset,
            %error,
            "a usage record cannot be read; it goes to dead-letters"
        );
    }

    fn write_if_due(&mut self, at_once: bool) {
        let (sink, batch) = (&self.options.sink, &self.collecting);
        let due = batch.due_at(millis(sink.batch_ms));
        let due = due.is_some_and(|due| at_once || batch.is_full(sink) || due <= Instant::now());
        if due && self.writing.is_empty() {
            let (batch, writer) = (std::mem::take(&mut self.collecting), self.writer.clone());
            self.in_writing = (batch.rows().len(), batch.oldest());
            self.writing.spawn(async move {
                writer.write(&batch).await;
                batch
            });
        }
    }

    fn tell_lag(&self) {
        let (rows, oldest) = self.in_writing;
        let (collected, begun) = (self.collecting.rows().len(), self.collecting.oldest());
        self.counters.waiting.set((rows + collected) as i64);
        self.counters.behind.since(oldest.into_iter().chain(begun).min());
    }

    fn written(&mut self, member: &Member, batch: Option<Batch>) {
        self.in_writing = (0, None);
        let Some(batch) = batch else { return };
        let done = batch.ends().filter(|(partition, _)| self.assigned.contains(partition));
        let positions: Vec<Position> =
            done.map(|(partition, end)| Position { partition, offset: Some(end), note: String::new() }).collect();
        reached(Failpoint::BeforeRowOffsets);
        member.commit(&positions);
        reached(Failpoint::AfterRowOffsets);
        self.counters.rows.inc_by(batch.rows().len() as u64);
        self.counters.dead_letters.inc_by(batch.letters().len() as u64);
        self.counters.batches.inc();
    }

    async fn drain(&mut self, member: &Member) {
        let all = async {
            loop {
                self.write_if_due(true);
                let Some(written) = self.writing.join_next().await else { return };
                self.written(member, written.ok());
            }
        };
        if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
            tracing::warn!("clickhouse did not take the last rows in time; they are read again at the next start");
        }
    }
}
