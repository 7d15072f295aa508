//! What becomes of a request, decided without Kafka, clock or network.
//!
//! [`decide`] takes an input and gives facts and commands; [`evolve`] folds facts into the state. The shell writes the
//! facts as one commit and runs the commands once the commit is acknowledged. The same functions run live, in the tests'
//! driver and in replay. Recovery only folds; it never decides again.

pub mod checkpoint;
pub mod content;
pub mod inference;
pub mod memory;
pub mod refusal;
pub mod router;
pub mod state;
pub mod tenure;

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::control::Tables;
use crate::domain::ids::partition_of;
use crate::domain::{ModelName, OrganizationId, RequestId, RequestKey, Timestamp};
use crate::records::Outcome;
use crate::records::journal::{
    AttemptEnded, AttemptProgressed, CancelRequested, Candidate, Commit, Fact, InputKind, OrphanPosted, RecordSkipped,
    RequestAdmitted, RequestContext, RequestRefused, Told,
};
use crate::records::requests::{Cancel, Chat};
use crate::records::responses::{ApiError, Frame, FrameBody, Head, Original, Terminal};
use content::Content;
use inference::{AttemptReport, Next};
use memory::{Before, Ended};
pub use state::{OpenRequest, State, evolve, fold, key_of};

/// Most tags of a request, and most bytes of a tag's name or value.
const TAGS_MAX: usize = 16;
const TAG_BYTES_MAX: usize = 64;
/// Most bytes of the nonce that an asker gives to know its answers by.
const NONCE_BYTES_MAX: usize = 200;

/// What is decided on.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "an input lives on the stack for one decision; most are the large ones")]
pub enum Input<'a> {
    Chat {
        source_offset: i64,
        received_at: Timestamp,
        chat: &'a Chat,
        content: Result<Content, content::Error>,
        /// Keyed hash of the body.
        fingerprint: Option<String>,
    },
    Cancel {
        source_offset: i64,
        received_at: Timestamp,
        cancel: &'a Cancel,
    },
    /// A record that has been put elsewhere: into `dead-letters`, or on the partition where it belongs.
    Skip {
        source_offset: i64,
        reason: &'static str,
    },
    AttemptEnded(AttemptReport),
    /// A call under way, and what it has put out so far.
    AttemptProgressed(RequestKey, AttemptProgressed),
    /// A request that was open when its owner changed.
    TakenOver {
        key: RequestKey,
        /// Its body could be read again.
        has_body: bool,
    },
    /// An open request whose deadline and grace have passed.
    Overdue(RequestKey),
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
    pub request: Option<RequestContext>,
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
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
    pub deadline_at: Timestamp,
    pub reply_partition: i32,
    pub reply_nonce: Option<String>,
}

/// Decides what becomes of an input.
pub fn decide(state: &State, input: &Input<'_>, context: &Context<'_>) -> Decision {
    match input {
        Input::Chat { source_offset, received_at, chat, content, fingerprint } => decide_chat(
            state,
            Arrival {
                source_offset: *source_offset,
                received_at: *received_at,
                chat,
                fingerprint: fingerprint.as_deref(),
            },
            content,
            context,
        ),
        Input::Cancel { source_offset, received_at, cancel } => {
            decide_cancel(state, *source_offset, *received_at, cancel)
        }
        Input::Skip { source_offset, reason } => skip(*source_offset, reason),
        Input::AttemptEnded(report) => decide_attempt_ended(state, report, context),
        Input::AttemptProgressed(key, progressed) => decide_progressed(state, key, *progressed),
        Input::TakenOver { key, has_body } => decide_taken_over(state, key, *has_body, context),
        Input::Overdue(key) => decide_overdue(state, key, context),
        Input::Orphaned(journal_offset) => decide_orphaned(state, *journal_offset),
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
    }
}

struct Arrival<'a> {
    source_offset: i64,
    received_at: Timestamp,
    chat: &'a Chat,
    fingerprint: Option<&'a str>,
}

