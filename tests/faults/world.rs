//! Topics, tables, a producer and a provider of one test's own, and processes of the gateway between them.

use std::sync::Arc;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::domain::PicoUsd;
use tollstream::domain::ids::partition_of;
use tollstream::domain::{OrganizationId, RequestId};
use tollstream::records::Topic;
use tollstream::records::requests::{Cancel, Chat, Request, RequestRecord};
use tollstream::runtime::kafka;

use super::log::{Answers, End, Fold, Journal, PATIENCE, Reader};
use super::provider::{Provider, Wish, text};
use crate::stack::audit::audit;
use crate::stack::fixture::{Engines, eventually, rows_at};
use crate::stack::process::{Launch, Process};
use crate::stack::stream::{ORGANIZATION, chat};

/// A model with several candidates' worth of attempts.
const MODEL: &str = "gpt-4o-mini";

pub struct World {
    pub config: Config,
    pub partitions: u32,
    pub codec: Arc<Codec>,
    pub provider: Provider,
    producer: FutureProducer,
}

/// A request that a test makes.
#[derive(Debug, Clone)]
pub struct Ask {
    pub wish: Wish,
    pub stream: bool,
    pub organization: String,
    pub timeout_ms: Option<i64>,
    /// Of `responses`; by its id by default.
    pub reply_partition: Option<i32>,
}

impl Ask {
    pub fn whole(request: &str) -> Self {
        let wish = Wish { request: request.to_owned(), words: 3, pace_ms: 0, hold: None };
        Self { wish, stream: false, organization: ORGANIZATION.to_owned(), timeout_ms: None, reply_partition: None }
    }

    pub fn streamed(request: &str, words: u32, pace_ms: u64) -> Self {
        let wish = Wish { words, pace_ms, ..Self::whole(request).wish };
        Self { wish, stream: true, ..Self::whole(request) }
    }

    /// Calls of this process get no answer before the provider is told.
    pub fn held_for(mut self, process: &str) -> Self {
        self.wish.hold = Some(process.to_owned());
        self
    }

    pub fn heard_on(mut self, reply_partition: i32) -> Self {
        self.reply_partition = Some(reply_partition);
        self
    }

    pub fn of(mut self, organization: &str) -> Self {
        self.organization = organization.to_owned();
        self
    }

    pub fn id(&self) -> &str {
        &self.wish.request
    }

    /// The request as a producer writes it, who listens under its id.
    pub fn chat(&self) -> Chat {
        let body = self.body().to_string();
        let organization = OrganizationId::parse(&self.organization).expect("an id");
        let Self { timeout_ms, reply_partition, .. } = *self;
        let reply_nonce = Some(self.id().to_owned());
        Chat { organization, reply_nonce, reply_partition, timeout_ms, ..chat(self.id(), &body) }
    }

    pub fn body(&self) -> serde_json::Value {
        let messages = json!([{"role": "user", "content": "Where is my order?"}]);
        json!({"model": MODEL, "stream": self.stream, "messages": messages, "x_test": self.wish})
    }
}

impl World {
    pub async fn start(name: &str) -> Self {
        Self::on(&Engines::shared(), name).await
    }

    pub async fn on(engines: &Engines, name: &str) -> Self {
        Self::with(engines, name, None, &[]).await
    }

    /// With another number of partitions, and more organizations.
    pub async fn with(engines: &Engines, name: &str, partitions: Option<u32>, organizations: &[String]) -> Self {
        let mut config = engines.isolated_with(name, partitions, organizations).await;
        // Soon, so that a kill finds something that is not committed yet.
        config.processor.offset_commit_ms = 100;
        config.projection.offset_commit_ms = 100;
        let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
        let codec = Arc::new(Codec::connect(registry).await.expect("a codec"));
        // It outlasts a broker that is killed and comes back.
        let mut producer = kafka::producer(&config.kafka);
        producer.set("message.timeout.ms", PATIENCE.as_millis().to_string());
        let producer = producer.create().expect("a producer");
        let partitions = partitions.unwrap_or(crate::stack::stream::PARTITIONS);
        Self { config, partitions, codec, provider: Provider::start().await, producer }
    }

    /// A process of the gateway, whose calls of providers come here under its name.
    pub fn process(&self, launch: Launch<'_>) -> Process {
        let mut config = self.config.clone();
        config.providers.upstream_override = Some(self.provider.base_url(launch.instance));
        Process::start(&config, launch)
    }

    pub async fn put(&self, topic: Topic, partition: i32, payload: &[u8]) -> i64 {
        let topic = kafka::topic_name(&self.config.kafka, topic);
        let record = FutureRecord::to(&topic).partition(partition).key(ORGANIZATION).payload(payload);
        self.producer.send(record, PATIENCE).await.expect("acknowledged").offset
    }

