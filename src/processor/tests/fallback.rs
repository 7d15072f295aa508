//! What follows a failure, an answer that falls short, and deployments that are not sound.

use super::*;
use crate::processor::fallback::rule_of;
use crate::records::control::Entity;
use crate::records::journal::{HealthState, RequestRouted, Tiering};
use crate::records::policy::{FailureRule, Policy, Then};

/// Tier 2 is answered by `two` at two deployments, then by `three`; `four` is above.
fn policy() -> Policy {
    let name = |text: &str| ModelName::parse(text).unwrap();
    let tier = |tier, candidates: &[&str]| PolicyTier {
        tier,
        candidates: candidates.iter().map(|c| name(c)).collect(),
        weights: vec![],
    };
    Policy { max_attempts: 5, tiers: vec![tier(2, &["two", "three"]), tier(4, &["four"])], ..Policy::default() }
}

fn driver(policy: Policy) -> Driver {
    let mut driver = Driver::new();
    let larger = |window, model: Model| Model { context_window: window, ..model };
    driver.put("three", Entity::Model(model(2, vec![deployment("three-a", vec![price(5, 5)])])));
    driver.put("four", Entity::Model(larger(5_000, model(4, vec![deployment("four-a", vec![price(7, 7)])]))));
    driver.put("auto", Entity::Policy(policy));
    driver
}

fn standing(id: &str, state: HealthState) -> Standing {
    let until = (state == HealthState::Cooling).then(|| at(31_000));
    Standing { deployment: DeploymentId::parse(id).unwrap(), state, until, latency_ms: None, in_flight: 0 }
}

fn failed_after(class: FailureClass, retry_after_ms: Option<u64>) -> AttemptEnd {
    match failed(class) {
        AttemptEnd::Failed(failure) => {
            AttemptEnd::Failed(Failure { retry_after: retry_after_ms.map(Duration::from_millis), ..failure })
        }
        end => end,
    }
}

fn deployment_of(commands: &[Command]) -> &str {
    called(commands).head.deployment.as_str()
}

#[test]
fn every_cause_has_its_consequence() {
    for class in FailureClass::ALL {
        let mut driver = driver(Policy { fallback: vec![], ..policy() });
        driver.ask(&hello("auto"));
        let (facts, commands) = driver.end(1, failed(class), Summary::default(), 0);
        let ends = matches!(facts.last(), Some(Fact::RequestSettled(_)));
        // Nobody of this tier has a larger context.
        let is_end = rule_of(None, class).then == Then::End || class == FailureClass::ContextTooLong;
        assert_eq!(ends, is_end, "{class}");
        if !ends {
            assert_eq!(deployment_of(&commands), "two-b", "{class}");
        }
    }
}

#[test]
fn a_policy_says_otherwise() {
    let rule = |cause: FailureClass, then| FailureRule { cause: cause.code().into(), then, retries: 0, backoff_ms: 0 };
    let failures = vec![
        rule(FailureClass::Upstream, Then::End),
        rule(FailureClass::BadRequest, Then::Next),
        rule(FailureClass::Deadline, Then::Next),
    ];
    let table = [
        (FailureClass::Upstream, true),
        (FailureClass::BadRequest, false),
        (FailureClass::Connect, false),
        // After the deadline nobody is called, whatever a policy says.
        (FailureClass::Deadline, true),
    ];
    for (class, ends) in table {
        let mut driver = driver(Policy { failures: failures.clone(), ..policy() });
        driver.ask(&hello("auto"));
        let (facts, _) = driver.end(1, failed(class), Summary::default(), 0);
        assert_eq!(matches!(facts.last(), Some(Fact::RequestSettled(_))), ends, "{class}");
    }
}

