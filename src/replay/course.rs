//! One partition of the journal, decided again by other rules: pure, and given the entries in the order of the log.
//!
//! A candidate has a state of its own, which begins as the recorded one. Each record is decided again at its own time. As
//! long as a request is called out where it was recorded to be, what the provider did is what is recorded; from where it is
//! called out elsewhere on, it is estimated (`estimate.rs`), and ends when the recorded request did. Where the recorded
//! request was over already, or was refused, it ends as long after its beginning as its deployment takes.
//!
//! What came from outside stays as it is recorded: what was asked and when, whether there was room for a call, how the
//! deployments did. Of deployments that the recorded request did not look at, what the commits before it say is believed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::estimate::{Estimate, Known};
use super::row::{Half, Row};
use crate::control::Tables;
use crate::domain::{DeploymentId, Fingerprint, OrganizationId, RequestKey, Timestamp};
use crate::processor::health::Health;
use crate::processor::inference::{AttemptEnd, AttemptReport, sum};
use crate::processor::redecide::{self, Given, decide_given, decide_supposed, given};
use crate::processor::{Command, Decision, Input, OpenRequest, State, evolve, fold, key_of};
use crate::provider::{FailureClass, Summary};
use crate::records::journal::{
    AttemptEnded, AttemptSource, AttemptStarted, Candidate, Commit, Entry, Fact, Features, HealthState, InputKind,
    RequestContext, RequestRouted, Standing,
};

/// How long requests that went elsewhere are known after their end, for what former owners of theirs appended late.
const PARTED_KEPT: Duration = Duration::from_secs(3_600);
/// Most of them; the oldest are forgotten first.
const PARTED_MAX: usize = 100_000;
/// Most deployments whose state is remembered; control has far fewer.
const STANDINGS_MAX: usize = 10_000;
/// Decisions that differ from what is recorded although nothing was changed: so many are told.
const UNLIKE_MAX: usize = 10;
/// The word by which policies ask the next tier for an answer that was cut off.
const LENGTH: &str = "length";

/// A commit that is decided otherwise although its rules are the recorded ones.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unlike {
    pub partition: i32,
    pub offset: i64,
    pub what: String,
}

/// What is counted beside the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Effective commits that were decided again.
    pub commits: u64,
    /// Of them, those with the very facts that are recorded.
    pub identical: u64,
    /// Refusals that stay as they are, since their reason is in content.
    pub not_decided: u64,
    /// Records that repeat a request.
    pub repeats: u64,
    /// Records whose content was to be read again, and is not there.
    pub without_content: u64,
    /// The first decisions that are unlike the recorded ones.
    pub unlike: Vec<Unlike>,
}

/// Where a request of the candidate is, beside the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    /// The same call is open.
    InStep,
    /// Another call is open.
    Apart,
    Over,
}

/// A request that is open on one of the two sides, or on both.
#[derive(Debug)]
struct Following {
    /// `None`: its record is not in the range.
    row: Option<Box<Row>>,
    /// Whom the recorded request looked at.
    looked_at: Option<Arc<RequestRouted>>,
    is_recorded_open: bool,
    ours: Ours,
    /// It has left the recorded course once.
    parted: bool,
    /// Where the recorded request looked for its answer.
    looked_up: Option<Fingerprint>,
}

/// A commit that was decided again, and whether its facts are those that are recorded.
struct Again {
    decision: Decision,
    is_identical: bool,
}

/// The course that a partition takes under a candidate's rules.
#[derive(Debug)]
pub struct Course {
    name: Arc<str>,
    partition: i32,
    /// Its rules are the recorded ones.
    is_recorded: bool,
    state: State,
    following: HashMap<RequestKey, Following>,
    /// Ends of calls that are open here alone, by when they are due.
    due: BTreeMap<(Timestamp, u64), (RequestKey, u32)>,
    dues: u64,
    parted: HashMap<RequestKey, Timestamp>,
    standings: HashMap<DeploymentId, Standing>,
    known: Known,
    tenure: i64,
    counts: Counts,
    done: Vec<Row>,
    /// Whom the candidate calls first, for who makes those calls; `None`: nobody does.
    begun: Option<Vec<Begun>>,
}

