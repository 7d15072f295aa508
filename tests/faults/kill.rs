//! `kill -9` at every failpoint: what was promised before is kept by the successor, once.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use clap::ValueEnum as _;
use tollstream::failpoint::Failpoint;
use tollstream::records::Topic;
use tollstream::records::requests::Request;

use super::suite;
use super::world::{Ask, World, add_organizations};
use crate::stack::fixture::{Engines, key};
use crate::stack::process::{Launch, Process};
use crate::stack::stream::{ORGANIZATION, chat};

/// The process that is killed, and its successor, which has its name.
const INSTANCE: &str = "gateway";
/// An organization on another partition than [`ORGANIZATION`].
const OTHER: &str = "org_elsewhere";

/// Where the facade listens, and the producers as well.
const FACADE_PARTITION: i32 = 0;

/// Those that lie at a promise; the others are in the full suite.
const SHORT: [Failpoint; 10] = [
    Failpoint::BeforeCommit,
    Failpoint::CommitAcknowledged,
    Failpoint::AfterCall,
    Failpoint::ContentAcknowledged,
    Failpoint::BeforeTerminal,
    Failpoint::BeforeMarker,
    Failpoint::DisposalAcknowledged,
    Failpoint::UsageAcknowledged,
    Failpoint::AfterInsert,
    Failpoint::AfterEvents,
];

/// Few enough that every gateway keeps checkpoints, and begins behind one.
const CHECKPOINT_COMMITS: u64 = 5;

/// How often the point is passed before the process is killed there: late enough that something is under way.
const fn passing(point: Failpoint) -> u32 {
    use Failpoint::*;
    match point {
        BeforeOwnership | AfterOwnership | OwnershipAcknowledged | TakenOver => 2,
        BeforeCommit | AfterCommit | CommitAcknowledged | CommandsRun => 5,
        BeforeCall | AfterCall | CallEnded => 2,
        BeforeContent | AfterContent => 3,
        ContentAcknowledged => 1,
        BeforeTerminal | AfterTerminal => 2,
        BeforeDeadLetter | AfterDeadLetter | BeforeForward | AfterForward | DisposalAcknowledged => 1,
        BeforePart | AfterPart | BeforeMarker | AfterMarker => 2,
        BeforeOffsets | AfterOffsets | BeforeUsageOffsets | AfterUsageOffsets => 1,
        BeforeUsage | AfterUsage | UsageAcknowledged => 3,
        BeforeInsert | AfterInsert | BeforeLetter | AfterLetter | BeforeRowOffsets | AfterRowOffsets => 1,
        BeforeEvents | AfterEvents | BeforeEventOffsets | AfterEventOffsets => 1,
        BeforeRequest | AfterRequest | RequestAcknowledged | FrameReceived | PartitionReplayed => 1,
    }
}

/// Whether only a request over HTTP gets there.
const fn is_asked_over_http(point: Failpoint) -> bool {
    use Failpoint::*;
    matches!(point, BeforeRequest | AfterRequest | RequestAcknowledged)
}

