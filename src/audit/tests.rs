//! A log on which everything holds, and each way to break it.

use std::collections::BTreeSet;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use super::frames::{Begins, Requests, Retained, Window};
use super::journal::{Counts, Error, GAPS_MAX, Journal, Settings};
use super::*;
use crate::domain::{DeploymentId, ModelName, OrganizationId, RequestId, Timestamp, TokenUsage};
use crate::processor::checkpoint::{Cut, FOLD_VERSION};
use crate::processor::{State, fold};
use crate::records::journal::{
    AttemptEnded, AttemptStarted, CancelRequested, Candidate, Commit, Entry, Fact, Features, InputKind, OrphanPosted,
    OwnershipTaken, RecordSkipped, RequestAdmitted, RequestContext, RequestRefused, RequestRouted, RequestSettled,
    Tenancy,
};
use crate::records::responses::{Content, Frame, FrameBody, Terminal};
use crate::records::state::Marker;
use crate::records::{Outcome, UsageSource};

/// Where the askers listen.
const REPLY: i32 = 1;
const DEADLINE: i64 = 60_000;
const FIRST_TENURE: i64 = 0;
const SECOND_TENURE: i64 = 7;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// What is on the logs.
struct Logs {
    journal: Vec<(i64, Entry)>,
    frames: Vec<(i32, Frame)>,
    /// Offsets on `requests`.
    records: Vec<i64>,
    committed: i64,
    begins: Begins,
    retained: Retained,
    /// Requests that were settled earlier are not remembered.
    since: Timestamp,
    settings: Settings,
    now: Timestamp,
    checkpoints: Vec<Marker>,
    /// Of the tenure that is in force.
    tenure: i64,
    sequence: i64,
}

fn taken() -> Entry {
    Entry::OwnershipTaken(OwnershipTaken { owner: "a".into(), at: at(0), version: "0".into() })
}

fn admitted() -> Fact {
    Fact::RequestAdmitted(RequestAdmitted {
        deadline_at: at(DEADLINE),
        reply_partition: REPLY,
        reply_nonce: None,
        include_usage: false,
        features: Features::default(),
        body_fingerprint: None,
        limits: Vec::new(),
    })
}

fn routed(max_attempts: u32) -> Fact {
    let candidate =
        Candidate { model: ModelName::parse("m").unwrap(), deployment: DeploymentId::parse("d").unwrap(), tier: 1 };
    Fact::RequestRouted(Arc::new(RequestRouted {
        candidates: vec![candidate],
        max_attempts,
        reasons: Vec::new(),
        tiering: None,
    }))
}

fn started(attempt: u32) -> Fact {
    Fact::AttemptStarted(AttemptStarted {
        attempt,
        model: ModelName::parse("m").unwrap(),
        deployment: DeploymentId::parse("d").unwrap(),
        provider: "p".into(),
        price_version: 0,
        reservation: None,
        limits: None,
        delay_ms: 0,
        shared_with: None,
        source: crate::records::journal::AttemptSource::Provider,
    })
}

fn ended(attempt: u32, outcome: Outcome, content_frames: u32) -> Fact {
    Fact::AttemptEnded(Box::new(AttemptEnded {
        attempt,
        model: ModelName::parse("m").unwrap(),
        deployment: DeploymentId::parse("d").unwrap(),
        provider: "p".into(),
        tier: 1,
        simulated: false,
        outcome,
        error_code: None,
        upstream_status: None,
        finish_reason: None,
        content_frames,
        time_to_first_token_ms: None,
        duration_ms: None,
        usage: TokenUsage::default(),
        usage_source: UsageSource::Estimated,
        price_version: 0,
        price_simulated: false,
        cost_pico_usd: None,
        booking: None,
        retry_after_ms: None,
        shortfall: None,
        saved: None,
        source: crate::records::journal::AttemptSource::Provider,
    }))
}

fn settled(attempts: u32, outcome: Outcome, content_frames: u32) -> Fact {
    Fact::RequestSettled(RequestSettled {
        outcome,
        error_code: None,
        status: 200,
        attempts,
        content_frames,
        cost_pico_usd: None,
        time_to_first_token_ms: None,
        duration_ms: 0,
    })
}

fn refused() -> Fact {
    Fact::RequestRefused(RequestRefused {
        code: "invalid_request".into(),
        status: 400,
        told: None,
        features: None,
        limit: None,
    })
}

