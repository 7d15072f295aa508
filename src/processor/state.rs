//! What a partition's owner knows: the fold of its journal.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{OrganizationId, PicoUsd, RequestId, RequestKey, Timestamp};
use crate::records::journal::{
    AttemptEnded, AttemptSource, AttemptStarted, CacheLookedUp, Candidate, Commit, Entry, Fact, InputKind,
    RecordSkipped, RequestAdmitted, RequestContext, RequestRefused, RequestRouted, RequestSettled, Told,
};
use crate::records::{Outcome, UsageSource};

use super::cache;
use super::inference;
use super::ledger::{Asker, Estimate, Ledger};
use super::memory::{Ended, Memory};

/// How long after its deadline an open request is given up: its call ends itself at the deadline, so this is for one
/// whose end was never told.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(30);

/// The state of one partition.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The partition's clock: the time of the latest commit.
    pub clock: Timestamp,
    /// Offset in `requests` of the last record decided: the resume point, and the de-duplication of redelivery.
    pub last_source_offset: Option<i64>,
    /// The highest control offset that a commit used.
    pub control_offset: Option<i64>,
    pub memory: Memory,
    pub ledger: Ledger,
    pub cache: cache::Index,
    open: HashMap<RequestKey, OpenRequest>,
    /// The open requests by deadline.
    deadlines: BTreeSet<(Timestamp, RequestKey)>,
    /// Ends of calls in commits that do not count, by the offset of the commit, until they are posted.
    orphans: BTreeMap<i64, Orphan>,
}

/// The end of a call that a former owner appended after it had lost the partition: the money is spent all the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Orphan {
    pub organization: OrganizationId,
    pub context: Arc<RequestContext>,
    pub posting: Box<AttemptEnded>,
}

/// A request that was admitted and is not settled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenRequest {
    pub context: Arc<RequestContext>,
    /// Where its body stands in `requests`.
    pub source_offset: i64,
    pub admitted: RequestAdmitted,
    pub routed: Arc<RequestRouted>,
    /// Index of the candidate that is being called.
    pub candidate: usize,
    pub attempt: u32,
    pub started: AttemptStarted,
    pub started_at: Timestamp,
    /// Cost of the attempts before; `None` once one of them is unknown.
    pub posted: Option<PicoUsd>,
    pub cancelled: bool,
    /// What the current attempt is known to have put out: content frames, and bytes of text.
    pub progress: Progress,
    /// Tokens of all attempts so far, input and output.
    pub used_tokens: u64,
    /// The former owner's end of the current attempt is posted already.
    pub is_posted_by_orphan: bool,
    /// How often the current candidate was called again.
    pub retries: u32,
    /// Whose answer fell short, so that the next tier was asked.
    pub escalated: Option<Candidate>,
    /// What was found of it in the cache.
    pub looked_up: Option<CacheLookedUp>,
    /// The first of its candidates is the one whose answer was found there.
    pub has_found_first: bool,
    /// Others that ask the same get the answer of its call.
    pub leads: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    pub content_frames: u32,
    pub text_bytes: u64,
}

impl OpenRequest {
    /// On whose accounts it is.
    pub fn asker<'a>(&'a self, key: &'a RequestKey) -> Asker<'a> {
        Asker { organization: &key.organization, key: self.context.key_id.as_ref() }
    }
}

impl State {
    /// The state of a checkpoint.
    pub fn restore(
        clock: Timestamp,
        last_source_offset: Option<i64>,
        control_offset: Option<i64>,
        (memory, ledger, cache): (Memory, Ledger, cache::Index),
        open: impl IntoIterator<Item = (RequestKey, OpenRequest)>,
    ) -> Self {
        let mut state = Self { clock, last_source_offset, control_offset, memory, ledger, cache, ..Self::default() };
        for (key, open) in open {
            match (&open.started, &open.looked_up) {
                (AttemptStarted { shared_with: Some(leader), .. }, _) => {
                    state.cache.follower_came(&key.organization, leader);
                }
                (_, Some(looked_up)) if open.leads => {
                    _ = state.cache.flight_began(&key.organization, looked_up.fingerprint, &key.request);
                }
                _ => {}
            }
            state.insert(key, open);
        }
        state
    }

