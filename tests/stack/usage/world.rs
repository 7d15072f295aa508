//! Topics, schemas and a database of one test's own on the shared engines, and the roles under test running on them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clickhouse::{Client, RowOwned, RowRead};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tollstream::codec::{Codec, Registry};
use tollstream::config;
use tollstream::records::Topic;
use tollstream::runtime::kafka;
use tollstream::runtime::publisher::{Deliveries, Outgoing, Publisher};
use tollstream::telemetry::Metrics;
use tollstream::telemetry::health::{Health, State};
use tollstream::{projection, sink};

pub use crate::stack::fixture::{Engines, OwnEngines};

/// Partitions of every topic.
pub const PARTITIONS: i32 = 4;
/// The longest that anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often something is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// One test's own place.
pub struct World {
    pub kafka: config::Kafka,
    pub clickhouse: config::ClickHouse,
    pub registry: Registry,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    /// How often the projection commits offsets; a long time makes every crash repeat something.
    pub offset_commit_ms: u64,
    roles: JoinSet<()>,
}

/// A role that runs.
pub struct Role {
    pub health: Health,
    pub metrics: Metrics,
    cancel: CancellationToken,
    task: AbortHandle,
}

impl World {
    pub async fn new() -> Self {
        Self::on(&Engines::shared()).await
    }

    pub async fn on(engines: &Engines) -> Self {
        let world = Self::without_tables(engines).await;
        until("the tables are made", async || sink::migrations::apply(&world.clickhouse).await.is_ok()).await;
        world
    }

    pub async fn without_tables(engines: &Engines) -> Self {
        tollstream::tls::install_provider();
        let name = format!("test{}", &uuid::Uuid::now_v7().simple().to_string()[8..]);
        let kafka = config::Kafka {
            brokers: engines.kafka.clone(),
            topic_prefix: format!("{name}."),
            session_timeout_ms: 6_000,
            message_timeout_ms: 5_000,
            ..config::Kafka::default()
        };
        let clickhouse = config::ClickHouse {
            url: engines.clickhouse.clone(),
            database: name,
            timeout_ms: 2_000,
            ..config::ClickHouse::default()
        };
        create_topics(&kafka).await;
        let at = config::Registry { url: engines.registry.clone(), ..config::Registry::default() };
        let registry = Registry::new(&at, &kafka.topic_prefix).unwrap();
        for topic in Topic::ALL {
            registry.register(topic).await.unwrap();
        }
        let for_codec = Registry::new(&at, &kafka.topic_prefix).unwrap();
        let codec = Arc::new(Codec::connect(for_codec).await.unwrap());
        let publisher = Publisher::new(&kafka).unwrap();
        Self { kafka, clickhouse, registry, codec, publisher, offset_commit_ms: 50, roles: JoinSet::new() }
    }

    /// A codec that has to ask for every schema that is not its own.
    pub async fn new_codec(&self) -> Arc<Codec> {
        Arc::new(Codec::connect(self.registry.clone()).await.unwrap())
    }

    pub fn topic(&self, topic: Topic) -> String {
        kafka::topic_name(&self.kafka, topic)
    }

    /// Puts a record on a topic; its offset.
    pub async fn put(&self, topic: Topic, partition: i32, key: &str, payload: &[u8]) -> i64 {
        let (name, deliveries, mut arrived) = (self.topic(topic), Deliveries::new(), Vec::new());
        let outgoing = Outgoing { topic: &name, partition, key: key.as_bytes(), payload };
        self.publisher.send(outgoing, &deliveries, 0).unwrap();
        deliveries.drain(&mut arrived).await;
        arrived.remove(0).outcome.unwrap()
    }

    pub async fn start_projection(&mut self) -> Role {
        let (codec, health, metrics, cancel) =
            (self.new_codec().await, Health::default(), Metrics::default(), <_>::default());
        let options = projection::Options {
            kafka: self.kafka.clone(),
            instance: "test".into(),
            projection: config::Projection {
                offset_commit_ms: self.offset_commit_ms,
                in_flight_max: 500,
                ..config::Projection::default()
            },
            codec,
            publisher: Publisher::new(&self.kafka).unwrap(),
            health: Health::clone(&health),
            metrics: Metrics::clone(&metrics),
            cancel: CancellationToken::clone(&cancel),
        };
        let task = self.roles.spawn(async move { projection::run(options).await.unwrap() });
        Role::started(health, metrics, cancel, task).await
    }

    pub async fn start_sink(&mut self) -> Role {
        let settings = config::Sink {
            batch_rows: 200,
            batch_ms: 50,
            retry_min_ms: 20,
            retry_max_ms: 200,
            ..config::Sink::default()
        };
        self.start_sink_with(settings, self.clickhouse.clone()).await
    }

