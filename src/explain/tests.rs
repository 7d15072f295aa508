//! What is picked out, what is added up, and what is said of it.

use std::sync::Arc;

use super::tell::lines;
use super::*;
use crate::domain::PolicyName;
use crate::records::journal::{
    Account, AttemptProgressed, Candidate, Features, InputKind, LimitCharge, LimitScope, OrphanPosted, Overdrawn,
    OwnershipTaken, RequestAdmitted, RequestRouted, RequestSettled, Reservation, Tenancy,
};

const RECEIVED: i64 = 1_000_000;

fn context(id: &str) -> Arc<RequestContext> {
    let received = Timestamp::from_millis(RECEIVED);
    Arc::new(RequestContext {
        requested_model: Some("auto".parse().unwrap()),
        policy: Some(PolicyName::parse("auto").unwrap()),
        policy_version: Some(4),
        ..RequestContext::of_request(id.parse().unwrap(), received)
    })
}

fn commit(tenure: i64, sequence: i64, after_ms: i64, organization: &str, id: &str, facts: Vec<Fact>) -> Entry {
    Entry::Commit(Commit {
        tenure,
        sequence,
        input: InputKind::Record,
        source_offset: None,
        at: Timestamp::from_millis(RECEIVED + after_ms),
        control_offset: 9,
        organization: Some(organization.parse().unwrap()),
        request: Some(context(id)),
        facts,
        health: Vec::new(),
    })
}

fn taken(owner: &str) -> Entry {
    Entry::OwnershipTaken(OwnershipTaken {
        owner: owner.into(),
        at: Timestamp::from_millis(RECEIVED),
        version: "1".into(),
    })
}

fn admitted() -> Fact {
    let charge = LimitCharge {
        scope: LimitScope::Organization,
        requests_per_minute: Some(60),
        tokens_per_minute: Some(10_000),
        tokens: 112,
    };
    Fact::RequestAdmitted(RequestAdmitted {
        deadline_at: Timestamp::from_millis(RECEIVED + 300_000),
        reply_partition: 0,
        reply_nonce: None,
        include_usage: false,
        features: Features {
            messages: 1,
            choices: 1,
            input_tokens: Some(12),
            output_cap: Some(100),
            ..Default::default()
        },
        body_fingerprint: None,
        limits: vec![charge],
    })
}

fn routed() -> Fact {
    let candidate = |model: &str| Candidate {
        model: model.parse().unwrap(),
        deployment: format!("openai-{model}").parse().unwrap(),
        tier: 2,
    };
    Fact::RequestRouted(Arc::new(RequestRouted {
        candidates: vec![candidate("gpt-4o-mini"), candidate("gpt-4o")],
        max_attempts: 3,
        reasons: vec!["tier 2 by default".into()],
        tiering: None,
    }))
}

fn started(attempt: u32, reserved: Option<i128>) -> Fact {
    Fact::AttemptStarted(AttemptStarted {
        attempt,
        model: "gpt-4o-mini".parse().unwrap(),
        deployment: "openai-gpt-4o-mini".parse().unwrap(),
        provider: "openai".into(),
        price_version: 7,
        reservation: reserved.map(|amount| Reservation {
            amount_pico_usd: PicoUsd::new(amount),
            input_tokens: 12,
            output_tokens: 100,
            output_cap: Some(100),
            accounts: vec![Account::Organization, Account::Key],
        }),
        limits: None,
        delay_ms: 0,
        shared_with: None,
        source: crate::records::journal::AttemptSource::Provider,
    })
}

