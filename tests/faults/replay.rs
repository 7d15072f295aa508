//! A mixed day with failing providers, refusals, a killed owner and changed rules, replayed: by the recorded rules nothing
//! differs, by one changed rule what it applies to; broken off and gone on with, from an archive, beside live traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tollstream::demo::{Day, Question, TENANTS};
use tollstream::domain::PicoUsd;
use tollstream::records::Topic;
use tollstream::records::control::Organization;
use tollstream::records::requests::Chat;
use tollstream::replay::directory::Directory;
use tollstream::replay::row::Row;
use tollstream::runtime::kafka;
use tollstream::simulate::{Behavior, Options, Server};
use tollstream::stack::free_port;

use super::suite;
use super::world::World;
use crate::stack::fixture::{Engines, PATIENCE, eventually, rows_at};
use crate::stack::process::{Launch, Process};
use crate::stack::stream;

const POLICY: &str = include_str!("../../topology/seed/policies/auto.toml");
/// Requests of the day, and how many are under way at once.
const REQUESTS: usize = 20_000;
const AT_ONCE: usize = 500;
/// Requests that come while a replay runs.
const MEANWHILE: usize = 300;
const PRODUCED_AT_ONCE: usize = 64;
const PARTITIONS: u32 = 4;

async fn failing() -> Server {
    let faults = ["claude-haiku*@status=503:8%", "gpt-4*@status=429;retry-after=1:6%", "claude-sonnet*@cut-after=0:5%"];
    let faults = faults.iter().map(|fault| fault.parse().expect("a fault")).collect();
    simulator(Behavior { faults, ..Behavior::instant() }).await
}

async fn simulator(behavior: Behavior) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    Server::start(Options { behavior, ..Options::default() }, listener).expect("a simulator")
}

fn chat(id: String, question: Question) -> Chat {
    let team = question.body["metadata"]["team"].as_str().expect("a team").to_owned();
    Chat {
        organization: question.tenant.parse().expect("an id"),
        user_tier: question.user_tier.map(str::to_owned),
        tags: BTreeMap::from([("team".to_owned(), team)]),
        conversation_id: Some(question.conversation.parse().expect("an id")),
        reply_partition: Some(0),
        ..stream::chat(&id, &question.body.to_string())
    }
}

/// Asks the questions from `from` on, so many at once, and waits until each is over.
async fn ask(world: &World, questions: &mut impl Iterator<Item = Question>, from: usize, count: usize) {
    let mut journal = world.journal();
    let mut asked = from;
    while asked < from + count {
        let next: Vec<String> = (asked..(asked + AT_ONCE).min(from + count)).map(|n| format!("day-{n}")).collect();
        let chats: Vec<Chat> = next.iter().map(|id| chat(id.clone(), questions.next().expect("a question"))).collect();
        iter(chats).for_each_concurrent(PRODUCED_AT_ONCE, |chat| world.ask_as(chat)).await;
        asked += next.len();
        journal.until("all are over", |read| next.iter().all(|id| read.is_over(id)).then_some(()));
    }
}

/// The program, with the world's configuration.
struct Tool {
    config: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
}

impl Tool {
    fn new(world: &World) -> Self {
        let mut config = tempfile::NamedTempFile::new().expect("a file");
        config.write_all(toml::to_string(&world.config).expect("TOML").as_bytes()).expect("written");
        Self { config, folder: tempfile::tempdir().expect("a folder") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.args(arguments).arg("--config").arg(self.config.path()).current_dir(self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("tollstream runs")
    }

    /// The exit code, and what it prints as JSON.
    fn json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.output(&[arguments, &["--json"]].concat());
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code(), value)
    }

    /// Of a command that looks at what was written, and needs no engines.
    fn written(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        let output = command.args(arguments).arg("--json").current_dir(self.folder.path()).output();
        let output = output.expect("tollstream runs");
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code(), value)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    }

    fn rows(&self, run: &str) -> Vec<Row> {
        let root = self.folder.path().join("replays");
        let directory = Directory::open(&root, &run.parse().expect("a name")).expect("a run");
        let mut rows = Vec::new();
        for partition in directory.partitions().expect("partitions") {
            directory
                .each_row(partition, |row| {
                    rows.push(row);
                    Ok(())
                })
                .expect("rows");
        }
        rows
    }

    /// Every file of a run but what was asked for, by name.
    fn files(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let path = self.folder.path().join("replays").join(run);
        let entries = std::fs::read_dir(&path).expect("a run").map(|entry| entry.expect("an entry").path());
        let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        entries
            .map(|path| (name(&path), std::fs::read(&path).expect("a file")))
            .filter(|(name, _)| name.starts_with("partition-") || name == "report.json")
            .collect()
    }
}