    pub fn encoded(&self, request: Request) -> Vec<u8> {
        let mut payload = Vec::new();
        self.codec.encode(&RequestRecord::from(request), &mut payload).expect("encoded");
        payload
    }

    pub fn partition(&self, organization: &str) -> i32 {
        partition_of(organization, self.partitions)
    }

    pub async fn ask(&self, ask: &Ask) {
        self.ask_as(ask.chat()).await;
    }

    pub async fn ask_as(&self, chat: Chat) {
        let partition = self.partition(chat.organization.as_str());
        let payload = self.encoded(Request::Chat(Box::new(chat)));
        self.put(Topic::Requests, partition, &payload).await;
    }

    pub async fn cancel(&self, ask: &Ask) {
        let cancel = Cancel {
            request_id: RequestId::parse(ask.id()).expect("an id"),
            organization: OrganizationId::parse(&ask.organization).expect("an id"),
            reason: "test".into(),
        };
        let payload = self.encoded(Request::Cancel(cancel));
        self.put(Topic::Requests, self.partition(&ask.organization), &payload).await;
    }

    fn reader<F: Fold>(&self) -> Reader<F> {
        Reader::new(&self.config.kafka, self.partitions, self.codec.clone())
    }

    pub fn journal(&self) -> Reader<Journal> {
        self.reader()
    }

    pub fn answers(&self) -> Reader<Answers> {
        self.reader()
    }

    /// Each request has one verdict and one terminal, was called no more often than it may be, and its reader got the
    /// right answer or was told that there is none.
    pub fn assert_served(&self, journal: &Journal, answers: &Answers, asks: &[Ask]) {
        for ask in asks {
            let (id, decided) = (ask.id(), journal.of(ask.id()));
            assert_eq!(decided.admitted + decided.refused, 1, "{id} was decided twice: {decided:?}");
            assert_eq!(decided.settled.len() as u32, decided.admitted, "{id}: {decided:?}");
            let calls = self.provider.callers(id);
            assert!(calls.len() as u32 <= decided.attempts, "{id}: {} attempts, calls by {calls:?}", decided.attempts);
            let answer = answers.of(id).unwrap_or_else(|| panic!("{id} has no answer"));
            match answer.end.as_ref().unwrap_or_else(|| panic!("the answer of {id} has no end")) {
                End::Completed => assert_eq!(answer.text, text(ask.wish.words), "{id}"),
                End::Told(_, code) => assert!(!code.is_empty(), "{id}"),
                End::Broken(_) => {
                    // Only a takeover may leave a reader with a part of an answer.
                    assert!(journal.tenures() > self.partitions as usize, "{id}: {answer:?} without a takeover");
                }
            }
            let whole = text(ask.wish.words);
            assert!(whole.starts_with(&answer.text), "{id}: {:?} is no beginning of {whole:?}", answer.text);
        }
    }

    /// Waits until ClickHouse has every posting of the journal, and compares the money.
    pub async fn assert_rows_are_the_journal(&self, journal: &Journal) {
        let query = format!(
            "SELECT toString(count()) AS postings, toString(sum(cost_usd)) AS cost FROM {}.usage_exact",
            self.config.clickhouse.database
        );
        let url = self.config.clickhouse.url.clone();
        let row = eventually("all rows", async || {
            let row = rows_at(&url, &query).await.pop()?;
            let postings: u64 = row["postings"].as_str()?.parse().ok()?;
            (postings >= journal.postings).then_some(row)
        })
        .await;
        let cost: PicoUsd = row["cost"].as_str().unwrap_or("0").parse().expect("dollars");
        let found = (row["postings"].as_str().expect("a count").parse(), cost.to_long().map(i128::from));
        assert_eq!(found, (Ok(journal.postings), Some(journal.cost)));
    }

    /// The invariants hold on the logs, and on their sums in ClickHouse, where rows are; returns the report.
    pub async fn audit_with_rows(&self) -> serde_json::Value {
        // Rows are there a little before it is committed that they are.
        eventually("sums to compare", async || {
            let report = self.audit();
            let checks = report["checks"].as_array().expect("checks");
            let sums = checks.iter().find(|check| check["check"] == "I5").expect("I5");
            (sums["looked_at"].as_u64() > Some(0)).then_some(report)
        })
        .await
    }

    /// The invariants hold on the logs; returns the report.
    pub fn audit(&self) -> serde_json::Value {
        let (code, report) = tokio::task::block_in_place(|| audit(&self.config, &["--redecide"]));
        assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("holds")), "{report:#}");
        assert_eq!(report["waiting"], 0, "{report:#}");
        report
    }
}
