//! One owner follows another: what was under way is taken over, and an owner that was only asleep does no harm.

use std::collections::BTreeSet;

use rustix::process::Signal;
use tollstream::domain::PicoUsd;
use tollstream::records::{Outcome, UsageSource};

use super::log::{Answers, End, Journal, Reader};
use super::suite;
use super::world::{Ask, World};
use crate::stack::fixture::eventually;
use crate::stack::process::{Launch, Process};

/// A role set that only decides and calls.
const PROCESSOR: Option<&str> = Some("processor");

fn processor(world: &World, instance: &str) -> Process {
    world.process(Launch { instance, roles: PROCESSOR, failpoint: None })
}

async fn called(world: &World, request: &str, times: usize) {
    let what = format!("call {times} of {request}");
    eventually(&what, async || (world.provider.callers(request).len() >= times).then_some(())).await;
}

/// Waits until the journal and `responses` say what became of the requests, and asserts that it is right.
fn served(world: &World, asks: &[Ask]) -> (Reader<Journal>, Reader<Answers>) {
    let (mut journal, mut answers) = (world.journal(), world.answers());
    journal.until("every request is over", |read| asks.iter().all(|ask| read.is_over(ask.id())).then_some(()));
    answers.until("every answer has its end", |read| {
        asks.iter().all(|ask| read.of(ask.id()).is_some_and(|answer| answer.end.is_some())).then_some(())
    });
    world.assert_served(&journal.read, &answers.read, asks);
    (journal, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_request_is_called_anew_by_the_next_owner_and_what_was_settled_is_told_again() {
    suite::case("takeover after a kill", async || {
        let world = World::start("anew").await;
        let mut first = processor(&world, "first");
        first.ready().await;
        let (settled, open) = (Ask::whole("settled"), Ask::whole("open").held_for("first"));
        world.ask(&settled).await;
        world.answers().until("the first terminal", |read| read.of("settled")?.end.clone());
        world.ask(&open).await;
        called(&world, "open", 1).await;
        first.kill().await;

        let second = processor(&world, "second");
        let (_, mut answers) = served(&world, &[settled, open]);
        assert_eq!(answers.read.of("open").and_then(|answer| answer.end.clone()), Some(End::Completed));
        assert_eq!(world.provider.callers("open"), ["first", "second"]);
        assert_eq!(world.provider.callers("settled"), ["first"]);
        let tenures = answers.until("the terminal again", |read| {
            let terminals = &read.of("settled")?.terminals;
            (terminals.len() == 2).then(|| terminals.clone())
        });
        assert!(tenures[0] < tenures[1], "{tenures:?}");
        let mut journal = world.journal();
        let open = journal.read_all().of("open");
        let told: Vec<_> = open.postings.iter().map(|posting| (posting.attempt, posting.outcome)).collect();
        assert_eq!(told, [(1, Outcome::Interrupted), (2, Outcome::Completed)]);
        // What the first call cost is estimated, and part of the sum.
        let costs: Vec<_> = open.postings.iter().map(|posting| posting.cost_pico_usd.expect("a cost")).collect();
        assert_eq!(open.postings[0].usage_source, UsageSource::Estimated);
        assert!(costs[0] > PicoUsd::ZERO, "{costs:?}");
        assert_eq!(open.settled[0].cost_pico_usd, Some(costs.into_iter().sum()));
        second.stop().await;
        world.audit();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_owner_had_put_out_is_posted_as_far_as_it_was_told() {
    suite::case("progress", async || {
        let world = World::start("progress").await;
        let mut first = processor(&world, "first");
        first.ready().await;
        let long = Ask::streamed("long", 600, 100);
        world.ask(&long).await;
        // Every 3 s.
        world
            .journal()
            .until("progress is told twice", |read| (read.requests.get("long")?.progressed == 2).then_some(()));
        first.kill().await;
        let second = processor(&world, "second");
        let (journal, answers) = served(&world, &[long]);
        let (told, answer) = (journal.read.of("long"), answers.read.of("long").expect("an answer"));
        assert_eq!((told.settled[0].outcome, told.attempts), (Outcome::Interrupted, 1));
        let posting = &told.postings[0];
        assert!(posting.content_frames > 0 && posting.usage.output > Some(0), "{posting:?}");
        assert_eq!(posting.usage_source, UsageSource::Estimated);
        assert!(posting.cost_pico_usd > Some(PicoUsd::ZERO), "{posting:?}");
        assert!(posting.simulated, "{posting:?}");
        assert!(
            matches!(answer.end, Some(End::Told(Outcome::Interrupted, _))) && !answer.text.is_empty(),
            "{answer:?}"
        );
        assert_eq!(world.provider.callers("long"), ["first"]);
        second.stop().await;
        world.audit();
    })
    .await;
}

/// Bytes of a text that takes a tokenizer so long that a process can be killed meanwhile.
const SLOW_TO_COUNT: usize = 2 << 20;

/// Runs of signs that are tokens at many lengths, and no two of its parts are alike.
fn slow_to_count() -> String {
    let (mut text, mut random) = (String::with_capacity(SLOW_TO_COUNT), 1_u32);
    while text.len() < SLOW_TO_COUNT {
        // The linear congruential generator of Numerical Recipes.
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let sign = if random >> 16 & 1 == 0 { "-" } else { "=" };
        text.push_str(&sign.repeat(50 + (random >> 24) as usize));
    }
    text.truncate(SLOW_TO_COUNT);
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_owner_was_counting_is_counted_anew_and_decided_once_in_its_order() {
    suite::case("takeover while counting", async || {
        let mut world = World::start("counting").await;
        // Less than the long record: while it waits to be counted its partition is paused, and the owner says so.
        world.config.processor.held_bytes_max = SLOW_TO_COUNT / 8;
        let mut first = processor(&world, "first");
        first.ready().await;
        let before = Ask::whole("before");
        world.ask(&before).await;
        world.answers().until("the first terminal", |read| read.of("before")?.end.clone());
        let long = Ask { question: slow_to_count(), ..Ask::streamed("long", 5, 1) };
        let behind = (0..6).map(|number| match number % 2 {
            0 => Ask::whole(&format!("behind-{number}")),
            _ => Ask::streamed(&format!("behind-{number}"), 4, 1).without_key(),
        });
        let asks: Vec<Ask> = [long].into_iter().chain(behind).collect();
        for ask in &asks {
            world.ask(ask).await;
        }
        let paused = async || first.metric("tollstream_processor_partitions_paused").await;
        eventually("the owner has it and cannot decide", async || (paused().await == 1).then_some(())).await;
        first.kill().await;
        // The fault: it was killed before it had counted.
        let mut journal = world.journal();
        assert_eq!(journal.read_all().verdicts, ["before"]);

        let second = processor(&world, "second");
        let (mut journal, answers) = served(&world, &asks);
        let expected: Vec<&str> = ["before"].into_iter().chain(asks.iter().map(Ask::id)).collect();
        assert_eq!(journal.read_all().verdicts, expected);
        for ask in &asks {
            assert_eq!(answers.read.of(ask.id()).and_then(|answer| answer.end.clone()), Some(End::Completed));
            assert_eq!(world.provider.callers(ask.id()), ["second"]);
        }
        second.stop().await;
        world.audit();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_stopped_past_its_session_counts_for_nothing_when_it_wakes() {
    suite::case("an owner asleep", async || {
        let world = World::start("asleep").await;
        let mut first = processor(&world, "first");
        first.ready().await;
        let held = Ask::whole("held").held_for("first");
        world.ask(&held).await;
        called(&world, "held", 1).await;
        first.signal(Signal::STOP);
        eventually("it stands still", async || (first.state() == 'T').then_some(())).await;
        // Its answer comes while it is stopped, and so do further requests.
        world.provider.release();
        let later: Vec<Ask> = (0..4).map(|number| Ask::streamed(&format!("later-{number}"), 4, 1)).collect();
        for ask in &later {
            world.ask(ask).await;
        }
        let second = processor(&world, "second");
        let (mut journal, _) = served(&world, &[later.as_slice(), std::slice::from_ref(&held)].concat());
        assert_eq!(journal.read.owners(), BTreeSet::from(["first", "second"]));
        assert_eq!(world.provider.callers("held"), ["first", "second"]);

        first.signal(Signal::CONT);
        let late = journal.until("the late end of its call", |read| {
            let late = read.ineffective.iter().find(|late| late.request.as_deref() == Some("held"))?;
            Some((late.owner.clone(), late.ends_a_call))
        });
        assert_eq!(late, ("first".to_owned(), true));
        // What it spent without saying so in time is posted by the next tenure, and becomes a row.
        second.stop().await;
        let orphan = journal.until("the orphan is posted", |read| read.of("held").orphans.first().cloned());
        assert_eq!((orphan.attempt, orphan.outcome), (1, Outcome::Completed));
        // The interrupted call was posted with an estimate, which the orphan corrects: together they are what it cost.
        let estimated = journal.read.of("held").postings[0].clone();
        assert_eq!((estimated.outcome, estimated.usage_source), (Outcome::Interrupted, UsageSource::Estimated));
        let whole = [estimated.cost_pico_usd, orphan.cost_pico_usd].map(|cost| cost.expect("a cost"));
        assert!(whole.into_iter().sum::<PicoUsd>() > whole[0].max(PicoUsd::ZERO), "{whole:?}");
        assert_eq!(journal.read.of("held").settled.len(), 1);
        let books = world.process(Launch { instance: "books", roles: Some("projection,sink"), failpoint: None });
        world.assert_rows_are_the_journal(journal.read_all()).await;
        let by_first: Vec<_> = world.provider.calls().into_iter().filter(|call| call.by == "first").collect();
        assert_eq!(by_first.len(), 1, "it called again: {by_first:?}");
        first.stop().await;
        books.stop().await;
        world.audit_with_rows().await;
    })
    .await;
}

/// A processor that stops itself at a point, is succeeded, and wakes: what it had decided to call it does not call.
async fn wakes_at(point: &str) {
    let world = World::start("wakes").await;
    let failpoint = Some(format!("{point}=stop@1"));
    let first = world.process(Launch { instance: "first", roles: PROCESSOR, failpoint: failpoint.clone() });
    let asked = Ask::streamed("asked", 4, 1);
    world.ask(&asked).await;
    eventually("it stands still", async || (first.state() == 'T').then_some(())).await;
    assert!(first.log().contains(&format!("failpoint {point}=stop@1")), "{point}: it stands still elsewhere");
    let second = processor(&world, "second");
    let (mut journal, answers) = served(&world, &[asked]);
    assert_eq!(answers.read.of("asked").and_then(|answer| answer.end.clone()), Some(End::Completed), "{point}");
    first.signal(Signal::CONT);
    // It has learned that it was gone, and has partitions of its own again.
    eventually("it is back", async || (first.partitions().await == 2 && second.partitions().await == 2).then_some(()))
        .await;
    first.stop().await;
    second.stop().await;
    assert_eq!(world.provider.callers("asked"), ["second"], "{point}");
    assert_eq!(journal.read_all().owners(), BTreeSet::from(["first", "second"]));
    world.audit();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_stopped_before_a_call_does_not_make_it_when_it_wakes() {
    for point in ["after-commit", "commit-acknowledged"] {
        suite::case(&format!("an owner asleep at {point}"), async || wakes_at(point).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_call_is_never_told_of_is_given_up_when_it_is_overdue() {
    suite::case("overdue", async || {
        let world = World::start("overdue").await;
        let failpoint = Some("call-ended=panic@1".to_owned());
        let mut only = world.process(Launch { instance: "only", roles: PROCESSOR, failpoint });
        only.ready().await;
        let asked = Ask { timeout_ms: Some(3_000), ..Ask::whole("asked") };
        world.ask(&asked).await;
        let (mut journal, answers) = served(&world, &[asked]);
        let settled = &journal.read_all().of("asked").settled[0];
        assert_eq!((settled.outcome, settled.error_code.as_deref()), (Outcome::Failed, Some("deadline_exceeded")));
        assert!(matches!(answers.read.of("asked").expect("an answer").end, Some(End::Told(Outcome::Failed, _))));
        assert!(only.log().contains("failpoint call-ended=panic@1"), "its call ended well");
        assert_eq!(world.provider.callers("asked"), ["only"]);
        only.stop().await;
        world.audit();
    })
    .await;
}
