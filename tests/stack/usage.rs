//! From the journal to ClickHouse on real engines: whatever stops in between, every posting is one row and every
//! pico-dollar is there once.

mod command;
mod events;
mod guide;
mod http;
mod journal;
mod poison;
mod readers;
pub mod world;

use std::collections::BTreeMap;

use clickhouse::Row;
use rustix::process::Signal;
use serde::Deserialize;
use tollstream::codec;
use tollstream::config;
use tollstream::domain::{OrganizationId, RequestId};
use tollstream::records::dead_letters::DeadLetter;
use tollstream::records::journal::{Entry, JournalRecord, RecordSkipped};
use tollstream::records::journal::{Fact, InputKind};
use tollstream::records::usage::UsageRecord;
use tollstream::records::{Outcome, Topic};
use tollstream::sink::{migrations, retention};
use tollstream::stack::Engine;

use journal::{Owners, Posting, commit, ended, organization_of, taken};
use world::{Engines, OwnEngines, PARTITIONS, World, until};

#[derive(Debug, Row, Deserialize)]
struct PostingRow {
    journal_partition: i32,
    journal_offset: i64,
    journal_index: i32,
    organization: String,
    model: Option<String>,
    cost_usd: Option<i128>,
    hour: u32,
}

#[derive(Debug, Row, Deserialize)]
struct SpentRow {
    organization: String,
    model: Option<String>,
    hour: u32,
    cost: Option<i128>,
}

