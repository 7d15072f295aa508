//! The facade alone on a real broker and registry; the test answers in the processor's place.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::control::Tables;
use tollstream::domain::Timestamp;
use tollstream::facade::{Facade, Options, Usage};
use tollstream::records::control::{ControlRecord, Key, Organization};
use tollstream::records::requests::{Chat, Request, RequestRecord};
use tollstream::records::responses::{Content, Frame, FrameBody, ResponseRecord, Terminal};
use tollstream::records::{Outcome, Topic};
use tollstream::runtime::kafka;
use tollstream::runtime::publisher::{Deliveries, Outgoing, Publisher};
use tollstream::telemetry::{Metrics, health::Health};

use super::fixture::{PATIENCE, eventually, stack};

const PARTITIONS: u32 = 4;
const SECRET: &str = "sk-of-the-test";
const STREAMED: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

/// One organization with one key.
fn tables() -> Tables {
    let change = |kind: &str, id: &str| ControlRecord {
        kind: kind.into(),
        id: id.into(),
        expected_version: -1,
        change_id: "test".into(),
        actor: "test".into(),
        at: Timestamp::from_millis(0),
        deleted: false,
        organization: None,
        key: None,
        model: None,
        policy: None,
        plan: None,
    };
    let sha256 = hex::encode(Sha256::digest(SECRET));
    let key = Key::of(vec!["acme".parse().unwrap()], sha256, "sk-of".into());
    let organization = Some(Organization::named("Acme"));
    let mut tables = Tables::default();
    tables.apply(0, &ControlRecord { organization, ..change("organization", "acme") }).unwrap();
    tables.apply(1, &ControlRecord { key: Some(key), ..change("key", "k") }).unwrap();
    tables
}

async fn start(config: &Config, codec: Arc<Codec>, health: Health) -> Facade {
    let tables = Arc::new(tables());
    let options = Options {
        config: config.facade.clone(),
        kafka: config.kafka.clone(),
        instance: config.instance.clone(),
        partitions: PARTITIONS,
        control: Arc::new(move || tables.clone()),
        codec,
        publisher: Publisher::new(&config.kafka).unwrap(),
        health,
        metrics: Metrics::default(),
        traces: <_>::default(),
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        usage: Arc::new(Usage::new(config.clickhouse.clone())),
        cancel: CancellationToken::new(),
    };
    Facade::start(options).unwrap()
}

/// What the facade asks, and a hand that answers.
pub struct Processor {
    requests: StreamConsumer,
    publisher: Publisher,
    deliveries: Arc<Deliveries>,
    responses: String,
    codec: Arc<Codec>,
}

