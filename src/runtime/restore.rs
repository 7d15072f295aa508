//! The beginning of a tenure: read the partition's journal, from the latest checkpoint or its beginning, to its end, append
//! `OwnershipTaken`, fold through it, and read the bodies of the open requests again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::metrics::ProcessorMetrics;
use super::publisher::{Deliveries, Outgoing, Publisher};
use super::room::{Hold, Room};
use super::{checkpoints, clock, kafka};
use crate::codec::{self, Codec};
use crate::config;
use crate::domain::RequestKey;
use crate::failpoint::{Failpoint, reached};
use crate::processor::tenure::Tenure;
use crate::processor::{State, checkpoint, fold, key_of};
use crate::records::journal::{Entry, JournalRecord, OwnershipTaken, Tenancy};
use crate::records::requests::{Request, RequestRecord};
use crate::records::{Record, Topic};

/// How long one question to the broker may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a record for so long, a restore that is not at the end gives up (and is tried again).
const STALL: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("journal/{partition}: {source}")]
    Kafka { partition: i32, source: KafkaError },
    #[error("journal/{partition}: {source}")]
    Publish { partition: i32, source: super::publisher::Error },
    /// Skipping it would silently change balances: the partition stays closed until a program that knows it is run.
    #[error(
        "journal/{partition} offset {offset} cannot be understood: {detail}; run the version that wrote it (nobody but \
         gateways may write there: docs/production.md)"
    )]
    Unreadable { partition: i32, offset: i64, detail: String },
    #[error("journal/{partition}: the partition was given away before it was taken over")]
    GivenUp { partition: i32 },
    #[error("journal/{partition}: no record for {} s at offset {offset} of {end}", STALL.as_secs())]
    Stalled { partition: i32, offset: i64, end: i64 },
}

impl Error {
    /// Whether trying again can help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }
}

/// Records between two bodies that are read over rather than jumped over.
const READ_OVER_MAX: i64 = 500;

/// A tenure that has begun.
#[derive(Debug)]
pub struct Takeover {
    pub partition: i32,
    pub tenure: Tenure,
    /// Of the open requests, as far as `requests` still has them.
    pub bodies: HashMap<RequestKey, Bytes>,
    /// Offset of the journal at which the fold began.
    pub begin: i64,
    /// Keys of earlier tenures' checkpoints.
    pub stale: Vec<String>,
    /// What they take of the process's room, until the owner has taken it.
    pub held: Hold,
}

/// What a restore works with.
#[derive(Clone)]
pub struct Restore {
    pub kafka: config::Kafka,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub owner: String,
    /// Bodies that are read again at the most: as many as there may be calls. Requests beyond are settled.
    pub open_max: usize,
    /// For all bodies of the process.
    pub room: Room,
    pub metrics: ProcessorMetrics,
}

impl Restore {
    /// Takes the partition over; blocks, so it runs on a thread for that. Nothing is taken any more once `given_up` is
    /// cancelled.
    pub fn take_over(
        &self,
        partition: i32,
        given_up: &CancellationToken,
        handle: &tokio::runtime::Handle,
    ) -> Result<Takeover, Error> {
        let failed = |source| Error::Kafka { partition, source };
        let topic = kafka::topic_name(&self.kafka, Topic::Journal);
        let mut client = kafka::cold_consumer(&self.kafka, "restore");
        // What is read is there already; and on a compacted topic only the broker can say where the end is.
        client.set("fetch.min.bytes", "1").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = client.create().map_err(failed)?;
        let checkpoints = kafka::topic_name(&self.kafka, Topic::State);
        let found = checkpoints::read(&consumer, &checkpoints, partition, |payload| self.decode(payload, handle));
        let found = found.map_err(failed)?;
        let (low, end) = consumer.fetch_watermarks(&topic, partition, CALL_TIMEOUT).map_err(failed)?;
        let mut folded = match self.behind_checkpoint(&consumer, &found, partition, low..end, handle)? {
            Some(folded) => folded,
            None => {
                assign(&consumer, &topic, partition, low).map_err(failed)?;
                Fold { partition, next: low, tenancy: Tenancy::VACANT, state: State::default() }
            }
        };
        let (begin, begun) = (folded.next, Instant::now());
        let mut remaining = Remaining::new(&self.metrics.restore_remaining, end - begin);
        self.fold_until(&consumer, &mut folded, end, handle, &mut remaining)?;
        if given_up.is_cancelled() {
            return Err(Error::GivenUp { partition });
        }
        let id = self.append_ownership(&topic, partition, handle)?;
        self.fold_until(&consumer, &mut folded, id + 1, handle, &mut remaining)?;
        drop(remaining);
        let (entries, elapsed_ms) = (folded.next - begin, begun.elapsed().as_millis());
        tracing::info!(kafka.partition = partition, entries, elapsed_ms, "journal folded");
        drop(consumer);
        let mut held = self.room.hold();
        let bodies = self.bodies(partition, &folded.state, &mut held, handle)?;
        let tenure = Tenure::begin(id, folded.state);
        Ok(Takeover { partition, tenure, bodies, begin, stale: found.keys, held })
    }

