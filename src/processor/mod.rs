//! What becomes of a request, decided without Kafka, clock or network.
//!
//! [`decide`] takes an input and gives facts and commands; [`evolve`] folds facts into the state. The shell writes the
//! facts as one commit and runs the commands once the commit is acknowledged. The same functions run live, in the tests'
//! driver and in replay. Recovery only folds; it never decides again.

mod admission;
pub mod budget;
pub mod cache;
pub mod canonical;
pub mod checkpoint;
pub mod content;
pub mod fallback;
pub mod health;
pub mod inference;
pub mod intent;
pub mod ledger;
pub mod limits;
pub mod memory;
pub mod redecide;
pub mod refusal;
pub mod router;
pub mod spoken;
pub mod state;
mod takeover;
pub mod tenure;
pub mod tokens;

#[cfg(test)]
pub(crate) mod histories;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::control::Tables;
use crate::domain::{Fingerprint, OrganizationId, RequestId, RequestKey, Timestamp};
use crate::records::Outcome;
use crate::records::journal::{
    AttemptEnded, AttemptProgressed, AttemptSource, AttemptStarted, CacheEvicted, CacheInserted, CachePurged,
    CancelRequested, Candidate, Commit, Eviction, Fact, InputKind, RecordSkipped, RequestAdmitted, RequestContext,
    RequestRouted, RequestSettled, Standing, Tiering,
};
use crate::records::requests::{Cancel, Chat, PurgeCache};
use crate::records::responses::{ApiError, Frame, FrameBody, Head, Terminal};
use admission::Arrival;
use budget::{Before, Held, Passed, Question};
use content::Content;
use fallback::Next;
use health::Health;
use inference::{AttemptEnd, AttemptReport};
use router::{Asked, Under};
pub use state::{OpenRequest, State, evolve, fold, key_of};
pub use takeover::terminal_again;

/// Most bytes of a name, a value or a reason that an asker gives.
const TAG_BYTES_MAX: usize = 64;

/// What is decided on.
#[derive(Debug)]
pub enum Input<'a> {
    Chat {
        source_offset: i64,
        received_at: Timestamp,
        chat: &'a Chat,
        content: Result<Content, content::Error>,
        /// Keyed hash of the body.
        fingerprint: Option<String>,
        /// `None`: the cache is nothing for it.
        cache: Option<&'a cache::Wanted<'a>>,
    },
    Cancel {
        source_offset: i64,
        received_at: Timestamp,
        cancel: &'a Cancel,
    },
    PurgeCache {
        source_offset: i64,
        purge: &'a PurgeCache,
    },
    /// The time of some answers that are kept is over.
    CacheExpired,
    /// A record that has been put elsewhere: into `dead-letters`, or on the partition where it belongs.
    Skip {
        source_offset: i64,
        reason: &'a str,
    },
    AttemptEnded(Box<AttemptReport>),
    /// A call under way, and what it has put out so far.
    AttemptProgressed(RequestKey, AttemptProgressed),
    /// A request that was open when its owner changed.
    TakenOver {
        key: RequestKey,
        /// Its body could be read again.
        has_body: bool,
        /// Its deployment is a simulator's, here and so with its former owner.
        simulated: bool,
    },
    /// An open request whose deadline and grace have passed.
    Overdue {
        key: RequestKey,
        /// Its deployment is a simulator's.
        simulated: bool,
    },
    /// The end of a call in the commit at this offset, which does not count.
    Orphaned(i64),
}

/// What comes in beside the input: time, rules, and what the shell has room for.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub at: Timestamp,
    pub tenure: i64,
    pub control: &'a Tables,
    pub capacity: Capacity,
    pub bounds: &'a Bounds,
    pub health: Health<'a>,
}

/// Room for one more provider call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    Free,
    /// The organization has its share of the calls.
    ShareUsed,
    Full,
}

/// The configured bounds that decisions know.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub partitions: u32,
    pub body_bytes_max: usize,
    pub timeout: Duration,
    pub timeout_max: Duration,
}

/// One whole decision: becomes one commit, whose commands run when it is acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub input: InputKind,
    pub source_offset: Option<i64>,
    pub organization: Option<OrganizationId>,
    pub request: Option<Arc<RequestContext>>,
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
    /// Of the deployments whose health changed a choice.
    pub health: Vec<Standing>,
}

