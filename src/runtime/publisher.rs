//! The one producer of the process: idempotent, shared by all topics and all components.
//!
//! Acknowledgements come back as numbers in the sender's own [`Deliveries`], which wakes it; the producer's events are
//! taken by one task that librdkafka wakes (a future per record, polling with a time-out or a thread of its own costs
//! throughput, a spinning core or a switch of threads). Records to one partition are acknowledged in the order in which
//! they were sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message as _, Statistics};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::kafka;
use super::queue_waker::QueueWaker;
use crate::config::Kafka;
use crate::records::Topic;
use crate::telemetry::Metrics;
use crate::telemetry::health::Health;
use crate::telemetry::labels::{Closed, Label};
use crate::telemetry::metrics::STEP_SECONDS;

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
    sent_at: Instant,
    /// One of ours.
    topic: Option<Topic>,
}

impl Label for Topic {
    const NAME: &'static str = "topic";
    const VALUES: &'static [Self] = &Self::ALL;

    fn value(self) -> &'static str {
        self.name()
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// W3C's name for the header that says of which trace a record is.
const TRACEPARENT: &str = "traceparent";

/// What is measured of the producer.
struct Measures {
    prefix: String,
    acknowledged: Closed<Topic, Histogram>,
    failed: Closed<Topic, Counter>,
}

/// Registers the producer's metrics.
pub(crate) fn register(
    metrics: &Metrics,
    in_flight: &Gauge<u64, AtomicU64>,
) -> (Closed<Topic, Histogram>, Closed<Topic, Counter>) {
    let of = metrics.scope("tollstream_kafka");
    let acknowledged = "From sending a record to its acknowledgement by all replicas, by topic";
    of.metric("unacknowledged_records", "Records that wait for their acknowledgement", in_flight.clone());
    (
        of.histograms("acknowledgement_seconds", acknowledged, &STEP_SECONDS),
        of.counters("failures", "Records that Kafka did not acknowledge, by topic"),
    )
}

/// Takes what librdkafka tells.
struct Reports {
    /// Acknowledgements and errors taken so far: polling takes one event, and does not say whether there was one.
    taken: AtomicU64,
    begun: Instant,
    in_flight: Gauge<u64, AtomicU64>,
    measures: OnceLock<Measures>,
    /// When a broker last answered, or a record was sent while none was in flight; milliseconds since `begun`.
    progress_ms: AtomicU64,
    /// A record waited in vain, and no broker has answered since.
    timed_out: AtomicBool,
    /// As [`watch`] saw it last.
    acknowledges: AtomicBool,
}

impl Reports {
    fn new() -> Self {
        Self {
            taken: AtomicU64::default(),
            begun: Instant::now(),
            in_flight: Gauge::default(),
            measures: OnceLock::new(),
            progress_ms: AtomicU64::default(),
            timed_out: AtomicBool::default(),
            acknowledges: AtomicBool::new(true),
        }
    }

    fn sent(&self) {
        if self.in_flight.inc() == 0 {
            self.progressed();
        }
    }

