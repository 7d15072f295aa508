//! Writes a batch, for as long as it takes: rows to ClickHouse, then dead letters to their topic.
//!
//! The batch stays with the caller until everything in it is acknowledged. Every wait has a limit of its own, since the
//! client has none, and the time between tries grows to a limit.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clickhouse::Client;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;

use super::batch::{Batch, Encoded};
use super::condition::Condition;
use super::metrics::Counters;
use super::reader::{Moment, Source};
use super::{Error, Options};
use crate::config::{self, millis};
use crate::failpoint::{Failpoint, reached};
use crate::records::Topic;
use crate::runtime::kafka;
use crate::runtime::publisher::{self, Deliveries, Outgoing, Publisher};
use crate::tls;

/// librdkafka chooses the partition by the key.
const PARTITION_BY_KEY: i32 = -1;
/// ClickHouse closes a connection that idles for 3 s; ours must go first.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// An insert that takes longer is told to health.
const SLOW_AFTER: Duration = Duration::from_secs(5);
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

pub struct Writer {
    client: Client,
    clickhouse: config::ClickHouse,
    sink: config::Sink,
    publisher: Publisher,
    dead_letters: String,
    condition: Arc<Condition>,
    counters: Counters,
}

/// A client of the configured server and database.
pub fn client(config: &config::ClickHouse) -> Result<Client, Error> {
    let name = &config.database;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Error::DatabaseName { name: name.clone() });
    }
    let client = match config.url.starts_with("https://") {
        true => encrypted(config.ca_file.as_deref())?,
        false => Client::default(),
    };
    let client = client.with_url(&config.url).with_user(&config.user);
    Ok(match &config.password {
        Some(password) => client.with_password(password.expose()),
        None => client,
    })
}

/// Connections like those that `clickhouse` makes by itself, but encrypted, with those whom the configuration trusts.
fn encrypted(ca_file: Option<&Path>) -> Result<Client, Error> {
    let mut tcp = HttpConnector::new();
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp.enforce_http(false);
    let tls = HttpsConnectorBuilder::new().with_tls_config(tls::client(ca_file)?);
    let connector = tls.https_only().enable_http1().wrap_connector(tcp);
    let mut http = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    http.pool_idle_timeout(POOL_IDLE_TIMEOUT);
    Ok(Client::with_http_client(http.build(connector)))
}

/// Bounds a call of ClickHouse by the configured time and says in its error what was being done.
pub async fn bounded<T>(
    config: &config::ClickHouse,
    what: &str,
    call: impl Future<Output = clickhouse::error::Result<T>>,
) -> Result<T, Error> {
    let (url, what) = (config.url.clone(), what.to_owned());
    match tokio::time::timeout(millis(config.timeout_ms), call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::ClickHouse { url, what, source }),
        Err(_) => Err(Error::Timeout { url, what, timeout_ms: config.timeout_ms }),
    }
}

impl Writer {
    pub fn new(options: &Options, condition: Arc<Condition>, counters: Counters) -> Result<Self, Error> {
        let client = client(&options.clickhouse)?
            .with_database(&options.clickhouse.database)
            // A batch after an outage may span many months, each of which is a partition.
            .with_setting("max_partitions_per_insert_block", "0")
            // The answer must mean that the rows are in the table.
            .with_setting("async_insert", "0");
        Ok(Self {
            client,
            clickhouse: options.clickhouse.clone(),
            sink: options.sink.clone(),
            publisher: options.publisher.clone(),
            dead_letters: kafka::topic_name(&options.kafka, Topic::DeadLetters),
            condition,
            counters,
        })
    }

    /// Returns when all of the batch is acknowledged.
    pub async fn write<S: Source>(&self, batch: &Batch<S::Item>) {
        let begun = Instant::now();
        let (mut tried, mut slow) = (0_u32, false);
        while let Err(error) = self.insert_telling::<S>(batch, &mut slow).await {
            self.failed(&error, batch.rows(), begun);
            // A new table may have other columns.
            self.client.clear_cached_metadata().await;
            tokio::time::sleep(self.wait(tried)).await;
            tried = tried.saturating_add(1);
        }
        if tried > 0 || slow {
            tracing::info!(rows = batch.rows(), tries = tried + 1, "clickhouse takes rows again");
            self.condition.writing();
        }
        if batch.rows() > 0 {
            self.counters.insert_seconds.observe(begun.elapsed().as_secs_f64());
        }
        for letter in batch.letters() {
            let mut tried = 0;
            while let Err(error) = self.put_aside(letter).await {
                tracing::warn!(topic = self.dead_letters, %error, "a dead letter was not taken; it is sent again");
                tokio::time::sleep(self.wait(tried)).await;
                tried = tried.saturating_add(1);
            }
        }
    }

    /// Inserts, and says so when ClickHouse takes long for it: it may hang, which only its time-out would tell.
    async fn insert_telling<S: Source>(&self, batch: &Batch<S::Item>, slow: &mut bool) -> Result<(), Error> {
        let mut insert = std::pin::pin!(self.insert::<S>(batch));
        if let Ok(inserted) = tokio::time::timeout(SLOW_AFTER, insert.as_mut()).await {
            return inserted;
        }
        *slow = true;
        let (rows, seconds) = (batch.rows(), SLOW_AFTER.as_secs());
        tracing::warn!(rows, seconds, "clickhouse has not taken rows yet");
        self.condition.not_writing(format!("clickhouse has not taken {rows} rows for {seconds} s"));
        insert.await
    }

    async fn insert<S: Source>(&self, batch: &Batch<S::Item>) -> Result<(), Error> {
        if batch.items().is_empty() {
            return Ok(());
        }
        S::pass(Moment::BeforeInsert);
        bounded(&self.clickhouse, "take rows", S::insert(&self.client, batch.items())).await?;
        S::pass(Moment::AfterInsert);
        Ok(())
    }

    async fn put_aside(&self, letter: &Encoded) -> Result<(), publisher::Error> {
        let deliveries = Deliveries::new();
        let topic = &self.dead_letters;
        let outgoing = Outgoing { topic, partition: PARTITION_BY_KEY, key: &letter.key, payload: &letter.payload };
        reached(Failpoint::BeforeLetter);
        self.publisher.send(outgoing, &deliveries, 0)?;
        reached(Failpoint::AfterLetter);
        let mut arrived = Vec::new();
        // Bounded by the producer's own time-out.
        deliveries.drain(&mut arrived).await;
        match arrived.into_iter().find_map(|delivery| delivery.outcome.err()) {
            Some(error) => Err(publisher::Error::Kafka(error)),
            None => Ok(()),
        }
    }

    /// From the configured least wait on, doubled with each try, to the configured most.
    fn wait(&self, tried: u32) -> Duration {
        let grown = self.sink.retry_min_ms.saturating_mul(1 << tried.min(30));
        millis(grown.min(self.sink.retry_max_ms.max(self.sink.retry_min_ms)))
    }

    fn failed(&self, error: &Error, rows: usize, begun: Instant) {
        self.counters.failures.inc();
        let seconds = begun.elapsed().as_secs();
        tracing::warn!(rows, seconds, %error, "rows are not written yet; they are kept and tried again");
        self.condition.not_writing(format!("{rows} rows wait for {seconds} s: {error}"));
    }
}
