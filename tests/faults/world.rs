//! Topics, tables, a producer and a provider of one test's own, and processes of the gateway between them.
//!
//! Every organization has limits and a budget, and so has the key that requests name unless they say otherwise: large enough
//! for whatever a test asks, so that reservations, releases and postings go through every fault.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::domain::PicoUsd;
use tollstream::domain::ids::partition_of;
use tollstream::domain::{OrganizationId, RequestId, Timestamp};
use tollstream::records::Topic;
use tollstream::records::control::{Budget, Entity, Key, Limits, Organization, Plan, Spend};
use tollstream::records::requests::{Cancel, Chat, Request, RequestRecord};
use tollstream::runtime::kafka;
use tollstream::topology::Seeds;

use super::log::{Answers, End, Fold, Holder, Journal, PATIENCE, Reader};
use super::provider::{Provider, Wish, text};
use crate::stack::audit::audit;
use crate::stack::fixture::{Engines, eventually, rows_at};
use crate::stack::process::{Launch, Process};
use crate::stack::stream::{ORGANIZATION, Producer, chat};

/// The plan of every organization that has no other.
const PLAN: &str = "ample";
/// A key of every organization, with limits and a budget of its own.
pub const KEY: &str = "key_ample";
/// A dollar.
const USD: i128 = 1_000_000_000_000;

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
    pub model: &'static str,
    pub question: String,
    pub stream: bool,
    pub organization: String,
    pub timeout_ms: Option<i64>,
    pub key: Option<&'static str>,
    /// Of `responses`; by its id by default.
    pub reply_partition: Option<i32>,
}

impl Ask {
    pub fn whole(request: &str) -> Self {
        let wish = Wish { request: request.to_owned(), words: 3, ..Wish::default() };
        let organization = ORGANIZATION.to_owned();
        let question = "Where is my order?".to_owned();
        let (key, timeout_ms, reply_partition) = (Some(KEY), None, None);
        Self { wish, model: MODEL, question, stream: false, organization, timeout_ms, key, reply_partition }
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

    /// On the organization's account alone.
    pub fn without_key(mut self) -> Self {
        self.key = None;
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
        let key_id = self.key.map(|key| key.parse().expect("an id"));
        Chat { organization, key_id, reply_nonce, reply_partition, timeout_ms, ..chat(self.id(), &body) }
    }

    pub fn body(&self) -> serde_json::Value {
        let messages = json!([{"role": "user", "content": self.question}]);
        json!({"model": self.model, "stream": self.stream, "messages": messages, "x_test": self.wish})
    }
}

fn limits(requests: u64) -> Limits {
    Limits {
        requests_per_minute: Some(100 * requests),
        tokens_per_minute: Some(100_000 * requests),
        concurrent_requests: Some(requests),
    }
}

fn spend(dollars: i128) -> Spend {
    Spend { day: Some(PicoUsd::new(dollars * USD)), month: Some(PicoUsd::new(10 * dollars * USD)) }
}

/// A plan that limits everything and admits whatever a test asks.
pub fn ample() -> Plan {
    let budget = Budget { spend: spend(1_000), soft_percents: vec![50, 100], ..Budget::default() };
    Plan { limits: limits(20_000), output_cap: Some(1_000), budget, ..Plan::default() }
}

/// Further organizations, with the plan of all.
pub fn add_organizations(seeds: &mut Seeds, ids: impl IntoIterator<Item = String>) {
    for id in ids {
        let plan = Some(PLAN.parse().expect("a name"));
        let organization = Organization { plan, ..Organization::named(&id) };
        seeds.organizations.insert(id.parse().expect("an id"), organization);
    }
}

/// A question over HTTP, under its own id.
pub fn post(facade: &Process, secret: &str, ask: &Ask) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.post(format!("{}/v1/chat/completions", facade.facade)).bearer_auth(secret);
    request.header("x-request-id", ask.id()).json(&ask.body())
}

/// An amount as `tollstream balance` prints it.
pub fn usd(value: &Value) -> PicoUsd {
    value.as_str().unwrap_or_else(|| panic!("{value}")).parse().expect("dollars")
}

fn moment(value: &Value) -> Timestamp {
    let moment = OffsetDateTime::parse(value.as_str().unwrap_or_default(), &Rfc3339).expect("a time");
    Timestamp::from_millis(moment.unix_timestamp() * 1_000)
}

impl World {
    pub async fn start(name: &str) -> Self {
        Self::on(&Engines::shared(), name).await
    }

    pub async fn on(engines: &Engines, name: &str) -> Self {
        Self::with(engines, name, None, |_| {}).await
    }

