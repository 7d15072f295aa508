//! Answers that are given again: by a real gateway, over the real topics, to real clients.

mod canaries;
mod forgotten;
mod takeover;
mod wishes;

use bytes::Bytes;
use clickhouse::Row;
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollstream::config::Config;
use tollstream::domain::ids::partition_of;
use tollstream::domain::{Fingerprint, TokenUsage};
use tollstream::records::Topic;
use tollstream::records::cache::CacheRecord;
use tollstream::records::control::{Caching, Entity, Organization, Plan};

use super::audit::audit;
use super::fixture::{eventually, key};
use super::pressure::{ORGANIZATION, PARTITIONS, Place};
use super::process::{Launch, Process};
use super::stream::Producer;
use super::usage::world::{Engines, read_all_with_keys};

/// An organization whose plan keeps answers, too.
const OTHER: &str = "org_other";
const CACHE_HEADER: &str = "x-tollstream-cache";

async fn ask(place: &Place, key: &str, question: &str, stream: bool, headers: &[(&'static str, &str)]) -> Response {
    let body = json!({
        "model": "gpt-4o-mini", "temperature": 0, "stream": stream,
        "messages": [{"role": "user", "content": question}],
    });
    let url = format!("{}/v1/chat/completions", place.gateway.facade);
    let request = place.client.post(url).bearer_auth(key).json(&body);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.expect("the facade answers");
    assert_eq!(response.status(), 200, "{:?}", response.headers());
    response
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name).map(|value| value.to_str().expect("text").to_owned())
}

/// The events of a stream without what is each answer's own, and the id that all of them have.
async fn events(response: Response) -> (String, Vec<Value>) {
    let text = response.text().await.expect("a body");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    assert_eq!(data.clone().next_back(), Some("[DONE]"), "{text}");
    let mut events: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let id = events[0]["id"].as_str().expect("an id").to_owned();
    for event in &mut events {
        assert_eq!(event["id"].take(), id.as_str());
    }
    (id, events)
}

async fn restart(place: &mut Place) {
    let launch = Launch { instance: &place.config.instance, ..Launch::default() };
    let former = std::mem::replace(&mut place.gateway, Process::start(&place.config, launch));
    former.kill().await;
    place.gateway.ready().await;
}

#[derive(Debug, Row, Deserialize)]
struct Served {
    source: String,
    cost_usd: Option<i128>,
    saved_usd: Option<i128>,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_given_again_as_it_was_and_costs_nothing() {
    let mut place = Place::on("cached", &Engines::shared(), |_| {}).await;
    let key = place.key.clone();
    let before = place.upstream.calls();
    let first = ask(&place, &key, "what is a toll?", false, &[]).await;
    assert_eq!(header(&first, CACHE_HEADER).as_deref(), Some("miss"));
    let cost = header(&first, "x-tollstream-cost-usd");
    let mut first: Value = first.json().await.unwrap();
    let again = ask(&place, &key, "what is a toll?", false, &[]).await;
    assert_eq!(header(&again, CACHE_HEADER).as_deref(), Some("hit"));
    assert_eq!(header(&again, "x-tollstream-cost-usd").as_deref(), Some("0.00"));
    assert_eq!(header(&again, "x-tollstream-saved-usd"), cost);
    let mut again: Value = again.json().await.unwrap();
    assert_ne!(first["id"].take(), again["id"].take());
    assert_eq!(first, again);
    let (first_id, first) = events(ask(&place, &key, "slow=3", true, &[]).await).await;
    let hit = ask(&place, &key, "slow=3", true, &[]).await;
    assert_eq!(header(&hit, CACHE_HEADER).as_deref(), Some("hit"));
    let (hit_id, hit) = events(hit).await;
    assert_ne!(first_id, hit_id);
    assert_eq!(first, hit);
    assert_eq!(place.upstream.calls() - before, 2, "one call for each of the two questions");

    // Whoever takes over has it at hand, and nobody is called.
    restart(&mut place).await;
    eventually("the cache is refilled", async || {
        (place.gateway.metric("tollstream_processor_cache_bytes").await > 0).then_some(())
    })
    .await;
    let hit = ask(&place, &key, "slow=3", true, &[]).await;
    assert_eq!(header(&hit, CACHE_HEADER).as_deref(), Some("hit"));
    assert_eq!(events(hit).await.1, first);
    assert_eq!(place.upstream.calls() - before, 2);

    // A request says what it wants of it.
    for (wants, expected, calls) in
        [("no-cache", Some("bypassed"), 3), ("max-age=0", Some("expired"), 4), ("no-cache, no-store", None, 5)]
    {
        // An answer that is kept in the same millisecond is not older than nothing.
        let answer = ask(&place, &key, "what is a toll?", false, &[("cache-control", wants)]).await;
        assert_eq!(header(&answer, CACHE_HEADER).as_deref(), expected, "{wants}");
        assert_eq!(place.upstream.calls() - before, calls, "{wants}");
    }
    let url = format!("{}/v1/chat/completions", place.gateway.facade);
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]});
    let wrong = place.client.post(url).bearer_auth(&key).header("cache-control", "max-age=soon").json(&body);
    let wrong = wrong.send().await.unwrap();
    assert_eq!(wrong.status(), 400);
    assert!(wrong.text().await.unwrap().contains("max-age wants a number of seconds"));

    place.holds().await;
    let (code, report) = audit(&place.config, &["--redecide"]);
    assert_eq!(code, Some(0), "{report:#}");
    let rows = eventually("the rows are there", async || {
        let client = clickhouse::Client::default().with_url(&place.config.clickhouse.url);
        let sql = format!(
            "SELECT source, toInt128(cost_usd * 1000000000000) AS cost_usd, toInt128(saved_usd * 1000000000000) AS saved_usd \
             FROM {}.usage_exact WHERE kind = 'served'",
            place.config.clickhouse.database
        );
        let rows = client.query(&sql).fetch_all::<Served>().await.ok()?;
        (rows.len() == 3).then_some(rows)
    })
    .await;
    for Served { source, cost_usd, saved_usd } in rows {
        assert_eq!((source.as_str(), cost_usd), ("cache", Some(0)));
        assert!(saved_usd.is_some_and(|saved| saved > 0), "{saved_usd:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_ask_the_same_at_once_share_one_call_and_go_on_without_the_first() {
    let mut place = Place::on("shared", &Engines::shared(), |_| {}).await;
    let (key, before) = (place.key.clone(), place.upstream.calls());
    // Headers are sent with the first frame, so the call is under way.
    let first = ask(&place, &key, "slow=20", true, &[]).await;
    assert_eq!(header(&first, CACHE_HEADER).as_deref(), Some("miss"));
    let mut askers = JoinSet::new();
    for _ in 0..49 {
        let (client, facade, key) = (place.client.clone(), place.gateway.facade.clone(), key.clone());
        askers.spawn(async move {
            let body = json!({
                "model": "gpt-4o-mini", "temperature": 0, "stream": true,
                "messages": [{"role": "user", "content": "slow=20"}],
            });
            let request = client.post(format!("{facade}/v1/chat/completions")).bearer_auth(&key).json(&body);
            let response = request.send().await.expect("the facade answers");
            assert_eq!(response.status(), 200);
            (header(&response, CACHE_HEADER), events(response).await)
        });
    }
    eventually("all are open", async || {
        (place.gateway.metric("tollstream_processor_requests_open").await == 50).then_some(())
    })
    .await;
    // The first one goes away in the middle.
    drop(first);
    let answers = askers.join_all().await;
    let mut ids = std::collections::BTreeSet::new();
    for (found, (id, events)) in answers {
        assert_eq!(found.as_deref(), Some("shared"));
        assert_eq!(events.iter().filter(|event| event["choices"][0]["delta"]["content"] == "word ").count(), 20);
        ids.insert(id);
    }
    assert_eq!((ids.len(), place.upstream.calls() - before), (49, 1));
    place.holds().await;
    let (code, report) = audit(&place.config, &["--redecide"]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_crosses_from_one_organization_to_another_and_no_foreign_record_is_an_answer() {
    let mut place = Place::on("apart", &Engines::shared(), |_| {}).await;
    let own = place.key.clone();
    let producer = Producer::new(&place.config).await;
    let keeps = Organization { plan: Some("enterprise".parse().unwrap()), ..Organization::named(OTHER) };
    producer.add(OTHER, Entity::Organization(keeps)).await;
    let other = key(&place.config, OTHER);
    let first = ask(&place, &own, "the canary is CANARY-17", false, &[]).await;
    assert_eq!(header(&first, CACHE_HEADER).as_deref(), Some("miss"));
    eventually("the other's key counts", async || (place.ask(&other, "hello", true).await.status == 200).then_some(()))
        .await;
    let other = ask(&place, &other, "the canary is CANARY-17", false, &[]).await;
    assert_eq!(header(&other, CACHE_HEADER).as_deref(), Some("miss"), "the same question of somebody else");
    let log = place.gateway.log();
    assert!(!log.contains("CANARY-17"));

    // Somebody writes to the topic: garbage, and an answer of his own under the key of ours.
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let kept = kept(&place, partition).await;
    let forged =
        CacheRecord { events: Vec::new(), body: Some(Bytes::from_static(b"{\"forged\":true}")), ..kept.clone() };
    let forged_key = CacheRecord::key(&kept.organization, kept.fingerprint);
    producer.put_with_key(Topic::Cache, partition, forged_key.as_bytes(), &producer.encoded(&forged)).await;
    producer.put_with_key(Topic::Cache, partition, b"garbage", b"not a record").await;
    let moved = CacheRecord { fingerprint: Fingerprint::new(1), usage: TokenUsage::NOTHING, ..kept };
    producer.put_with_key(Topic::Cache, partition, b"elsewhere", &producer.encoded(&moved)).await;
    restart(&mut place).await;
    let letters = eventually("all three are put aside", async || {
        let letters = letters(&place).await;
        (letters.len() == 3).then_some(letters)
    })
    .await;
    for reason in ["not_ours", "undecodable", "not_of_its_key"] {
        assert!(letters.iter().any(|letter| letter == reason), "{reason}: {letters:?}");
    }
    let answer = ask(&place, &own, "the canary is CANARY-17", false, &[]).await;
    assert!(!answer.text().await.unwrap().contains("forged"));
    place.holds().await;
}

/// What is kept of the only question.
async fn kept(place: &Place, partition: i32) -> CacheRecord {
    eventually("an answer is on the topic", async || {
        let records = read::<CacheRecord>(place, Topic::Cache).await;
        records.into_iter().find(|(of, _)| *of == partition).map(|(_, record)| record)
    })
    .await
}

async fn letters(place: &Place) -> Vec<String> {
    let letters = read::<tollstream::records::dead_letters::DeadLetter>(place, Topic::DeadLetters).await;
    letters.into_iter().filter(|(_, letter)| letter.topic.ends_with("cache")).map(|(_, letter)| letter.reason).collect()
}

/// All records of a topic that can be read, with their partitions.
async fn read<T: tollstream::records::Record + serde::de::DeserializeOwned + Send + 'static>(
    place: &Place,
    topic: Topic,
) -> Vec<(i32, T)> {
    read_of(&place.config, topic).await
}

async fn read_of<T: tollstream::records::Record + serde::de::DeserializeOwned + Send + 'static>(
    config: &Config,
    topic: Topic,
) -> Vec<(i32, T)> {
    let registry = tollstream::codec::Registry::new(&config.registry, &config.kafka.topic_prefix).unwrap();
    let codec = tollstream::codec::Codec::connect(registry).await.unwrap();
    let records = records_of(config, topic).await;
    let decoded = |payload: &[u8]| codec.decode(payload).ok();
    records.into_iter().filter_map(|(partition, _, payload)| Some((partition, decoded(&payload?)?))).collect()
}

/// All records of a topic: partition, key and, but for tombstones, value.
async fn records(place: &Place, topic: Topic) -> Vec<(i32, String, Option<Vec<u8>>)> {
    records_of(&place.config, topic).await
}

async fn records_of(config: &Config, topic: Topic) -> Vec<(i32, String, Option<Vec<u8>>)> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || read_all_with_keys(&config.kafka, topic)).await.unwrap()
}

/// An organization whose plan keeps answers like this: a key of it, which counts.
async fn member(place: &Place, producer: &Producer, id: &str, caching: Caching) -> String {
    let plan = format!("plan-{}", id.chars().take(20).filter(char::is_ascii_alphanumeric).collect::<String>());
    producer.add(&plan, Entity::Plan(Plan { cache: Some(caching), ..Plan::default() })).await;
    let organization = Organization { plan: Some(plan.parse().unwrap()), ..Organization::named(id) };
    producer.add(id, Entity::Organization(organization)).await;
    let key = key(&place.config, id);
    eventually("the key counts", async || (place.ask(&key, "hello", true).await.status == 200).then_some(())).await;
    key
}