/// What the shell does once the decision is durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Call(Box<ProviderCall>),
    /// End the call that is under way for this request; its report follows.
    Abort(RequestKey),
    /// Publish the terminal frame, on this partition of `responses`.
    Answer {
        partition: i32,
        frame: Box<Frame>,
    },
    /// Answer with what is kept, or with what another request's call gives.
    Serve(Box<Serving>),
    /// Keep the answer of this request for those who ask the same.
    Keep {
        of: RequestKey,
        fingerprint: Fingerprint,
        expires_at: Timestamp,
    },
    /// Keep these answers no longer.
    Forget {
        organization: OrganizationId,
        fingerprints: Vec<Fingerprint>,
    },
}

/// An answer to give without a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Serving {
    pub key: RequestKey,
    pub attempt: u32,
    pub head: Head,
    pub from: ServedFrom,
    pub deadline_at: Timestamp,
    pub reply_partition: i32,
    pub reply_nonce: Option<String>,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServedFrom {
    Cache(Fingerprint),
    /// The call of this request of the same organization.
    Call(RequestId),
}

/// A provider call to make.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderCall {
    pub key: RequestKey,
    pub attempt: u32,
    pub head: Head,
    pub base_url: String,
    pub upstream_model: String,
    /// A reference such as `env:NAME`.
    pub credential: String,
    pub stream: bool,
    pub include_usage: bool,
    /// The provider is told this cap of the answer's tokens, whatever the client says of it.
    pub output_cap: Option<u64>,
    pub deadline_at: Timestamp,
    /// It is made so long after its commit is acknowledged.
    pub delay_ms: u64,
    /// What a whole answer may lack so that the next tier is asked.
    pub judged_for: Vec<String>,
    /// Others may ask the same, while it is under way or later.
    pub is_kept: bool,
    pub reply_partition: i32,
    pub reply_nonce: Option<String>,
}

/// Decides what becomes of an input.
pub fn decide(state: &State, input: &Input<'_>, context: &Context<'_>) -> Decision {
    match input {
        Input::Chat { source_offset, received_at, chat, content, fingerprint, cache } => admission::decide(
            state,
            Arrival {
                source_offset: *source_offset,
                received_at: *received_at,
                chat,
                fingerprint: fingerprint.as_deref(),
                cache: *cache,
            },
            content,
            context,
        ),
        Input::Cancel { source_offset, received_at, cancel } => {
            decide_cancel(state, *source_offset, *received_at, cancel)
        }
        Input::PurgeCache { source_offset, purge } => decide_purge(state, *source_offset, purge),
        Input::CacheExpired => decide_expired(state, context),
        Input::Skip { source_offset, reason } => skip(*source_offset, reason),
        Input::AttemptEnded(report) => decide_attempt_ended(state, report, context),
        Input::AttemptProgressed(key, progressed) => decide_progressed(state, key, *progressed),
        Input::TakenOver { key, has_body, simulated } => takeover::decide(state, key, *has_body, *simulated, context),
        Input::Overdue { key, simulated } => decide_overdue(state, key, *simulated, context),
        Input::Orphaned(journal_offset) => takeover::decide_orphaned(state, *journal_offset, context),
    }
}

/// The commit of a decision.
pub fn commit(decision: &mut Decision, sequence: i64, context: &Context<'_>) -> Commit {
    Commit {
        tenure: context.tenure,
        sequence,
        input: decision.input,
        source_offset: decision.source_offset,
        at: context.at,
        control_offset: context.control.offset(),
        organization: decision.organization.take(),
        request: decision.request.take(),
        facts: std::mem::take(&mut decision.facts),
        health: std::mem::take(&mut decision.health),
    }
}

fn decide_cancel(state: &State, source_offset: i64, received_at: Timestamp, cancel: &Cancel) -> Decision {
    let key = key_of(&cancel.organization, &cancel.request_id);
    let open = state.open(&key);
    let request = match open {
        Some(open) => open.context.clone(),
        None => Arc::new(RequestContext::of_request(cancel.request_id.clone(), received_at)),
    };
    let reason: String = cancel.reason.chars().take(TAG_BYTES_MAX).collect();
    Decision {
        input: InputKind::Record,
        source_offset: Some(source_offset),
        organization: Some(cancel.organization.clone()),
        request: Some(request),
        facts: vec![Fact::CancelRequested(CancelRequested { reason, open: open.is_some() })],
        commands: open.map(|open| aborted(state, key, open)).unwrap_or_default(),
        health: Vec::new(),
    }
}

