//! Deployments that fail in every way at once: what becomes of requests, attempts and money is exactly what the policy says.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::net::TcpListener;
use tollstream::provider::FailureClass;
use tollstream::records::Outcome;
use tollstream::records::policy::{FailureRule, Policy, PolicyTier, Then};
use tollstream::simulate::{Behavior, Options, Server};

use super::suite;
use super::world::World;
use crate::stack::fixture::Engines;
use crate::stack::process::{Launch, Process};

/// In the order of the policy: one fails always, one stalls, one asks to be left alone, one breaks off in the middle of its
/// answer, and one is well.
const FAILS: &str = "gpt-4o-mini";
const STALLS: &str = "gpt-3.5-turbo";
const LIMITED: &str = "gpt-4.1-mini";
const CUTS: &str = "gpt-4.1";
const WELL: &str = "gpt-4o";
/// Failures after which the breaker of a deployment opens (`processor.health.calls_min`).
const BREAKS_AFTER: usize = 5;
const REQUESTS: usize = 40;

fn policy() -> Policy {
    let candidates = [FAILS, STALLS, LIMITED, CUTS, WELL].map(|name| name.parse().expect("a name")).to_vec();
    Policy { max_attempts: 6, tiers: vec![PolicyTier { tier: 2, candidates, weights: vec![] }], ..Policy::default() }
}