/// A request that the candidate has just called somebody for.
#[derive(Debug, Clone, PartialEq)]
pub struct Begun {
    pub candidate: Arc<str>,
    pub organization: OrganizationId,
    pub context: Arc<RequestContext>,
    pub source_offset: i64,
    pub called: Candidate,
    pub features: Features,
}

/// What is known before a range begins: the recorded state, how deployments answer, and how they did.
#[derive(Debug, Clone, Default)]
pub struct Past {
    pub state: State,
    known: Known,
    standings: HashMap<DeploymentId, Standing>,
}

impl Past {
    /// Takes an entry before the range, and whether it counts.
    pub fn take(&mut self, offset: i64, entry: &Entry, counts: bool) {
        fold(&mut self.state, offset, entry, counts);
        let Entry::Commit(commit) = entry else { return };
        if counts {
            note(&mut self.standings, &commit.health);
            postings(&commit.facts).for_each(|posting| self.known.learn(posting));
            learn_kept(&mut self.known, &commit.facts);
        }
    }
}

/// A commit, where it stands, and whether its record is in the range.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub offset: i64,
    pub commit: &'a Commit,
    pub in_range: bool,
    /// Of its content, read again; `None`: what is recorded.
    pub features: Option<&'a Features>,
}

impl Course {
    /// Goes on from there.
    pub fn new(name: Arc<str>, partition: i32, is_recorded: bool, past: Past) -> Self {
        let Past { state, known, standings } = past;
        let follow = |(key, open): (&RequestKey, &OpenRequest)| {
            let looked_up = open.looked_up.as_ref().map(|looked_up| looked_up.fingerprint);
            let following = Following {
                row: None,
                looked_at: None,
                is_recorded_open: true,
                ours: Ours::InStep,
                parted: false,
                looked_up,
            };
            (key.clone(), following)
        };
        let following = state.open_requests().map(follow).collect();
        Self {
            name,
            partition,
            is_recorded,
            state,
            following,
            due: BTreeMap::new(),
            dues: 0,
            parted: HashMap::new(),
            standings,
            known,
            tenure: -1,
            counts: Counts::default(),
            done: Vec::new(),
            begun: None,
        }
    }

    /// From now on, who is called first is told.
    pub fn watch(&mut self) {
        self.begun = Some(Vec::new());
    }

    /// Whom was called since the last time.
    pub fn take_begun(&mut self) -> Vec<Begun> {
        self.begun.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether requests of the range are still open on one of the two sides.
    pub fn is_waiting(&self) -> bool {
        self.following.values().any(|following| following.row.is_some())
    }

    /// The rows of requests that are over by now, in the order in which they ended.
    pub fn take_rows(&mut self) -> impl Iterator<Item = Row> + '_ {
        self.done.drain(..)
    }

    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The end of the log: what is still open stays open. The last rows come in the order of the log.
    pub fn finish(mut self) -> (Counts, Vec<Row>) {
        let open = std::mem::take(&mut self.following);
        let mut rows: Vec<Row> = open.into_values().filter_map(|following| following.row).map(|row| *row).collect();
        rows.sort_by_key(|row| row.journal_offset);
        for mut row in rows {
            row.compare();
            self.done.push(row);
        }
        (self.counts, self.done)
    }

    /// Takes an entry that is no effective commit.
    pub fn pass(&mut self, offset: i64, entry: &Entry) {
        fold(&mut self.state, offset, entry, false);
    }

    /// Takes the next effective commit; `control` are the candidate's tables at its control offset.
    pub fn take(&mut self, at: At<'_>, control: &Tables) {
        let commit = at.commit;
        self.tenure = commit.tenure;
        self.end_due(commit.at, control);
        self.counts.commits += u64::from(at.in_range);
        learn_kept(&mut self.known, &commit.facts);
        let key = match (&commit.organization, &commit.request) {
            (Some(organization), Some(request)) => key_of(organization, &request.request_id),
            _ => return self.same(at, control),
        };
        match commit.input {
            InputKind::Record => self.record(at, key, control),
            InputKind::Provider | InputKind::Takeover | InputKind::Timer => self.event(at, &key, control),
            InputKind::Unknown => self.same(at, control),
        }
        if !self.is_recorded {
            note(&mut self.standings, &commit.health);
        }
        for posting in postings(&commit.facts) {
            self.known.learn(posting);
        }
    }