/// The calls that end with a cancelled request: its own, unless others wait for it; and the one that it was the last to
/// wait for.
fn aborted(state: &State, key: RequestKey, open: &OpenRequest) -> Vec<Command> {
    let organization = key.organization.clone();
    if state.cache.followers(&organization, &key.request) > 0 {
        return Vec::new();
    }
    let leader = open.started.shared_with.as_ref().filter(|_| open.started.source == AttemptSource::Shared);
    let is_last = |leader: &&RequestId| state.cache.followers(&organization, leader) == 1;
    let leader = leader.filter(is_last).map(|leader| key_of(&organization, leader));
    let left = leader.filter(|leader| state.open(leader).is_some_and(|open| open.cancelled));
    [Some(key), left].into_iter().flatten().map(Command::Abort).collect()
}

fn decide_purge(state: &State, source_offset: i64, purge: &PurgeCache) -> Decision {
    let PurgeCache { organization, model, before } = purge;
    let fingerprints = state.cache.to_purge(organization, model.as_ref(), *before);
    let purged = CachePurged { model: model.clone(), before: *before, entries: fingerprints.len() as u64 };
    Decision {
        source_offset: Some(source_offset),
        organization: Some(organization.clone()),
        facts: vec![Fact::CachePurged(purged)],
        commands: forget(organization, fingerprints),
        ..nothing(InputKind::Record)
    }
}

fn decide_expired(state: &State, context: &Context<'_>) -> Decision {
    let Some((organization, fingerprints)) = state.cache.expired(context.at) else {
        return nothing(InputKind::Timer);
    };
    let evicted = CacheEvicted { fingerprints: fingerprints.clone(), reason: Eviction::Expired };
    Decision {
        organization: Some(organization.clone()),
        facts: vec![Fact::CacheEvicted(evicted)],
        commands: forget(organization, fingerprints),
        ..nothing(InputKind::Timer)
    }
}

fn forget(organization: &OrganizationId, fingerprints: Vec<Fingerprint>) -> Vec<Command> {
    let is_any = !fingerprints.is_empty();
    is_any.then(|| Command::Forget { organization: organization.clone(), fingerprints }).into_iter().collect()
}

fn skip(source_offset: i64, reason: &str) -> Decision {
    Decision {
        input: InputKind::Record,
        source_offset: Some(source_offset),
        organization: None,
        request: None,
        facts: vec![Fact::RecordSkipped(RecordSkipped { reason: reason.to_owned(), told: None })],
        commands: Vec::new(),
        health: Vec::new(),
    }
}

fn decide_attempt_ended(state: &State, report: &AttemptReport, context: &Context<'_>) -> Decision {
    let Some(open) = state.open(&report.key).filter(|open| open.attempt == report.attempt) else {
        return nothing(InputKind::Provider);
    };
    let posting = inference::posting(context.control, open, report);
    let decided = Decision {
        input: InputKind::Provider,
        source_offset: None,
        organization: Some(report.key.organization.clone()),
        request: Some(open.context.clone()),
        facts: Vec::new(),
        commands: Vec::new(),
        health: Vec::new(),
    };
    let (posting, booked) = book(state, &report.key, open, posting, context);
    let goes_on = |again: Again| {
        let mut facts = vec![Fact::AttemptEnded(Box::new(posting.clone()))];
        facts.extend(booked.iter().cloned());
        facts.extend(again.routed.map(Fact::RequestRouted));
        facts.push(Fact::AttemptStarted(again.started));
        Decision { facts, commands: vec![again.call], health: again.health, ..decided.clone() }
    };
    let next = fallback::next(context.control, open, report, context.at);
    let (outcome, status, error) = match next {
        Next::Settle { outcome, status, error } => (outcome, status, error),
        Next::Escalate { shortfall } => match escalate(state, open, &report.key, &shortfall, &posting, context) {
            Some(again) => return goes_on(again),
            None => (Outcome::Completed, 200, None),
        },
        Next::Retry { delay_ms, error } => {
            let same = std::slice::from_ref(&open.routed.candidates[open.candidate]);
            let again = call_again(state, open, &report.key, Anew::same(same, delay_ms), &posting, context);
            let all = Anew::from(&open.routed.candidates, open.candidate + 1);
            match again.or_else(|| call_again(state, open, &report.key, all, &posting, context)) {
                Some(again) => return goes_on(again),
                None => (Outcome::Failed, error.status, Some(error)),
            }
        }
        Next::Call { first, context_above, error } => {
            let anew = Anew { context_above, ..Anew::from(&open.routed.candidates, first) };
            match call_again(state, open, &report.key, anew, &posting, context) {
                Some(again) => return goes_on(again),
                // None of the others is there, has room, is sound, or can be paid.
                None => (Outcome::Failed, error.status, Some(error)),
            }
        }
    };
    let settled = inference::settlement(open, &posting, outcome, status, context.at);
    let cache = cache::outcome_of(open.started.source, open.looked_up.as_ref());
    let last = Terminal {
        head: Some(Head { cache, ..head_of(&open.routed.candidates[open.candidate]) }),
        body: report.body.clone(),
        usage: Some(posting.told_usage()),
        cost_pico_usd: settled.cost_pico_usd,
        saved_pico_usd: posting.saved.and_then(|saved| saved.cost_pico_usd),
        finish_reason: posting.finish_reason.clone(),
        error,
        ..Terminal::of(outcome)
    };
    // An answer that fell short is given when the next tier gave none. What it used is in its body, and in its posting.
    let terminal = match (&open.escalated, &report.earlier, &report.end) {
        (Some(first), Some(earlier), AttemptEnd::Failed(_)) if outcome == Outcome::Completed => Terminal {
            head: Some(head_of(first)),
            body: Some(earlier.clone()),
            usage: None,
            finish_reason: None,
            ..last
        },
        _ => last,
    };
    let answer = answer(&report.key, open, settled.content_frames, terminal, context);
    let kept = keep(state, open, report, &posting, context);
    let (mut facts, mut commands) = (ended(posting, booked, settled), vec![answer]);
    if let Some((inserted, evicted)) = kept {
        let (of, fingerprint, expires_at) = (report.key.clone(), inserted.fingerprint, inserted.expires_at);
        // The answer is at hand until its request is over.
        commands.insert(0, Command::Keep { of, fingerprint, expires_at });
        facts.push(Fact::CacheInserted(Box::new(inserted)));
        if !evicted.is_empty() {
            let fingerprints = evicted.clone();
            facts.push(Fact::CacheEvicted(CacheEvicted { fingerprints, reason: Eviction::LeastRecentlyUsed }));
            commands.extend(forget(&report.key.organization, evicted));
        }
    }
    Decision { facts, commands, ..decided }
}

