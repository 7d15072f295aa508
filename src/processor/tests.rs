//! The synchronous driver: given these facts, when this input arrives, then these facts and commands.

mod cache;
mod fallback;
mod money;

use std::time::Duration;

use bytes::Bytes;

use super::inference::{AttemptEnd, AttemptReport};
use super::memory::Ended;
use super::*;
use crate::control::Change;
use crate::domain::ModelName;
use crate::domain::{DeploymentId, PicoUsd, PolicyName, TokenUsage};
use crate::provider::{Failure, FailureClass, Summary};
use crate::records::control::{
    ControlRecord, Deployment, Entity, Model, Organization, Policy, PolicyTier, PriceEntry, Stamp,
};
use crate::records::journal::Entry;
use crate::records::responses::Original;
use crate::records::{Origin, UsageSource};

const PARTITIONS: u32 = 4;
pub const BOUNDS: Bounds = Bounds {
    partitions: PARTITIONS,
    body_bytes_max: 1_000,
    timeout: Duration::from_secs(60),
    timeout_max: Duration::from_secs(600),
};

pub fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn control_record(kind: &str, id: &str) -> ControlRecord {
    ControlRecord {
        kind: kind.into(),
        id: id.into(),
        expected_version: -1,
        change_id: id.into(),
        actor: "test".into(),
        at: at(0),
        deleted: false,
        organization: None,
        key: None,
        model: None,
        policy: None,
        plan: None,
    }
}

fn deployment(id: &str, prices: Vec<PriceEntry>) -> Deployment {
    Deployment {
        id: DeploymentId::parse(id).unwrap(),
        provider: "openai".into(),
        upstream_model: format!("up-{id}"),
        base_url: "http://upstream/v1".into(),
        region: "us".into(),
        credential: "env:KEY".into(),
        prices,
        weight: None,
    }
}

fn price(input: i128, output: i128) -> PriceEntry {
    PriceEntry {
        effective_from: at(0),
        min_input_tokens: None,
        max_input_tokens: None,
        input: PicoUsd::new(input),
        cached_input: None,
        cache_write: None,
        output: PicoUsd::new(output),
        reasoning: None,
        source: Some("test".into()),
        source_read: None,
    }
}

fn model(tier: u8, deployments: Vec<Deployment>) -> Model {
    Model {
        aliases: vec![],
        tier,
        owned_by: "openai".into(),
        created_at: at(0),
        context_window: 1_000,
        max_output_tokens: 100,
        capabilities: vec![],
        deployments,
        limits: Default::default(),
        balance: crate::records::control::Balance::default(),
    }
}

pub fn tables() -> Tables {
    let mut tables = Tables::default();
    let name = |text: &str| ModelName::parse(text).unwrap();
    let organization = Organization::named("Acme");
    let gone = Organization { active: false, ..Organization::named("Gone") };
    let two = Model {
        aliases: vec![name("alias")],
        ..model(2, vec![deployment("two-a", vec![price(1_000, 2_000)]), deployment("two-b", vec![price(3_000, 4_000)])])
    };
    let policy = Policy {
        description: String::new(),
        default_tier: 2,
        max_attempts: 3,
        tiers: vec![PolicyTier { tier: 2, candidates: vec![name("two"), name("nowhere")], weights: Vec::new() }],
        fallback: vec![name("one"), name("two")],
        ..Policy::default()
    };
    let records = [
        ControlRecord { organization: Some(organization), ..control_record("organization", "acme") },
        ControlRecord { organization: Some(gone), ..control_record("organization", "gone") },
        ControlRecord { model: Some(two), ..control_record("model", "two") },
        ControlRecord {
            model: Some(model(1, vec![deployment("one-a", vec![price(10, 20)])])),
            ..control_record("model", "one")
        },
        ControlRecord {
            model: Some(model(1, vec![deployment("free-a", vec![])])),
            ..control_record("model", "unpriced")
        },
        ControlRecord { policy: Some(policy), ..control_record("policy", "auto") },
    ];
    for (offset, record) in records.iter().enumerate() {
        tables.apply(offset as i64, record).unwrap();
    }
    tables
}