fn skipped(reason: &str) -> Fact {
    Fact::RecordSkipped(RecordSkipped { reason: reason.into(), told: None })
}

fn frame(request: &str, (tenure, attempt, sequence): (i64, u32, u32), body: FrameBody) -> (i32, Frame) {
    let frame = Frame {
        organization: OrganizationId::parse("acme").unwrap(),
        request_id: RequestId::parse(request).unwrap(),
        nonce: None,
        tenure,
        attempt,
        sequence,
        at: at(0),
        body,
    };
    (REPLY, frame)
}

/// Of the request: tenure, attempt and sequence.
fn content(request: &str, place: (i64, u32, u32)) -> (i32, Frame) {
    said(request, place, "hello")
}

fn said(request: &str, place: (i64, u32, u32), text: &'static str) -> (i32, Frame) {
    frame(request, place, FrameBody::Content(Content { head: None, events: vec![text.into()] }))
}

fn terminal(request: &str, place: (i64, u32, u32), outcome: Outcome) -> (i32, Frame) {
    frame(request, place, FrameBody::Terminal(Box::new(Terminal::of(outcome))))
}

impl Logs {
    /// A fallback, a refusal, a duplicate, a cancel, a takeover, a former owner who writes too late, terminals that are
    /// published again, and a request that is still open.
    fn sound() -> Self {
        let mut logs = Self {
            journal: Vec::new(),
            frames: Vec::new(),
            records: (0..7).collect(),
            committed: 5,
            begins: Begins::AtTheBeginning,
            retained: Retained::All,
            since: at(-3_600_000),
            settings: Settings { grace: Duration::from_secs(60), no_faults: false, redecides: false },
            checkpoints: Vec::new(),
            now: at(DEADLINE),
            tenure: FIRST_TENURE,
            sequence: 0,
        };
        logs.append(taken());
        logs.commit("fallback", Some(0), vec![admitted(), routed(2), started(1)]);
        logs.commit("fallback", None, vec![ended(1, Outcome::Failed, 0), started(2)]);
        logs.commit("fallback", None, vec![ended(2, Outcome::Completed, 2), settled(2, Outcome::Completed, 2)]);
        logs.commit("refused", Some(1), vec![refused()]);
        logs.commit("again", Some(2), vec![skipped("duplicate")]);
        logs.commit("interrupted", Some(3), vec![admitted(), routed(2), started(1)]);
        logs.take_over();
        let late = vec![ended(1, Outcome::Completed, 1), settled(1, Outcome::Completed, 1)];
        logs.ineffective("interrupted", (FIRST_TENURE, 6), late);
        logs.commit("interrupted", None, vec![ended(1, Outcome::Interrupted, 0), settled(1, Outcome::Interrupted, 0)]);
        logs.mark_takeover();
        logs.commit("open", Some(4), vec![admitted(), routed(2), started(1)]);
        logs.commit("open", Some(5), vec![Fact::CancelRequested(CancelRequested { reason: "x".into(), open: true })]);
        logs.frames = vec![
            content("fallback", (FIRST_TENURE, 2, 0)),
            content("interrupted", (FIRST_TENURE, 1, 0)),
            content("fallback", (FIRST_TENURE, 2, 1)),
            terminal("fallback", (FIRST_TENURE, 2, 2), Outcome::Completed),
            terminal("refused", (FIRST_TENURE, 0, 0), Outcome::Refused),
            terminal("again", (FIRST_TENURE, 0, 0), Outcome::Refused),
            terminal("interrupted", (SECOND_TENURE, 1, 0), Outcome::Interrupted),
            content("interrupted", (FIRST_TENURE, 1, 1)),
            terminal("fallback", (SECOND_TENURE, 2, 2), Outcome::Completed),
            content("open", (SECOND_TENURE, 1, 0)),
        ];
        logs
    }

    fn append(&mut self, entry: Entry) -> i64 {
        let offset = self.journal.last().map_or(0, |(offset, _)| offset + 1);
        self.journal.push((offset, entry));
        offset
    }

    fn take_over(&mut self) {
        self.tenure = self.append(taken());
        self.sequence = 0;
    }

