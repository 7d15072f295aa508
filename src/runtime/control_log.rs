//! Reading and writing the control log from outside the running components: for `apply` and for the commands.
//!
//! A change carries the version that its writer saw. The writer sends its records and then reads the log up to them: the
//! fold says which took effect. So two writers at once never overwrite each other, and no server decides between them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::clock;
use super::kafka;
use super::publisher::{self, Deliveries, Outgoing, Publisher};
use super::reach;
use crate::codec::{self, Codec};
use crate::config;
use crate::control::edit::Wanted;
use crate::control::history::{Entry, History};
use crate::control::{Change, Tables};
use crate::records::Topic;
use crate::records::control::{ControlRecord, EntityKind, Stamp};

/// Control has one partition: its order decides.
const PARTITION: i32 = 0;
/// How long reading to the end, or the acknowledgement of all records, may take without any progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);
/// Most records that are sent before their acknowledgements are waited for.
const BATCH_MAX: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reach(#[from] reach::Error),
    #[error("cannot read {topic}: {source}")]
    Read { topic: String, source: KafkaError },
    #[error("{topic} was read to offset {at} of {end}, and then nothing came for {} s", PROGRESS_TIMEOUT.as_secs())]
    Stalled { topic: String, at: i64, end: i64 },
    #[error("the record at offset {offset} of {topic}: {source}")]
    Decode { topic: String, offset: i64, source: codec::Error },
    #[error(transparent)]
    Encode(codec::Error),
    #[error(transparent)]
    Send(#[from] publisher::Error),
    #[error("{topic} did not acknowledge the change of {id}: {detail}")]
    NotAcknowledged { topic: String, id: String, detail: String },
    #[error("the change of {id} is not on {topic}, although it was acknowledged")]
    Lost { topic: String, id: String },
    #[error("reading was broken off")]
    BrokenOff,
}

/// The fold of the control log, as far as it was read.
pub struct ControlLog {
    consumer: Arc<BaseConsumer>,
    codec: Arc<Codec>,
    topic: String,
    /// Offset of the next record to be read.
    next: i64,
    tables: Tables,
    deleted: BTreeSet<(EntityKind, String)>,
    /// Of the entity that was asked about.
    history: Option<History>,
}

impl ControlLog {
    /// Reads the log to its end. The topic must exist.
    pub async fn open(config: &config::Kafka, codec: Arc<Codec>) -> Result<Self, Error> {
        Self::open_with(config, codec, None).await
    }

    async fn open_with(config: &config::Kafka, codec: Arc<Codec>, history: Option<History>) -> Result<Self, Error> {
        reach::metadata(config, None, PROGRESS_TIMEOUT).await?;
        let topic = kafka::topic_name(config, Topic::Control);
        let read = |source| Error::Read { topic: topic.clone(), source };
        let consumer: BaseConsumer = kafka::hot_consumer(config, "control-log").create().map_err(read)?;
        let mut start = TopicPartitionList::new();
        start.add_partition_offset(&topic, PARTITION, Offset::Beginning).map_err(read)?;
        consumer.assign(&start).map_err(read)?;
        let (tables, deleted) = (Tables::default(), BTreeSet::new());
        let mut log = Self { consumer: Arc::new(consumer), codec, topic, next: 0, tables, deleted, history };
        log.refresh().await?;
        Ok(log)
    }

    /// As of the last record that was read.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Entities whose last effective change was a deletion.
    pub fn deleted(&self) -> &BTreeSet<(EntityKind, String)> {
        &self.deleted
    }

    /// Reads on to the end that the log has now.
    pub async fn refresh(&mut self) -> Result<(), Error> {
        let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
        let asked = tokio::task::spawn_blocking(move || consumer.fetch_watermarks(&topic, PARTITION, PROGRESS_TIMEOUT));
        let (_, end) = asked
            .await
            .map_err(|_| Error::BrokenOff)?
            .map_err(|source| Error::Read { topic: self.topic.clone(), source })?;
        self.read_to(end, &mut HashMap::new()).await
    }

    /// Reads until `end`; notes in `mine` what became of the changes with those ids.
    async fn read_to(&mut self, end: i64, mine: &mut HashMap<String, Option<Change>>) -> Result<(), Error> {
        while self.next < end {
            let (consumer, topic, next) = (self.consumer.clone(), self.topic.clone(), self.next);
            let read = tokio::task::spawn_blocking(move || poll(&consumer, &topic, next, end)).await;
            for (offset, payload) in read.map_err(|_| Error::BrokenOff)?? {
                self.take(offset, payload.as_deref(), mine).await?;
            }
        }
        Ok(())
    }

    async fn take(
        &mut self,
        offset: i64,
        payload: Option<&[u8]>,
        mine: &mut HashMap<String, Option<Change>>,
    ) -> Result<(), Error> {
        self.next = offset + 1;
        let decoded = self.codec.decode_learning::<ControlRecord>(payload.unwrap_or_default()).await;
        let record = match decoded {
            Ok(record) => record,
            Err(source @ codec::Error::Registry { .. }) => {
                return Err(Error::Decode { topic: self.topic.clone(), offset, source });
            }
            // Nobody folds it, so it changes nothing.
            Err(error) => {
                tracing::warn!(topic = self.topic, offset, %error, "a record is no change; passed over");
                return Ok(());
            }
        };
        match self.tables.apply(offset, &record) {
            Ok(change) => {
                if let Some(history) = &mut self.history {
                    history.note(offset, &record, change);
                }
                if let (Change::Effective, Ok((kind, _))) = (change, record.change()) {
                    match record.deleted {
                        true => self.deleted.insert((kind, record.id.clone())),
                        false => self.deleted.remove(&(kind, record.id.clone())),
                    };
                }
                if let Some(outcome) = mine.get_mut(&record.change_id) {
                    *outcome = Some(change);
                }
            }
            // A newer version's kind of entity is none of ours to change.
            Err(e) => tracing::warn!(kafka.topic = %self.topic, kafka.offset = offset, error = %e, "passed over"),
        }
        Ok(())
    }

    /// Sends changes and says, in their order, what became of each. They are sent together, so none may build on another.
    ///
    /// # Errors
    /// When a change is not acknowledged; it may have taken effect all the same, which reading again shows.
    pub async fn write(
        &mut self,
        publisher: &Publisher,
        changes: Vec<Wanted>,
        actor: &str,
    ) -> Result<Vec<Change>, Error> {
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let batch: Vec<Wanted> = changes.by_ref().take(BATCH_MAX).collect();
            outcomes.extend(self.write_batch(publisher, batch, actor).await?);
        }
        Ok(outcomes)
    }

    async fn write_batch(
        &mut self,
        publisher: &Publisher,
        changes: Vec<Wanted>,
        actor: &str,
    ) -> Result<Vec<Change>, Error> {
        let (deliveries, mut buffer) = (Deliveries::new(), Vec::new());
        let mut sent: Vec<(String, String)> = Vec::with_capacity(changes.len());
        for (tag, wanted) in (0..).zip(changes) {
            let change_id = uuid::Uuid::now_v7().to_string();
            sent.push((change_id.clone(), wanted.id.clone()));
            let stamp = Stamp { change_id, actor: actor.to_owned(), at: clock::now() };
            let record = match wanted.entity {
                Some(entity) => ControlRecord::put(&wanted.id, entity, wanted.expected_version, stamp),
                None => ControlRecord::delete(wanted.kind, &wanted.id, wanted.expected_version, stamp),
            };
            self.codec.encode(&record, &mut buffer).map_err(Error::Encode)?;
            let key = record.topic_key();
            let outgoing = Outgoing { topic: &self.topic, partition: PARTITION, key: key.as_bytes(), payload: &buffer };
            publisher.send(outgoing, &deliveries, tag)?;
        }
        let last = self.acknowledged(&deliveries, &sent).await?;
        let mut mine: HashMap<String, Option<Change>> = sent.iter().map(|(change, _)| (change.clone(), None)).collect();
        self.read_to(last + 1, &mut mine).await?;
        let outcome = |(change, id): (String, String)| {
            mine.get(&change).copied().flatten().ok_or(Error::Lost { topic: self.topic.clone(), id })
        };
        sent.into_iter().map(outcome).collect()
    }

    /// Waits until all are acknowledged; the highest offset.
    async fn acknowledged(&self, deliveries: &Arc<Deliveries>, sent: &[(String, String)]) -> Result<i64, Error> {
        let failed =
            |id: &str, detail: String| Error::NotAcknowledged { topic: self.topic.clone(), id: id.to_owned(), detail };
        let (mut last, mut waiting, mut arrived) = (-1, sent.len(), Vec::new());
        while waiting > 0 {
            let drained = tokio::time::timeout(PROGRESS_TIMEOUT, deliveries.drain(&mut arrived)).await;
            let first = sent.first().map_or("", |(_, id)| id.as_str());
            drained.map_err(|_| failed(first, format!("no answer for {} s", PROGRESS_TIMEOUT.as_secs())))?;
            for delivery in arrived.drain(..) {
                waiting = waiting.saturating_sub(1);
                let id = usize::try_from(delivery.tag).ok().and_then(|tag| sent.get(tag)).map_or("", |(_, id)| id);
                last = last.max(delivery.outcome.map_err(|e| failed(id, e.to_string()))?);
            }
        }
        Ok(last)
    }
}