/// Every record of the live topics up to where they end now: offsets, keys and values.
fn digest(world: &World, ends: &BTreeMap<(Topic, i32), i64>) -> String {
    let consumer: BaseConsumer = kafka::cold_consumer(&world.config.kafka, "digest").create().expect("a consumer");
    let mut digest = Sha256::new();
    for ((topic, partition), end) in ends {
        let name = kafka::topic_name(&world.config.kafka, *topic);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, *partition, Offset::Beginning).expect("an offset");
        consumer.assign(&list).expect("assigned");
        let mut next = 0;
        let until = std::time::Instant::now() + PATIENCE;
        while next < *end {
            assert!(std::time::Instant::now() < until, "{name}/{partition} is not read to {end}");
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.expect("a record");
            if message.offset() >= *end {
                break;
            }
            next = message.offset() + 1;
            digest.update(format!("{name}/{partition}/{}", message.offset()));
            digest.update(message.key().unwrap_or_default());
            digest.update(message.payload().unwrap_or_default());
        }
    }
    hex::encode(digest.finalize())
}

fn ends(world: &World) -> BTreeMap<(Topic, i32), i64> {
    let consumer: BaseConsumer = kafka::cold_consumer(&world.config.kafka, "digest").create().expect("a consumer");
    let mut ends = BTreeMap::new();
    for topic in [Topic::Requests, Topic::Journal, Topic::Responses, Topic::Usage, Topic::Control] {
        let partitions = if topic == Topic::Control { 1 } else { PARTITIONS as i32 };
        for partition in 0..partitions {
            let name = kafka::topic_name(&world.config.kafka, topic);
            let (_, end) = consumer.fetch_watermarks(&name, partition, PATIENCE).expect("the end");
            ends.insert((topic, partition), end);
        }
    }
    ends
}

async fn world(simulator: &Server) -> World {
    let mut world = World::with(&Engines::shared(), "replay", Some(PARTITIONS), |seeds| {
        for tenant in TENANTS {
            let plan = Some(tenant.plan.parse().expect("a name"));
            let organization = Organization { plan, ..Organization::named(tenant.name) };
            seeds.organizations.insert(tenant.id.parse().expect("an id"), organization);
        }
    })
    .await;
    world.config.providers.upstream_override = Some(simulator.base_url());
    world
}

fn gateway(world: &World, instance: &'static str) -> Process {
    Process::start(&world.config, Launch { instance, ..Launch::default() })
}

fn all<'a>(report: &'a Value, candidate: &str) -> &'a Value {
    let candidates = report["candidates"].as_array().unwrap_or_else(|| panic!("no candidates in {report:#}"));
    candidates.iter().find(|of| of["candidate"] == candidate).unwrap_or_else(|| panic!("no {candidate} in {report:#}"))
}

