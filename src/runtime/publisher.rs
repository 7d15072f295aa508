//! The one producer of the process: idempotent, shared by all topics and all components.
//!
//! Acknowledgements come back as numbers in the sender's own [`Deliveries`], which wakes it; the producer's events are
//! taken by one thread that blocks until there is one (a future per record, or polling with a time-out, costs a third of
//! the throughput or a spinning core). Records to one partition are acknowledged in the order in which they were sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message as _};

use super::kafka;
use crate::config::Kafka;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("cannot make a Kafka producer for {brokers}: {detail}")]
    Create { brokers: String, detail: String },
    /// The bound on waiting records is reached: the caller is told to come back later.
    #[error("too much waits for Kafka's acknowledgement")]
    Full,
    #[error("kafka did not take the record: {0}")]
    Kafka(KafkaError),
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The sender's own number.
    pub tag: u64,
    /// The offset, or why there is none. After an error the record may be on the topic all the same.
    pub outcome: Result<i64, KafkaError>,
}

/// Where a sender gets its acknowledgements.
#[derive(Default)]
pub struct Deliveries {
    arrived: Mutex<Vec<Delivery>>,
    waker: AtomicWaker,
    lazy: bool,
}

/// Good news that a lazy receiver is not woken for, at the most.
const LAZY_MAX: usize = 256;

impl Deliveries {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// For a receiver that also looks from time to time: an error wakes it at once, a success only when many wait. A
    /// wake-up costs more than everything else about an acknowledgement.
    pub fn lazy() -> Arc<Self> {
        Arc::new(Self { lazy: true, ..Self::default() })
    }

    /// Moves what has arrived into `into`; pending when there is nothing, and then the task is woken by the next.
    pub fn poll_drain(&self, cx: &mut Context<'_>, into: &mut Vec<Delivery>) -> Poll<()> {
        self.waker.register(cx.waker());
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        if arrived.is_empty() {
            return Poll::Pending;
        }
        into.append(&mut arrived);
        Poll::Ready(())
    }

    /// Waits for acknowledgements and moves them into `into`.
    pub async fn drain(&self, into: &mut Vec<Delivery>) {
        std::future::poll_fn(|cx| self.poll_drain(cx, into)).await;
    }

    fn push(&self, delivery: Delivery) {
        let urgent = !self.lazy || delivery.outcome.is_err();
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.push(delivery);
        let wake = urgent || arrived.len() >= LAZY_MAX;
        drop(arrived);
        if wake {
            self.waker.wake();
        }
    }
}

/// Travels with a record through librdkafka.
struct Ticket {
    deliveries: Arc<Deliveries>,
    tag: u64,
    /// Only a failure is told.
    failures_only: bool,
}

struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let outcome = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        if ticket.failures_only && outcome.is_ok() {
            return;
        }
        ticket.deliveries.push(Delivery { tag: ticket.tag, outcome });
    }
}

/// A record to send.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub key: &'a [u8],
    pub payload: &'a [u8],
}

/// How often the thread of the acknowledgements looks whether it is still wanted. It wakes for events at once; the
/// time-out only bounds its life after the last handle, and costs a spin of a millisecond each time.
const END_CHECK: Duration = Duration::from_secs(10);

#[derive(Default)]
struct End(AtomicBool);

struct EndOnDrop(Arc<End>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A handle to the producer; clones share it.
#[derive(Clone)]
pub struct Publisher {
    producer: Arc<BaseProducer<Reports>>,
    /// The last handle ends the thread of the acknowledgements.
    _end: Arc<EndOnDrop>,
}

impl Publisher {
    pub fn new(config: &Kafka) -> Result<Self, Error> {
        let create = |detail: String| Error::Create { brokers: config.brokers.clone(), detail };
        let producer: BaseProducer<Reports> =
            kafka::producer(config).create_with_context(Reports).map_err(|e| create(e.to_string()))?;
        let producer = Arc::new(producer);
        let events = producer.clone();
        let end = Arc::new(End::default());
        let ended = end.clone();
        std::thread::Builder::new()
            .name("kafka-acks".into())
            .spawn(move || {
                while !ended.0.load(Ordering::Relaxed) {
                    events.poll(END_CHECK);
                }
            })
            .map_err(|e| create(e.to_string()))?;
        Ok(Self { producer, _end: Arc::new(EndOnDrop(end)) })
    }

    /// Hands a record to the producer; `tag` comes back through `deliveries` exactly once.
    ///
    /// # Errors
    /// [`Error::Full`] when the bound on waiting records is reached; then nothing comes back.
    pub fn send(&self, record: Outgoing<'_>, deliveries: &Arc<Deliveries>, tag: u64) -> Result<(), Error> {
        self.produce(record, Ticket { deliveries: deliveries.clone(), tag, failures_only: false })
    }

    /// As [`send`](Self::send), but `tag` comes back only if the record was not acknowledged.
    pub fn send_telling_failures(
        &self,
        record: Outgoing<'_>,
        deliveries: &Arc<Deliveries>,
        tag: u64,
    ) -> Result<(), Error> {
        self.produce(record, Ticket { deliveries: deliveries.clone(), tag, failures_only: true })
    }

    fn produce(&self, record: Outgoing<'_>, ticket: Ticket) -> Result<(), Error> {
        let ticket = Box::new(ticket);
        let outgoing = BaseRecord::with_opaque_to(record.topic, ticket)
            .partition(record.partition)
            .key(record.key)
            .payload(record.payload);
        self.producer.send(outgoing).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Error::Full,
            error => Error::Kafka(error),
        })
    }

    /// The error after which this producer can send nothing any more, if there was one.
    pub fn fatal_error(&self) -> Option<KafkaError> {
        self.producer.client().fatal_error().map(|(code, _)| KafkaError::MessageProduction(code))
    }

    /// Waits until everything sent is acknowledged or failed, at most for `timeout`; blocks.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.producer.flush(timeout).is_ok()
    }
}
