//! Clients that ask again, go on elsewhere, or end what they asked, with two facades on one Kafka.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::node::{Node, Role};
use tollstream::records::Topic;
use tollstream::records::journal::{Entry, Fact, JournalRecord};
use tollstream::runtime::kafka;
use tollstream::simulate::{self, Behavior};

use super::fixture::{PATIENCE, eventually, key, stack};

const PARTITIONS: i32 = 4;
/// The partitions of `responses` on which the facades listen.
const FIRST: i32 = 1;
const SECOND: i32 = 2;

/// Two facades, one of them with the owner of all partitions, and a simulator of the test's own.
pub struct Gateway {
    pub config: Config,
    pub simulator: simulate::Server,
    pub first: Node,
    pub second: Node,
    /// Of `org_demo`.
    key: String,
}

impl Gateway {
    pub async fn start(name: &str, behavior: Behavior, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = stack().isolated(name).await;
        let key = key(&config, "org_demo");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let options = simulate::Options { behavior, ..simulate::Options::default() };
        let simulator = simulate::Server::start(options, listener).expect("a simulator");
        config.providers.upstream_override = Some(simulator.base_url());
        change(&mut config);
        let node = async |partition, roles: &[Role]| {
            let mut config = config.clone();
            config.instance = format!("{}-{partition}", config.instance);
            config.facade.responses_partition = Some(partition);
            let mut node = Node::start(config, roles).await.expect("a node");
            node.ready(PATIENCE).await.expect("ready");
            node
        };
        let first = node(FIRST, &[Role::Facade, Role::Processor]).await;
        let second = node(SECOND, &[Role::Facade]).await;
        Self { config, simulator, first, second, key }
    }

