//! Whether a request is admitted: not when it was asked before, when its record or its body rules it out, when somebody or
//! something in it is not known, when there is no room, when a limit is used up, or when the worst case cannot be paid. In
//! this order.

use std::sync::Arc;
use std::time::Duration;

use super::budget::{Passed, Question};
use super::cache;
use super::content::{self, Content};
use super::ledger::Asker;
use super::memory::Before;
use super::refusal::Refusal;
use super::router::{Asked, Under};
use super::state::{OpenRequest, State, key_of};
use super::{
    Bounds, Capacity, Command, Context, Decision, ServedFrom, Serving, TAG_BYTES_MAX, budget, call, refusal, router,
};
use crate::control::terms::Terms;
use crate::domain::ids::partition_of;
use crate::domain::{ModelName, RequestKey, Timestamp};
use crate::records::journal::{
    AttemptSource, AttemptStarted, CacheLookedUp, Candidate, Fact, InputKind, RecordSkipped, RequestAdmitted,
    RequestContext, RequestRefused, Standing, Told,
};
use crate::records::requests::Chat;
use crate::records::responses::{ApiError, Frame, FrameBody, Head, Original, RateLimits, Terminal};
use crate::records::{Origin, Outcome};

/// Most tags of a request.
const TAGS_MAX: usize = 16;
/// Most bytes of the nonce that an asker gives to know its answers by.
const NONCE_BYTES_MAX: usize = 200;

/// A request as it came.
pub(super) struct Arrival<'a> {
    pub source_offset: i64,
    pub received_at: Timestamp,
    pub chat: &'a Chat,
    /// Keyed hash of the body.
    pub fingerprint: Option<&'a str>,
    pub cache: Option<&'a cache::Wanted<'a>>,
}

/// What is seen on the way to a decision, and told whatever that is.
#[derive(Default)]
struct Seen {
    health: Vec<Standing>,
    /// An answer that was found in the cache.
    found: Option<CacheLookedUp>,
}

