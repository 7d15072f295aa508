//! What other gateways were reported to do with money and limits, and this one does not:
//!
//! | reported | proven here by |
//! |---|---|
//! | spend is lost when a process ends | `spend_is_not_lost_*`; at every other point: `kill`, `storm` |
//! | a reservation stays when its client goes away | `a_client_that_leaves_in_the_middle_*`; before any content: `ledger` |
//! | a price that is not known counts as nothing | `what_has_no_price_*` |
//! | cached tokens are counted twice | `cached_tokens_*`; the forms of all providers: `provider::openai::usage` |
//! | a job that begins a period wipes what was spent | `a_day_and_a_month_that_begin_*`; month ends: `processor::tests::money` |
//! | a limit holds for each process instead of all | `limits_hold_over_all_*`; budgets: `ledger` |
//! | what runs at a time is not given back after an error | `places_are_free_again_*`; other ends: `processor::tests::money` |
//! | usage is lost when the last chunk has choices | `usage_is_exact_*`; what clients see of it: `provider::openai::stream` |

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollstream::domain::ids::partition_of;
use tollstream::domain::{OrganizationId, PicoUsd, RequestKey, Timestamp, TokenUsage};
use tollstream::processor::inference::{AttemptEnd, AttemptReport};
use tollstream::processor::tenure::{Circumstances, Tenure};
use tollstream::processor::{Bounds, Capacity, Command, Input, State, content};
use tollstream::provider::Summary;
use tollstream::records::control::{Budget, Deployment, Entity, Limits, Model, Organization, Plan, PriceEntry, Spend};
use tollstream::records::journal::{Entry, JournalRecord, OwnershipTaken};
use tollstream::records::requests::Request;
use tollstream::records::responses::ResponseRecord;
use tollstream::records::{Outcome, Topic, UsageSource};
use tollstream::runtime::clock;
use tollstream::runtime::control_log::ControlLog;
use tollstream::stack::free_port;

use super::log::{Decided, End};
use super::provider::{EVERYBODY, Failure, Reported, Wish};
use super::suite;
use super::world::{Ask, World, ample, post, usd};
use crate::stack::fixture::{Engines, eventually, key, rows_at};
use crate::stack::process::{Launch, Process};
use crate::stack::stream::{ORGANIZATION, PARTITIONS, Producer};

/// On another partition than [`ORGANIZATION`].
const OTHER: &str = "org_elsewhere";
/// A word less or more does not matter here.
const WORDS: u32 = 3;
/// Of ten tokens in and [`WORDS`] out, for 0.15 and 0.60 dollars per million.
const COST: i128 = 10 * 150_000 + WORDS as i128 * 600_000;

async fn gateway(world: &World, instance: &str) -> Process {
    let mut process = world.process(Launch { instance, ..Launch::default() });
    process.ready().await;
    process
}

/// Asks, and waits until every request is over.
async fn decided(world: &World, asks: &[Ask]) -> super::log::Journal {
    for ask in asks {
        world.ask(ask).await;
    }
    let mut journal = world.journal();
    journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
    journal.read
}

/// Rows of the postings, with what a test looks at.
async fn rows(world: &World) -> Vec<Value> {
    let columns = "request_id, toString(kind) AS kind, toString(outcome) AS outcome, toString(cost_usd) AS cost";
    let query = format!("SELECT {columns} FROM {}.usage_exact", world.config.clickhouse.database);
    rows_at(&world.config.clickhouse.url, &query).await
}

/// A gateway answers, and ends before anything but its journal has what was spent.
async fn ends_right_after_answers(name: &str, end: impl AsyncFnOnce(Process)) {
    let mut world = World::start(name).await;
    let secret = key(&world.config, ORGANIZATION);
    // Its rows wait for so long that it takes them with it.
    let batch_ms = std::mem::replace(&mut world.config.sink.batch_ms, 60_000);
    let first = gateway(&world, "first").await;
    let asks: Vec<Ask> = (0..20)
        .map(|number| match number % 2 {
            0 => Ask::whole(&format!("spent-{number}")),
            _ => Ask::streamed(&format!("spent-{number}"), WORDS, 0),
        })
        .collect();
    let answers = join_all(asks.iter().map(async |ask| {
        let answer = post(&first, &secret, ask).send().await.expect("an answer");
        answer.text().await.expect("a body")
    }));
    for answer in answers.await {
        assert!(answer.contains("3 "), "{answer}");
    }
    assert_eq!(rows(&world).await, Vec::<Value>::new());
    end(first).await;
    let mut journal = world.journal();
    let read = journal.read_all();
    assert_eq!((read.postings, read.cost), (20, 20 * COST));
    let balance = world.balance(ORGANIZATION, &[]);
    assert_eq!(usd(&balance["account"]["month"]["posted_usd"]), PicoUsd::new(20 * COST), "{balance:#}");
    world.config.sink.batch_ms = batch_ms;
    let second = gateway(&world, "second").await;
    world.assert_rows_are_the_journal(journal.read_all()).await;
    assert_eq!((journal.read.postings, journal.read.cost), (20, 20 * COST));
    second.stop().await;
    world.audit();
}

