//! The facade over real sockets, with a bus that keeps what is sent and frames that the tests make up. No engines.

mod again;
mod catch_up;
mod errors;
mod lifecycle;
mod openapi;
mod operators;
mod slot;
mod streams;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::catch_up::{Plan, Sweep};
use super::chat::BodyTimes;
use super::guard::Guard;
use super::hub::{self, Bus, Hub, Sending};
use super::metrics::Metrics;
use super::routes::{App, ROUTES, router};
use super::sse::Position;
use super::{fixtures, server};
use crate::codec::Codec;
use crate::config;
use crate::records::requests::{Cancel, Chat, Request, RequestRecord};
use crate::records::responses::Frame;
use crate::runtime::publisher::{self, Delivery};
use crate::telemetry;
use crate::telemetry::health::Health;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
const PARTITIONS: u32 = 4;
const REPLY_PARTITION: i32 = 3;
/// Of the frames that the tests make up.
const FIRST_OFFSET: i64 = 100;

/// A record that the facade sent.
pub struct Sent {
    partition: i32,
    key: Vec<u8>,
    tag: u64,
    request: Request,
}

struct FakeBus {
    sent: mpsc::UnboundedSender<Sent>,
    full: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    codec: Codec,
}

impl Bus for FakeBus {
    fn send(&self, sending: Sending<'_>) -> Result<(), publisher::Error> {
        let Sending { partition, key, payload, tag, .. } = sending;
        if self.full.load(Ordering::SeqCst) {
            return Err(publisher::Error::Full);
        }
        let request = self.codec.decode::<RequestRecord>(payload).unwrap().try_into().unwrap();
        self.sent.send(Sent { partition, key: key.to_vec(), tag, request }).unwrap();
        Ok(())
    }

    fn acknowledges(&self) -> bool {
        !self.stalled.load(Ordering::SeqCst)
    }
}

/// A facade without Kafka.
pub struct Facade {
    address: SocketAddr,
    hub: Arc<Hub>,
    sent: mpsc::UnboundedReceiver<Sent>,
    full: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    client: reqwest::Client,
    health: Health,
    stop: CancellationToken,
    server: JoinSet<()>,
    log: Arc<Mutex<Vec<Frame>>>,
    _tasks: JoinSet<()>,
}

/// A request that has arrived on the bus.
pub struct Asked {
    sent: Sent,
    chat: Box<Chat>,
}

fn config() -> config::Facade {
    config::Facade { body_bytes_max: 10_000, keep_alive_ms: 60_000, ..config::Facade::default() }
}

impl Facade {
    async fn start() -> Self {
        Self::with(config()).await
    }

    async fn with(config: config::Facade) -> Self {
        let facade = Self::not_listening(config).await;
        facade.hub.listening();
        facade
    }