fn chat(body: &str) -> Chat {
    Chat {
        request_id: RequestId::parse("r1").unwrap(),
        organization: OrganizationId::parse("acme").unwrap(),
        lane: 0,
        key_id: None,
        user: None,
        user_tier: None,
        tags: Default::default(),
        conversation_id: None,
        model: None,
        timeout_ms: None,
        reply_partition: Some(3),
        reply_nonce: Some("n".into()),
        origin: Origin::Live,
        traceparent: None,
        content_type: "application/json".into(),
        encryption_key_id: None,
        content_ref: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
        cache_control: None,
    }
}

pub fn hello(model: &str) -> Chat {
    chat(&format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"12345678"}}]}}"#))
}

/// How a call ended, without content.
pub fn ended(key: RequestKey, attempt: u32, end: AttemptEnd, summary: Summary) -> AttemptReport {
    AttemptReport {
        key,
        attempt,
        called: true,
        end,
        summary,
        content_frames: 0,
        simulated: false,
        time_to_first_token_ms: None,
        duration_ms: 1,
        body: None,
        earlier: None,
        shortfall: None,
        kept_bytes: None,
    }
}

/// A partition without Kafka: decides, folds, and keeps the journal.
struct Driver {
    control: Tables,
    state: State,
    journal: Vec<Commit>,
    offset: i64,
    now: Timestamp,
    capacity: Capacity,
    health: Vec<Standing>,
}

impl Driver {
    fn new() -> Self {
        Self {
            control: tables(),
            state: State::default(),
            journal: vec![],
            offset: 0,
            now: at(1_000),
            capacity: Capacity::Free,
            health: vec![],
        }
    }

    fn put(&mut self, id: &str, entity: Entity) {
        let stamp = Stamp { change_id: id.into(), actor: "test".into(), at: at(0) };
        let (offset, version) = (self.control.offset() + 1, self.control.version_of(entity.kind(), id));
        let changed = self.control.apply(offset, &ControlRecord::put(id, entity, version, stamp)).unwrap();
        assert_eq!(changed, Change::Effective);
    }

    fn decide(&mut self, input: &Input<'_>) -> (Vec<Fact>, Vec<Command>) {
        let context = Context {
            at: self.now.max(self.state.clock),
            tenure: 7,
            control: &self.control,
            capacity: self.capacity,
            bounds: &BOUNDS,
            health: Health::Recorded(&self.health),
        };
        let mut decision = decide(&self.state, input, &context);
        let commands = std::mem::take(&mut decision.commands);
        if decision.facts.is_empty() {
            return (vec![], commands);
        }
        let commit = commit(&mut decision, self.journal.len() as i64, &context);
        let again = redecide::redecide(&self.state, &commit, &self.control);
        assert!(matches!(again, redecide::Again::Same | redecide::Again::NotOnTheJournal), "{again:?}");
        evolve(&mut self.state, &commit);
        self.journal.push(commit.clone());
        (commit.facts, commands)
    }

    fn ask(&mut self, chat: &Chat) -> (Vec<Fact>, Vec<Command>) {
        self.offset += 1;
        let content = content::read(&chat.body);
        self.decide(&Input::Chat {
            source_offset: self.offset,
            received_at: self.now,
            chat,
            content,
            fingerprint: None,
            cache: None,
        })
    }

    fn cancel(&mut self) -> (Vec<Fact>, Vec<Command>) {
        self.offset += 1;
        let cancel = Cancel { request_id: key().request, organization: key().organization, reason: "gone".into() };
        self.decide(&Input::Cancel { source_offset: self.offset, received_at: self.now, cancel: &cancel })
    }

    fn end(&mut self, attempt: u32, end: AttemptEnd, summary: Summary, frames: u32) -> (Vec<Fact>, Vec<Command>) {
        let report = AttemptReport {
            content_frames: frames,
            time_to_first_token_ms: Some(5),
            duration_ms: 9,
            ..ended(key(), attempt, end, summary)
        };
        self.decide(&Input::AttemptEnded(Box::new(report)))
    }

    /// What a reader of the journal alone comes to.
    fn rebuilt(&self) -> State {
        let mut state = State::default();
        self.journal.iter().for_each(|commit| evolve(&mut state, commit));
        state
    }
}

fn key() -> RequestKey {
    key_of(&OrganizationId::parse("acme").unwrap(), &RequestId::parse("r1").unwrap())
}