    /// The cache is used, or an equal request's call, or a call is made that others may use.
    fn sourced(&mut self, key: &RequestKey) {
        let Some(open) = self.open.get_mut(key) else { return };
        let Some(looked_up) = &open.looked_up else { return };
        let (organization, fingerprint) = (&key.organization, looked_up.fingerprint);
        match (open.started.source, &open.started.shared_with) {
            (AttemptSource::Cache, _) => self.cache.hit(organization, fingerprint),
            (AttemptSource::Shared, Some(leader)) => self.cache.follower_came(organization, leader),
            (AttemptSource::Provider, _) if looked_up.keeps => {
                open.leads = self.cache.flight_began(organization, fingerprint, &key.request);
            }
            _ => {}
        }
    }

    /// An attempt is over: nobody gets its answer any more.
    fn unsourced(&mut self, key: &RequestKey) {
        let Some(open) = self.open.get_mut(key) else { return };
        if let Some(leader) = open.started.shared_with.take() {
            self.cache.follower_went(&key.organization, &leader);
        }
        if let Some(looked_up) = open.looked_up.as_ref().filter(|_| std::mem::take(&mut open.leads)) {
            self.cache.flight_ended(&key.organization, looked_up.fingerprint, &key.request);
        }
    }

    pub fn open(&self, key: &RequestKey) -> Option<&OpenRequest> {
        self.open.get(key)
    }

    pub fn open_requests(&self) -> impl Iterator<Item = (&RequestKey, &OpenRequest)> {
        self.open.iter()
    }

    /// How many requests of an organization are open.
    pub fn open_of(&self, organization: &OrganizationId) -> usize {
        self.ledger.books(organization).open() as usize
    }

    /// The open request that is the longest overdue at `now`, if one is.
    pub fn overdue(&self, now: Timestamp) -> Option<&RequestKey> {
        let (deadline, key) = self.deadlines.first()?;
        (deadline.plus(DEADLINE_GRACE) <= now).then_some(key)
    }

    /// What former owners spent and nobody has posted, by the offset of their commits.
    pub fn orphans(&self) -> impl Iterator<Item = (i64, &Orphan)> {
        self.orphans.iter().map(|(offset, orphan)| (*offset, orphan))
    }

    pub fn orphan(&self, journal_offset: i64) -> Option<&Orphan> {
        self.orphans.get(&journal_offset)
    }

    /// Forgets the end of a call that nobody made here: a replay's request went elsewhere.
    pub fn forget_orphan(&mut self, journal_offset: i64) {
        self.orphans.remove(&journal_offset);
    }

    fn insert(&mut self, key: RequestKey, open: OpenRequest) {
        self.deadlines.insert((open.admitted.deadline_at, key.clone()));
        let asker = open.asker(&key);
        self.ledger.opened(asker, &open.admitted.limits, &open.started.model, open.started.reservation.as_ref());
        self.open.insert(key, open);
    }

    fn close(&mut self, key: &RequestKey, at: Timestamp, settled: &RequestSettled, last: Option<&AttemptEnded>) {
        let Some(open) = self.open.remove(key) else { return };
        let asker = open.asker(key);
        self.ledger.closed(asker, &open.admitted.limits, open.used_tokens, at);
        self.deadlines.remove(&(open.admitted.deadline_at, key.clone()));
        let ended = Ended {
            key: key.clone(),
            at,
            reply_partition: open.admitted.reply_partition,
            reply_nonce: open.admitted.reply_nonce,
            attempt: open.attempt,
            content_frames: settled.content_frames,
            outcome: settled.outcome,
            status: settled.status,
            error_code: settled.error_code.clone(),
            usage: last.map(AttemptEnded::told_usage),
            cost_pico_usd: settled.cost_pico_usd,
            finish_reason: last.and_then(|posting| posting.finish_reason.clone()),
            original: None,
        };
        self.memory.settled(ended, open.context.received_at, open.admitted.body_fingerprint.as_deref());
    }
}

/// Folds an entry of the journal, of which [`Tenancy::accept`](crate::records::journal::Tenancy::accept) has said whether
/// it counts. Of a commit that does not count, the ends of calls are kept: they cost money.
pub fn fold(state: &mut State, offset: i64, entry: &Entry, effective: bool) {
    match entry {
        Entry::Commit(commit) if effective => evolve(state, commit),
        Entry::Commit(commit) if commit.input == InputKind::Provider => {
            let (Some(organization), Some(context)) = (&commit.organization, &commit.request) else { return };
            for fact in &commit.facts {
                if let Fact::AttemptEnded(posting) = fact {
                    let (organization, context, posting) = (organization.clone(), context.clone(), posting.clone());
                    state.orphans.insert(offset, Orphan { organization, context, posting });
                }
            }
        }
        // Nothing was called for the others.
        Entry::Commit(_) | Entry::OwnershipTaken(_) => {}
    }
}