/// Holds a replay by the recorded rules, and gives its requests.
fn identical(report: &Value, what: &str) -> u64 {
    let recorded = all(report, "recorded");
    assert_eq!(recorded["differing"], 0, "{what}: {recorded:#}");
    assert_eq!(recorded["counts"]["unlike"], Value::Array(Vec::new()), "{what}");
    assert_eq!(recorded["counts"]["identical"], recorded["counts"]["commits"], "{what}");
    assert_eq!(recorded["all"]["recorded"]["cost_pico_usd"], recorded["all"]["candidate"]["cost_pico_usd"]);
    recorded["all"]["recorded"]["requests"].as_u64().expect("requests")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_with_crashes_and_changed_rules_is_replayed_without_a_difference_and_one_rule_changes_what_it_applies_to()
{
    let run = async || {
        let simulator = failing().await;
        let world = world(&simulator).await;
        let tool = Tool::new(&world);
        let (mut first, mut second) = (gateway(&world, "replay-a"), gateway(&world, "replay-b"));
        first.ready().await;
        second.ready().await;
        let mut questions = Day::new(11);
        ask(&world, &mut questions, 0, REQUESTS / 2).await;
        // An owner goes away in the middle, and the rules change.
        let dearer = POLICY.replace("basic_support = 2", "basic_support = 3");
        let changed = tool.file("changed.toml", &format!("[[policies]]\n{}", as_item(&dearer)));
        let applied = tool.output(&["apply", "-y", "-f", &changed]);
        assert!(applied.status.success(), "{applied:?}");
        let mut journal = world.journal();
        for n in 0..AT_ONCE {
            let question = questions.next().expect("a question");
            world.ask_as(chat(format!("crash-{n}"), question)).await;
        }
        first.kill().await;
        journal.until("what the killed one had is over", |read| {
            (0..AT_ONCE).all(|n| read.is_over(&format!("crash-{n}"))).then_some(())
        });
        ask(&world, &mut questions, REQUESTS / 2, REQUESTS / 2 - AT_ONCE).await;
        let read = journal.read_all();
        assert!(read.owners_count() > PARTITIONS as usize, "the killed one's partitions have had another owner");
        assert!(read.requests.values().filter(|of| of.refused > 0).count() > 500, "requests were refused");
        assert!(read.requests.values().filter(|of| of.attempts > 1).count() > 50, "requests fell back");

        let ends_before = ends(&world);
        let before = digest(&world, &ends_before);
        let (code, report) = tool.json(&["replay", "--run", "as-it-was"]);
        assert_eq!((code, identical(&report, "as it was")), (Some(0), REQUESTS as u64));

        // One rule: where VIPs are sent.
        let vips = tool.file(
            "vips.toml",
            &POLICY.replace("vip_tier = 4", "vip_tier = 3").replace("basic_support = 2", "basic_support = 3"),
        );
        // Those that were asked once everybody had seen the changed rules.
        let is_later = |row: &&Row| {
            let number = row.request_id.as_str().strip_prefix("day-").and_then(|number| number.parse::<usize>().ok());
            number.is_some_and(|number| number >= REQUESTS / 2)
        };
        let since = tool.rows("as-it-was").iter().filter(is_later).map(|row| row.at).min();
        let since = since.expect("a row").to_string();
        let rule = ["replay", "--policy", &vips, "--verify", "--from", &since];
        let (code, report) = tool.json(&[&rule[..], &["--run", "vips"]].concat());
        assert_eq!(code, Some(0), "{report:#}");
        assert_eq!(identical(&report, "the second half"), (REQUESTS / 2 - AT_ONCE) as u64);
        let rows = tool.rows("vips");
        let applies = |row: &&Row| row.recorded.reasons.iter().any(|reason| reason == "tier:4:vip");
        let names = |rows: Vec<&Row>| rows.into_iter().map(|row| row.request_id.to_string()).collect::<BTreeSet<_>>();
        // A plan without tier 4 has no VIPs before and some afterwards, whose model may be the same all the same.
        let has_vips = |row: &&Row| row.organization.as_str() != "demo_software";
        let of_rule: Vec<&Row> = rows.iter().filter(|row| &*row.candidate_name == "vips").filter(has_vips).collect();
        let differing = names(of_rule.iter().copied().filter(|row| !row.changes.is_empty()).collect());
        let concerned = names(of_rule.iter().copied().filter(applies).collect());
        assert!(concerned.len() > 50, "{} VIPs", concerned.len());
        assert_eq!(differing, concerned, "it differs exactly where the rule applies");

        // What is told of it elsewhere: one request, the tables again, and ClickHouse, beside what happened.
        let one = differing.first().expect("a request");
        let (code, told) = tool.written(&["replay", "diff", one, "--run", "vips"]);
        let [vips_row, as_recorded] = &told["requests"].as_array().expect("requests")[..] else { panic!("{told:#}") };
        assert_eq!((code, &vips_row["candidate_name"], &as_recorded["changes"]), (Some(0), &"vips".into(), &json!([])));
        assert_eq!((&vips_row["recorded"]["tier"], &vips_row["candidate"]["tier"]), (&4.into(), &3.into()), "{told:#}");
        assert_eq!(tool.written(&["replay", "diff", "nobodys", "--run", "vips"]).0, Some(1));
        let again = tool.written(&["replay", "report", "vips"]);
        assert_eq!(again, (Some(0), report));
        let page = std::fs::read_to_string(tool.folder.path().join("replays/vips/report.html")).expect("a page");
        assert!(page.contains("<h2>vips</h2>") && page.contains("</html>"), "{page}");
        assert_joined(&world, &rows).await;

        // Broken off after a partition, and gone on with.
        let killed = tool
            .command(&[&rule[..], &["--run", "broken"]].concat())
            .env("TOLLSTREAM_FAILPOINT", "partition-replayed=kill@1")
            .output()
            .expect("tollstream runs");
        assert!(
            !killed.status.success() && String::from_utf8_lossy(&killed.stderr).contains("partition-replayed"),
            "{killed:?}"
        );
        assert!(!tool.files("broken").contains_key("report.json"), "it was broken off");
        let again = tool.output(&["replay", "--run", "broken"]);
        assert!(String::from_utf8_lossy(&again.stderr).contains("there is a run broken already"), "{again:?}");
        let (code, _) = tool.json(&["replay", "--run", "broken", "--resume"]);
        assert_eq!(code, Some(2), "other candidates are another run");
        let (code, report) = tool.json(&[&rule[..], &["--run", "broken", "--resume"]].concat());
        assert_eq!(code, Some(0), "{report:#}");
        assert!(
            tool.files("broken") == tool.files("vips"),
            "a run that was broken off is the same as one that was not"
        );

        // From an archive, without content.
        let archive = tool.folder.path().join("archive").to_string_lossy().into_owned();
        let (code, added) = tool.json(&["archive", "write", "--to", &archive, "--content", "drop"]);
        assert_eq!(code, Some(0), "{added:#}");
        let (code, report) = tool.json(&[&rule[..], &["--run", "archived", "--archive", &archive]].concat());
        assert_eq!(code, Some(0), "{report:#}");
        assert!(tool.files("archived") == tool.files("vips"), "an archive replays as the topics do");
        for wants_words in [&["--reclassify"][..], &["--mode", "live", "--yes"]] {
            let wordless = ["replay", "--run", "wordless", "--archive", &archive];
            let (code, told) = tool.json(&[&wordless[..], wants_words].concat());
            assert_eq!(code, Some(2));
            assert!(told["error"].as_str().is_some_and(|error| error.contains("has no content")), "{told}");
        }
        damage(&tool, &archive);

        // Read again, the words are what they were.
        let (code, report) = tool.json(&["replay", "--reclassify", "--last", "2000", "--run", "again"]);
        let reclassified = all(&report, "reclassified");
        assert_eq!(
            (code, &reclassified["differing"], &reclassified["counts"]["without_content"]),
            (Some(0), &0.into(), &0.into())
        );
        assert_eq!(all(&report, "reclassified")["all"]["recorded"]["requests"], 2_000);

        assert_eq!(digest(&world, &ends_before), before, "the live topics are as they were");
        assert_eq!(ends(&world), ends_before, "and nothing was written behind them");

        // Beside live traffic, which goes on as if nobody looked.
        let replay = [&rule[..], &["--run", "meanwhile", "--until", "0s", "--json"]].concat();
        let replaying = tool.command(&replay).stdout(Stdio::piped()).spawn().expect("tollstream runs");
        ask(&world, &mut questions, REQUESTS, MEANWHILE).await;
        let replayed = replaying.wait_with_output().expect("output");
        let report: Value = serde_json::from_slice(&replayed.stdout).unwrap_or_else(|e| panic!("{e}: {replayed:?}"));
        assert!(identical(&report, "meanwhile") >= (REQUESTS / 2 - AT_ONCE) as u64);
        assert_eq!(digest(&world, &ends_before), before, "what was there before is as it was");
        let grown = |topic: Topic| -> i64 {
            let of = |ends: &BTreeMap<(Topic, i32), i64>| -> i64 {
                ends.iter().filter(|((found, _), _)| *found == topic).map(|(_, end)| end).sum()
            };
            of(&ends(&world)) - of(&ends_before)
        };
        assert_eq!((grown(Topic::Requests), grown(Topic::Control)), (MEANWHILE as i64, 0), "only what was asked");
        world.audit_with_rows().await;
        second.stop().await;
    };
    suite::case("a day replayed", run).await;
}

/// The rows are in ClickHouse as they are in the run's files, each once, and join to what happened.
async fn assert_joined(world: &World, rows: &[Row]) {
    let database = &world.config.clickhouse.database;
    let query = format!(
        "SELECT count() AS decisions, countIf(notEmpty(d.changes)) AS differing, countIf(r.request_id != '') AS joined, \
         countIf(d.recorded_cost_usd IS DISTINCT FROM r.cost_usd) AS otherwise, toString(sum(d.candidate_cost_usd)) AS cost \
         FROM {database}.replay_decisions_exact AS d \
         LEFT JOIN {database}.requests AS r ON r.organization = d.organization AND r.request_id = d.request_id \
         WHERE d.run = 'vips' AND d.candidate = 'vips'"
    );
    let of_vips: Vec<&Row> = rows.iter().filter(|row| &*row.candidate_name == "vips").collect();
    let of =
        |found: &[Value], name: &str| found[0][name].to_string().trim_matches('"').parse::<usize>().expect("a number");
    // The sink may be behind the journal.
    let found = eventually("the rows of what happened", async || {
        let found = rows_at(&world.config.clickhouse.url, &query).await;
        (of(&found, "joined") == of_vips.len()).then_some(found)
    })
    .await;
    let number = |name: &str| of(&found, name);
    let differing = of_vips.iter().filter(|row| !row.changes.is_empty()).count();
    assert_eq!((number("decisions"), number("differing")), (of_vips.len(), differing), "{found:?}");
    assert_eq!(number("otherwise"), 0, "{found:?}");
    let cost: PicoUsd = of_vips.iter().filter_map(|row| row.candidate.cost).sum();
    assert_eq!(super::world::usd(&found[0]["cost"]), cost);
}

/// A file with a changed byte is named, by the check and by a replay.
fn damage(tool: &Tool, archive: &str) {
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(format!("{archive}/manifest.json")).expect("a manifest")).expect("JSON");
    let files = manifest["files"].as_array().expect("files");
    let entry = files.iter().find(|file| file["topic"] == "journal").expect("a file");
    let file = entry["file"].as_str().expect("a name");
    // Named twice, its requests would count twice.
    let mut doubled = manifest.clone();
    doubled["files"].as_array_mut().expect("files").push(entry.clone());
    std::fs::write(format!("{archive}/manifest.json"), doubled.to_string()).expect("written");
    let (code, told) = tool.json(&["replay", "--run", "doubled", "--archive", archive]);
    assert!(code == Some(2) && told["error"].as_str().is_some_and(|e| e.contains("contradicts itself")), "{told}");
    // A count that is wrong is found by whoever reads the file.
    let mut miscounted = manifest.clone();
    for of in miscounted["files"].as_array_mut().expect("files") {
        if of["file"] == *file {
            of["records"] = (of["records"].as_u64().expect("a count") - 1).into();
        }
    }
    std::fs::write(format!("{archive}/manifest.json"), miscounted.to_string()).expect("written");
    let (code, told) = tool.json(&["replay", "--run", "miscounted", "--archive", archive]);
    assert!(code == Some(2) && told["error"].as_str().is_some_and(|e| e.contains("and should have")), "{told}");
    std::fs::write(format!("{archive}/manifest.json"), manifest.to_string()).expect("written");
    let path = format!("{archive}/{file}");
    let mut bytes = std::fs::read(&path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let check = Command::new(env!("CARGO_BIN_EXE_tollstream")).args(["archive", "check", archive, "--json"]).output();
    let check = check.expect("tollstream runs");
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stdout).contains(file), "{check:?}");
    let (code, told) = tool.json(&["replay", "--run", "damaged", "--archive", archive]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told["error"].as_str().is_some_and(|error| error.contains(file) && error.contains("damaged")), "{told}");
}