/// Whether an answer is kept for those who ask the same, and what has to go for it. Only what is whole is kept.
fn keep(
    state: &State,
    open: &OpenRequest,
    report: &AttemptReport,
    posting: &AttemptEnded,
    context: &Context<'_>,
) -> Option<(CacheInserted, Vec<Fingerprint>)> {
    let looked_up = open.looked_up.as_ref().filter(|looked_up| looked_up.keeps)?;
    let bytes = report.kept_bytes.filter(|_| report.end == AttemptEnd::Completed && report.shortfall.is_none())?;
    let organization = &report.key.organization;
    let terms = context.control.terms(organization, open.context.key_id.as_ref())?;
    let caching = terms.plan.cache.as_ref()?;
    let is_whole = match posting.finish_reason.as_deref() {
        Some("stop") => true,
        Some("tool_calls" | "function_call") => caching.tools,
        _ => false,
    };
    let AttemptEnded { model, deployment, provider, tier, source, .. } = posting;
    let answer = cache::Kept { bytes, model, deployment, provider, tier: *tier };
    (is_whole && *source == AttemptSource::Provider)
        .then(|| cache::insert(&state.cache, organization, looked_up, answer, (caching, context.at)))?
}

/// The next tier is asked for what an answer lacks.
fn escalate(
    state: &State,
    open: &OpenRequest,
    key: &RequestKey,
    shortfall: &str,
    posting: &AttemptEnded,
    context: &Context<'_>,
) -> Option<Again> {
    let policy = fallback::policy_of(context.control, open)?;
    let tiering = open.routed.tiering.as_ref()?;
    let asker = open.asker(key);
    let terms = context.control.terms(asker.organization, asker.key)?;
    let under = Under { control: context.control, terms: &terms, at: context.at, health: context.health };
    let asked = Asked {
        model: open.context.requested_model.as_ref()?,
        request_id: &open.context.request_id,
        features: &open.admitted.features,
        user_tier: open.context.user_tier.as_deref(),
        tags: &open.context.tags,
    };
    // From the tier that answered: a fallback may have been above or below the one that was chosen.
    let answered = Tiering { tier: open.routed.candidates[open.candidate].tier, ..tiering.clone() };
    let mut route = router::escalate(&under, &asked, policy, &answered, shortfall)?;
    let anew = Anew::from(&route.routed.candidates, 0);
    let mut again = call_again(state, open, key, anew, posting, context)?;
    for standing in std::mem::take(&mut route.health) {
        router::keep(&mut again.health, standing);
    }
    Some(Again { routed: Some(route.routed), ..again })
}