    /// Decides a commit as the recorded side did, of which nothing has to be followed.
    fn same(&mut self, at: At<'_>, control: &Tables) {
        if let Some(again) = self.again(at, None, control) {
            self.fold(again, at.commit);
        }
    }

    /// Decides a commit again. `None`: that cannot be done; then it counts as it is.
    fn again(&mut self, at: At<'_>, looked_at: Option<&RequestRouted>, control: &Tables) -> Option<Again> {
        let commit = at.commit;
        let mut given = match given(&self.state, commit) {
            Ok(given) => given,
            Err(why) => {
                self.unlike(at.offset, why.to_owned());
                evolve(&mut self.state, commit);
                return None;
            }
        };
        match &mut given {
            Given::NotOnTheJournal => self.counts.not_decided += u64::from(at.in_range),
            Given::Chat(asked) => {
                if let Some(features) = at.features {
                    asked.features = *features;
                }
            }
            Given::Other(Input::AttemptEnded(report)) => self.fit(report, control),
            Given::Cancel { .. } | Given::Purge { .. } | Given::Other(_) => {}
        }
        let known = self.health(commit, looked_at);
        let decision = decide_given(&self.state, commit, control, &given, Health::Recorded(&known));
        let is_identical = decision.facts == commit.facts && decision.request == commit.request;
        self.counts.identical += u64::from(is_identical && at.in_range);
        if let Some(what) = self.is_recorded.then(|| redecide::difference(&decision, commit)).flatten() {
            self.unlike(at.offset, what);
        }
        Some(Again { decision, is_identical })
    }

    /// What of a recorded answer would have been otherwise: its cap, and whether it is asked again for being cut off.
    fn fit(&self, report: &mut AttemptReport, control: &Tables) {
        if self.is_recorded {
            return;
        }
        let Some(open) = self.state.open(&report.key) else { return };
        if report.shortfall.is_none()
            && report.end == AttemptEnd::Completed
            && report.summary.finish_reason.as_deref() == Some(LENGTH)
            && !open.context.stream
        {
            let policy = open.context.policy.as_ref().and_then(|name| control.policy(name.as_str()));
            let asks = policy.is_some_and(|(_, policy)| policy.value.escalation.iter().any(|kind| kind == LENGTH));
            report.shortfall = asks.then(|| LENGTH.to_owned());
        }
        let cap = open.started.reservation.as_ref().and_then(|r| r.output_cap.map(|_| r.output_tokens));
        let cap = cap.map(|cap| cap.saturating_mul(u64::from(open.admitted.features.choices.max(1))));
        if let (Some(cap), Some(usage)) = (cap, &mut report.summary.usage) {
            usage.output = usage.output.map(|output| output.min(cap));
        }
    }

    fn fold(&mut self, again: Again, commit: &Commit) {
        let Again { mut decision, is_identical } = again;
        if is_identical {
            return evolve(&mut self.state, commit);
        }
        let of = Commit {
            tenure: commit.tenure,
            sequence: commit.sequence,
            input: decision.input,
            source_offset: decision.source_offset,
            at: commit.at,
            control_offset: commit.control_offset,
            organization: decision.organization.take(),
            request: decision.request.take(),
            facts: decision.facts,
            health: decision.health,
        };
        evolve(&mut self.state, &of);
    }