    pub async fn stop(self) {
        self.second.stop().await.expect("a clean stop");
        self.first.stop().await.expect("a clean stop");
        self.simulator.stop().await;
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    fn request(&self, node: &Node, method: &str, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", node.facade_url().expect("a facade"));
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        client.request(method.parse().expect("a method"), url).bearer_auth(&self.key)
    }

    pub fn chat(&self, node: &Node, body: &Value) -> RequestBuilder {
        self.request(node, "POST", "/v1/chat/completions").json(body)
    }

    /// Asks with an `Idempotency-Key`.
    pub async fn ask(&self, node: &Node, key: &str, body: &Value) -> Response {
        self.chat(node, body).header("Idempotency-Key", key).send().await.expect("an answer")
    }

    fn events(&self, node: &Node, id: &str, last: &str) -> RequestBuilder {
        self.request(node, "GET", &format!("/v1/requests/{id}/events")).header("Last-Event-ID", last)
    }

    /// How often the journal says that a provider was called for the request.
    async fn calls(&self, request: &str) -> usize {
        let (config, request) = (self.config.clone(), request.to_owned());
        let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
        let codec = Arc::new(Codec::connect(registry).await.expect("a codec"));
        let count = move || {
            let consumer: BaseConsumer = kafka::hot_consumer(&config.kafka, "test").create().expect("a consumer");
            let topic = kafka::topic_name(&config.kafka, Topic::Journal);
            let (mut all, mut left) = (TopicPartitionList::new(), 0);
            for partition in 0..PARTITIONS {
                let (low, high) = consumer.fetch_watermarks(&topic, partition, PATIENCE).expect("watermarks");
                left += high - low;
                all.add_partition_offset(&topic, partition, Offset::Beginning).expect("a partition");
            }
            consumer.assign(&all).expect("assigned");
            let mut calls = 0;
            while left > 0 {
                let message = consumer.poll(PATIENCE).expect("a record in time").expect("a record");
                left -= 1;
                let record: JournalRecord = codec.decode(message.payload().unwrap_or_default()).expect("decoded");
                if let Ok(Entry::Commit(commit)) = Entry::try_from(record)
                    && commit.request.as_ref().is_some_and(|r| r.request_id.as_str() == request)
                {
                    calls += commit.facts.iter().filter(|fact| matches!(fact, Fact::AttemptStarted(_))).count();
                }
            }
            calls
        };
        tokio::task::spawn_blocking(count).await.expect("counted")
    }

    /// Does what retention does: deletes all frames that are on the partition now.
    pub async fn expire(&self, partition: i32) {
        let admin: AdminClient<DefaultClientContext> = kafka::client(&self.config.kafka).create().expect("an admin");
        let mut all = TopicPartitionList::new();
        let topic = kafka::topic_name(&self.config.kafka, Topic::Responses);
        all.add_partition_offset(&topic, partition, Offset::End).expect("a partition");
        admin.delete_records(&all, &AdminOptions::new()).await.expect("deleted");
    }
}

pub fn question(stream: bool, text: &str) -> Value {
    json!({"model": "gpt-4o-mini", "stream": stream, "messages": [{"role": "user", "content": text}]})
}

/// So many tokens, one in ten milliseconds.
fn slow(tokens: usize) -> Behavior {
    let behavior = Behavior { ttft_ms: Some(10), tokens_per_second: Some(100), ..Behavior::default() };
    Behavior { output_tokens: Some(tokens), ..behavior }
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

async fn error_of(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("JSON");
    (status, body["error"]["code"].as_str().expect("a code").to_owned())
}

/// Reads so many whole events of a stream, and leaves.
async fn some_events(mut response: Response, events: usize) -> String {
    let mut text = String::new();
    while text.matches("\n\n").count() < events {
        text.push_str(std::str::from_utf8(&response.chunk().await.expect("a chunk").expect("more")).expect("text"));
    }
    text.truncate(text.rfind("\n\n").expect("an event") + 2);
    text
}

fn last_id(text: &str) -> String {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().expect("an id").to_owned()
}

#[tokio::test]
async fn the_same_key_is_the_same_answer_on_every_facade_and_one_call() {
    let gateway = Gateway::start("idempotent", slow(40), |_| {}).await;
    let (streamed, whole) = (question(true, "Streamed?"), question(false, "Whole?"));
    // While the first one is under way, on another facade and on the same.
    let ((one, id), two, three) = tokio::join!(
        async {
            let response = gateway.ask(&gateway.first, "order-1", &streamed).await;
            let id = header(&response, "x-request-id");
            assert_eq!(header(&response, "idempotent-replayed"), "");
            (response.text().await.expect("text"), id)
        },
        repeated(&gateway, &gateway.second, "order-1", &streamed),
        repeated(&gateway, &gateway.first, "order-1", &streamed),
    );
    assert!(one.ends_with("data: [DONE]\n\n"), "{one}");
    assert_eq!((one.as_str(), one.as_str()), (two.as_str(), three.as_str()));
    // And when it is over.
    assert_eq!(repeated(&gateway, &gateway.second, "order-1", &streamed).await, one);
    assert_eq!(gateway.calls(&id).await, 1);

    let response = gateway.ask(&gateway.first, "order-2", &whole).await;
    let (id, cost) = (header(&response, "x-request-id"), header(&response, "x-tollstream-cost-usd"));
    let answer = response.text().await.expect("text");
    let again = gateway.ask(&gateway.second, "order-2", &whole).await;
    assert_eq!((header(&again, "x-request-id"), header(&again, "x-tollstream-cost-usd")), (id.clone(), cost));
    assert_eq!((header(&again, "idempotent-replayed").as_str(), again.text().await.expect("text")), ("true", answer));
    assert_eq!(gateway.calls(&id).await, 1);

    for node in [&gateway.first, &gateway.second] {
        let other = gateway.ask(node, "order-2", &streamed).await;
        assert_eq!(error_of(other).await, (409, "idempotency_key_reused".into()));
    }
    assert_eq!(gateway.calls(&id).await, 1);
    gateway.stop().await;
}

/// The answer to a request that was asked before: only then it is said to be one.
async fn repeated(gateway: &Gateway, node: &Node, key: &str, body: &Value) -> String {
    eventually("the first one is known", async || (gateway.simulator.stats().requests > 0).then_some(())).await;
    let response = gateway.ask(node, key, body).await;
    assert_eq!(header(&response, "idempotent-replayed"), "true");
    response.text().await.expect("text")
}

#[tokio::test]
async fn a_stream_goes_on_at_another_facade_without_a_gap() {
    let gateway = Gateway::start("resume", slow(100), |_| {}).await;
    let body = question(true, "Long?");
    let request = gateway.chat(&gateway.first, &body).header("Idempotency-Key", "k");
    let response = request.header("x-tollstream-resume", "60").send().await.expect("an answer");
    let id = header(&response, "x-request-id");
    let mut text = some_events(response, 5).await;
    assert!(gateway.simulator.stats().completed == 0, "it is under way");
    // From one facade to the other and back.
    let response = gateway.events(&gateway.second, &id, &last_id(&text)).send().await.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "x-request-id")), (200, id.clone()));
    text.push_str(&some_events(response, 5).await);
    let response = gateway.events(&gateway.first, &id, &last_id(&text)).send().await.expect("an answer");
    text.push_str(&response.text().await.expect("text"));
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let whole = gateway.ask(&gateway.second, "k", &body).await.text().await.expect("text");
    assert_eq!(text, whole);
    assert_eq!(gateway.calls(&id).await, 1);
    assert_eq!(gateway.simulator.stats().cancelled, 0);
    gateway.stop().await;
}