/// Waits for all rows and compares them, one by one and summed, with what the journal says.
async fn assert_clickhouse_is_the_journal(world: &World, owners: &Owners) {
    let expected = owners.sorted();
    until("all rows are there", async || {
        world.number("SELECT count() FROM usage_exact").await >= expected.len() as u64
    })
    .await;
    let rows: Vec<PostingRow> = world
        .rows(
            "SELECT journal_partition, journal_offset, journal_index, organization, model, cost_usd, \
             toStartOfHour(at) AS hour FROM usage_exact ORDER BY journal_partition, journal_offset, journal_index",
        )
        .await;
    let rows: Vec<Posting> = rows
        .into_iter()
        .map(|row| Posting {
            partition: row.journal_partition,
            offset: row.journal_offset,
            index: row.journal_index,
            organization: row.organization,
            model: row.model,
            cost: row.cost_usd,
            hour: i64::from(row.hour),
        })
        .collect();
    assert_eq!(rows, expected);
    let spent: Vec<SpentRow> = world
        .rows(
            "SELECT organization, model, hour, sum(cost_usd) AS cost FROM cost_by_organization_model_tier_hour \
             WHERE origin = 'live' GROUP BY organization, model, hour",
        )
        .await;
    let spent: BTreeMap<_, _> =
        spent.into_iter().map(|row| ((row.organization, row.model, i64::from(row.hour)), row.cost)).collect();
    assert_eq!(spent, owners.spent());
    assert_eq!(world.number("SELECT count() FROM requests").await, owners.requests_made());
    assert_eq!(world.number("SELECT count() FROM requests WHERE outcome IS NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_effective_commits_become_rows() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    owners.requests(&world, 60).await;
    for partition in 0..PARTITIONS {
        owners.take_over(&world, partition).await;
    }
    owners.requests(&world, 60).await;
    let (projection, sink) = (world.start_projection().await, world.start_sink().await);
    assert_clickhouse_is_the_journal(&world, &owners).await;
    assert!(projection.counter("tollstream_projection_ineffective_commits") >= 3 * PARTITIONS as u64);
    projection.stop().await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_stopped_and_killed_under_load_loses_and_doubles_nothing() {
    let engines = OwnEngines::start().await;
    let mut world = World::on(&engines.addresses()).await;
    let mut owners = Owners::take(&world).await;
    let (projection, sink) = (world.start_projection().await, world.start_sink().await);
    owners.requests(&world, 200).await;
    until("some rows are written", async || sink.counter("tollstream_sink_rows") > 0).await;

    // Hangs for longer than the sink waits: what it sent may be written or not, and is sent again.
    engines.signal(Engine::ClickHouse, Signal::STOP);
    let mut failures = 0;
    while failures == 0 {
        owners.requests(&world, 50).await;
        failures = sink.counter("tollstream_sink_insert_failures");
    }
    assert!(sink.why_not_ready().contains("within 2000 ms"), "{}", sink.why_not_ready());
    engines.signal(Engine::ClickHouse, Signal::CONT);
    sink.ready().await;

    engines.signal(Engine::ClickHouse, Signal::KILL);
    let before = failures;
    while failures == before {
        owners.requests(&world, 50).await;
        failures = sink.counter("tollstream_sink_insert_failures");
    }
    owners.requests(&world, 200).await;
    assert_clickhouse_is_the_journal(&world, &owners).await;
    sink.ready().await;
    projection.stop().await;
    sink.stop().await;
    engines.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_crash_and_come_back_lose_and_double_nothing() {
    let mut world = World::new().await;
    // Only clean stops commit, so that every crash makes the projection repeat itself.
    world.offset_commit_ms = 3_600_000;
    let mut owners = Owners::take(&world).await;
    let mut repeats = 0;
    for round in 0..4 {
        let (projection, sink) = (world.start_projection().await, world.start_sink().await);
        owners.requests(&world, 150).await;
        if round == 1 {
            owners.take_over(&world, 1).await;
        }
        until("some of it is through", async || sink.counter("tollstream_sink_rows") > 0).await;
        owners.requests(&world, 50).await;
        // Crashes and clean stops take turns, for each of the two.
        if round % 2 == 0 {
            projection.kill().await
        } else {
            projection.stop().await
        }
        if round < 2 {
            sink.kill().await
        } else {
            sink.stop().await
        }
        repeats = world.read_all(Topic::Usage).len() - distinct(&world);
    }
    let (projection, sink) = (world.start_projection().await, world.start_sink().await);
    owners.requests(&world, 20).await;
    assert_clickhouse_is_the_journal(&world, &owners).await;
    assert!(repeats > 0, "no crash made the projection repeat itself");
    projection.stop().await;
    sink.stop().await;
}

/// How many postings are on `usage`, repeats not counted.
fn distinct(world: &World) -> usize {
    let postings = world.read_all(Topic::Usage).into_iter().map(|(_, payload)| {
        let posting: UsageRecord = world.codec.decode(&payload).unwrap();
        (posting.journal_partition, posting.journal_offset, posting.journal_index)
    });
    postings.collect::<std::collections::BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_on_usage_are_rows_but_never_count() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    owners.requests(&world, 50).await;
    let projection = world.start_projection().await;
    until("all is projected", async || world.read_all(Topic::Usage).len() == owners.postings.len()).await;
    projection.stop().await;
    let records = world.read_all(Topic::Usage);
    for (partition, payload) in records.iter().chain(&records) {
        world.put(Topic::Usage, *partition, "key", payload).await;
    }
    // Small batches make many parts, which nothing has merged yet.
    world.client().query_raw("SYSTEM STOP MERGES usage").execute().await.unwrap();
    let settings = config::Sink { batch_rows: 20, ..config::Sink::default() };
    let sink = world.start_sink_with(settings, world.clickhouse.clone()).await;
    let all = 3 * records.len() as u64;
    until("every repeat is written", async || sink.counter("tollstream_sink_rows") == all).await;
    assert!(world.number("SELECT count() FROM usage").await > owners.postings.len() as u64);
    assert!(world.number("SELECT uniqExact(_part) FROM usage").await > 1);
    assert_clickhouse_is_the_journal(&world, &owners).await;
    world.client().query_raw("SYSTEM START MERGES usage").execute().await.unwrap();
    world.client().query_raw("OPTIMIZE TABLE usage FINAL").execute().await.unwrap();
    assert_clickhouse_is_the_journal(&world, &owners).await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_record_that_nobody_understands_stops_its_partition_only() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    let projection = world.start_projection().await;
    let sink = world.start_sink().await;
    owners.requests(&world, 30).await;
    let mut unknown = JournalRecord::from(taken());
    unknown.kind = "ownership_shared".into();
    let mut payload = Vec::new();
    world.codec.encode(&unknown, &mut payload).unwrap();
    let poisoned = world.put(Topic::Journal, 2, "key", &payload).await;
    let before: Vec<Posting> = owners.postings.clone();
    owners.requests(&world, 30).await;
    until("the partition stops", async || projection.why_not_ready().contains("ownership_shared")).await;
    let why = projection.why_not_ready();
    assert!(why.contains(&format!("journal/2 stops at offset {poisoned}")), "{why}");
    owners.postings.retain(|posting| posting.partition != 2 || before.contains(posting));
    let expected = owners.postings.len() as u64;
    until("the others go on", async || world.number("SELECT count() FROM usage_exact").await == expected).await;
    projection.stop().await;

    // It stops there again after a restart, and nothing of what comes after it gets through.
    let projection = world.start_projection().await;
    until("the partition stops", async || projection.why_not_ready().contains("ownership_shared")).await;
    assert_eq!(world.number("SELECT count() FROM usage_exact").await, expected);
    projection.stop().await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_newer_schema_are_read_in_their_place() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    let projection = world.start_projection().await;
    let sink = world.start_sink().await;
    projection.ready().await;
    sink.ready().await;
    let journal_schema = register_newer(&world, Topic::Journal).await;
    let usage_schema = register_newer(&world, Topic::Usage).await;

    // A newer owner takes a partition: what it and its successors write only counts if its record is read in order.
    let organization = organization_of(0);
    let newer = |entry: Entry| {
        let mut payload = Vec::new();
        world.codec.encode(&JournalRecord::from(entry), &mut payload).unwrap();
        with_schema(&payload, journal_schema)
    };
    let tenure = world.put(Topic::Journal, 0, "key", &newer(taken())).await;
    for sequence in 0..20 {
        let facts = vec![ended(1, 1, Outcome::Completed, Some(1_000_000_000_000))];
        let payload = newer(commit(&organization, "newer", tenure, sequence, 0, facts));
        world.put(Topic::Journal, 0, &organization, &payload).await;
    }
    let sum = "SELECT toUInt64(ifNull(sum(cost_usd), 0)) FROM usage_exact";
    until("20 dollars arrive", async || world.number(sum).await == 20).await;

    let mut posting: UsageRecord = world.codec.decode(&world.read_all(Topic::Usage)[0].1).unwrap();
    posting.journal_offset = 1_000_000;
    let mut payload = Vec::new();
    world.codec.encode(&posting, &mut payload).unwrap();
    world.put(Topic::Usage, 0, "key", &with_schema(&payload, usage_schema)).await;
    until("21 dollars arrive", async || world.number(sum).await == 21).await;
    owners.postings.clear();
    projection.stop().await;
    sink.stop().await;
}

/// Registers the schema of a topic with one more field at its end; the id.
async fn register_newer(world: &World, topic: Topic) -> u32 {
    let mut schema: serde_json::Value = serde_json::from_str(topic.schema()).unwrap();
    let field = serde_json::json!({ "name": "brand_new", "type": ["null", "string"], "default": null });
    schema["fields"].as_array_mut().unwrap().push(field);
    tollstream::tls::install_provider();
    let url = format!("{}/subjects/{}/versions", world.registry.url(), world.registry.subject(topic));
    let body = serde_json::json!({ "schema": schema.to_string() });
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().post(url).json(&body).send().await.unwrap();
    let answer: serde_json::Value = answer.error_for_status().unwrap().json().await.unwrap();
    answer["id"].as_u64().unwrap() as u32
}

/// The same record in the newer schema: another id, and null for the new field.
fn with_schema(payload: &[u8], id: u32) -> Vec<u8> {
    assert!(codec::schema_id(payload).is_ok());
    [&[0], &id.to_be_bytes()[..], &payload[5..], &[0]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_record_that_cannot_be_read_is_put_aside_and_the_sink_goes_on() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    let garbage = world.put(Topic::Usage, 1, "who", b"{\"not\":\"avro\"}").await;
    let stranger = [&[0], &0x7fff_ffff_u32.to_be_bytes()[..], b"datum"].concat();
    let unknown = world.put(Topic::Usage, 1, "who", &stranger).await;
    let (projection, sink) = (world.start_projection().await, world.start_sink().await);
    owners.requests(&world, 50).await;
    assert_clickhouse_is_the_journal(&world, &owners).await;
    until("both are put aside", async || world.read_all(Topic::DeadLetters).len() == 2).await;
    let mut letters: Vec<DeadLetter> =
        world.read_all(Topic::DeadLetters).iter().map(|(_, payload)| world.codec.decode(payload).unwrap()).collect();
    letters.sort_by_key(|letter| letter.offset);
    let told: Vec<_> = letters.iter().map(|l| (l.topic.clone(), l.partition, l.offset, l.reason.as_str())).collect();
    let topic = world.topic(Topic::Usage);
    assert_eq!(told, [(topic.clone(), 1, garbage, "undecodable"), (topic, 1, unknown, "unknown_schema")]);
    assert_eq!(letters[0].payload.as_deref(), Some(b"{\"not\":\"avro\"}".as_slice()));
    projection.stop().await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_without_clickhouse_holds_two_batches_and_stays_in_its_group() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    // Nothing listens on port 1.
    let nowhere = config::ClickHouse { url: "http://127.0.0.1:1".into(), ..world.clickhouse.clone() };
    // Batches end by their rows, however slowly those come.
    let settings = config::Sink {
        batch_rows: 10,
        batch_ms: 60_000,
        retry_min_ms: 20,
        retry_max_ms: 100,
        ..config::Sink::default()
    };
    let cut_off = world.start_sink_with(settings, nowhere).await;
    cut_off.ready().await;
    let projection = world.start_projection().await;
    owners.requests(&world, 300).await;
    until("it has tried for a while", async || cut_off.counter("tollstream_sink_insert_failures") > 50).await;
    assert!(cut_off.why_not_ready().contains("10 rows wait for"), "{}", cut_off.why_not_ready());

    // It stands still, but a rebalance does not wait for it: a second sink gets its share at once.
    let second = world.start_sink().await;
    until("the second gets rows", async || second.counter("tollstream_sink_rows") > 0).await;
    assert_eq!(cut_off.counter("tollstream_sink_rows"), 0);
    cut_off.stop().await;
    assert_clickhouse_is_the_journal(&world, &owners).await;
    projection.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_each_role_share_the_partitions_while_one_comes_and_goes() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    let (projection, sink) = (world.start_projection().await, world.start_sink().await);
    owners.requests(&world, 100).await;
    let (second_projection, second_sink) = (world.start_projection().await, world.start_sink().await);
    while second_projection.counter("tollstream_projection_postings") == 0
        || second_sink.counter("tollstream_sink_rows") == 0
    {
        owners.requests(&world, 20).await;
    }
    projection.kill().await;
    sink.stop().await;
    owners.requests(&world, 100).await;
    assert_clickhouse_is_the_journal(&world, &owners).await;
    second_projection.stop().await;
    second_sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_without_a_request_are_passed_over() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    let Entry::Commit(mut skipped) = commit("organization-0", "r", 0, 0, 0, Vec::new()) else { panic!("a commit") };
    let tenure = world.put(Topic::Journal, 3, "key", &encoded(&world, taken())).await;
    skipped.tenure = tenure;
    skipped.input = InputKind::Record;
    skipped.facts = vec![Fact::RecordSkipped(RecordSkipped { reason: "undecodable".into(), told: None })];
    (skipped.organization, skipped.request) = (None, None);
    world.put(Topic::Journal, 3, "key", &encoded(&world, Entry::Commit(skipped.clone()))).await;
    let facts = vec![ended(1, 1, Outcome::Completed, Some(5))];
    let next = commit(&organization_of(3), "r1", tenure, 1, 0, facts);
    world.put(Topic::Journal, 3, "key", &encoded(&world, next)).await;
    let (projection, sink) = (world.start_projection().await, world.start_sink().await);
    until("the row arrives", async || world.number("SELECT count() FROM usage_exact").await == 1).await;
    owners.postings.clear();
    projection.stop().await;
    sink.stop().await;
}

fn encoded(world: &World, entry: Entry) -> Vec<u8> {
    let mut payload = Vec::new();
    world.codec.encode(&JournalRecord::from(entry), &mut payload).unwrap();
    payload
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_are_applied_once_and_never_changed_afterwards() {
    let world = World::without_tables(&Engines::shared()).await;
    let names = |list: &[migrations::Migration]| list.iter().map(|m| m.name).collect::<Vec<_>>();
    let all = names(migrations::migrations());
    assert_eq!(names(&migrations::pending(&world.clickhouse).await.unwrap()), all);
    let database = world.client().query_raw("SELECT 1").fetch_one::<u8>().await;
    assert!(database.unwrap_err().to_string().contains("UNKNOWN_DATABASE"), "asking made the database");
    assert_eq!(names(&migrations::apply(&world.clickhouse).await.unwrap()), all);
    assert_eq!(migrations::pending(&world.clickhouse).await.unwrap(), []);
    assert_eq!(migrations::apply(&world.clickhouse).await.unwrap(), []);

    // The second one broke off before it was written down.
    let forget = "ALTER TABLE schema_migrations DELETE WHERE number = 2 SETTINGS mutations_sync = 1";
    world.client().query_raw(forget).execute().await.unwrap();
    assert_eq!(names(&migrations::apply(&world.clickhouse).await.unwrap()), all[1..2]);

    let change = "INSERT INTO schema_migrations (number, name, checksum) VALUES (1, 'usage', 'another')";
    world.client().query_raw(change).execute().await.unwrap();
    let error = migrations::pending(&world.clickhouse).await.unwrap_err().to_string();
    assert!(error.starts_with("migration 1 (usage) was changed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_earlier_version_goes_forward_with_its_rows() {
    let world = World::without_tables(&Engines::shared()).await;
    let all = migrations::migrations();
    let rows = [
        (
            1,
            "usage",
            "at, organization, request_id, kind, cost_usd",
            "now64(3), 'acme', 'r', 'attempt', 0.000000000001",
        ),
        (3, "replay_decisions", "run, at, organization, request_id", "'run', now64(3), 'acme', 'r'"),
        (4, "routing_decisions", "at, organization, request_id, candidate_models", "now64(3), 'acme', 'r', ['m']"),
        (4, "refusals", "at, organization, request_id, code", "now64(3), 'acme', 'r', 'rate_limit_exceeded'"),
        (4, "budget_events", "at, organization, request_id, event", "now64(3), 'acme', 'r', 'overdrawn'"),
        (7, "cache_lookups", "at, organization, request_id, outcome", "now64(3), 'acme', 'r', 'hit'"),
        (7, "cache_changes", "at, organization, request_id, event", "now64(3), 'acme', 'r', 'inserted'"),
    ];
    for earlier in all {
        let database = format!("{}_{}", world.clickhouse.database, earlier.number);
        let config = config::ClickHouse { database: database.clone(), ..world.clickhouse.clone() };
        let applied = migrations::apply_up_to(&config, earlier.number).await.unwrap();
        assert_eq!(applied.len() as u32, earlier.number);
        let client = world.client().with_database(&database);
        let there = rows.iter().filter(|(since, ..)| *since <= earlier.number);
        let tables: Vec<&str> = there.clone().map(|(_, table, ..)| *table).collect();
        for (_, table, columns, values) in there {
            let insert = format!("INSERT INTO {table} ({columns}) VALUES ({values})");
            client.query_raw(&insert).execute().await.unwrap();
        }
        assert_eq!(migrations::apply(&config).await.unwrap(), all[earlier.number as usize..]);
        for table in tables {
            let view = format!("SELECT count() FROM {table}_exact WHERE organization = 'acme' AND request_id = 'r'");
            assert_eq!(client.query_raw(&view).fetch_one::<u64>().await.unwrap(), 1, "{table} from {}", earlier.number);
        }
        let cost = "SELECT assumeNotNull(sum(cost_usd)) FROM usage_exact";
        assert_eq!(client.query_raw(cost).fetch_one::<i128>().await.unwrap(), 1);
        let bare = format!(
            "SELECT concat(table, '.', name) FROM system.columns WHERE database = '{database}' AND comment = '' \
             AND table IN (SELECT name FROM system.tables WHERE database = '{database}' AND engine != 'View')"
        );
        assert_eq!(client.query_raw(&bare).fetch_all::<String>().await.unwrap(), [""; 0], "columns without a comment");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_dropped_when_their_days_are_over_and_only_then() {
    let world = World::new().await;
    let put = async |age_days: u32| {
        let insert = format!(
            "INSERT INTO refusals (at, organization, request_id, code) \
             VALUES (now64(3) - toIntervalDay({age_days}), 'acme', 'r{age_days}', 'rate_limit_exceeded')"
        );
        world.client().query_raw(&insert).execute().await.unwrap();
    };
    let kept = async || {
        world.client().query_raw("OPTIMIZE TABLE refusals FINAL").execute().await.unwrap();
        world.rows::<String>("SELECT request_id FROM refusals_exact ORDER BY at DESC").await
    };
    put(1).await;
    put(60).await;
    assert_eq!(retention::pending(&world.clickhouse).await.unwrap(), []);
    assert_eq!(kept().await, ["r1", "r60"]);

    let mut config = config::ClickHouse { refusals_ttl_days: Some(30), ..world.clickhouse.clone() };
    let changes = retention::apply(&config).await.unwrap();
    assert_eq!(changes, [retention::Change { table: "refusals", days: Some(30) }]);
    assert_eq!(retention::pending(&config).await.unwrap(), []);
    put(61).await;
    until("the old rows are gone", async || kept().await == ["r1"]).await;

    config.refusals_ttl_days = None;
    assert_eq!(retention::apply(&config).await.unwrap(), [retention::Change { table: "refusals", days: None }]);
    assert_eq!(retention::apply(&config).await.unwrap(), []);
    put(62).await;
    assert_eq!(kept().await, ["r1", "r62"]);
}

#[test]
fn ids_of_the_tests_are_valid() {
    assert!((0..PARTITIONS).all(|partition| OrganizationId::parse(&organization_of(partition)).is_ok()));
    assert!(RequestId::parse("request-1").is_ok());
}
