//! Secrets of two organizations that ask the same, looked for wherever one could come out: on the other's side, and where no
//! content belongs at all.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tollstream::domain::ids::{ID_BYTES_MAX, partition_of};
use tollstream::records::Topic;
use tollstream::records::control::Caching;
use tollstream::records::dead_letters::DeadLetter;
use tollstream::records::requests::{Chat, Request, RequestRecord};
use tollstream::records::responses::{Frame, FrameBody, ResponseRecord};

use super::*;
use crate::stack::stream::chat;

/// In the question that both ask.
const QUESTION: &str = "numbered: what of PROMPT-CANARY-5b1f?";
/// Each one's own.
const OWN: [&str; 2] = ["numbered: keep QUESTION-CANARY-A-77c0", "numbered: keep QUESTION-CANARY-B-1e9d"];
/// How the provider's answers begin, behind which there is the number of the call.
const ANSWERS: &str = "ANSWER-CANARY-";

/// A receiver of traces that keeps what it gets as it is.
struct Receiver {
    url: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
    _server: JoinSet<()>,
}

async fn receive(State(bodies): State<Arc<Mutex<Vec<Bytes>>>>, body: Bytes) {
    bodies.lock().unwrap().push(body);
}

impl Receiver {
    async fn start() -> Self {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let router = Router::new().route("/v1/traces", post(receive)).with_state(Arc::clone(&bodies));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, bodies, _server: server }
    }

    fn text(&self) -> String {
        self.bodies.lock().unwrap().iter().map(|body| String::from_utf8_lossy(body).into_owned()).collect()
    }
}

/// One of the two.
struct Side {
    organization: String,
    key: String,
    /// What nobody else may see.
    secrets: Vec<String>,
}

