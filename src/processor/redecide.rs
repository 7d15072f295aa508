//! Decides a commit again from the journal alone: its recorded input, features, time and rules must give its recorded facts.
//!
//! What came from outside is taken as it is recorded: what was asked (context and features), what a call used and how it
//! ended, whether there was room, whether a record's content could be read. Everything else is decided anew. So replay can
//! stand on it: whoever decides the same again with other rules sees what those change, and nothing else.

use std::time::Duration;

use bytes::Bytes;

use super::cache::{Bodies, Directives, Wanted};
use super::content::Content;
use super::health::Health;
use super::inference::{AttemptEnd, AttemptReport};
use super::refusal::REQUEST_ID_REUSED;
use super::state::{State, key_of};
use super::{Bounds, Capacity, Context, Decision, Input, decide};
use crate::control::Tables;
use crate::domain::{OrganizationId, Timestamp};
use crate::provider::{Failure, FailureClass, Summary};
use crate::records::journal::{
    AttemptEnded, CacheLookedUp, CacheOutcome, CachePurged, Commit, Fact, Features, InputKind, RequestContext,
    RequestRefused, Told,
};
use crate::records::requests::{Cancel, Chat, PurgeCache};
use crate::records::{Outcome, UsageSource};

/// What the gateway's own bounds decided is in the record already.
const NO_BOUNDS: Bounds = Bounds {
    partitions: i32::MAX as u32,
    body_bytes_max: usize::MAX,
    timeout: Duration::from_secs(365 * 24 * 3600),
    timeout_max: Duration::from_secs(365 * 24 * 3600),
};

/// Refusals whose reason is in the record or its content, of which the journal holds nothing.
const FROM_THE_RECORD: [&str; 4] = ["invalid_request", "unsupported", "request_too_large", "missing_model"];

/// What became of a commit that was decided again.
#[derive(Debug, Clone, PartialEq)]
pub enum Again {
    /// The same facts.
    Same,
    /// Its reason is in the content, which the journal does not hold.
    NotOnTheJournal,
    /// Other facts, or what stands in the way of deciding at all.
    Differs(String),
}

/// What a commit was decided on, as far as the journal tells it.
#[derive(Debug)]
pub enum Given<'a> {
    Chat(Box<Asked>),
    Cancel {
        source_offset: i64,
        received_at: Timestamp,
        cancel: Cancel,
    },
    Purge {
        source_offset: i64,
        purge: PurgeCache,
    },
    /// No record, or one that was put elsewhere.
    Other(Input<'a>),
    /// A refusal whose reason is in the content.
    NotOnTheJournal,
}

/// A chat record, as far as the journal has it.
#[derive(Debug)]
pub struct Asked {
    pub source_offset: i64,
    pub received_at: Timestamp,
    pub chat: Chat,
    pub stream: bool,
    pub include_usage: bool,
    pub features: Features,
    pub fingerprint: Option<String>,
    /// What there was room for.
    pub capacity: Capacity,
    /// What it wanted of the cache.
    pub cache: Option<Wanted<'static>>,
}

impl Asked {
    /// As it is decided on.
    pub fn input(&self) -> Input<'_> {
        let content = Content {
            model: None,
            stream: self.stream,
            include_usage: self.include_usage,
            is_steady: false,
            has_tools: false,
            cache: Directives::default(),
            features: self.features,
            spoken: Box::default(),
        };
        let Self { source_offset, received_at, ref chat, ref fingerprint, ref cache, .. } = *self;
        let (fingerprint, cache) = (fingerprint.clone(), cache.as_ref());
        Input::Chat { source_offset, received_at, chat, content: Ok(content), fingerprint, cache }
    }
}

/// Decides an effective commit again: `state` is the fold of everything before it, `control` the tables at its control
/// offset.
pub fn redecide(state: &State, commit: &Commit, control: &Tables) -> Again {
    if control.offset() != commit.control_offset {
        let (found, wanted) = (control.offset(), commit.control_offset);
        return Again::Differs(format!("control has no offset {wanted}; it ends at {found}"));
    }
    if commit.at < state.clock {
        return Again::Differs(format!("it was decided at {}, before {}", commit.at, state.clock));
    }
    let decision = match given(state, commit) {
        Ok(Given::NotOnTheJournal) => return Again::NotOnTheJournal,
        Ok(given) => decide_given(state, commit, control, &given, Health::Recorded(&commit.health)),
        Err(why) => return Again::Differs(why.to_owned()),
    };
    difference(&decision, commit).map_or(Again::Same, Again::Differs)
}

