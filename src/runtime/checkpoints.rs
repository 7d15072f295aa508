//! Checkpoints on the `state` topic: kept by the owner in the background, read by whoever takes the partition over.
//!
//! A tenure writes into two slots in turns and the marker last, so the checkpoint before is whole until the next one is. Parts
//! that have not changed since the slot was written are not written again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sha2::{Digest as _, Sha256};

use super::publisher::{self, Deliveries, Outgoing, Publisher};
use crate::codec::{self, Codec};
use crate::failpoint::{Failpoint, reached};
use crate::processor::checkpoint::{self, Cut, Parts};
use crate::processor::tenure::Tenure;
use crate::records::state::{Marker, Part, Piece, StateRecord};

/// Records of a checkpoint that wait for their acknowledgement at the most.
const IN_FLIGHT_MAX: usize = 64;
/// Wait while the producer has no room.
const FULL_RETRY: Duration = Duration::from_millis(20);
/// Wait before a checkpoint that could not be kept is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Bytes of a partition's checkpoints that are read at the most; with more, the journal is read from its beginning.
const READ_BYTES_MAX: usize = 256 << 20;
/// How long one question to the broker may take, and how long nothing may come although there is something.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Parts(#[from] checkpoint::Error),
    #[error(transparent)]
    Encode(#[from] codec::Error),
    #[error(transparent)]
    Publish(#[from] publisher::Error),
    #[error("kafka did not acknowledge: {0}")]
    Delivery(KafkaError),
    #[error("the process stops")]
    Stopped,
}

/// When a tenure keeps its state.
#[derive(Debug)]
pub struct Keeper {
    /// Where a restore would begin now.
    begin: i64,
    /// `None` while a checkpoint is written.
    slots: Option<Slots>,
    /// Waits until what it holds is acknowledged.
    cut: Option<Cut>,
    not_before: Instant,
}

impl Keeper {
    /// For a tenure whose restore began at the offset `begin` of the journal and found `stale` keys of earlier tenures.
    pub fn new(begin: i64, stale: Vec<String>) -> Self {
        let slots = Slots { stale, ..Slots::default() };
        Self { begin, slots: Some(slots), cut: None, not_before: Instant::now() }
    }

    /// Cuts a checkpoint when a restore would have to read `distance` entries or more.
    pub fn tick(&mut self, tenure: &Tenure, distance: i64) {
        let due = self.distance(tenure) >= distance && self.not_before <= Instant::now();
        if due && self.cut.is_none() && self.slots.is_some() {
            self.cut = tenure.cut();
        }
    }

    /// Entries that a restore would have to read now.
    pub fn distance(&self, tenure: &Tenure) -> i64 {
        tenure.end() - self.begin
    }

    /// What is to be written now.
    pub fn take(&mut self, tenure: &Tenure) -> Option<(Cut, Slots)> {
        let cut = self.cut.take_if(|cut| tenure.has_acknowledged(cut.journal_offset))?;
        self.slots.take().map(|slots| (cut, slots))
    }

    /// What became of it.
    pub fn kept(&mut self, slots: Slots, outcome: Result<i64, Error>) -> Result<(), Error> {
        self.slots = Some(slots);
        match outcome {
            Ok(journal_offset) => {
                self.begin = journal_offset + 1;
                Ok(())
            }
            Err(error) => {
                self.not_before = Instant::now() + RETRY;
                Err(error)
            }
        }
    }
}

/// What of a tenure's checkpoints is on the topic.
#[derive(Debug, Default)]
pub struct Slots {
    /// The one that is written next.
    next: usize,
    written: [Digests; 2],
    /// Keys of earlier tenures.
    stale: Vec<String>,
}

/// By name of the part.
type Digests = BTreeMap<String, [u8; 32]>;

/// Writes checkpoints.
#[derive(Clone)]
pub struct Writer {
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub topic: String,
}

impl Writer {
    /// Writes a checkpoint; returns the offset of the journal that it holds.
    pub async fn write(&self, partition: i32, cut: Cut, mut slots: Slots) -> (Slots, Result<i64, Error>) {
        let slot = slots.next;
        slots.next = 1 - slot;
        let written = std::mem::take(&mut slots.written[slot]);
        let journal_offset = cut.journal_offset;
        // Whatever goes wrong, nothing is known of this slot then, and its next turn writes all of it.
        let outcome = match self.write_slot(partition, cut, slot as i32, &written).await {
            Ok(digests) => {
                slots.written[slot] = digests;
                Ok(journal_offset)
            }
            Err(error) => Err(error),
        };
        if outcome.is_ok() && !slots.stale.is_empty() {
            let mut batch = Batch::new(self, partition);
            let stale = std::mem::take(&mut slots.stale);
            let mut removed = Ok(());
            for key in &stale {
                removed = removed.and(batch.remove(key).await);
            }
            if let Err(error) = removed.and(batch.end().await) {
                tracing::warn!(kafka.partition = partition, %error, "old checkpoints are still there");
                slots.stale = stale;
            }
        }
        (slots, outcome)
    }

    async fn write_slot(&self, partition: i32, cut: Cut, slot: i32, written: &Digests) -> Result<Digests, Error> {
        let tenure = cut.tenure;
        let prepared = tokio::task::spawn_blocking(move || prepare(&cut, slot)).await;
        let (parts, marker, digests) = prepared.map_err(|_| Error::Stopped)??;
        let mut batch = Batch::new(self, partition);
        for (name, body) in parts {
            if written.get(&name) != digests.get(&name) {
                let key = Part::key(tenure, slot, &name);
                reached(Failpoint::BeforePart);
                batch.put(&key, Piece::Part(Part { tenure, slot, name, body })).await?;
                reached(Failpoint::AfterPart);
            }
        }
        for name in written.keys().filter(|name| !digests.contains_key(*name)) {
            batch.remove(&Part::key(tenure, slot, name)).await?;
        }
        batch.end().await?;
        let mut batch = Batch::new(self, partition);
        reached(Failpoint::BeforeMarker);
        batch.put(&Marker::key(tenure, slot), Piece::Marker(marker)).await?;
        reached(Failpoint::AfterMarker);
        batch.end().await?;
        Ok(digests)
    }
}

fn prepare(cut: &Cut, slot: i32) -> Result<(Parts, Marker, Digests), checkpoint::Error> {
    let parts = cut.parts()?;
    let marker = cut.marker(slot, &parts);
    let digests = parts.iter().map(|(name, body)| (name.clone(), Sha256::digest(body).into())).collect();
    Ok((parts, marker, digests))
}

/// Records on their way, a bounded number at a time.
struct Batch<'a> {
    writer: &'a Writer,
    partition: i32,
    deliveries: Arc<Deliveries>,
    in_flight: usize,
    payload: Vec<u8>,
}

