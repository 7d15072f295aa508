//! `journal`: commits, the only authority on state and money. Key: organization. No content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::responses::Original;
use super::{EnvelopeError, Origin, Outcome, Record, Topic, UsageSource};
use crate::domain::{
    ConversationId, DeploymentId, KeyId, ModelName, OrganizationId, PicoUsd, PolicyName, RequestId, Timestamp,
    TokenUsage, UserId,
};

/// The envelope as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalRecord {
    pub kind: String,
    #[serde(default)]
    pub ownership_taken: Option<OwnershipTaken>,
    #[serde(default)]
    pub commit: Option<CommitRecord>,
}

/// Begins a tenure, whose id is the offset of this record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnershipTaken {
    pub owner: String,
    pub at: Timestamp,
    pub version: String,
}

/// A commit as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    tenure: i64,
    sequence: i64,
    input: InputKind,
    #[serde(default)]
    source_offset: Option<i64>,
    at: Timestamp,
    control_offset: i64,
    #[serde(default)]
    organization: Option<OrganizationId>,
    #[serde(default)]
    request: Option<RequestContext>,
    facts: Vec<FactRecord>,
}

/// What a decision was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InputKind {
    Record,
    Provider,
    Timer,
    Takeover,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One whole decision about one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub tenure: i64,
    /// From 0 in each tenure.
    pub sequence: i64,
    pub input: InputKind,
    /// Of the record in `requests`, when the input is one.
    pub source_offset: Option<i64>,
    pub at: Timestamp,
    pub control_offset: i64,
    pub organization: Option<OrganizationId>,
    pub request: Option<RequestContext>,
    pub facts: Vec<Fact>,
}

/// What every posting of a request can be reported by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestContext {
    pub request_id: RequestId,
    #[serde(default)]
    pub lane: i32,
    #[serde(default)]
    pub key_id: Option<KeyId>,
    #[serde(default)]
    pub user: Option<UserId>,
    #[serde(default)]
    pub user_tier: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub conversation_id: Option<ConversationId>,
    #[serde(default)]
    pub requested_model: Option<ModelName>,
    #[serde(default)]
    pub tier: Option<u8>,
    #[serde(default)]
    pub policy: Option<PolicyName>,
    #[serde(default)]
    pub policy_version: Option<i64>,
    #[serde(default)]
    pub arm: Option<String>,
    #[serde(default)]
    pub origin: Origin,
    #[serde(default)]
    pub traceparent: Option<String>,
    /// The request record's own time.
    pub received_at: Timestamp,
    #[serde(default)]
    pub stream: bool,
}

/// A fact of a commit, in the past tense.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    RequestAdmitted(RequestAdmitted),
    RequestRefused(RequestRefused),
    RequestRouted(RequestRouted),
    AttemptStarted(AttemptStarted),
    AttemptEnded(Box<AttemptEnded>),
    RequestSettled(RequestSettled),
    CancelRequested(CancelRequested),
    RecordSkipped(RecordSkipped),
    AttemptProgressed(AttemptProgressed),
    OrphanPosted(OrphanPosted),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestAdmitted {
    pub deadline_at: Timestamp,
    pub reply_partition: i32,
    #[serde(default)]
    pub reply_nonce: Option<String>,
    #[serde(default)]
    pub include_usage: bool,
    pub features: Features,
    /// Keyed hash of the body.
    #[serde(default)]
    pub body_fingerprint: Option<String>,
}

/// Of the content, without it; enough to decide again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features {
    pub body_bytes: u64,
    pub messages: u32,
    pub text_bytes: u64,
    #[serde(default)]
    pub tools: u32,
    #[serde(default)]
    pub images: u32,
    #[serde(default = "one")]
    pub choices: u32,
    #[serde(default)]
    pub output_cap: Option<u64>,
}

fn one() -> u32 {
    1
}

/// Terminal of a request that was never admitted; costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRefused {
    pub code: String,
    pub status: u16,
    #[serde(default)]
    pub told: Option<Told>,
}

/// What the asker of a request without a call is told, so that the next owner can tell it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub reply_partition: i32,
    #[serde(default)]
    pub reply_nonce: Option<String>,
    pub status: u16,
    pub code: String,
    /// Of a repeat: where the first one's answer stands.
    #[serde(default)]
    pub original: Option<Original>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRouted {
    /// In the order in which they are tried.
    pub candidates: Vec<Candidate>,
    pub max_attempts: u32,
    pub reasons: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub tier: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptStarted {
    pub attempt: u32,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    /// Control offset of the model, whose prices apply.
    pub price_version: i64,
}

/// A posting: what one provider call used and cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptEnded {
    pub attempt: u32,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    pub tier: u8,
    /// A simulator answered instead of the provider.
    #[serde(default)]
    pub simulated: bool,
    pub outcome: Outcome,
    #[serde(default)]
    pub error_code: Option<String>,
    #[serde(default)]
    pub upstream_status: Option<u16>,
    #[serde(default)]
    pub finish_reason: Option<String>,
    pub content_frames: u32,
    #[serde(default)]
    pub time_to_first_token_ms: Option<u64>,
    #[serde(default)]
    pub duration_ms: Option<u64>,
    pub usage: TokenUsage,
    pub usage_source: UsageSource,
    pub price_version: i64,
    /// The price is an assumption, not a published one.
    #[serde(default)]
    pub price_simulated: bool,
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
}

