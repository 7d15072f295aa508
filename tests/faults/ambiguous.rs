//! Connections that break in the middle: producers that never learn whether their record is on the topic, and a gateway
//! whose own records are cut off, or lost.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::net::TcpListener;
use tollstream::records::requests::Request;
use tollstream::records::{Outcome, Topic};
use tollstream::runtime::kafka;
use tollstream::stack::{Engine, Ports, free_port};

use super::log::Answers;
use super::proxy::{Cut, Proxy};
use super::suite;
use super::world::{Ask, World};
use crate::stack::fixture::{OwnEngines, eventually};
use crate::stack::process::Launch;
use crate::stack::stream::ORGANIZATION;

/// A broker's second listener, whose clients are sent through a proxy.
struct Proxied {
    engines: OwnEngines,
    proxy: Proxy,
}

impl Proxied {
    async fn start() -> Self {
        let ports = Ports::free().expect("ports");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let through = listener.local_addr().expect("an address");
        let behind = format!("127.0.0.1:{}", free_port().expect("a port"));
        let (plain, controller) = (ports.kafka, ports.kafka_controller);
        let properties = format!(
            "listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},PROXIED://{behind}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{plain},PROXIED://{through}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT\n"
        );
        let engines = OwnEngines::start_with(ports, &properties).await;
        let proxy = Proxy::start(listener, behind).await;
        Self { engines, proxy }
    }
}

/// A producer as careless as they come: it neither repeats by itself nor waits long.
fn careless(brokers: &str) -> FutureProducer {
    let settings =
        [("enable.idempotence", "false"), ("retries", "0"), ("message.timeout.ms", "3000"), ("linger.ms", "0")];
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("socket.timeout.ms", "2000").set("reconnect.backoff.ms", "10");
    settings.iter().for_each(|(name, value)| {
        config.set(*name, *value);
    });
    config.create().expect("a producer")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_again_after_a_cut_is_decided_once() {
    let (requests, cuts) = suite::size((24, 6), (400, 100));
    suite::case("cut connections", async || {
        let Proxied { engines, proxy } = Proxied::start().await;
        let mut world = World::on(&engines.addresses(), "cut").await;
        let direct = world.config.kafka.brokers.clone();
        let producer = careless(&proxy.address.to_string());
        // The gateway's own connections go through the proxy, too.
        world.config.kafka.brokers = proxy.address.to_string();
        let mut gateway = world.process(Launch { instance: "gateway", ..Launch::default() });
        gateway.ready().await;
        let topic = kafka::topic_name(&world.config.kafka, Topic::Requests);
        let partition = world.partition(ORGANIZATION);
        let (mut asks, mut repeats) = (Vec::new(), 0);
        for number in 0..requests {
            let ask = match number % 2 {
                0 => Ask::whole(&format!("cut-{number}")),
                _ => Ask::streamed(&format!("cut-{number}"), 6, 2),
            };
            let payload = world.encoded(Request::Chat(Box::new(ask.chat())));
            let bytes = payload.len() as u64;
            // Every other record is cut off: its acknowledgement, or the record itself in its middle.
            match number % 4 {
                0 => proxy.cut(Cut::AnswerAfter(bytes)),
                2 => proxy.cut(Cut::AfterSent(bytes / 2)),
                _ => {}
            }
            let record = || FutureRecord::to(&topic).partition(partition).key(ORGANIZATION).payload(&payload);
            // As any producer must: again, until it is acknowledged.
            while producer.send(record(), Duration::from_secs(5)).await.is_err() {
                repeats += 1;
                assert!(repeats < 10 * requests, "nothing comes through");
            }
            asks.push(ask);
        }
        // Then the gateway's own, at bytes that grow.
        for number in 0..cuts {
            let before = proxy.cuts();
            let ask = Ask::streamed(&format!("within-{number}"), 20, 5);
            proxy.cut(if number % 2 == 0 { Cut::AfterSent(number * 97) } else { Cut::AnswerAfter(number * 31) });
            let payload = world.encoded(Request::Chat(Box::new(ask.chat())));
            world.put(Topic::Requests, partition, &payload).await;
            eventually("a cut", async || (proxy.cuts() > before).then_some(())).await;
            asks.push(ask);
        }
        world.config.kafka.brokers = direct;
        let (mut journal, mut answers) = (world.journal(), world.answers());
        journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
        answers.until("every answer has its end", |read| {
            asks.iter().all(|ask| read.of(ask.id()).is_some_and(|answer| answer.end.is_some())).then_some(())
        });
        world.assert_served(&journal.read, &answers.read, &asks);
        assert!(proxy.cuts() >= requests as u64 / 4 + cuts && repeats > 0, "{} cuts, {repeats} repeats", proxy.cuts());
        // Some of what its producer knew nothing of was on the topic.
        assert!(journal.read.skips("duplicate") > 0, "no record came twice: {repeats} repeats");
        world.assert_rows_are_the_journal(journal.read_all()).await;
        assert_eq!(engines.status(Engine::Kafka).restarts, 0);
        gateway.stop().await;
        world.audit_with_rows().await;
        engines.stop().await;
    })
    .await;
}

/// Shorter than a session, so that the owner stays.
const FRAMES_WAIT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_a_frame_that_kafka_lost() {
    suite::case("lost frames", async || {
        let Proxied { engines, proxy } = Proxied::start().await;
        let mut world = World::on(&engines.addresses(), "lost").await;
        let direct = std::mem::replace(&mut world.config.kafka.brokers, proxy.address.to_string());
        world.config.kafka.message_timeout_ms = FRAMES_WAIT.as_millis() as u64;
        world.config.kafka.properties.0.insert("reconnect.backoff.max.ms".to_owned(), "100".to_owned());
        let mut gateway = world.process(Launch { instance: "gateway", ..Launch::default() });
        gateway.ready().await;
        world.config.kafka.brokers = direct;
        let asks: Vec<Ask> = (0..8).map(|number| Ask::streamed(&format!("lost-{number}"), 4_000, 5)).collect();
        for ask in &asks {
            world.ask(ask).await;
        }
        let (mut journal, mut answers) = (world.journal(), world.answers());
        let has_begun = |read: &Answers, ask: &Ask| read.of(ask.id()).is_some_and(|answer| !answer.text.is_empty());
        answers.until("all stream", |read| asks.iter().all(|ask| has_begun(read, ask)).then_some(()));
        proxy.close();
        eventually("the calls are given up", async || {
            (gateway.metric("tollstream_processor_requests_open").await == 0).then_some(())
        })
        .await;
        // What was produced after the loss goes through now.
        proxy.open();
        journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
        answers.until("every answer has its end", |read| {
            asks.iter().all(|ask| read.of(ask.id()).is_some_and(|answer| answer.end.is_some())).then_some(())
        });
        let outcome = |ask: &Ask| journal.read.of(ask.id()).settled[0].outcome;
        let failed = asks.iter().filter(|ask| outcome(ask) == Outcome::Failed).count();
        assert!(proxy.cuts() > 0 && failed > 0, "{} cuts, {failed} of {} failed", proxy.cuts(), asks.len());
        gateway.stop().await;
        world.audit();
        engines.stop().await;
    })
    .await;
}
