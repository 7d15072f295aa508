//! What the facade counts. No request ids and no organizations: a label has few values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::hub::Cancelled;
use crate::telemetry::labels::{Bounded, Closed, LABEL_VALUES_MAX, Label};
use crate::telemetry::metrics::ANSWER_SECONDS;

/// Seconds; the floor of a request through Kafka is about a millisecond.
const FIRST_FRAME_BUCKETS: [f64; 16] =
    [0.001, 0.0015, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// How a response of the facade ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    ClientError,
    ServerError,
    /// An error after content.
    StreamError,
    /// The client went away.
    Abandoned,
}

impl Label for Outcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [Self] =
        &[Self::Ok, Self::ClientError, Self::ServerError, Self::StreamError, Self::Abandoned];

    fn value(self) -> &'static str {
        match self {
            Self::Ok => "2xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::StreamError => "stream_error",
            Self::Abandoned => "abandoned",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Cancelled {
    const NAME: &'static str = "reason";
    const VALUES: &'static [Self] = &Self::ALL;

    fn value(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Handles to the facade's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    requests: Closed<Outcome, Counter>,
    durations: Closed<Outcome, Histogram>,
    errors: Bounded<Counter>,
    cancels: Closed<Cancelled, Counter>,
    in_flight: Gauge,
    first_frame: Histogram,
    slots_bytes: Gauge<u64, AtomicU64>,
    laggards: Counter,
    replays: Counter,
    resumes: Counter,
    readers: Gauge,
    read_records: Counter,
    foreign_frames: Counter,
    undecodable_frames: Counter,
    lost_cancels: Counter,
}

impl Metrics {
    /// Registers the metrics under names that begin with `tollstream_facade`.
    pub fn register(metrics: &crate::telemetry::Metrics) -> Self {
        let of = metrics.scope("tollstream_facade");
        let errors =
            of.family("errors", &["code"], "Chat requests that ended in an error, by its code", Counter::default);
        let counted = move |code: &str| errors.get_or_create(&vec![("code", code.to_owned())]).clone();
        let duration = "From a chat request's headers to the end of its response, by how that ended";
        let first_frame = "From a chat request's headers to the first frame of its answer";
        let replays = "Requests that were asked before, and whose first answer was given again";
        Self(Arc::new(Inner {
            requests: of.counters("requests", "Chat requests by how their response ended"),
            durations: of.histograms("request_duration_seconds", duration, &ANSWER_SECONDS),
            errors: Bounded::new(LABEL_VALUES_MAX, counted),
            cancels: of.counters("cancels", "Requests cancelled from here, by reason"),
            in_flight: of.gauge("requests_in_flight", "Chat requests under way"),
            first_frame: of.histogram("first_frame_seconds", first_frame, &FIRST_FRAME_BUCKETS),
            slots_bytes: of.metric("slots_bytes", "Bytes of answers that wait for clients", Gauge::default()),
            laggards: of.counter("laggards", "Clients that took too little and went on from the log"),
            replays: of.counter("replays", replays),
            resumes: of.counter("resumes", "Streams that were gone on with behind an event"),
            readers: of.gauge("catch_up_readers", "Answers that are read from the log"),
            read_records: of.counter("catch_up_records", "Records that were read again for them"),
            foreign_frames: of.counter("foreign_frames", "Frames that nobody here waits for"),
            undecodable_frames: of.counter("undecodable_frames", "Records on responses that are no frames"),
            lost_cancels: of.counter("lost_cancels", "Cancels that Kafka did not take"),
        }))
    }

    /// Metrics that nobody reads.
    #[cfg(test)]
    pub fn unregistered() -> Self {
        Self::register(&crate::telemetry::Metrics::default())
    }

    /// A response ended, so long after its request's headers.
    pub fn ended(&self, outcome: Outcome, after: Duration) {
        self.0.requests.of(outcome).inc();
        self.0.durations.of(outcome).observe(after.as_secs_f64());
    }

    /// An error was given with this code.
    pub fn failed(&self, code: &str) {
        self.0.errors.with(code, Counter::inc);
    }

    pub fn cancelled(&self, reason: Cancelled) {
        self.0.cancels.of(reason).inc();
    }

    pub fn lost_cancel(&self) {
        self.0.lost_cancels.inc();
    }

    pub fn begun(&self) {
        self.0.in_flight.inc();
    }

    pub fn finished(&self) {
        self.0.in_flight.dec();
    }

    pub fn first_frame(&self, after: Duration) {
        self.0.first_frame.observe(after.as_secs_f64());
    }

    pub fn lagged(&self) {
        self.0.laggards.inc();
    }

    pub fn replayed(&self) {
        self.0.replays.inc();
    }

    pub fn resumed(&self) {
        self.0.resumes.inc();
    }

    /// So many answers are read from the log.
    pub fn readers(&self, readers: usize) {
        self.0.readers.set(i64::try_from(readers).unwrap_or(i64::MAX));
    }

    pub fn read_record(&self) {
        self.0.read_records.inc();
    }

    pub fn foreign_frame(&self) {
        self.0.foreign_frames.inc();
    }

    pub fn undecodable_frame(&self) {
        self.0.undecodable_frames.inc();
    }

    /// These bytes wait for a client.
    pub fn waiting_bytes(&self, bytes: usize) {
        self.0.slots_bytes.inc_by(bytes as u64);
    }

    /// These bytes no longer wait.
    pub fn left_bytes(&self, bytes: usize) {
        self.0.slots_bytes.dec_by(bytes as u64);
    }

    /// All bytes that wait.
    pub fn bytes_waiting(&self) -> usize {
        self.0.slots_bytes.inner().load(Ordering::Relaxed) as usize
    }
}