async fn sick() -> Server {
    let faults = [
        format!("{FAILS}@openai/server_error"),
        format!("{STALLS}@stall-after=0"),
        format!("{LIMITED}@status=429;retry-after=300"),
        format!("{CUTS}@cut-after=3"),
    ];
    let faults = faults.iter().map(|fault| fault.parse().expect("a fault")).collect();
    let behavior = Behavior { faults, output_tokens: Some(12), ..Behavior::instant() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    Server::start(Options { behavior, ..Options::default() }, listener).expect("a simulator")
}

/// Asks over HTTP as a stream; the text of the answer, and its tier.
async fn ask(process: &Process, secret: &str, id: &str) -> (String, Option<String>) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let body =
        json!({"model": "auto", "stream": true, "messages": [{"role": "user", "content": "Where is my order?"}]});
    let request = client.post(format!("{}/v1/chat/completions", process.facade)).bearer_auth(secret);
    let answer = request.header("x-request-id", id).json(&body).send().await.expect("an answer");
    let model = answer.headers().get("x-tollstream-model").map(|model| model.to_str().expect("text").to_owned());
    (answer.text().await.expect("the whole answer"), model)
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_that_fail_stall_limit_and_cut_are_left_behind_as_the_policy_says() {
    suite::case("four sick deployments", async || {
        let auto = "auto".parse().expect("a name");
        let mut world = World::with(&Engines::shared(), "sick", None, |seeds| {
            seeds.policies.insert(auto, policy());
        })
        .await;
        // Nobody is tried again while the test runs.
        world.config.processor.health.open_ms = 600_000;
        world.config.processor.health.open_max_ms = 600_000;
        world.config.providers.first_token_timeout_ms = 300;
        let simulator = sick().await;
        let mut config = world.config.clone();
        config.providers.upstream_override = Some(simulator.base_url());
        let mut process = Process::start(&config, Launch { instance: "sick", ..Launch::default() });
        process.ready().await;
        let secret = crate::stack::fixture::key(&world.config, crate::stack::stream::ORGANIZATION);

        // Who would answer is told without a call.
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let body = json!({"model": "auto", "messages": [{"role": "user", "content": "Where is my order?"}]});
        let asked = client.post(format!("{}/v1/route", process.facade)).bearer_auth(&secret).json(&body);
        let route: serde_json::Value = asked.send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!((&route["object"], &route["model"], &route["tier"]), (&json!("route"), &json!(FAILS), &json!(2)));
        assert_eq!(route["candidates"].as_array().map(Vec::len), Some(5), "{route}");
        assert_eq!(simulator.stats().requests, 0);

        let mut broken_off = 0;
        for n in 0..REQUESTS {
            let (text, model) = ask(&process, &secret, &format!("sick-{n}")).await;
            match text.contains("[DONE]") {
                true => assert_eq!(model.as_deref(), Some(WELL), "{text}"),
                // Content had gone out, so nobody else was called.
                false => {
                    assert!(text.contains("upstream_cut"), "{text}");
                    assert_eq!(model.as_deref(), Some(CUTS));
                    broken_off += 1;
                }
            }
        }
        assert_eq!(broken_off, BREAKS_AFTER, "each of the first five reached the one that cuts, and no other did");

        let mut journal = world.journal();
        journal
            .until("all are settled", |read| (0..REQUESTS).all(|n| read.is_over(&format!("sick-{n}"))).then_some(()));
        let read = journal.read_all();
        let mut attempts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut completed = 0;
        for n in 0..REQUESTS {
            let decided = read.of(&format!("sick-{n}"));
            assert_eq!((decided.admitted, decided.settled.len()), (1, 1), "{decided:?}");
            for posting in &decided.postings {
                *attempts.entry(posting.model.as_str()).or_default() += 1;
            }
            completed += usize::from(decided.settled[0].outcome == Outcome::Completed);
            assert!(decided.settled[0].attempts <= 6);
            if n > BREAKS_AFTER {
                assert_eq!(decided.settled[0].attempts, 1, "whoever is broken is not asked any more: {decided:?}");
            }
        }
        let expected = BTreeMap::from([
            (FAILS, BREAKS_AFTER),
            (STALLS, BREAKS_AFTER),
            (LIMITED, 1),
            (CUTS, BREAKS_AFTER),
            (WELL, REQUESTS - BREAKS_AFTER),
        ]);
        assert_eq!((attempts, completed), (expected, REQUESTS - BREAKS_AFTER));
        let stats = simulator.stats();
        assert_eq!(stats.requests as usize, 3 * BREAKS_AFTER + 1 + REQUESTS - BREAKS_AFTER, "{stats:?}");

        let metrics = reqwest::get(format!("{}/metrics", process.admin)).await.expect("metrics");
        let metrics = metrics.text().await.expect("text");
        for (model, sound) in [(FAILS, 0), (STALLS, 0), (LIMITED, 0), (CUTS, 0), (WELL, 1)] {
            let line = format!("tollstream_deployment_sound{{deployment=\"openai-{model}\"}} {sound}");
            assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
        }
        world.assert_rows_are_the_journal(world.journal().read_all()).await;
        // With every route decided again.
        world.audit_with_rows().await;
        process.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_made_as_late_as_the_provider_says_and_then_the_next_one_answers() {
    suite::case("a retry", async || {
        let auto = "auto".parse().expect("a name");
        let retry = FailureRule {
            cause: FailureClass::Overloaded.code().to_owned(),
            then: Then::Retry,
            retries: 1,
            backoff_ms: 1,
        };
        let candidates = [FAILS, WELL].map(|name| name.parse().expect("a name")).to_vec();
        let tiers = vec![PolicyTier { tier: 2, candidates, weights: vec![] }];
        let policy = Policy { failures: vec![retry], tiers, ..Policy::default() };
        let world = World::with(&Engines::shared(), "retries", None, |seeds| {
            seeds.policies.insert(auto, policy);
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let faults = vec![format!("{FAILS}@status=503;retry-after=1").parse().expect("a fault")];
        let behavior = Behavior { faults, ..Behavior::instant() };
        let simulator = Server::start(Options { behavior, ..Options::default() }, listener).expect("a simulator");
        let mut config = world.config.clone();
        config.providers.upstream_override = Some(simulator.base_url());
        let mut process = Process::start(&config, Launch { instance: "retries", ..Launch::default() });
        process.ready().await;
        let secret = crate::stack::fixture::key(&world.config, crate::stack::stream::ORGANIZATION);
        let (text, model) = ask(&process, &secret, "again").await;
        assert!(text.contains("[DONE]") && model.as_deref() == Some(WELL), "{text}");
        let mut journal = world.journal();
        journal.until("it is settled", |read| read.is_over("again").then_some(()));
        let decided = journal.read_all().of("again");
        let models: Vec<&str> = decided.postings.iter().map(|of| of.model.as_str()).collect();
        assert_eq!(models, [FAILS, FAILS, WELL]);
        assert_eq!(decided.postings[0].retry_after_ms, Some(1_000));
        // By the owner's clock, so that the wait is seen and not how fast this machine is.
        assert!(decided.settled[0].duration_ms >= 1_000, "{:?}", decided.settled);
        assert_eq!(simulator.stats().requests, 3);
        world.audit_with_rows().await;
        process.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_that_is_cut_by_length_is_asked_for_one_tier_up_and_both_are_charged() {
    suite::case("an escalation", async || {
        let auto = "auto".parse().expect("a name");
        let tier =
            |tier, model: &str| PolicyTier { tier, candidates: vec![model.parse().expect("a name")], weights: vec![] };
        let tiers = vec![tier(2, FAILS), tier(3, WELL)];
        let policy = Policy { escalation: vec!["length".to_owned()], tiers, ..Policy::default() };
        let world = World::with(&Engines::shared(), "escalates", None, |seeds| {
            seeds.policies.insert(auto, policy);
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let behavior = Options { behavior: Behavior::instant(), ..Options::default() };
        let simulator = Server::start(behavior, listener).expect("a simulator");
        let mut config = world.config.clone();
        config.providers.upstream_override = Some(simulator.base_url());
        let mut process = Process::start(&config, Launch { instance: "escalates", ..Launch::default() });
        process.ready().await;
        let secret = crate::stack::fixture::key(&world.config, crate::stack::stream::ORGANIZATION);
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let body = json!({"model": "auto", "max_tokens": 3, "messages": [{"role": "user", "content": "Where is it?"}]});
        let request = client.post(format!("{}/v1/chat/completions", process.facade)).bearer_auth(&secret);
        let answer = request.header("x-request-id", "short").json(&body).send().await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(
            (header("x-tollstream-model").as_deref(), header("x-tollstream-tier").as_deref()),
            (Some(WELL), Some("3"))
        );
        let mut journal = world.journal();
        journal.until("it is settled", |read| read.is_over("short").then_some(()));
        let read = journal.read_all();
        let decided = read.of("short");
        let postings: Vec<(&str, Option<&str>)> =
            decided.postings.iter().map(|of| (of.model.as_str(), of.shortfall.as_deref())).collect();
        assert_eq!(postings, [(FAILS, Some("length")), (WELL, Some("length"))]);
        let cost = decided.postings.iter().map(|of| of.cost_pico_usd.expect("a cost")).sum();
        let settled = &decided.settled[0];
        assert_eq!((settled.outcome, settled.attempts, settled.cost_pico_usd), (Outcome::Completed, 2, Some(cost)));
        world.audit_with_rows().await;
        process.stop().await;
    })
    .await;
}