/// A little of everything that a producer may write; what must be answered is returned.
async fn load(world: &World, run: &str) -> Vec<Ask> {
    let name = |what: &str| format!("{run}-{what}");
    let cancelled = Ask::streamed(&name("cancelled"), 200, 20);
    let astray = Ask::streamed(&name("astray"), 3, 1);
    let asks = [
        Ask::streamed(&name("streamed"), 10, 20),
        Ask::whole(&name("whole")),
        Ask::streamed(&name("other-streamed"), 10, 20).of(OTHER),
        Ask::whole(&name("other-whole")).of(OTHER).without_key(),
        cancelled.clone(),
    ]
    .map(|ask| ask.heard_on(FACADE_PARTITION));
    let partition = world.partition(ORGANIZATION);
    for ask in &asks {
        world.ask(ask).await;
    }
    world.put(Topic::Requests, partition, b"no record").await;
    world.put(Topic::Usage, 0, b"no posting").await;
    let misplaced = world.encoded(Request::Chat(Box::new(astray.chat())));
    world.put(Topic::Requests, world.partition(OTHER), &misplaced).await;
    let unknown = name("unknown");
    world.ask_as(chat(&unknown, r#"{"model":"no-such-model","messages":[{"role":"user","content":"x"}]}"#)).await;
    world.ask(&asks[1]).await;
    world.cancel(&cancelled).await;
    asks.into_iter().chain([astray]).collect()
}

fn gateway(world: &World, failpoint: Option<String>) -> Process {
    world.process(Launch { instance: INSTANCE, roles: None, failpoint })
}

/// A question over HTTP, whose process dies: what the client gets is no good answer that was not given. Says whether there
/// was one.
async fn ask_over_http(process: &Process, key: &str, ask: &Ask) -> bool {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
    let url = format!("{}/v1/chat/completions", process.facade);
    let answer = client.post(url).bearer_auth(key).header("x-request-id", ask.id()).json(&ask.body()).send().await;
    let text = match answer {
        Ok(answer) => answer.text().await,
        Err(error) => Err(error),
    };
    assert!(text.as_ref().map_or(true, |text| text.contains("1 2 3")), "{}: {text:?}", ask.id());
    text.is_ok()
}

/// Kills a gateway at a point, and has its successor serve what it left.
async fn kill_at(world: &World, point: Failpoint, key: &str) {
    let name = point.to_possible_value().expect("a name").get_name().to_owned();
    let armed = format!("{name}=kill@{}", passing(point));
    let (mut asks, mut answered) = (Vec::new(), None);
    let mut killed = match is_asked_over_http(point) {
        true => {
            let mut process = gateway(world, Some(armed.clone()));
            process.ready().await;
            let ask = Ask::whole(&format!("{name}-http"));
            // That its record is acknowledged, the facade may notice behind the answer.
            if ask_over_http(&process, key, &ask).await {
                assert_eq!(point, Failpoint::RequestAcknowledged, "answered by a process that is killed");
                answered = Some(ask);
            }
            process
        }
        false => {
            asks = load(world, &name).await;
            gateway(world, Some(armed.clone()))
        }
    };
    let status = killed.ended().await;
    assert_eq!(status.signal(), Some(9), "{name}: {status}");
    assert!(killed.log().contains(&format!("failpoint {armed}")), "{name}: it died elsewhere");

    let mut successor = gateway(world, None);
    successor.ready().await;
    let unknown = format!("{name}-unknown");
    let mut journal = world.journal();
    journal.until(&name, |read| {
        let over = asks.iter().chain(&answered).all(|ask| read.is_over(ask.id()));
        (over && (asks.is_empty() || read.is_over(&unknown))).then_some(())
    });
    let mut answers = world.answers();
    answers.until(&name, |read| {
        asks.iter().all(|ask| read.of(ask.id()).is_some_and(|answer| answer.end.is_some())).then_some(())
    });
    world.assert_served(&journal.read, &answers.read, &asks);
    if !asks.is_empty() {
        assert_eq!(journal.read.of(&unknown).refused, 1, "{name}");
    }
    world.assert_rows_are_the_journal(journal.read_all()).await;
    successor.stop().await;
    world.audit_with_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_anywhere_loses_and_repeats_nothing() {
    let mut world =
        World::with(&Engines::shared(), "kill", None, |seeds| add_organizations(seeds, [OTHER.to_owned()])).await;
    assert_ne!(world.partition(ORGANIZATION), world.partition(OTHER));
    world.config.facade.responses_partition = Some(FACADE_PARTITION);
    // The successor has its predecessor's place in the groups at once, not when the session has timed out.
    world.config.kafka.properties.0.insert("group.instance.id".to_owned(), INSTANCE.to_owned());
    world.config.processor.checkpoint_commits = CHECKPOINT_COMMITS;
    let key = key(&world.config, ORGANIZATION);
    // A replay is no gateway; its own test kills it.
    let is_gateways = |point: &&Failpoint| **point != Failpoint::PartitionReplayed;
    for point in suite::size(SHORT.as_slice(), Failpoint::value_variants()).iter().filter(is_gateways) {
        suite::case(&format!("kill {point:?}"), async || kill_at(&world, *point, &key).await).await;
    }
}

fn source(folder: &std::path::Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => source(&path, text),
            false => text.push_str(&std::fs::read_to_string(&path).expect("a source")),
        }
    }
}

#[test]
fn every_failpoint_is_reached_somewhere_and_the_guide_names_it() {
    let (guide, mut code) = (std::fs::read_to_string("docs/testing.md").expect("the guide"), String::new());
    source("src".as_ref(), &mut code);
    for point in Failpoint::value_variants() {
        let name = point.to_possible_value().expect("a name");
        assert!(guide.contains(&format!("`{}`", name.get_name())), "{point:?} is not in docs/testing.md");
        assert!(code.contains(&format!("reached(Failpoint::{point:?})")), "{point:?} is never reached");
    }
}