    pub async fn start_sink_with(&mut self, settings: config::Sink, clickhouse: config::ClickHouse) -> Role {
        let options = self.sink_options(settings, clickhouse).await;
        let (health, metrics, cancel) = (options.health.clone(), options.metrics.clone(), options.cancel.clone());
        let task = self.roles.spawn(async move { sink::run(options).await.unwrap() });
        Role::started(health, metrics, cancel, task).await
    }

    /// The sink that reads the journal itself.
    pub async fn start_events(&mut self, clickhouse: config::ClickHouse) -> Role {
        let settings = config::Sink {
            batch_rows: 50,
            batch_ms: 20,
            retry_min_ms: 20,
            retry_max_ms: 200,
            ..config::Sink::default()
        };
        let options = self.sink_options(settings, clickhouse).await;
        let (health, metrics, cancel) = (options.health.clone(), options.metrics.clone(), options.cancel.clone());
        let task = self.roles.spawn(async move { sink::events::run(options).await.unwrap() });
        Role::started(health, metrics, cancel, task).await
    }

    async fn sink_options(&self, settings: config::Sink, clickhouse: config::ClickHouse) -> sink::Options {
        sink::Options {
            kafka: self.kafka.clone(),
            instance: "test".into(),
            sink: settings,
            clickhouse,
            dead_letter_bytes_max: 1_000,
            codec: self.new_codec().await,
            publisher: Publisher::new(&self.kafka).unwrap(),
            health: Health::default(),
            metrics: Metrics::default(),
            cancel: CancellationToken::new(),
        }
    }

    pub fn client(&self) -> Client {
        Client::default().with_url(&self.clickhouse.url).with_database(&self.clickhouse.database)
    }

    /// The answer to a question; while ClickHouse is away, asked again.
    pub async fn rows<T: RowOwned + RowRead>(&self, sql: &str) -> Vec<T> {
        let begun = Instant::now();
        loop {
            match self.client().query_raw(sql).fetch_all().await {
                Ok(rows) => return rows,
                Err(clickhouse::error::Error::Network(_)) if begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => panic!("{sql}: {error}"),
            }
        }
    }

    pub async fn number(&self, sql: &str) -> u64 {
        self.rows(sql).await[0]
    }

    /// Everything that is on a topic now.
    pub fn read_all(&self, topic: Topic) -> Vec<(i32, Vec<u8>)> {
        read_all(&self.kafka, topic)
    }
}

/// Everything that is on a topic now.
pub fn read_all(kafka: &config::Kafka, topic: Topic) -> Vec<(i32, Vec<u8>)> {
    let records = read_all_with_keys(kafka, topic).into_iter();
    records.map(|(partition, _, payload)| (partition, payload.unwrap_or_default())).collect()
}

/// The same, with the keys; a tombstone has no value.
pub fn read_all_with_keys(kafka: &config::Kafka, topic: Topic) -> Vec<(i32, String, Option<Vec<u8>>)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", "nobody")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let (name, mut list, mut left) = (kafka::topic_name(kafka, topic), TopicPartitionList::new(), 0);
    // All topics have as many, but for control.
    let partitions = if topic == Topic::Control { 1 } else { PARTITIONS };
    for partition in 0..partitions {
        let (low, high) = consumer.fetch_watermarks(&name, partition, PATIENCE).unwrap();
        left += high - low;
        list.add_partition_offset(&name, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut records = Vec::new();
    while left > 0 {
        let message = consumer.poll(PATIENCE).expect("the records are there").unwrap();
        let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        records.push((message.partition(), key, message.payload().map(<[u8]>::to_vec)));
        left -= 1;
    }
    records
}

impl Role {
    async fn started(health: Health, metrics: Metrics, cancel: CancellationToken, task: AbortHandle) -> Self {
        until("the role has begun", async || !health.components().is_empty()).await;
        Self { health, metrics, cancel, task }
    }

    /// Ends cleanly.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.ended().await;
    }

    /// Ends at once, wherever it is, as a crash would.
    pub async fn kill(self) {
        self.task.abort();
        self.ended().await;
    }

    async fn ended(&self) {
        until("the role ends", async || self.task.is_finished()).await;
    }

    pub async fn ready(&self) {
        until("the role is ready", async || {
            let components = self.health.components();
            !components.is_empty() && components.values().all(|state| *state == State::Ready)
        })
        .await;
    }

    pub fn why_not_ready(&self) -> String {
        self.health.components().into_values().fold(String::new(), |mut all, state| {
            if let State::Degraded(why) | State::Missing(why) = state {
                let _ = writeln!(all, "{why}");
            }
            all
        })
    }

    pub fn counter(&self, name: &str) -> u64 {
        let text = self.metrics.encode().unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}_total ")));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn create_topics(kafka: &config::Kafka) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &kafka.brokers).create().unwrap();
    let names = [Topic::Journal, Topic::Usage, Topic::DeadLetters].map(|topic| kafka::topic_name(kafka, topic));
    let topics: Vec<_> = names.iter().map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))).collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for created in admin.create_topics(&topics, &options).await.unwrap() {
        created.unwrap();
    }
}