    /// The checkpoint that a sound owner keeps now.
    fn checkpoint(&mut self) -> &mut Marker {
        let mut state = State::default();
        let mut tenancy = Tenancy::VACANT;
        for (offset, entry) in &self.journal {
            let effective = tenancy.accept(*offset, entry);
            fold(&mut state, *offset, entry, effective);
        }
        let journal_offset = self.journal.last().map_or(0, |(offset, _)| *offset);
        let cut = Cut { tenure: self.tenure, journal_offset, next_sequence: self.sequence, state };
        self.checkpoints.push(cut.marker(0, &cut.parts().unwrap()));
        self.checkpoints.last_mut().unwrap()
    }

    fn ineffective(&mut self, request: &str, (tenure, sequence): (i64, i64), facts: Vec<Fact>) {
        self.append(commit(request, (tenure, sequence), None, facts));
    }

    fn commit(&mut self, request: &str, source_offset: Option<i64>, facts: Vec<Fact>) {
        self.append(commit(request, (self.tenure, self.sequence), source_offset, facts));
        self.sequence += 1;
    }

    fn last(&mut self) -> &mut Commit {
        match self.journal.last_mut() {
            Some((_, Entry::Commit(commit))) => commit,
            other => panic!("{other:?}"),
        }
    }

    /// What a former owner spent is posted.
    fn post_orphan(&mut self, journal_offset: i64) {
        let Fact::AttemptEnded(posting) = ended(1, Outcome::Completed, 1) else { unreachable!() };
        let orphan = OrphanPosted { journal_offset, posting, corrects_pico_usd: None };
        self.commit("interrupted", None, vec![Fact::OrphanPosted(orphan)]);
        self.mark_takeover();
    }

    fn mark_takeover(&mut self) {
        self.last().input = InputKind::Takeover;
    }

    fn audit(&self) -> (Findings, Counts) {
        self.audit_part(0, 1, RandomState::new())
    }

    fn audit_part(&self, part: u64, parts: u64, hasher: RandomState) -> (Findings, Counts) {
        let window = Window { since: self.since, part, parts, hasher };
        let mut journal = Journal::new(0, self.begins, self.settings, window);
        journal.compare(self.checkpoints.iter().cloned());
        for (offset, entry) in &self.journal {
            journal.take(*offset, entry).unwrap();
        }
        let (mut read, mut requests) = journal.finish(self.now);
        read.committed(self.committed, 0);
        let undecided = read.undecided(0);
        for record in self.records.iter().filter(|record| undecided.iter().any(|gap| gap.contains(record))) {
            read.found_undecided(*record);
        }
        self.answers(&mut requests, &mut read.findings);
        (read.findings, read.counts)
    }

    fn answers(&self, requests: &mut Requests, findings: &mut Findings) {
        for (offset, (partition, frame)) in self.frames.iter().enumerate() {
            let place = Place { topic: Topic::Responses, partition: *partition, offset: offset as i64 };
            requests.take(place, frame, self.retained, findings);
        }
    }
}

fn commit(request: &str, (tenure, sequence): (i64, i64), source_offset: Option<i64>, facts: Vec<Fact>) -> Entry {
    let request = RequestContext::of_request(RequestId::parse(request).unwrap(), at(0));
    Entry::Commit(Commit {
        tenure,
        sequence,
        input: if source_offset.is_some() { InputKind::Record } else { InputKind::Provider },
        source_offset,
        at: at(1_000),
        control_offset: 0,
        organization: Some(OrganizationId::parse("acme").unwrap()),
        request: Some(Arc::new(request)),
        facts,
        health: Vec::new(),
    })
}

fn violations(findings: &Findings) -> Vec<(Check, String)> {
    let all = Check::ALL.into_iter().flat_map(|check| findings.of(check).first.iter().map(move |f| (check, f)));
    all.map(|(check, finding)| (check, format!("{}: {}", finding.place, finding.what))).collect()
}

