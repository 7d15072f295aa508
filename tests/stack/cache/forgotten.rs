//! Answers that are kept no longer: their records on the real topic, and how people have them forgotten.

use std::process::{Command, Output};

use serde_json::{Value, json};
use tollstream::domain::ids::partition_of;
use tollstream::records::control::Caching;

use super::*;

const ADMIN_KEY: &str = "tsa_test_0123456789abcdef0123456789abcdef";

async fn found(place: &Place, key: &str, question: &str) -> String {
    let answer = ask(place, key, question, false, &[]).await;
    header(&answer, CACHE_HEADER).expect("the cache was looked into")
}

/// The keys of the records of an organization on `cache`, in order, and whether there is a value.
async fn on_the_topic(place: &Place, organization: &str) -> Vec<(String, bool)> {
    let (suffix, partition) = (format!("/{organization}"), partition_of(organization, PARTITIONS));
    let of = |record: (i32, String, Option<Vec<u8>>)| {
        (record.0 == partition && record.1.ends_with(&suffix)).then(|| (record.1, record.2.is_some()))
    };
    records(place, Topic::Cache).await.into_iter().filter_map(of).collect()
}

/// Once there are so many.
async fn until(place: &Place, organization: &str, count: usize) -> Vec<(String, bool)> {
    eventually("the records are there", async || {
        let records = on_the_topic(place, organization).await;
        assert!(records.len() <= count, "{records:?}");
        (records.len() == count).then_some(records)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_room_and_what_is_over_leaves_a_tombstone_on_the_topic() {
    let mut place = Place::on("tombstones", &Engines::shared(), |_| {}).await;
    let producer = Producer::new(&place.config).await;
    let caching = Caching { entries_max: 2, ..Caching::default() };
    let key = member(&place, &producer, "org_two", caching).await;
    for (question, expected) in [("one", "miss"), ("two", "miss"), ("one", "hit"), ("three", "miss")] {
        assert_eq!(found(&place, &key, question).await, expected, "{question}");
    }
    let records = until(&place, "org_two", 4).await;
    let [(one, true), (two, true), (three, true), (gone, false)] = &records[..] else { panic!("{records:?}") };
    assert!(one != two && two != three && gone == two, "what was not asked for the longest: {records:?}");
    for (question, expected) in [("one", "hit"), ("three", "hit")] {
        assert_eq!(found(&place, &key, question).await, expected, "{question}");
    }

    let brief = member(&place, &producer, "org_brief", Caching { ttl_seconds: 1, ..Caching::default() }).await;
    assert_eq!(found(&place, &brief, "one").await, "miss");
    let records = until(&place, "org_brief", 2).await;
    let [(kept, true), (gone, false)] = &records[..] else { panic!("{records:?}") };
    assert_eq!(kept, gone);
    assert_eq!(found(&place, &brief, "one").await, "miss", "its time is over");
    place.holds().await;
    let (code, report) = audit(&place.config, &["--redecide"]);
    assert_eq!(code, Some(0), "{report:#}");
}

fn command(place: &Place, arguments: &[&str]) -> Output {
    let kafka = &place.config.kafka;
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
    command.args(["cache"]).args(arguments);
    command.args(["--brokers", &kafka.brokers, "--registry", &place.config.registry.url]);
    command.args(["--topic-prefix", &kafka.topic_prefix]).output().expect("tollstream runs")
}

fn object(place: &Place, arguments: &[&str]) -> Value {
    let output = command(place, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Asks of two models, for two organizations.
struct Asker<'a> {
    place: &'a Place,
    keys: [&'a str; 2],
}

impl Asker<'_> {
    async fn found(&self, whose: usize, model: &str) -> String {
        let body =
            json!({"model": model, "temperature": 0, "messages": [{"role": "user", "content": "what is a toll?"}]});
        let url = format!("{}/v1/chat/completions", self.place.gateway.facade);
        let request = self.place.client.post(url).bearer_auth(self.keys[whose]).json(&body);
        let response = request.send().await.expect("the facade answers");
        assert_eq!(response.status(), 200);
        header(&response, CACHE_HEADER).expect("the cache was looked into")
    }

    /// What is found of the first one's two models, and of the other organization's.
    async fn all(&self) -> [String; 3] {
        [self.found(0, SMALL).await, self.found(0, LARGE).await, self.found(1, SMALL).await]
    }
}

const SMALL: &str = "gpt-4o-mini";
const LARGE: &str = "gpt-4o";

#[tokio::test(flavor = "multi_thread")]
async fn people_look_at_the_cache_and_have_it_forget_by_command_and_over_http() {
    let mut place = Place::on("purged", &Engines::shared(), |_| {}).await;
    let producer = Producer::new(&place.config).await;
    let one = member(&place, &producer, "org_one", Caching::default()).await;
    let two = member(&place, &producer, "org_two", Caching::default()).await;
    let launch = Launch { instance: &place.config.instance, ..Launch::default() };
    let former = std::mem::replace(
        &mut place.gateway,
        Process::start_with(&place.config, launch, &[("TOLLSTREAM_ADMIN_KEY", ADMIN_KEY)]),
    );
    former.kill().await;
    place.gateway.ready().await;
    let asker = Asker { place: &place, keys: [&one, &two] };
    assert_eq!(asker.all().await, ["miss", "miss", "miss"]);
    assert_eq!(asker.all().await, ["hit", "hit", "hit"]);

    let stats = object(&place, &["stats", "org_one"]);
    assert_eq!((&stats["answers"], &stats["limits"]["entries_max"]), (&json!(2), &json!(10_000)), "{stats}");
    let models = stats["models"].as_array().expect("a list");
    let told: Vec<(&str, u64, u64)> = models
        .iter()
        .map(|of| (of["model"].as_str().unwrap(), of["answers"].as_u64().unwrap(), of["hits"].as_u64().unwrap()))
        .collect();
    assert_eq!(told, [(LARGE, 1, 1), (SMALL, 1, 1)], "{stats}");
    let shown = command(&place, &["stats", "org_one"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("2 of 10000 answers") && shown.contains(LARGE), "{shown}");

    // By model, by age, and all; each time of one organization alone.
    let purged = object(&place, &["purge", "org_one", "--model", LARGE]);
    assert_eq!((&purged["answers"], &purged["purged"]), (&json!(1), &json!(true)), "{purged}");
    assert_eq!(asker.all().await, ["hit", "miss", "hit"]);
    assert_eq!(object(&place, &["purge", "org_one", "--before", "1h"])["answers"], 0);
    assert_eq!(asker.all().await, ["hit", "hit", "hit"]);
    let text = command(&place, &["purge", "org_one", "--older-than", "0s"]);
    let said = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.status.success() && said.starts_with("2 answers of org_one are forgotten (requests/"), "{text:?}");
    assert_eq!(asker.all().await, ["miss", "miss", "hit"]);
    eventually("a tombstone for each", async || {
        let records = on_the_topic(&place, "org_one").await;
        (records.iter().filter(|(_, has_value)| !has_value).count() == 3).then_some(())
    })
    .await;
    let nobody = command(&place, &["purge", "org_nobody", "--json"]);
    let said: Value = serde_json::from_slice(&nobody.stdout).expect("JSON");
    assert_eq!((nobody.status.code(), &said["error"]), (Some(2), &json!("control has no organization org_nobody")));
    assert_eq!(command(&place, &["stats", "org_nobody"]).status.code(), Some(2));
    assert_eq!(command(&place, &["purge", "org_one", "--before", "soon"]).status.code(), Some(2), "a wrong flag");

    // The same over HTTP.
    let post = async |key: &str, body: Value| {
        let url = format!("{}/admin/v1/cache/purge", place.gateway.admin);
        let response = place.client.post(url).bearer_auth(key).json(&body).send().await.expect("an answer");
        (response.status().as_u16(), response.json::<Value>().await.expect("JSON"))
    };
    let (status, body) = post(ADMIN_KEY, json!({"organization": "org_one", "model": LARGE})).await;
    assert_eq!((status, &body["answers"], &body["object"]), (200, &json!(1), &json!("cache.purge")), "{body}");
    assert_eq!(asker.all().await, ["hit", "miss", "hit"]);
    let (status, body) = post(ADMIN_KEY, json!({"organization": "org_one", "older_than": "1h"})).await;
    assert_eq!((status, &body["answers"]), (200, &json!(0)), "{body}");
    let (status, body) = post(ADMIN_KEY, json!({"organization": "org_one"})).await;
    assert_eq!((status, &body["answers"]), (200, &json!(2)), "{body}");
    assert_eq!(asker.all().await, ["miss", "miss", "hit"]);
    let table = [
        (one.as_str(), json!({"organization": "org_one"}), 403, "insufficient_scope", Value::Null),
        (ADMIN_KEY, json!({"organization": "org_nobody"}), 404, "not_found", Value::Null),
        (ADMIN_KEY, json!({}), 400, "missing_required_parameter", json!("organization")),
        (ADMIN_KEY, json!({"organization": "org_one", "older_than": 7}), 400, "invalid_value", json!("older_than")),
    ];
    for (key, body, expected, code, param) in table {
        let (status, said) = post(key, body.clone()).await;
        let error = &said["error"];
        assert_eq!((status, error["code"].as_str(), &error["param"]), (expected, Some(code), &param), "{body}: {said}");
    }
    assert_eq!(asker.all().await, ["hit", "hit", "hit"], "nothing was forgotten by what was refused");
    let report = place.holds().await;
    assert_eq!(report["counts"]["purges"], 6, "{report:#}");
    let (code, report) = audit(&place.config, &["--redecide"]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_nobody_decides_says_so_and_holds_as_soon_as_somebody_does() {
    let mut place = Place::on("undecided", &Engines::shared(), |_| {}).await;
    let producer = Producer::new(&place.config).await;
    let key = member(&place, &producer, "org_one", Caching::default()).await;
    assert_eq!([found(&place, &key, "q").await, found(&place, &key, "q").await], ["miss", "hit"]);
    let former = std::mem::replace(
        &mut place.gateway,
        Process::start(&place.config, Launch { instance: "facade", roles: Some("facade"), ..Launch::default() }),
    );
    former.kill().await;
    let output = command(&place, &["purge", "org_one", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &said["answers"], &said["purged"]), (Some(1), &Value::Null, &json!(false)));
    restart(&mut place).await;
    assert_eq!(found(&place, &key, "q").await, "miss");
    place.holds().await;
}