    fn progressed(&self) {
        self.progress_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    fn answered(&self) {
        self.progressed();
        self.timed_out.store(false, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms().saturating_sub(self.progress_ms.load(Ordering::Relaxed)))
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn count(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        self.count();
        tracing::warn!(%error, reason, "the producer's connection");
    }

    /// Whoever asks for them in `kafka.properties` gets those of the consumers; these are no news.
    fn stats(&self, _: Statistics) {
        self.count();
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        self.count();
        self.in_flight.dec();
        let outcome = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        match outcome.as_ref().err().and_then(KafkaError::rdkafka_error_code) {
            Some(RDKafkaErrorCode::MessageTimedOut) => self.timed_out.store(true, Ordering::Relaxed),
            // Also a refusal of this record is an answer.
            _ => self.answered(),
        }
        if let (Some(measures), Some(topic)) = (self.measures.get(), ticket.topic) {
            match outcome {
                Ok(_) => measures.acknowledged.of(topic).observe(ticket.sent_at.elapsed().as_secs_f64()),
                Err(_) => _ = measures.failed.of(topic).inc(),
            }
        }
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

/// Acknowledgements are looked for this often even when nothing wakes: a lost wake-up must not be for ever.
const LOOK: Duration = Duration::from_secs(1);
/// Events after which other tasks of the thread have their turn.
const EVENTS_PER_TURN: usize = 64;

/// Takes all acknowledgements of the producer.
async fn take_events(events: QueueWaker<Reports>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    std::future::poll_fn(|cx| {
        events.register(cx.waker());
        while look.poll_tick(cx).is_ready() {}
        let producer = events.producer();
        for _ in 0..EVENTS_PER_TURN {
            let before = producer.context().taken.load(Ordering::Relaxed);
            producer.poll(Duration::ZERO);
            // A log line or statistics may be what was taken, and nothing is counted then: acknowledgements wait behind them,
            // and nobody is woken for these before the queue was empty.
            if producer.context().taken.load(Ordering::Relaxed) == before && events.is_empty() {
                return Poll::<()>::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The name under which the producer's health is reported.
const COMPONENT: &str = "kafka";
/// Records that wait for so long without one being acknowledged make the process unready.
const STALLED_AFTER: Duration = Duration::from_secs(3);
/// How often that is looked at.
const STALLED_LOOK: Duration = Duration::from_millis(500);
/// While nothing is sent, Kafka is asked for a topic this often, and how long it may take to answer.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Reports to `health` whether Kafka acknowledges what is sent, until `end`. Where nothing is on its way that would tell,
/// it is asked for `topic`, so that a process that refuses requests meanwhile finds out when it may take them again.
pub async fn watch(publisher: Publisher, topic: String, health: Health, end: CancellationToken) {
    let watching = async {
        let mut look = tokio::time::interval(STALLED_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let trouble = publisher.trouble(&topic).await;
            publisher.producer.context().acknowledges.store(trouble.is_none(), Ordering::Relaxed);
            match trouble {
                None => health.ready(COMPONENT),
                Some(why) => health.missing(COMPONENT, why),
            }
        }
    };
    let _: Option<()> = end.run_until_cancelled(watching).await;
    health.forget(COMPONENT);
}

/// A handle to the producer; clones share it.
#[derive(Clone)]
pub struct Publisher {
    producer: Arc<BaseProducer<Reports>>,
    /// The last handle ends the task of the acknowledgements.
    _events: Arc<JoinSet<()>>,
}

impl Publisher {
    /// Needs a tokio runtime, in which acknowledgements are taken.
    pub fn new(config: &Kafka) -> Result<Self, Error> {
        let producer: BaseProducer<Reports> = kafka::producer(config)
            .create_with_context(Reports::new())
            .map_err(|e| Error::Create { brokers: config.brokers.clone(), detail: e.to_string() })?;
        let producer = Arc::new(producer);
        let mut events = JoinSet::new();
        events.spawn(take_events(QueueWaker::new(producer.clone())));
        Ok(Self { producer, _events: Arc::new(events) })
    }

    /// Measures what it sends to the topics that begin with the configured prefix.
    pub fn measure(&self, metrics: &Metrics, config: &Kafka) {
        let reports = self.producer.context();
        let (acknowledged, failed) = register(metrics, &reports.in_flight);
        // The first who asks has it; there is one process.
        let _ = reports.measures.set(Measures { prefix: config.topic_prefix.clone(), acknowledged, failed });
    }

    /// Hands a record to the producer; `tag` comes back through `deliveries` exactly once.
    ///
    /// # Errors
    /// [`Error::Full`] when the bound on waiting records is reached; then nothing comes back.
    pub fn send(&self, record: Outgoing<'_>, deliveries: &Arc<Deliveries>, tag: u64) -> Result<(), Error> {
        self.send_traced(record, None, deliveries, tag)
    }

    /// The same, with a header that says of which trace the record is.
    pub fn send_traced(
        &self,
        record: Outgoing<'_>,
        traceparent: Option<&str>,
        deliveries: &Arc<Deliveries>,
        tag: u64,
    ) -> Result<(), Error> {
        self.produce(record, Some(record.payload), traceparent, self.ticket(record, deliveries, tag, false))
    }

    /// Sends a record without a value: on a compacted topic, the end of what has this key. Otherwise as
    /// [`send`](Self::send).
    pub fn send_tombstone(&self, record: Outgoing<'_>, deliveries: &Arc<Deliveries>, tag: u64) -> Result<(), Error> {
        self.produce(record, None, None, self.ticket(record, deliveries, tag, false))
    }

    /// As [`send`](Self::send), but `tag` comes back only if the record was not acknowledged.
    pub fn send_telling_failures(
        &self,
        record: Outgoing<'_>,
        deliveries: &Arc<Deliveries>,
        tag: u64,
    ) -> Result<(), Error> {
        self.produce(record, Some(record.payload), None, self.ticket(record, deliveries, tag, true))
    }

    fn ticket(&self, to: Outgoing<'_>, deliveries: &Arc<Deliveries>, tag: u64, failures_only: bool) -> Ticket {
        let measures = self.producer.context().measures.get();
        let topic = measures.and_then(|of| Topic::from_name(to.topic.strip_prefix(of.prefix.as_str())?));
        Ticket { deliveries: deliveries.clone(), tag, failures_only, sent_at: Instant::now(), topic }
    }

    fn produce(
        &self,
        record: Outgoing<'_>,
        payload: Option<&[u8]>,
        traceparent: Option<&str>,
        ticket: Ticket,
    ) -> Result<(), Error> {
        let mut outgoing =
            BaseRecord::with_opaque_to(record.topic, Box::new(ticket)).partition(record.partition).key(record.key);
        outgoing.payload = payload;
        outgoing.headers =
            traceparent.map(|of| OwnedHeaders::new().insert(Header { key: TRACEPARENT, value: Some(of) }));
        let reports = self.producer.context();
        reports.sent();
        self.producer.send(outgoing).map_err(|(error, _)| {
            reports.in_flight.dec();
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Error::Full,
                error => Error::Kafka(error),
            }
        })
    }

    /// For how long records have been waiting without one being acknowledged; nothing while none waits.
    pub fn stalled(&self) -> Duration {
        let reports = self.producer.context();
        match reports.in_flight.get() {
            0 => Duration::ZERO,
            _ => reports.silence(),
        }
    }

    /// Whether records are acknowledged at present, as far as is known.
    pub fn acknowledges(&self) -> bool {
        self.producer.context().acknowledges.load(Ordering::Relaxed)
    }

    /// Why a record could not be expected to be acknowledged, if so.
    async fn trouble(&self, topic: &str) -> Option<String> {
        let reports = self.producer.context();
        let (stalled, timed_out) = (self.stalled(), reports.timed_out.load(Ordering::Relaxed));
        if stalled >= STALLED_AFTER {
            return Some(format!("records wait for Kafka's acknowledgement, for {} s so far", stalled.as_secs()));
        }
        if reports.in_flight.get() > 0 {
            return timed_out.then(|| "Kafka did not acknowledge records in time".to_owned());
        }
        if !timed_out && reports.silence() < ASK_EVERY {
            return None;
        }
        let (producer, topic) = (self.producer.clone(), topic.to_owned());
        let asking =
            tokio::task::spawn_blocking(move || producer.client().fetch_metadata(Some(&topic), ASK_TIMEOUT).map(drop));
        match asking.await {
            Ok(Ok(())) => {
                reports.answered();
                None
            }
            Ok(Err(error)) => Some(format!("Kafka does not answer: {error}")),
            Err(_) => None,
        }
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
