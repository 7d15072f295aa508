//! What the projection counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::Metrics;

pub struct Counters {
    pub records: Counter,
    pub postings: Counter,
    pub ineffective: Counter,
    pub refused: Counter,
    pub stopped: Counter,
    pub in_flight: Gauge,
}

impl Counters {
    pub fn register(metrics: &Metrics) -> Self {
        let of = metrics.scope("tollstream_projection");
        Self {
            records: of.counter("journal_records", "Journal records that were read"),
            postings: of.counter("postings", "Usage records that Kafka acknowledged"),
            ineffective: of.counter("ineffective_commits", "Commits of former owners"),
            refused: of.counter("refused", "Usage records that Kafka did not take at once"),
            stopped: of.counter("partition_stops", "Partitions that stopped at a record"),
            in_flight: of.gauge("unacknowledged_records", "Usage records that wait for Kafka"),
        }
    }
}
