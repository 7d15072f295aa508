//! `usage`: one record per posting, projected from the journal. Key: organization. No content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::journal::{AttemptSource, Saved};
use super::{Origin, Outcome, Record, Topic, UsageSource};
use crate::domain::{
    ConversationId, DeploymentId, KeyId, ModelName, OrganizationId, PicoUsd, PolicyName, RequestId, Timestamp,
    TokenUsage, UserId,
};

/// What a posting is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PostingKind {
    /// A provider call.
    Attempt,
    /// A request that was never admitted; costs nothing.
    Refusal,
    /// A provider call whose end was decided by an owner that had lost the partition.
    Orphan,
    /// An answer that nobody was called for; costs nothing.
    Served,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One posting; `(journal_partition, journal_offset, journal_index)` identifies it, and a repeat is identical.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageRecord {
    pub journal_partition: i32,
    pub journal_offset: i64,
    pub journal_index: i32,
    pub kind: PostingKind,
    pub at: Timestamp,
    pub received_at: Timestamp,
    pub organization: OrganizationId,
    pub request_id: RequestId,
    pub attempt: u32,
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
    pub origin: Origin,
    #[serde(default)]
    pub traceparent: Option<String>,
    #[serde(default)]
    pub stream: bool,
    #[serde(default)]
    pub requested_model: Option<ModelName>,
    #[serde(default)]
    pub model: Option<ModelName>,
    #[serde(default)]
    pub deployment: Option<DeploymentId>,
    #[serde(default)]
    pub provider: Option<String>,
    #[serde(default)]
    pub tier: Option<u8>,
    #[serde(default)]
    pub policy: Option<PolicyName>,
    #[serde(default)]
    pub policy_version: Option<i64>,
    #[serde(default)]
    pub arm: Option<String>,
    pub control_offset: i64,
    #[serde(default)]
    pub price_version: Option<i64>,
    #[serde(default)]
    pub price_simulated: bool,
    #[serde(default)]
    pub simulated: bool,
    pub usage: TokenUsage,
    pub usage_source: UsageSource,
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
    pub outcome: Outcome,
    #[serde(default)]
    pub request_outcome: Option<Outcome>,
    #[serde(default)]
    pub status: Option<u16>,
    #[serde(default)]
    pub error_code: Option<String>,
    #[serde(default)]
    pub upstream_status: Option<u16>,
    #[serde(default)]
    pub finish_reason: Option<String>,
    #[serde(default)]
    pub content_frames: u32,
    #[serde(default)]
    pub time_to_first_token_ms: Option<u64>,
    #[serde(default)]
    pub duration_ms: Option<u64>,
    #[serde(default)]
    pub request_duration_ms: Option<u64>,
    #[serde(default)]
    pub source: AttemptSource,
    #[serde(default)]
    pub saved: Option<Saved>,
}

impl Record for UsageRecord {
    const TOPIC: Topic = Topic::Usage;
}
