//! The loop that every sink is: records of one topic are collected, written in batches, and their offsets committed then.
//!
//! A batch is kept until ClickHouse has acknowledged all of its rows; only then are its offsets committed. So every row
//! arrives at least once. While ClickHouse is away a sink holds two batches at the most and reads no further (see [`Gate`]
//! for how it stays a member of its group meanwhile). What a record leads to is the [`Source`]'s to say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clickhouse::Client;
use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::batch::{Batch, Encoded, Place};
use super::condition::Condition;
use super::metrics::Counters;
use super::writer::Writer;
use super::{Error, Options};
use crate::codec;
use crate::config::millis;
use crate::domain::Timestamp;
use crate::records::Topic;
use crate::runtime::kafka;
use crate::runtime::lag::Lag;
use crate::runtime::member::{Change, Gate, Member, Position, Reader, Received};
use crate::runtime::schema_wait::{Freed, SchemaWait};

/// How often what is due is looked after; also heals a lost wake-up of the consumer.
const TICK: Duration = Duration::from_millis(100);
/// How long a clean stop waits for ClickHouse; what is not in it then is read again next time.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What a sink reads, and what rows are made of it.
pub trait Source: Sized {
    /// Of the component, of its consumer group and, behind `tollstream_`, of its metrics.
    const NAME: &'static str;
    const TOPIC: Topic;
    /// What rows are made of.
    type Item: Send + Sync + 'static;

    /// A partition is ours from the group's committed position on; gives the offset of the first record that is wanted,
    /// `None` being the beginning.
    fn begin(&mut self, committed: &Position) -> Option<i64>;

    /// A partition is somebody else's.
    fn end(&mut self, partition: i32);

    /// What becomes of a record. Those of a partition come in order.
    fn read(&mut self, record: Received<'_>) -> Read<Self::Item>;

    /// What becomes of a record whose schema cannot be had.
    fn unreadable(&mut self, record: Received<'_>, error: &codec::Error) -> Read<Self::Item>;

    /// Inserts the rows of the items and returns when they are in their tables.
    fn insert(client: &Client, items: &[Self::Item]) -> impl Future<Output = clickhouse::error::Result<()>> + Send;

    /// Around an insert and a commit of offsets, for the fault tests.
    fn pass(moment: Moment);
}

/// A place in the life of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    BeforeInsert,
    AfterInsert,
    BeforeOffsets,
    AfterOffsets,
}

/// What becomes of a record.
pub enum Read<T> {
    /// Nobody waits for it: it was read before, or its partition stands still.
    Passed,
    /// So many rows.
    Rows {
        item: T,
        rows: usize,
        end: Place,
    },
    Nothing {
        end: Place,
    },
    Letter {
        letter: Encoded,
        end: Place,
    },
    /// Its schema must be fetched first.
    Unknown(u32),
    /// A person must look: the partition stays where it is, the others go on.
    Stop(String),
}

/// Writes the partitions that the consumer group gives this process until it is told to end; then writes what it holds,
/// commits and leaves the group.
pub async fn run<S: Source>(options: Options, source: S, counters: Counters) -> Result<(), Error> {
    let topic = kafka::topic_name(&options.kafka, S::TOPIC);
    let client = kafka::member(&options.kafka, kafka::cold_consumer(&options.kafka, S::NAME), &options.instance);
    let mut running = Running::new(options, source, counters)?;
    let member = Member::join(&client, &topic, Lag::register(&running.options.metrics, S::NAME))?;
    running.condition.missing("joining its consumer group");
    let ended = running.until_cancelled(&member).await;
    running.drain(&member).await;
    let condition = running.condition.clone();
    drop(running);
    member.leave(&[]).await;
    condition.forget();
    ended
}

struct Running<S: Source> {
    options: Options,
    source: S,
    writer: Arc<Writer>,
    condition: Arc<Condition>,
    counters: Counters,
    assigned: BTreeSet<i32>,
    restoring: JoinSet<Vec<Position>>,
    /// What is collected; at most one more batch is being written.
    collecting: Batch<S::Item>,
    writing: JoinSet<Batch<S::Item>>,
    /// Rows of the batch that is being written, and when the oldest of its records was.
    in_writing: (usize, Option<Timestamp>),
    waiting: SchemaWait,
}

impl<S: Source> Reader for Running<S> {
    fn has_room(&self) -> bool {
        !self.collecting.is_full(&self.options.sink)
    }