    fn record(&mut self, at: At<'_>, key: RequestKey, control: &Tables) {
        let commit = at.commit;
        let is_cancel = matches!(commit.facts.first(), Some(Fact::CancelRequested(_)));
        if is_cancel {
            if let Some(again) = self.again(at, None, control) {
                let aborts = again.decision.commands.iter().any(|command| matches!(command, Command::Abort(_)));
                self.fold(again, commit);
                let is_alone = self.following.get(&key).is_some_and(|f| f.ours == Ours::Apart && !f.is_recorded_open);
                if aborts && is_alone {
                    self.end_supposed(&key, commit.at, None, &AttemptEnd::Cancelled, control);
                    self.end_if_over(&key, commit.at);
                }
            }
            return;
        }
        let is_repeat = matches!(commit.facts.first(), Some(Fact::RecordSkipped(_)));
        if !is_repeat && self.following.contains_key(&key) {
            // An id that was forgotten on the recorded side comes again while its call is open here.
            self.end_supposed(&key, commit.at, None, &AttemptEnd::Completed, control);
            self.end_if_over(&key, commit.at);
        }
        let routed = routed_of(&commit.facts);
        let Some(again) = self.again(at, routed.map(|routed| &**routed), control) else { return };
        let decision = &again.decision;
        if let [Fact::RecordSkipped(_)] = &commit.facts[..] {
            // A repeat stays one: whatever became of the first one here, nobody asked twice.
            self.counts.repeats += u64::from(at.in_range);
            return evolve(&mut self.state, commit);
        }
        let (recorded, ours) = (started_of(&commit.facts), started_of(&decision.facts));
        let row = match (&commit.organization, &commit.request, at.in_range) {
            (Some(organization), Some(request), true) => {
                let mut row = Box::new(Row::new(
                    self.name.clone(),
                    (self.partition, at.offset),
                    (commit.source_offset, commit.at),
                    organization,
                    request,
                ));
                row.recorded.take(&commit.facts);
                row.candidate.take(&decision.facts);
                Some(row)
            }
            _ => None,
        };
        let mut following = Following {
            row,
            looked_at: routed.cloned(),
            is_recorded_open: recorded.is_some(),
            ours: Ours::Over,
            parted: false,
            looked_up: commit.facts.iter().find_map(|fact| match fact {
                Fact::CacheLookedUp(looked_up) => Some(looked_up.fingerprint),
                _ => None,
            }),
        };
        following.ours = match (recorded, ours) {
            (_, None) => Ours::Over,
            (Some(recorded), Some(ours)) if is_same_call(recorded, ours) => Ours::InStep,
            (_, Some(_)) => Ours::Apart,
        };
        following.parted = recorded.is_some() && following.ours != Ours::InStep;
        // What is at hand is given at once, however long the recorded call took.
        let is_hit = following.ours == Ours::Apart && ours.is_some_and(|ours| ours.source == AttemptSource::Cache);
        let is_alone = ours.is_some() && (recorded.is_none() || is_hit);
        if let (Some(begun), Some(called), true) = (&mut self.begun, begun_by(&self.name, decision), at.in_range) {
            begun.push(called);
        }
        self.fold(again, commit);
        if let Some(mut row) = self.following.insert(key.clone(), following).and_then(|former| former.row) {
            row.compare();
            self.done.push(*row);
        }
        if is_alone {
            self.schedule(&key, commit.at);
        }
        self.end_if_over(&key, commit.at);
    }

    /// The end of a call, how far one is, or what a new owner makes of it.
    fn event(&mut self, at: At<'_>, key: &RequestKey, control: &Tables) {
        let commit = at.commit;
        if let Some(Fact::OrphanPosted(orphan)) = commit.facts.first() {
            return self.orphan(at, key, orphan.journal_offset, control);
        }
        let Some(following) = self.following.get_mut(key) else { return self.same(at, control) };
        let (ours, looked_at) = (following.ours, following.looked_at.clone());
        let settles = is_settled(&commit.facts);
        let posting = postings(&commit.facts).next();
        if let Some(row) = &mut following.row {
            row.recorded.take(&commit.facts);
        }
        if let Some(routed) = routed_of(&commit.facts) {
            following.looked_at = Some(routed.clone());
        }
        following.is_recorded_open &= !settles;
        match ours {
            Ours::InStep => {
                let Some(again) = self.again(at, looked_at.as_deref(), control) else { return };
                let decision = &again.decision;
                let recorded = started_of(&commit.facts);
                let is_same =
                    recorded.zip(started_of(&decision.facts)).is_some_and(|(theirs, ours)| is_same_call(theirs, ours));
                let ended = is_settled(&decision.facts);
                let is_empty = decision.facts.is_empty();
                self.took(key, &decision.facts, posting);
                self.fold(again, commit);
                let Some(following) = self.following.get_mut(key) else { return };
                if posting.is_none() || is_empty {
                    // Progress, or nothing at all.
                } else if ended {
                    following.ours = Ours::Over;
                    following.parted |= !settles;
                } else if !is_same {
                    (following.ours, following.parted) = (Ours::Apart, true);
                    if recorded.is_none() {
                        self.schedule(key, commit.at);
                    }
                }
            }
            Ours::Apart => self.event_apart(at, key, posting, settles, control),
            Ours::Over => {}
        }
        self.end_if_over(key, commit.at);
    }