pub(super) fn decide(
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
    let mut seen = Seen::default();
    match admit(state, &arrival, content, context, &mut request, &mut seen) {
        Ok((facts, command)) => {
            let commands = vec![command];
            Decision { facts, commands, health: seen.health, ..from_record(&arrival, request) }
        }
        Err(refusal) => {
            let Refusal { mut error, limit } = *refusal;
            error.rate_limits = rate_limits(state, chat, context);
            let (code, status) = (error.code.clone(), error.status);
            let (told, command) = refused(chat, error, None, context);
            let fact = Fact::RequestRefused(RequestRefused {
                code,
                status,
                told: Some(told),
                features: content.as_ref().ok().map(|content| content.features),
                limit,
            });
            let facts = [fact].into_iter().chain(seen.found.map(Fact::CacheLookedUp)).collect();
            Decision { facts, commands: vec![command], health: seen.health, ..from_record(&arrival, request) }
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
            (original, differs, nonce(chat) != admitted.reply_nonce.as_ref())
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
        reply_nonce: nonce(chat).cloned(),
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
    state: &State,
    arrival: &Arrival<'_>,
    content: &Result<Content, content::Error>,
    context: &Context<'_>,
    request: &mut RequestContext,
    seen: &mut Seen,
) -> Result<(Vec<Fact>, Command), Box<Refusal>> {
    let (chat, bounds) = (arrival.chat, context.bounds);
    supported(chat, bounds)?;
    let terms = context.control.terms(&chat.organization, chat.key_id.as_ref());
    let terms = terms.filter(|terms| terms.organization.active);
    let terms = terms.ok_or_else(|| refusal::unknown_organization(chat.organization.as_str()))?;
    key(&terms, chat, context)?;
    if terms.lacks_plan {
        return Err(refusal::plan_missing(chat.organization.as_str()).into());
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
        return Err(refusal::too_late().into());
    }
    let features = &content.features;
    let under = Under { control: context.control, terms: &terms, at: context.at, health: context.health };
    let user_tier = request.user_tier.as_deref();
    let asked = Asked { model: &model, request_id: &chat.request_id, features, user_tier, tags: &request.tags };
    let mut route = router::route(&under, &asked)?;
    seen.health.append(&mut route.health);
    request.tier = Some(route.tier);
    let is_auto = route.policy.is_some();
    (request.policy, request.policy_version) = route.policy.take().unzip();
    match context.capacity {
        Capacity::Free => {}
        Capacity::ShareUsed => return Err(refusal::over_capacity(true).into()),
        Capacity::Full => return Err(refusal::over_capacity(false).into()),
    }
    let asker = Asker { organization: &chat.organization, key: chat.key_id.as_ref() };
    let books = state.ledger.books(asker.organization);
    let looked = arrival.cache.and_then(|wanted| {
        let under = (context.control, &terms, context.at);
        let who = cache::who_answers(request.policy.as_ref(), &route);
        cache::look_up(&state.cache, &chat.organization, wanted, &who, under, |leader| {
            // Its answer ends with its own deadline.
            let leader = state.open(&key_of(&chat.organization, leader));
            let left = leader.map(|leader| leader.admitted.deadline_at.since(context.at));
            left.is_some_and(|left| deadline_at.since(context.at) <= left.saturating_mul(cache::SHARED_TIME_FACTOR_MAX))
        })
    });
    let (looked_up, found) = looked.map_or((None, None), |looked| (Some(looked.fact), looked.answer));
    // Nobody is called for an answer that was found.
    let tokens = if found.is_some() { 0 } else { budget::limited_tokens(features, &terms) };
    seen.found = looked_up.clone().filter(|_| found.is_some());
    let limits = budget::charge(&terms, books, asker, tokens, context.at)?;
    seen.found = None;
    let rate_limits = budget::rate_limits(&terms, books, asker, &limits, context.at);
    let admitted = RequestAdmitted {
        deadline_at,
        reply_partition: reply_partition(chat, bounds),
        reply_nonce: chat.reply_nonce.clone(),
        include_usage: content.include_usage,
        features: content.features,
        body_fingerprint: arrival.fingerprint.map(str::to_owned),
        limits,
    };
    let key = key_of(&chat.organization, &chat.request_id);
    let found = found.and_then(|found| served(state, &key, found, context));
    if let (Some(served), Some(looked_up)) = (found, &looked_up) {
        request.tier = Some(served.candidate.tier);
        let head = Head {
            model: served.candidate.model.clone(),
            deployment: served.candidate.deployment.clone(),
            tier: served.candidate.tier,
            rate_limits,
            cache: cache::outcome_of(served.started.source, Some(looked_up)),
        };
        let from = match served.started.shared_with.clone() {
            Some(leader) => ServedFrom::Call(leader),
            None => ServedFrom::Cache(looked_up.fingerprint),
        };
        let RequestAdmitted { reply_partition, ref reply_nonce, .. } = admitted;
        let reply_nonce = reply_nonce.clone();
        let serving = Serving { key, attempt: 1, head, from, deadline_at, reply_partition, reply_nonce };
        // It comes before all others, and is no call of theirs.
        let routed = Arc::make_mut(&mut route.routed);
        routed.candidates.insert(0, served.candidate);
        routed.max_attempts += 1;
        let facts = vec![
            Fact::RequestAdmitted(admitted),
            Fact::CacheLookedUp(looked_up.clone()),
            Fact::RequestRouted(route.routed),
            Fact::AttemptStarted(served.started),
        ];
        return Ok((facts, Command::Serve(Box::new(serving))));
    }
    let question = Question {
        control: context.control,
        terms: &terms,
        books,
        asker,
        features,
        at: context.at,
        attempt: 1,
        before: None,
        health: context.health,
        context_above: None,
    };
    let mut passed = Passed::default();
    let offer = question.offer(&route.routed.candidates, 0, is_auto, &mut passed);
    passed.health.into_iter().for_each(|standing| router::keep(&mut seen.health, standing));
    let offer = offer?;
    if !passed.reasons.is_empty() {
        Arc::make_mut(&mut route.routed).reasons.extend(passed.reasons);
    }
    let candidate = &route.routed.candidates[offer.index];
    request.tier = Some(candidate.tier);
    let mut call = call(context.control, key, candidate, &offer.started, &admitted, request)
        .ok_or_else(|| refusal::model_not_found(&named))?;
    call.head.rate_limits = rate_limits;
    call.head.cache = cache::outcome_of(offer.started.source, looked_up.as_ref());
    call.is_kept = looked_up.as_ref().is_some_and(|looked_up| looked_up.keeps);
    let mut facts = vec![Fact::RequestAdmitted(admitted)];
    facts.extend(looked_up.map(Fact::CacheLookedUp));
    facts.extend([Fact::RequestRouted(route.routed.clone()), Fact::AttemptStarted(offer.started)]);
    Ok((facts, Command::Call(Box::new(call))))
}

/// An attempt that is answered without a call.
struct Served {
    candidate: Candidate,
    started: AttemptStarted,
}

/// Who answered what was found, or is about to.
fn served(state: &State, key: &RequestKey, found: cache::Answer<'_>, context: &Context<'_>) -> Option<Served> {
    let (candidate, provider, leader) = match found {
        cache::Answer::Kept(entry) => {
            let (model, deployment) = (entry.model.clone(), entry.deployment.clone());
            (Candidate { model, deployment, tier: entry.tier }, entry.provider.clone(), None)
        }
        cache::Answer::Flight(leader) => {
            let open = state.open(&key_of(&key.organization, leader))?;
            (open.routed.candidates[open.candidate].clone(), open.started.provider.clone(), Some(leader.clone()))
        }
    };
    let started = AttemptStarted {
        attempt: 1,
        model: candidate.model.clone(),
        deployment: candidate.deployment.clone(),
        provider,
        price_version: context.control.model(&candidate.model).map_or(-1, |(_, model)| model.version),
        reservation: None,
        limits: None,
        delay_ms: 0,
        source: if leader.is_some() { AttemptSource::Shared } else { AttemptSource::Cache },
        shared_with: leader,
    };
    Some(Served { candidate, started })
}

/// A key that control does not have, or no more, opens nothing: its limits and its budget are not known.
fn key(terms: &Terms<'_>, chat: &Chat, context: &Context<'_>) -> Result<(), Box<Refusal>> {
    let Some(id) = &chat.key_id else { return Ok(()) };
    match terms.key {
        None => Err(refusal::key_not_found(id.as_str()).into()),
        Some(key) if !key.active => Err(refusal::key_revoked(id.as_str()).into()),
        Some(key) => match key.expires_at.filter(|expiry| *expiry <= context.at) {
            Some(expiry) => Err(refusal::key_expired(id.as_str(), expiry).into()),
            None => Ok(()),
        },
    }
}

/// What is left of the limits when nothing is taken.
fn rate_limits(state: &State, chat: &Chat, context: &Context<'_>) -> Option<Box<RateLimits>> {
    let asker = Asker { organization: &chat.organization, key: chat.key_id.as_ref() };
    let terms = context.control.terms(asker.organization, asker.key)?;
    budget::rate_limits(&terms, state.ledger.books(asker.organization), asker, &[], context.at)
}

/// Refuses what the record itself rules out.
fn supported(chat: &Chat, bounds: &Bounds) -> Result<(), Box<Refusal>> {
    if chat.body.len() > bounds.body_bytes_max {
        return Err(refusal::too_large(chat.body.len(), bounds.body_bytes_max).into());
    }
    if matches!(chat.origin, Origin::Replay | Origin::Shadow) {
        return Err(refusal::unsupported("a replay's request on the live topic (origin)").into());
    }
    if chat.encryption_key_id.is_some() {
        return Err(refusal::unsupported("encrypted content (encryption_key_id)").into());
    }
    if chat.content_ref.is_some() {
        return Err(refusal::unsupported("content by reference (content_ref)").into());
    }
    if chat.content_type != "application/json" {
        return Err(refusal::unsupported(&format!("content type {:?}", chat.content_type)).into());
    }
    if chat.lane != 0 {
        return Err(refusal::unsupported("a lane other than 0").into());
    }
    if chat.reply_partition.is_some_and(|p| p < 0 || p >= bounds.partitions as i32) {
        let most = bounds.partitions.saturating_sub(1);
        return Err(refusal::invalid_request(format!("reply_partition must be from 0 to {most}")).into());
    }
    if chat.reply_nonce.is_some() && nonce(chat).is_none() {
        return Err(refusal::invalid_request(format!("reply_nonce must have at most {NONCE_BYTES_MAX} bytes")).into());
    }
    let tag_fits = |(name, value): (&String, &String)| name.len() <= TAG_BYTES_MAX && value.len() <= TAG_BYTES_MAX;
    if chat.tags.len() > TAGS_MAX || !chat.tags.iter().all(tag_fits) {
        let message = format!("at most {TAGS_MAX} tags with names and values of at most {TAG_BYTES_MAX} bytes");
        return Err(refusal::invalid_request(message).into());
    }
    Ok(())
}

fn from_record(arrival: &Arrival<'_>, request: RequestContext) -> Decision {
    Decision {
        input: InputKind::Record,
        source_offset: Some(arrival.source_offset),
        organization: Some(arrival.chat.organization.clone()),
        request: Some(Arc::new(request)),
        facts: Vec::new(),
        commands: Vec::new(),
        health: Vec::new(),
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

/// The nonce, when it fits.
fn nonce(chat: &Chat) -> Option<&String> {
    chat.reply_nonce.as_ref().filter(|nonce| nonce.len() <= NONCE_BYTES_MAX)
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