#[tokio::test]
async fn without_a_word_a_disconnect_cancels_and_with_one_only_when_the_time_is_over() {
    let gateway = Gateway::start("disconnect", slow(3_000), |_| {}).await;
    for resume in [None, Some("1")] {
        let mut request = gateway.chat(&gateway.first, &question(true, "Gone?"));
        if let Some(seconds) = resume {
            request = request.header("x-tollstream-resume", seconds);
        }
        let response = request.send().await.expect("an answer");
        let id = header(&response, "x-request-id");
        let text = some_events(response, 2).await;
        let response = gateway.events(&gateway.second, &id, &last_id(&text)).send().await.expect("an answer");
        let rest = response.text().await.expect("text");
        assert!(rest.contains("\"code\":\"cancelled\"") && !rest.contains("[DONE]"), "{rest}");
        if resume.is_some() {
            let events = rest.matches("id: ").count();
            assert!(events > 10, "it went on for a while: {events} events");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_position_must_be_ones_own_and_still_there() {
    let gateway = Gateway::start("positions", Behavior::instant(), |_| {}).await;
    let body = question(true, "Hello?");
    let mut ids = Vec::new();
    for asked in ["one", "two"] {
        let response = gateway.ask(&gateway.first, asked, &body).await;
        let id = header(&response, "x-request-id");
        ids.push((id, last_id(&response.text().await.expect("text"))));
    }
    let ((id, last), (_, others)) = (&ids[0], &ids[1]);
    let stranger = key(&gateway.config, "org_123");
    let events = async |node, id: &str, last: &str| {
        let response = gateway.events(node, id, last).send().await.expect("an answer");
        if response.status() == 200 { (200, response.text().await.expect("text")) } else { error_of(response).await }
    };
    for node in [&gateway.first, &gateway.second] {
        assert_eq!(events(node, id, last).await, (200, "data: [DONE]\n\n".into()));
        for (id, last, status, code) in [
            (id.as_str(), others.as_str(), 404, "event_not_found"),
            (id, "1-999999999-0", 404, "event_not_found"),
            (id, "99-0-0", 404, "event_not_found"),
            ("never-asked", last, 404, "event_not_found"),
            (id, "1-0", 400, "invalid_header"),
            (id, "nonsense", 400, "invalid_header"),
            (id, "", 400, "missing_last_event_id"),
        ] {
            assert_eq!(events(node, id, last).await, (status, code.to_owned()), "{id} {last}");
        }
        let foreign = eventually("the stranger's key is known", async || {
            let request = gateway.events(node, id, last).build().map(|mut request| {
                let bearer = format!("Bearer {stranger}").parse().expect("a header");
                request.headers_mut().insert("authorization", bearer);
                request
            });
            let response = reqwest::Client::new().execute(request.expect("a request")).await.expect("an answer");
            Some(response).filter(|response| response.status() != 401)
        });
        assert_eq!(error_of(foreign.await).await, (404, "event_not_found".into()), "of another organization");
    }
    gateway.expire(FIRST).await;
    for node in [&gateway.first, &gateway.second] {
        assert_eq!(events(node, id, last).await, (410, "answer_expired".into()));
        let response = gateway.ask(node, "one", &body).await;
        assert_eq!(error_of(response).await, (410, "answer_expired".into()));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_cancel_ends_the_request_of_ones_own_organization_only() {
    let gateway = Gateway::start("cancel", slow(3_000), |_| {}).await;
    let mut response = gateway.chat(&gateway.first, &question(true, "Endless?")).send().await.expect("an answer");
    let id = header(&response, "x-request-id");
    let stranger = key(&gateway.config, "org_123");
    let cancel = async |key: &str| {
        let url = format!("{}/v1/requests/{id}/cancel", gateway.second.facade_url().expect("a facade"));
        reqwest::Client::new().post(url).bearer_auth(key).send().await.expect("an answer")
    };
    eventually("the stranger's key is known", async || (cancel(&stranger).await.status() == 202).then_some(())).await;
    // Long enough for a cancel to have had its effect: the answer to a request that was asked later.
    let later = gateway.chat(&gateway.second, &question(true, "Later?")).send().await.expect("an answer");
    some_events(later, 2).await;
    assert_eq!(gateway.simulator.stats().completed + gateway.simulator.stats().faulted, 0);
    assert!(response.chunk().await.expect("a chunk").is_some());
    let answer = cancel(&gateway.key).await;
    assert_eq!(answer.status(), 202);
    assert_eq!(
        answer.json::<Value>().await.expect("JSON"),
        json!({"id": id, "object": "request", "status": "cancelling"})
    );
    let rest = response.text().await.expect("text");
    assert!(rest.contains("\"code\":\"cancelled\"") && !rest.contains("[DONE]"), "{rest}");
    tokio::time::timeout(Duration::from_secs(60), gateway.stop()).await.expect("ended");
}