#[test]
fn everything_holds_on_a_sound_log() {
    let (findings, counts) = Logs::sound().audit();
    assert_eq!(violations(&findings), []);
    assert_eq!(findings.verdict(), Verdict::Holds);
    let looked_at = Check::ALL.map(|check| (check, findings.of(check).looked_at));
    let expected = [
        (Check::I1, 4),
        (Check::I2, 10),
        (Check::I3, 8),
        (Check::I4, 4),
        (Check::I5, 0),
        (Check::I6, 0),
        (Check::I7, 0),
        (Check::I8, 10),
        (Check::I9, 0),
        (Check::I10, 1),
        (Check::I11, 6),
        (Check::I12, 9),
        (Check::I13, 9),
        (Check::Redecided, 0),
    ];
    assert_eq!(looked_at, expected);
    let expected = Counts {
        tenures: 2,
        commits: 9,
        ineffective: 1,
        admitted: 3,
        refused: 1,
        settled: 2,
        cancels: 1,
        duplicates: 1,
        set_aside: 0,
        purges: 0,
        open: 1,
        not_redecided: 0,
    };
    assert_eq!(counts, expected);
}

/// Breaks something; the check that must find it, and what it must say.
type Plant = (&'static str, fn(&mut Logs), Check, &'static str);

fn found(plants: &[Plant]) {
    for (name, plant, check, says) in plants {
        let mut logs = Logs::sound();
        plant(&mut logs);
        let violations = violations(&logs.audit().0);
        let checks: BTreeSet<Check> = violations.iter().map(|(check, _)| *check).collect();
        assert_eq!(checks, BTreeSet::from([*check]), "{name}: {violations:?}");
        assert!(violations.iter().any(|(_, what)| what.contains(says)), "{name}: {says:?} is not in {violations:?}");
    }
}

#[test]
fn i1_finds_a_terminal_too_many_and_one_too_few() {
    found(&[
        (
            "settled twice",
            |logs| logs.commit("fallback", None, vec![settled(2, Outcome::Failed, 0)]),
            Check::I1,
            "journal/0 offset 12: settled although it is not open",
        ),
        ("never settled", |logs| logs.now = at(DEADLINE + 60_001), Check::I1, "no terminal; its deadline was 1970"),
        (
            "refused while it is open",
            |logs| logs.commit("open", Some(6), vec![refused()]),
            Check::I1,
            "refused although it is open",
        ),
        (
            "admitted twice",
            |logs| logs.commit("open", Some(6), vec![admitted(), routed(2), started(1)]),
            Check::I1,
            "the admission at 10 is open",
        ),
    ]);
}

#[test]
fn i2_finds_frames_without_an_effective_commit() {
    found(&[
        (
            "an unknown request ends",
            |logs| logs.frames.push(terminal("unknown", (0, 1, 0), Outcome::Completed)),
            Check::I2,
            "responses/1 offset 10: terminal of a request that was neither admitted nor refused",
        ),
        (
            "an unknown request is answered",
            |logs| logs.frames.push(content("unknown", (0, 1, 0))),
            Check::I2,
            "content of a request that was never admitted",
        ),
        (
            "a former owner ends a request",
            |logs| logs.frames.push(terminal("interrupted", (FIRST_TENURE, 1, 1), Outcome::Completed)),
            Check::I2,
            "terminal says completed after attempt 1 with 1 content frames",
        ),
        (
            "a terminal before its settlement",
            |logs| logs.frames.push(terminal("open", (SECOND_TENURE, 1, 1), Outcome::Completed)),
            Check::I2,
            "no effective settlement does",
        ),
        (
            "a terminal of an earlier tenure than its settlement",
            |logs| logs.frames[6].1.tenure = FIRST_TENURE,
            Check::I2,
            "terminal says interrupted",
        ),
        (
            "a refusal that nobody decided",
            |logs| logs.frames.push(terminal("open", (SECOND_TENURE, 0, 0), Outcome::Refused)),
            Check::I2,
            "a refusal that no effective commit says",
        ),
        (
            "a refused request is answered",
            |logs| logs.frames.push(content("refused", (0, 1, 0))),
            Check::I2,
            "content of a request that was refused",
        ),
    ]);
}

#[test]
fn i7_finds_what_a_former_owner_spent_and_nobody_or_everybody_posted() {
    found(&[
        (
            "an orphan that nobody posts",
            |logs| {
                logs.take_over();
                logs.commit("later", Some(6), vec![refused()]);
            },
            Check::I7,
            "offset 8: its owner was over; the next one has not posted it",
        ),
        (
            "an orphan that is posted twice",
            |logs| {
                logs.take_over();
                logs.post_orphan(8);
                logs.post_orphan(8);
            },
            Check::I7,
            "offset 8 has no orphan that is still to be posted",
        ),
    ]);
    let mut logs = Logs::sound();
    logs.take_over();
    logs.post_orphan(8);
    logs.commit("open", Some(6), vec![Fact::CancelRequested(CancelRequested { reason: "x".into(), open: true })]);
    assert_eq!(violations(&logs.audit().0), []);
}