/// Reads the whole log for what became of one entity.
///
/// # Errors
/// When the log cannot be read to its end.
pub async fn history(
    config: &config::Kafka,
    codec: Arc<Codec>,
    kind: EntityKind,
    id: &str,
) -> Result<Vec<Entry>, Error> {
    let log = ControlLog::open_with(config, codec, Some(History::of(kind, id))).await?;
    Ok(log.history.map(History::into_entries).unwrap_or_default())
}

type Raw = (i64, Option<Vec<u8>>);

/// Takes what has come, at least one record, up to `end`.
fn poll(consumer: &BaseConsumer, topic: &str, next: i64, end: i64) -> Result<Vec<Raw>, Error> {
    let (mut read, mut next, deadline) = (Vec::new(), next, Instant::now() + PROGRESS_TIMEOUT);
    while next < end {
        // What waits is taken at once; only the first record is waited for.
        match consumer.poll(if read.is_empty() { POLL } else { Duration::ZERO }) {
            Some(Ok(message)) => {
                next = message.offset() + 1;
                read.push((message.offset(), message.payload().map(<[u8]>::to_vec)));
            }
            Some(Err(source)) => return Err(Error::Read { topic: topic.to_owned(), source }),
            None if !read.is_empty() => break,
            None if Instant::now() >= deadline => {
                return Err(Error::Stalled { topic: topic.to_owned(), at: next, end });
            }
            None => {}
        }
    }
    Ok(read)
}