/// Terminal of an admitted request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestSettled {
    pub outcome: Outcome,
    #[serde(default)]
    pub error_code: Option<String>,
    pub status: u16,
    pub attempts: u32,
    pub content_frames: u32,
    /// Of all attempts; `None` when one of them is unknown.
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
    #[serde(default)]
    pub time_to_first_token_ms: Option<u64>,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequested {
    pub reason: String,
    /// Whether there was something to cancel.
    pub open: bool,
}

/// A record that led to nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSkipped {
    pub reason: String,
    #[serde(default)]
    pub told: Option<Told>,
}

/// What a call under way has put out so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptProgressed {
    pub attempt: u32,
    pub content_frames: u32,
    /// Of the answer's text.
    pub text_bytes: u64,
}

/// A posting: money of a commit that does not count, because its owner had lost the partition when it was appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrphanPosted {
    /// Of that commit.
    pub journal_offset: i64,
    pub posting: Box<AttemptEnded>,
}

/// What is on the journal, without the envelope.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all entries are commits; a box would cost each an allocation")]
pub enum Entry {
    OwnershipTaken(OwnershipTaken),
    Commit(Commit),
}

/// A fact as it is on the wire.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct FactRecord {
    kind: String,
    #[serde(default)]
    request_admitted: Option<RequestAdmitted>,
    #[serde(default)]
    request_refused: Option<RequestRefused>,
    #[serde(default)]
    request_routed: Option<RequestRouted>,
    #[serde(default)]
    attempt_started: Option<AttemptStarted>,
    #[serde(default)]
    attempt_ended: Option<Box<AttemptEnded>>,
    #[serde(default)]
    request_settled: Option<RequestSettled>,
    #[serde(default)]
    cancel_requested: Option<CancelRequested>,
    #[serde(default)]
    record_skipped: Option<RecordSkipped>,
    #[serde(default)]
    attempt_progressed: Option<AttemptProgressed>,
    #[serde(default)]
    orphan_posted: Option<OrphanPosted>,
}

const FACT_KINDS: &str = "request_admitted, request_refused, request_routed, attempt_started, attempt_ended, \
                          request_settled, cancel_requested, record_skipped, attempt_progressed, orphan_posted";

impl Record for JournalRecord {
    const TOPIC: Topic = Topic::Journal;
}

impl From<Fact> for FactRecord {
    fn from(fact: Fact) -> Self {
        let empty = |kind: &str| Self { kind: kind.to_owned(), ..Self::default() };
        match fact {
            Fact::RequestAdmitted(f) => Self { request_admitted: Some(f), ..empty("request_admitted") },
            Fact::RequestRefused(f) => Self { request_refused: Some(f), ..empty("request_refused") },
            Fact::RequestRouted(f) => Self { request_routed: Some(f), ..empty("request_routed") },
            Fact::AttemptStarted(f) => Self { attempt_started: Some(f), ..empty("attempt_started") },
            Fact::AttemptEnded(f) => Self { attempt_ended: Some(f), ..empty("attempt_ended") },
            Fact::RequestSettled(f) => Self { request_settled: Some(f), ..empty("request_settled") },
            Fact::CancelRequested(f) => Self { cancel_requested: Some(f), ..empty("cancel_requested") },
            Fact::RecordSkipped(f) => Self { record_skipped: Some(f), ..empty("record_skipped") },
            Fact::AttemptProgressed(f) => Self { attempt_progressed: Some(f), ..empty("attempt_progressed") },
            Fact::OrphanPosted(f) => Self { orphan_posted: Some(f), ..empty("orphan_posted") },
        }
    }
}

impl TryFrom<FactRecord> for Fact {
    type Error = EnvelopeError;

    fn try_from(record: FactRecord) -> Result<Self, EnvelopeError> {
        let fact = match record.kind.as_str() {
            "request_admitted" => record.request_admitted.map(Self::RequestAdmitted),
            "request_refused" => record.request_refused.map(Self::RequestRefused),
            "request_routed" => record.request_routed.map(Self::RequestRouted),
            "attempt_started" => record.attempt_started.map(Self::AttemptStarted),
            "attempt_ended" => record.attempt_ended.map(Self::AttemptEnded),
            "request_settled" => record.request_settled.map(Self::RequestSettled),
            "cancel_requested" => record.cancel_requested.map(Self::CancelRequested),
            "record_skipped" => record.record_skipped.map(Self::RecordSkipped),
            "attempt_progressed" => record.attempt_progressed.map(Self::AttemptProgressed),
            "orphan_posted" => record.orphan_posted.map(Self::OrphanPosted),
            _ => return Err(EnvelopeError::UnknownKind { kind: record.kind, known: FACT_KINDS }),
        };
        fact.ok_or(EnvelopeError::Missing { kind: record.kind })
    }
}

