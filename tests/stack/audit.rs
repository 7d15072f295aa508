//! `tollstream audit` on the logs of a gateway that ran, and on the same logs with something false on them.

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tollstream::config::Config;
use tollstream::domain::ids::partition_of;
use tollstream::domain::{OrganizationId, PicoUsd, RequestId, Timestamp};
use tollstream::node::{Node, Role};
use tollstream::records::journal::{
    Commit, Entry, Fact, InputKind, JournalRecord, OwnershipTaken, RequestContext, RequestSettled,
};
use tollstream::records::requests::{Cancel, Request, RequestRecord};
use tollstream::records::responses::{Frame, FrameBody, ResponseRecord, Terminal};
use tollstream::records::usage::UsageRecord;
use tollstream::records::{Outcome, Topic};
use tollstream::runtime::clock;

use super::fixture::{PATIENCE, eventually, stack};
use super::stream::{ORGANIZATION, PARTITIONS, World, chat, question};

/// Of `tollstream audit`: the exit code, and what it prints.
pub fn audit(config: &Config, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(toml::to_string(config).expect("TOML").as_bytes()).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(["audit", "--json", "--config"])
        .arg(file.path())
        .args(arguments)
        .output()
        .expect("tollstream runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), report)
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn holds(world: &World, arguments: &[&str]) -> Value {
    let (code, report) = audit(&world.config, arguments);
    assert_eq!((code, &report["verdict"]), (Some(0), &Value::from("holds")), "{arguments:?}: {report:#}");
    report
}

fn streamed(request: &str) -> tollstream::records::requests::Chat {
    chat(
        request,
        r#"{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"Where is my order?"}]}"#,
    )
}

/// One of everything that a request may become.
async fn run_requests(world: &World, run: &str) {
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let answered: Vec<String> = (0..6).map(|number| format!("{run}-{number}")).collect();
    for (number, request) in answered.iter().enumerate() {
        world.ask(partition, if number % 2 == 0 { streamed(request) } else { question(request) }).await;
    }
    let unknown = format!("{run}-unknown");
    world.ask(partition, chat(&unknown, r#"{"model":"no-such","messages":[{"role":"user","content":"x"}]}"#)).await;
    let cancel = Cancel {
        request_id: RequestId::parse(&answered[0]).expect("an id"),
        organization: OrganizationId::parse(ORGANIZATION).expect("an id"),
        reason: "test".into(),
    };
    let mut payload = Vec::new();
    world.codec.encode(&RequestRecord::from(Request::Cancel(cancel)), &mut payload).expect("encoded");
    world.produce(partition, &payload).await;
    world.produce(partition, b"no record").await;
    let astray = format!("{run}-astray");
    world.ask((partition + 1) % PARTITIONS as i32, streamed(&astray)).await;
    for request in answered.iter().chain([&unknown, &astray]) {
        world.terminal_of(request).await;
    }
}

fn request(id: &str) -> RequestContext {
    RequestContext::of_request(RequestId::parse(id).expect("an id"), clock::now())
}

/// A settlement of a request that was never admitted, by an owner that comes out of nowhere.
async fn settle_out_of_nowhere(world: &World, partition: i32) {
    let put = async |entry: Entry| {
        let mut payload = Vec::new();
        world.codec.encode(&JournalRecord::from(entry), &mut payload).expect("encoded");
        world.produce_to(Topic::Journal, partition, &payload).await
    };
    let taken = OwnershipTaken { owner: "nobody".into(), at: clock::now(), version: "0".into() };
    let tenure = put(Entry::OwnershipTaken(taken)).await;
    let settled = RequestSettled {
        outcome: Outcome::Completed,
        error_code: None,
        status: 200,
        attempts: 1,
        content_frames: 0,
        cost_pico_usd: None,
        time_to_first_token_ms: None,
        duration_ms: 1,
    };
    put(Entry::Commit(Commit {
        tenure,
        sequence: 0,
        input: InputKind::Provider,
        source_offset: None,
        at: clock::now(),
        control_offset: 0,
        organization: Some(OrganizationId::parse(ORGANIZATION).expect("an id")),
        request: Some(Arc::new(request("nowhere"))),
        facts: vec![Fact::RequestSettled(settled)],
        health: Vec::new(),
    }))
    .await;
}

/// A terminal that nobody decided.
async fn answer_out_of_nowhere(world: &World) -> i64 {
    let terminal = Terminal::of(Outcome::Completed);
    let frame = Frame {
        organization: OrganizationId::parse(ORGANIZATION).expect("an id"),
        request_id: RequestId::parse("promised").expect("an id"),
        nonce: None,
        tenure: 0,
        attempt: 1,
        sequence: 0,
        at: clock::now(),
        body: FrameBody::Terminal(Box::new(terminal)),
    };
    let mut payload = Vec::new();
    world.codec.encode(&ResponseRecord::from(frame), &mut payload).expect("encoded");
    world.produce_to(Topic::Responses, 0, &payload).await
}

#[tokio::test]
async fn real_logs_hold_and_what_is_false_on_them_is_found() {
    let mut world = World::start("audit").await;
    run_requests(&world, "first").await;
    // While the gateway runs.
    let report = holds(&world, &["--no-faults", "--redecide"]);
    for check in report["checks"].as_array().expect("checks") {
        let may_be_none = ["I10", "I5"].iter().any(|name| check["check"] == *name);
        assert!(check["looked_at"].as_u64() > Some(0) || may_be_none, "{check}");
    }
    // Nobody projects here.
    assert_eq!((report["not_projected"].as_u64(), report["not_inserted"].as_u64()), (Some(8), Some(0)), "{report:#}");
    assert_eq!((report["counts"]["admitted"].as_u64(), report["counts"]["refused"].as_u64()), (Some(7), Some(1)));
    assert_eq!((report["counts"]["set_aside"].as_u64(), report["waiting"].as_u64()), (Some(2), Some(0)));
    world.stop().await;
    let restarted: Timestamp = clock::now();
    world.restart().await;
    run_requests(&world, "second").await;
    world.stop().await;
    let report = holds(&world, &["--redecide"]);
    assert_eq!(report["counts"]["admitted"], 14);
    // The consumer group has committed once it was left.
    assert!(check(&report, "I10")["looked_at"].as_u64() > Some(0), "{report:#}");
    assert_eq!(holds(&world, &["--from", &restarted.to_string()])["counts"]["admitted"], 7);
    assert_eq!(holds(&world, &["--to", &restarted.to_string()])["counts"]["admitted"], 7);

    // What cannot be understood stops its partition only.
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let other = ((partition + 2) % PARTITIONS as i32).to_string();
    world.produce_to(Topic::Journal, (partition + 2) % PARTITIONS as i32, b"not a fact").await;
    let (code, report) = audit(&world.config, &[]);
    assert_eq!((code, &report["verdict"]), (Some(2), &Value::from("could_not_look")), "{report:#}");
    assert_eq!(report["counts"]["admitted"], 14);
    assert!(check(&report, "I1")["could_not_look"][0].as_str().is_some_and(|why| why.contains(&other)), "{report:#}");
    let others: Vec<String> =
        (0..PARTITIONS).map(|number| number.to_string()).filter(|number| *number != other).collect();
    holds(&world, &["--partition", &others.join(",")]);

    settle_out_of_nowhere(&world, partition).await;
    let offset = answer_out_of_nowhere(&world).await;
    let (code, report) = audit(&world.config, &[]);
    assert_eq!((code, &report["verdict"]), (Some(1), &Value::from("violated")), "{report:#}");
    let first = |name: &str| check(&report, name)["first"][0].clone();
    assert_eq!((first("I1")["request_id"].as_str(), first("I1")["topic"].as_str()), (Some("nowhere"), Some("journal")));
    assert_eq!((first("I2")["request_id"].as_str(), first("I2")["offset"].as_i64()), (Some("promised"), Some(offset)));
    // What is behind a record of `responses` that cannot be understood is looked at all the same.
    world.produce_to(Topic::Responses, 0, b"not a frame").await;
    let behind = answer_out_of_nowhere(&world).await;
    let (_, report) = audit(&world.config, &[]);
    let i2 = check(&report, "I2");
    assert_eq!(i2["first"][1]["offset"].as_i64(), Some(behind), "{report:#}");
    let told = i2["could_not_look"]
        .as_array()
        .is_some_and(|all| all.iter().any(|why| why.to_string().contains("responses/0")));
    assert!(told, "{report:#}");
}

/// Runs statements on the world's tables.
async fn alter(world: &World, statements: &[&str]) {
    let clickhouse = &world.config.clickhouse;
    for statement in statements {
        let statement = statement.replace("{database}", &clickhouse.database);
        let answer =
            reqwest::Client::new().post(&clickhouse.url).body(statement.clone()).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status.is_success(), "{statement}: {text}");
    }
}

/// Puts the rows back as they were.
async fn restore(world: &World) {
    alter(world, &["TRUNCATE TABLE {database}.usage", "INSERT INTO {database}.usage SELECT * FROM {database}.kept"])
        .await;
    holds(world, &[]);
}

/// Nothing but I5 is violated, and this is what it says.
fn differs(world: &World, arguments: &[&str], says: &[&str]) {
    let (code, report) = audit(&world.config, arguments);
    assert_eq!((code, &report["verdict"]), (Some(1), &Value::from("violated")), "{report:#}");
    let violated = |check: &&Value| check["violations"].as_u64() > Some(0);
    let checks = report["checks"].as_array().expect("checks");
    let names: Vec<&Value> = checks.iter().filter(violated).map(|check| &check["check"]).collect();
    assert_eq!(names, ["I5"], "{report:#}");
    let found: Vec<&str> =
        check(&report, "I5")["first"].as_array().expect("findings").iter().filter_map(|f| f["what"].as_str()).collect();
    for says in says {
        assert!(found.iter().any(|what| what.contains(says)), "{says:?} is not in {found:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_that_differ_anywhere_behind_the_journal_are_found() {
    let mut world = World::start("sums").await;
    let mut books = Node::start(world.config.clone(), &[Role::Projection, Role::Sink]).await.expect("a node");
    books.ready(PATIENCE).await.expect("ready");
    run_requests(&world, "first").await;
    // However far they are, everything holds.
    let report = eventually("everything is inserted", async || {
        let report = holds(&world, &[]);
        let lag = (report["not_projected"].as_u64(), report["not_inserted"].as_u64());
        (lag == (Some(0), Some(0))).then_some(report)
    })
    .await;
    // Of one organization in an hour or two: a model, and none.
    assert!(check(&report, "I5")["looked_at"].as_u64() >= Some(2), "{report:#}");
    assert_eq!(report["clickhouse"], "compared");
    books.stop().await.expect("a clean stop");
    world.stop().await;
    let partition = partition_of(ORGANIZATION, PARTITIONS).to_string();
    let report = holds(&world, &["--partition", &partition, "--from", "1h"]);
    assert!(check(&report, "I5")["looked_at"].as_u64() >= Some(2), "{report:#}");

    // A row that was inserted twice is one.
    let keep = [
        "CREATE TABLE {database}.kept AS {database}.usage",
        "INSERT INTO {database}.kept SELECT * FROM {database}.usage FINAL",
    ];
    alter(&world, &keep).await;
    alter(&world, &["INSERT INTO {database}.usage SELECT * FROM {database}.kept"]).await;
    holds(&world, &[]);

    let gone = "ALTER TABLE {database}.usage DELETE WHERE request_id = 'first-1' SETTINGS mutations_sync = 1";
    alter(&world, &[gone]).await;
    differs(&world, &[], &["org_demo, gpt-4o-mini, hour of", "the journal and ClickHouse differ"]);
    let report = holds(&world, &["--no-clickhouse"]);
    assert_eq!(report["clickhouse"], "left_out");
    let i5 = check(&report, "I5");
    assert!(i5["looked_at"].as_u64() > Some(0), "{i5:#}");
    assert!(i5["states"].as_str().is_some_and(|states| states.contains("left out")), "{i5:#}");
    restore(&world).await;

    // A pico-dollar more in one row.
    let pico = "INSERT INTO {database}.usage SELECT * REPLACE (cost_usd + toDecimal128('0.000000000001', 12) AS cost_usd) \
                FROM {database}.kept WHERE request_id = 'first-1'";
    alter(&world, &[pico]).await;
    differs(&world, &[], &["the journal and ClickHouse differ"]);
    restore(&world).await;

    let more = "INSERT INTO {database}.usage SELECT * REPLACE (journal_index + 100 AS journal_index, NULL AS cost_usd) \
                FROM {database}.kept WHERE request_id = 'first-2'";
    alter(&world, &[more]).await;
    differs(&world, &[], &["of unknown cost"]);
    restore(&world).await;

    let beyond = "INSERT INTO {database}.usage SELECT * REPLACE (journal_offset + 1000000 AS journal_offset) \
                  FROM {database}.kept WHERE request_id = 'first-2'";
    let nowhere =
        "INSERT INTO {database}.usage SELECT * REPLACE (77 AS journal_partition) FROM {database}.kept LIMIT 1";
    alter(&world, &[beyond, nowhere]).await;
    differs(&world, &[], &["ClickHouse has rows of offset 1000", "the journal ends at 0"]);
    restore(&world).await;

    let mut away = world.config.clone();
    away.clickhouse.url = "http://127.0.0.1:1".into();
    let (code, report) = audit(&away, &[]);
    assert_eq!((code, &report["verdict"]), (Some(2), &Value::from("could_not_look")), "{report:#}");
    assert_eq!(check(&report, "I1")["verdict"], "holds");
    let i5 = check(&report, "I5");
    assert!(i5["could_not_look"][0].as_str().is_some_and(|why| why.contains("127.0.0.1:1")), "{i5:#}");
    assert!(i5["looked_at"].as_u64() > Some(0), "usage is compared all the same: {i5:#}");

    // A record of usage that comes again is one; not if it says something else.
    let mut record: UsageRecord =
        world.find(|record: UsageRecord| (record.request_id.as_str() == "first-3").then_some(record)).await;
    let usage_partition = record.journal_partition;
    let mut payload = Vec::new();
    world.codec.encode(&record, &mut payload).expect("encoded");
    world.produce_to(Topic::Usage, usage_partition, &payload).await;
    holds(&world, &[]);
    record.cost_pico_usd = Some(PicoUsd::new(1));
    world.codec.encode(&record, &mut payload).expect("encoded");
    world.produce_to(Topic::Usage, usage_partition, &payload).await;
    differs(&world, &[], &["comes again with other values"]);
    differs(&world, &["--no-clickhouse"], &["comes again with other values"]);
    record.journal_index += 1;
    world.codec.encode(&record, &mut payload).expect("encoded");
    world.produce_to(Topic::Usage, usage_partition, &payload).await;
    differs(&world, &[], &["the journal and usage differ"]);
}

#[tokio::test]
async fn an_audit_that_cannot_look_says_so() {
    let config = stack().isolated("blind").await;
    let unable = |config: &Config, arguments: &[&str], why: &str| {
        let (code, report) = audit(config, arguments);
        assert_eq!((code, &report["verdict"]), (Some(2), &Value::from("could_not_look")), "{report}");
        assert!(report["error"].as_str().is_some_and(|error| error.contains(why)), "{report}");
    };
    unable(&config, &["--partition", "4-9"], "not all of those");
    unable(&config, &["--partition", "0,99"], "not all of those");
    unable(&config, &["--from", "2999-01-01T00:00:00Z"], "no record in that range");
    let mut away = config.clone();
    away.kafka.brokers = "127.0.0.1:1".into();
    unable(&away, &[], "127.0.0.1:1");
    let mut elsewhere = config.clone();
    elsewhere.kafka.topic_prefix = "nobody.".into();
    unable(&elsewhere, &[], "there is no topic nobody.requests");
}