/// Folds one effective commit into the state. Total: every fact that was written can be folded.
pub fn evolve(state: &mut State, commit: &Commit) {
    state.clock = state.clock.max(commit.at);
    state.control_offset = state.control_offset.max(Some(commit.control_offset));
    state.last_source_offset = state.last_source_offset.max(commit.source_offset);
    state.memory.forget(state.clock);
    state.ledger.rest(state.clock);
    let Some(organization) = &commit.organization else { return };
    let Some(context) = &commit.request else {
        return commit.facts.iter().for_each(|fact| evolve_cache(&mut state.cache, organization, fact, commit.at));
    };
    let key = key_of(organization, &context.request_id);
    let asker = Asker { organization, key: context.key_id.as_ref() };
    let mut routed: Option<&Arc<RequestRouted>> = None;
    let mut admitted: Option<&RequestAdmitted> = None;
    let mut looked_up: Option<&CacheLookedUp> = None;
    let mut last: Option<&AttemptEnded> = None;
    for fact in &commit.facts {
        match fact {
            Fact::RequestAdmitted(fact) => admitted = Some(fact),
            Fact::RequestRouted(fact) => {
                routed = Some(fact);
                // An open one is routed anew, to the next tier.
                if let Some(open) = state.open.get_mut(&key).filter(|_| admitted.is_none()) {
                    open.escalated = open.routed.candidates.get(open.candidate).cloned();
                    open.routed = fact.clone();
                    open.has_found_first = false;
                }
            }
            Fact::AttemptStarted(started) => match (admitted, routed, commit.source_offset) {
                (Some(admitted), Some(routed), Some(source_offset)) => {
                    let has_found_first = started.source.is_served();
                    let open = OpenRequest {
                        context: context.clone(),
                        source_offset,
                        admitted: admitted.clone(),
                        routed: routed.clone(),
                        candidate: candidate_of(routed, started, has_found_first),
                        attempt: started.attempt,
                        started: started.clone(),
                        started_at: commit.at,
                        posted: Some(PicoUsd::ZERO),
                        cancelled: false,
                        progress: Progress::default(),
                        used_tokens: 0,
                        is_posted_by_orphan: false,
                        retries: 0,
                        escalated: None,
                        looked_up: looked_up.cloned(),
                        has_found_first,
                        leads: false,
                    };
                    state.ledger.charged(asker, &admitted.limits, commit.at);
                    state.ledger.charged_for_model(asker, &started.model, started.limits.as_ref(), commit.at);
                    state.insert(key.clone(), open);
                    state.sourced(&key);
                }
                _ => {
                    if let Some(open) = state.open.get_mut(&key) {
                        let candidate = candidate_of(&open.routed, started, open.has_found_first);
                        let is_retry = candidate == open.candidate && routed.is_none();
                        open.retries = if is_retry { open.retries + 1 } else { 0 };
                        open.candidate = candidate;
                        open.attempt = started.attempt;
                        open.started = started.clone();
                        open.started_at = commit.at;
                        open.progress = Progress::default();
                        open.is_posted_by_orphan = false;
                        state.ledger.charged_for_model(asker, &started.model, started.limits.as_ref(), commit.at);
                        state.ledger.started(asker, &started.model, started.reservation.as_ref());
                        state.sourced(&key);
                    }
                }
            },
            Fact::CacheLookedUp(fact) => looked_up = Some(fact),
            Fact::CacheInserted(_) | Fact::CacheEvicted(_) | Fact::CachePurged(_) => {
                evolve_cache(&mut state.cache, organization, fact, commit.at);
            }
            Fact::AttemptProgressed(fact) => {
                if let Some(open) = state.open.get_mut(&key).filter(|open| open.attempt == fact.attempt) {
                    open.progress = Progress { content_frames: fact.content_frames, text_bytes: fact.text_bytes };
                }
            }
            Fact::AttemptEnded(posting) => {
                last = Some(posting);
                if state.open.get(&key).is_some_and(|open| open.attempt == posting.attempt) {
                    state.unsourced(&key);
                }
                let mut reserved = PicoUsd::ZERO;
                if let Some(open) = state.open.get_mut(&key).filter(|open| open.attempt == posting.attempt) {
                    open.posted = inference::sum(open.posted, posting.cost_pico_usd);
                    let used = tokens_of(posting);
                    open.used_tokens = open.used_tokens.saturating_add(used);
                    let held = (open.started.reservation.take(), open.started.limits.take());
                    reserved = held.0.as_ref().map_or(reserved, |reservation| reservation.amount_pico_usd);
                    let held = (held.0.as_ref(), held.1.as_ref());
                    state.ledger.ended(asker, &open.started.model, held, used, commit.at);
                }
                state.ledger.posted(asker, posting, commit.at);
                if let (Outcome::Interrupted, Some(cost), UsageSource::Estimated) =
                    (posting.outcome, posting.cost_pico_usd, posting.usage_source)
                {
                    let accounts = posting.booking.as_ref().map_or_else(Vec::new, |booking| booking.accounts.clone());
                    let (key, attempt) = (key.clone(), posting.attempt);
                    state.ledger.estimated(Estimate { key, attempt, cost, accounts, reserved });
                }
            }
            Fact::CancelRequested(_) => {
                if let Some(open) = state.open.get_mut(&key) {
                    open.cancelled = true;
                }
            }
            Fact::RequestSettled(settled) => state.close(&key, commit.at, settled, last),
            Fact::Overdrawn(_) | Fact::ThresholdCrossed(_) => {}
            Fact::OrphanPosted(orphan) => {
                state.orphans.remove(&orphan.journal_offset);
                let posting = &orphan.posting;
                state.ledger.posted(asker, posting, commit.at);
                if orphan.corrects_pico_usd.is_some() {
                    state.ledger.corrected(&key, posting.attempt);
                }
                if let Some(open) = state.open.get_mut(&key).filter(|open| open.attempt == posting.attempt) {
                    open.posted = inference::sum(open.posted, posting.cost_pico_usd);
                    open.used_tokens = open.used_tokens.saturating_add(tokens_of(posting));
                    open.is_posted_by_orphan = true;
                }
            }
            Fact::RequestRefused(RequestRefused { told, .. }) | Fact::RecordSkipped(RecordSkipped { told, .. }) => {
                if let Some(told) = told {
                    state.memory.told(ended_without_call(&key, commit.at, told));
                }
            }
        }
    }
}