#[test]
fn a_retry_waits_longer_each_time_and_no_less_than_the_provider_says() {
    let retry = FailureRule {
        cause: FailureClass::RateLimited.code().into(),
        then: Then::Retry,
        retries: 2,
        backoff_ms: 1_000,
    };
    let mut driver = driver(Policy { failures: vec![retry], ..policy() });
    driver.ask(&hello("auto"));
    let mut ends = |attempt, after| {
        let (facts, commands) =
            driver.end(attempt, failed_after(FailureClass::RateLimited, after), Summary::default(), 0);
        let Some(Fact::AttemptStarted(started)) = facts.last() else { panic!("{facts:?}") };
        assert_eq!(called(&commands).delay_ms, started.delay_ms);
        (deployment_of(&commands).to_owned(), started.delay_ms)
    };
    let (first, delay) = ends(1, None);
    assert!(first == "two-a" && (500..=1_000).contains(&delay), "{first} {delay}");
    let (second, delay) = ends(2, Some(1_500));
    assert!(second == "two-a" && (1_500..=2_000).contains(&delay), "{second} {delay}");
    // So much for this one; the next has retries of its own.
    assert_eq!(ends(3, None), ("two-b".to_owned(), 0));
    let (fourth, delay) = ends(4, None);
    assert!(fourth == "two-b" && (500..=1_000).contains(&delay), "{fourth} {delay}");
    let (facts, _) = driver.end(5, failed(FailureClass::RateLimited), Summary::default(), 0);
    let Some(Fact::RequestSettled(settled)) = facts.last() else { panic!("{facts:?}") };
    assert_eq!((settled.attempts, settled.status), (5, 429));
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn a_retry_that_would_come_after_the_deadline_is_not_waited_for() {
    let cause = FailureClass::RateLimited.code().into();
    let retry = FailureRule { cause, then: Then::Retry, retries: 2, backoff_ms: 0 };
    let mut driver = driver(Policy { failures: vec![retry], ..policy() });
    driver.ask(&hello("auto"));
    let end = failed_after(FailureClass::RateLimited, Some(60_000));
    let (_, commands) = driver.end(1, end, Summary::default(), 0);
    assert_eq!((deployment_of(&commands), called(&commands).delay_ms), ("two-b", 0));
}

#[test]
fn what_is_not_sound_is_passed_over_and_the_commit_says_so() {
    use HealthState::{Broken, Cooling};
    let table: [(&[(&str, HealthState)], &str, &[&str]); 5] = [
        (&[], "two-a", &[]),
        (&[("two-a", Broken)], "two-b", &["broken:two-a"]),
        (&[("two-a", Cooling), ("two-b", Broken)], "three-a", &["cooling:two-a", "broken:two-b"]),
        (&[("three-a", Broken)], "two-a", &[]),
        // When nobody is sound, one that is broken may answer after all; one that is cooling is the last resort.
        (
            &[("two-a", Cooling), ("two-b", Broken), ("three-a", Broken)],
            "two-b",
            &["cooling:two-a", "broken:two-b", "broken:three-a"],
        ),
    ];
    for (states, expected, reasons) in table {
        let mut driver = driver(policy());
        driver.health = states.iter().map(|(id, state)| standing(id, *state)).collect();
        let (facts, commands) = driver.ask(&hello("auto"));
        assert_eq!(deployment_of(&commands), expected, "{states:?}");
        let Fact::RequestRouted(routed) = &facts[1] else { panic!("{facts:?}") };
        let said: Vec<&str> =
            routed.reasons.iter().map(String::as_str).filter(|r| r.contains("ing:") || r.contains("broken:")).collect();
        assert_eq!(said, reasons);
        // Only what was looked at and mattered is kept.
        assert_eq!(driver.journal[0].health.len(), reasons.len(), "{:?}", driver.journal[0].health);
    }
}

#[test]
fn when_everybody_is_cooling_the_first_is_called_all_the_same() {
    let mut driver = driver(policy());
    driver.health = ["two-a", "two-b", "three-a"].map(|id| standing(id, HealthState::Cooling)).to_vec();
    let (_, commands) = driver.ask(&hello("auto"));
    assert_eq!(deployment_of(&commands), "two-a");
    assert_eq!(driver.journal[0].health.len(), 3);
}

#[test]
fn what_broke_meanwhile_is_passed_over_by_the_next_attempt() {
    let mut driver = driver(policy());
    driver.ask(&hello("auto"));
    driver.health = vec![standing("two-b", HealthState::Broken)];
    let (_, commands) = driver.end(1, failed(FailureClass::Connect), Summary::default(), 0);
    assert_eq!(deployment_of(&commands), "three-a");
    assert_eq!(driver.journal[1].health, driver.health);
    driver.health = vec![standing("two-a", HealthState::Cooling)];
    let (facts, _) = driver.end(2, failed(FailureClass::Connect), Summary::default(), 0);
    assert!(matches!(facts.last(), Some(Fact::RequestSettled(_))), "it has tried all of them: {facts:?}");
}

/// The end of a whole answer that falls short.
fn short(driver: &mut Driver, attempt: u32, shortfall: &str, body: &'static str) -> (Vec<Fact>, Vec<Command>) {
    let report = AttemptReport {
        body: Some(Bytes::from_static(body.as_bytes())),
        shortfall: Some(shortfall.into()),
        ..ended(key(), attempt, AttemptEnd::Completed, reported(10, 3))
    };
    driver.decide(&Input::AttemptEnded(Box::new(report)))
}

/// The end of the attempt after one that fell short, which the shell has kept.
fn after(driver: &mut Driver, attempt: u32, end: AttemptEnd, body: Option<&'static str>) -> (Vec<Fact>, Vec<Command>) {
    let report = AttemptReport {
        body: body.map(|body| Bytes::from_static(body.as_bytes())),
        earlier: Some(Bytes::from_static(b"first")),
        ..ended(key(), attempt, end, reported(10, 3))
    };
    driver.decide(&Input::AttemptEnded(Box::new(report)))
}

fn escalating() -> Policy {
    let tiers = policy().tiers;
    Policy { escalation: vec!["empty".into(), "length".into()], tiers, ..policy() }
}

#[test]
fn an_answer_that_falls_short_is_asked_for_one_tier_up_once_and_both_are_charged() {
    let mut driver = driver(escalating());
    let (_, commands) = driver.ask(&hello("auto"));
    assert_eq!(called(&commands).judged_for, ["empty", "length"]);
    let (facts, commands) = short(&mut driver, 1, "length", "first");
    let [Fact::AttemptEnded(posting), Fact::RequestRouted(routed), Fact::AttemptStarted(started)] = &facts[..] else {
        panic!("{facts:?}")
    };
    assert_eq!((posting.shortfall.as_deref(), posting.outcome), (Some("length"), Outcome::Completed));
    assert_eq!(posting.cost_pico_usd, Some(PicoUsd::new(10 * 1_000 + 3 * 2_000)));
    let RequestRouted { tiering: Some(Tiering { tier, .. }), reasons, .. } = &**routed else { panic!("{routed:?}") };
    assert_eq!((*tier, reasons.as_slice()), (4, &["escalated:4:length".to_owned()][..]));
    assert_eq!((started.attempt, deployment_of(&commands)), (2, "four-a"));
    // The second one falls short, too: it is the answer all the same.
    let report = AttemptReport {
        body: Some(Bytes::from_static(b"second")),
        shortfall: Some("length".into()),
        earlier: Some(Bytes::from_static(b"first")),
        ..ended(key(), 2, AttemptEnd::Completed, reported(10, 3))
    };
    let (facts, commands) = driver.decide(&Input::AttemptEnded(Box::new(report)));
    let Some(Fact::RequestSettled(settled)) = facts.last() else { panic!("{facts:?}") };
    let cost = Some(PicoUsd::new(10 * 1_000 + 3 * 2_000 + 13 * 7));
    assert_eq!((settled.outcome, settled.attempts, settled.cost_pico_usd), (Outcome::Completed, 2, cost));
    let terminal = answered(&commands).2;
    assert_eq!(terminal.body.as_deref(), Some(&b"second"[..]));
    assert_eq!(terminal.head.as_ref().unwrap().deployment.as_str(), "four-a");
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn when_the_next_tier_fails_the_answer_that_there_is_is_given() {
    let mut driver = driver(escalating());
    driver.ask(&hello("auto"));
    short(&mut driver, 1, "empty", "first");
    let (facts, commands) = after(&mut driver, 2, failed(FailureClass::Upstream), None);
    let Some(Fact::RequestSettled(settled)) = facts.last() else { panic!("{facts:?}") };
    assert_eq!((settled.outcome, settled.status, settled.attempts), (Outcome::Completed, 200, 2));
    let terminal = answered(&commands).2;
    assert_eq!((terminal.body.as_deref(), &terminal.error), (Some(&b"first"[..]), &None));
    assert_eq!(terminal.head.as_ref().unwrap().deployment.as_str(), "two-a");
    assert_eq!(
        (terminal.usage, &terminal.finish_reason),
        (None, &None),
        "those of the failed call are not the answer's"
    );
}

#[test]
fn it_is_not_asked_for_again_when_nobody_wants_or_may() {
    let plain = |body: &str| chat(body);
    let streamed = plain(r#"{"model":"auto","stream":true,"messages":[{"role":"user","content":"12345678"}]}"#);
    let table = [
        ("another shortfall", driver(escalating()), hello("auto"), "not_json"),
        ("a policy without", driver(policy()), hello("auto"), "empty"),
        ("a model that is named", driver(escalating()), hello("two"), "empty"),
        ("a stream", driver(escalating()), streamed, "empty"),
        ("the last attempt", driver(Policy { max_attempts: 1, ..escalating() }), hello("auto"), "empty"),
        (
            "nobody is above",
            driver(Policy { tiers: vec![policy().tiers[0].clone()], ..escalating() }),
            hello("auto"),
            "empty",
        ),
    ];
    for (what, mut driver, chat, shortfall) in table {
        driver.ask(&chat);
        let (facts, commands) = short(&mut driver, 1, shortfall, "first");
        let Some(Fact::RequestSettled(settled)) = facts.last() else { panic!("{what}: {facts:?}") };
        assert_eq!((settled.outcome, settled.attempts), (Outcome::Completed, 1), "{what}");
        assert_eq!(answered(&commands).2.body.as_deref(), Some(&b"first"[..]), "{what}");
    }
}

#[test]
fn a_context_that_is_too_long_goes_to_a_larger_one() {
    let mut with_four = policy();
    with_four.fallback = vec![ModelName::parse("four").unwrap()];
    let mut driver = driver(with_four);
    driver.ask(&hello("auto"));
    let (_, commands) = driver.end(1, failed(FailureClass::ContextTooLong), Summary::default(), 0);
    assert_eq!(deployment_of(&commands), "four-a");
}

proptest::proptest! {
    #[test]
    fn what_is_broken_is_never_called_while_somebody_sound_is_there(states in proptest::array::uniform3(0u8..3)) {
        let of = |state: u8| [HealthState::Sound, HealthState::Broken, HealthState::Cooling][usize::from(state)];
        let ids = ["two-a", "two-b", "three-a"];
        let mut driver = driver(policy());
        driver.health = ids.iter().zip(states).map(|(id, state)| standing(id, of(state))).collect();
        let (_, commands) = driver.ask(&hello("auto"));
        let first = |wanted: u8| ids.iter().zip(states).find(|(_, state)| *state == wanted).map(|(id, _)| *id);
        let expected = first(0).or_else(|| first(1)).or_else(|| first(2)).unwrap();
        assert_eq!(deployment_of(&commands), expected);
    }
}