#[test]
fn i3_finds_calls_without_an_earlier_commit() {
    found(&[
        (
            "a posting of an attempt that nobody started",
            |logs| logs.commit("open", None, vec![ended(2, Outcome::Failed, 0)]),
            Check::I3,
            "posting of attempt 2",
        ),
        (
            "a call before its commit",
            |logs| {
                logs.commit("open", None, vec![ended(1, Outcome::Failed, 0), started(2), ended(2, Outcome::Failed, 0)])
            },
            Check::I3,
            "posting of attempt 2, which no earlier commit started",
        ),
        (
            "a posting of a request that is over",
            |logs| logs.commit("fallback", None, vec![ended(2, Outcome::Completed, 2)]),
            Check::I3,
            "posting of attempt 2",
        ),
        (
            "content of an attempt that nobody started",
            |logs| logs.frames.push(content("open", (SECOND_TENURE, 2, 0))),
            Check::I3,
            "content of attempt 2, which no effective commit started",
        ),
    ]);
}

#[test]
fn i4_finds_attempts_that_do_not_count() {
    found(&[
        (
            "an attempt is missing",
            |logs| logs.commit("open", None, vec![ended(1, Outcome::Failed, 0), started(3)]),
            Check::I4,
            "attempt 3 follows attempt 1",
        ),
        (
            "more attempts than the policy allows",
            |logs| {
                logs.commit("open", None, vec![ended(1, Outcome::Failed, 0), started(2)]);
                logs.commit("open", None, vec![ended(2, Outcome::Failed, 0), started(3)]);
            },
            Check::I4,
            "attempt 3; the policy allows 2",
        ),
        (
            "the settlement counts otherwise",
            |logs| logs.commit("open", None, vec![ended(1, Outcome::Failed, 0), settled(2, Outcome::Failed, 0)]),
            Check::I4,
            "settled with 2 attempts; 1 started",
        ),
        (
            "an attempt of a request that is over",
            |logs| logs.commit("fallback", None, vec![started(3)]),
            Check::I4,
            "attempt 3 of a request that is not open",
        ),
        (
            "a fallback in a run without faults",
            |logs| logs.settings.no_faults = true,
            Check::I4,
            "2 attempts in a run without faults",
        ),
    ]);
}

#[test]
fn i8_finds_answers_that_are_not_whole() {
    found(&[
        (
            "a frame is missing in the middle",
            |logs| logs.frames.push(content("open", (SECOND_TENURE, 1, 2))),
            Check::I8,
            "sequence 2 of attempt 1 follows where 1 should",
        ),
        ("the first frame is missing", |logs| drop(logs.frames.remove(0)), Check::I8, "follows where 0 should"),
        (
            "the last frame is missing",
            |logs| drop(logs.frames.remove(2)),
            Check::I8,
            "the settlement counts 2 content frames, 1 are there",
        ),
        (
            "a frame comes twice and differs",
            |logs| logs.frames.push(said("open", (SECOND_TENURE, 1, 0), "other")),
            Check::I8,
            "sequence 0 of attempt 1 comes twice",
        ),
        (
            "content after the terminal",
            |logs| logs.frames.push(content("fallback", (SECOND_TENURE, 2, 2))),
            Check::I8,
            "content of attempt 2 after the terminal",
        ),
        (
            "content of an attempt that was given up",
            |logs| logs.frames.insert(1, content("fallback", (FIRST_TENURE, 1, 0))),
            Check::I8,
            "content of attempt 1 after that of attempt 2",
        ),
        (
            "content where nobody listens",
            |logs| logs.frames.push((REPLY + 1, content("open", (SECOND_TENURE, 1, 1)).1)),
            Check::I8,
            "content on partition 2, where its asker does not listen",
        ),
    ]);
}

#[test]
fn a_completed_answer_has_all_its_frames_whoever_tells_its_end() {
    let mut logs = Logs::sound();
    // The terminal that its own owner put out; the next owner's is there.
    logs.frames.remove(3);
    assert_eq!(violations(&logs.audit().0), []);
    // Its second frame.
    logs.frames.remove(2);
    let found = violations(&logs.audit().0);
    assert!(found.iter().any(|(_, what)| what.contains("counts 2 content frames, 1 are there")), "{found:?}");
}