/// What a commit was decided on. `state` tells where the first one's answer of a request that was asked again goes.
///
/// # Errors
/// What stands in the way of deciding it again.
pub fn given<'a>(state: &State, commit: &'a Commit) -> Result<Given<'a>, &'static str> {
    let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else {
        return match &commit.facts[..] {
            [Fact::CacheEvicted(_)] if commit.input == InputKind::Timer => Ok(Given::Other(Input::CacheExpired)),
            [Fact::CachePurged(CachePurged { model, before, .. })] => {
                let organization = commit.organization.clone().ok_or("it purges the cache of nobody")?;
                let purge = PurgeCache { organization, model: model.clone(), before: *before };
                Ok(Given::Purge { source_offset: commit.source_offset.unwrap_or(-1), purge })
            }
            [Fact::RecordSkipped(skipped)] => {
                let source_offset = commit.source_offset.unwrap_or(-1);
                Ok(Given::Other(Input::Skip { source_offset, reason: &skipped.reason }))
            }
            _ => Err("it is of no organization, and skips no record"),
        };
    };
    match commit.input {
        InputKind::Record => of_record(state, commit, organization, request),
        InputKind::Provider | InputKind::Takeover | InputKind::Timer => of_event(commit, organization, request)
            .map(Given::Other)
            .ok_or("its facts do not say what it was decided on"),
        InputKind::Unknown => Err("this version does not know its input"),
    }
}

/// The decision on what a commit was decided on, at its time; what only the provider's report can say is as recorded.
pub fn decide_given(
    state: &State,
    commit: &Commit,
    control: &Tables,
    given: &Given<'_>,
    health: Health<'_>,
) -> Decision {
    let context =
        |capacity| Context { at: commit.at, tenure: commit.tenure, control, capacity, bounds: &NO_BOUNDS, health };
    let mut decision = match given {
        Given::Chat(asked) => decide(state, &asked.input(), &context(asked.capacity)),
        Given::Cancel { source_offset, received_at, cancel } => {
            let input = Input::Cancel { source_offset: *source_offset, received_at: *received_at, cancel };
            decide(state, &input, &context(Capacity::Free))
        }
        Given::Purge { source_offset, purge } => {
            let input = Input::PurgeCache { source_offset: *source_offset, purge };
            decide(state, &input, &context(Capacity::Free))
        }
        Given::Other(input) => decide(state, input, &context(Capacity::Free)),
        Given::NotOnTheJournal => {
            let Commit { input, source_offset, organization, request, facts, .. } = commit.clone();
            Decision {
                input,
                source_offset,
                organization,
                request,
                facts,
                commands: Vec::new(),
                health: commit.health.clone(),
            }
        }
    };
    for (decided, recorded) in decision.facts.iter_mut().zip(&commit.facts) {
        // Where the usage is from came with it.
        if let (Fact::AttemptEnded(decided), Fact::AttemptEnded(recorded)) = (decided, recorded)
            && decided.usage_source != UsageSource::None
        {
            decided.usage_source = recorded.usage_source;
        }
    }
    decision
}

/// The decision on what is on no journal, such as the end of a call that was made in a replay alone.
pub fn decide_supposed(
    state: &State,
    input: &Input<'_>,
    (at, tenure): (Timestamp, i64),
    control: &Tables,
    health: Health<'_>,
) -> Decision {
    decide(state, input, &Context { at, tenure, control, capacity: Capacity::Free, bounds: &NO_BOUNDS, health })
}