/// What the provider's answer of this text is known by.
fn secret(text: &str) -> String {
    let begin = text.find(ANSWERS).unwrap_or_else(|| panic!("no answer of the provider's: {text}"));
    text[begin..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
}

/// Asks its questions, and again: whole and streamed. The second time nobody is called, and the answers are its own.
async fn asks(place: &Place, side: &mut Side, own: &str) {
    let before = place.upstream.calls();
    let questions = [(QUESTION, false), (QUESTION, true), (own, false)];
    let mut first = Vec::new();
    for expected in ["miss", "hit"] {
        for (number, (question, stream)) in questions.into_iter().enumerate() {
            let answer = ask(place, &side.key, question, stream, &[]).await;
            assert_eq!(header(&answer, CACHE_HEADER).as_deref(), Some(expected), "{question} of {}", side.organization);
            let secret = secret(&answer.text().await.unwrap());
            match expected {
                "miss" => first.push(secret),
                _ => assert_eq!(first[number], secret),
            }
        }
    }
    assert_eq!(place.upstream.calls() - before, questions.len(), "calls for {}", side.organization);
    side.secrets = first;
    side.secrets.push(own.split_whitespace().last().unwrap().to_owned());
}

/// A request whose organization is no identifier, as only somebody who writes bytes can make one.
async fn ask_as_nobody(producer: &Producer, canary: &str) {
    let (valid, wanted) = ("org_that_will_be_renamed", "org_\"'\u{1f600}\"; DROP TABLE ");
    assert_eq!(valid.len(), wanted.len());
    let body = format!(r#"{{"model":"gpt-4o-mini","messages":[{{"role":"user","content":"{canary}"}}]}}"#);
    let chat = Chat { organization: valid.parse().unwrap(), ..chat("of-nobody", &body) };
    let mut payload = producer.encoded(&RequestRecord::from(Request::Chat(Box::new(chat))));
    let at = payload.windows(valid.len()).position(|window| window == valid.as_bytes()).expect("its organization");
    payload[at..at + valid.len()].copy_from_slice(wanted.as_bytes());
    producer.put(Topic::Requests, partition_of(ORGANIZATION, PARTITIONS), &payload).await;
}

fn has(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// Every table and view of the database, as text.
async fn tables(place: &Place) -> Vec<(String, String)> {
    let query = async |sql: String| {
        let sent = place.client.post(&place.config.clickhouse.url).body(sql.clone()).send().await.expect("an answer");
        let (status, text) = (sent.status(), sent.text().await.expect("text"));
        assert!(status.is_success(), "{sql}: {text}");
        text
    };
    let database = &place.config.clickhouse.database;
    let names = format!("SELECT name FROM system.tables WHERE database = '{database}' AND engine != 'Null'");
    let mut tables = Vec::new();
    for name in query(format!("{names} AND engine NOT LIKE 'MaterializedView'")).await.lines() {
        let rows = format!(
            "SELECT * FROM {database}.`{name}` FORMAT JSONEachRow SETTINGS output_format_json_escape_forward_slashes = 0"
        );
        tables.push((name.to_owned(), query(rows).await));
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_ask_the_same_see_nothing_of_each_other_and_nobody_else_sees_anything() {
    let receiver = Receiver::start().await;
    let mut place = Place::on("canaries", &Engines::shared(), |config| {
        config.telemetry.otlp_endpoint = Some(receiver.url.clone());
    })
    .await;
    let producer = Producer::new(&place.config).await;
    // As long as names may be, with every sign that they may have.
    let long = format!("{:~<ID_BYTES_MAX$}", "Org_B-2.of:all/signs@once+");
    let mut sides = Vec::new();
    // On one partition, so that one owner keeps the answers of both.
    let is_beside = |id: &String| partition_of(id, PARTITIONS) == partition_of(&long, PARTITIONS);
    let short = (0..).map(|number| format!("org_a{number}")).find(is_beside).unwrap();
    for (organization, own) in [(short, OWN[0]), (long, OWN[1])] {
        let key = member(&place, &producer, &organization, Caching::default()).await;
        let mut side = Side { organization, key, secrets: Vec::new() };
        asks(&place, &mut side, own).await;
        sides.push(side);
    }
    let [a, b] = &sides[..] else { panic!("two") };
    assert!(a.secrets.iter().all(|secret| !b.secrets.contains(secret)), "{:?} {:?}", a.secrets, b.secrets);
    ask_as_nobody(&producer, "QUESTION-CANARY-OF-NOBODY").await;
    let letters = eventually("it is put aside", async || {
        let letters = read::<DeadLetter>(&place, Topic::DeadLetters).await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert!(letters.len() == 1 && letters[0].1.reason == "undecodable", "{letters:?}");
    place.holds().await;

    // What is an organization's has its own secrets, and not the other's.
    let mut found = [[0; 2]; 2];
    let mut look = |topic: usize, of: &str, content: &[u8]| {
        for (number, side) in sides.iter().enumerate() {
            let seen = side.secrets.iter().filter(|secret| has(content, secret)).count();
            assert!(seen == 0 || side.organization == of, "{of} has a secret of {}", side.organization);
            found[topic][number] += seen;
        }
    };
    for (_, record) in read::<ResponseRecord>(&place, Topic::Responses).await {
        let frame = Frame::try_from(record).expect("a frame");
        let content = match frame.body {
            FrameBody::Content(content) => content.events.concat(),
            FrameBody::Terminal(terminal) => terminal.body.unwrap_or_default().to_vec(),
        };
        look(0, frame.organization.as_str(), &content);
    }
    for (partition, record) in read::<CacheRecord>(&place, Topic::Cache).await {
        let of = record.organization.as_str();
        assert_eq!(partition, partition_of(of, PARTITIONS));
        look(1, of, &[record.events.concat(), record.body.clone().unwrap_or_default().to_vec()].concat());
    }
    // Of three answers: twice as frames, once as they are kept.
    assert_eq!(found, [[6; 2], [3; 2]]);

    // Elsewhere there is no content of anybody, and no key.
    let mut all: Vec<&str> = sides.iter().flat_map(|side| &side.secrets).map(String::as_str).collect();
    all.extend([ANSWERS, "PROMPT-CANARY", "QUESTION-CANARY"]);
    all.extend(sides.iter().map(|side| side.key.as_str()));
    let nothing_in = |place: &str, content: &[u8]| {
        for secret in &all {
            assert!(!has(content, secret), "{secret} is in {place}");
        }
    };
    for topic in [Topic::Journal, Topic::Usage, Topic::Control, Topic::State] {
        for (_, _, payload) in records(&place, topic).await {
            nothing_in(topic.name(), &payload.unwrap_or_default());
        }
    }
    let rows = eventually("every request has its row", async || {
        let tables = tables(&place).await;
        let usage = &tables.iter().find(|(name, _)| name == "usage_exact").expect("the view").1;
        let of = |side: &Side| usage.matches(&format!("\"organization\":{}", Value::from(&*side.organization))).count();
        sides.iter().all(|side| of(side) >= 6).then_some(tables)
    })
    .await;
    assert!(rows.len() > 5, "{} tables", rows.len());
    for (table, rows) in &rows {
        nothing_in(table, rows.as_bytes());
    }
    let metrics = place.client.get(format!("{}/metrics", place.gateway.admin)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("tollstream_processor_cache"), "{metrics}");
    nothing_in("the metrics", metrics.as_bytes());
    let Place { gateway, .. } = place;
    gateway.signal(rustix::process::Signal::TERM);
    let mut gateway = gateway;
    gateway.ended().await;
    nothing_in("the log", gateway.log().as_bytes());
    let traces = receiver.text();
    assert!(traces.contains("chat gpt-4o-mini") && traces.contains(&b.organization), "{traces}");
    nothing_in("the traces", traces.as_bytes());
}
