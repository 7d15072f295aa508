//! From the journal to its tables on real engines: whatever stops in between, every fact of an effective commit is one row.

use clickhouse::Row;
use serde::Deserialize;
use tollstream::config;
use tollstream::records::Topic;
use tollstream::records::journal::JournalRecord;
use tollstream::sink::events::TABLES;

use super::journal::{Event, Owners, taken};
use super::world::{PARTITIONS, World, until};

#[derive(Debug, Row, Deserialize)]
struct Place {
    journal_partition: i32,
    journal_offset: i64,
    journal_index: i32,
}

async fn count(world: &World) -> usize {
    let mut count = 0;
    for table in TABLES {
        count += world.number(&format!("SELECT count() FROM {table}_exact")).await as usize;
    }
    count
}

/// Waits for all rows and compares them with what the journal says.
async fn assert_tables_are(world: &World, expected: &[Event]) {
    until("all facts are there", async || count(world).await >= expected.len()).await;
    let mut found: Vec<Event> = Vec::new();
    for table in TABLES {
        let sql = format!("SELECT journal_partition, journal_offset, journal_index FROM {table}_exact");
        let rows: Vec<Place> = world.rows(&sql).await;
        found.extend(rows.iter().map(|row| (*table, row.journal_partition, row.journal_offset, row.journal_index)));
    }
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_of_effective_commits_are_rows_and_others_never() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    owners.requests(&world, 60).await;
    for partition in 0..PARTITIONS {
        owners.take_over(&world, partition).await;
    }
    owners.requests(&world, 60).await;
    owners.purge(&world, "organization-3").await;
    let events = world.start_events(world.clickhouse.clone()).await;
    assert_tables_are(&world, &owners.events).await;
    for table in TABLES {
        assert!(world.number(&format!("SELECT count() FROM {table}_exact")).await > 0, "{table} is empty");
    }
    let late = "SELECT count() FROM routing_decisions WHERE request_id = 'late'";
    assert_eq!(world.number(late).await, 0);
    events.stop().await;

    // What is in a row, to the last pico-dollar.
    let sum = "SELECT sum(assumeNotNull(posted_usd)) FROM budget_events_exact WHERE event = 'threshold_crossed'";
    let crossed: Vec<i128> = (0..120).filter(|number| number % 5 > 2).map(|n| 4_000_000_000_000_001 + n).collect();
    assert_eq!(world.rows::<i128>(sum).await, [crossed.iter().sum::<i128>()]);
    let limits =
        "SELECT count() FROM limit_events WHERE scope = 'key' AND name = 'requests_per_minute' AND user_tier = 'vip'";
    assert_eq!(world.number(limits).await, 24);
    let routed = "SELECT count() FROM routing_decisions_exact WHERE intent = 'faq' AND tier = 1 AND escalation \
        AND candidate_models[2] = 'claude-haiku-4-5' AND candidate_tiers = [1, 2, 3] AND input_tokens IS NULL";
    assert_eq!(world.number(routed).await, 72);
    let kept = "SELECT countIf(outcome = 'miss' AND keeps AND ttl_seconds = 60 AND age_ms IS NULL AND length(fingerprint) = 32) \
        FROM cache_lookups_exact";
    assert_eq!(world.number(kept).await, 48);
    let inserted = "SELECT assumeNotNull(sum(bytes)) FROM cache_changes_exact WHERE event = 'inserted' AND tier = 1 \
        AND expires_at = '2026-10-31 23:00:00'";
    let sum: u64 = (0..120).filter(|number| number % 5 > 2).map(|number| 1_000 + number).sum();
    assert_eq!(world.number(inserted).await, sum);
    let evicted = "SELECT sum(entries) FROM cache_changes_exact WHERE event = 'evicted' AND reason = 'least_recently_used' \
        AND fingerprints[2] = repeat('f', 32)";
    assert_eq!(world.number(evicted).await, 96);
    let purged = "SELECT sum(entries) FROM cache_changes_exact WHERE event = 'purged' AND organization = 'organization-3' \
        AND request_id = ''";
    assert_eq!(world.number(purged).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_killed_goes_on_with_the_tenancy_and_repeats_count_once() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    for round in 0..4 {
        let events = world.start_events(world.clickhouse.clone()).await;
        owners.requests(&world, 80).await;
        if round == 1 {
            owners.take_over(&world, 1).await;
        }
        until("some of it is through", async || events.counter("tollstream_events_rows") > 0).await;
        owners.requests(&world, 40).await;
        if round % 2 == 0 { events.kill().await } else { events.stop().await }
    }
    let events = world.start_events(world.clickhouse.clone()).await;
    assert_tables_are(&world, &owners.events).await;
    events.stop().await;

    // Everything once more, by a group that knows nothing: rows come twice and count once.
    for table in TABLES {
        world.client().query_raw(&format!("SYSTEM STOP MERGES {table}")).execute().await.unwrap();
    }
    let prefix = std::mem::take(&mut world.kafka.properties.0);
    world.kafka.properties.0.insert("group.id".into(), format!("{}again", world.kafka.topic_prefix));
    let again = world.start_events(world.clickhouse.clone()).await;
    let all = owners.events.len() as u64;
    until("every repeat is written", async || again.counter("tollstream_events_rows") == all).await;
    again.stop().await;
    world.kafka.properties.0 = prefix;
    let mut raw = 0;
    for table in TABLES {
        raw += world.number(&format!("SELECT count() FROM {table}")).await;
    }
    assert!(raw >= 2 * all, "{raw} rows of {all} facts");
    assert_tables_are(&world, &owners.events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_clickhouse_is_away_facts_are_held_and_another_sink_gets_its_share() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    // Nothing listens on port 1.
    let nowhere = config::ClickHouse { url: "http://127.0.0.1:1".into(), ..world.clickhouse.clone() };
    let cut_off = world.start_events(nowhere).await;
    cut_off.ready().await;
    owners.requests(&world, 300).await;
    until("it has tried for a while", async || cut_off.counter("tollstream_events_insert_failures") > 20).await;
    assert!(cut_off.why_not_ready().contains("rows wait for"), "{}", cut_off.why_not_ready());
    let second = world.start_events(world.clickhouse.clone()).await;
    until("the second gets rows", async || second.counter("tollstream_events_rows") > 0).await;
    assert_eq!(cut_off.counter("tollstream_events_rows"), 0);
    cut_off.stop().await;
    assert_tables_are(&world, &owners.events).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_that_nobody_understands_stops_its_partition_only() {
    let mut world = World::new().await;
    let mut owners = Owners::take(&world).await;
    let events = world.start_events(world.clickhouse.clone()).await;
    owners.requests(&world, 30).await;
    let mut unknown = JournalRecord::from(taken());
    unknown.kind = "ownership_shared".into();
    let mut payload = Vec::new();
    world.codec.encode(&unknown, &mut payload).unwrap();
    let poisoned = world.put(Topic::Journal, 2, "key", &payload).await;
    let before = owners.events.clone();
    owners.requests(&world, 30).await;
    until("the partition stops", async || events.why_not_ready().contains("ownership_shared")).await;
    let why = events.why_not_ready();
    assert!(why.contains(&format!("journal/2 stops at offset {poisoned}")), "{why}");
    assert_eq!(events.counter("tollstream_events_partitions_stopped"), 1);
    owners.events.retain(|event| event.1 != 2 || before.contains(event));
    assert_tables_are(&world, &owners.events).await;
    events.stop().await;

    // It stops there again after a restart, and nothing of what comes after it gets through.
    let events = world.start_events(world.clickhouse.clone()).await;
    until("the partition stops", async || events.why_not_ready().contains("ownership_shared")).await;
    assert_tables_are(&world, &owners.events).await;
    events.stop().await;
}