fn decide_chat(
    state: &State,
    arrival: Arrival<'_>,
    content: &Result<Content, content::Error>,
    context: &Context<'_>,
) -> Decision {
    let chat = arrival.chat;
    let mut request = context_of(&arrival);
    if let Some(answer) = repeated(state, &arrival, context) {
        let (told, command) = answer.unzip();
        let facts = vec![Fact::RecordSkipped(RecordSkipped { reason: "duplicate".to_owned(), told })];
        return Decision { facts, commands: command.into_iter().collect(), ..from_record(&arrival, request) };
    }
    match admit(&arrival, content, context, &mut request) {
        Ok((facts, call)) => {
            Decision { facts, commands: vec![Command::Call(Box::new(call))], ..from_record(&arrival, request) }
        }
        Err(error) => {
            let (code, status) = (error.code.clone(), error.status);
            let (told, command) = refused(chat, error, None, context);
            let fact = Fact::RequestRefused(RequestRefused { code, status, told: Some(told) });
            Decision { facts: vec![fact], commands: vec![command], ..from_record(&arrival, request) }
        }
    }
}

/// Whether the request was asked before: `Some` with what its asker is told, if anything. Whoever asks again from
/// elsewhere is told where the first one's answer stands; a mere repeat of the record has its answer, or will.
fn repeated(state: &State, arrival: &Arrival<'_>, context: &Context<'_>) -> Option<Option<(Told, Command)>> {
    let chat = arrival.chat;
    let key = key_of(&chat.organization, &chat.request_id);
    let (original, differs, is_told) = match (state.open(&key), state.memory.before(&key)) {
        (Some(OpenRequest { context, admitted, .. }), _) => {
            let original = Original { partition: admitted.reply_partition, since: context.received_at, open: true };
            let differs = match (&admitted.body_fingerprint, arrival.fingerprint) {
                (Some(before), Some(now)) => before != now,
                _ => false,
            };
            (original, differs, chat.reply_nonce != admitted.reply_nonce)
        }
        (None, Some(before)) => {
            let Before { reply_partition: partition, received_at: since, .. } = *before;
            (Original { partition, since, open: false }, before.differs_from(arrival.fingerprint), true)
        }
        (None, None) => return None,
    };
    let answer = || match differs {
        true => refused(chat, refusal::other_body(), None, context),
        false => refused(chat, refusal::duplicate(original.open), Some(original), context),
    };
    Some((differs || is_told).then(answer))
}

/// What the asker of a request that is not admitted is told, and the terminal that tells it.
fn refused(chat: &Chat, error: ApiError, original: Option<Original>, context: &Context<'_>) -> (Told, Command) {
    let told = Told {
        reply_partition: reply_partition(chat, context.bounds),
        reply_nonce: chat.reply_nonce.clone().filter(|_| nonce_fits(chat)),
        status: error.status,
        code: error.code.clone(),
        original,
    };
    let terminal = Terminal {
        cost_pico_usd: Some(crate::domain::PicoUsd::ZERO),
        error: Some(error),
        original,
        ..Terminal::of(Outcome::Refused)
    };
    let frame = Frame {
        organization: chat.organization.clone(),
        request_id: chat.request_id.clone(),
        nonce: told.reply_nonce.clone(),
        tenure: context.tenure,
        attempt: 0,
        sequence: 0,
        at: context.at,
        body: FrameBody::Terminal(Box::new(terminal)),
    };
    let command = Command::Answer { partition: told.reply_partition, frame: Box::new(frame) };
    (told, command)
}