impl<'a> Batch<'a> {
    fn new(writer: &'a Writer, partition: i32) -> Self {
        Self { writer, partition, deliveries: Deliveries::new(), in_flight: 0, payload: Vec::new() }
    }

    async fn put(&mut self, key: &str, piece: Piece) -> Result<(), Error> {
        let mut payload = std::mem::take(&mut self.payload);
        self.writer.codec.encode(&StateRecord::from(piece), &mut payload)?;
        self.payload = payload;
        self.send(key, true).await
    }

    async fn remove(&mut self, key: &str) -> Result<(), Error> {
        self.send(key, false).await
    }

    async fn send(&mut self, key: &str, has_value: bool) -> Result<(), Error> {
        while self.in_flight >= IN_FLIGHT_MAX {
            self.take_deliveries().await?;
        }
        let (topic, partition) = (self.writer.topic.as_str(), self.partition);
        let record = Outgoing { topic, partition, key: key.as_bytes(), payload: &self.payload };
        loop {
            let sent = match has_value {
                true => self.writer.publisher.send(record, &self.deliveries, 0),
                false => self.writer.publisher.send_tombstone(record, &self.deliveries, 0),
            };
            match sent {
                // Requests go first: they would be refused, and this can wait.
                Err(publisher::Error::Full) => tokio::time::sleep(FULL_RETRY).await,
                Err(error) => return Err(error.into()),
                Ok(()) => break,
            }
        }
        self.in_flight += 1;
        Ok(())
    }