#[tokio::test(flavor = "multi_thread")]
async fn spend_is_not_lost_when_a_process_is_stopped_right_after_its_answers() {
    suite::case("spend at a stop", async || ends_right_after_answers("stop", Process::stop).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spend_is_not_lost_when_a_process_is_killed_right_after_its_answers() {
    suite::case("spend at a kill", async || ends_right_after_answers("kill9", Process::kill).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_stream_leaves_nothing_reserved() {
    suite::case("clients that leave", async || {
        let world = World::start("leave").await;
        let secret = key(&world.config, ORGANIZATION);
        let gateway = gateway(&world, "gateway").await;
        let asks: Vec<Ask> = (0..5).map(|number| Ask::streamed(&format!("left-{number}"), 600, 100)).collect();
        let mut streams = Vec::new();
        for ask in &asks {
            let (mut stream, mut text) = (post(&gateway, &secret, ask).send().await.expect("a stream"), String::new());
            while !text.contains("2 ") {
                let chunk = stream.chunk().await.expect("a chunk").expect("it goes on");
                text.push_str(&String::from_utf8_lossy(&chunk));
            }
            streams.push(stream);
        }
        let balance = world.balance(ORGANIZATION, &[]);
        assert_eq!(balance["open_requests"], 5, "{balance:#}");
        assert!(usd(&balance["account"]["reserved_usd"]) > PicoUsd::ZERO, "{balance:#}");
        drop(streams);
        let mut journal = world.journal();
        journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
        for ask in &asks {
            let decided = journal.read.of(ask.id());
            assert_eq!(decided.settled[0].outcome, Outcome::Cancelled);
            // What it had put out is paid for.
            assert!(decided.postings[0].cost_pico_usd > Some(PicoUsd::ZERO), "{decided:?}");
        }
        world.assert_rows_are_the_journal(journal.read_all()).await;
        let balance = world.balance(ORGANIZATION, &[]);
        assert_eq!(usd(&balance["account"]["reserved_usd"]), PicoUsd::ZERO, "{balance:#}");
        gateway.stop().await;
        world.audit();
    })
    .await;
}

/// A model with one deployment.
fn model(prices: Vec<PriceEntry>, id: &str) -> Model {
    let deployment = Deployment {
        id: id.parse().expect("an id"),
        provider: "openai".into(),
        upstream_model: "m".into(),
        base_url: "http://127.0.0.1:1".into(),
        region: "r".into(),
        credential: "none".into(),
        prices,
        weight: None,
    };
    Model {
        aliases: Vec::new(),
        tier: 2,
        owned_by: "openai".into(),
        created_at: Timestamp::from_millis(0),
        context_window: 128_000,
        max_output_tokens: 1_000,
        capabilities: Vec::new(),
        deployments: vec![deployment],
        limits: Limits::default(),
        balance: tollstream::records::control::Balance::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_price_is_not_called_and_never_counts_as_free() {
    suite::case("no price", async || {
        let world = World::start("unpriced").await;
        let tomorrow = PriceEntry {
            effective_from: clock::now().plus(Duration::from_secs(24 * 3_600)),
            min_input_tokens: None,
            max_input_tokens: None,
            input: PicoUsd::new(1),
            cached_input: None,
            cache_write: None,
            output: PicoUsd::new(1),
            reasoning: None,
            source: None,
            source_read: None,
        };
        let producer = Producer::new(&world.config).await;
        producer.add("unpriced", Entity::Model(model(Vec::new(), "unpriced"))).await;
        producer.add("priced-tomorrow", Entity::Model(model(vec![tomorrow], "priced-tomorrow"))).await;
        let secret = key(&world.config, ORGANIZATION);
        let gateway = gateway(&world, "gateway").await;
        for model in ["unpriced", "priced-tomorrow"] {
            let answer = post(&gateway, &secret, &Ask { model, ..Ask::whole(model) }).send().await.expect("an answer");
            let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"));
            let error = &body["error"];
            assert_eq!((status, error["code"].as_str()), (503, Some("price_unknown")), "{body}");
            assert!(error["message"].as_str().is_some_and(|message| message.contains(model)), "{body}");
        }
        let priced = Ask::whole("priced");
        assert!(post(&gateway, &secret, &priced).send().await.expect("an answer").status().is_success());
        assert_eq!(world.provider.calls().len(), 1);
        let mut journal = world.journal();
        world.assert_rows_are_the_journal(journal.read_all()).await;
        for row in rows(&world).await {
            let expected =
                if row["request_id"] == "priced" { ("attempt", "completed") } else { ("refusal", "refused") };
            assert_eq!((row["kind"].as_str(), row["outcome"].as_str()), (Some(expected.0), Some(expected.1)), "{row}");
        }
        gateway.stop().await;
        world.audit();
    })
    .await;
}

/// What was posted for the only call of a request that went well.
fn assert_costs(decided: &Decided, cost: i128) {
    let [posting] = &decided.postings[..] else { panic!("{decided:?}") };
    let posted = (posting.usage_source, posting.cost_pico_usd);
    assert_eq!(posted, (UsageSource::Reported, Some(PicoUsd::new(cost))), "{posting:?}");
    assert_eq!(decided.settled[0].cost_pico_usd, Some(PicoUsd::new(cost)));
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_tokens_are_counted_once_in_every_providers_form() {
    suite::case("cached tokens", async || {
        let world = World::start("cached").await;
        let gateway = gateway(&world, "gateway").await;
        // Dollars per million: 0.15, 0.075 and 0.60; 1, 0.10, 1.25 and 5.
        let openai = (2_000 - 1_024) * 150_000 + 1_024 * 75_000 + 100 * 600_000;
        let anthropic = 500 * 1_000_000 + 1_500 * 100_000 + 200 * 1_250_000 + 100 * 5_000_000;
        let table = [
            (
                "openai",
                "gpt-4o-mini",
                json!({"prompt_tokens": 2_000, "completion_tokens": 100, "total_tokens": 2_100,
                    "prompt_tokens_details": {"cached_tokens": 1_024}}),
                openai,
            ),
            (
                "anthropic",
                "claude-haiku-4-5",
                json!({"input_tokens": 500, "cache_read_input_tokens": 1_500, "cache_creation_input_tokens": 200,
                    "output_tokens": 100}),
                anthropic,
            ),
            (
                "anthropic-in-openais-form",
                "claude-haiku-4-5",
                json!({"prompt_tokens": 2_200, "completion_tokens": 100, "total_tokens": 2_300,
                    "cache_read_input_tokens": 1_500, "cache_creation_input_tokens": 200}),
                anthropic,
            ),
        ];
        let asks: Vec<(Ask, i128)> = table
            .into_iter()
            .flat_map(|(name, model, usage, cost)| {
                [Ask::whole(&format!("{name}-whole")), Ask::streamed(&format!("{name}-streamed"), WORDS, 0)].map(
                    |ask| {
                        let wish = Wish { usage: Some(usage.clone()), ..ask.wish };
                        (Ask { wish, model, ..ask }, cost)
                    },
                )
            })
            .collect();
        let journal = decided(&world, &asks.iter().map(|(ask, _)| ask.clone()).collect::<Vec<_>>()).await;
        for (ask, cost) in &asks {
            assert_costs(journal.of(ask.id()), *cost);
        }
        world.assert_rows_are_the_journal(&journal).await;
        gateway.stop().await;
        world.audit();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_exact_wherever_in_a_stream_it_is_reported() {
    suite::case("usage in the last chunk", async || {
        let world = World::start("last_chunk").await;
        let gateway = gateway(&world, "gateway").await;
        let ask = |reported: Reported| {
            let ask = Ask::streamed(&format!("{reported:?}"), 5, 0);
            let usage = json!({"prompt_tokens": 31, "completion_tokens": 7, "total_tokens": 38});
            Ask { wish: Wish { usage: Some(usage), reported, ..ask.wish }, ..ask }
        };
        let places = [Reported::Apart, Reported::AtTheFinish, Reported::WithTheLastWord, Reported::Everywhere];
        let asks = places.map(ask);
        let journal = decided(&world, &asks).await;
        let mut answers = world.answers();
        for ask in &asks {
            assert_costs(journal.of(ask.id()), 31 * 150_000 + 7 * 600_000);
            let end = answers.until("its end", |read| read.of(ask.id())?.end.clone());
            assert_eq!(end, End::Completed, "{}", ask.id());
        }
        world.assert_served(&journal, &answers.read, &asks);
        world.assert_rows_are_the_journal(&journal).await;
        gateway.stop().await;
        world.audit();
    })
    .await;
}

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// What a gateway of yesterday left on the topics: a request that was answered, of so many tokens in and out.
async fn answered_at(world: &World, ask: &Ask, at: Timestamp, (input, output): (u64, u64)) {
    let log = ControlLog::open(&world.config.kafka, world.codec.clone()).await.expect("the log");
    let partition = world.partition(&ask.organization);
    let journal = async |entry: Entry| {
        let mut payload = Vec::new();
        world.codec.encode(&JournalRecord::from(entry), &mut payload).expect("encoded");
        world.put_at(Topic::Journal, partition, &payload, at).await
    };
    let taken = OwnershipTaken { owner: "yesterday".into(), at, version: "0".into() };
    let mut tenure = Tenure::begin(journal(Entry::OwnershipTaken(taken)).await, State::default());
    let chat = ask.chat();
    let request = world.encoded(Request::Chat(Box::new(chat.clone())));
    let source_offset = world.put_at(Topic::Requests, partition, &request, at).await;
    let key = RequestKey { organization: chat.organization.clone(), request: chat.request_id.clone() };
    let usage = TokenUsage { input: Some(input), output: Some(output), ..TokenUsage::default() };
    let report = AttemptReport {
        key,
        attempt: 1,
        called: true,
        end: AttemptEnd::Completed,
        summary: Summary { usage: Some(usage), finish_reason: Some("stop".into()), text_bytes: 5 },
        content_frames: 0,
        simulated: true,
        time_to_first_token_ms: None,
        duration_ms: 1,
        body: Some(br#"{"choices":[{"message":{"content":"hello"}}]}"#.to_vec().into()),
        earlier: None,
        shortfall: None,
        kept_bytes: None,
    };
    let content = content::read(&chat.body);
    let inputs = [
        Input::Chat { source_offset, received_at: at, chat: &chat, content, fingerprint: None, cache: None },
        Input::AttemptEnded(Box::new(report)),
    ];
    let bounds = Bounds {
        partitions: world.partitions,
        body_bytes_max: 4 << 20,
        timeout: Duration::from_secs(60),
        timeout_max: Duration::from_secs(600),
    };
    for input in inputs {
        let with = Circumstances {
            at,
            control: log.tables(),
            capacity: Capacity::Free,
            bounds: &bounds,
            health: tollstream::processor::health::Health::Unknown,
        };
        let commit = tenure.decide(&input, with).expect("a decision");
        let offset = journal(Entry::Commit(commit)).await;
        for command in tenure.acknowledged(offset).expect("a sole writer").commands {
            let Command::Answer { partition, frame } = command else { continue };
            let mut payload = Vec::new();
            world.codec.encode(&ResponseRecord::from(*frame), &mut payload).expect("encoded");
            world.put_at(Topic::Responses, partition, &payload, at).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_and_a_month_that_begin_anew_wipe_nothing_that_was_spent_before() {
    suite::case("a period begins", async || {
        let now = clock::now();
        let today = time::OffsetDateTime::from_unix_timestamp(now.as_millis() / 1_000).expect("a time").day();
        // Months begin today. What was spent yesterday is all that there was, and as much is there again.
        let spent = 1_000 * 150_000 + 500 * 600_000;
        let month = Some(PicoUsd::new(spent));
        let world = World::with(&Engines::shared(), "period", None, |seeds| {
            let budget = Budget { spend: Spend { day: month, month }, reset_day: today, ..Budget::default() };
            let plan = Plan { output_cap: Some(500), budget, ..ample() };
            seeds.plans.insert("daily".parse().expect("a name"), plan);
            let plan = Some("daily".parse().expect("a name"));
            let organization = Organization { plan, ..Organization::named("Daily") };
            seeds.organizations.insert(ORGANIZATION.parse().expect("an id"), organization);
        })
        .await;
        let yesterday = Timestamp::from_millis(now.as_millis() - DAY.as_millis() as i64);
        let before = Ask::whole("yesterday").without_key();
        answered_at(&world, &before, yesterday, (1_000, 500)).await;
        let posted =
            |balance: &Value| ["day", "month"].map(|period| usd(&balance["account"][period]["posted_usd"]).get());
        let then = yesterday.plus(Duration::from_secs(1)).to_string();
        assert_eq!(posted(&world.balance(ORGANIZATION, &["--at", &then])), [spent; 2]);
        assert_eq!(posted(&world.balance(ORGANIZATION, &[])), [0; 2]);

        let first = gateway(&world, "first").await;
        let after = Ask::whole("today").without_key();
        let journal = decided(&world, &[after]).await;
        assert_costs(journal.of("today"), COST);
        assert_costs(journal.of("yesterday"), spent);
        world.assert_rows_are_the_journal(&journal).await;
        first.stop().await;
        // Also for an owner that begins behind it all.
        let second = gateway(&world, "second").await;
        assert_eq!(posted(&world.balance(ORGANIZATION, &["--at", &then])), [spent; 2]);
        assert_eq!(posted(&world.balance(ORGANIZATION, &[])), [COST; 2]);
        let mut costs: Vec<i128> = rows(&world).await.iter().map(|row| usd(&row["cost"]).get()).collect();
        costs.sort_unstable();
        assert_eq!(costs, [COST, spent]);
        second.stop().await;
        world.audit();
    })
    .await;
}

/// A minute's limit of so many lets one more in after a third of a minute.
const REQUESTS_PER_MINUTE: u64 = 3;
const NEXT_ROOM: Duration = Duration::from_secs(20);
const AT_A_TIME: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_over_all_processes_and_facades_together() {
    suite::case("limits over all", async || {
        assert_ne!(partition_of(ORGANIZATION, PARTITIONS), partition_of(OTHER, PARTITIONS));
        let world = World::with(&Engines::shared(), "over_all", None, |seeds| {
            let at_a_time = Limits { concurrent_requests: Some(AT_A_TIME as u64), ..Limits::NONE };
            let a_minute = Limits { requests_per_minute: Some(REQUESTS_PER_MINUTE), ..Limits::NONE };
            for (id, limits) in [(ORGANIZATION, at_a_time), (OTHER, a_minute)] {
                seeds.plans.insert(id.parse().expect("a name"), Plan { limits, ..ample() });
                let plan = Some(id.parse().expect("a name"));
                let organization = Organization { plan, ..Organization::named(id) };
                seeds.organizations.insert(OrganizationId::parse(id).expect("an id"), organization);
            }
        })
        .await;
        let secrets = [ORGANIZATION, OTHER].map(|organization| key(&world.config, organization));
        let (one, two) = tokio::join!(gateway(&world, "one"), gateway(&world, "two"));
        let mut facade = world.process(Launch { instance: "three", roles: Some("facade"), failpoint: None });
        facade.ready().await;
        eventually("both decide", async || (one.partitions().await == 2 && two.partitions().await == 2).then_some(()))
            .await;
        let fronts = [&one, &two, &facade];
        let ask = |what: &str, secret: &str, ask: Ask, number: usize| {
            let ask = Ask { wish: Wish { request: format!("{what}-{number}"), ..ask.wish }, ..ask };
            let request = post(fronts[number % 3], secret, &ask);
            async move {
                let answer = request.send().await.expect("an answer");
                let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"));
                (status, body["error"]["message"].as_str().unwrap_or_default().to_owned())
            }
        };
        let begun = Instant::now();
        let of_a_minute = join_all((0..60).map(|n| ask("minute", &secrets[1], Ask::whole(""), n))).await;
        assert!(begun.elapsed() < NEXT_ROOM, "it took {:?}", begun.elapsed());
        let admitted = |answers: &[(u16, String)]| answers.iter().filter(|(status, _)| *status == 200).count();
        assert_eq!(admitted(&of_a_minute), REQUESTS_PER_MINUTE as usize, "{of_a_minute:?}");

        let (told, mut refusals) = tokio::sync::mpsc::unbounded_channel();
        let held = (0..60).map(|n| {
            let answer = ask("held", &secrets[0], Ask::whole("").held_for(EVERYBODY), n);
            let told = told.clone();
            async move {
                let answer = answer.await;
                if answer.0 == 429 {
                    told.send(()).expect("heard");
                }
                answer
            }
        });
        let release = async {
            for _ in AT_A_TIME..60 {
                refusals.recv().await.expect("a refusal");
            }
            world.provider.release();
        };
        let (held, ()) = tokio::join!(join_all(held), release);
        assert_eq!(admitted(&held), AT_A_TIME, "{held:?}");
        for (status, message) in of_a_minute.iter().chain(&held).filter(|(status, _)| *status != 200) {
            assert_eq!(*status, 429, "{message}");
        }
        assert_eq!(world.provider.calls().len(), AT_A_TIME + REQUESTS_PER_MINUTE as usize);
        world.assert_rows_are_the_journal(world.journal().read_all()).await;
        facade.stop().await;
        one.stop().await;
        two.stop().await;
        world.audit();
    })
    .await;
}

/// As many at a time as there may be, all of which fail.
async fn fail_all(world: &World, name: &str, failure: impl Fn(Ask) -> Ask) {
    for round in 0..2 {
        let asks: Vec<Ask> = (0..AT_A_TIME)
            .map(|number| {
                let id = format!("{name}-{round}-{number}");
                failure(if number % 2 == 0 { Ask::whole(&id) } else { Ask::streamed(&id, 2, 0) })
            })
            .collect();
        let journal = decided(world, &asks).await;
        for ask in &asks {
            let decided = journal.of(ask.id());
            assert_eq!((decided.admitted, decided.refused), (1, 0), "no place for {}: {decided:?}", ask.id());
            assert_eq!(decided.settled[0].outcome, Outcome::Failed, "{}: {decided:?}", ask.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_free_again_after_every_kind_of_error() {
    suite::case("places after errors", async || {
        let mut world = World::with(&Engines::shared(), "places", None, |seeds| {
            let limits = Limits { concurrent_requests: Some(AT_A_TIME as u64), ..Limits::NONE };
            let plan = Plan { limits, ..ample() };
            seeds.plans.values_mut().for_each(|one| *one = plan.clone());
        })
        .await;
        world.config.providers.connect_timeout_ms = 1_000;
        let gateway_of_all = gateway(&world, "gateway").await;
        for status in [400, 401, 429, 500, 503] {
            let fails = |ask: Ask| Ask { wish: Wish { failure: Some(Failure::Status(status)), ..ask.wish }, ..ask };
            fail_all(&world, &format!("status-{status}"), fails).await;
        }
        fail_all(&world, "cut", |ask| Ask { wish: Wish { failure: Some(Failure::Cut), ..ask.wish }, ..ask }).await;
        fail_all(&world, "late", |ask| Ask { timeout_ms: Some(1_500), ..ask.held_for(EVERYBODY) }).await;
        gateway_of_all.stop().await;
        // Nobody listens there.
        let mut config = world.config.clone();
        config.providers.upstream_override = Some(format!("http://127.0.0.1:{}/v1", free_port().expect("a port")));
        let mut cut_off = Process::start(&config, Launch { instance: "gateway", ..Launch::default() });
        cut_off.ready().await;
        let before = world.provider.calls().len();
        fail_all(&world, "unreachable", |ask| ask).await;
        assert_eq!(world.provider.calls().len(), before);
        cut_off.stop().await;

        let last = gateway(&world, "gateway").await;
        let held: Vec<Ask> = (0..=AT_A_TIME).map(|n| Ask::whole(&format!("held-{n}")).held_for(EVERYBODY)).collect();
        for ask in &held {
            world.ask(ask).await;
        }
        let mut journal = world.journal();
        journal.until("the last one has no place", |read| read.is_over(held[AT_A_TIME].id()).then_some(()));
        let verdicts = held.iter().map(|ask| journal.read.of(ask.id())).map(|of| (of.admitted, of.refused));
        let expected = std::iter::repeat_n((1, 0), AT_A_TIME).chain([(0, 1)]);
        assert_eq!(verdicts.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        world.provider.release();
        journal.until("every request is over", |read| held.iter().all(|ask| read.is_over(ask.id())).then_some(()));
        world.assert_rows_are_the_journal(journal.read_all()).await;
        last.stop().await;
        world.audit();
    })
    .await;
}