    async fn not_listening(config: config::Facade) -> Self {
        crate::tls::install_provider();
        let (sender, sent) = mpsc::unbounded_channel();
        let (full, stalled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let codec = Codec::offline().unwrap();
        let hub = Hub::new(hub::Options {
            bus: Box::new(FakeBus {
                sent: sender,
                full: full.clone(),
                stalled: stalled.clone(),
                codec: Codec::offline().unwrap(),
            }),
            codec: Arc::new(codec),
            metrics: Metrics::unregistered(),
            partitions: PARTITIONS,
            reply_partition: REPLY_PARTITION,
            nonce: "ours".into(),
            requests_max: config.requests_max,
            slot_bytes_max: config.slot_bytes_max,
            slots_bytes_max: config.slots_bytes_max,
        });
        let tables = Arc::new(fixtures::tables());
        let health = Health::default();
        let app = App {
            hub: hub.clone(),
            control: Arc::new(move || tables.clone()),
            config,
            deadline_grace: Duration::from_millis(20),
            body_times: BodyTimes {
                prompt: Duration::from_millis(100),
                idle: Duration::from_millis(300),
                ..BodyTimes::DEFAULT
            },
            health: health.clone(),
            traces: Default::default(),
            guard: Guard::register(&telemetry::Metrics::default(), "tollstream_facade"),
            usage: fixtures::no_usage(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut server, stop) = (JoinSet::new(), CancellationToken::new());
        let limits = server::Limits { connections_max: 100, stalled_max: config::millis(app.config.stalled_client_ms) };
        server.spawn(server::serve(listener, router(&ROUTES, Arc::new(app)), limits, stop.clone()));
        let (log, mut tasks) = (Arc::<Mutex<Vec<Frame>>>::default(), JoinSet::new());
        tasks.spawn(read_again(hub.clone(), log.clone()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, hub, sent, full, stalled, client, health, stop, server, log, _tasks: tasks }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A chat request with acme's key.
    fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client.post(self.url("/v1/chat/completions")).bearer_auth(fixtures::KEY).body(body)
    }

    /// Sends a chat request in a task of its own, and waits until it is on the bus.
    async fn ask(&mut self, body: &'static str) -> (tokio::task::JoinHandle<reqwest::Response>, Asked) {
        self.ask_with(self.post(body)).await
    }

    #[expect(clippy::disallowed_methods, reason = "the test awaits the task")]
    async fn ask_with(
        &mut self,
        builder: reqwest::RequestBuilder,
    ) -> (tokio::task::JoinHandle<reqwest::Response>, Asked) {
        let response = tokio::spawn(async move { builder.send().await.unwrap() });
        let asked = self.asked().await;
        (response, asked)
    }

    /// A connection on which a streamed request has been sent, but nothing is read.
    async fn raw(&mut self) -> (TcpStream, Asked) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{STREAMED}",
            fixtures::KEY,
            STREAMED.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        (stream, self.asked().await)
    }

    /// A connection on which a request's headers have been sent, and `body`, which is less than they promise.
    async fn promised(&self, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 5000\r\n\r\n{body}",
            fixtures::KEY,
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn sent(&mut self) -> Sent {
        tokio::time::timeout(PATIENCE, self.sent.recv()).await.unwrap().unwrap()
    }

    async fn asked(&mut self) -> Asked {
        let sent = self.sent().await;
        match &sent.request {
            Request::Chat(chat) => Asked { chat: chat.clone(), sent },
            other => panic!("{other:?}"),
        }
    }

    async fn cancelled(&mut self) -> Cancel {
        let sent = self.sent().await;
        match sent.request {
            Request::Cancel(cancel) => cancel,
            other => panic!("{other:?}"),
        }
    }

    /// Acknowledges the request.
    fn acknowledge(&self, asked: &Asked) {
        self.hub.delivered(&Delivery { tag: asked.sent.tag, outcome: Ok(5) });
    }

    fn refuse(&self, asked: &Asked) {
        let outcome = Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        self.hub.delivered(&Delivery { tag: asked.sent.tag, outcome });
    }

    /// Gives a frame to the request.
    fn frame(&self, asked: &Asked, frame: Frame) {
        let nonce = asked.chat.reply_nonce.clone();
        self.raw_frame(Frame {
            request_id: asked.chat.request_id.clone(),
            organization: asked.chat.organization.clone(),
            nonce,
            ..frame
        });
    }

    fn raw_frame(&self, frame: Frame) {
        let mut log = self.log.lock().unwrap();
        log.push(frame.clone());
        let offset = FIRST_OFFSET + log.len() as i64 - 1;
        drop(log);
        self.hub.frame(Position { partition: REPLY_PARTITION, offset }, &frame);
    }
}

/// The catch-up reader's part: reads the frames of the test again for those who need them.
async fn read_again(hub: Arc<Hub>, log: Arc<Mutex<Vec<Frame>>>) {
    let mut sweeps = HashMap::<i32, Sweep>::new();
    let mut look = tokio::time::interval(Duration::from_millis(5));
    loop {
        tokio::select! {
            () = hub.readers().hungry() => {}
            _ = look.tick() => {}
        }
        let end = FIRST_OFFSET + log.lock().unwrap().len() as i64;
        for slot in hub.readers().unlocated() {
            let log = if slot.partition() == REPLY_PARTITION { FIRST_OFFSET..end } else { 0..0 };
            hub.readers().located(slot, log, FIRST_OFFSET);
        }
        for (partition, plan) in hub.readers().plan(&sweeps) {
            match plan {
                Plan::Stay => {}
                Plan::Read(offset) => _ = sweeps.insert(partition, Sweep::from(offset)),
                Plan::Leave => _ = sweeps.remove(&partition),
            }
        }
        for (partition, sweep) in &mut sweeps {
            let frame = |offset: i64| log.lock().unwrap().get((offset - FIRST_OFFSET) as usize).cloned();
            while *partition == REPLY_PARTITION
                && let Some(frame) = frame(sweep.next)
            {
                let at = Position { partition: *partition, offset: sweep.next };
                sweep.next += 1;
                hub.logged(at, frame.request_id.as_str().as_bytes(), Some(&frame));
            }
            sweep.ended = true;
        }
    }
}

const STREAMED: &str = r#"{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const WHOLE: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;

/// Status, `error.code` and `error.type` of a plain error.
async fn error_of(response: reqwest::Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(response.headers().contains_key("x-request-id"));
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let error = body["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    assert!(!text("message").is_empty());
    (status, text("code"), text("type"))
}
