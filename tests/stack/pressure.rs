//! What callers and memory feel while something that the gateway needs is down, frozen or slow. Each test asserts that its
//! fault happened, and that everything goes on by itself afterwards.

pub mod upstream;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollstream::config::Config;
use tollstream::domain::ids::partition_of;
use tollstream::records::Topic;
use tollstream::records::journal::{Entry, JournalRecord, OwnershipTaken};
use tollstream::records::requests::{Request, RequestRecord};
use tollstream::runtime::clock;
use tollstream::stack::Engine;

use super::audit::audit;
use super::fixture::{eventually, key};
use super::process::{Launch, Process};
use super::stream::{Producer, question};
use super::usage::world::{Engines, OwnEngines};
use upstream::Upstream;

pub const ORGANIZATION: &str = "org_demo";
/// On another partition.
pub const NEIGHBOUR: &str = "neighbour";
/// On the same partition.
const CLOSE_NEIGHBOUR: &str = "org_123";
pub const PARTITIONS: u32 = 4;
/// Much longer than any bound of the gateway, much shorter than a client's own time-out.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(120);
/// What the memory of a process under pressure may grow by: the producer's buffer, bodies twice, and the allocator's waste.
const GROWTH_BYTES_MAX: usize = 256 << 20;

/// A gateway, its two organizations' keys, and a provider.
pub struct Place {
    pub config: Config,
    pub gateway: Process,
    pub key: String,
    pub neighbour: String,
    pub upstream: Upstream,
    pub client: Client,
}

/// What came of a question.
#[derive(Debug)]
pub struct Asked {
    pub status: u16,
    /// `error.code`, of the answer or of the last event of a stream.
    pub code: Option<String>,
    pub retry_after: Option<String>,
    pub took: Duration,
    pub text: String,
}

impl Place {
    pub async fn on(name: &str, engines: &Engines, change: impl FnOnce(&mut Config)) -> Self {
        let upstream = Upstream::start().await;
        let mut config = engines.isolated_with(name, None, |_| {}).await;
        config.providers.upstream_override = Some(upstream.url());
        change(&mut config);
        let [own, close, other] = [ORGANIZATION, CLOSE_NEIGHBOUR, NEIGHBOUR].map(|o| partition_of(o, PARTITIONS));
        assert!(own == close && own != other);
        Producer::new(&config).await.add_organization(NEIGHBOUR).await;
        let launch = Launch { instance: &config.instance, ..Launch::default() };
        let mut gateway = Process::start(&config, launch);
        let (key, neighbour) = (key(&config, ORGANIZATION), key(&config, NEIGHBOUR));
        gateway.ready().await;
        let client = Client::builder().no_proxy().timeout(CLIENT_TIMEOUT).build().expect("a client");
        let place = Self { config, gateway, key, neighbour, upstream, client };
        for key in [&place.key, &place.neighbour] {
            // A key counts once the gateway has read it.
            eventually("the key counts", async || (place.ask(key, "hello", true).await.status == 200).then_some(()))
                .await;
        }
        place
    }

    pub async fn ask(&self, key: &str, question: &str, stream: bool) -> Asked {
        self.ask_within(key, question, stream, 60_000).await
    }

    pub async fn ask_within(&self, key: &str, question: &str, stream: bool, timeout_ms: u64) -> Asked {
        ask(&self.client, &self.gateway.facade, key, body(question, stream), timeout_ms).await
    }

    /// Every admitted request has its terminal, and the logs hold.
    pub async fn holds(&mut self) -> Value {
        eventually("every request ends", async || {
            (self.gateway.metric("tollstream_processor_requests_open").await == 0).then_some(())
        })
        .await;
        assert!(self.gateway.runs(), "the gateway ended");
        // What was recorded last may still be on its way to being decided.
        eventually("everything is decided, and the logs hold", async || {
            let (code, report) = audit(&self.config, &[]);
            assert_ne!(code, Some(1), "{report:#}");
            (code == Some(0) && report["verdict"] == "holds" && report["waiting"] == 0).then_some(report)
        })
        .await
    }
}

fn body(question: &str, stream: bool) -> Value {
    json!({"model": "gpt-4o-mini", "stream": stream, "messages": [{"role": "user", "content": question}]})
}

