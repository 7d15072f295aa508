//! The beginning of a tenure: read the partition's journal to its end, append `OwnershipTaken`, fold through it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::publisher::{Deliveries, Outgoing, Publisher};
use super::{clock, kafka};
use crate::codec::{self, Codec};
use crate::config;
use crate::processor::{State, evolve};
use crate::records::journal::{Entry, JournalRecord, OwnershipTaken, Tenancy};
use crate::records::{EnvelopeError, Topic};

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
    #[error("journal/{partition} offset {offset} cannot be understood: {detail}; run the version that wrote it")]
    Unreadable { partition: i32, offset: i64, detail: String },
    #[error("journal/{partition}: no record for {} s at offset {offset} of {end}", STALL.as_secs())]
    Stalled { partition: i32, offset: i64, end: i64 },
}

impl Error {
    /// Whether trying again can help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }
}

/// A tenure that has begun.
#[derive(Debug)]
pub struct Tenure {
    pub partition: i32,
    /// Offset of its `OwnershipTaken`.
    pub id: i64,
    pub state: State,
}

/// What a restore works with.
#[derive(Clone)]
pub struct Restore {
    pub kafka: config::Kafka,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub owner: String,
}

impl Restore {
    /// Takes the partition over; blocks, so it runs on a thread for that.
    pub fn take_over(&self, partition: i32, handle: &tokio::runtime::Handle) -> Result<Tenure, Error> {
        let failed = |source| Error::Kafka { partition, source };
        let topic = kafka::topic_name(&self.kafka, Topic::Journal);
        let consumer: BaseConsumer = kafka::cold_consumer(&self.kafka, "restore").create().map_err(failed)?;
        let (low, end) = consumer.fetch_watermarks(&topic, partition, CALL_TIMEOUT).map_err(failed)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic, partition, Offset::Offset(low)).map_err(failed)?;
        consumer.assign(&assignment).map_err(failed)?;
        let mut fold = Fold { partition, next: low, tenancy: Tenancy::VACANT, state: State::default() };
        self.fold_until(&consumer, &mut fold, end, handle)?;
        let id = self.append_ownership(&topic, partition, handle)?;
        self.fold_until(&consumer, &mut fold, id + 1, handle)?;
        Ok(Tenure { partition, id, state: fold.state })
    }

    fn fold_until(
        &self,
        consumer: &BaseConsumer,
        fold: &mut Fold,
        end: i64,
        handle: &tokio::runtime::Handle,
    ) -> Result<(), Error> {
        let mut progress = Instant::now();
        while fold.next < end {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    progress = Instant::now();
                    let entry = self.entry(message.payload().unwrap_or_default(), handle);
                    let unreadable =
                        |detail| Error::Unreadable { partition: fold.partition, offset: message.offset(), detail };
                    fold.take(message.offset(), &entry.map_err(unreadable)?);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(source)) => return Err(Error::Kafka { partition: fold.partition, source }),
                None if progress.elapsed() > STALL => {
                    return Err(Error::Stalled { partition: fold.partition, offset: fold.next, end });
                }
                None => {}
            }
        }
        Ok(())
    }

    fn entry(&self, payload: &[u8], handle: &tokio::runtime::Handle) -> Result<Entry, String> {
        let decoded = loop {
            match self.codec.decode::<JournalRecord>(payload) {
                Err(codec::Error::UnknownSchema { id }) => match handle.block_on(self.codec.learn(id)) {
                    // The registry being away is a reason to wait, within the bound on a stall.
                    Err(codec::Error::Registry { .. }) => std::thread::sleep(Duration::from_millis(200)),
                    Err(error) => break Err(error),
                    Ok(()) => {}
                },
                decoded => break decoded,
            }
        };
        let record = decoded.map_err(|e| e.to_string())?;
        Entry::try_from(record).map_err(|e: EnvelopeError| e.to_string())
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
        self.publisher.send(outgoing, &deliveries, 0).map_err(|source| Error::Publish { partition, source })?;
        let mut arrived = Vec::new();
        handle.block_on(deliveries.drain(&mut arrived));
        match arrived.pop().map(|delivery| delivery.outcome) {
            Some(Ok(offset)) => Ok(offset),
            Some(Err(source)) => Err(Error::Kafka { partition, source }),
            None => Err(Error::Kafka { partition, source: KafkaError::Canceled }),
        }
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
        if self.tenancy.accept(offset, entry)
            && let Entry::Commit(commit) = entry
        {
            evolve(&mut self.state, commit);
        }
    }
}