impl From<Entry> for JournalRecord {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::OwnershipTaken(taken) => {
                Self { kind: "ownership_taken".to_owned(), ownership_taken: Some(taken), commit: None }
            }
            Entry::Commit(c) => {
                let facts = c.facts.into_iter().map(FactRecord::from).collect();
                let commit = CommitRecord {
                    tenure: c.tenure,
                    sequence: c.sequence,
                    input: c.input,
                    source_offset: c.source_offset,
                    at: c.at,
                    control_offset: c.control_offset,
                    organization: c.organization,
                    request: c.request,
                    facts,
                };
                Self { kind: "commit".to_owned(), ownership_taken: None, commit: Some(commit) }
            }
        }
    }
}

impl TryFrom<JournalRecord> for Entry {
    type Error = EnvelopeError;

    fn try_from(record: JournalRecord) -> Result<Self, EnvelopeError> {
        let missing = || EnvelopeError::Missing { kind: record.kind.clone() };
        match record.kind.as_str() {
            "ownership_taken" => record.ownership_taken.map(Self::OwnershipTaken).ok_or_else(missing),
            "commit" => {
                let c = record.commit.ok_or_else(missing)?;
                Ok(Self::Commit(Commit {
                    tenure: c.tenure,
                    sequence: c.sequence,
                    input: c.input,
                    source_offset: c.source_offset,
                    at: c.at,
                    control_offset: c.control_offset,
                    organization: c.organization,
                    request: c.request,
                    facts: c.facts.into_iter().map(Fact::try_from).collect::<Result<_, _>>()?,
                }))
            }
            _ => Err(EnvelopeError::UnknownKind { kind: record.kind, known: "ownership_taken, commit" }),
        }
    }
}

/// The one rule of which entries count, used by every reader of a partition of the journal: a commit is effective only
/// with the latest tenure before it and the next sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenancy {
    /// Offset of the latest `OwnershipTaken`; `None` before the first.
    pub tenure: Option<i64>,
    /// The sequence that the next effective commit carries.
    pub next_sequence: i64,
}

impl Tenancy {
    pub const VACANT: Self = Self { tenure: None, next_sequence: 0 };

    /// Takes the entry at `offset`; says whether it is an effective commit.
    pub fn accept(&mut self, offset: i64, entry: &Entry) -> bool {
        match entry {
            Entry::OwnershipTaken(_) => {
                *self = Self { tenure: Some(offset), next_sequence: 0 };
                false
            }
            Entry::Commit(commit) => {
                let effective = self.tenure == Some(commit.tenure) && self.next_sequence == commit.sequence;
                self.next_sequence += i64::from(effective);
                effective
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> Entry {
        Entry::OwnershipTaken(OwnershipTaken { owner: "a".into(), at: Timestamp::from_millis(0), version: "0".into() })
    }

    fn commit(tenure: i64, sequence: i64) -> Entry {
        Entry::Commit(Commit {
            tenure,
            sequence,
            input: InputKind::Record,
            source_offset: Some(0),
            at: Timestamp::from_millis(0),
            control_offset: -1,
            organization: None,
            request: None,
            facts: vec![Fact::RecordSkipped(RecordSkipped { reason: "undecodable".into(), told: None })],
        })
    }

    #[test]
    fn only_the_latest_tenure_and_the_next_sequence_count() {
        let log = [
            (commit(0, 0), false), // nobody owns yet
            (taken(), false),      // tenure 1
            (commit(1, 0), true),
            (commit(1, 2), false), // a gap
            (commit(1, 1), true),
            (commit(1, 1), false), // a repeat
            (taken(), false),      // tenure 6
            (commit(1, 2), false), // the former owner, too late
            (commit(6, 0), true),
        ];
        let mut tenancy = Tenancy::VACANT;
        for (offset, (entry, effective)) in log.iter().enumerate() {
            assert_eq!(tenancy.accept(offset as i64, entry), *effective, "offset {offset}");
        }
        assert_eq!(tenancy, Tenancy { tenure: Some(6), next_sequence: 1 });
    }

    #[test]
    fn an_unknown_fact_is_an_error_that_names_it() {
        let mut record = JournalRecord::from(commit(1, 0));
        if let Some(commit) = &mut record.commit {
            commit.facts[0].kind = "budget_reserved".into();
        }
        let error = Entry::try_from(record).unwrap_err();
        assert!(error.to_string().contains("budget_reserved"), "{error}");
    }
}
