//! Budgets and limits under many at once: through several facades, with clients that vanish and an owner that is killed.

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tollstream::domain::PicoUsd;
use tollstream::records::control::{Budget, Entity, Key, Limits, Organization, Plan, Spend};

use super::suite;
use super::world::{Ask, World, post};
use crate::stack::fixture::eventually;
use crate::stack::process::{Launch, Process};
use crate::stack::stream::Producer;

const ORGANIZATION: &str = "org_ledger";
const SECRET: &str = "tsk_of_the_ledger";
/// So that the worst case of a request is some 62 million pico-dollars, nearly all of it output.
const OUTPUT_CAP: u64 = 100;
/// Of ten such requests, and not of eleven.
const BUDGET_FOR_TEN: PicoUsd = PicoUsd::new(660_000_000);

/// An organization with a plan, and a key.
async fn world(name: &str, plan: Plan) -> World {
    let world = World::start(name).await;
    let producer = Producer::new(&world.config).await;
    producer.add("plan_ledger", Entity::Plan(plan)).await;
    let plan = Some("plan_ledger".parse().expect("a name"));
    producer.add(ORGANIZATION, Entity::Organization(Organization { plan, ..Organization::named("Ledger") })).await;
    let organizations = vec![ORGANIZATION.parse().expect("an id")];
    let key = Key::of(organizations, hex::encode(Sha256::digest(SECRET)), "tsk_of".into());
    producer.add("key_ledger", Entity::Key(key)).await;
    world
}

fn for_ten() -> Plan {
    let budget = Budget { spend: Spend { day: None, month: Some(BUDGET_FOR_TEN) }, ..Budget::default() };
    Plan { output_cap: Some(OUTPUT_CAP), budget, ..Plan::default() }
}

/// What the rows, the balances and the invariants say.
async fn assert_balanced(world: &World) {
    world.assert_rows_are_the_journal(world.journal().read_all()).await;
    world.audit_with_rows().await;
}

fn facade(world: &World, instance: &str) -> Process {
    world.process(Launch { instance, roles: Some("facade"), failpoint: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_through_three_facades_on_a_budget_for_ten() {
    suite::case("a budget for ten", async || {
        let world = world("ten", for_ten()).await;
        let mut owner = world.process(Launch { instance: "owner", roles: None, failpoint: None });
        let mut facades = ["one", "two", "three"].map(|instance| facade(&world, instance));
        owner.ready().await;
        for facade in &mut facades {
            facade.ready().await;
        }
        let asks: Vec<Ask> = (0..200).map(|n| Ask::whole(&format!("ten-{n}")).held_for("owner")).collect();
        let (told, mut refusals) = tokio::sync::mpsc::unbounded_channel();
        let answers = asks.iter().zip(facades.iter().cycle()).map(|(ask, facade)| {
            let told = told.clone();
            async move {
                let answer = post(facade, SECRET, ask).send().await.expect("an answer");
                if answer.status() == StatusCode::TOO_MANY_REQUESTS {
                    told.send(()).expect("heard");
                }
                let should_retry =
                    answer.headers().get("x-should-retry").map(|value| value.to_str().unwrap().to_owned());
                let status = answer.status();
                (status, should_retry, answer.json::<Value>().await.expect("JSON"))
            }
        });
        let release = async {
            for _ in 0..190 {
                refusals.recv().await.expect("a refusal");
            }
            world.provider.release();
        };
        let (answers, ()) = tokio::join!(join_all(answers), release);
        let answered = answers.iter().filter(|(status, ..)| *status == StatusCode::OK).count();
        assert_eq!((answered, world.provider.calls().len()), (10, 10));
        for (status, should_retry, body) in answers.iter().filter(|(status, ..)| *status != StatusCode::OK) {
            let code = body["error"]["code"].as_str();
            assert_eq!((*status, code), (StatusCode::TOO_MANY_REQUESTS, Some("insufficient_quota")), "{body}");
            assert_eq!(should_retry.as_deref(), Some("false"));
        }
        assert_balanced(&world).await;
        owner.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_holds_when_its_owner_is_killed_in_the_middle() {
    suite::case("a budget whose owner is killed", async || {
        let world = world("killed", for_ten()).await;
        let mut first = world.process(Launch { instance: "first", roles: None, failpoint: None });
        first.ready().await;
        let ask = |n: u32| Ask::whole(&format!("killed-{n}")).of(ORGANIZATION).held_for("first");
        let asks: Vec<Ask> = (0..200).map(ask).collect();
        join_all(asks.iter().map(|ask| world.ask(ask))).await;
        let mut journal = world.journal();
        let admitted = journal.until("all are decided", |read| {
            let of = |ask: &&Ask| read.requests.get(ask.id());
            let decided = asks.iter().filter(|ask| of(ask).is_some_and(|of| of.admitted + of.refused == 1)).count();
            let admitted = asks.iter().filter(|ask| of(ask).is_some_and(|of| of.admitted == 1)).count();
            (decided == asks.len()).then_some(admitted)
        });
        assert_eq!(admitted, 10);
        let called = "ten calls";
        eventually(called, async || (world.provider.calls().len() == 10).then_some(())).await;
        first.kill().await;
        let second = world.process(Launch { instance: "second", roles: None, failpoint: None });
        journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
        let by_second = world.provider.calls().iter().filter(|call| call.by == "second").count();
        assert!((1..=10).contains(&by_second), "{by_second} calls were made anew");
        assert_balanced(&world).await;
        second.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_at_a_time_with_a_hundred_clients_that_vanish() {
    suite::case("clients that vanish", async || {
        let limits = Limits { concurrent_requests: Some(5), ..Limits::NONE };
        let world = world("vanish", Plan { limits, ..Plan::default() }).await;
        let mut owner = world.process(Launch { instance: "owner", roles: None, failpoint: None });
        let mut front = facade(&world, "front");
        owner.ready().await;
        front.ready().await;
        let asks: Vec<Ask> = (0..100).map(|n| Ask::streamed(&format!("vanish-{n}"), 4, 1).held_for("owner")).collect();
        let mut clients = tokio::task::JoinSet::new();
        for ask in &asks {
            let request = post(&front, SECRET, ask);
            clients.spawn(async move { request.send().await.expect("an answer").status() });
        }
        let mut refused = 0;
        while refused < 95 {
            let status = clients.join_next().await.expect("a client").expect("it ended");
            // Whoever is let in hears nothing yet but that the stream has begun.
            refused += u32::from(status == StatusCode::TOO_MANY_REQUESTS);
        }
        eventually("five calls", async || (world.provider.calls().len() == 5).then_some(())).await;
        assert_eq!(world.balance(ORGANIZATION, &[])["open_requests"], 5);
        clients.shutdown().await;
        eventually("none is open", async || (world.balance(ORGANIZATION, &[])["open_requests"] == 0).then_some(()))
            .await;
        // And there is room again.
        world.provider.release();
        let status = post(&front, SECRET, &Ask::whole("after")).send().await.expect("an answer").status();
        assert_eq!(status, StatusCode::OK);
        assert_balanced(&world).await;
        owner.stop().await;
    })
    .await;
}
