//! What became of a request, beside what would have become of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{DeploymentId, KeyId, ModelName, OrganizationId, PicoUsd, PolicyName, RequestId, Timestamp};
use crate::processor::inference::sum;
use crate::records::Outcome;
use crate::records::journal::{AttemptStarted, Fact, RequestContext, RequestRouted};

/// One request of a replay: as it was, and as the candidate would have had it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub candidate_name: Arc<str>,
    pub partition: i32,
    /// Of the commit that decided its record.
    pub journal_offset: i64,
    /// Of its record on `requests`.
    pub source_offset: Option<i64>,
    /// When it was decided.
    pub at: Timestamp,
    pub organization: OrganizationId,
    pub request_id: RequestId,
    pub key_id: Option<KeyId>,
    pub user_tier: Option<String>,
    pub requested_model: Option<ModelName>,
    pub policy: Option<PolicyName>,
    pub recorded: Half,
    pub candidate: Half,
    /// What the candidate would have cost at the least and at the most; both are its cost where nothing was estimated.
    /// `None` where its cost is not known.
    pub cost_low: Option<PicoUsd>,
    pub cost_high: Option<PicoUsd>,
    /// Whether an outcome of the candidate is estimated: nobody made that call.
    pub estimated: bool,
    /// In what the two differ; empty: in nothing.
    pub changes: Vec<Change>,
}

/// In what a candidate differs from what is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was refused and would be admitted.
    Admitted,
    /// It was admitted and would be refused.
    Refused,
    /// It is refused for another reason.
    Refusal,
    Tier,
    Model,
    Deployment,
    Attempts,
    Outcome,
    Cost,
}

impl Change {
    pub const ALL: [Self; 9] = [
        Self::Admitted,
        Self::Refused,
        Self::Refusal,
        Self::Tier,
        Self::Model,
        Self::Deployment,
        Self::Attempts,
        Self::Outcome,
        Self::Cost,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::Refusal => "refusal",
            Self::Tier => "tier",
            Self::Model => "model",
            Self::Deployment => "deployment",
            Self::Attempts => "attempts",
            Self::Outcome => "outcome",
            Self::Cost => "cost",
        }
    }
}

/// One of the two courses of a request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Half {
    /// `None`: it had not ended where the log ends.
    pub outcome: Option<Outcome>,
    pub status: Option<u16>,
    pub error_code: Option<String>,
    pub intent: Option<String>,
    /// Of the attempt that was made last, as the model and the deployment are; `None`: no call was made.
    pub tier: Option<u8>,
    pub model: Option<ModelName>,
    pub deployment: Option<DeploymentId>,
    pub attempts: u32,
    /// Of all attempts; `None`: not known.
    pub cost: Option<PicoUsd>,
    /// Of the last attempt.
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub time_to_first_token_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    pub reasons: Vec<String>,
    #[serde(skip)]
    pub(super) routed: Option<Arc<RequestRouted>>,
}

impl Half {
    pub(super) fn new() -> Self {
        Self { cost: Some(PicoUsd::ZERO), ..Self::default() }
    }

    /// Takes the facts of its next commit.
    pub(super) fn take(&mut self, facts: &[Fact]) {
        for fact in facts {
            match fact {
                Fact::RequestRefused(refused) => {
                    self.outcome = Some(Outcome::Refused);
                    self.status = Some(refused.status);
                    self.error_code = Some(refused.code.clone());
                }
                Fact::RequestRouted(routed) => {
                    self.routed = Some(routed.clone());
                    self.reasons.extend(routed.reasons.iter().cloned());
                    let intent = routed.tiering.as_ref().and_then(|tiering| tiering.intent.clone());
                    self.intent = intent.or_else(|| self.intent.take());
                }
                Fact::AttemptStarted(started) => self.started(started),
                Fact::AttemptEnded(posting) => {
                    self.cost = sum(self.cost, posting.cost_pico_usd);
                    self.input_tokens = posting.usage.total_input();
                    self.output_tokens = posting.usage.output;
                }
                Fact::OrphanPosted(orphan) => self.cost = sum(self.cost, orphan.posting.cost_pico_usd),
                Fact::RequestSettled(settled) => {
                    self.outcome = Some(settled.outcome);
                    self.status = Some(settled.status);
                    self.error_code.clone_from(&settled.error_code);
                    self.time_to_first_token_ms = settled.time_to_first_token_ms;
                    self.duration_ms = Some(settled.duration_ms);
                }
                // Asked before, as far as this course goes: nothing is called.
                Fact::RecordSkipped(skipped) => {
                    self.outcome = Some(Outcome::Refused);
                    self.status = skipped.told.as_ref().map(|told| told.status);
                    self.error_code = Some(skipped.told.as_ref().map_or(&skipped.reason, |told| &told.code).clone());
                }
                Fact::RequestAdmitted(_)
                | Fact::CancelRequested(_)
                | Fact::AttemptProgressed(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::CachePurged(_) => {}
            }
        }
    }

    fn started(&mut self, started: &AttemptStarted) {
        let candidates = self.routed.iter().flat_map(|routed| &routed.candidates);
        let is_called = |of: &&crate::records::journal::Candidate| of.deployment == started.deployment;
        self.tier = candidates.filter(|of| of.model == started.model).find(is_called).map(|of| of.tier);
        self.model = Some(started.model.clone());
        self.deployment = Some(started.deployment.clone());
        self.attempts = started.attempt;
    }

    pub fn is_refused(&self) -> bool {
        self.outcome == Some(Outcome::Refused)
    }
}

impl Row {
    pub(super) fn new(
        candidate_name: Arc<str>,
        (partition, journal_offset): (i32, i64),
        (source_offset, at): (Option<i64>, Timestamp),
        organization: &OrganizationId,
        request: &RequestContext,
    ) -> Self {
        Self {
            candidate_name,
            partition,
            journal_offset,
            source_offset,
            at,
            organization: organization.clone(),
            request_id: request.request_id.clone(),
            key_id: request.key_id.clone(),
            user_tier: request.user_tier.clone(),
            requested_model: request.requested_model.clone(),
            policy: request.policy.clone(),
            recorded: Half::new(),
            candidate: Half::new(),
            cost_low: Some(PicoUsd::ZERO),
            cost_high: Some(PicoUsd::ZERO),
            estimated: false,
            changes: Vec::new(),
        }
    }

    /// Says in what the two differ, once both are over.
    pub(super) fn compare(&mut self) {
        let (was, is) = (&self.recorded, &self.candidate);
        let differs = |change: Change| match change {
            Change::Admitted => was.is_refused() && !is.is_refused(),
            Change::Refused => !was.is_refused() && is.is_refused(),
            Change::Refusal => was.is_refused() && is.is_refused() && was.error_code != is.error_code,
            _ if was.is_refused() || is.is_refused() => false,
            Change::Tier => was.tier != is.tier,
            Change::Model => was.model != is.model,
            Change::Deployment => was.deployment != is.deployment,
            Change::Attempts => was.attempts != is.attempts,
            Change::Outcome => was.outcome != is.outcome || was.status != is.status,
            Change::Cost => was.cost != is.cost,
        };
        self.changes = Change::ALL.into_iter().filter(|change| differs(*change)).collect();
        if self.candidate.cost.is_none() {
            (self.cost_low, self.cost_high) = (None, None);
        }
    }
}