fn of_record<'a>(
    state: &State,
    commit: &Commit,
    organization: &OrganizationId,
    request: &RequestContext,
) -> Result<Given<'a>, &'static str> {
    let source_offset = commit.source_offset.ok_or("it is of a record, and has no source offset")?;
    let key = key_of(organization, &request.request_id);
    let received_at = request.received_at;
    let is_refused = matches!(commit.facts.first(), Some(Fact::RequestRefused(_)));
    let arrived = |record: OnRecord<'_>, capacity| {
        Ok(Given::Chat(Box::new(Asked {
            source_offset,
            received_at,
            chat: record.chat(organization, request),
            stream: request.stream,
            include_usage: record.include_usage,
            features: record.features,
            fingerprint: record.fingerprint.map(str::to_owned),
            capacity,
            cache: commit.facts.iter().find_map(|fact| wanted_of(fact, is_refused)),
        })))
    };
    match commit.facts.first() {
        Some(Fact::RequestAdmitted(admitted)) => {
            let record = OnRecord {
                timeout: Some(admitted.deadline_at.since(request.received_at)),
                reply_partition: admitted.reply_partition,
                reply_nonce: admitted.reply_nonce.as_deref(),
                include_usage: admitted.include_usage,
                fingerprint: admitted.body_fingerprint.as_deref(),
                features: admitted.features,
            };
            arrived(record, Capacity::Free)
        }
        Some(Fact::RequestRefused(refused)) => match (refused.features, &refused.told) {
            (Some(features), Some(told)) if !is_from_the_record(refused, request) => {
                let timeout = (refused.code == "deadline_exceeded").then_some(Duration::ZERO);
                let capacity = match refused.code.as_str() {
                    "organization_share_exceeded" => Capacity::ShareUsed,
                    "over_capacity" => Capacity::Full,
                    _ => Capacity::Free,
                };
                arrived(OnRecord { timeout, features, ..OnRecord::of(told) }, capacity)
            }
            _ => Ok(Given::NotOnTheJournal),
        },
        Some(Fact::RecordSkipped(skipped)) if skipped.reason == "duplicate" => {
            let of_open = state.open(&key).map(|open| open.admitted.reply_nonce.as_deref());
            let record = match &skipped.told {
                // Another body than the one that is remembered.
                Some(told) if told.code == REQUEST_ID_REUSED => {
                    OnRecord { fingerprint: Some(""), ..OnRecord::of(told) }
                }
                Some(told) => OnRecord::of(told),
                // Nobody is told who asks again from the same place.
                None => OnRecord { reply_nonce: of_open.flatten(), ..OnRecord::default() },
            };
            arrived(record, Capacity::Free)
        }
        Some(Fact::CancelRequested(cancelled)) => {
            let cancel =
                Cancel { request_id: key.request, organization: key.organization, reason: cancelled.reason.clone() };
            Ok(Given::Cancel { source_offset, received_at, cancel })
        }
        _ => Err("its facts do not say what became of its record"),
    }
}

/// What a request wanted of the cache, by what became of that.
fn wanted_of(fact: &Fact, is_refused: bool) -> Option<Wanted<'static>> {
    let Fact::CacheLookedUp(looked_up) = fact else { return None };
    let CacheLookedUp { content, outcome, keeps, ttl_seconds, max_age_seconds, .. } = *looked_up;
    let directives =
        Directives { no_cache: outcome == CacheOutcome::Bypassed, no_store: !keeps, max_age_seconds, ttl_seconds };
    // Who shares a call had nothing at hand.
    let is_lost = matches!(outcome, CacheOutcome::Lost | CacheOutcome::Shared);
    // How much time its asker had is not known of a request that was refused.
    let is_shared = is_refused && outcome == CacheOutcome::Shared;
    Some(Wanted { content, directives, bodies: Bodies::Recorded { is_lost, is_shared } })
}

/// Whether the reason of a refusal is in what the journal does not hold.
fn is_from_the_record(refused: &RequestRefused, request: &RequestContext) -> bool {
    let nameless = refused.code == "model_not_found" && request.requested_model.is_none();
    nameless || FROM_THE_RECORD.contains(&refused.code.as_str())
}

/// What the journal holds of a chat record beside its context.
#[derive(Default)]
struct OnRecord<'a> {
    timeout: Option<Duration>,
    reply_partition: i32,
    reply_nonce: Option<&'a str>,
    include_usage: bool,
    fingerprint: Option<&'a str>,
    features: Features,
}

impl<'a> OnRecord<'a> {
    fn of(told: &'a Told) -> Self {
        let Told { reply_partition, reply_nonce, .. } = told;
        Self { reply_partition: *reply_partition, reply_nonce: reply_nonce.as_deref(), ..Self::default() }
    }

