//! usage and journal -> ClickHouse: one row per posting, and per fact that has a table, in batches by rows or time.
//!
//! Every row arrives at least once, and `ReplacingMergeTree` with the id of its posting or fact in its key, read through
//! views with `FINAL`, makes that exactly once. `reader` is the loop, `usage` and `events` say what is read and what
//! becomes of it.

mod batch;
mod condition;
pub mod events;
mod metrics;
pub mod migrations;
mod reader;
pub mod retention;
mod row;
mod usage;
pub mod writer;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::causes::causes;
use crate::codec::Codec;
use crate::config;
use crate::runtime::member;
use crate::runtime::publisher::Publisher;
use crate::telemetry::Metrics;
use crate::telemetry::health::Health;
use metrics::Counters;
pub(crate) use writer::{bounded, client};

/// Name of the component that writes `usage`, and of its consumer group.
pub(crate) const NAME: &str = "sink";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reader(#[from] member::Error),
    #[error("clickhouse.database = {name:?}: a database is named by letters, digits and _, not beginning with a digit")]
    DatabaseName { name: String },
    #[error("the connection with clickhouse cannot be set up: {0}")]
    Tls(#[from] crate::tls::Error),
    #[error("clickhouse at {url} did not {what}: {}", causes(source))]
    ClickHouse { url: String, what: String, source: clickhouse::error::Error },
    #[error("clickhouse at {url} did not {what} within {timeout_ms} ms")]
    Timeout { url: String, what: String, timeout_ms: u64 },
    #[error(
        "migration {number} ({name}) was changed after it had been applied to the database {database}; \
         put it back, and write the change as a new migration"
    )]
    ChangedMigration { number: u32, name: String, database: String },
}

/// Registers the metrics of both sinks, for those who list them.
pub(crate) fn register(metrics: &Metrics) {
    Counters::register(metrics, "tollstream_sink");
    Counters::register(metrics, "tollstream_events");
}

/// What a sink needs.
#[derive(Clone)]
pub struct Options {
    pub kafka: config::Kafka,
    /// Name of this process among all.
    pub instance: String,
    pub sink: config::Sink,
    pub clickhouse: config::ClickHouse,
    /// Most bytes of a dead letter's payload that are kept.
    pub dead_letter_bytes_max: usize,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub health: Health,
    pub metrics: Metrics,
    pub cancel: CancellationToken,
}

/// Writes the partitions of `usage` that the consumer group gives this process until `cancel`; then writes what it holds,
/// commits and leaves the group.
///
/// # Errors
/// Only what a new start may heal: the Kafka client could not be made, or is broken; or a wrong configuration.
/// ClickHouse being away is no error: it is waited for.
pub async fn run(options: Options) -> Result<(), Error> {
    let counters = Counters::register(&options.metrics, "tollstream_sink");
    let source = usage::Usage::new(&options);
    reader::run(options, source, counters).await
}