/// Everything that must hold for a request to be called out, in order of precedence.
fn admit(
    arrival: &Arrival<'_>,
    content: &Result<Content, content::Error>,
    context: &Context<'_>,
    request: &mut RequestContext,
) -> Result<(Vec<Fact>, ProviderCall), ApiError> {
    let (chat, bounds) = (arrival.chat, context.bounds);
    supported(chat, bounds)?;
    let organization = context.control.organization(&chat.organization);
    if !organization.is_some_and(|entity| entity.value.active) {
        return Err(refusal::unknown_organization(chat.organization.as_str()));
    }
    let content = content.as_ref().map_err(|e| refusal::invalid_request(e.to_string()))?;
    request.stream = content.stream;
    let named = chat.model.as_ref().map(|m| m.as_str().to_owned()).or_else(|| content.model.clone());
    let named = named.ok_or_else(refusal::model_missing)?;
    let model = ModelName::parse(&named).map_err(|_| refusal::model_not_found(&named))?;
    request.requested_model = Some(model.clone());
    let timeout = match chat.timeout_ms {
        Some(ms) => Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(bounds.timeout_max),
        None => bounds.timeout,
    };
    let deadline_at = arrival.received_at.plus(timeout);
    if deadline_at <= context.at {
        return Err(refusal::too_late());
    }
    let route = router::route(context.control, &model, context.at)?;
    request.tier = Some(route.tier);
    (request.policy, request.policy_version) = route.policy.unzip();
    match context.capacity {
        Capacity::Free => {}
        Capacity::ShareUsed => return Err(refusal::over_capacity(true)),
        Capacity::Full => return Err(refusal::over_capacity(false)),
    }
    let admitted = RequestAdmitted {
        deadline_at,
        reply_partition: reply_partition(chat, bounds),
        reply_nonce: chat.reply_nonce.clone(),
        include_usage: content.include_usage,
        features: content.features,
        body_fingerprint: arrival.fingerprint.map(str::to_owned),
    };
    let candidate = &route.routed.candidates[0];
    let started = inference::start(context.control, candidate, 1).ok_or_else(|| refusal::no_price(&named))?;
    let key = key_of(&chat.organization, &chat.request_id);
    let call = call(context.control, key, candidate, 1, (&admitted, content.stream))
        .ok_or_else(|| refusal::model_not_found(&named))?;
    let facts =
        vec![Fact::RequestAdmitted(admitted), Fact::RequestRouted(route.routed.clone()), Fact::AttemptStarted(started)];
    Ok((facts, call))
}

/// Refuses what the record itself rules out.
fn supported(chat: &Chat, bounds: &Bounds) -> Result<(), ApiError> {
    if chat.body.len() > bounds.body_bytes_max {
        return Err(refusal::too_large(chat.body.len(), bounds.body_bytes_max));
    }
    if chat.encryption_key_id.is_some() {
        return Err(refusal::unsupported("encrypted content (encryption_key_id)"));
    }
    if chat.content_ref.is_some() {
        return Err(refusal::unsupported("content by reference (content_ref)"));
    }
    if chat.content_type != "application/json" {
        return Err(refusal::unsupported(&format!("content type {:?}", chat.content_type)));
    }
    if chat.lane != 0 {
        return Err(refusal::unsupported("a lane other than 0"));
    }
    if chat.reply_partition.is_some_and(|p| p < 0 || p >= bounds.partitions as i32) {
        let most = bounds.partitions.saturating_sub(1);
        return Err(refusal::invalid_request(format!("reply_partition must be from 0 to {most}")));
    }
    if !nonce_fits(chat) {
        return Err(refusal::invalid_request(format!("reply_nonce must have at most {NONCE_BYTES_MAX} bytes")));
    }
    let tag_fits = |(name, value): (&String, &String)| name.len() <= TAG_BYTES_MAX && value.len() <= TAG_BYTES_MAX;
    if chat.tags.len() > TAGS_MAX || !chat.tags.iter().all(tag_fits) {
        let message = format!("at most {TAGS_MAX} tags with names and values of at most {TAG_BYTES_MAX} bytes");
        return Err(refusal::invalid_request(message));
    }
    Ok(())
}

fn decide_cancel(state: &State, source_offset: i64, received_at: Timestamp, cancel: &Cancel) -> Decision {
    let key = key_of(&cancel.organization, &cancel.request_id);
    let open = state.open(&key);
    let request = match open {
        Some(open) => open.context.clone(),
        None => RequestContext::of_request(cancel.request_id.clone(), received_at),
    };
    let reason: String = cancel.reason.chars().take(TAG_BYTES_MAX).collect();
    Decision {
        input: InputKind::Record,
        source_offset: Some(source_offset),
        organization: Some(cancel.organization.clone()),
        request: Some(request),
        facts: vec![Fact::CancelRequested(CancelRequested { reason, open: open.is_some() })],
        commands: open.map(|_| Command::Abort(key)).into_iter().collect(),
    }
}