    /// A former owner's late posting: of a call that was made here, too, or of none.
    fn orphan(&mut self, at: At<'_>, key: &RequestKey, journal_offset: i64, control: &Tables) {
        if let Some(row) = self.following.get_mut(key).and_then(|following| following.row.as_mut()) {
            row.recorded.take(&at.commit.facts);
        }
        if self.parted.contains_key(key) || self.following.get(key).is_some_and(|f| f.parted) {
            return self.state.forget_orphan(journal_offset);
        }
        let Some(again) = self.again(at, None, control) else { return };
        let decision = &again.decision;
        if let Some(row) = self.following.get_mut(key).and_then(|following| following.row.as_mut()) {
            row.candidate.take(&decision.facts);
            for fact in &decision.facts {
                if let Fact::OrphanPosted(orphan) = fact {
                    row.cost_low = sum(row.cost_low, orphan.posting.cost_pico_usd);
                    row.cost_high = sum(row.cost_high, orphan.posting.cost_pico_usd);
                }
            }
        }
        self.fold(again, at.commit);
    }

    /// An event of a request whose own call here is another one.
    fn event_apart(
        &mut self,
        at: At<'_>,
        key: &RequestKey,
        posting: Option<&AttemptEnded>,
        settles: bool,
        control: &Tables,
    ) {
        let (commit, Some(posting)) = (at.commit, posting) else { return };
        let Some(open) = self.state.open(key) else { return };
        let is_ours = commit.input == InputKind::Provider
            && open.started.deployment == posting.deployment
            && open.started.model == posting.model
            && open.started.source.is_served() == posting.source.is_served();
        if is_ours {
            // The call that is open here was made later, or earlier, all the same: it ended like that.
            let attempt = open.attempt;
            if let Ok(Given::Other(Input::AttemptEnded(mut report))) = given(&self.state, commit) {
                (report.attempt, report.earlier) = (attempt, None);
                self.fit(&mut report, control);
                self.supposed(key, commit.at, &Input::AttemptEnded(report), None, control);
            }
        } else if settles && commit.input == InputKind::Takeover {
            let input = Input::TakenOver { key: key.clone(), has_body: false, simulated: posting.simulated };
            self.supposed(key, commit.at, &input, None, control);
        } else if settles {
            let end = end_elsewhere(posting);
            self.end_supposed(key, commit.at, Some(posting), &end, control);
        }
        if settles && self.state.open(key).is_some() {
            self.schedule(key, commit.at);
        }
    }

    /// Ends the call that is open here alone as it is estimated.
    fn end_supposed(
        &mut self,
        key: &RequestKey,
        at: Timestamp,
        story: Option<&AttemptEnded>,
        end: &AttemptEnd,
        control: &Tables,
    ) {
        let Some(open) = self.state.open(key) else { return };
        let estimate = self.known.estimate(control, open, story);
        let is_refused = matches!(end, AttemptEnd::Failed(_));
        // What is at hand costs nothing, and nothing about that is uncertain.
        let is_served = open.started.source.is_served();
        let elapsed_ms = u64::try_from(at.since(open.started_at).as_millis()).unwrap_or(u64::MAX);
        let looked_up = self.following.get(key).and_then(|following| following.looked_up);
        let is_answer = *end == AttemptEnd::Completed && !is_served;
        let report = AttemptReport {
            key: key.clone(),
            attempt: open.attempt,
            called: !is_refused && !is_served,
            end: end.clone(),
            summary: Summary {
                usage: (!is_refused).then_some(estimate.usage),
                finish_reason: story.and_then(|posting| posting.finish_reason.clone()).filter(|_| !is_refused),
                ..Summary::default()
            },
            content_frames: 0,
            simulated: story.is_some_and(|posting| posting.simulated),
            time_to_first_token_ms: estimate.first_token_ms,
            duration_ms: estimate.duration_ms.unwrap_or(elapsed_ms),
            body: None,
            shortfall: None,
            earlier: None,
            kept_bytes: looked_up.filter(|_| is_answer).and_then(|of| self.known.kept_bytes(of)),
        };
        let of = (!is_refused && !is_served).then_some(&estimate);
        self.supposed(key, at, &Input::AttemptEnded(Box::new(report)), of, control);
    }

