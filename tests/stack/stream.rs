//! The stream itself: what a producer writes, what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::control::edit::Wanted;
use tollstream::domain::ids::partition_of;
use tollstream::domain::{OrganizationId, RequestId};
use tollstream::node::{Node, Role};
use tollstream::records::control::{Entity, Organization};
use tollstream::records::dead_letters::DeadLetter;
use tollstream::records::journal::{Entry, Fact, JournalRecord};
use tollstream::records::requests::{Chat, Request, RequestRecord};
use tollstream::records::responses::{Frame, FrameBody, ResponseRecord, Terminal};
use tollstream::records::{Origin, Outcome, Record, Topic};
use tollstream::runtime::control_log::ControlLog;
use tollstream::runtime::kafka;
use tollstream::runtime::publisher::Publisher;

use super::fixture::{PATIENCE, stack};

pub const ORGANIZATION: &str = "org_demo";
pub const PARTITIONS: u32 = 4;

/// Writes to the topics of one test.
pub struct Producer {
    codec: Arc<Codec>,
    config: Config,
    producer: FutureProducer,
}

impl Producer {
    pub async fn new(config: &Config) -> Self {
        let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
        let codec = Arc::new(Codec::connect(registry).await.expect("a codec"));
        let producer = kafka::producer(&config.kafka).create().expect("a producer");
        Self { codec, config: config.clone(), producer }
    }

    pub fn encoded<T: Record + serde::Serialize>(&self, record: &T) -> Vec<u8> {
        let mut payload = Vec::new();
        self.codec.encode(record, &mut payload).expect("encoded");
        payload
    }

    /// Adds an entity to `control`; its version.
    pub async fn add(&self, id: &str, entity: Entity) -> i64 {
        let mut log = ControlLog::open(&self.config.kafka, Arc::clone(&self.codec)).await.expect("the log");
        let publisher = Publisher::new(&self.config.kafka).expect("a producer");
        let wanted = Wanted::put(id, entity, -1);
        log.write(&publisher, vec![wanted], "test").await.expect("written");
        log.tables().offset()
    }

    pub async fn add_organization(&self, id: &str) -> i64 {
        self.add(id, Entity::Organization(Organization::named(id))).await
    }

    /// Its offset.
    pub async fn put(&self, topic: Topic, partition: i32, payload: &[u8]) -> i64 {
        self.put_with_key(topic, partition, ORGANIZATION.as_bytes(), payload).await
    }

    /// Its offset.
    pub async fn put_with_key(&self, topic: Topic, partition: i32, key: &[u8], payload: &[u8]) -> i64 {
        let topic = kafka::topic_name(&self.config.kafka, topic);
        let record = FutureRecord::to(&topic).partition(partition).key(key).payload(payload);
        self.producer.send(record, PATIENCE).await.expect("acknowledged").offset
    }
}

/// A gateway without HTTP on topics of its own, a producer and a reader.
pub struct World {
    pub config: Config,
    pub codec: Arc<Codec>,
    producer: Producer,
    node: Option<Node>,
}

impl World {
    pub async fn start(name: &str) -> Self {
        Self::with(name, |_| {}).await
    }

    pub async fn with(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = stack().isolated(name).await;
        let simulator = stack().description.simulator.as_ref().expect("a simulator");
        config.providers.simulator_url = Some(format!("{simulator}/v1"));
        change(&mut config);
        let producer = Producer::new(&config).await;
        let mut world = Self { config, codec: producer.codec.clone(), producer, node: None };
        world.restart().await;
        world
    }

    pub async fn stop(&mut self) {
        self.node.take().expect("a node").stop().await.expect("a clean stop");
    }

    pub async fn restart(&mut self) {
        let mut node = Node::start(self.config.clone(), &[Role::Processor]).await.expect("a node");
        node.ready(PATIENCE).await.expect("ready");
        self.node = Some(node);
    }

    /// Waits until the gateway decides by the control log up to this offset.
    pub async fn control_reached(&self, offset: i64) {
        self.node.as_ref().expect("a node").control.reached(offset).await;
    }

    pub async fn produce(&self, partition: i32, payload: &[u8]) -> i64 {
        self.produce_to(Topic::Requests, partition, payload).await
    }

    pub async fn produce_to(&self, topic: Topic, partition: i32, payload: &[u8]) -> i64 {
        self.producer.put(topic, partition, payload).await
    }

    pub async fn produce_with_key(&self, topic: Topic, partition: i32, key: &[u8], payload: &[u8]) -> i64 {
        self.producer.put_with_key(topic, partition, key, payload).await
    }

    pub async fn ask(&self, partition: i32, chat: Chat) -> i64 {
        let payload = self.producer.encoded(&RequestRecord::from(Request::Chat(Box::new(chat))));
        self.produce(partition, &payload).await
    }