fn skip(source_offset: i64, reason: &'static str) -> Decision {
    Decision {
        input: InputKind::Record,
        source_offset: Some(source_offset),
        organization: None,
        request: None,
        facts: vec![Fact::RecordSkipped(RecordSkipped { reason: reason.to_owned(), told: None })],
        commands: Vec::new(),
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
    };
    let (outcome, status, error) = match inference::next(open, report, context.at) {
        Next::Settle { outcome, status, error } => (outcome, status, error),
        Next::Call(index) => match call_again(open, &report.key, index, context.control) {
            Some((started, call)) => {
                let facts = vec![Fact::AttemptEnded(Box::new(posting)), started];
                return Decision { facts, commands: vec![call], ..decided };
            }
            // The next candidate left the catalogue between routing and now.
            None => (Outcome::Failed, 503, Some(refusal::no_price(open.started.model.as_str()))),
        },
    };
    let settled = inference::settlement(open, &posting, outcome, status, context.at);
    let terminal = Terminal {
        head: Some(head_of(&open.routed.candidates[open.candidate])),
        body: report.body.clone(),
        usage: Some(posting.usage),
        cost_pico_usd: settled.cost_pico_usd,
        finish_reason: posting.finish_reason.clone(),
        error,
        ..Terminal::of(outcome)
    };
    let answer = answer(&report.key, open, settled.content_frames, terminal, context);
    let facts = vec![Fact::AttemptEnded(Box::new(posting)), Fact::RequestSettled(settled)];
    Decision { facts, commands: vec![answer], ..decided }
}

/// The next attempt of an open request, with the candidate at `index`: its fact and its call.
fn call_again(open: &OpenRequest, key: &RequestKey, index: usize, control: &Tables) -> Option<(Fact, Command)> {
    let candidate = open.routed.candidates.get(index)?;
    let attempt = open.attempt + 1;
    let started = inference::start(control, candidate, attempt)?;
    let call = call(control, key.clone(), candidate, attempt, (&open.admitted, open.context.stream))?;
    Some((Fact::AttemptStarted(started), Command::Call(Box::new(call))))
}

fn decide_progressed(state: &State, key: &RequestKey, progressed: AttemptProgressed) -> Decision {
    let Some(open) = state.open(key).filter(|open| open.attempt == progressed.attempt) else {
        return nothing(InputKind::Provider);
    };
    of_open(InputKind::Provider, key, open, vec![Fact::AttemptProgressed(progressed)], Vec::new())
}

/// The former owner's call is lost. As long as nobody can have seen content of it, the same candidate is called anew.
fn decide_taken_over(state: &State, key: &RequestKey, has_body: bool, context: &Context<'_>) -> Decision {
    let Some(open) = state.open(key) else { return nothing(InputKind::Takeover) };
    let posting = inference::interrupted_posting(context.control, open);
    if open.cancelled {
        return give_up(InputKind::Takeover, key, open, posting, (Outcome::Cancelled, refusal::cancelled()), context);
    }
    let may_call = has_body
        && open.progress.content_frames == 0
        && open.attempt < open.routed.max_attempts
        && context.at < open.admitted.deadline_at;
    match may_call.then(|| call_again(open, key, open.candidate, context.control)).flatten() {
        Some((started, call)) => {
            let facts = vec![Fact::AttemptEnded(Box::new(posting)), started];
            of_open(InputKind::Takeover, key, open, facts, vec![call])
        }
        None => {
            let end = (Outcome::Interrupted, refusal::interrupted());
            give_up(InputKind::Takeover, key, open, posting, end, context)
        }
    }
}

/// A call that should have ended long ago: whatever became of it, its asker is told.
fn decide_overdue(state: &State, key: &RequestKey, context: &Context<'_>) -> Decision {
    let Some(open) = state.open(key) else { return nothing(InputKind::Timer) };
    let posting = inference::lost_posting(context.control, open);
    let end = (Outcome::Failed, refusal::deadline());
    let mut decision = give_up(InputKind::Timer, key, open, posting, end, context);
    decision.commands.insert(0, Command::Abort(key.clone()));
    decision
}

fn decide_orphaned(state: &State, journal_offset: i64) -> Decision {
    let Some(orphan) = state.orphan(journal_offset) else { return nothing(InputKind::Takeover) };
    Decision {
        organization: Some(orphan.organization.clone()),
        request: Some(orphan.context.clone()),
        facts: vec![Fact::OrphanPosted(OrphanPosted { journal_offset, posting: orphan.posting.clone() })],
        ..nothing(InputKind::Takeover)
    }
}

/// Settles an open request whose attempt ended without a report.
fn give_up(
    input: InputKind,
    key: &RequestKey,
    open: &OpenRequest,
    posting: AttemptEnded,
    (outcome, error): (Outcome, ApiError),
    context: &Context<'_>,
) -> Decision {
    let settled = inference::settlement(open, &posting, outcome, error.status, context.at);
    let terminal = Terminal { cost_pico_usd: settled.cost_pico_usd, error: Some(error), ..Terminal::of(outcome) };
    let answer = answer(key, open, settled.content_frames, terminal, context);
    let facts = vec![Fact::AttemptEnded(Box::new(posting)), Fact::RequestSettled(settled)];
    of_open(input, key, open, facts, vec![answer])
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
    }
}