impl Processor {
    pub fn new(config: &Config, codec: Arc<Codec>) -> Self {
        let requests: StreamConsumer = kafka::hot_consumer(&config.kafka, "test").create().unwrap();
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS as i32 {
            let topic = kafka::topic_name(&config.kafka, Topic::Requests);
            all.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        requests.assign(&all).unwrap();
        let (publisher, deliveries) = (Publisher::new(&config.kafka).unwrap(), Deliveries::new());
        Self { requests, publisher, deliveries, responses: kafka::topic_name(&config.kafka, Topic::Responses), codec }
    }

    pub async fn request(&self) -> Request {
        let mut stream = self.requests.stream();
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        self.codec.decode::<RequestRecord>(message.payload().unwrap()).unwrap().try_into().unwrap()
    }

    pub async fn chat(&self) -> Box<Chat> {
        match self.request().await {
            Request::Chat(chat) => chat,
            other => panic!("{other:?}"),
        }
    }

    pub async fn send(&self, chat: &Chat, payload: &[u8]) {
        self.send_all(&[(chat, payload.to_vec())]).await;
    }

    /// Sends records to the askers of these requests, and waits until Kafka has all.
    pub async fn send_all(&self, records: &[(&Chat, Vec<u8>)]) {
        for (chat, payload) in records {
            let (partition, key) = (chat.reply_partition.unwrap(), chat.request_id.as_str().as_bytes());
            let record = Outgoing { topic: &self.responses, partition, key, payload };
            self.publisher.send(record, &self.deliveries, 1).unwrap();
        }
        let mut arrived = Vec::new();
        while arrived.len() < records.len() {
            self.deliveries.drain(&mut arrived).await;
        }
        assert!(arrived.iter().all(|delivery| delivery.outcome.is_ok()), "{arrived:?}");
    }

    pub fn encoded(&self, chat: &Chat, sequence: u32, body: FrameBody) -> Vec<u8> {
        let frame = Frame {
            organization: chat.organization.clone(),
            request_id: chat.request_id.clone(),
            nonce: chat.reply_nonce.clone(),
            tenure: 1,
            attempt: 1,
            sequence,
            at: Timestamp::from_millis(0),
            body,
        };
        let mut payload = Vec::new();
        self.codec.encode(&ResponseRecord::from(frame), &mut payload).unwrap();
        payload
    }
}

pub fn content(event: &str) -> FrameBody {
    FrameBody::Content(Content { head: None, events: vec![event.to_owned().into()] })
}

pub fn completed() -> FrameBody {
    FrameBody::Terminal(Box::new(Terminal::of(Outcome::Completed)))
}

fn ask(facade: &Facade) -> reqwest::RequestBuilder {
    let url = format!("http://{}/v1/chat/completions", facade.address());
    reqwest::Client::new().post(url).bearer_auth(SECRET).body(STREAMED).timeout(PATIENCE)
}

/// The schema of `responses` as a later version may write it, under its new id.
async fn evolved(registry: &Registry) -> u32 {
    let mut schema: serde_json::Value = serde_json::from_str(Topic::Responses.schema()).unwrap();
    let field = serde_json::json!({"name": "of_tomorrow", "type": ["null", "string"], "default": null});
    schema["fields"].as_array_mut().unwrap().push(field);
    registry.register_text(&registry.subject(Topic::Responses), &schema.to_string()).await.unwrap()
}

#[tokio::test]
async fn frames_come_back_in_order_whatever_stands_between_them() {
    let config = stack().isolated("facade_frames").await;
    let registry = || Registry::new(&config.registry, &config.kafka.topic_prefix).unwrap();
    let codec = Arc::new(Codec::connect(registry()).await.unwrap());
    let health = Health::default();
    let facade = start(&config, codec.clone(), health.clone()).await;
    eventually("the facade listens", async || health.serves().then_some(())).await;
    let processor = Processor::new(&config, codec.clone());

    let request = ask(&facade);
    let (response, chat) = tokio::join!(request.send(), async {
        let chat = processor.chat().await;
        assert_eq!((chat.body.as_ref(), chat.organization.as_str()), (STREAMED.as_bytes(), "acme"));
        processor.send(&chat, &processor.encoded(&chat, 0, content("{\"n\":0}"))).await;
        chat
    });
    let mut response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.chunk().await.unwrap().unwrap(),
        format!("id: {}-0-0\ndata: {{\"n\":0}}\n\n", chat.reply_partition.unwrap())
    );

    // A record that is no frame, then a frame by a schema that the facade has not seen: it appends a null.
    processor.send(&chat, b"no record").await;
    let mut tomorrows = processor.encoded(&chat, 1, content("{\"n\":1}"));
    tomorrows[1..5].copy_from_slice(&evolved(&registry()).await.to_be_bytes());
    tomorrows.push(0);
    processor.send(&chat, &tomorrows).await;
    processor.send(&chat, &processor.encoded(&chat, 2, completed())).await;
    let rest = response.text().await.unwrap();
    assert!(rest.ends_with("data: {\"n\":1}\n\ndata: [DONE]\n\n"), "{rest}");
    facade.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_a_cancel_on_the_requests_partition() {
    let config = stack().isolated("facade_cancel").await;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).unwrap();
    let codec = Arc::new(Codec::connect(registry).await.unwrap());
    let health = Health::default();
    let facade = start(&config, codec.clone(), health.clone()).await;
    eventually("the facade listens", async || health.serves().then_some(())).await;
    let processor = Processor::new(&config, codec);
    let chat = tokio::select! {
        response = ask(&facade).send() => panic!("{response:?}"),
        chat = processor.chat() => chat,
    };
    match processor.request().await {
        Request::Cancel(cancel) => {
            assert_eq!((cancel.request_id, cancel.organization), (chat.request_id, chat.organization));
            assert_eq!(cancel.reason, "client_disconnected");
        }
        other => panic!("{other:?}"),
    }
    facade.stop().await;
}

#[tokio::test]
async fn without_kafka_a_facade_starts_says_what_is_missing_and_takes_nothing() {
    tollstream::tls::install_provider();
    let mut config = Config::default();
    // Bound and never answered, so that nobody else is there.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.kafka.brokers = silent.local_addr().unwrap().to_string();
    config.facade.drain_ms = 100;
    let health = Health::default();
    let facade = start(&config, Arc::new(Codec::offline().unwrap()), health).await;
    let response = ask(&facade).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(response.text().await.unwrap().contains("not_ready"));
    let ready = reqwest::get(format!("http://{}/health/ready", facade.address())).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("facade.responses"));
    tokio::time::timeout(Duration::from_secs(30), facade.stop()).await.unwrap();
}
