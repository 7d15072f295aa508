//! The facade's edge to Kafka: requests out through the process's producer, frames in from its own partition of `responses`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frames::Decoder;
use super::hub::{Bus, Hub, Sending};
use super::sse::Position;
use crate::failpoint::{Failpoint, reached};
use crate::runtime::lag::Tail;
use crate::runtime::publisher::{self, Deliveries, Outgoing, Publisher};
use crate::telemetry::health::Health;

/// The name under which the listening is reported to health.
pub const COMPONENT: &str = "facade.responses";
/// How long Kafka may take to say where the partition ends.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(5);
/// Waits between attempts to reach Kafka or the registry: first, and at the most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The consumer is looked at this often even when nothing wakes it: wake-ups have been lost.
const TICK: Duration = Duration::from_secs(1);
/// Frames after which other tasks of the thread have their turn.
const FRAMES_PER_TURN: u32 = 128;
/// How long closing the consumer may take before it is left alone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often acknowledgements are looked at that nobody was woken for.
const DELIVERIES_LOOK: Duration = Duration::from_millis(500);

/// Sends to `requests`.
pub struct Producer {
    pub publisher: Publisher,
    pub topic: String,
    pub deliveries: Acknowledgements,
}

/// Where acknowledgements come.
#[derive(Clone)]
pub struct Acknowledgements {
    /// Of what nobody waits for: good news wakes nobody.
    pub lazy: Arc<Deliveries>,
    pub prompt: Arc<Deliveries>,
}

impl Acknowledgements {
    pub fn new() -> Self {
        Self { lazy: Deliveries::lazy(), prompt: Deliveries::new() }
    }
}

impl Bus for Producer {
    fn send(&self, sending: Sending<'_>) -> Result<(), publisher::Error> {
        let Sending { partition, key, payload, tag, is_awaited, traceparent } = sending;
        let deliveries = if is_awaited { &self.deliveries.prompt } else { &self.deliveries.lazy };
        reached(Failpoint::BeforeRequest);
        let outgoing = Outgoing { topic: &self.topic, partition, key, payload };
        let sent = self.publisher.send_traced(outgoing, traceparent, deliveries, tag);
        reached(Failpoint::AfterRequest);
        sent
    }

    fn acknowledges(&self) -> bool {
        self.publisher.acknowledges()
    }
}

/// Gives acknowledgements to the hub until `end`; no request is admitted after `stop`.
pub async fn take_deliveries(
    hub: Arc<Hub>,
    deliveries: Acknowledgements,
    stop: CancellationToken,
    end: CancellationToken,
) {
    let (mut arrived, mut awaited) = (Vec::new(), Vec::new());
    let mut stopped = false;
    let mut look = tokio::time::interval(DELIVERIES_LOOK);
    loop {
        tokio::select! {
            biased;
            () = deliveries.prompt.drain(&mut awaited) => {}
            () = deliveries.lazy.drain(&mut arrived) => {}
            // Good news wakes nobody; this does.
            _ = look.tick() => {}
            () = stop.cancelled(), if !stopped => {
                stopped = true;
                hub.stop_admitting();
            }
            () = end.cancelled() => return,
        }
        for delivery in awaited.drain(..).chain(arrived.drain(..)) {
            reached(Failpoint::RequestAcknowledged);
            hub.delivered(&delivery);
        }
        hub.look(Instant::now());
    }
}

/// Reads the facade's partition of `responses`, from its end at start on.
pub struct Reader {
    pub hub: Arc<Hub>,
    pub consumer: Arc<StreamConsumer<Tail>>,
    pub topic: String,
    pub partition: i32,
    pub decoder: Decoder,
    pub health: Health,
}

impl Reader {
    pub async fn run(self, end: CancellationToken) {
        tokio::select! {
            biased;
            () = end.cancelled() => {}
            () = self.read() => {}
        }
        self.health.forget(COMPONENT);
        // Closing a consumer blocks, and may do so for long.
        let consumer = self.consumer;
        let closing = tokio::task::spawn_blocking(move || drop(consumer));
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!(topic = self.topic, "the consumer did not close in time");
        }
    }

    async fn read(&self) {
        self.assign().await;
        self.hub.listening();
        self.health.ready(COMPONENT);
        tracing::info!(topic = self.topic, partition = self.partition, "listening for answers");
        let mut messages = self.consumer.stream();
        let mut tick = tokio::time::interval(TICK);
        let mut turn = 0;
        loop {
            tokio::select! {
                biased;
                message = messages.next() => match message {
                    Some(Ok(message)) => self.take(&message).await,
                    Some(Err(error)) => self.failed(&error),
                    // A consumer's stream has no end.
                    None => return,
                },
                _ = tick.tick() => {}
            }
            turn += 1;
            if turn % FRAMES_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Begins at the end of the partition: what comes later is read whole, what is older belongs to nobody here.
    async fn assign(&self) {
        let mut wait = RETRY_MIN;
        loop {
            match self.end_of_partition().await {
                Ok(offset) => {
                    let mut assignment = TopicPartitionList::with_capacity(1);
                    let assigned = assignment
                        .add_partition_offset(&self.topic, self.partition, Offset::Offset(offset))
                        .and_then(|()| self.consumer.assign(&assignment));
                    match assigned {
                        Ok(()) => return,
                        Err(error) => self.missing(&error),
                    }
                }
                Err(error) => self.missing(&error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn end_of_partition(&self) -> Result<i64, KafkaError> {
        let (consumer, topic, partition) = (self.consumer.clone(), self.topic.clone(), self.partition);
        let asked =
            tokio::task::spawn_blocking(move || consumer.fetch_watermarks(&topic, partition, WATERMARK_TIMEOUT));
        let (_, high) = asked.await.map_err(|_| KafkaError::Canceled)??;
        Ok(high)
    }

    fn missing(&self, error: &KafkaError) {
        let hint = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition) => {
                "; run `tollstream topology apply`"
            }
            _ => "",
        };
        let why = format!("cannot listen to {} partition {}: {error}{hint}", self.topic, self.partition);
        tracing::warn!("{why}");
        self.health.missing(COMPONENT, why);
    }

    fn failed(&self, error: &KafkaError) {
        // librdkafka goes on by itself, and says so once per broken connection.
        tracing::warn!(topic = self.topic, partition = self.partition, %error, "reading answers was interrupted");
    }

    /// One record. An unknown schema holds the partition for a few seconds, since all answers wait behind it; what is no
    /// frame is counted and passed over.
    async fn take(&self, message: &BorrowedMessage<'_>) {
        reached(Failpoint::FrameReceived);
        let at = Position { partition: message.partition(), offset: message.offset() };
        let payload = message.payload().unwrap_or_default();
        let error = match self.decoder.frame(payload).await {
            Ok(frame) => return self.hub.frame(at, &frame),
            Err(error) => error,
        };
        self.hub.metrics().undecodable_frame();
        tracing::warn!(topic = self.topic, partition = at.partition, offset = at.offset, error, "a record is no frame");
    }
}