    fn chat(&self, organization: &OrganizationId, request: &RequestContext) -> Chat {
        Chat {
            request_id: request.request_id.clone(),
            organization: organization.clone(),
            lane: request.lane,
            key_id: request.key_id.clone(),
            user: request.user.clone(),
            user_tier: request.user_tier.clone(),
            tags: request.tags.clone(),
            conversation_id: request.conversation_id.clone(),
            model: request.requested_model.clone(),
            timeout_ms: self.timeout.and_then(|timeout| i64::try_from(timeout.as_millis()).ok()),
            reply_partition: Some(self.reply_partition),
            reply_nonce: self.reply_nonce.map(str::to_owned),
            origin: request.origin,
            traceparent: request.traceparent.clone(),
            content_type: "application/json".to_owned(),
            encryption_key_id: None,
            content_ref: None,
            cache_control: None,
            body: Bytes::new(),
        }
    }
}

/// What was decided on, when it was no record.
fn of_event<'a>(commit: &Commit, organization: &OrganizationId, request: &RequestContext) -> Option<Input<'a>> {
    let key = key_of(organization, &request.request_id);
    let calls_again = commit.facts.iter().any(|fact| matches!(fact, Fact::AttemptStarted(_)));
    Some(match (commit.input, commit.facts.first()?) {
        (InputKind::Provider, Fact::AttemptEnded(posting)) => Input::AttemptEnded(Box::new(AttemptReport {
            key,
            attempt: posting.attempt,
            called: posting.usage_source != UsageSource::None,
            end: end_of(posting)?,
            summary: Summary {
                usage: Some(posting.told_usage()),
                finish_reason: posting.finish_reason.clone(),
                ..Summary::default()
            },
            content_frames: posting.content_frames,
            simulated: posting.simulated,
            time_to_first_token_ms: posting.time_to_first_token_ms,
            duration_ms: posting.duration_ms.unwrap_or(0),
            body: None,
            shortfall: posting.shortfall.clone(),
            // Kept only where another tier was asked, and given only where that one failed.
            earlier: (is_completed(commit) && posting.outcome == Outcome::Failed).then(Bytes::new),
            kept_bytes: commit.facts.iter().find_map(|fact| match fact {
                Fact::CacheInserted(inserted) => Some(inserted.bytes),
                _ => None,
            }),
        })),
        (InputKind::Provider, Fact::AttemptProgressed(progressed)) => Input::AttemptProgressed(key, *progressed),
        (InputKind::Takeover, Fact::AttemptEnded(posting)) => {
            Input::TakenOver { key, has_body: calls_again, simulated: posting.simulated }
        }
        (InputKind::Takeover, Fact::OrphanPosted(orphan)) => Input::Orphaned(orphan.journal_offset),
        (InputKind::Timer, Fact::AttemptEnded(posting)) => Input::Overdue { key, simulated: posting.simulated },
        _ => return None,
    })
}

pub(crate) fn end_of(posting: &AttemptEnded) -> Option<AttemptEnd> {
    Some(match posting.outcome {
        Outcome::Completed => AttemptEnd::Completed,
        Outcome::Cancelled => AttemptEnd::Cancelled,
        Outcome::Failed => {
            let class = FailureClass::from_code(posting.error_code.as_deref()?)?;
            let upstream_status = posting.upstream_status;
            let retry_after = posting.retry_after_ms.map(Duration::from_millis);
            AttemptEnd::Failed(Failure { upstream_status, retry_after, ..Failure::new(class, "") })
        }
        Outcome::Refused | Outcome::Interrupted | Outcome::Unknown => return None,
    })
}

fn is_completed(commit: &Commit) -> bool {
    let completed =
        |fact: &Fact| matches!(fact, Fact::RequestSettled(settled) if settled.outcome == Outcome::Completed);
    commit.facts.iter().any(completed)
}

/// In what a decision differs first from what is recorded. `None`: in nothing.
pub fn difference(decision: &Decision, commit: &Commit) -> Option<String> {
    let at = |facts: &[Fact], index: usize| facts.get(index).map_or("nothing".to_owned(), |fact| format!("{fact:?}"));
    let most = decision.facts.len().max(commit.facts.len());
    if let Some(index) = (0..most).find(|index| decision.facts.get(*index) != commit.facts.get(*index)) {
        let (now, then) = (at(&decision.facts, index), at(&commit.facts, index));
        return Some(format!("fact {index} is decided as {now}; recorded is {then}"));
    }
    if decision.health != commit.health {
        return Some(format!("it goes by {:?}; recorded is {:?}", decision.health, commit.health));
    }
    if decision.request != commit.request || decision.organization != commit.organization {
        return Some(format!("its context is {:?}; recorded is {:?}", decision.request, commit.request));
    }
    None
}