fn posting(attempt: u32, outcome: Outcome, cost: Option<i128>) -> AttemptEnded {
    AttemptEnded {
        attempt,
        model: "gpt-4o-mini".parse().unwrap(),
        deployment: "openai-gpt-4o-mini".parse().unwrap(),
        provider: "openai".into(),
        tier: 2,
        simulated: false,
        outcome,
        error_code: None,
        upstream_status: None,
        finish_reason: Some("stop".into()),
        content_frames: 3,
        time_to_first_token_ms: Some(40),
        duration_ms: Some(90),
        usage: TokenUsage { input: Some(10), cached_input: Some(2), output: Some(5), ..TokenUsage::default() },
        usage_source: UsageSource::Reported,
        price_version: 7,
        price_simulated: false,
        cost_pico_usd: cost.map(PicoUsd::new),
        booking: None,
        retry_after_ms: None,
        shortfall: None,
        saved: None,
        source: crate::records::journal::AttemptSource::Provider,
    }
}

fn ended(attempt: u32, outcome: Outcome, cost: Option<i128>) -> Fact {
    Fact::AttemptEnded(Box::new(posting(attempt, outcome, cost)))
}

fn settled() -> Fact {
    Fact::RequestSettled(RequestSettled {
        outcome: Outcome::Completed,
        error_code: None,
        status: 200,
        attempts: 2,
        content_frames: 3,
        cost_pico_usd: Some(PicoUsd::new(7_000_000)),
        time_to_first_token_ms: Some(60),
        duration_ms: 130,
    })
}

/// The stories of `r1` in a log.
fn stories(log: Vec<Entry>, organization: Option<&str>) -> Vec<Story> {
    let organization = organization.map(|organization| organization.parse().unwrap());
    let mut stories = Stories::new(3, "r1".parse().unwrap(), organization);
    let (mut tenancy, mut owner) = (Tenancy::VACANT, None);
    for (offset, entry) in (0..).zip(log) {
        let counts = tenancy.accept(offset, &entry);
        if let Entry::OwnershipTaken(taken) = &entry {
            owner = Some(taken.owner.clone());
        }
        stories.take(offset, entry, counts, owner.as_deref());
    }
    stories.finish()
}

fn a_takeover() -> Vec<Entry> {
    vec![
        taken("a"),
        commit(0, 0, 5, "acme", "r1", vec![admitted(), routed(), started(1, Some(20_000_000))]),
        commit(0, 1, 6, "acme", "other", vec![admitted()]),
        commit(0, 2, 9, "globex", "r1", vec![admitted()]),
        taken("b"),
        // The former owner, too late.
        commit(0, 3, 95, "acme", "r1", vec![ended(1, Outcome::Completed, Some(4_000_000)), settled()]),
        commit(4, 0, 100, "acme", "r1", vec![ended(1, Outcome::Interrupted, None), started(2, Some(5_000_000))]),
        commit(
            4,
            1,
            130,
            "acme",
            "r1",
            vec![
                ended(2, Outcome::Completed, Some(7_000_000)),
                Fact::Overdrawn(Overdrawn { attempt: 2, amount_pico_usd: PicoUsd::new(2_000_000) }),
                settled(),
            ],
        ),
        commit(
            4,
            2,
            200,
            "acme",
            "r1",
            vec![Fact::OrphanPosted(OrphanPosted {
                journal_offset: 5,
                posting: Box::new(posting(1, Outcome::Completed, Some(4_000_000))),
                corrects_pico_usd: None,
            })],
        ),
    ]
}

