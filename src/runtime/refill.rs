//! Reads the bodies of answers that are kept when a partition is taken over, beside its work: until one is at hand, who
//! asks for it is answered anew.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::fingerprint::Fingerprints;
use super::kafka;
use super::publisher::{Deliveries, Outgoing, Publisher};
use super::shelf::Shelf;
use crate::codec::{self, Codec};
use crate::config;
use crate::domain::{Fingerprint, OrganizationId, Timestamp};
use crate::records::cache::CacheRecord;
use crate::records::dead_letters::{DeadLetter, Source};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// What it works with.
#[derive(Clone)]
pub struct Refill {
    pub kafka: config::Kafka,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub fingerprints: Fingerprints,
    pub shelf: Shelf,
    pub topic: String,
    pub dead_letters: String,
    pub dead_letter_bytes_max: usize,
}

/// Answers that are kept, of which the bodies are wanted.
pub type Wanted = HashSet<(OrganizationId, Fingerprint)>;

impl Refill {
    /// Reads a partition of `cache`; blocks, so it runs on a thread for that. What cannot be read is left out.
    pub fn run(&self, partition: i32, wanted: &Wanted, given_up: &CancellationToken, handle: &tokio::runtime::Handle) {
        match self.read(partition, wanted, given_up, handle) {
            Ok(found) => tracing::info!(kafka.partition = partition, found, wanted = wanted.len(), "cache refilled"),
            Err(error) => tracing::warn!(
                topic = self.topic,
                kafka.partition = partition,
                %error,
                "the answers that are kept could not be read; they are asked anew"
            ),
        }
    }

    fn read(
        &self,
        partition: i32,
        wanted: &Wanted,
        given_up: &CancellationToken,
        handle: &tokio::runtime::Handle,
    ) -> Result<usize, KafkaError> {
        let mut client = kafka::cold_consumer(&self.kafka, "cache");
        client.set("fetch.min.bytes", "1").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = client.create()?;
        let (low, end) = consumer.fetch_watermarks(&self.topic, partition, CALL_TIMEOUT)?;
        if low >= end {
            return Ok(0);
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, partition, Offset::Offset(low))?;
        consumer.assign(&assignment)?;
        let (mut found, mut progress) = (HashSet::new(), Instant::now());
        while !given_up.is_cancelled() {
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    progress = Instant::now();
                    match self.record(&message, handle) {
                        Ok(Some(record)) => {
                            let place = (record.organization.clone(), record.fingerprint);
                            // Given away in the middle of it, nothing may be left behind.
                            if wanted.contains(&place) && !given_up.is_cancelled() {
                                self.shelf.put(&place.0, place.1, Arc::new(record.into()));
                                found.insert(place);
                            }
                        }
                        Ok(None) => {}
                        Err((reason, detail)) => self.put_aside(partition, &message, reason, &detail),
                    }
                    if message.offset() + 1 >= end {
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(error),
                None if progress.elapsed() > CALL_TIMEOUT => return Err(KafkaError::Canceled),
                None => {}
            }
        }
        Ok(found.len())
    }

    /// The record of a message; `None`: it is a tombstone.
    fn record(
        &self,
        message: &BorrowedMessage<'_>,
        handle: &tokio::runtime::Handle,
    ) -> Result<Option<CacheRecord>, (&'static str, String)> {
        let Some(payload) = message.payload() else { return Ok(None) };
        let decoded = match self.codec.decode::<CacheRecord>(payload) {
            Err(codec::Error::UnknownSchema { id }) => {
                handle.block_on(self.codec.learn(id)).and_then(|()| self.codec.decode::<CacheRecord>(payload))
            }
            decoded => decoded,
        };
        let record = decoded.map_err(|error| ("undecodable", error.to_string()))?;
        let key = CacheRecord::key(&record.organization, record.fingerprint);
        if message.key() != Some(key.as_bytes()) {
            return Err(("not_of_its_key", "its key is another one than its content has".to_owned()));
        }
        match record.seal == self.fingerprints.seal(&record) {
            true => Ok(Some(record)),
            false => Err(("not_ours", "its seal is not that of processor.fingerprint_key".to_owned())),
        }
    }

    /// Puts a record that nobody may be answered with into `dead-letters`, and takes it off.
    fn put_aside(&self, partition: i32, message: &BorrowedMessage<'_>, reason: &'static str, detail: &str) {
        let (offset, payload) = (message.offset(), message.payload().unwrap_or_default());
        tracing::warn!(
            topic = self.topic,
            kafka.partition = partition,
            kafka.offset = offset,
            reason,
            detail,
            "a record of the cache cannot be used; it goes to dead-letters"
        );
        let at = Timestamp::from_millis(message.timestamp().to_millis().unwrap_or(0));
        let source = Source { topic: &self.topic, partition, offset, at, key: message.key(), payload };
        let letter = DeadLetter::of(source, reason, detail, self.dead_letter_bytes_max);
        let (mut encoded, deliveries) = (Vec::new(), Deliveries::new());
        let sent = self.codec.encode(&letter, &mut encoded).map_err(|e| e.to_string()).and_then(|()| {
            let key = message.key().unwrap_or_default();
            let letter = Outgoing { topic: &self.dead_letters, partition, key, payload: &encoded };
            self.publisher.send(letter, &deliveries, 0).map_err(|e| e.to_string())?;
            let gone = Outgoing { topic: &self.topic, partition, key, payload: &[] };
            self.publisher.send_tombstone(gone, &deliveries, 0).map_err(|e| e.to_string())
        });
        if let Err(error) = sent {
            tracing::warn!(kafka.partition = partition, kafka.offset = offset, error, "it could not be put aside");
        }
    }
}