async fn ask(client: &Client, facade: &str, key: &str, body: Value, timeout_ms: u64) -> Asked {
    let began = Instant::now();
    let request = client.post(format!("{facade}/v1/chat/completions")).bearer_auth(key).json(&body);
    let answer = request.header("x-tollstream-timeout-ms", timeout_ms).send().await.expect("the facade answers");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("a body");
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back();
    let last: Value = serde_json::from_str(last.unwrap_or(&text)).unwrap_or_default();
    let retry_after = headers.get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let code = last["error"]["code"].as_str().map(str::to_owned);
    Asked { status, code, retry_after, took: began.elapsed(), text }
}

/// Callers that ask again and again, each with a large body, until they are told to stop.
struct Load {
    callers: JoinSet<Vec<Asked>>,
    stop: CancellationToken,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn start(place: &Place, callers: usize, body_bytes: usize) -> Self {
        let (stop, answered) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let body = Arc::new(body(&"x".repeat(body_bytes), true));
        let mut set = JoinSet::new();
        for _ in 0..callers {
            let (client, facade, key) = (place.client.clone(), place.gateway.facade.clone(), place.key.clone());
            let (stop, answered, body) = (stop.clone(), answered.clone(), body.clone());
            set.spawn(async move {
                let mut all = Vec::new();
                while !stop.is_cancelled() {
                    let asked = ask(&client, &facade, &key, Value::clone(&body), 20_000).await;
                    let refused = asked.status != 200;
                    all.push(Asked { text: String::new(), ..asked });
                    answered.fetch_add(1, Ordering::Relaxed);
                    if refused {
                        // As a client that minds `retry-after`, only less patient.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                all
            });
        }
        Self { callers: set, stop, answered }
    }

    async fn stop(self) -> Vec<Asked> {
        self.stop.cancel();
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

/// Whether the system has stopped the process.
fn is_frozen(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// What was measured, for who runs this with `--nocapture`.
fn tell(figures: &str) {
    eprintln!("{figures}");
}

/// The producer's own wait, shorter than the default so that a test sees it pass.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

async fn on_own_engines(name: &str) -> (OwnEngines, Place) {
    let engines = OwnEngines::start().await;
    let place = Place::on(name, &engines.addresses(), |config| {
        config.kafka.message_timeout_ms = MESSAGE_TIMEOUT.as_millis() as u64;
    })
    .await;
    (engines, place)
}

/// Four streams of so many tenths of a second that are under way when something happens.
fn streams(place: &Place, words: u32) -> JoinSet<Asked> {
    let mut streams = JoinSet::new();
    let body = body(&format!("slow={words}"), true);
    for _ in 0..4 {
        let (client, facade, key) = (place.client.clone(), place.gateway.facade.clone(), place.key.clone());
        let body = body.clone();
        streams.spawn(async move { ask(&client, &facade, &key, body, 120_000).await });
    }
    streams
}

async fn under_way(place: &Place, requests: u64) {
    eventually("the streams are under way", async || {
        (place.gateway.metric("tollstream_processor_requests_open").await >= requests).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_is_frozen_callers_get_503_and_afterwards_everything_goes_on() {
    let (engines, mut place) = on_own_engines("frozen").await;
    let broker = engines.pid(Engine::Kafka).expect("a broker");
    let memory_before = place.gateway.memory_bytes();
    let streams = streams(&place, 50);
    under_way(&place, 4).await;

    engines.signal(Engine::Kafka, Signal::STOP);
    eventually("the broker is frozen", async || is_frozen(broker).then_some(())).await;
    // More bytes than the producer takes.
    let load = Load::start(&place, 256, 256 << 10);
    let since = Instant::now();
    let missing = eventually("readiness says so", async || {
        let readiness = place.gateway.readiness().await;
        readiness["missing"]["kafka"].as_str().map(str::to_owned)
    })
    .await;
    assert!(missing.contains("acknowledge") && since.elapsed() < Duration::from_secs(10), "{missing}");
    // It stays so after the records' own time-out has passed, under load, and memory stays where it is.
    let (mut memory, mut look) = (0, tokio::time::interval(Duration::from_millis(50)));
    while since.elapsed() < 3 * MESSAGE_TIMEOUT {
        look.tick().await;
        memory = memory.max(place.gateway.memory_bytes());
        assert_eq!(place.gateway.readiness().await["status"], "not_ready");
    }
    assert!(memory < memory_before + GROWTH_BYTES_MAX, "{memory_before} bytes became {memory}");
    let answered = load.answered.load(Ordering::Relaxed);
    let asked = load.stop().await;
    assert!(answered > 1_000 && is_frozen(broker), "{answered} answers");
    let mut codes = BTreeSet::new();
    for asked in &asked {
        assert_eq!((asked.status, asked.retry_after.as_deref()), (503, Some("1")), "{asked:?}");
        // What is on the wire when its time is over is given up with its request, which may have as much time again.
        assert!(asked.took < 2 * MESSAGE_TIMEOUT + Duration::from_secs(5), "{asked:?}");
        codes.extend(asked.code.clone());
    }
    let known = ["not_acknowledged", "not_ready", "overloaded"].map(str::to_owned);
    assert_eq!(codes, BTreeSet::from(known));
    let slowest = asked.iter().map(|asked| asked.took).max();
    tell(&format!("frozen: {answered} answers, the slowest {slowest:?}; memory {memory_before} -> {memory}"));

    engines.signal(Engine::Kafka, Signal::CONT);
    goes_on(&mut place, streams).await;
    engines.stop().await;
}

/// The gateway serves again, nobody having touched it, and all that was asked has ended.
async fn goes_on(place: &mut Place, streams: JoinSet<Asked>) {
    place.gateway.ready().await;
    for key in [&place.key, &place.neighbour] {
        eventually("answers come again", async || (place.ask(key, "hello", true).await.status == 200).then_some(()))
            .await;
    }
    for stream in streams.join_all().await {
        assert!(stream.text.ends_with("data: [DONE]\n\n") || stream.code.is_some(), "{stream:?}");
    }
    let report = place.holds().await;
    assert!(report["counts"]["admitted"].as_u64() > Some(4), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_costs_some_refusals_and_nothing_else() {
    let (engines, mut place) = on_own_engines("killed").await;
    let broker = engines.pid(Engine::Kafka).expect("a broker");
    let memory_before = place.gateway.memory_bytes();
    let streams = streams(&place, 50);
    under_way(&place, 4).await;
    let load = Load::start(&place, 64, 64 << 10);
    engines.signal(Engine::Kafka, Signal::KILL);
    eventually("the broker is another process", async || {
        engines.pid(Engine::Kafka).filter(|pid| *pid != broker).map(|_| ())
    })
    .await;
    eventually("answers come again", async || {
        (place.ask(&place.neighbour, "hello", true).await.status == 200).then_some(())
    })
    .await;
    let memory = place.gateway.memory_bytes();
    assert!(memory < memory_before + GROWTH_BYTES_MAX, "{memory_before} bytes became {memory}");
    for asked in load.stop().await {
        // The load's own deadline and grace are the bound for those that Kafka had taken before.
        assert!([200, 503, 504].contains(&asked.status) && asked.took < Duration::from_secs(30), "{asked:?}");
        assert_eq!(asked.retry_after.is_some(), asked.status == 503, "{asked:?}");
    }
    goes_on(&mut place, streams).await;
    engines.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clickhouse_answers_go_on_and_every_row_arrives_once_it_is_back() {
    let (engines, mut place) = on_own_engines("analytics").await;
    let server = engines.pid(Engine::ClickHouse).expect("a server");
    let memory_before = place.gateway.memory_bytes();
    engines.signal(Engine::ClickHouse, Signal::STOP);
    eventually("clickhouse is frozen", async || is_frozen(server).then_some(())).await;
    let degraded = async || {
        let readiness = place.gateway.readiness().await;
        assert_eq!(readiness["missing"], json!({}));
        readiness["degraded"]["sink"].as_str().map(str::to_owned)
    };
    let mut why = None;
    while why.is_none() {
        assert_eq!(place.ask(&place.key, "hello", true).await.status, 200);
        why = degraded().await;
    }
    assert!(why.as_ref().is_some_and(|why| why.contains("has not taken")), "{why:?}");
    for _ in 0..200 {
        assert_eq!(place.ask(&place.key, "hello", false).await.status, 200);
    }
    let memory = place.gateway.memory_bytes();
    assert!(memory < memory_before + GROWTH_BYTES_MAX, "{memory_before} bytes became {memory}");
    assert!(is_frozen(server));
    engines.signal(Engine::ClickHouse, Signal::CONT);

    let admitted = place.holds().await["counts"]["admitted"].as_u64().expect("a number");
    let table = format!("{}.usage_exact", place.config.clickhouse.database);
    let count = format!("SELECT count(), uniqExact(request_id) FROM {table}");
    eventually("every row is there, once", async || {
        let answer = place.client.post(&place.config.clickhouse.url).body(count.clone()).send().await.ok()?;
        (answer.text().await.ok()?.trim() == format!("{admitted}\t{admitted}")).then_some(())
    })
    .await;
    eventually("health is well again", async || (place.gateway.readiness().await["status"] == "ready").then_some(()))
        .await;
    engines.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_known_schemas_go_on_and_what_waits_for_another_is_bounded_and_loses_nothing() {
    let (engines, mut place) = on_own_engines("registry").await;
    let own = partition_of(ORGANIZATION, PARTITIONS);
    let producer = Producer::new(&place.config).await;
    // Long enough that they are under way until the tenure ends.
    let streams = streams(&place, 600);
    under_way(&place, 4).await;
    let memory_before = place.gateway.memory_bytes();
    let server = engines.pid(Engine::Registry).expect("a server");
    engines.signal(Engine::Registry, Signal::STOP);
    eventually("the registry is frozen", async || is_frozen(server).then_some(())).await;

    // A schema that nobody can tell, and more records behind it than may wait.
    producer.put(Topic::Requests, own, &[0, 0x7f, 0xff, 0xff, 0xff, 1]).await;
    let behind = (0..1_500).map(async |number| {
        let chat = Request::Chat(Box::new(question(&format!("behind-{number}"))));
        producer.put(Topic::Requests, own, &producer.encoded(&RequestRecord::from(chat))).await
    });
    futures_util::future::join_all(behind).await;
    let paused = async || (place.gateway.metric("tollstream_processor_partitions_paused").await == 1).then_some(());
    eventually("the partition is paused", paused).await;
    for _ in 0..50 {
        assert_eq!(place.ask(&place.neighbour, "hello", true).await.status, 200);
    }
    assert_eq!(place.gateway.readiness().await["missing"], json!({}));

    // The tenure ends while its partition is paused: somebody else writes, and what a stream tells next finds out.
    let taken = OwnershipTaken { owner: "somebody else".into(), at: clock::now(), version: "0".into() };
    let taken = JournalRecord::from(Entry::OwnershipTaken(taken));
    producer.put(Topic::Journal, own, &producer.encoded(&taken)).await;
    eventually("the tenure ends", async || {
        (place.gateway.metric("tollstream_processor_tenures_lost_total").await == 1).then_some(())
    })
    .await;
    eventually("the partition is paused again", paused).await;
    let memory = place.gateway.memory_bytes();
    assert!(memory < memory_before + GROWTH_BYTES_MAX, "{memory_before} bytes became {memory}");
    assert!(is_frozen(server));

    engines.signal(Engine::Registry, Signal::CONT);
    eventually("the record is put aside", async || {
        (place.gateway.metric("tollstream_processor_records_dead_total").await == 1).then_some(())
    })
    .await;
    goes_on(&mut place, streams).await;
    let report = place.holds().await;
    // The first questions of both, the streams, the fifty, and all that waited.
    assert!(report["counts"]["admitted"].as_u64() >= Some(1_500 + 50 + 4), "{report:#}");
    assert_eq!(report["counts"]["set_aside"], 1);
    assert_eq!(place.gateway.metric("tollstream_processor_partitions_paused").await, 0);
    engines.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_a_frame_of_an_unknown_schema_holds_answers_up_for_seconds_only() {
    let (engines, place) = on_own_engines("frames").await;
    let producer = Producer::new(&place.config).await;
    let server = engines.pid(Engine::Registry).expect("a server");
    engines.signal(Engine::Registry, Signal::STOP);
    eventually("the registry is frozen", async || is_frozen(server).then_some(())).await;
    let listens = partition_of(&place.config.instance, PARTITIONS);
    for _ in 0..3 {
        producer.put(Topic::Responses, listens, &[0, 0x7f, 0xff, 0xff, 0xff, 1]).await;
    }
    for _ in 0..20 {
        let asked = place.ask(&place.key, "hello", true).await;
        assert!(asked.status == 200 && asked.took < Duration::from_secs(10), "{asked:?}");
    }
    assert_eq!(place.gateway.metric("tollstream_facade_undecodable_frames_total").await, 3);
    assert_eq!(place.gateway.readiness().await["missing"], json!({}));
    assert!(is_frozen(server));
    engines.signal(Engine::Registry, Signal::CONT);
    engines.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stalls_refuses_or_is_down_is_told_honestly_and_hurts_nobody_else() {
    let mut place = Place::on("providers", &Engines::shared(), |config| {
        config.providers.first_token_timeout_ms = 500;
        config.providers.between_tokens_timeout_ms = 500;
    })
    .await;
    let table = [
        ("stall", true, 504, "upstream_first_token_timeout", None),
        // A whole answer has no first token, only its deadline.
        ("stall", false, 504, "deadline_exceeded", None),
        ("pause", true, 200, "upstream_stalled", None),
        ("status=503", true, 503, "upstream_overloaded", Some("7")),
        ("status=503", false, 503, "upstream_overloaded", Some("7")),
        ("status=429", true, 429, "upstream_rate_limited", Some("7")),
        ("status=429", false, 429, "upstream_rate_limited", Some("7")),
    ];
    for (question, stream, status, code, retry_after) in table {
        let faulty = place.ask_within(&place.key, question, stream, 3_000);
        let (faulty, neighbour) = tokio::join!(faulty, place.ask(&place.neighbour, "hello", stream));
        let told = (faulty.status, faulty.code.as_deref(), faulty.retry_after.as_deref());
        assert_eq!(told, (status, Some(code), retry_after), "{question} {stream}: {faulty:?}");
        assert!(faulty.took < Duration::from_secs(10), "{question}: {faulty:?}");
        assert_eq!(neighbour.status, 200, "{neighbour:?}");
        assert!(neighbour.took < faulty.took.max(Duration::from_secs(1)), "{neighbour:?}");
    }
    let address = std::mem::replace(&mut place.upstream, Upstream::start().await).stop().await;
    let down = place.ask(&place.key, "hello", true).await;
    assert_eq!((down.status, down.code.as_deref()), (502, Some("upstream_unreachable")), "{down:?}");
    place.upstream = Upstream::on(address).await;
    assert_eq!(place.ask(&place.key, "hello", true).await.status, 200);
    place.holds().await;
}

/// Streams that were begun and get nothing. Dropping them is their clients' going away.
async fn stalled(place: &Place, streams: u64) -> Vec<JoinSet<Asked>> {
    let mut set = JoinSet::new();
    for _ in 0..streams {
        let (client, facade, key) = (place.client.clone(), place.gateway.facade.clone(), place.key.clone());
        set.spawn(async move { ask(&client, &facade, &key, body("stall", true), 120_000).await });
    }
    under_way(place, streams).await;
    vec![set]
}

/// Times of one question after the other, in milliseconds.
async fn measured(place: &Place, questions: usize, into: &mut Vec<f64>) {
    for _ in 0..questions {
        let asked = place.ask(&place.neighbour, "hello", true).await;
        assert_eq!(asked.status, 200, "{asked:?}");
        into.push(asked.took.as_secs_f64() * 1_000.0);
    }
}

fn percentile(times: &mut [f64], percent: usize) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() * percent / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_stalled_streams_of_one_organization_leave_its_neighbour_its_speed() {
    let mut place = Place::on("neighbours", &Engines::shared(), |config| {
        config.processor.calls_max = 1_000;
        config.processor.organization_share_percent = 50;
        config.providers.first_token_timeout_ms = 120_000;
    })
    .await;
    place.neighbour = key(&place.config, CLOSE_NEIGHBOUR);
    eventually("its key counts", async || {
        (place.ask(&place.neighbour, "hello", true).await.status == 200).then_some(())
    })
    .await;
    // In turns, so that whatever else the machine does meets both alike.
    let (mut quiet, mut pressed) = (Vec::new(), Vec::new());
    measured(&place, 200, &mut Vec::new()).await;
    for round in 0..3 {
        measured(&place, 500, &mut quiet).await;
        let streams = stalled(&place, 500).await;
        measured(&place, 500, &mut pressed).await;
        assert_eq!(place.gateway.metric("tollstream_processor_requests_open").await, 500);
        if round == 0 {
            // The organization has its share; what it asks beyond is refused, its neighbour is not.
            let beyond = place.ask(&place.key, "hello", true).await;
            let told = (beyond.status, beyond.code.as_deref(), beyond.retry_after.as_deref());
            assert_eq!(told, (429, Some("organization_share_exceeded"), Some("1")), "{beyond:?}");
        }
        drop(streams);
        eventually("the streams are cancelled", async || {
            (place.gateway.metric("tollstream_processor_requests_open").await == 0).then_some(())
        })
        .await;
    }
    let (before, during) = (percentile(&mut quiet, 99), percentile(&mut pressed, 99));
    let medians = (percentile(&mut quiet, 50), percentile(&mut pressed, 50));
    tell(&format!("neighbour's p50 {medians:.2?} ms, p99 {before:.2} -> {during:.2} ms, {} each", quiet.len()));
    assert!(during <= 2.0 * before, "the neighbour's p99 went from {before:.2} ms to {during:.2} ms");
    place.holds().await;
}