    /// The fold of the latest checkpoint that is whole, of this version and of this journal; the consumer then goes on
    /// behind it.
    fn behind_checkpoint(
        &self,
        consumer: &BaseConsumer,
        found: &checkpoints::Found,
        partition: i32,
        journal: Range<i64>,
        handle: &tokio::runtime::Handle,
    ) -> Result<Option<Fold>, Error> {
        let topic = kafka::topic_name(&self.kafka, Topic::Journal);
        for (marker, parts) in found.candidates() {
            let offset = marker.journal_offset;
            let restored = checkpoint::restore(marker, parts).and_then(|state| match journal.contains(&offset) {
                true => Ok(state),
                false => Err(checkpoint::Error::NotOfThisJournal { offset }),
            });
            let restored = match restored {
                Ok(state) => {
                    assign(consumer, &topic, partition, offset).map_err(|source| Error::Kafka { partition, source })?;
                    let message = next_message(consumer, partition, offset, journal.end)?;
                    let at = message.offset();
                    let entry = self.entry(&message, handle)?;
                    checkpoint::tenancy(marker, Some(&entry).filter(|_| at == offset)).map(|tenancy| (tenancy, state))
                }
                Err(error) => Err(error),
            };
            match restored {
                Ok((tenancy, state)) => return Ok(Some(Fold { partition, next: offset + 1, tenancy, state })),
                // The one that was being written when its owner ended is never whole.
                Err(error) => tracing::info!(kafka.partition = partition, offset, %error, "a checkpoint is left aside"),
            }
        }
        Ok(None)
    }

    /// Reads the bodies of the open requests again, by their offsets. One that cannot be read, or that there is no room
    /// for, is left out.
    fn bodies(
        &self,
        partition: i32,
        state: &State,
        held: &mut Hold,
        handle: &tokio::runtime::Handle,
    ) -> Result<HashMap<RequestKey, Bytes>, Error> {
        let failed = |source| Error::Kafka { partition, source };
        let mut wanted: Vec<(i64, &RequestKey)> =
            state.open_requests().map(|(key, open)| (open.source_offset, key)).collect();
        wanted.sort_unstable_by_key(|(offset, _)| *offset);
        wanted.truncate(self.open_max);
        let mut bodies = HashMap::with_capacity(wanted.len());
        if wanted.is_empty() {
            return Ok(bodies);
        }
        let topic = kafka::topic_name(&self.kafka, Topic::Requests);
        let consumer: BaseConsumer = kafka::hot_consumer(&self.kafka, "restore").create().map_err(failed)?;
        let (low, _) = consumer.fetch_watermarks(&topic, partition, CALL_TIMEOUT).map_err(failed)?;
        let mut next = None;
        for (offset, key) in wanted.into_iter().filter(|(offset, _)| *offset >= low) {
            if next.is_none_or(|next| offset - next > READ_OVER_MAX) {
                assign(&consumer, &topic, partition, offset).map_err(failed)?;
            }
            next = Some(offset + 1);
            if let Some(body) = self.body(&consumer, partition, offset, key, handle)?
                && held.take(body.len())
            {
                bodies.insert(key.clone(), body);
            }
        }
        Ok(bodies)
    }