    /// The first record of a topic that is wanted, from the beginning.
    pub async fn find<T: Record + serde::de::DeserializeOwned + Send + 'static, U: Send + 'static>(
        &self,
        mut want: impl FnMut(T) -> Option<U> + Send + 'static,
    ) -> U {
        let (kafka_config, codec) = (self.config.kafka.clone(), self.codec.clone());
        let search = move || {
            let consumer: BaseConsumer = kafka::hot_consumer(&kafka_config, "finder").create().expect("a consumer");
            let topic = kafka::topic_name(&kafka_config, T::TOPIC);
            let mut all = TopicPartitionList::new();
            for partition in 0..PARTITIONS as i32 {
                all.add_partition_offset(&topic, partition, Offset::Beginning).expect("a partition");
            }
            consumer.assign(&all).expect("assigned");
            let until = std::time::Instant::now() + PATIENCE;
            loop {
                assert!(std::time::Instant::now() < until, "nothing found on {topic}");
                let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
                let message = message.expect("a record");
                let record = codec.decode(message.payload().unwrap_or_default()).expect("decoded");
                if let Some(found) = want(record) {
                    return found;
                }
            }
        };
        tokio::task::spawn_blocking(search).await.expect("found")
    }

    pub async fn terminal_of(&self, request: &str) -> Terminal {
        let wanted = RequestId::parse(request).expect("an id");
        self.find(move |record: ResponseRecord| {
            let frame = Frame::try_from(record).expect("a frame");
            match frame.body {
                FrameBody::Terminal(terminal) if frame.request_id == wanted => Some(*terminal),
                FrameBody::Terminal(_) | FrameBody::Content(_) => None,
            }
        })
        .await
    }
}

pub fn chat(request: &str, body: &str) -> Chat {
    Chat {
        request_id: RequestId::parse(request).expect("an id"),
        organization: OrganizationId::parse(ORGANIZATION).expect("an id"),
        lane: 0,
        key_id: None,
        user: None,
        user_tier: None,
        tags: Default::default(),
        conversation_id: None,
        model: None,
        timeout_ms: None,
        reply_partition: None,
        reply_nonce: None,
        origin: Origin::Live,
        traceparent: None,
        content_type: "application/json".into(),
        encryption_key_id: None,
        content_ref: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
        cache_control: None,
    }
}

