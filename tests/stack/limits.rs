//! What no decision, no answer and no record may do: hold up others for longer than it must.

use tollstream::domain::ids::partition_of;
use tollstream::domain::{DeploymentId, PicoUsd, Timestamp};
use tollstream::records::control::{Deployment, Entity, Limits, Model, PriceEntry};
use tollstream::records::dead_letters::DeadLetter;
use tollstream::records::journal::{Entry, JournalRecord, OwnershipTaken};
use tollstream::records::{Outcome, Topic};
use tollstream::runtime::clock;

use super::fixture::{eventually, key};
use super::pressure::{ORGANIZATION, PARTITIONS, Place};
use super::process::{Launch, Process};
use super::stream::{Producer, World, chat, question};
use super::usage::world::Engines;

/// A model with so many deployments that a choice among them is more than a commit may hold.
fn enormous() -> Model {
    let free = PriceEntry {
        effective_from: Timestamp::from_millis(0),
        min_input_tokens: None,
        max_input_tokens: None,
        input: PicoUsd::ZERO,
        cached_input: None,
        cache_write: None,
        output: PicoUsd::ZERO,
        reasoning: None,
        source: None,
        source_read: None,
    };
    let deployment = |number: i32| Deployment {
        id: DeploymentId::parse(&format!("{number:0>200}")).expect("an id"),
        provider: "p".into(),
        upstream_model: "m".into(),
        base_url: "http://127.0.0.1:1".into(),
        region: "r".into(),
        credential: "none".into(),
        prices: vec![free.clone()],
        weight: None,
    };
    Model {
        aliases: Vec::new(),
        tier: 1,
        owned_by: "test".into(),
        created_at: Timestamp::from_millis(0),
        context_window: 1_000,
        max_output_tokens: 1,
        capabilities: Vec::new(),
        deployments: (0..3_000).map(deployment).collect(),
        limits: Limits::default(),
        balance: tollstream::records::control::Balance::default(),
    }
}

#[tokio::test]
async fn a_decision_that_cannot_be_written_puts_its_record_aside_and_the_partition_goes_on() {
    let mut world = World::start("undecidable").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let version = Producer::new(&world.config).await.add("enormous", Entity::Model(enormous())).await;
    let asked = r#"{"model":"enormous","messages":[{"role":"user","content":"Hello"}]}"#;
    world.control_reached(version).await;
    let offset = world.ask(partition, chat("choice", asked)).await;
    world.ask(partition, question("after")).await;
    let letter = world.find(move |letter: DeadLetter| (letter.offset == offset).then_some(letter)).await;
    assert_eq!(world.terminal_of("after").await.outcome, Outcome::Completed);
    assert_eq!((letter.reason.as_str(), letter.partition), ("undecidable", partition), "{letter:?}");
    assert!(letter.detail.contains("bytes"), "{}", letter.detail);
    world.stop().await;
}

#[tokio::test]
async fn a_deployment_without_its_credential_is_not_called() {
    // Neither the credential nor a simulator in its place.
    let mut world = World::with("credential", |config| config.providers.simulator_url = None).await;
    world.ask(partition_of(ORGANIZATION, PARTITIONS), question("without")).await;
    let terminal = world.terminal_of("without").await;
    let error = terminal.error.expect("an error");
    assert_eq!((terminal.outcome, error.status, error.code.as_str()), (Outcome::Failed, 502, "upstream_configuration"));
    assert!(error.message.contains("no credential") && !error.message.contains("env:"), "{}", error.message);
    assert_eq!(terminal.cost_pico_usd, Some(PicoUsd::ZERO));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_as_large_as_may_be_arrives_and_a_larger_one_is_an_error() {
    let mut place = Place::on("answers", &Engines::shared(), |_| {}).await;
    let most = place.config.providers.answer_bytes_max;
    let largest = place.ask(&place.key, &format!("bytes={}", most - 1_000), false).await;
    assert_eq!(largest.status, 200, "{:?}", largest.code);
    assert!(largest.text.len() > most - 1_000);
    let larger = place.ask(&place.key, &format!("bytes={most}"), false).await;
    assert_eq!((larger.status, larger.code.as_deref()), (502, Some("upstream_too_large")));
    // The largest body, too.
    // Of few tokens, so that it fits into the model's context.
    let question = " ".repeat(place.config.facade.body_bytes_max - 1_000);
    assert_eq!(place.ask(&place.key, &question, false).await.status, 200);
    let larger = "x".repeat(place.config.facade.body_bytes_max);
    assert_eq!(place.ask(&place.key, &larger, false).await.status, 413);
    assert_eq!(place.ask(&place.key, "hello", true).await.status, 200);
    place.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_control_is_passed_over_and_operators_are_not_locked_out() {
    let mut place = Place::on("control", &Engines::shared(), |_| {}).await;
    let producer = Producer::new(&place.config).await;
    let garbage: [&[u8]; 4] = [b"", b"not a record", &[0, 0, 0, 0, 1, 2], &[0, 0x7f, 0xff, 0xff, 0xff, 1]];
    for payload in garbage {
        producer.put(Topic::Control, 0, payload).await;
    }
    let later = key(&place.config, ORGANIZATION);
    eventually("a later key counts", async || (place.ask(&later, "hello", true).await.status == 200).then_some(()))
        .await;
    assert_eq!(place.gateway.readiness().await["status"], "ready");
    // A start reads them all again.
    place.gateway = Process::start(&place.config, Launch { instance: &place.config.instance, ..Launch::default() });
    place.gateway.ready().await;
    assert_eq!(place.ask(&later, "hello", true).await.status, 200);
    place.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_fact_on_the_journal_closes_its_partition_only_and_health_says_which() {
    let place = Place::on("fact", &Engines::shared(), |_| {}).await;
    let own = partition_of(ORGANIZATION, PARTITIONS);
    let producer = Producer::new(&place.config).await;
    let taken = OwnershipTaken { owner: "a newer one".into(), at: clock::now(), version: "9".into() };
    let mut record = JournalRecord::from(Entry::OwnershipTaken(taken));
    record.kind = "ownership_shared".into();
    let offset = producer.put(Topic::Journal, own, &producer.encoded(&record)).await;
    // The next commit finds out.
    let caught = place.ask_within(&place.key, "hello", true, 1_000).await;
    assert_eq!((caught.status, caught.code.as_deref()), (504, Some("deadline_exceeded")), "{caught:?}");
    let why = eventually("health says so", async || {
        place.gateway.readiness().await["degraded"]["processor"].as_str().map(str::to_owned)
    })
    .await;
    for part in [&format!("partition {own}"), &format!("offset {offset}"), "ownership_shared", "run the version"] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    assert_eq!(place.gateway.readiness().await["missing"], serde_json::json!({}));
    for _ in 0..20 {
        assert_eq!(place.ask(&place.neighbour, "hello", true).await.status, 200);
    }
}
