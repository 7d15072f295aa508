//! What the facade counts. No request ids and no organizations: a label has few values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::hub::Cancelled;

/// Seconds; the floor of a request through Kafka is about a millisecond.
const FIRST_FRAME_BUCKETS: [f64; 16] =
    [0.001, 0.0015, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

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

impl Outcome {
    const ALL: [Self; 5] = [Self::Ok, Self::ClientError, Self::ServerError, Self::StreamError, Self::Abandoned];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "2xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::StreamError => "stream_error",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Handles to the facade's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    requests: [Counter; Outcome::ALL.len()],
    cancels: [Counter; Cancelled::ALL.len()],
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
        metrics.register(|registry| Self::registered(registry.sub_registry_with_prefix("tollstream_facade")))
    }

    /// Metrics that nobody reads.
    #[cfg(test)]
    pub fn unregistered() -> Self {
        Self::registered(&mut Registry::default())
    }

    fn registered(registry: &mut Registry) -> Self {
        let requests = Family::<OutcomeLabel, Counter>::default();
        let cancels = Family::<ReasonLabel, Counter>::default();
        let inner = Inner {
            requests: Outcome::ALL.map(|o| requests.get_or_create(&OutcomeLabel { outcome: o.as_str() }).clone()),
            cancels: Cancelled::ALL.map(|c| cancels.get_or_create(&ReasonLabel { reason: c.as_str() }).clone()),
            in_flight: Gauge::default(),
            first_frame: Histogram::new(FIRST_FRAME_BUCKETS),
            slots_bytes: Gauge::default(),
            laggards: Counter::default(),
            replays: Counter::default(),
            resumes: Counter::default(),
            readers: Gauge::default(),
            read_records: Counter::default(),
            foreign_frames: Counter::default(),
            undecodable_frames: Counter::default(),
            lost_cancels: Counter::default(),
        };
        registry.register("requests", "Chat requests by how their response ended", requests);
        registry.register("cancels", "Requests cancelled from here, by reason", cancels);
        registry.register("in_flight", "Chat requests under way", inner.in_flight.clone());
        let help = "From the request's headers to the first frame of its answer";
        let unit = prometheus_client::registry::Unit::Seconds;
        registry.register_with_unit("first_frame", help, unit, inner.first_frame.clone());
        registry.register("slots_bytes", "Bytes of answers that wait for clients", inner.slots_bytes.clone());
        let help = "Clients that took too little and went on from the log";
        registry.register("laggards", help, inner.laggards.clone());
        let help = "Requests that were asked before, and whose first answer was given again";
        registry.register("replays", help, inner.replays.clone());
        registry.register("resumes", "Streams that were gone on with behind an event", inner.resumes.clone());
        registry.register("catch_up_readers", "Answers that are read from the log", inner.readers.clone());
        registry.register("catch_up_records", "Records that were read again for them", inner.read_records.clone());
        registry.register("foreign_frames", "Frames that nobody here waits for", inner.foreign_frames.clone());
        let help = "Records on responses that are no frames";
        registry.register("undecodable_frames", help, inner.undecodable_frames.clone());
        registry.register("lost_cancels", "Cancels that Kafka did not take", inner.lost_cancels.clone());
        Self(Arc::new(inner))
    }

    pub fn ended(&self, outcome: Outcome) {
        self.0.requests[outcome as usize].inc();
    }

    pub fn cancelled(&self, reason: Cancelled) {
        self.0.cancels[reason as usize].inc();
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
