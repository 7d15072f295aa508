//! A member of a consumer group on one topic, for readers whose place in the log is more than an offset.
//!
//! librdkafka's callbacks for rebalances run inside the poll for records. Here they only note the change; the reader's
//! loop takes it with [`Member::changed`] and answers with [`Member::assign`] or [`Member::unassign`] when it is ready.
//! A committed offset carries a note of the reader's own, so that both move together.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, MessageStream, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, ClientContext, Message as _, Offset, Statistics, TopicPartitionList};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lag::{Lag, known};
use crate::domain::Timestamp;

/// How long the broker may take to tell or to take committed offsets.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before committed offsets are asked for again: first, and at the most.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a clean leave may take; then the broker notices by the session's time-out.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most records that a reader takes in one turn.
const BURST_MAX: usize = 256;
/// How long records may be left unpolled; longer, and rebalances would wait for this member.
const UNPOLLED_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("cannot read {topic} as a member of its consumer group: {source}")]
    Join { topic: String, source: KafkaError },
    /// The client cannot go on; a new one may.
    #[error("the reader of {topic} is broken: {source}")]
    Broken { topic: String, source: KafkaError },
}

/// A change of what this member reads. Each must be answered before the next one comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Answer with [`Member::assign`].
    Assigned(Vec<i32>),
    /// Answer with [`Member::unassign`].
    Revoked(Vec<i32>),
}

/// Where reading goes on in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub partition: i32,
    /// Of the next record; `None`: the beginning.
    pub offset: Option<i64>,
    /// What the reader keeps beside the offset.
    pub note: String,
}

/// A record as it lies in librdkafka's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    pub partition: i32,
    pub offset: i64,
    pub at: Timestamp,
    pub key: Option<&'a [u8]>,
    /// Empty when there is none.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    pub fn of(message: &'a BorrowedMessage<'_>) -> Self {
        Self {
            partition: message.partition(),
            offset: message.offset(),
            at: Timestamp::from_millis(message.timestamp().to_millis().unwrap_or(0)),
            key: message.key(),
            payload: message.payload().unwrap_or_default(),
        }
    }
}

pub struct Context {
    lag: Lag,
    changes: Mutex<VecDeque<Change>>,
    changed: Notify,
    /// Nobody looks at the changes any more.
    leaving: AtomicBool,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.lag.told(&statistics, |of| known(of.committed_offset).or(known(of.lo_offset)));
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            // Our own callback hears of it as well, and says why it is no error.
            _ if facility == "COMMITFAIL" => tracing::debug!(facility, "{message}"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(facility, "{message}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, "{message}"),
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "{message}"),
        }
    }
}

impl Context {
    fn new(lag: Lag) -> Self {
        Self { lag, changes: Mutex::default(), changed: Notify::new(), leaving: AtomicBool::new(false) }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.leaving.load(Ordering::Acquire) {
            // Closing waits for an answer, which nobody else gives now.
            let answer = if assigned { consumer.incremental_assign(list) } else { consumer.incremental_unassign(list) };
            if let Err(error) = answer {
                tracing::debug!(%error, "a rebalance at the end was not answered");
            }
            return;
        }
        let partitions = list.elements().iter().map(|element| element.partition()).collect();
        let change = if assigned { Change::Assigned(partitions) } else { Change::Revoked(partitions) };
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
        self.changed.notify_one();
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        // The next commit covers a lost one, and what is read twice is recognised; so this is no error of ours.
        if let Err(error) = result {
            tracing::debug!(%error, "offsets were not committed");
        }
    }
}

/// What is read, and what of it is paused.
#[derive(Default)]
struct Reading {
    assigned: BTreeSet<i32>,
    /// Paused one by one.
    paused: BTreeSet<i32>,
    /// All are paused.
    all_paused: bool,
    /// The change that was taken but not answered.
    unanswered: Option<Change>,
}

/// One member of a group.
pub struct Member {
    consumer: Arc<StreamConsumer<Context>>,
    topic: Arc<str>,
    reading: Mutex<Reading>,
}

impl Member {
    /// Subscribes to `topic`; the group is in `config`, whose strategy must be cooperative.
    pub fn join(config: &ClientConfig, topic: &str, lag: Lag) -> Result<Self, Error> {
        let error = |source| Error::Join { topic: topic.to_owned(), source };
        let consumer: StreamConsumer<Context> = config.create_with_context(Context::new(lag)).map_err(error)?;
        consumer.subscribe(&[topic]).map_err(error)?;
        Ok(Self { consumer: Arc::new(consumer), topic: Arc::from(topic), reading: Mutex::default() })
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The records. Keep one stream and poll it all the time, save as [`Gate`] says.
    pub fn stream(&self) -> MessageStream<'_, Context> {
        self.consumer.stream()
    }

