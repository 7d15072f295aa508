//! Reads `responses` for those who are served from the log: one task with a consumer of its own, for all of them.
//!
//! Its memory is the consumer's bounded queue and one frame at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Plan, Sweep, fail, questions};
use crate::domain::Timestamp;
use crate::facade::frames::Decoder;
use crate::facade::hub::Hub;
use crate::facade::slot::Slot;
use crate::facade::sse::Position;

/// How long Kafka may take to say where something is in a partition.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(5);
/// How far the clocks of brokers and owners may be apart: answers are looked for so much earlier than they can be.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);
/// What slots need is looked at this often even when nothing wakes the reader.
const TICK: Duration = Duration::from_millis(500);
/// Records after which other tasks of the thread have their turn.
const RECORDS_PER_TURN: usize = 128;
/// How long closing the consumer may take before it is left alone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a partition holds.
#[derive(Debug, Clone, Copy)]
struct Extent {
    first: i64,
    end: i64,
    /// The first record that is not older than what was asked for.
    since: i64,
}

/// What librdkafka tells beside the records.
pub struct EndsAreExpected;

impl ClientContext for EndsAreExpected {
    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition, told after it was left.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(%error, reason, "the catch-up consumer's connection");
        }
    }
}

impl ConsumerContext for EndsAreExpected {}

type Consumer = StreamConsumer<EndsAreExpected>;

/// What was found out about partitions, and for whom.
struct Found {
    slots: Vec<Arc<Slot>>,
    extents: HashMap<i32, KafkaResult<Extent>>,
}

pub struct Reader {
    hub: Arc<Hub>,
    consumer: Arc<Consumer>,
    topic: String,
    decoder: Decoder,
    sweeps: HashMap<i32, Sweep>,
    /// Offsets that came too early: records before them may have expired, or the consumer was behind a jump.
    gaps: HashMap<i32, i64>,
    /// Where sweeps began that are known to have missed nothing.
    begun: HashMap<i32, i64>,
    /// Partitions of which it is asked how far they reach.
    asked: HashSet<i32>,
}

impl Reader {
    pub fn new(hub: Arc<Hub>, consumer: Consumer, topic: String, decoder: Decoder) -> Self {
        let consumer = Arc::new(consumer);
        let (sweeps, gaps, begun, asked) = Default::default();
        Self { hub, consumer, topic, decoder, sweeps, gaps, begun, asked }
    }