pub fn question(request: &str) -> Chat {
    chat(request, r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Where is my order?"}]}"#)
}

#[tokio::test]
async fn what_cannot_be_understood_is_a_dead_letter_and_the_partition_goes_on() {
    let mut world = World::start("dead").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let mut strange = Vec::new();
    let record = RequestRecord { kind: "embedding".into(), chat: None, cancel: None, purge_cache: None };
    world.codec.encode(&record, &mut strange).expect("encoded");
    let table: [(&[u8], &str); 4] = [
        (b"{\"model\": \"json instead of avro\"}", "undecodable"),
        (&[0, 0, 0, 0, 1], "undecodable"),
        (&strange, "unknown_kind"),
        (&[0, 0x7f, 0xff, 0xff, 0xff, 1], "unknown_schema"),
    ];
    for (payload, reason) in table {
        let offset = world.produce(partition, payload).await;
        let letter = world.find(move |letter: DeadLetter| (letter.offset == offset).then_some(letter)).await;
        assert_eq!((letter.reason.as_str(), letter.partition), (reason, partition), "{}", letter.detail);
        assert_eq!(letter.payload.as_deref(), Some(payload));
        assert!(letter.topic.ends_with("requests") && !letter.detail.is_empty());
    }
    world.ask(partition, question("after")).await;
    assert_eq!(world.terminal_of("after").await.outcome, Outcome::Completed);
    world.stop().await;
}

#[tokio::test]
async fn no_size_and_no_compression_holds_a_partition() {
    let mut world = World::start("sizes").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let topic = kafka::topic_name(&world.config.kafka, Topic::Requests);
    let key = vec![b'k'; 1_500_000];
    let record = FutureRecord::to(&topic).partition(partition).key(&key).payload(b"garbage");
    let offset = world.producer.producer.send(record, PATIENCE).await.expect("acknowledged").offset;
    let letter = world.find(move |letter: DeadLetter| (letter.offset == offset).then_some(letter)).await;
    assert!(letter.key.is_some_and(|kept| key.starts_with(&kept) && kept.len() < key.len()));

    let mut strange = Vec::new();
    let kind = "k".repeat(2 << 20);
    world
        .codec
        .encode(&RequestRecord { kind, chat: None, cancel: None, purge_cache: None }, &mut strange)
        .expect("encoded");
    let offset = world.produce(partition, &strange).await;
    let letter = world.find(move |letter: DeadLetter| (letter.offset == offset).then_some(letter)).await;
    assert_eq!((letter.reason.as_str(), letter.payload_bytes), ("unknown_kind", strange.len() as i64));

    let astray = RequestRecord::from(Request::Chat(Box::new(chat("astray", &"x".repeat((8 << 20) - 500)))));
    let mut payload = Vec::new();
    world.codec.encode(&astray, &mut payload).expect("encoded");
    let larger = kafka::producer(&world.config.kafka).set("message.max.bytes", "9400000").create();
    let larger: FutureProducer = larger.expect("a producer");
    let record =
        FutureRecord::to(&topic).partition((partition + 1) % PARTITIONS as i32).key(ORGANIZATION).payload(&payload);
    let offset = larger.send(record, PATIENCE).await.expect("acknowledged").offset;
    let large = move |letter: DeadLetter| (letter.offset == offset && letter.partition != partition).then_some(letter);
    assert_eq!(world.find(large).await.reason, "misplaced_too_large");

    for compression in ["gzip", "snappy", "lz4", "zstd"] {
        let producer = kafka::producer(&world.config.kafka).set("compression.type", compression).create();
        let producer: FutureProducer = producer.expect("a producer");
        let mut payload = Vec::new();
        let asked = Request::Chat(Box::new(question(compression)));
        world.codec.encode(&RequestRecord::from(asked), &mut payload).expect("encoded");
        let record = FutureRecord::to(&topic).partition(partition).key(ORGANIZATION).payload(&payload);
        producer.send(record, PATIENCE).await.expect("acknowledged");
        assert_eq!(world.terminal_of(compression).await.outcome, Outcome::Completed, "{compression}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_repeat_makes_no_second_call_and_is_told_where_the_answer_stands() {
    let mut world = World::start("repeat").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let first = Chat { reply_partition: Some(2), reply_nonce: Some("first".into()), ..question("asked-twice") };
    world.ask(partition, first.clone()).await;
    assert_eq!(world.terminal_of("asked-twice").await.outcome, Outcome::Completed);
    // What was settled is remembered by a new owner, too.
    world.stop().await;
    world.restart().await;
    let again = |nonce: &str, chat: Chat| Chat { reply_partition: Some(1), reply_nonce: Some(nonce.into()), ..chat };
    let changed = Chat { request_id: first.request_id.clone(), ..question("with-another-body") };
    for (nonce, chat, code) in [
        ("second", first, "duplicate_request_id"),
        ("changed", Chat { body: Bytes::from_static(b"{}"), ..changed }, "request_id_reused"),
    ] {
        world.ask(partition, again(nonce, chat)).await;
        let terminal = world.find(move |record: ResponseRecord| {
            let told = record.nonce.as_deref() == Some(nonce);
            record.terminal.filter(|_| told)
        });
        let terminal = terminal.await;
        let error = terminal.error.expect("an error");
        assert_eq!((terminal.outcome, error.status, error.code.as_str()), (Outcome::Refused, 409, code));
        assert_eq!(terminal.original.map(|o| (o.partition, o.open)), (nonce == "second").then_some((2, false)));
    }
    world.stop().await;
}

#[tokio::test]
async fn a_request_on_another_partition_is_moved_and_answered_once() {
    let mut world = World::start("moved").await;
    let right = partition_of(ORGANIZATION, PARTITIONS);
    world.ask((right + 1) % PARTITIONS as i32, question("astray")).await;
    assert_eq!(world.terminal_of("astray").await.outcome, Outcome::Completed);
    world.stop().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_served_gets_a_terminal_that_says_why() {
    let mut world = World::start("refused").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let late = Chat { timeout_ms: Some(0), ..question("late") };
    let unknown = chat("unknown", r#"{"model":"no-such-model","messages":[{"role":"user","content":"x"}]}"#);
    let large = chat("large", &"x".repeat(5 << 20));
    let messages = r#""model":"gpt-4o-mini","messages":[{"role":"user","content":"x"}]"#;
    let capped = chat("capped", &format!(r#"{{{messages},"max_tokens":9223372036854775808}}"#));
    let noisy = chat("noisy", &format!(r#"{{{messages},"n":"{}"}}"#, "\u{7f}".repeat(1_500_000)));
    let named = Chat { reply_nonce: Some("n".repeat(2 << 20)), ..question("named") };
    for (chat, status) in [(late, 504), (unknown, 404), (large, 413), (capped, 400), (noisy, 400), (named, 400)] {
        let request = chat.request_id.to_string();
        world.ask(partition, chat).await;
        let terminal = world.terminal_of(&request).await;
        assert_eq!((terminal.outcome, terminal.error.map(|e| e.status)), (Outcome::Refused, Some(status)), "{request}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_new_owner_goes_on_where_the_journal_ends() {
    let mut world = World::start("restart").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    world.ask(partition, question("before")).await;
    let before = world.terminal_of("before").await;
    world.stop().await;
    world.ask(partition, question("between")).await;
    world.node = Some(Node::start(world.config.clone(), &[Role::Processor]).await.expect("a node"));
    let between = world.terminal_of("between").await;
    assert_eq!((before.outcome, between.outcome), (Outcome::Completed, Outcome::Completed));
    // The first request was not decided again: one commit settled it.
    let settled = world
        .find({
            let mut settled_before = 0;
            move |record: JournalRecord| {
                let Ok(Entry::Commit(commit)) = Entry::try_from(record) else { return None };
                let is = |id: &str| commit.request.as_ref().is_some_and(|r| r.request_id.as_str() == id);
                let settles = commit.facts.iter().any(|fact| matches!(fact, Fact::RequestSettled(_)));
                settled_before += u32::from(settles && is("before"));
                (settles && is("between")).then_some(settled_before)
            }
        })
        .await;
    assert_eq!(settled, 1);
    world.stop().await;
}