#[test]
fn a_request_is_told_from_its_commits_alone_those_that_do_not_count_marked() {
    let found = stories(a_takeover(), Some("acme"));
    let [story] = &found[..] else { panic!("{found:?}") };
    let steps: Vec<_> = story.steps.iter().map(|s| (s.offset, s.counts, s.owner.as_deref())).collect();
    let a_then_b =
        [(1, true, Some("a")), (5, false, Some("b")), (6, true, Some("b")), (7, true, Some("b")), (8, true, Some("b"))];
    assert_eq!(steps, a_then_b);
    assert_eq!(story.end(), Some((Outcome::Completed, 200, Some(PicoUsd::new(7_000_000)))));
    let told: Vec<_> =
        lines(story).iter().map(|l| (l.what, l.after.as_millis(), l.step.as_millis(), l.counts)).collect();
    let expected = [
        ("admitted", 5, 5, true),
        ("routed", 5, 0, true),
        ("attempt started", 5, 0, true),
        ("attempt ended", 95, 90, false),
        ("settled", 95, 0, false),
        ("attempt ended", 100, 95, true),
        ("attempt started", 100, 0, true),
        ("attempt ended", 130, 30, true),
        ("overdrawn", 130, 0, true),
        ("settled", 130, 0, true),
        ("orphan posted", 200, 70, true),
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_same_id_of_two_organizations_is_two_requests() {
    let of: Vec<_> = stories(a_takeover(), None).into_iter().map(|story| story.organization.to_string()).collect();
    assert_eq!(of, ["acme", "globex"]);
    assert!(stories(a_takeover(), Some("initech")).is_empty());
}

#[test]
fn money_is_reserved_posted_released_and_overdrawn_by_attempt() {
    let story = stories(a_takeover(), Some("acme")).remove(0);
    let attempts = story.attempts();
    let pico = |amount: i128| Some(PicoUsd::new(amount));
    let money: Vec<_> = attempts.iter().map(|a| (a.attempt, a.reserved, a.posted, a.released(), a.overdrawn)).collect();
    assert_eq!(
        money,
        [
            (1, pico(20_000_000), Posted::Unknown, None, None),
            (2, pico(5_000_000), Posted::Amount(PicoUsd::new(7_000_000)), pico(0), pico(2_000_000)),
        ]
    );
    assert_eq!((&attempts[0].orphans[..], attempts[1].orphans.len()), (&[pico(4_000_000)][..], 0));
    let mut under = attempts[1].clone();
    under.posted = Posted::Amount(PicoUsd::new(1_500_000));
    assert_eq!(under.released(), pico(3_500_000));
    (under.posted, under.reserved) = (Posted::NotYet, None);
    assert_eq!(under.released(), None);
}

#[test]
fn every_decision_is_told_with_its_reasons() {
    let story = stories(a_takeover(), Some("acme")).remove(0);
    let told = lines(&story);
    let of = |what: &str| &told.iter().find(|line| line.what == what).unwrap().details;
    assert_eq!(
        of("admitted"),
        "1 messages, 12 input tokens, at most 100 output tokens, deadline in 300.0 s, \
         limit of the organization: 1 of 60 requests/min, 112 of 10000 tokens/min"
    );
    assert_eq!(
        of("routed"),
        "gpt-4o-mini at openai-gpt-4o-mini (tier 2), then gpt-4o at openai-gpt-4o (tier 2), 3 attempts at the most, \
         because: tier 2 by default"
    );
    assert_eq!(
        of("attempt started"),
        "1: gpt-4o-mini at openai-gpt-4o-mini (openai), prices of control offset 7, reserved $0.00002 of organization and \
         key (12 input and 100 output tokens, told a cap of 100)"
    );
    assert_eq!(
        of("attempt ended"),
        "1: completed, finish reason stop, posted $0.000004, 10 input + 2 cached + 5 output tokens (reported), first token \
         after 40 ms, 90 ms in all"
    );
    assert_eq!(of("overdrawn"), "attempt 2: $0.000002 beyond its reservation");
    assert_eq!(of("settled"), "200 completed, cost $0.000007, 2 attempts, 3 frames");
}

#[test]
fn what_is_kept_of_a_request_is_bounded() {
    let progressed = || Fact::AttemptProgressed(AttemptProgressed { attempt: 1, content_frames: 1, text_bytes: 1 });
    let commits = (0..COMMITS_MAX as i64 + 3).map(|n| commit(0, n, n, "acme", "r1", vec![progressed()]));
    let story = stories(std::iter::once(taken("a")).chain(commits).collect(), None).remove(0);
    assert_eq!((story.steps.len(), story.left_out), (COMMITS_MAX, 3));
}
