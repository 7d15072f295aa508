//! What a sink counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::telemetry::Metrics;

#[derive(Clone)]
pub struct Counters {
    pub rows: Counter,
    pub batches: Counter,
    pub failures: Counter,
    pub dead_letters: Counter,
    pub stopped: Counter,
    pub insert_seconds: Histogram,
}

impl Counters {
    pub fn register(metrics: &Metrics, prefix: &str) -> Self {
        let all = Self {
            rows: Counter::default(),
            batches: Counter::default(),
            failures: Counter::default(),
            dead_letters: Counter::default(),
            stopped: Counter::default(),
            // 5 ms to 160 s.
            insert_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 16)),
        };
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix(prefix);
            registry.register("rows", "Rows that ClickHouse acknowledged", all.rows.clone());
            registry.register("batches", "Batches that were written", all.batches.clone());
            registry.register("insert_failures", "Inserts that failed and were tried again", all.failures.clone());
            registry.register(
                "dead_letters",
                "Records that could not be read and were put aside",
                all.dead_letters.clone(),
            );
            registry.register("partitions_stopped", "Partitions that stopped at a record", all.stopped.clone());
            let seconds = "From the first try of a batch to its acknowledgement";
            registry.register("insert_seconds", seconds, all.insert_seconds.clone());
        });
        all
    }
}