pub fn failed(class: FailureClass) -> AttemptEnd {
    AttemptEnd::Failed(Failure {
        class,
        upstream_status: None,
        message: "it broke".into(),
        upstream_type: None,
        upstream_code: None,
        upstream_param: None,
        retry_after: None,
    })
}

pub fn reported(input: u64, output: u64) -> Summary {
    let usage = TokenUsage { input: Some(input), output: Some(output), ..TokenUsage::default() };
    Summary { usage: Some(usage), finish_reason: Some("stop".into()), text_bytes: 40 }
}

fn called(commands: &[Command]) -> &ProviderCall {
    match commands {
        [Command::Call(call)] => call,
        other => panic!("no call in {other:?}"),
    }
}

fn answered(commands: &[Command]) -> (i32, &Frame, &Terminal) {
    match commands {
        [Command::Answer { partition, frame }] => match &frame.body {
            FrameBody::Terminal(terminal) => (*partition, frame, terminal),
            FrameBody::Content(_) => panic!("content instead of a terminal"),
        },
        other => panic!("no answer in {other:?}"),
    }
}

fn refusal_of(chat: &Chat) -> (u16, String) {
    let mut driver = Driver::new();
    let (facts, commands) = driver.ask(chat);
    let (_, _, terminal) = answered(&commands);
    assert_eq!(terminal.outcome, Outcome::Refused);
    assert_eq!(terminal.cost_pico_usd, Some(PicoUsd::ZERO));
    let error = terminal.error.clone().unwrap();
    let [Fact::RequestRefused(refused)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((&refused.code, refused.status), (&error.code, error.status));
    told_again(&driver, &commands);
    assert_eq!(driver.state.open_requests().count(), 0);
    (error.status, error.code)
}

/// The next owner tells the asker the same, but for what words it has left.
fn told_again(driver: &Driver, commands: &[Command]) {
    let (partition, frame, terminal) = answered(commands);
    let ended: Vec<&Ended> = driver.state.memory.ended().filter(|ended| ended.outcome == Outcome::Refused).collect();
    let again = [terminal_again(ended[ended.len() - 1], 9, at(2_000))];
    let (partition_again, frame_again, terminal_again) = answered(&again);
    assert_eq!((partition_again, &frame_again.nonce, frame_again.tenure), (partition, &frame.nonce, 9));
    let said = |terminal: &Terminal| {
        let error = terminal.error.as_ref().unwrap();
        (terminal.outcome, terminal.cost_pico_usd, terminal.original, error.status, error.code.clone())
    };
    assert_eq!(said(terminal_again), said(terminal));
}

#[test]
fn a_request_is_admitted_routed_and_called_in_one_commit() {
    let mut driver = Driver::new();
    let (facts, commands) = driver.ask(&hello("alias"));
    let call = called(&commands);
    assert_eq!((call.upstream_model.as_str(), call.attempt, call.stream), ("up-two-a", 1, false));
    assert_eq!((call.head.model.as_str(), call.head.tier), ("two", 2));
    assert_eq!(call.deadline_at, at(61_000));
    let [Fact::RequestAdmitted(admitted), Fact::RequestRouted(routed), Fact::AttemptStarted(started)] = &facts[..]
    else {
        panic!("{facts:?}")
    };
    assert_eq!((admitted.reply_partition, admitted.features.text_bytes), (3, 8));
    let order: Vec<_> = routed.candidates.iter().map(|c| c.deployment.as_str()).collect();
    assert_eq!(order, ["two-a", "two-b"]);
    assert_eq!(started.price_version, 2);
    let commit = &driver.journal[0];
    assert_eq!((commit.control_offset, commit.source_offset, commit.input), (5, Some(1), InputKind::Record));
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn auto_takes_the_candidates_of_its_tier_and_then_the_fallback() {
    let mut driver = Driver::new();
    let (facts, _) = driver.ask(&hello("auto"));
    let Fact::RequestRouted(routed) = &facts[1] else { panic!("{facts:?}") };
    let order: Vec<_> = routed.candidates.iter().map(|c| c.deployment.as_str()).collect();
    assert_eq!(order, ["two-a", "two-b", "one-a"]);
    assert_eq!(routed.reasons, ["policy:auto", "tier:2:default", "unknown_model:nowhere"]);
    let context = driver.journal[0].request.as_ref().unwrap();
    assert_eq!((context.policy.as_ref().map(PolicyName::as_str), context.policy_version), (Some("auto"), Some(5)));
}

#[test]
fn what_cannot_be_admitted_is_refused_with_its_reason_at_no_cost() {
    let with = |change: fn(&mut Chat)| {
        let mut chat = hello("two");
        change(&mut chat);
        chat
    };
    let table: Vec<(Chat, u16, &str)> = vec![
        (hello("nothing"), 404, "model_not_found"),
        (hello("bad name"), 404, "model_not_found"),
        (hello("unpriced"), 503, "price_unknown"),
        (chat("{}"), 400, "invalid_request"),
        (chat(r#"{"model":"two","messages":[]}"#), 400, "invalid_request"),
        (chat(r#"{"messages":[{"role":"user","content":"x"}]}"#), 400, "missing_model"),
        (chat(&"x".repeat(1_001)), 413, "request_too_large"),
        (with(|c| c.organization = OrganizationId::parse("nobody").unwrap()), 403, "organization_not_found"),
        (with(|c| c.organization = OrganizationId::parse("gone").unwrap()), 403, "organization_not_found"),
        (with(|c| c.timeout_ms = Some(0)), 504, "deadline_exceeded"),
        (with(|c| c.timeout_ms = Some(-5)), 504, "deadline_exceeded"),
        (with(|c| c.lane = 1), 400, "unsupported"),
        (with(|c| c.encryption_key_id = Some("k".into())), 400, "unsupported"),
        (with(|c| c.content_ref = Some("s3://x".into())), 400, "unsupported"),
        (with(|c| c.origin = Origin::Shadow), 400, "unsupported"),
        (with(|c| c.content_type = "text/plain".into()), 400, "unsupported"),
        (with(|c| c.reply_partition = Some(4)), 400, "invalid_request"),
        (with(|c| c.tags = [("k".repeat(65), "v".into())].into()), 400, "invalid_request"),
    ];
    for (chat, status, code) in table {
        assert_eq!(refusal_of(&chat), (status, code.to_owned()));
    }
}

#[test]
fn the_record_may_name_the_model_and_its_word_counts() {
    let mut driver = Driver::new();
    let named = Chat { model: Some(ModelName::parse("one").unwrap()), ..hello("two") };
    let (_, commands) = driver.ask(&named);
    assert_eq!(called(&commands).head.model.as_str(), "one");
}

#[test]
fn a_request_that_waited_past_its_deadline_is_not_called() {
    let mut driver = Driver::new();
    driver.state.clock = at(1_000_000);
    let (facts, commands) = driver.ask(&hello("two"));
    assert!(matches!(&facts[..], [Fact::RequestRefused(refused)] if refused.code == "deadline_exceeded"));
    assert_eq!(answered(&commands).1.at, at(1_000_000));
}

#[test]
fn without_room_the_asker_is_told_to_come_back() {
    for (capacity, status) in [(Capacity::Full, 503), (Capacity::ShareUsed, 429)] {
        let mut driver = Driver { capacity, ..Driver::new() };
        let (_, commands) = driver.ask(&hello("two"));
        let error = answered(&commands).2.error.clone().unwrap();
        assert_eq!((error.status, error.retry_after_ms), (status, Some(1_000)));
    }
}

#[test]
fn a_whole_answer_settles_with_its_exact_cost() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    driver.now = at(1_250);
    let (facts, commands) = driver.end(1, AttemptEnd::Completed, reported(10, 3), 4);
    let cost = Some(PicoUsd::new(10 * 1_000 + 3 * 2_000));
    let [Fact::AttemptEnded(posting), Fact::RequestSettled(settled)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((posting.cost_pico_usd, posting.usage_source), (cost, UsageSource::Reported));
    assert_eq!((settled.outcome, settled.status, settled.cost_pico_usd), (Outcome::Completed, 200, cost));
    assert_eq!((settled.duration_ms, settled.time_to_first_token_ms, settled.content_frames), (250, Some(5), 4));
    let (partition, frame, terminal) = answered(&commands);
    assert_eq!((partition, frame.sequence, frame.attempt, frame.tenure), (3, 4, 1, 7));
    assert_eq!(terminal.cost_pico_usd, cost);
    assert_eq!(driver.state.open_requests().count(), 0);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn before_content_a_failure_moves_to_the_next_candidate() {
    let mut driver = Driver::new();
    driver.ask(&hello("auto"));
    let (facts, commands) = driver.end(1, failed(FailureClass::Connect), Summary::default(), 0);
    assert_eq!((called(&commands).upstream_model.as_str(), called(&commands).attempt), ("up-two-b", 2));
    let Fact::AttemptEnded(posting) = &facts[0] else { panic!("{facts:?}") };
    assert_eq!((posting.usage_source, posting.cost_pico_usd), (UsageSource::None, Some(PicoUsd::ZERO)));
    // A late report of the first attempt changes nothing.
    assert_eq!(driver.end(1, AttemptEnd::Completed, reported(1, 1), 1), (vec![], vec![]));
    let (_, commands) = driver.end(2, failed(FailureClass::FirstTokenTimeout), Summary::default(), 0);
    assert_eq!((called(&commands).upstream_model.as_str(), called(&commands).attempt), ("up-one-a", 3));
    let (facts, commands) = driver.end(3, failed(FailureClass::Upstream), Summary::default(), 0);
    let Fact::RequestSettled(settled) = &facts[1] else { panic!("{facts:?}") };
    assert_eq!((settled.outcome, settled.attempts, settled.status), (Outcome::Failed, 3, 502));
    // The second attempt timed out after 9 ms: its input is counted as 10 tokens, and 27 may have been put out.
    assert_eq!(settled.cost_pico_usd, Some(PicoUsd::new(10 * 3_000 + 27 * 4_000 + 10 * 10)));
    assert_eq!(answered(&commands).2.error.as_ref().unwrap().code, "upstream_error");
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn after_content_or_for_the_clients_own_mistake_nobody_else_is_called() {
    for (class, frames, status) in [
        (FailureClass::Cut, 1, 502),
        (FailureClass::BetweenTokensTimeout, 2, 504),
        (FailureClass::BadRequest, 0, 400),
        (FailureClass::Deadline, 0, 504),
    ] {
        let mut driver = Driver::new();
        driver.ask(&hello("auto"));
        let summary = Summary { text_bytes: 9, ..Summary::default() };
        let (facts, commands) = driver.end(1, failed(class), summary, frames);
        let Fact::RequestSettled(settled) = &facts[1] else { panic!("{facts:?}") };
        assert_eq!((settled.outcome, settled.status), (Outcome::Failed, status), "{class}");
        assert_eq!(answered(&commands).1.sequence, frames);
    }
}

#[test]
fn what_the_provider_did_not_report_is_estimated_and_marked() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let summary = Summary { text_bytes: 9, ..Summary::default() };
    let (facts, _) = driver.end(1, failed(FailureClass::Cut), summary, 1);
    let Fact::AttemptEnded(posting) = &facts[0] else { panic!("{facts:?}") };
    assert_eq!((posting.usage.input, posting.usage.output), (Some(10), Some(3)));
    assert_eq!(posting.usage_source, UsageSource::Estimated);
    assert_eq!(posting.cost_pico_usd, Some(PicoUsd::new(10 * 1_000 + 3 * 2_000)));
}

#[test]
fn a_call_that_was_never_made_costs_nothing() {
    for end in [AttemptEnd::Cancelled, failed(FailureClass::Deadline)] {
        let mut driver = Driver::new();
        driver.ask(&hello("two"));
        let (facts, _) = driver.decide(&Input::AttemptEnded(Box::new(AttemptReport {
            key: key(),
            attempt: 1,
            called: false,
            end,
            summary: Summary { finish_reason: Some("x".repeat(1_000)), ..Summary::default() },
            content_frames: 0,
            simulated: false,
            time_to_first_token_ms: None,
            duration_ms: 0,
            body: None,
            earlier: None,
            shortfall: None,
            kept_bytes: None,
        })));
        let Fact::AttemptEnded(posting) = &facts[0] else { panic!("{facts:?}") };
        assert_eq!((posting.usage_source, posting.cost_pico_usd), (UsageSource::None, Some(PicoUsd::ZERO)));
        assert_eq!(posting.finish_reason.as_ref().map(String::len), Some(64), "a finish reason is a word");
    }
}

#[test]
fn a_cancel_aborts_the_call_and_what_was_used_is_settled() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let (facts, commands) = driver.cancel();
    assert_eq!(commands, [Command::Abort(key())]);
    assert_eq!(facts, [Fact::CancelRequested(CancelRequested { reason: "gone".into(), open: true })]);
    // The call failed on its own before it could be aborted: nobody else is called for a cancelled request.
    let (facts, _) = driver.end(1, failed(FailureClass::Upstream), Summary::default(), 0);
    let Fact::RequestSettled(settled) = &facts[1] else { panic!("{facts:?}") };
    assert_eq!((settled.outcome, settled.status), (Outcome::Cancelled, 499));
    let (facts, commands) = driver.cancel();
    assert_eq!(commands, []);
    assert_eq!(facts, [Fact::CancelRequested(CancelRequested { reason: "gone".into(), open: false })]);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn a_repeat_of_an_open_request_makes_no_second_call() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let (facts, commands) = driver.ask(&hello("two"));
    assert_eq!(commands, []);
    assert_eq!(facts, [Fact::RecordSkipped(RecordSkipped { reason: "duplicate".into(), told: None })]);
    assert_eq!(driver.state.last_source_offset, Some(2));
    // From elsewhere it is told so, and the open request is not touched.
    let (_, commands) = driver.ask(&Chat { reply_nonce: Some("other".into()), ..hello("two") });
    let (_, frame, terminal) = answered(&commands);
    assert_eq!((frame.nonce.as_deref(), terminal.error.as_ref().unwrap().status), (Some("other"), 409));
    assert_eq!(driver.state.open_requests().count(), 1);
}

#[test]
fn a_nonce_that_is_too_long_counts_as_none_and_so_it_is_decided_again() {
    let long = Chat { reply_nonce: Some("n".repeat(201)), ..hello("two") };
    for (first, is_told) in [(None, false), (Some("n".to_owned()), true)] {
        let mut driver = Driver::new();
        driver.ask(&Chat { reply_nonce: first, ..hello("two") });
        let before = driver.state.clone();
        let (facts, _) = driver.ask(&long);
        let [Fact::RecordSkipped(skipped)] = &facts[..] else { panic!("{facts:?}") };
        assert_eq!(skipped.told.is_some(), is_told);
        let again = redecide::redecide(&before, driver.journal.last().unwrap(), &driver.control);
        assert_eq!(again, redecide::Again::Same);
    }
}

const PROGRESSED: AttemptProgressed = AttemptProgressed { attempt: 1, content_frames: 3, text_bytes: 9 };

fn usd(pico: i128) -> Option<PicoUsd> {
    Some(PicoUsd::new(pico))
}

fn taken_over(driver: &mut Driver, has_body: bool) -> (Vec<Fact>, Vec<Command>) {
    driver.state = driver.rebuilt();
    driver.decide(&Input::TakenOver { key: key(), has_body, simulated: true })
}

#[test]
fn what_a_former_owner_left_open_is_called_anew_as_long_as_nobody_saw_content() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let (facts, commands) = taken_over(&mut driver, true);
    let [Fact::AttemptEnded(posting), Fact::AttemptStarted(started)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((posting.outcome, posting.cost_pico_usd, posting.simulated), (Outcome::Interrupted, usd(10_000), true));
    assert_eq!((started.attempt, started.deployment.as_str()), (2, "two-a"));
    assert_eq!(called(&commands).attempt, 2);
    // The late end of the first attempt changes nothing; that of the second settles, with the cost of both.
    assert_eq!(driver.end(1, AttemptEnd::Completed, reported(1, 1), 0), (vec![], vec![]));
    let (facts, commands) = driver.end(2, AttemptEnd::Completed, reported(1, 1), 0);
    let Fact::RequestSettled(settled) = &facts[1] else { panic!("{facts:?}") };
    assert_eq!(
        (settled.outcome, settled.attempts, settled.cost_pico_usd),
        (Outcome::Completed, 2, usd(10_000 + 3_000))
    );
    assert_eq!(answered(&commands).1.attempt, 2);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn what_a_former_owner_left_open_is_settled_as_interrupted_with_its_cost_estimated() {
    type Prepare = fn(&mut Driver);
    let cases: [(&str, Prepare, bool, Outcome, u16, u64); 5] = [
        ("without its body", |_| {}, false, Outcome::Interrupted, 503, 0),
        (
            "with content out",
            |d| drop(d.decide(&Input::AttemptProgressed(key(), PROGRESSED))),
            true,
            Outcome::Interrupted,
            503,
            3,
        ),
        ("past its deadline", |d| d.now = at(1_000 + 60_000), true, Outcome::Interrupted, 503, 0),
        ("cancelled", |d| drop(d.cancel()), true, Outcome::Cancelled, 499, 0),
        (
            "at its last attempt",
            |d| {
                d.end(1, failed(FailureClass::Upstream), Summary::default(), 0);
                d.end(2, failed(FailureClass::Upstream), Summary::default(), 0);
            },
            true,
            Outcome::Interrupted,
            503,
            0,
        ),
    ];
    for (what, prepare, has_body, outcome, status, output) in cases {
        let mut driver = Driver::new();
        driver.ask(&hello(if what == "at its last attempt" { "auto" } else { "two" }));
        prepare(&mut driver);
        let (facts, commands) = taken_over(&mut driver, has_body);
        let [Fact::AttemptEnded(posting), Fact::RequestSettled(settled)] = &facts[..] else {
            panic!("{what}: {facts:?}")
        };
        assert_eq!(
            (posting.usage.input, posting.usage.output, posting.usage_source),
            (Some(10), Some(output), UsageSource::Estimated),
            "{what}"
        );
        // The last candidate is another model, with other prices.
        let (cost, before) = match what {
            "at its last attempt" => (100, 10_000 + 30_000),
            _ => (10_000 + i128::from(output) * 2_000, 0),
        };
        assert_eq!((settled.outcome, posting.cost_pico_usd), (outcome, usd(cost)), "{what}");
        assert_eq!(settled.cost_pico_usd, usd(before + cost), "{what}");
        assert_eq!(answered(&commands).2.error.as_ref().unwrap().status, status, "{what}");
        assert_eq!(taken_over(&mut driver, true), (vec![], vec![]), "{what}");
    }
}

#[test]
fn a_settled_request_is_remembered_and_told_where_its_answer_stands() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    driver.end(1, AttemptEnd::Completed, reported(1, 1), 1);
    let asked_again = |driver: &mut Driver, chat: &Chat| {
        let (facts, commands) = driver.ask(chat);
        let [Fact::RecordSkipped(skipped)] = &facts[..] else { panic!("{facts:?}") };
        assert_eq!((skipped.reason.as_str(), skipped.told.is_some()), ("duplicate", true));
        told_again(driver, &commands);
        let (partition, _, terminal) = answered(&commands);
        (partition, terminal.error.as_ref().unwrap().code.clone(), terminal.original)
    };
    let original = Original { partition: 3, since: at(1_000), open: false };
    let elsewhere = Chat { reply_nonce: Some("m".into()), reply_partition: Some(1), ..hello("two") };
    assert_eq!(asked_again(&mut driver, &elsewhere), (1, "duplicate_request_id".into(), Some(original)));
    // After the window, it is a request like any other.
    driver.now = at(1_001).plus(memory::REPEAT_WINDOW);
    driver.decide(&Input::Skip { source_offset: 100, reason: "undecodable" });
    driver.offset = 100;
    assert!(matches!(driver.ask(&elsewhere).0[0], Fact::RequestAdmitted(_)));
}

#[test]
fn the_same_id_with_another_body_is_refused_whether_open_or_settled() {
    let ask = |driver: &mut Driver, fingerprint: &str| {
        driver.offset += 1;
        let chat = Chat { reply_nonce: Some(fingerprint.into()), ..hello("two") };
        let content = content::read(&chat.body);
        let fingerprint = Some(fingerprint.to_owned());
        let (source_offset, received_at) = (driver.offset, driver.now);
        driver.decide(&Input::Chat { source_offset, received_at, chat: &chat, content, fingerprint, cache: None }).1
    };
    let code = |commands: &[Command]| answered(commands).2.error.as_ref().unwrap().code.clone();
    let mut driver = Driver::new();
    called(&ask(&mut driver, "x"));
    assert_eq!(code(&ask(&mut driver, "y")), "request_id_reused");
    driver.end(1, AttemptEnd::Completed, reported(1, 1), 1);
    assert_eq!(code(&ask(&mut driver, "y")), "request_id_reused");
    assert_eq!(code(&ask(&mut driver, "x")), "duplicate_request_id");
}

#[test]
fn a_call_that_never_ended_is_given_up_after_its_deadline_and_grace() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let due = at(1_000 + 60_000).plus(state::DEADLINE_GRACE);
    assert_eq!(driver.state.overdue(at(due.as_millis() - 1)), None);
    assert_eq!(driver.state.overdue(due), Some(&key()));
    driver.now = due;
    let (facts, commands) = driver.decide(&Input::Overdue { key: key(), simulated: false });
    let [Fact::AttemptEnded(posting), Fact::RequestSettled(settled)] = &facts[..] else { panic!("{facts:?}") };
    // As much as was set aside: nobody knows what it put out.
    let ended = (posting.cost_pico_usd, settled.outcome, settled.status);
    assert_eq!(ended, (usd(10_000 + 100 * 2_000), Outcome::Failed, 504));
    assert_eq!(commands[0], Command::Abort(key()));
    assert_eq!(answered(&commands[1..]).2.error.as_ref().unwrap().code, "deadline_exceeded");
    assert_eq!((driver.state.overdue(due), driver.rebuilt()), (None, driver.state.clone()));
}

#[test]
fn the_end_of_a_call_in_a_commit_that_does_not_count_is_posted_once() {
    let mut former = Driver::new();
    former.ask(&hello("two"));
    former.end(1, AttemptEnd::Completed, reported(2, 3), 1);
    let late = Entry::Commit(former.journal.pop().unwrap());

    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let mut state = driver.rebuilt();
    fold(&mut state, 40, &late, false);
    driver.state = state.clone();
    driver.decide(&Input::TakenOver { key: key(), has_body: false, simulated: false });
    let (facts, commands) = driver.decide(&Input::Orphaned(40));
    let [Fact::OrphanPosted(orphan)] = &facts[..] else { panic!("{facts:?}") };
    // The attempt is posted with an estimate already: what is left is what goes beyond that.
    assert_eq!((orphan.journal_offset, orphan.corrects_pico_usd), (40, usd(10_000)));
    assert_eq!(orphan.posting.cost_pico_usd, usd(2 * 1_000 + 3 * 2_000 - 10_000));
    assert_eq!(commands, []);
    assert_eq!(driver.decide(&Input::Orphaned(40)), (vec![], vec![]));
    // Who folds all of it finds nothing left to post; a takeover's own commit that came too late was no call's end.
    driver.journal[1..].iter().for_each(|commit| evolve(&mut state, commit));
    assert_eq!(state.orphans().count(), 0);
    fold(&mut state, 41, &Entry::Commit(driver.journal[1].clone()), false);
    assert_eq!(state.orphans().count(), 0);
}

#[test]
fn a_terminal_is_published_again_as_it_was_but_without_content() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let (_, commands) = driver.end(1, AttemptEnd::Completed, reported(2, 3), 4);
    let (partition, frame, terminal) = answered(&commands);
    let state = driver.rebuilt();
    let again: Vec<Command> = state.memory.ended().map(|ended| terminal_again(ended, 9, at(5_000))).collect();
    let (partition_again, frame_again, terminal_again) = answered(&again);
    assert_eq!((partition_again, frame_again.tenure, frame_again.at), (partition, 9, at(5_000)));
    let place = |frame: &Frame| (frame.request_id.clone(), frame.nonce.clone(), frame.attempt, frame.sequence);
    assert_eq!(place(frame_again), place(frame));
    assert_eq!(terminal_again, &Terminal { head: None, body: None, ..terminal.clone() });
}

#[test]
fn a_record_that_went_elsewhere_moves_the_resume_point() {
    let mut driver = Driver::new();
    let (facts, commands) = driver.decide(&Input::Skip { source_offset: 41, reason: "undecodable" });
    assert_eq!(facts, [Fact::RecordSkipped(RecordSkipped { reason: "undecodable".into(), told: None })]);
    assert_eq!(commands, []);
    assert_eq!((driver.state.last_source_offset, driver.journal[0].organization.clone()), (Some(41), None));
}

#[test]
fn the_clock_of_a_partition_never_goes_back() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    driver.now = at(10);
    driver.end(1, AttemptEnd::Completed, reported(1, 1), 1);
    assert_eq!(driver.journal.iter().map(|c| c.at).collect::<Vec<_>>(), [at(1_000), at(1_000)]);
}