    async fn take_deliveries(&mut self) -> Result<(), Error> {
        let mut arrived = Vec::new();
        self.deliveries.drain(&mut arrived).await;
        self.in_flight -= arrived.len();
        arrived.into_iter().try_for_each(|delivery| delivery.outcome.map(|_| ()).map_err(Error::Delivery))
    }

    /// Waits for all acknowledgements.
    async fn end(&mut self) -> Result<(), Error> {
        while self.in_flight > 0 {
            self.take_deliveries().await?;
        }
        Ok(())
    }
}

/// The checkpoints of a partition.
#[derive(Debug, Default)]
pub struct Found {
    /// All keys, whoever wrote them.
    pub keys: Vec<String>,
    markers: Vec<Marker>,
    parts: HashMap<(i64, i32), Parts>,
}

impl Found {
    /// Markers with their parts, the latest first; whether they are whole is seen when one is restored.
    pub fn candidates(&self) -> impl Iterator<Item = (&Marker, &Parts)> {
        self.markers.iter().filter_map(|marker| Some((marker, self.parts.get(&(marker.tenure, marker.slot))?)))
    }

    /// What the checkpoints vouch for, whether or not they are whole.
    pub fn into_markers(self) -> Vec<Marker> {
        self.markers
    }

    fn of(latest: HashMap<String, Option<Piece>>) -> Self {
        let mut found = Self::default();
        for (key, piece) in latest {
            found.keys.push(key);
            match piece {
                Some(Piece::Marker(marker)) => found.markers.push(marker),
                Some(Piece::Part(part)) => {
                    found.parts.entry((part.tenure, part.slot)).or_default().insert(part.name, part.body);
                }
                None => {}
            }
        }
        found.markers.sort_unstable_by_key(|marker| std::cmp::Reverse(marker.journal_offset));
        found
    }
}

/// Reads the checkpoints of a partition with a consumer that tells where the partition ends; blocks. Records that cannot be
/// understood are passed over.
pub fn read(
    consumer: &BaseConsumer,
    topic: &str,
    partition: i32,
    decode: impl Fn(&[u8]) -> Result<StateRecord, codec::Error>,
) -> Result<Found, KafkaError> {
    let (low, end) = consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT)?;
    if low >= end {
        return Ok(Found::default());
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Offset(low))?;
    consumer.assign(&assignment)?;
    let (mut latest, mut bytes) = (HashMap::new(), 0);
    let mut progress = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                progress = Instant::now();
                let (offset, key) = (message.offset(), String::from_utf8_lossy(message.key().unwrap_or_default()));
                bytes -= latest.get(&*key).map_or(0, body_bytes);
                if let Some(payload) = message.payload() {
                    let record = decode(payload).map_err(|e| e.to_string());
                    let piece = record.and_then(|record| Piece::try_from(record).map_err(|e| e.to_string()));
                    let piece = piece.inspect_err(|error| {
                        tracing::warn!(topic, kafka.partition = partition, kafka.offset = offset, error, "passed over");
                    });
                    let piece = piece.ok();
                    bytes += body_bytes(&piece);
                    latest.insert(key.into_owned(), piece);
                } else {
                    latest.remove(&*key);
                }
                if bytes > READ_BYTES_MAX {
                    tracing::warn!(topic, kafka.partition = partition, bytes, "too large to be read: left aside");
                    return Ok(Found { keys: latest.into_keys().collect(), ..Found::default() });
                }
                if offset + 1 >= end {
                    break;
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(error)) => return Err(error),
            None if progress.elapsed() > CALL_TIMEOUT => return Err(KafkaError::Canceled),
            None => {}
        }
    }
    Ok(Found::of(latest))
}

fn body_bytes(piece: &Option<Piece>) -> usize {
    match piece {
        Some(Piece::Part(part)) => part.body.len(),
        Some(Piece::Marker(_)) | None => 0,
    }
}
