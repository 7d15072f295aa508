//! journal -> usage: one usage record per posting of an effective commit, on the partition of the same number.
//!
//! A journal offset is committed when the usage records of all records before it are acknowledged; after a restart some
//! are produced again, with the same ids. A journal record that this version does not understand stops its partition: to
//! skip a fact would lose money silently. Nothing here decides anything; [`usage::usage_of`] says what is produced.

pub(crate) mod checkpoint;
mod metrics;
mod tracker;
pub mod usage;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::codec::{self, Codec};
use crate::config::{self, millis};
use crate::domain::OrganizationId;
use crate::failpoint::{Failpoint, reached};
use crate::records::Topic;
use crate::records::journal::{Entry, JournalRecord, Tenancy};
use crate::records::usage::UsageRecord;
use crate::runtime::kafka;
use crate::runtime::lag::Lag;
use crate::runtime::member::{self, Change, Gate, Member, Position, Reader, Received};
use crate::runtime::publisher::{Deliveries, Delivery, Outgoing, Publisher};
use crate::runtime::schema_wait::{Freed, SchemaWait};
use crate::telemetry::Metrics;
use crate::telemetry::health::Health;
use checkpoint::Checkpoint;
use metrics::Counters;
use tracker::Tracker;

/// Name of the component and of its consumer group.
pub(crate) const NAME: &str = "projection";
/// How often what is due is looked after; also heals a lost wake-up of the consumer.
const TICK: Duration = Duration::from_millis(100);
/// Wait before usage records are sent again that Kafka did not take.
const RESEND_AFTER: Duration = Duration::from_millis(500);
/// How long a clean stop waits for acknowledgements; what is not acknowledged then is produced again next time.
const DRAIN_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reader(#[from] member::Error),
}

/// Registers its metrics, for those who list them.
pub(crate) fn register(metrics: &Metrics) {
    Counters::register(metrics);
}

/// What the projection needs.
pub struct Options {
    pub kafka: config::Kafka,
    /// Name of this process among all.
    pub instance: String,
    pub projection: config::Projection,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub health: Health,
    pub metrics: Metrics,
    pub cancel: CancellationToken,
}

/// Projects the partitions that the consumer group gives this process until `cancel`; then commits and leaves the group.
///
/// # Errors
/// Only what a new start may heal: the Kafka client could not be made, or is broken.
pub async fn run(options: Options) -> Result<(), Error> {
    let journal = kafka::topic_name(&options.kafka, Topic::Journal);
    let client = kafka::member(&options.kafka, kafka::cold_consumer(&options.kafka, NAME), &options.instance);
    let member = Member::join(&client, &journal, Lag::register(&options.metrics, NAME))?;
    options.health.missing(NAME, "joining its consumer group");
    let health = options.health.clone();
    let mut running = Running::new(options);
    let ended = running.until_cancelled(&member).await;
    running.drain().await;
    member.leave(&running.positions()).await;
    health.forget(NAME);
    ended
}

/// One partition of the journal.
struct Partition {
    /// Tells this stay with us from an earlier one.
    stay: u64,
    /// Of the next record; `None`: whatever is first.
    next_offset: Option<i64>,
    tenancy: Tenancy,
    tracker: Tracker<Checkpoint>,
    committed: Option<Checkpoint>,
    /// Why the partition does not go on.
    stopped: Option<String>,
}

/// A usage record that is not acknowledged.
struct InFlight {
    partition: i32,
    stay: u64,
    /// Number of its journal record in the partition's tracker.
    number: u64,
    organization: OrganizationId,
    payload: Vec<u8>,
}

struct Running {
    options: Options,
    usage_topic: String,
    counters: Counters,
    deliveries: Arc<Deliveries>,
    partitions: HashMap<i32, Partition>,
    in_flight: HashMap<u64, InFlight>,
    in_flight_bytes: usize,
    /// What Kafka did not take, to be sent again from then on.
    unsent: VecDeque<u64>,
    resend_at: Instant,
    /// Why the last usage record was not taken; `None` when all is well.
    trouble: Option<String>,
    next_tag: u64,
    next_stay: u64,
    restoring: JoinSet<Vec<Position>>,
    waiting: SchemaWait,
    commit_at: Instant,
}