#[test]
fn i10_finds_a_committed_offset_that_is_ahead() {
    found(&[("ahead", |logs| logs.committed = 7, Check::I10, "committed 7; records are decided up to 6")]);
}

#[test]
fn i11_finds_records_that_are_not_decided_once() {
    found(&[
        (
            "decided twice",
            |logs| logs.commit("twice", Some(5), vec![refused()]),
            Check::I11,
            "record 5 is decided after record 5",
        ),
        (
            "passed over",
            |logs| logs.commit("later", Some(7), vec![refused()]),
            Check::I11,
            "requests/0 offset 6: no effective commit decides it",
        ),
        (
            "two verdicts on a record",
            |logs| logs.commit("both", Some(6), vec![refused(), skipped("undecodable")]),
            Check::I11,
            "2 verdicts on record 6",
        ),
        ("no verdict on a record", |logs| logs.commit("none", Some(6), vec![]), Check::I11, "0 verdicts on record 6"),
        (
            "a verdict on no record",
            |logs| logs.commit("none", None, vec![refused()]),
            Check::I11,
            "1 verdicts on no record",
        ),
    ]);
}

#[test]
fn i13_finds_what_a_replay_wrote_live() {
    found(&[(
        "a request of a shadow run",
        |logs| {
            let request = logs.last().request.as_mut().unwrap();
            std::sync::Arc::make_mut(request).origin = crate::records::Origin::Shadow;
        },
        Check::I13,
        "its origin is Shadow; replays write on topics of their own",
    )]);
}

#[test]
fn i12_finds_a_fold_that_differs() {
    found(&[
        ("time goes back", |logs| logs.last().at = at(999), Check::I12, "time goes back from"),
        (
            "an admission that the fold cannot see",
            |logs| logs.commit("unrouted", Some(6), vec![admitted(), started(1)]),
            Check::I12,
            "open with attempt 1; the fold has None",
        ),
        (
            "records of the journal are gone",
            |logs| logs.journal.last_mut().unwrap().0 += 1,
            Check::I12,
            "journal/0 offset 12: the journal has no records from offset 11 on",
        ),
        (
            "a checkpoint of a state that never was",
            |logs| logs.checkpoint().digest = "0".repeat(64),
            Check::I12,
            "journal/0 offset 11: the checkpoint of tenure 7 in slot 0 has another state",
        ),
        (
            "a checkpoint of another place",
            |logs| logs.checkpoint().last_source_offset = Some(99),
            Check::I12,
            "has another state",
        ),
        (
            "the owner writes on past a gap",
            |logs| logs.ineffective("open", (SECOND_TENURE, 9), vec![settled(1, Outcome::Failed, 1)]),
            Check::I12,
            "the owner goes on although a commit of its own is missing",
        ),
    ]);
}