    /// Decides on what happened to a request here alone.
    fn supposed(
        &mut self,
        key: &RequestKey,
        at: Timestamp,
        input: &Input<'_>,
        estimate: Option<&Estimate>,
        control: &Tables,
    ) {
        let at = at.max(self.state.clock);
        let Some(open) = self.state.open(key) else { return };
        let costs = estimate.map(|estimate| estimate.costs(control, open));
        let started_at = open.started_at;
        let known: Vec<Standing> = self.standings.values().filter(|of| is_in_force(of, at)).cloned().collect();
        let decision = decide_supposed(&self.state, input, (at, self.tenure), control, Health::Recorded(&known));
        let facts = &decision.facts;
        let ended = is_settled(facts);
        if let Some(following) = self.following.get_mut(key).filter(|following| following.ours == Ours::Apart) {
            if let Some(row) = &mut following.row {
                row.candidate.take(facts);
                if let Some(posting) = postings(facts).next() {
                    let cost = posting.cost_pico_usd;
                    let (low, high) = costs.unwrap_or((cost, cost));
                    row.cost_low = sum(row.cost_low, low);
                    row.cost_high = sum(row.cost_high, high);
                }
                row.estimated |= estimate.is_some();
                if let Some(estimate) = estimate.filter(|_| ended) {
                    told_latency(&mut row.candidate, estimate, row.at, started_at);
                }
            }
            if ended {
                following.ours = Ours::Over;
            }
        }
        let commit = Commit {
            tenure: self.tenure,
            sequence: 0,
            input: decision.input,
            source_offset: None,
            at,
            control_offset: control.offset(),
            organization: decision.organization,
            request: decision.request,
            facts: decision.facts,
            health: Vec::new(),
        };
        evolve(&mut self.state, &commit);
    }

    /// Takes over the facts of a request that is in step.
    fn took(&mut self, key: &RequestKey, facts: &[Fact], recorded: Option<&AttemptEnded>) {
        let Some(row) = self.following.get_mut(key).and_then(|following| following.row.as_mut()) else { return };
        row.candidate.take(facts);
        let Some(posting) = postings(facts).next() else { return };
        row.cost_low = sum(row.cost_low, posting.cost_pico_usd);
        row.cost_high = sum(row.cost_high, posting.cost_pico_usd);
        row.estimated |= recorded.is_some_and(|recorded| recorded.usage != posting.usage);
    }

    /// The call that is open here alone ends when such calls do.
    fn schedule(&mut self, key: &RequestKey, at: Timestamp) {
        let Some(open) = self.state.open(key) else { return };
        let duration_ms = if open.started.source == AttemptSource::Cache { 0 } else { self.known.duration_ms(open) };
        let due = at.plus(Duration::from_millis(duration_ms)).min(open.admitted.deadline_at);
        self.dues += 1;
        self.due.insert((due, self.dues), (key.clone(), open.attempt));
    }

    /// Ends the calls that are open here alone and due by then.
    fn end_due(&mut self, now: Timestamp, control: &Tables) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((due, _), (key, attempt)) = entry.remove_entry();
            if self.state.open(&key).is_none_or(|open| open.attempt != attempt) {
                continue;
            }
            self.end_supposed(&key, due, None, &AttemptEnd::Completed, control);
            if self.state.open(&key).is_some() {
                self.schedule(&key, due);
            }
            self.end_if_over(&key, due);
        }
    }

    fn end_if_over(&mut self, key: &RequestKey, at: Timestamp) {
        let is_over = |following: &Following| !following.is_recorded_open && following.ours == Ours::Over;
        if !self.following.get(key).is_some_and(is_over) {
            return;
        }
        let Some(following) = self.following.remove(key) else { return };
        if following.parted {
            if self.parted.len() >= PARTED_MAX {
                let since = self.state.clock;
                self.parted.retain(|_, ended| ended.plus(PARTED_KEPT) > since);
            }
            if self.parted.len() < PARTED_MAX {
                self.parted.insert(key.clone(), at);
            }
        }
        if let Some(mut row) = following.row {
            row.compare();
            self.done.push(*row);
        }
    }

    /// What is known of the deployments at a commit: what it says of those that it looked at, and of others what was said
    /// last.
    fn health(&self, commit: &Commit, looked_at: Option<&RequestRouted>) -> Vec<Standing> {
        let mut known = commit.health.clone();
        let Some(looked_at) = looked_at.filter(|_| !self.is_recorded && !self.standings.is_empty()) else {
            return known;
        };
        for standing in self.standings.values().filter(|of| is_in_force(of, commit.at)) {
            let is_recorded = looked_at.candidates.iter().any(|of| of.deployment == standing.deployment)
                || known.iter().any(|of| of.deployment == standing.deployment);
            if !is_recorded {
                known.push(standing.clone());
            }
        }
        known
    }

    fn unlike(&mut self, offset: i64, what: String) {
        if self.counts.unlike.len() < UNLIKE_MAX {
            self.counts.unlike.push(Unlike { partition: self.partition, offset, what });
        }
    }
}