/// What becomes of one journal record.
enum Read {
    Entry(Box<Entry>),
    /// Its schema must be fetched first.
    Unknown(u32),
    Unreadable(String),
}

impl Reader for Running {
    /// Room for more usage records on their way. While Kafka does not take them, nothing is read.
    fn has_room(&self) -> bool {
        let most = &self.options.projection;
        self.in_flight.len() < most.in_flight_max
            && self.in_flight_bytes < most.in_flight_bytes_max
            && self.unsent.is_empty()
    }

    fn record(&mut self, member: &Member, record: Received<'_>) {
        let stopped = self.partitions.get(&record.partition).is_none_or(|partition| partition.stopped.is_some());
        if stopped || self.waiting.keeps(record) {
            return;
        }
        match self.read(record) {
            Read::Entry(entry) => self.project(member, record, &entry),
            Read::Unknown(id) => self.waiting.hold(member, record, id),
            Read::Unreadable(why) => self.stop(member, record.partition, record.offset, &why),
        }
    }
}

impl Running {
    fn new(options: Options) -> Self {
        Self {
            usage_topic: kafka::topic_name(&options.kafka, Topic::Usage),
            counters: Counters::register(&options.metrics),
            deliveries: Deliveries::new(),
            partitions: HashMap::new(),
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            unsent: VecDeque::new(),
            resend_at: Instant::now(),
            trouble: None,
            next_tag: 0,
            next_stay: 0,
            restoring: JoinSet::new(),
            waiting: SchemaWait::new(options.codec.clone()),
            commit_at: Instant::now(),
            options,
        }
    }

