//! `tollstream topology`, `keys` and `topics` against the real engines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ConfigSource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::Metadata;
use serde_json::Value;
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::domain::OrganizationId;
use tollstream::records::Topic;
use tollstream::records::control::EntityKind;
use tollstream::runtime::control_log::ControlLog;
use tollstream::runtime::kafka;
use tollstream::runtime::publisher::{Deliveries, Outgoing, Publisher};
use tollstream::topology::apply::{self, Error, Options};
use tollstream::topology::keys;
use tollstream::topology::plan::Action;

use super::fixture::{PATIENCE, stack};

fn admin(config: &Config) -> AdminClient<DefaultClientContext> {
    kafka::client(&config.kafka).create().expect("an admin client")
}

fn topics(config: &Config) -> Vec<String> {
    let metadata: Metadata = admin(config).inner().fetch_metadata(None, PATIENCE).expect("metadata");
    let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
    names.filter(|name| name.starts_with(&config.kafka.topic_prefix)).collect()
}

/// Replaces a topic's own configuration, as somebody might by hand.
async fn set(config: &Config, topic: Topic, entries: &[(&str, &str)]) {
    let name = kafka::topic_name(&config.kafka, topic);
    let mut alter = AlterConfig::new(ResourceSpecifier::Topic(&name));
    for (key, value) in entries {
        alter = alter.set(key, value);
    }
    let results = admin(config).alter_configs([&alter], &AdminOptions::new()).await.expect("an answer");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// The topic's own configuration.
async fn own(config: &Config, topic: Topic) -> BTreeMap<String, String> {
    let name = kafka::topic_name(&config.kafka, topic);
    let described = admin(config).describe_configs([&ResourceSpecifier::Topic(&name)], &AdminOptions::new()).await;
    let resource = described.expect("an answer").remove(0).expect("a topic");
    let entries = resource.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
    entries.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect()
}

/// The binary with a configuration file for the topics and tables of this test.
fn command(config: &Config, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file: PathBuf = folder.path().join("tollstream.toml");
    let text = format!(
        "[kafka]\nbrokers = {:?}\ntopic_prefix = {:?}\n[registry]\nurl = {:?}\n[clickhouse]\nurl = {:?}\ndatabase = {:?}\n",
        config.kafka.brokers,
        config.kafka.topic_prefix,
        config.registry.url,
        config.clickhouse.url,
        config.clickhouse.database
    );
    std::fs::write(&file, text).expect("a configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
    command.args(arguments).arg("--config").arg(&file).output().expect("tollstream runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn a_second_apply_finds_nothing_to_do() {
    let config = stack().isolated("again").await;
    let again = command(&config, &["topology", "apply", "--yes"]);
    assert!(again.status.success() && stdout(&again).starts_with("nothing to do"), "{again:?}");
    let report: Value =
        serde_json::from_str(&stdout(&command(&config, &["topology", "apply", "--json"]))).expect("JSON");
    let items = report["items"].as_array().expect("items");
    assert!(items.len() > 50 && items.iter().all(|item| item["action"] == "unchanged"), "{report}");
    let requests = own(&config, Topic::Requests).await;
    assert_eq!(requests["message.timestamp.type"], "LogAppendTime");
    assert_eq!(own(&config, Topic::Journal).await["retention.ms"], "-1");
}

#[tokio::test]
async fn two_applies_at_once_end_in_the_same_state() {
    // As `isolated` does it, but not applied yet.
    let mut config = stack().isolated("base").await;
    let unique = format!("twice_{}", config.instance);
    config.kafka.topic_prefix = format!("{unique}.");
    config.clickhouse.database = unique;
    let options = Options::laptop().expect("the built-in topology");
    let (one, two) = tokio::join!(apply::run(&config, &options), apply::run(&config, &options));
    one.expect("the first applies");
    two.expect("the second applies");
    let difference = apply::difference(&config, &options).await.expect("a difference");
    assert!(difference.nothing_to_do(), "{difference:?}");
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
    let log = ControlLog::open(&config.kafka, Arc::new(Codec::reader(registry))).await.expect("control");
    assert_eq!(log.tables().models().count(), options.topology.seeds.models.len());
}

#[tokio::test]
async fn a_journal_that_may_have_lost_records_is_refused_and_nothing_is_applied() {
    let config = stack().isolated("lost").await;
    set(&config, Topic::Journal, &[("retention.ms", "3600000")]).await;
    // A change that could be made must not be made either.
    set(&config, Topic::Requests, &[("retention.ms", "3600000"), ("message.timestamp.type", "LogAppendTime")]).await;
    let refused = apply::run(&config, &Options::laptop().expect("options")).await;
    let Err(Error::Refused(refusals)) = refused else { panic!("{refused:?}") };
    assert!(refusals.iter().any(|r| r.name.ends_with("journal") && r.why.contains("retention.ms")), "{refusals:?}");
    assert_eq!(own(&config, Topic::Requests).await["retention.ms"], "3600000");
    let shown = command(&config, &["topology", "apply", "--yes"]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(stdout(&shown).contains("REFUSE"), "{shown:?}");
}

#[tokio::test]
async fn a_configuration_that_loses_nothing_is_changed_and_what_people_set_stays() {
    let config = stack().isolated("longer").await;
    set(&config, Topic::Requests, &[("retention.ms", "3600000"), ("flush.ms", "5000")]).await;
    let report = apply::run(&config, &Options::laptop().expect("options")).await.expect("it applies");
    assert_eq!(report.plan.count(Action::Change), 1);
    let requests = own(&config, Topic::Requests).await;
    assert_eq!((requests["retention.ms"].as_str(), requests["flush.ms"].as_str()), ("604800000", "5000"));
    assert_eq!(requests["message.timestamp.type"], "LogAppendTime");
}

#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let config = stack().isolated("partitions").await;
    let options = Options { partitions: Some(8), ..Options::laptop().expect("options") };
    let refused = apply::run(&config, &options).await;
    let Err(Error::Refused(refusals)) = refused else { panic!("{refused:?}") };
    assert!(refusals.iter().all(|r| r.why.contains("--partitions 4")) && refusals.len() == 7, "{refusals:?}");
}

#[tokio::test]
async fn a_subject_that_went_another_way_is_refused_before_anything_is_made() {
    let mut config = stack().isolated("subjects").await;
    let unique = format!("other_{}", config.instance);
    config.kafka.topic_prefix = format!("{unique}.");
    config.clickhouse.database = unique;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
    let options = Options::laptop().expect("options");
    let subject = registry.subject(Topic::Requests);
    // The registry keeps the compatibility of subjects that it has, and of no others.
    let foreign = r#"{"type":"record","name":"RequestRecord","namespace":"tollstream","fields":[{"name":"prompt","type":"string"}]}"#;
    registry.register_text(&subject, foreign).await.expect("a first schema");
    registry.set_compatibility(&subject, "NONE").await.expect("set");
    let refused = apply::run(&config, &options).await;
    let Err(Error::Refused(refusals)) = refused else { panic!("{refused:?}") };
    assert!(refusals[0].why.contains("compatibility is NONE"), "{refusals:?}");

    registry.set_compatibility(&subject, "FULL_TRANSITIVE").await.expect("set");
    let refused = apply::run(&config, &options).await;
    let Err(Error::Refused(refusals)) = refused else { panic!("{refused:?}") };
    assert_eq!((refusals.len(), refusals[0].kind), (1, "schema"), "{refusals:?}");
    assert_eq!(topics(&config), Vec::<String>::new(), "nothing was made");
}

#[tokio::test]
async fn a_key_is_made_once_and_control_holds_its_hash_only() {
    let config = stack().isolated("keys").await;
    let made = command(&config, &["keys", "create", "--organization", "org_demo", "--name", "ci", "--json"]);
    assert!(made.status.success(), "{made:?}");
    let key: Value = serde_json::from_str(&stdout(&made)).expect("JSON");
    let secret = key["secret"].as_str().expect("a secret");
    assert!(secret.starts_with("tsk_") && secret.len() == 68, "{secret}");
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
    let codec = Arc::new(Codec::connect(registry).await.expect("a codec"));
    let mut log = ControlLog::open(&config.kafka, codec).await.expect("control");
    let (id, stored) = log.tables().key_by_hash(&keys::hash(secret)).expect("the key");
    assert_eq!((id.as_str(), stored.value.organizations[0].as_str()), ("ci", "org_demo"));
    assert!(!format!("{stored:?}").contains(secret));
    let publisher = Publisher::new(&config.kafka).expect("a producer");
    let of = |id| keys::of_organization(&OrganizationId::parse(id).expect("an id"));
    let mut again = of("org_demo");
    again.insert("id".into(), "ci".into());
    let taken = keys::create(&mut log, &publisher, again, "test").await;
    assert!(taken.is_err_and(|error| error.to_string().contains("key ci exists already")));
    let nobody = keys::create(&mut log, &publisher, of("org_nobody"), "test").await;
    assert!(nobody.is_err_and(|error| error.to_string().contains("there is no organization org_nobody")));
    assert!(log.tables().version_of(EntityKind::Key, "ci") >= 0);
}

#[tokio::test]
async fn a_tail_prints_every_record_that_is_asked_for() {
    let config = stack().isolated("tail").await;
    // What cannot be decoded is shown as well.
    let (publisher, deliveries) = (Publisher::new(&config.kafka).expect("a producer"), Deliveries::new());
    let control = kafka::topic_name(&config.kafka, Topic::Control);
    let strange = Outgoing { topic: &control, partition: 0, key: b"strange", payload: b"{\"model\": 1}" };
    publisher.send(strange, &deliveries, 0).expect("sent");
    assert!(publisher.flush(PATIENCE));

    let all = lines(&command(&config, &["topics", "tail", "control"]));
    let offsets: Vec<i64> = all.iter().filter_map(|line| line["offset"].as_i64()).collect();
    assert_eq!(offsets, (0..all.len() as i64).collect::<Vec<_>>());
    let strange = all.last().expect("a record");
    assert!(strange["error"].as_str().is_some_and(|error| error.contains("header")), "{strange}");
    assert_eq!(strange["payload"], "{\"model\": 1}");

    let one = lines(&command(&config, &["topics", "tail", "control", "--key", "model/gpt-4o-mini"]));
    assert_eq!(one.len(), 1);
    let price = &one[0]["value"]["model"]["deployments"][0]["prices"][0];
    assert_eq!(price["input"].as_i64(), Some(150_000), "money is an integer: {price}");

    let last = lines(&command(&config, &["topics", "tail", "control", "--from", "-3", "-n", "2"]));
    assert_eq!(last.len(), 2);
    assert_eq!(last[0]["offset"].as_i64(), offsets.last().map(|end| end - 2));
    let end = command(&config, &["topics", "tail", "control", "--from", "end"]);
    assert!(end.status.success() && end.stdout.is_empty(), "{end:?}");
    let missing = command(&config, &["topics", "tail", "nowhere"]);
    assert_eq!(missing.status.code(), Some(1));
}