    /// Waits for the next change; the one before must have been answered.
    pub async fn changed(&self) -> Change {
        loop {
            if let Some(change) = self.try_changed() {
                return change;
            }
            self.consumer.context().changed.notified().await;
        }
    }

    /// The next change, if there is one: for a loop that polls the stream itself, since changes come while it does.
    pub fn try_changed(&self) -> Option<Change> {
        let change = self.consumer.context().changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if change.is_some() {
            self.reading().unanswered.clone_from(&change);
        }
        change
    }

    /// Begins to read the partitions where they say.
    pub fn assign(&self, positions: &[Position]) {
        let list =
            self.list(positions.iter().map(|p| (p.partition, p.offset.map_or(Offset::Beginning, Offset::Offset))));
        let mut reading = self.reading();
        reading.unanswered = None;
        reading.assigned.extend(positions.iter().map(|p| p.partition));
        positions.iter().for_each(|p| self.lag().assigned(p.partition, p.offset));
        self.done("assign", self.consumer.incremental_assign(&list));
        if reading.all_paused {
            self.done("pause", self.consumer.pause(&list));
        }
    }

    /// Begins to read the partitions where the group's committed offsets say.
    pub fn assign_committed(&self, partitions: &[i32]) {
        let list = self.list(partitions.iter().map(|p| (*p, Offset::Stored)));
        let mut reading = self.reading();
        reading.unanswered = None;
        reading.assigned.extend(partitions);
        partitions.iter().for_each(|partition| self.lag().assigned(*partition, None));
        self.done("assign", self.consumer.incremental_assign(&list));
        if reading.all_paused {
            self.done("pause", self.consumer.pause(&list));
        }
    }

    /// Ends reading the partitions.
    pub fn unassign(&self, partitions: &[i32]) {
        let mut reading = self.reading();
        reading.unanswered = None;
        // librdkafka remembers a pause for longer than an assignment: one that comes back would stay paused.
        let paused = partitions.iter().filter(|p| reading.all_paused || reading.paused.contains(p));
        let paused = self.list(paused.map(|p| (*p, Offset::Invalid)));
        if paused.count() > 0 {
            self.done("resume", self.consumer.resume(&paused));
        }
        for partition in partitions {
            reading.assigned.remove(partition);
            reading.paused.remove(partition);
            self.lag().unassigned(*partition);
        }
        let list = self.list(partitions.iter().map(|p| (*p, Offset::Invalid)));
        self.done("unassign", self.consumer.incremental_unassign(&list));
    }

    /// Holds one partition back.
    pub fn pause(&self, partition: i32) {
        self.reading().paused.insert(partition);
        self.done("pause", self.consumer.pause(&self.list([(partition, Offset::Invalid)])));
    }

    /// Lets one partition go on.
    pub fn resume(&self, partition: i32) {
        let mut reading = self.reading();
        if reading.paused.remove(&partition) && reading.assigned.contains(&partition) && !reading.all_paused {
            self.done("resume", self.consumer.resume(&self.list([(partition, Offset::Invalid)])));
        }
    }

    fn pause_all(&self) {
        let mut reading = self.reading();
        reading.all_paused = true;
        self.done("pause", self.consumer.pause(&self.list(reading.assigned.iter().map(|p| (*p, Offset::Invalid)))));
    }

    fn resume_all(&self) {
        let mut reading = self.reading();
        reading.all_paused = false;
        let resumed = reading.assigned.difference(&reading.paused).map(|p| (*p, Offset::Invalid));
        self.done("resume", self.consumer.resume(&self.list(resumed)));
    }