fn evolve_cache(cache: &mut cache::Index, organization: &OrganizationId, fact: &Fact, at: Timestamp) {
    match fact {
        Fact::CacheInserted(inserted) => cache.inserted(organization, inserted, at),
        Fact::CacheEvicted(evicted) => evicted.fingerprints.iter().for_each(|one| cache.remove(organization, *one)),
        Fact::CachePurged(purged) => {
            let meant = cache.to_purge(organization, purged.model.as_ref(), purged.before);
            meant.into_iter().for_each(|one| cache.remove(organization, one));
        }
        _ => {}
    }
}

/// Input and output tokens of an attempt.
fn tokens_of(posting: &AttemptEnded) -> u64 {
    posting.usage.total_input().unwrap_or(0).saturating_add(posting.usage.output.unwrap_or(0))
}

pub fn key_of(organization: &OrganizationId, request: &RequestId) -> RequestKey {
    RequestKey { organization: organization.clone(), request: request.clone() }
}

fn ended_without_call(key: &RequestKey, at: Timestamp, told: &Told) -> Ended {
    Ended {
        key: key.clone(),
        at,
        reply_partition: told.reply_partition,
        reply_nonce: told.reply_nonce.clone(),
        attempt: 0,
        content_frames: 0,
        outcome: Outcome::Refused,
        status: told.status,
        error_code: Some(told.code.clone()),
        usage: None,
        cost_pico_usd: Some(PicoUsd::ZERO),
        finish_reason: None,
        original: told.original,
    }
}

/// The number of the candidate that is called; the first may be one that was found in the cache, and is not.
fn candidate_of(routed: &RequestRouted, started: &AttemptStarted, has_found_first: bool) -> usize {
    let skipped = usize::from(has_found_first && !started.source.is_served());
    let mut candidates = routed.candidates.iter().skip(skipped);
    let is_it = |c: &Candidate| c.model == started.model && c.deployment == started.deployment;
    candidates.position(is_it).map_or(0, |place| place + skipped)
}