/// The terminal of a request that is over, for readers that did not get it from the former owner. What was content
/// of it is in nobody's journal: a whole answer comes without its body.
pub fn terminal_again(ended: &Ended, tenure: i64, at: Timestamp) -> Command {
    let error = match ended.outcome {
        Outcome::Completed => None,
        _ => Some(refusal::ended_before(ended.status, ended.error_code.as_deref())),
    };
    let terminal = Terminal {
        usage: ended.usage,
        cost_pico_usd: ended.cost_pico_usd,
        finish_reason: ended.finish_reason.clone(),
        error,
        original: ended.original,
        ..Terminal::of(ended.outcome)
    };
    let frame = Frame {
        organization: ended.key.organization.clone(),
        request_id: ended.key.request.clone(),
        nonce: ended.reply_nonce.clone(),
        tenure,
        attempt: ended.attempt,
        sequence: ended.content_frames,
        at,
        body: FrameBody::Terminal(Box::new(terminal)),
    };
    Command::Answer { partition: ended.reply_partition, frame: Box::new(frame) }
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
    Decision { input, source_offset: None, organization: None, request: None, facts: Vec::new(), commands: Vec::new() }
}

fn head_of(candidate: &Candidate) -> Head {
    Head { model: candidate.model.clone(), deployment: candidate.deployment.clone(), tier: candidate.tier }
}

fn call(
    control: &Tables,
    key: RequestKey,
    candidate: &Candidate,
    attempt: u32,
    (admitted, stream): (&RequestAdmitted, bool),
) -> Option<ProviderCall> {
    let (_, model) = control.model(&candidate.model)?;
    let deployment = model.value.deployment(&candidate.deployment)?;
    Some(ProviderCall {
        key,
        attempt,
        head: head_of(candidate),
        base_url: deployment.base_url.clone(),
        upstream_model: deployment.upstream_model.clone(),
        credential: deployment.credential.clone(),
        stream,
        include_usage: admitted.include_usage,
        deadline_at: admitted.deadline_at,
        reply_partition: admitted.reply_partition,
        reply_nonce: admitted.reply_nonce.clone(),
    })
}

fn from_record(arrival: &Arrival<'_>, request: RequestContext) -> Decision {
    Decision {
        input: InputKind::Record,
        source_offset: Some(arrival.source_offset),
        organization: Some(arrival.chat.organization.clone()),
        request: Some(request),
        facts: Vec::new(),
        commands: Vec::new(),
    }
}

fn context_of(arrival: &Arrival<'_>) -> RequestContext {
    let chat = arrival.chat;
    RequestContext {
        lane: chat.lane,
        key_id: chat.key_id.clone(),
        user: chat.user.clone(),
        user_tier: chat.user_tier.as_ref().map(|tier| tier.chars().take(TAG_BYTES_MAX).collect()),
        tags: bounded_tags(chat),
        conversation_id: chat.conversation_id.clone(),
        origin: chat.origin,
        traceparent: chat.traceparent.as_ref().map(|t| t.chars().take(TAG_BYTES_MAX).collect()),
        ..RequestContext::of_request(chat.request_id.clone(), arrival.received_at)
    }
}

fn nonce_fits(chat: &Chat) -> bool {
    chat.reply_nonce.as_ref().is_none_or(|nonce| nonce.len() <= NONCE_BYTES_MAX)
}

/// The tags that fit; a request with others is refused, and its refusal must still be bounded.
fn bounded_tags(chat: &Chat) -> std::collections::BTreeMap<String, String> {
    let fits = |(name, value): &(&String, &String)| name.len() <= TAG_BYTES_MAX && value.len() <= TAG_BYTES_MAX;
    chat.tags.iter().filter(fits).take(TAGS_MAX).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// Where the asker listens: as it says, else by its request id.
fn reply_partition(chat: &Chat, bounds: &Bounds) -> i32 {
    let valid = |partition: &i32| (0..bounds.partitions as i32).contains(partition);
    chat.reply_partition.filter(valid).unwrap_or_else(|| partition_of(chat.request_id.as_str(), bounds.partitions))
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