/// The facts of a request that is over.
fn ended(posting: AttemptEnded, booked: Vec<Fact>, settled: RequestSettled) -> Vec<Fact> {
    let mut facts = Vec::with_capacity(2 + booked.len());
    facts.push(Fact::AttemptEnded(Box::new(posting)));
    facts.extend(booked);
    facts.push(Fact::RequestSettled(settled));
    facts
}

/// The posting of the current attempt with its booking, and what else that leads to.
fn book(
    state: &State,
    key: &RequestKey,
    open: &OpenRequest,
    posting: AttemptEnded,
    context: &Context<'_>,
) -> (AttemptEnded, Vec<Fact>) {
    let asker = open.asker(key);
    let terms = context.control.terms(asker.organization, asker.key);
    let (books, held) = (state.ledger.books(asker.organization), Held::by(&open.started));
    let (booking, facts) = budget::book(terms.as_ref(), books, asker, held, posting.cost_pico_usd, context.at);
    (AttemptEnded { booking: Some(booking), ..posting }, facts)
}

/// Who may make the next attempt of an open request, and how.
struct Anew<'a> {
    candidates: &'a [Candidate],
    first: usize,
    delay_ms: u64,
    context_above: Option<u64>,
    /// The same deployment is called again, whatever its health.
    is_same: bool,
}

impl<'a> Anew<'a> {
    const fn from(candidates: &'a [Candidate], first: usize) -> Self {
        Self { candidates, first, delay_ms: 0, context_above: None, is_same: false }
    }

    const fn same(candidate: &'a [Candidate], delay_ms: u64) -> Self {
        Self { delay_ms, is_same: true, ..Self::from(candidate, 0) }
    }
}

/// A further attempt.
struct Again {
    routed: Option<Arc<RequestRouted>>,
    started: AttemptStarted,
    call: Command,
    health: Vec<Standing>,
}

/// The next attempt of an open request, with the first of these candidates that can be called: its fact and its call. The
/// attempt before ends with `posting`, in the same commit.
fn call_again(
    state: &State,
    open: &OpenRequest,
    key: &RequestKey,
    anew: Anew<'_>,
    posting: &AttemptEnded,
    context: &Context<'_>,
) -> Option<Again> {
    let asker = open.asker(key);
    let terms = context.control.terms(asker.organization, asker.key)?;
    let question = Question {
        control: context.control,
        terms: &terms,
        books: state.ledger.books(asker.organization),
        asker,
        features: &open.admitted.features,
        at: context.at,
        attempt: open.attempt + 1,
        before: Some(Before { started: &open.started, cost: posting.cost_pico_usd }),
        health: if anew.is_same { Health::Unknown } else { context.health },
        context_above: anew.context_above,
    };
    let mut passed = Passed::default();
    let offer = question.offer(anew.candidates, anew.first, true, &mut passed).ok()?;
    let started = AttemptStarted { delay_ms: anew.delay_ms, ..offer.started };
    let candidate = &anew.candidates[offer.index];
    let mut call = call(context.control, key.clone(), candidate, &started, &open.admitted, &open.context)?;
    call.head.cache = cache::outcome_of(started.source, open.looked_up.as_ref());
    call.is_kept = open.looked_up.as_ref().is_some_and(|looked_up| looked_up.keeps);
    Some(Again { routed: None, started, call: Command::Call(Box::new(call)), health: passed.health })
}

fn decide_progressed(state: &State, key: &RequestKey, progressed: AttemptProgressed) -> Decision {
    let Some(open) = state.open(key).filter(|open| open.attempt == progressed.attempt) else {
        return nothing(InputKind::Provider);
    };
    of_open(InputKind::Provider, key, open, vec![Fact::AttemptProgressed(progressed)], Vec::new())
}

/// A call that should have ended long ago: whatever became of it, its asker is told.
fn decide_overdue(state: &State, key: &RequestKey, simulated: bool, context: &Context<'_>) -> Decision {
    let Some(open) = state.open(key) else { return nothing(InputKind::Timer) };
    let posting = AttemptEnded { simulated, ..inference::lost_posting(context.control, open, context.at) };
    let end = (Outcome::Failed, refusal::deadline());
    let mut decision = give_up(state, InputKind::Timer, key, open, posting, end, context);
    decision.commands.insert(0, Command::Abort(key.clone()));
    decision
}