#[test]
fn what_is_allowed_is_not_found() {
    let allowed: [(&str, fn(&mut Logs)); 10] = [
        ("a checkpoint is kept", |logs| {
            logs.checkpoint();
        }),
        ("a checkpoint is of another version of the fold", |logs| {
            let marker = logs.checkpoint();
            (marker.fold_version, marker.digest) = (FOLD_VERSION + 1, String::new());
        }),
        ("control records leave offsets without records", |logs| {
            logs.commit("later", Some(7), vec![refused()]);
            logs.records.retain(|record| *record != 6);
        }),
        ("a frame is acknowledged twice", |logs| logs.frames.push(content("open", (SECOND_TENURE, 1, 0)))),
        ("an id is used again", |logs| {
            logs.commit("fallback", Some(6), vec![admitted(), routed(1), started(1)]);
            logs.commit("fallback", None, vec![ended(1, Outcome::Completed, 1), settled(1, Outcome::Completed, 1)]);
            logs.frames.push(content("fallback", (SECOND_TENURE, 1, 0)));
            logs.frames.push(terminal("fallback", (SECOND_TENURE, 1, 1), Outcome::Completed));
            logs.frames.push(terminal("fallback", (SECOND_TENURE, 2, 2), Outcome::Completed));
        }),
        ("retention has taken the first frames", |logs| {
            logs.retained = Retained::Since(at(1_000));
            logs.frames.drain(..3);
        }),
        ("an owner that lost a commit begins a new tenure", |logs| {
            logs.ineffective("open", (SECOND_TENURE, 9), vec![settled(1, Outcome::Failed, 1)]);
            logs.take_over();
            logs.post_orphan(8);
            logs.commit("open", None, vec![ended(1, Outcome::Interrupted, 0), settled(1, Outcome::Interrupted, 0)]);
        }),
        ("a failed answer ends before frames that were lost", |logs| {
            logs.commit("open", None, vec![ended(1, Outcome::Failed, 3), settled(1, Outcome::Failed, 3)]);
            logs.frames.push(terminal("open", (SECOND_TENURE, 1, 3), Outcome::Failed));
        }),
        ("reading begins with the second tenure", |logs| {
            logs.journal.drain(..7);
            logs.begins = Begins::AtTenure(None);
            logs.frames.push(content("unknown", (FIRST_TENURE, 1, 5)));
            logs.frames.push(terminal("unknown", (SECOND_TENURE, 1, 6), Outcome::Completed));
        }),
        ("terminals are published again after a night without an owner", |logs| {
            logs.since = at(12 * 3_600_000);
            logs.frames.retain(|(_, frame)| matches!(frame.body, FrameBody::Terminal(_)));
        }),
    ];
    for (name, allow) in allowed {
        let mut logs = Logs::sound();
        allow(&mut logs);
        assert_eq!(violations(&logs.audit().0), [], "{name}");
    }
}

#[test]
fn a_range_finds_what_its_own_tenures_promised() {
    let mut logs = Logs::sound();
    logs.journal.drain(..7);
    logs.begins = Begins::AtTenure(None);
    logs.frames.push(content("unknown", (SECOND_TENURE, 1, 0)));
    let (partition, mut late) = terminal("unknown", (SECOND_TENURE, 1, 0), Outcome::Completed);
    late.at = at(600_001);
    logs.frames.push((partition, late));
    let found = violations(&logs.audit().0);
    assert!(found.len() == 2 && found.iter().all(|(check, _)| *check == Check::I2), "{found:?}");
}

#[test]
fn parts_see_together_what_the_whole_sees() {
    let mut logs = Logs::sound();
    for number in 0..100 {
        logs.frames.push(content(&format!("unknown-{number}"), (0, 1, 0)));
    }
    let (whole, hasher) = (logs.audit().0, RandomState::new());
    let parts = [0, 1, 2].map(|part| logs.audit_part(part, 3, hasher.clone()).0);
    for check in [Check::I2, Check::I8] {
        let of = |findings: &Findings| (findings.of(check).looked_at, findings.of(check).violations);
        let sum = parts.iter().map(of).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        assert_eq!(sum, of(&whole), "{check:?}");
        assert!(parts.iter().all(|findings| findings.of(check).looked_at > 0), "{check:?}");
    }
    assert_eq!(whole.of(Check::I2).violations, 100);
}

#[test]
fn what_cannot_be_bounded_is_an_error() {
    let mut logs = Logs::sound();
    for number in 1..=GAPS_MAX as i64 + 1 {
        logs.commit("far", Some(5 + 2 * number), vec![refused()]);
    }
    let window = Window { since: at(0), part: 0, parts: 1, hasher: RandomState::new() };
    let mut journal = Journal::new(0, logs.begins, logs.settings, window);
    let error = logs.journal.iter().find_map(|(offset, entry)| journal.take(*offset, entry).err());
    assert!(matches!(error, Some(Error::TooManyGaps { .. })), "{error:?}");
}

#[test]
fn a_violation_outweighs_what_could_not_be_seen() {
    let mut findings = Findings::default();
    findings.blind(&[Check::I1], "journal/0: unreachable");
    assert_eq!(findings.verdict(), Verdict::CouldNotLook);
    for offset in 0..10 {
        let place = Place { topic: Topic::Journal, partition: 0, offset };
        findings.violated(Check::I4, || Finding { place, request: None, what: "x".into() });
    }
    assert_eq!(findings.verdict(), Verdict::Violated);
    let seen = findings.of(Check::I4);
    assert_eq!((seen.violations, seen.first.len()), (10, FIRST_MAX));
}
