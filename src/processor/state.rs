//! What a partition's owner knows: the fold of its journal.

use std::collections::HashMap;

use crate::domain::{OrganizationId, PicoUsd, RequestId, RequestKey, Timestamp};
use crate::records::journal::{AttemptStarted, Commit, Fact, RequestAdmitted, RequestContext, RequestRouted};

use super::inference;

/// The state of one partition.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The partition's clock: the time of the latest commit.
    pub clock: Timestamp,
    /// Offset in `requests` of the last record decided: the resume point, and the de-duplication of redelivery.
    pub last_source_offset: Option<i64>,
    /// The highest control offset that a commit used.
    pub control_offset: Option<i64>,
    open: HashMap<RequestKey, OpenRequest>,
    open_of: HashMap<OrganizationId, usize>,
}

/// A request that was admitted and is not settled.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRequest {
    pub context: RequestContext,
    /// Where its body stands in `requests`.
    pub source_offset: i64,
    pub admitted: RequestAdmitted,
    pub routed: RequestRouted,
    /// Index of the candidate that is being called.
    pub candidate: usize,
    pub attempt: u32,
    pub started: AttemptStarted,
    pub started_at: Timestamp,
    /// Cost of the attempts before; `None` once one of them is unknown.
    pub posted: Option<PicoUsd>,
    pub cancelled: bool,
}

impl State {
    pub fn open(&self, key: &RequestKey) -> Option<&OpenRequest> {
        self.open.get(key)
    }

    pub fn open_requests(&self) -> impl Iterator<Item = (&RequestKey, &OpenRequest)> {
        self.open.iter()
    }

    /// How many requests of an organization are open.
    pub fn open_of(&self, organization: &OrganizationId) -> usize {
        self.open_of.get(organization).copied().unwrap_or(0)
    }

    fn close(&mut self, key: &RequestKey) {
        if self.open.remove(key).is_none() {
            return;
        }
        if let Some(count) = self.open_of.get_mut(&key.organization) {
            *count -= 1;
            if *count == 0 {
                self.open_of.remove(&key.organization);
            }
        }
    }
}

/// Folds one effective commit into the state. Total: every fact that was written can be folded.
pub fn evolve(state: &mut State, commit: &Commit) {
    state.clock = state.clock.max(commit.at);
    state.control_offset = state.control_offset.max(Some(commit.control_offset));
    state.last_source_offset = state.last_source_offset.max(commit.source_offset);
    let (Some(organization), Some(context)) = (&commit.organization, &commit.request) else { return };
    let key = key_of(organization, &context.request_id);
    let mut routed: Option<&RequestRouted> = None;
    let mut admitted: Option<&RequestAdmitted> = None;
    for fact in &commit.facts {
        match fact {
            Fact::RequestAdmitted(fact) => admitted = Some(fact),
            Fact::RequestRouted(fact) => routed = Some(fact),
            Fact::AttemptStarted(started) => match (admitted, routed, commit.source_offset) {
                (Some(admitted), Some(routed), Some(source_offset)) => {
                    let open = OpenRequest {
                        context: context.clone(),
                        source_offset,
                        admitted: admitted.clone(),
                        routed: routed.clone(),
                        candidate: candidate_of(routed, started),
                        attempt: started.attempt,
                        started: started.clone(),
                        started_at: commit.at,
                        posted: Some(PicoUsd::ZERO),
                        cancelled: false,
                    };
                    if state.open.insert(key.clone(), open).is_none() {
                        *state.open_of.entry(organization.clone()).or_default() += 1;
                    }
                }
                _ => {
                    if let Some(open) = state.open.get_mut(&key) {
                        open.candidate = candidate_of(&open.routed, started);
                        open.attempt = started.attempt;
                        open.started = started.clone();
                        open.started_at = commit.at;
                    }
                }
            },
            Fact::AttemptEnded(posting) => {
                if let Some(open) = state.open.get_mut(&key) {
                    open.posted = inference::sum(open.posted, posting.cost_pico_usd);
                }
            }
            Fact::CancelRequested(_) => {
                if let Some(open) = state.open.get_mut(&key) {
                    open.cancelled = true;
                }
            }
            Fact::RequestSettled(_) => state.close(&key),
            Fact::RequestRefused(_) | Fact::RecordSkipped(_) => {}
        }
    }
}

pub fn key_of(organization: &OrganizationId, request: &RequestId) -> RequestKey {
    RequestKey { organization: organization.clone(), request: request.clone() }
}

fn candidate_of(routed: &RequestRouted, started: &AttemptStarted) -> usize {
    routed.candidates.iter().position(|c| c.deployment == started.deployment).unwrap_or(0)
}