    /// The body of the request at `offset`, which the consumer reaches by reading on.
    fn body(
        &self,
        consumer: &BaseConsumer,
        partition: i32,
        offset: i64,
        key: &RequestKey,
        handle: &tokio::runtime::Handle,
    ) -> Result<Option<Bytes>, Error> {
        let begun = Instant::now();
        loop {
            let message = match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) if message.offset() < offset => continue,
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) | None if begun.elapsed() < STALL => continue,
                Some(Err(KafkaError::PartitionEOF(_))) | None => {
                    return Err(Error::Stalled { partition, offset, end: offset + 1 });
                }
                Some(Err(source)) => return Err(Error::Kafka { partition, source }),
            };
            // Retention may have moved on meanwhile.
            if message.offset() != offset {
                return Ok(None);
            }
            let decoded = self.decode::<RequestRecord>(message.payload().unwrap_or_default(), handle);
            let request = decoded.ok().and_then(|record| Request::try_from(record).ok());
            return Ok(match request {
                Some(Request::Chat(chat)) if key_of(&chat.organization, &chat.request_id) == *key => Some(chat.body),
                _ => None,
            });
        }
    }

    fn fold_until(
        &self,
        consumer: &BaseConsumer,
        fold: &mut Fold,
        end: i64,
        handle: &tokio::runtime::Handle,
        remaining: &mut Remaining,
    ) -> Result<(), Error> {
        while fold.next < end {
            let message = next_message(consumer, fold.partition, fold.next, end)?;
            let offset = message.offset();
            fold.take(offset, &self.entry(&message, handle)?);
            remaining.keep(end - fold.next);
        }
        Ok(())
    }

    fn entry(&self, message: &BorrowedMessage<'_>, handle: &tokio::runtime::Handle) -> Result<Entry, Error> {
        let (partition, offset) = (message.partition(), message.offset());
        let unreadable = |detail| Error::Unreadable { partition, offset, detail };
        let record = self.decode::<JournalRecord>(message.payload().unwrap_or_default(), handle);
        Entry::try_from(record.map_err(|e| unreadable(e.to_string()))?).map_err(|e| unreadable(e.to_string()))
    }

    fn decode<T: Record + DeserializeOwned>(
        &self,
        payload: &[u8],
        handle: &tokio::runtime::Handle,
    ) -> Result<T, codec::Error> {
        loop {
            match self.codec.decode::<T>(payload) {
                Err(codec::Error::UnknownSchema { id }) => match handle.block_on(self.codec.learn(id)) {
                    // The registry being away is a reason to wait, within the bound on a stall.
                    Err(codec::Error::Registry { .. }) => std::thread::sleep(Duration::from_millis(200)),
                    Err(error) => return Err(error),
                    Ok(()) => {}
                },
                decoded => return decoded,
            }
        }
    }

    fn append_ownership(&self, topic: &str, partition: i32, handle: &tokio::runtime::Handle) -> Result<i64, Error> {
        let entry = Entry::OwnershipTaken(OwnershipTaken {
            owner: self.owner.clone(),
            at: clock::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        let mut payload = Vec::new();
        let unencodable = |e: codec::Error| Error::Unreadable { partition, offset: -1, detail: e.to_string() };
        self.codec.encode(&JournalRecord::from(entry), &mut payload).map_err(unencodable)?;
        let deliveries = Deliveries::new();
        let outgoing = Outgoing { topic, partition, key: self.owner.as_bytes(), payload: &payload };
        reached(Failpoint::BeforeOwnership);
        self.publisher.send(outgoing, &deliveries, 0).map_err(|source| Error::Publish { partition, source })?;
        reached(Failpoint::AfterOwnership);
        let mut arrived = Vec::new();
        handle.block_on(deliveries.drain(&mut arrived));
        reached(Failpoint::OwnershipAcknowledged);
        match arrived.pop().map(|delivery| delivery.outcome) {
            Some(Ok(offset)) => Ok(offset),
            Some(Err(source)) => Err(Error::Kafka { partition, source }),
            None => Err(Error::Kafka { partition, source: KafkaError::Canceled }),
        }
    }
}

/// The next record that the consumer comes to; there is one, at `next` or before `end`.
fn next_message<'a>(
    consumer: &'a BaseConsumer,
    partition: i32,
    next: i64,
    end: i64,
) -> Result<BorrowedMessage<'a>, Error> {
    let mut waits_since = None;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => return Ok(message),
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(source)) => return Err(Error::Kafka { partition, source }),
        }
        if waits_since.get_or_insert_with(Instant::now).elapsed() > STALL {
            return Err(Error::Stalled { partition, offset: next, end });
        }
    }
}

fn assign(consumer: &BaseConsumer, topic: &str, partition: i32, offset: i64) -> Result<(), KafkaError> {
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&assignment)
}

/// What a takeover has still to read, among that of all.
struct Remaining {
    gauge: Gauge,
    entries: i64,
}

impl Remaining {
    fn new(gauge: &Gauge, entries: i64) -> Self {
        gauge.inc_by(entries);
        Self { gauge: gauge.clone(), entries }
    }

    /// So many are left.
    fn keep(&mut self, entries: i64) {
        self.gauge.inc_by(entries - self.entries);
        self.entries = entries;
    }
}

impl Drop for Remaining {
    fn drop(&mut self) {
        self.keep(0);
    }
}

struct Fold {
    partition: i32,
    /// The next offset to read.
    next: i64,
    tenancy: Tenancy,
    state: State,
}

impl Fold {
    fn take(&mut self, offset: i64, entry: &Entry) {
        self.next = offset + 1;
        let effective = self.tenancy.accept(offset, entry);
        fold(&mut self.state, offset, entry, effective);
    }
}