    pub async fn run(mut self, end: CancellationToken) {
        let consumer = self.consumer.clone();
        tokio::select! {
            biased;
            () = end.cancelled() => {}
            () = self.read(&consumer) => {}
        }
        drop(self);
        // Closing a consumer blocks, and may do so for long.
        let closing = tokio::task::spawn_blocking(move || drop(consumer));
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!("the catch-up consumer did not close in time");
        }
    }

    async fn read(&mut self, consumer: &Consumer) {
        let mut messages = consumer.stream();
        let mut tick = tokio::time::interval(TICK);
        let mut locating = JoinSet::new();
        let mut looks = true;
        loop {
            if looks {
                looks = false;
                self.plan();
            }
            if locating.is_empty() {
                self.locate(&mut locating);
            }
            tokio::select! {
                message = messages.next() => {
                    // A consumer's stream has no end.
                    let Some(mut message) = message else { return };
                    for _ in 0..RECORDS_PER_TURN {
                        looks = self.take(message).await;
                        if looks {
                            break;
                        }
                        message = match messages.next().now_or_never() {
                            Some(Some(next)) => next,
                            Some(None) => return,
                            None => break,
                        };
                    }
                    tokio::task::yield_now().await;
                }
                () = self.hub.readers().hungry() => looks = true,
                Some(found) = locating.join_next() => {
                    if let Ok(found) = found {
                        self.found(found);
                    }
                    looks = true;
                }
                _ = tick.tick() => looks = true,
            }
        }
    }

    /// Begins, goes on with and ends sweeps, as the slots need them.
    fn plan(&mut self) {
        let plans = self.hub.readers().plan(&self.sweeps);
        self.hub.metrics().readers(self.hub.readers().len());
        for (partition, plan) in plans {
            match plan {
                Plan::Stay => {}
                Plan::Read(offset) => self.begin(partition, offset),
                Plan::Leave => {
                    if self.sweeps.remove(&partition).is_some()
                        && let Err(error) = self.unassign(partition)
                    {
                        tracing::warn!(topic = self.topic, partition, %error, "a partition could not be left");
                    }
                    self.gaps.remove(&partition);
                    self.begun.remove(&partition);
                }
            }
        }
    }

    /// Reads the partition from here on.
    fn begin(&mut self, partition: i32, offset: i64) {
        let assigned = match self.sweeps.remove(&partition) {
            Some(_) => self.unassign(partition),
            None => Ok(()),
        };
        let mut list = TopicPartitionList::with_capacity(1);
        let assigned = assigned
            .and_then(|()| list.add_partition_offset(&self.topic, partition, Offset::Offset(offset)))
            .and_then(|()| self.consumer.incremental_assign(&list));
        match assigned {
            Ok(()) => {
                self.sweeps.insert(partition, Sweep::from(offset));
            }
            // It is tried again at the next look.
            Err(error) => tracing::warn!(topic = self.topic, partition, offset, %error, "cannot read what is missed"),
        }
    }

    fn unassign(&self, partition: i32) -> KafkaResult<()> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.topic, partition);
        self.consumer.incremental_unassign(&list)
    }

    /// Takes a record, or what came instead of it. True when there may be something to plan.
    async fn take(&mut self, message: KafkaResult<BorrowedMessage<'_>>) -> bool {
        let message = match message {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(partition)) => {
                let Some(sweep) = self.sweeps.get_mut(&partition) else { return false };
                if sweep.records == 0 && self.begun.get(&partition) != Some(&sweep.next) {
                    // All that it was to begin with may have expired: then the end is elsewhere.
                    self.asked.insert(partition);
                }
                sweep.ended = true;
                return true;
            }
            Err(error) => {
                // librdkafka goes on by itself, and says so once per broken connection.
                tracing::warn!(topic = self.topic, %error, "reading what is missed was interrupted");
                return false;
            }
        };
        let at = Position { partition: message.partition(), offset: message.offset() };
        if self.asked.contains(&at.partition) {
            return false;
        }
        let Some(sweep) = self.sweeps.get_mut(&at.partition) else { return false };
        if at.offset < sweep.next {
            return false;
        }
        if at.offset > sweep.next && self.gaps.insert(at.partition, at.offset) != Some(at.offset) {
            self.asked.insert(at.partition);
            return true;
        }
        (sweep.next, sweep.records) = (at.offset + 1, sweep.records.saturating_add(1));
        self.hub.metrics().read_record();
        let key = message.key().unwrap_or_default();
        if !self.hub.readers().wants(at, key) {
            return false;
        }
        let frame = self.decoder.frame(message.payload().unwrap_or_default()).await;
        if let Err(error) = &frame {
            self.hub.metrics().undecodable_frame();
            tracing::warn!(topic = self.topic, partition = at.partition, offset = at.offset, error, "no frame");
        }
        self.hub.logged(at, key, frame.as_ref().ok())
    }

    /// Finds out where in the log those begin who do not know it, and whether what seems to be missing has expired.
    fn locate(&mut self, locating: &mut JoinSet<Found>) {
        let slots = self.hub.readers().unlocated();
        let mut questions = questions(&slots);
        for partition in &self.asked {
            questions.entry(*partition).or_default();
        }
        if questions.is_empty() {
            return;
        }
        let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
        locating.spawn_blocking(move || {
            let extent = |(partition, since)| (partition, extent(&consumer, &topic, partition, since));
            Found { slots, extents: questions.into_iter().map(extent).collect() }
        });
    }

    fn found(&mut self, found: Found) {
        for (partition, extent) in &found.extents {
            if let Err(error) = extent {
                tracing::warn!(topic = self.topic, partition, %error, "cannot find out what the log has");
            }
            if !self.asked.remove(partition) {
                continue;
            }
            if extent.is_err() {
                self.gaps.remove(partition);
            }
            // What came too early is read again, from what is left of the log on.
            let Some(next) = self.sweeps.get(partition).map(|sweep| sweep.next) else { continue };
            let first = extent.as_ref().map_or(next, |extent| extent.first);
            self.hub.readers().cut(*partition, first);
            if extent.is_ok() {
                self.begun.insert(*partition, next.max(first));
            }
            self.begin(*partition, next.max(first));
        }
        let mut lost = Vec::new();
        for slot in found.slots {
            match found.extents.get(&slot.partition()) {
                Some(Ok(Extent { first, end, since })) => self.hub.readers().located(slot, *first..*end, *since),
                Some(Err(_)) | None => lost.push(slot),
            }
        }
        fail(lost);
    }
}

/// Blocks.
fn extent(consumer: &Consumer, topic: &str, partition: i32, since: Option<Timestamp>) -> KafkaResult<Extent> {
    let (first, end) = consumer.fetch_watermarks(topic, partition, LOCATE_TIMEOUT)?;
    let Some(since) = since else { return Ok(Extent { first, end, since: end }) };
    let skew = i64::try_from(CLOCK_SKEW_MAX.as_millis()).unwrap_or(0);
    let mut list = TopicPartitionList::with_capacity(1);
    let from = since.as_millis().saturating_sub(skew).max(0);
    list.add_partition_offset(topic, partition, Offset::Offset(from))?;
    let found = consumer.offsets_for_times(list, LOCATE_TIMEOUT)?;
    let found = found.find_partition(topic, partition).map(|element| (element.error(), element.offset()));
    match found {
        Some((Err(error), _)) => Err(error),
        Some((Ok(()), Offset::Offset(since))) => Ok(Extent { first, end, since }),
        // Nothing is as young.
        Some((Ok(()), _)) | None => Ok(Extent { first, end, since: end }),
    }
}