/// A policy's file as an item of a list of policies.
fn as_item(policy: &str) -> String {
    policy
        .replace("\n[[tiers]]", "\n[[policies.tiers]]")
        .replace("\n[intents]", "\n[policies.intents]")
        .replace("\n[complexity]", "\n[policies.complexity]")
        .replace("\n[failures.", "\n[policies.failures.")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_live_and_shadow_runs_are_on_their_own_account_and_topics() {
    let run = async || {
        let simulator = failing().await;
        let world = world(&simulator).await;
        let tool = Tool::new(&world);
        let mut gateway = gateway(&world, "shadowed");
        gateway.ready().await;
        let mut questions = Day::new(12);
        ask(&world, &mut questions, 0, 300).await;
        let cheaper = tool.file("cheaper.toml", &POLICY.replace("complex_question = 3", "complex_question = 2"));
        let upstream = simulator.base_url();
        let live = [
            "replay",
            "--policy",
            &cheaper,
            "--mode",
            "live",
            "--sample",
            "10",
            "--upstream",
            &upstream,
            "--rate",
            "100",
        ];
        let unasked = tool.output(&[&live[..], &["--run", "unasked"]].concat());
        assert!(String::from_utf8_lossy(&unasked.stderr).contains("say --yes"), "{unasked:?}");
        assert!(!tool.folder.path().join("replays").exists(), "nobody can be asked, so nothing is decided");
        let (code, told) = tool.json(&[&live[..], &["--run", "live", "--yes"]].concat());
        let live_of = &told["live"];
        assert_eq!((code, &live_of["calls"], &live_of["over_budget"]), (Some(0), &10.into(), &0.into()), "{told:#}");
        assert!(live_of["spent_pico_usd"] == live_of["cost_pico_usd"] && live_of["cost_pico_usd"] != "0", "{told:#}");
        let answers = std::fs::read_to_string(tool.folder.path().join("replays/live/answers.jsonl")).expect("answers");
        assert_eq!(answers.lines().count(), 10);
        let (_, told) = tool.json(&[&live[..], &["--run", "poor", "--yes", "--budget", "0.0000001"]].concat());
        assert_eq!((&told["live"]["calls"], &told["live"]["over_budget"]), (&0.into(), &10.into()), "{told:#}");
        // The same calls again: they were made.
        let (_, told) = tool.json(&[&live[..], &["--run", "live", "--yes", "--resume"]].concat());
        assert_eq!((&told["live"]["calls"], &told["live"]["made_before"]), (&0.into(), &10.into()), "{told:#}");

        told_of_live_runs(&world, &tool, &cheaper).await;

        // The running system, followed.
        let shadow = [
            "replay",
            "--mode",
            "shadow",
            "--policy",
            &cheaper,
            "--share",
            "100",
            "--rate",
            "200",
            "--run",
            "beside",
            "--upstream",
            &upstream,
            "--for",
            "20s",
            "--json",
        ];
        let following =
            tool.command(&shadow).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tollstream runs");
        // It follows once it has made its topics, and what comes from then on is shadowed.
        let topic = format!("{}replay.beside.answers", world.config.kafka.topic_prefix);
        let consumer: BaseConsumer = kafka::cold_consumer(&world.config.kafka, "digest").create().expect("a consumer");
        let is_there =
            || consumer.fetch_metadata(None, PATIENCE).expect("metadata").topics().iter().any(|t| t.name() == topic);
        eventually("the run's topics", async || is_there().then_some(())).await;
        ask(&world, &mut questions, 300, 200).await;
        let followed =
            tokio::task::spawn_blocking(move || following.wait_with_output()).await.expect("it ends").expect("output");
        let told: Value = serde_json::from_slice(&followed.stdout).unwrap_or_else(|e| panic!("{e}: {followed:?}"));
        let calls = told["shadow"]["calls"].as_u64().expect("calls");
        assert!(calls > 100, "{told:#}");
        assert_ne!(told["shadow"]["spent_pico_usd"], "0");
        assert_eq!(all(&told, "cheaper")["all"]["recorded"]["requests"], 200);

        // Who asked neither paid nor saw anything of it: the books are those of the journal, which has no such request.
        let mut posted = 0_i128;
        for tenant in TENANTS {
            let balance = world.balance(tenant.id, &[]);
            posted += super::world::usd(&balance["account"]["month"]["posted_usd"]).get();
        }
        assert_eq!(posted, world.journal().read_all().cost, "balances are what the live calls cost");
        let (_, report) = tool.json(&["replay", "--run", "all"]);
        assert_eq!(identical(&report, "after shadow and live"), 500);
        world.audit_with_rows().await;
        gateway.stop().await;
    };
    suite::case("live and shadow runs", run).await;
}

/// Budgets that calls under way have set aside, upstreams that do not answer, amounts, and what is left of a run.
async fn told_of_live_runs(world: &World, tool: &Tool, policy: &str) {
    let slow = simulator(Behavior { ttft_ms: Some(500), ..Behavior::instant() }).await;
    let upstream = slow.base_url();
    let live = ["replay", "--policy", policy, "--mode", "live", "--yes", "--sample", "10", "--rate", "1000"];
    let at_once = [&live[..], &["--concurrency", "10", "--upstream", &upstream]].concat();
    let pico = |told: &Value, name: &str| told["live"][name].as_str().and_then(|text| text.parse::<i128>().ok());
    let (_, roomy) = tool.json(&[&at_once[..], &["--run", "roomy"]].concat());
    let (most, spent) = (pico(&roomy, "most_pico_usd").expect("most"), pico(&roomy, "spent_pico_usd").expect("spent"));
    assert!(spent > 0 && spent < most / 2, "{roomy:#}");
    // What ten calls set aside together is more than that, what they cost is not.
    let budget = PicoUsd::new(spent + most / 2).to_string();
    let (code, tight) = tool.json(&[&at_once[..], &["--run", "tight", "--budget", &budget]].concat());
    let (calls, over) = (&tight["live"]["calls"], &tight["live"]["over_budget"]);
    assert_eq!((code, calls, over), (Some(0), &10.into(), &0.into()), "{tight:#}");
    assert_eq!(pico(&tight, "spent_pico_usd"), Some(spent), "{tight:#}");

    let nobody = format!("http://127.0.0.1:{}/v1", free_port().expect("a port"));
    let (code, dead) = tool.json(&[&live[..], &["--run", "dead", "--upstream", &nobody]].concat());
    let told = &dead["live"];
    assert_eq!((code, &told["calls"], &told["failed"]), (Some(2), &10.into(), &10.into()), "{dead:#}");
    assert!(told["first_failure"].is_string() && told["simulated"] == 0, "{dead:#}");
    let (code, wrong) = tool.json(&[&live[..], &["--run", "wrong", "--upstream", "nowhere"]].concat());
    assert!(code == Some(2) && wrong["error"].as_str().is_some_and(|e| e.contains("upstream_override = nowhere")));

    let first = std::fs::read_to_string(tool.folder.path().join("replays/tight/answers.jsonl")).expect("answers");
    let first: Value = serde_json::from_str(first.lines().next().expect("an answer")).expect("JSON");
    let request = first["call"]["request_id"].as_str().expect("an id");
    let diff = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(["replay", "diff", request, "--run", "tight", "--json"])
        .current_dir(tool.folder.path())
        .output()
        .expect("tollstream runs");
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap_or_else(|e| panic!("{e}: {diff:?}"));
    let row = &diff["requests"][0];
    for amount in [&row["recorded"]["cost_pico_usd"], &row["candidate"]["cost_pico_usd"], &row["cost_low_pico_usd"]] {
        assert!(amount.as_str().is_some_and(|text| text.parse::<i128>().is_ok()), "{diff:#}");
    }

    let topic = format!("{}replay.tight.journal", world.config.kafka.topic_prefix);
    let consumer: BaseConsumer = kafka::cold_consumer(&world.config.kafka, "digest").create().expect("a consumer");
    let has_topic =
        || consumer.fetch_metadata(None, PATIENCE).expect("metadata").topics().iter().any(|t| t.name() == topic);
    let query = format!(
        "SELECT count() AS rows FROM {}.replay_decisions WHERE run IN ('tight', 'roomy') GROUP BY run ORDER BY run",
        world.config.clickhouse.database
    );
    assert!(has_topic() && rows_at(&world.config.clickhouse.url, &query).await.len() == 2);
    let (code, removed) = tool.json(&["replay", "remove", "tight"]);
    assert_eq!((code, removed["topics"].as_array().map(Vec::len)), (Some(0), Some(2)), "{removed:#}");
    eventually("the topic is gone", async || (!has_topic()).then_some(())).await;
    assert_eq!(rows_at(&world.config.clickhouse.url, &query).await.len(), 1, "another run's rows stay");
    assert!(!tool.folder.path().join("replays/tight").exists());
    let (code, told) = tool.json(&["replay", "remove", "tight"]);
    assert!(code == Some(2) && told["error"].as_str().is_some_and(|e| e.contains("there is no run tight")), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replayed_is_said_before_anything_is_written() {
    let run = async || {
        let simulator = failing().await;
        let mut world = world(&simulator).await;
        let tool = Tool::new(&world);
        let mut gateway = gateway(&world, "wrong");
        gateway.ready().await;
        ask(&world, &mut Day::new(13), 0, 50).await;
        let unknown_model = tool.file("unknown.toml", &POLICY.replace("claude-haiku-4-5", "claude-nobody"));
        let unknown_policy = tool.file("nobody.toml", &POLICY.replace("name = \"auto\"", "name = \"nobody\""));
        let broken = tool.file("broken.toml", "name = ");
        let empty = tool.file("empty.toml", "");
        let table: [(&[&str], &str); 9] = [
            (&["--policy", &unknown_model], "claude-nobody"),
            (&["--policy", &unknown_policy], "control has no policy nobody, so nothing was decided by it; it has auto"),
            (&["--policy", &broken], "TOML"),
            (&["--policy", &empty], "has nothing that could be tried"),
            (&["--policy", "/no/such/file"], "cannot read /no/such/file"),
            (&["--from", "1h", "--until", "2h"], "--from must be before --until"),
            (&["--offsets", "99:0-1"], "there is no partition 99"),
            (&["--archive", "/no/such/archive"], "is no place for an archive"),
            (&["--run", "other", "--resume"], "there is no run other"),
        ];
        for (arguments, wanted) in table {
            let (code, told) = tool.json(&[&["replay"], arguments].concat());
            let error = told["error"].as_str().unwrap_or_default();
            assert!(code == Some(2) && error.contains(wanted), "{arguments:?}: {told}");
            assert!(!tool.folder.path().join("replays").exists(), "{arguments:?} wrote something");
        }
        assert_eq!(tool.output(&["replay", "--where", "colour=red"]).status.code(), Some(2));
        let (code, told) = tool.json(&["replay", "--from", "2030-01-01T00:00:00Z", "--run", "later"]);
        assert!(
            code == Some(2) && told["error"].as_str().is_some_and(|e| e.contains("no request was decided")),
            "{told}"
        );
        assert!(!tool.folder.path().join("replays/later").exists(), "a run that shows nothing is none");
        let (code, report) = tool.json(&["replay", "--organization", "demo_shop", "--run", "one"]);
        let organizations = all(&report, "recorded")["organizations"].as_object().expect("organizations");
        assert!(code == Some(0) && organizations.keys().all(|id| id == "demo_shop"), "{report:#}");
        gateway.stop().await;
        cut_by_retention(&mut world, tool).await;
    };
    suite::case("what cannot be replayed", run).await;
}

/// What retention has taken is named, and where it still is.
async fn cut_by_retention(world: &mut World, tool: Tool) {
    let archive = tool.folder.path().join("archive").to_string_lossy().into_owned();
    world.config.archive.url = Some(archive.clone());
    let tool = Tool { folder: tool.folder, ..Tool::new(world) };
    let (code, added) = tool.json(&["archive", "write"]);
    assert_eq!((code, &added["archive"]), (Some(0), &archive.as_str().into()), "{added:#}");
    refilled(&tool, &archive);
    let admin: AdminClient<DefaultClientContext> = kafka::client(&world.config.kafka).create().expect("an admin");
    for topic in [Topic::Requests, Topic::Journal] {
        let name = kafka::topic_name(&world.config.kafka, topic);
        let mut list = TopicPartitionList::new();
        for ((of, partition), end) in ends(world) {
            if of == topic && end > 0 {
                list.add_partition_offset(&name, partition, Offset::Offset(end)).expect("an offset");
            }
        }
        admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
        let (code, told) = tool.json(&["replay", "--reclassify", "--run", "cut"]);
        let error = told["error"].as_str().unwrap_or_default();
        let wanted = [topic.name(), "begins at offset", &format!("replay that with --archive {archive}")];
        let wanted =
            if topic == Topic::Requests { ["requests/", "has nothing before offset", wanted[2]] } else { wanted };
        assert!(code == Some(2) && wanted.iter().all(|text| error.contains(text)), "{told}");
        assert!(!tool.folder.path().join("replays/cut").exists(), "it wrote something");
    }
    let (code, report) = tool.json(&["replay", "--reclassify", "--verify", "--run", "whole", "--archive", &archive]);
    assert_eq!((code, identical(&report, "the archive")), (Some(0), 50));
}

/// A file that is taken out leaves a hole that is named, and filled in by the next write.
fn refilled(tool: &Tool, archive: &str) {
    let path = format!("{archive}/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).expect("a manifest")).expect("JSON");
    let files = manifest["files"].as_array_mut().expect("files");
    let place = files.iter().position(|file| file["topic"] == "journal").expect("a file of the journal");
    let taken = files.remove(place);
    std::fs::write(&path, manifest.to_string()).expect("written");
    let (topic, partition) = (&taken["topic"], &taken["partition"]);
    let hole = format!("{}/{partition} has nothing from offset {}", topic.as_str().expect("a topic"), taken["start"]);
    let check = Command::new(env!("CARGO_BIN_EXE_tollstream")).args(["archive", "check", archive, "--json"]).output();
    let check = check.expect("tollstream runs");
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stdout).contains(&hole), "{hole} is not in {check:?}");
    let (code, told) = tool.json(&["replay", "--run", "holed", "--archive", archive]);
    assert!(code == Some(2) && told["error"].as_str().is_some_and(|error| error.contains("lacks journal/")), "{told}");
    let (code, added) = tool.json(&["archive", "write"]);
    assert_eq!(
        (code, &added["added"]),
        (Some(0), &json!({ "journal": { "files": 1, "records": taken["records"], "bytes": taken["bytes"] } }))
    );
}