    fn record(&mut self, member: &Member, record: Received<'_>) {
        if self.waiting.keeps(record) {
            return;
        }
        let read = self.source.read(record);
        self.take(member, record, read);
    }
}

impl<S: Source> Running<S> {
    fn new(options: Options, source: S, counters: Counters) -> Result<Self, Error> {
        let condition = Arc::new(Condition::new(S::NAME, options.health.clone()));
        let writer = Arc::new(Writer::new(&options, condition.clone(), counters.clone())?);
        Ok(Self {
            source,
            writer,
            condition,
            counters,
            assigned: BTreeSet::new(),
            restoring: JoinSet::new(),
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
                change = member.changed(), if self.restoring.is_empty() => self.change(member, change),
                Some(restored) = self.restoring.join_next() => self.restored(member, &restored.unwrap_or_default()),
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
            Change::Assigned(partitions) if partitions.is_empty() => self.restored(member, &[]),
            Change::Assigned(partitions) => {
                self.restoring.spawn(member.committed(partitions));
            }
            // Their rows in hand are written all the same; the next owner writes them once more, which does no harm.
            Change::Revoked(partitions) => {
                member.unassign(&partitions);
                for partition in &partitions {
                    self.assigned.remove(partition);
                    self.source.end(*partition);
                    self.waiting.forget(*partition);
                    self.condition.gone(*partition);
                }
                tracing::info!(topic = member.topic(), ?partitions, "partitions handed on");
            }
        }
    }

    /// The committed offsets of new partitions are known: reading begins.
    fn restored(&mut self, member: &Member, positions: &[Position]) {
        let mut starts = Vec::with_capacity(positions.len());
        for position in positions {
            self.assigned.insert(position.partition);
            starts.push(Position { offset: self.source.begin(position), ..position.clone() });
        }
        member.assign(&starts);
        let from: Vec<_> = starts.iter().map(|start| (start.partition, start.offset)).collect();
        tracing::info!(topic = member.topic(), ?from, "partitions are written to clickhouse");
        self.condition.tell();
    }

    /// A partition need not wait for a schema any longer.
    fn freed(&mut self, member: &Member, freed: Freed) {
        let Freed { mut records, unreadable } = freed;
        if let Some(error) = unreadable
            && let Some(first) = records.pop_front()
        {
            let record = first.received();
            let read = self.source.unreadable(record, &error);
            self.take(member, record, read);
        }
        for kept in records {
            self.record(member, kept.received());
        }
    }

    fn take(&mut self, member: &Member, record: Received<'_>, read: Read<S::Item>) {
        let Received { partition, offset, .. } = record;
        match read {
            Read::Passed => {}
            Read::Rows { item, rows, end } => {
                self.collecting.add(item, rows, (record.at, record.payload.len()));
                self.collecting.reach(partition, end);
            }
            Read::Nothing { end } => self.collecting.reach(partition, end),
            Read::Letter { letter, end } => {
                self.collecting.add_letter(letter);
                self.collecting.reach(partition, end);
            }
            Read::Unknown(id) => self.waiting.hold(member, record, id),
            Read::Stop(why) => {
                tracing::error!(
                    kafka.topic = member.topic(),
                    kafka.partition = partition,
                    kafka.offset = offset,
                    error = why,
                    "a partition is not written to clickhouse any further; run the version that wrote it (nobody but gateways may write there: docs/production.md)"
                );
                member.pause(partition);
                self.counters.stopped.inc();
                let why = format!("{}/{partition} stops at offset {offset}: {why}", member.topic());
                self.condition.stopped(partition, why);
            }
        }
    }

    fn write_if_due(&mut self, at_once: bool) {
        let (sink, batch) = (&self.options.sink, &self.collecting);
        let due = batch.due_at(millis(sink.batch_ms));
        let due = due.is_some_and(|due| at_once || batch.is_full(sink) || due <= Instant::now());
        if due && self.writing.is_empty() {
            let (batch, writer) = (std::mem::take(&mut self.collecting), self.writer.clone());
            self.in_writing = (batch.rows(), batch.oldest());
            self.writing.spawn(async move {
                writer.write::<S>(&batch).await;
                batch
            });
        }
    }

    fn tell_lag(&self) {
        let (rows, oldest) = self.in_writing;
        self.counters.waiting.set((rows + self.collecting.rows()) as i64);
        self.counters.behind.since(oldest.into_iter().chain(self.collecting.oldest()).min());
    }

    fn written(&mut self, member: &Member, batch: Option<Batch<S::Item>>) {
        self.in_writing = (0, None);
        let Some(batch) = batch else { return };
        let done: Vec<Position> = batch.ends().filter(|end| self.assigned.contains(&end.partition)).collect();
        S::pass(Moment::BeforeOffsets);
        member.commit(&done);
        S::pass(Moment::AfterOffsets);
        self.counters.rows.inc_by(batch.rows() as u64);
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