/// Settles an open request whose attempt ended without a report.
fn give_up(
    state: &State,
    input: InputKind,
    key: &RequestKey,
    open: &OpenRequest,
    posting: AttemptEnded,
    (outcome, error): (Outcome, ApiError),
    context: &Context<'_>,
) -> Decision {
    let (posting, booked) = book(state, key, open, posting, context);
    let settled = inference::settlement(open, &posting, outcome, error.status, context.at);
    let terminal = Terminal { cost_pico_usd: settled.cost_pico_usd, error: Some(error), ..Terminal::of(outcome) };
    let answer = answer(key, open, settled.content_frames, terminal, context);
    of_open(input, key, open, ended(posting, booked, settled), vec![answer])
}

fn of_open(
    input: InputKind,
    key: &RequestKey,
    open: &OpenRequest,
    facts: Vec<Fact>,
    commands: Vec<Command>,
) -> Decision {
    Decision {
        input,
        source_offset: None,
        organization: Some(key.organization.clone()),
        request: Some(open.context.clone()),
        facts,
        commands,
        health: Vec::new(),
    }
}

fn answer(key: &RequestKey, open: &OpenRequest, sequence: u32, terminal: Terminal, context: &Context<'_>) -> Command {
    let frame = Frame {
        organization: key.organization.clone(),
        request_id: key.request.clone(),
        nonce: open.admitted.reply_nonce.clone(),
        tenure: context.tenure,
        attempt: open.attempt,
        sequence,
        at: context.at,
        body: FrameBody::Terminal(Box::new(terminal)),
    };
    Command::Answer { partition: open.admitted.reply_partition, frame: Box::new(frame) }
}

/// A report that nobody waits for any more leads to nothing, not even to a commit.
fn nothing(input: InputKind) -> Decision {
    Decision {
        input,
        source_offset: None,
        organization: None,
        request: None,
        facts: Vec::new(),
        commands: Vec::new(),
        health: Vec::new(),
    }
}

fn head_of(candidate: &Candidate) -> Head {
    Head {
        model: candidate.model.clone(),
        deployment: candidate.deployment.clone(),
        tier: candidate.tier,
        rate_limits: None,
        cache: None,
    }
}

fn call(
    control: &Tables,
    key: RequestKey,
    candidate: &Candidate,
    started: &AttemptStarted,
    admitted: &RequestAdmitted,
    request: &RequestContext,
) -> Option<ProviderCall> {
    let (_, model) = control.model(&candidate.model)?;
    let deployment = model.value.deployment(&candidate.deployment)?;
    Some(ProviderCall {
        key,
        attempt: started.attempt,
        head: head_of(candidate),
        base_url: deployment.base_url.clone(),
        upstream_model: deployment.upstream_model.clone(),
        credential: deployment.credential.clone(),
        stream: request.stream,
        include_usage: admitted.include_usage,
        output_cap: output_cap(started, admitted),
        deadline_at: admitted.deadline_at,
        delay_ms: started.delay_ms,
        judged_for: judged_for(control, request),
        is_kept: false,
        reply_partition: admitted.reply_partition,
        reply_nonce: admitted.reply_nonce.clone(),
    })
}

/// What an answer may lack so that the request's policy asks the next tier.
fn judged_for(control: &Tables, request: &RequestContext) -> Vec<String> {
    let policy = request.policy.as_ref().filter(|_| !request.stream).and_then(|name| control.policy(name.as_str()));
    policy.map_or_else(Vec::new, |(_, policy)| policy.value.escalation.clone())
}

/// The cap that the call is told, under the name that its provider knows: the client may have named it otherwise, or twice.
/// Where nobody gave one, the model's own is left to the provider.
fn output_cap(started: &AttemptStarted, admitted: &RequestAdmitted) -> Option<u64> {
    let reservation = started.reservation.as_ref()?;
    let is_capped = reservation.output_cap.is_some() || admitted.features.output_cap.is_some();
    is_capped.then_some(reservation.output_tokens)
}

impl RequestContext {
    /// Of a request about which only this is known.
    pub fn of_request(request_id: RequestId, received_at: Timestamp) -> Self {
        Self {
            request_id,
            lane: 0,
            key_id: None,
            user: None,
            user_tier: None,
            tags: std::collections::BTreeMap::new(),
            conversation_id: None,
            requested_model: None,
            tier: None,
            policy: None,
            policy_version: None,
            arm: None,
            origin: crate::records::Origin::Live,
            traceparent: None,
            received_at,
            stream: false,
        }
    }
}