    async fn until_cancelled(&mut self, member: &Member) -> Result<(), Error> {
        let cancel = self.options.cancel.clone();
        let mut stream = member.stream();
        let mut gate = Gate::Open;
        let mut arrived = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            gate.update(member, self.has_room());
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                change = member.changed(), if self.restoring.is_empty() => self.change(member, change),
                Some(restored) = self.restoring.join_next() => self.restored(member, restored.unwrap_or_default()),
                () = self.deliveries.drain(&mut arrived) => self.delivered(arrived.drain(..)),
                freed = self.waiting.freed(member) => self.freed(member, freed),
                _ = tick.tick() => self.tick(member),
                item = stream.next(), if gate.polls() => gate.take(member, &mut stream, item, self)?,
            }
        }
    }

    fn change(&mut self, member: &Member, change: Change) {
        match change {
            Change::Assigned(partitions) if partitions.is_empty() => self.restored(member, Vec::new()),
            Change::Assigned(partitions) => {
                self.restoring.spawn(member.committed(partitions));
            }
            Change::Revoked(partitions) => {
                let positions = partitions.iter().filter_map(|p| Some((*p, self.partitions.get(p)?.tracker.done()?)));
                let positions: Vec<Position> = positions.map(|(p, checkpoint)| checkpoint.position(p)).collect();
                member.commit(&positions);
                member.unassign(&partitions);
                for partition in &partitions {
                    self.partitions.remove(partition);
                    self.waiting.forget(*partition);
                }
                tracing::info!(?partitions, "journal partitions handed on");
                self.tell_health();
            }
        }
    }

    /// The committed offsets of new partitions are known: reading begins.
    fn restored(&mut self, member: &Member, positions: Vec<Position>) {
        let mut starts = Vec::with_capacity(positions.len());
        for position in positions {
            let checkpoint = Checkpoint::of(&position);
            if checkpoint.is_none() && position.offset.is_some() {
                tracing::warn!(
                    partition = position.partition,
                    note = position.note,
                    "the committed offset says nothing of the tenancy; the partition is projected from its beginning"
                );
            }
            self.next_stay += 1;
            let partition = Partition {
                stay: self.next_stay,
                next_offset: checkpoint.map(|checkpoint| checkpoint.offset),
                tenancy: checkpoint.map_or(Tenancy::VACANT, |checkpoint| checkpoint.tenancy),
                tracker: Tracker::default(),
                committed: checkpoint,
                stopped: None,
            };
            starts.push(Position { offset: partition.next_offset, ..position.clone() });
            self.partitions.insert(position.partition, partition);
        }
        member.assign(&starts);
        let from: Vec<_> = starts.iter().map(|start| (start.partition, start.offset)).collect();
        tracing::info!(?from, "journal partitions are projected");
        self.tell_health();
    }

    fn read(&self, record: Received<'_>) -> Read {
        match self.options.codec.decode::<JournalRecord>(record.payload) {
            Ok(envelope) => match Entry::try_from(envelope) {
                Ok(entry) => Read::Entry(Box::new(entry)),
                Err(error) => Read::Unreadable(error.to_string()),
            },
            Err(codec::Error::UnknownSchema { id }) => Read::Unknown(id),
            Err(error) => Read::Unreadable(error.to_string()),
        }
    }

    /// A partition need not wait for a schema any longer.
    fn freed(&mut self, member: &Member, freed: Freed) {
        let Freed { mut records, unreadable } = freed;
        if let Some(error) = unreadable
            && let Some(first) = records.pop_front()
        {
            let record = first.received();
            self.stop(member, record.partition, record.offset, &error.to_string());
        }
        for kept in records {
            self.record(member, kept.received());
        }
    }

    fn project(&mut self, member: &Member, record: Received<'_>, entry: &Entry) {
        let Received { partition: number, offset, .. } = record;
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        match partition.next_offset {
            Some(next) if offset < next => return,
            Some(next) if offset > next => {
                // Without the missing records, effective commits would not be known as such.
                let why = format!("the journal has no records from offset {next} on; was it cut?");
                return self.stop(member, number, offset, &why);
            }
            Some(_) | None => {}
        }
        let mut tenancy = partition.tenancy;
        let effective = tenancy.accept(offset, entry);
        let postings = match entry {
            Entry::Commit(commit) if effective => usage::usage_of(number, offset, commit),
            Entry::Commit(_) => {
                self.counters.ineffective.inc();
                Vec::new()
            }
            Entry::OwnershipTaken(_) => Vec::new(),
        };
        let mut encoded = Vec::with_capacity(postings.len());
        for posting in postings {
            match encode(&self.options.codec, &posting) {
                Ok(payload) => encoded.push((posting.organization, payload)),
                Err(error) => return self.stop(member, number, offset, &error.to_string()),
            }
        }
        partition.tenancy = tenancy;
        partition.next_offset = Some(offset + 1);
        let read = partition.tracker.read(encoded.len(), Checkpoint { offset: offset + 1, tenancy });
        let stay = partition.stay;
        self.counters.records.inc();
        for (organization, payload) in encoded {
            let tag = self.next_tag;
            self.next_tag += 1;
            self.in_flight_bytes += payload.len();
            self.in_flight.insert(tag, InFlight { partition: number, stay, number: read, organization, payload });
            self.send(tag);
        }
    }

    /// Sends a usage record; what Kafka does not take now is sent again later.
    fn send(&mut self, tag: u64) {
        let Some(posting) = self.in_flight.get(&tag) else { return };
        let outgoing = Outgoing {
            topic: &self.usage_topic,
            partition: posting.partition,
            key: posting.organization.as_str().as_bytes(),
            payload: &posting.payload,
        };
        reached(Failpoint::BeforeUsage);
        if let Err(error) = self.options.publisher.send(outgoing, &self.deliveries, tag) {
            self.refused(tag, &error.to_string());
        }
        reached(Failpoint::AfterUsage);
    }

    fn refused(&mut self, tag: u64, why: &str) {
        if self.unsent.is_empty() {
            self.resend_at = Instant::now() + RESEND_AFTER;
            tracing::warn!(topic = self.usage_topic, error = why, "usage records are not taken; they are sent again");
        }
        self.unsent.push_back(tag);
        self.counters.refused.inc();
        if self.trouble.is_none() {
            self.trouble = Some(format!("usage records are not taken: {why}"));
            self.tell_health();
        }
    }

    fn delivered(&mut self, deliveries: impl Iterator<Item = Delivery>) {
        for Delivery { tag, outcome } in deliveries {
            if let Err(error) = outcome {
                self.refused(tag, &error.to_string());
                continue;
            }
            let Some(posting) = self.landed(tag) else { continue };
            self.counters.postings.inc();
            let partition = self.partitions.get_mut(&posting.partition);
            if let Some(partition) = partition.filter(|partition| partition.stay == posting.stay) {
                partition.tracker.acknowledged(posting.number);
                reached(Failpoint::UsageAcknowledged);
            }
            if self.trouble.is_some() && self.unsent.is_empty() {
                self.trouble = None;
                self.tell_health();
            }
        }
    }

    /// A usage record waits for nothing any more.
    fn landed(&mut self, tag: u64) -> Option<InFlight> {
        let posting = self.in_flight.remove(&tag)?;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(posting.payload.len());
        Some(posting)
    }

    /// A person must look: the partition stays where it is, the others go on.
    fn stop(&mut self, member: &Member, number: i32, offset: i64, why: &str) {
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        if partition.stopped.is_some() {
            return;
        }
        tracing::error!(
            kafka.topic = member.topic(),
            kafka.partition = number,
            kafka.offset = offset,
            error = why,
            "a journal partition is not projected any further; run the version that wrote it (nobody but gateways may write there: docs/production.md)"
        );
        partition.stopped = Some(format!("{}/{number} stops at offset {offset}: {why}", member.topic()));
        member.pause(number);
        self.counters.stopped.inc();
        self.tell_health();
    }

    fn tick(&mut self, member: &Member) {
        let now = Instant::now();
        if !self.unsent.is_empty() && now >= self.resend_at {
            for tag in std::mem::take(&mut self.unsent) {
                let given_away = self.in_flight.get(&tag).is_none_or(|posting| {
                    self.partitions.get(&posting.partition).is_none_or(|partition| partition.stay != posting.stay)
                });
                if given_away {
                    self.landed(tag);
                } else {
                    self.send(tag);
                }
            }
        }
        if self.trouble.is_some() && self.in_flight.is_empty() {
            self.trouble = None;
            self.tell_health();
        }
        self.counters.in_flight.set(i64::try_from(self.in_flight.len()).unwrap_or(i64::MAX));
        if now >= self.commit_at {
            self.commit_at = now + millis(self.options.projection.offset_commit_ms);
            let mut positions = Vec::new();
            for (number, partition) in &mut self.partitions {
                let done = partition.tracker.done();
                if let Some(checkpoint) = done.filter(|_| done != partition.committed) {
                    partition.committed = done;
                    positions.push(checkpoint.position(*number));
                }
            }
            if !positions.is_empty() {
                reached(Failpoint::BeforeUsageOffsets);
                member.commit(&positions);
                reached(Failpoint::AfterUsageOffsets);
            }
        }
    }

    /// How far all partitions are done.
    fn positions(&self) -> Vec<Position> {
        let done = self.partitions.iter().filter_map(|(number, p)| Some(p.tracker.done()?.position(*number)));
        done.collect()
    }

    async fn drain(&mut self) {
        let mut arrived = Vec::new();
        let all = async {
            while self.in_flight.len() > self.unsent.len() {
                self.deliveries.clone().drain(&mut arrived).await;
                self.delivered(arrived.drain(..));
            }
        };
        // What is left over is produced again by the next owner.
        let _ = tokio::time::timeout(DRAIN_MAX, all).await;
    }

    fn tell_health(&self) {
        let stopped = self.partitions.values().filter_map(|partition| partition.stopped.as_deref());
        let troubles: Vec<&str> = stopped.chain(self.trouble.as_deref()).collect();
        match troubles.as_slice() {
            [] => self.options.health.ready(NAME),
            _ => self.options.health.degraded(NAME, troubles.join("; ")),
        }
    }
}

fn encode(codec: &Codec, posting: &UsageRecord) -> Result<Vec<u8>, codec::Error> {
    let mut payload = Vec::new();
    codec.encode(posting, &mut payload)?;
    Ok(payload)
}