    /// With another number of partitions, and other seeds.
    pub async fn with(engines: &Engines, name: &str, partitions: Option<u32>, change: impl FnOnce(&mut Seeds)) -> Self {
        let seed = |seeds: &mut Seeds| {
            seeds.plans.insert(PLAN.parse().expect("a name"), ample());
            let organizations: Vec<String> = seeds.organizations.keys().map(ToString::to_string).collect();
            add_organizations(seeds, organizations);
            change(seeds);
        };
        let mut config = engines.isolated_with(name, partitions, seed).await;
        let key = Key::of(vec![ORGANIZATION.parse().expect("an id")], hex::encode(Sha256::digest(KEY)), "tsk_".into());
        let key = Key { limits: limits(10_000), spend: spend(500), ..key };
        Producer::new(&config).await.add(KEY, Entity::Key(key)).await;
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
        self.put_as(topic, partition, payload, None).await
    }

    /// As a record of that time.
    pub async fn put_at(&self, topic: Topic, partition: i32, payload: &[u8], at: Timestamp) -> i64 {
        self.put_as(topic, partition, payload, Some(at)).await
    }

    async fn put_as(&self, topic: Topic, partition: i32, payload: &[u8], at: Option<Timestamp>) -> i64 {
        let topic = kafka::topic_name(&self.config.kafka, topic);
        let record = FutureRecord::to(&topic).partition(partition).key(ORGANIZATION).payload(payload);
        let record = match at {
            Some(at) => record.timestamp(at.as_millis()),
            None => record,
        };
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
        for (table, expected) in &journal.events {
            let query =
                format!("SELECT toString(count()) AS rows FROM {}.{table}_exact", self.config.clickhouse.database);
            let rows = eventually("all facts", async || {
                let rows: u64 = rows_at(&url, &query).await.pop()?["rows"].as_str()?.parse().ok()?;
                (rows >= *expected).then_some(rows)
            })
            .await;
            assert_eq!(rows, *expected, "{table}");
        }
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

    /// What `tollstream balance` says of an organization, with further arguments.
    pub fn balance(&self, organization: &str, arguments: &[&str]) -> Value {
        let kafka = &self.config.kafka;
        let output = Command::new(env!("CARGO_BIN_EXE_tollstream"))
            .args(["balance", organization, "--json", "--brokers", &kafka.brokers])
            .args(["--topic-prefix", &kafka.topic_prefix, "--registry", &self.config.registry.url])
            .args(arguments)
            .output()
            .expect("tollstream runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }

    /// Nothing is open or reserved any more, and each account has posted what the journal posts on it.
    fn assert_balanced(&self) {
        let mut journal = self.journal();
        let accounts = &journal.read_all().accounts;
        let organizations: BTreeSet<&String> = accounts.keys().map(|(organization, _)| organization).collect();
        for organization in organizations {
            let balance = self.balance(organization, &[]);
            assert_eq!(balance["open_requests"], 0, "{balance:#}");
            let keys = balance["keys"].as_object().expect("keys");
            let books = keys.iter().map(|(key, books)| (Some(key.clone()), books)).chain([(None, &balance["account"])]);
            let mut held = BTreeSet::new();
            for (key, books) in books {
                assert_eq!(usd(&books["reserved_usd"]), PicoUsd::ZERO, "{balance:#}");
                let holder: Holder = (organization.clone(), key);
                for period in ["day", "month"] {
                    let since = moment(&books[period]["since"]);
                    let postings = accounts.get(&holder).into_iter().flatten();
                    let expected: PicoUsd = postings.filter(|(at, _)| *at >= since).map(|(_, cost)| *cost).sum();
                    assert_eq!(usd(&books[period]["posted_usd"]), expected, "{holder:?}, {period}: {balance:#}");
                }
                held.insert(holder);
            }
            let all: BTreeSet<Holder> = accounts.keys().filter(|(of, _)| of == organization).cloned().collect();
            assert!(all.is_subset(&held), "{all:?} are posted on; {balance:#}");
        }
    }

    /// The invariants hold on the logs; returns the report.
    pub fn audit(&self) -> serde_json::Value {
        let (code, report) = tokio::task::block_in_place(|| audit(&self.config, &["--redecide"]));
        assert_eq!((code, report["verdict"].as_str()), (Some(0), Some("holds")), "{report:#}");
        assert_eq!(report["waiting"], 0, "{report:#}");
        assert_money_was_looked_at(&report);
        tokio::task::block_in_place(|| self.assert_balanced());
        report
    }
}

/// There were budgets, reservations, deadlines and decisions to look at.
fn assert_money_was_looked_at(report: &Value) {
    let checks = report["checks"].as_array().expect("checks");
    let looked_at = |name: &str| {
        checks.iter().find(|check| check["check"] == name).and_then(|check| check["looked_at"].as_u64()).unwrap_or(0)
    };
    assert!(["I6", "I7", "I9", "redecided"].iter().all(|check| looked_at(check) > 0), "{report:#}");
}
