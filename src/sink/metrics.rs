//! What a sink counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::Metrics;
use crate::telemetry::metrics::WORK_SECONDS;
use crate::telemetry::values::Age;

#[derive(Clone)]
pub struct Counters {
    pub rows: Counter,
    pub batches: Counter,
    pub failures: Counter,
    pub dead_letters: Counter,
    pub stopped: Counter,
    pub insert_seconds: Histogram,
    pub waiting: Gauge,
    pub behind: Age,
}

impl Counters {
    pub fn register(metrics: &Metrics, prefix: &'static str) -> Self {
        let of = metrics.scope(prefix);
        let insert = "From the first try of a batch to its acknowledgement";
        let behind = "Age of the oldest record in hand whose row ClickHouse has not acknowledged";
        Self {
            rows: of.counter("rows", "Rows that ClickHouse acknowledged"),
            batches: of.counter("batches", "Batches that were written"),
            failures: of.counter("insert_failures", "Inserts that failed and were tried again"),
            dead_letters: of.counter("dead_letters", "Records that could not be read and were put aside"),
            stopped: of.counter("partitions_stopped", "Partitions that stopped at a record"),
            insert_seconds: of.histogram("insert_seconds", insert, &WORK_SECONDS),
            waiting: of.gauge("waiting_rows", "Rows in hand that ClickHouse has not acknowledged"),
            behind: of.metric("behind_seconds", behind, Age::default()),
        }
    }
}