    /// What the group has committed for the partitions; asks until the broker answers, so let it run in a task.
    pub fn committed(&self, partitions: Vec<i32>) -> impl Future<Output = Vec<Position>> + Send + 'static {
        let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
        async move {
            let mut wait = RETRY_MIN;
            loop {
                let (asking, of, wanted) = (consumer.clone(), topic.clone(), partitions.clone());
                match tokio::task::spawn_blocking(move || committed(&asking, &of, &wanted)).await {
                    Ok(Ok(positions)) => return positions,
                    Ok(Err(error)) => tracing::warn!(topic = &*topic, %error, "cannot read the committed offsets yet"),
                    Err(error) => tracing::warn!(topic = &*topic, %error, "reading the committed offsets broke off"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }

    /// Commits without waiting.
    pub fn commit(&self, positions: &[Position]) {
        if !positions.is_empty() {
            self.done("commit", self.consumer.commit(&self.noted(positions), CommitMode::Async));
            positions.iter().for_each(|p| p.offset.into_iter().for_each(|offset| self.lag().done(p.partition, offset)));
        }
    }

    /// Commits, waits for it, and leaves the group; the stream must be gone.
    pub async fn leave(self, positions: &[Position]) {
        let list = (!positions.is_empty()).then(|| self.noted(positions));
        let topic = self.topic.clone();
        let leaving = tokio::task::spawn_blocking(move || {
            if let Some(list) = list {
                self.done("commit", self.consumer.commit(&list, CommitMode::Sync));
            }
            drop(self);
        });
        if tokio::time::timeout(LEAVE_TIMEOUT, leaving).await.is_err() {
            tracing::warn!(
                topic = &*topic,
                "leaving the consumer group takes too long; the broker will notice by itself"
            );
        }
    }

    /// What to do about an error in the stream.
    ///
    /// # Errors
    /// [`Error::Broken`] when the client cannot recover; everything else is logged, and librdkafka tries again.
    pub fn check(&self, error: KafkaError) -> Result<(), Error> {
        match error {
            KafkaError::MessageConsumptionFatal(_) => {
                Err(Error::Broken { topic: self.topic.to_string(), source: error })
            }
            _ => {
                tracing::warn!(topic = &*self.topic, %error, "reading is disturbed");
                Ok(())
            }
        }
    }

    fn lag(&self) -> &Lag {
        &self.consumer.context().lag
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, partitions: impl IntoIterator<Item = (i32, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in partitions {
            let mut element = list.add_partition(&self.topic, partition);
            // Only an offset below zero is refused, and none is.
            let _ = element.set_offset(offset);
        }
        list
    }

    fn noted(&self, positions: &[Position]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for position in positions {
            let Some(offset) = position.offset else { continue };
            let mut element = list.add_partition(&self.topic, position.partition);
            if element.set_offset(Offset::Offset(offset)).is_ok() && !position.note.is_empty() {
                element.set_metadata(&position.note);
            }
        }
        list
    }

    fn done(&self, what: &'static str, result: KafkaResult<()>) {
        if let Err(error) = result {
            // A lost assignment: the next change says what holds.
            tracing::warn!(topic = &*self.topic, %error, "{what} was refused");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Closing waits until every change is answered, so those that nobody answered are answered first.
        let context = self.consumer.context().clone();
        context.leaving.store(true, Ordering::Release);
        let unanswered = self.reading().unanswered.take();
        let noted = std::mem::take(&mut *context.changes.lock().unwrap_or_else(PoisonError::into_inner));
        for change in unanswered.into_iter().chain(noted) {
            match change {
                Change::Assigned(partitions) => self.assign_committed(&partitions),
                Change::Revoked(partitions) => self.unassign(&partitions),
            }
        }
    }
}

fn committed(consumer: &StreamConsumer<Context>, topic: &str, partitions: &[i32]) -> Result<Vec<Position>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, *partition);
    }
    let list = consumer.committed_offsets(list, COMMITTED_TIMEOUT)?;
    let positions = list.elements().into_iter().map(|element| {
        element.error()?;
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        Ok(Position { partition: element.partition(), offset, note: element.metadata().to_owned() })
    });
    positions.collect()
}

/// Whether records are taken. While there is no room they are left unpolled; after two seconds the partitions are paused
/// and polling goes on, so that a rebalance never waits for a reader that waits for somebody else. (Pausing at once would
/// throw away what is fetched each time that a batch is full.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    Shut { since: Instant },
    Paused,
}

impl Gate {
    /// Call with each turn of the loop.
    pub fn update(&mut self, member: &Member, room: bool) {
        *self = match (*self, room) {
            (Self::Open | Self::Shut { .. }, true) => Self::Open,
            (Self::Paused, true) => {
                member.resume_all();
                Self::Open
            }
            (Self::Open, false) => Self::Shut { since: Instant::now() },
            (Self::Shut { since }, false) if since.elapsed() >= UNPOLLED_MAX => {
                member.pause_all();
                Self::Paused
            }
            (same, false) => same,
        }
    }

    /// Whether the stream is to be polled.
    pub const fn polls(self) -> bool {
        matches!(self, Self::Open | Self::Paused)
    }

    /// Gives the reader what came from the stream, and while it has room, what is there already.
    pub fn take<'a>(
        self,
        member: &Member,
        stream: &mut MessageStream<'a, Context>,
        came: Option<KafkaResult<BorrowedMessage<'a>>>,
        reader: &mut impl Reader,
    ) -> Result<(), Error> {
        let (mut next, mut taken) = (came, 0);
        while let Some(received) = next {
            match received {
                Ok(message) => reader.record(member, Received::of(&message)),
                Err(error) => member.check(error)?,
            }
            taken += 1;
            if taken == BURST_MAX || self != Self::Open || !reader.has_room() {
                break;
            }
            next = stream.next().now_or_never().flatten();
        }
        Ok(())
    }
}

/// What a [`Gate`] gives records to.
pub trait Reader {
    /// Whether a further record is wanted.
    fn has_room(&self) -> bool;

    fn record(&mut self, member: &Member, record: Received<'_>);
}
