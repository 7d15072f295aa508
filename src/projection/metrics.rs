//! What the projection counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::Metrics;

#[derive(Default)]
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
        let all = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("tollstream_projection");
            registry.register("records", "Journal records that were read", all.records.clone());
            registry.register("postings", "Usage records that Kafka acknowledged", all.postings.clone());
            registry.register("ineffective_commits", "Commits of former owners", all.ineffective.clone());
            registry.register("refused", "Usage records that Kafka did not take at once", all.refused.clone());
            registry.register("partitions_stopped", "Partitions that stopped at a record", all.stopped.clone());
            registry.register("in_flight", "Usage records that wait for Kafka", all.in_flight.clone());
        });
        all
    }
}