/// Remembers how large the answers are that are kept.
fn learn_kept(known: &mut Known, facts: &[Fact]) {
    for fact in facts {
        if let Fact::CacheInserted(inserted) = fact {
            known.kept(inserted.fingerprint, inserted.bytes);
        }
    }
}

/// Remembers what a commit says of deployments.
fn note(standings: &mut HashMap<DeploymentId, Standing>, health: &[Standing]) {
    for standing in health {
        if standings.len() < STANDINGS_MAX || standings.contains_key(&standing.deployment) {
            standings.insert(standing.deployment.clone(), standing.clone());
        }
    }
}

/// The first call of a request that is admitted.
fn begun_by(candidate: &Arc<str>, decision: &Decision) -> Option<Begun> {
    let (started, routed) = (started_of(&decision.facts)?, routed_of(&decision.facts)?);
    let admitted = decision.facts.iter().find_map(|fact| match fact {
        Fact::RequestAdmitted(admitted) => Some(admitted),
        _ => None,
    })?;
    let is_called = |of: &&Candidate| of.model == started.model && of.deployment == started.deployment;
    Some(Begun {
        candidate: candidate.clone(),
        organization: decision.organization.clone()?,
        context: decision.request.clone()?,
        source_offset: decision.source_offset?,
        called: routed.candidates.iter().find(is_called)?.clone(),
        features: admitted.features,
    })
}

/// How a call ends that was made elsewhere than the recorded one: what the request itself led to, it leads to there, too;
/// what the deployment did, another does not.
fn end_elsewhere(posting: &AttemptEnded) -> AttemptEnd {
    match redecide::end_of(posting) {
        Some(AttemptEnd::Failed(failure)) => match failure.class {
            FailureClass::BadRequest | FailureClass::ContentFilter | FailureClass::ContextTooLong => {
                AttemptEnd::Failed(failure)
            }
            _ => AttemptEnd::Completed,
        },
        Some(end) => end,
        None => AttemptEnd::Completed,
    }
}

/// The latency of a request whose last call is estimated: until that call, as it went, and then as the deployment answers.
fn told_latency(half: &mut Half, estimate: &Estimate, received: Timestamp, started: Timestamp) {
    let before = u64::try_from(started.since(received).as_millis()).unwrap_or(0);
    half.time_to_first_token_ms = estimate.first_token_ms.map(|ms| ms.saturating_add(before));
    half.duration_ms = estimate.duration_ms.map(|ms| ms.saturating_add(before));
}

fn is_in_force(standing: &Standing, at: Timestamp) -> bool {
    matches!(standing.state, HealthState::Broken | HealthState::Cooling)
        && standing.until.is_some_and(|until| until > at)
}

fn is_same_call(a: &AttemptStarted, b: &AttemptStarted) -> bool {
    a.attempt == b.attempt && a.model == b.model && a.deployment == b.deployment && a.source == b.source
}

fn is_settled(facts: &[Fact]) -> bool {
    facts.iter().any(|fact| matches!(fact, Fact::RequestSettled(_)))
}

fn started_of(facts: &[Fact]) -> Option<&AttemptStarted> {
    facts.iter().find_map(|fact| match fact {
        Fact::AttemptStarted(started) => Some(started),
        _ => None,
    })
}

fn routed_of(facts: &[Fact]) -> Option<&Arc<RequestRouted>> {
    facts.iter().find_map(|fact| match fact {
        Fact::RequestRouted(routed) => Some(routed),
        _ => None,
    })
}

/// The ends of calls.
fn postings(facts: &[Fact]) -> impl Iterator<Item = &AttemptEnded> {
    facts.iter().filter_map(|fact| match fact {
        Fact::AttemptEnded(posting) => Some(&**posting),
        _ => None,
    })
}
