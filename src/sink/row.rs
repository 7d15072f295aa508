//! A row of the table `usage`: the usage record, flat, as ClickHouse takes it.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::Serialize;

use crate::records::UsageSource;
use crate::records::usage::{PostingKind, UsageRecord};

/// Borrows everything from its record. The fields are the columns of `schemas/clickhouse/0001_usage.sql`.
#[derive(Debug, Clone, PartialEq, Row, Serialize)]
pub struct UsageRow<'a> {
    pub journal_partition: i32,
    pub journal_offset: i64,
    pub journal_index: i32,
    pub kind: &'static str,
    /// Milliseconds since 1970, as `DateTime64(3)` has them.
    pub at: i64,
    pub received_at: i64,
    pub organization: &'a str,
    pub request_id: &'a str,
    pub attempt: u32,
    pub lane: i32,
    pub key_id: Option<&'a str>,
    pub user: Option<&'a str>,
    pub user_tier: Option<&'a str>,
    pub tags: &'a BTreeMap<String, String>,
    pub conversation_id: Option<&'a str>,
    pub origin: &'static str,
    pub traceparent: Option<&'a str>,
    pub stream: bool,
    pub requested_model: Option<&'a str>,
    pub model: Option<&'a str>,
    pub deployment: Option<&'a str>,
    pub provider: Option<&'a str>,
    pub tier: Option<u8>,
    pub policy: Option<&'a str>,
    pub policy_version: Option<i64>,
    pub arm: Option<&'a str>,
    pub control_offset: i64,
    pub price_version: Option<i64>,
    pub price_simulated: bool,
    pub simulated: bool,
    pub input_tokens: Option<u64>,
    pub cached_input_tokens: Option<u64>,
    pub cache_write_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub reasoning_tokens: Option<u64>,
    pub usage_source: &'static str,
    /// Pico-dollars, which are the units of `Decimal(38, 12)` dollars.
    pub cost_usd: Option<i128>,
    pub outcome: &'static str,
    pub request_outcome: Option<&'static str>,
    pub status: Option<u16>,
    pub error_code: Option<&'a str>,
    pub upstream_status: Option<u16>,
    pub finish_reason: Option<&'a str>,
    pub content_frames: u32,
    pub time_to_first_token_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    pub request_duration_ms: Option<u64>,
}

impl<'a> From<&'a UsageRecord> for UsageRow<'a> {
    fn from(record: &'a UsageRecord) -> Self {
        Self {
            journal_partition: record.journal_partition,
            journal_offset: record.journal_offset,
            journal_index: record.journal_index,
            kind: match record.kind {
                PostingKind::Unknown => "unknown",
                PostingKind::Attempt => "attempt",
                PostingKind::Refusal => "refusal",
                PostingKind::Orphan => "orphan",
            },
            at: record.at.as_millis(),
            received_at: record.received_at.as_millis(),
            organization: record.organization.as_str(),
            request_id: record.request_id.as_str(),
            attempt: record.attempt,
            lane: record.lane,
            key_id: record.key_id.as_ref().map(|id| id.as_str()),
            user: record.user.as_ref().map(|id| id.as_str()),
            user_tier: record.user_tier.as_deref(),
            tags: &record.tags,
            conversation_id: record.conversation_id.as_ref().map(|id| id.as_str()),
            origin: record.origin.as_str(),
            traceparent: record.traceparent.as_deref(),
            stream: record.stream,
            requested_model: record.requested_model.as_ref().map(|name| name.as_str()),
            model: record.model.as_ref().map(|name| name.as_str()),
            deployment: record.deployment.as_ref().map(|id| id.as_str()),
            provider: record.provider.as_deref(),
            tier: record.tier,
            policy: record.policy.as_ref().map(|name| name.as_str()),
            policy_version: record.policy_version,
            arm: record.arm.as_deref(),
            control_offset: record.control_offset,
            price_version: record.price_version,
            price_simulated: record.price_simulated,
            simulated: record.simulated,
            input_tokens: record.usage.input,
            cached_input_tokens: record.usage.cached_input,
            cache_write_tokens: record.usage.cache_write,
            output_tokens: record.usage.output,
            reasoning_tokens: record.usage.reasoning,
            usage_source: match record.usage_source {
                UsageSource::Unknown => "unknown",
                UsageSource::Reported => "reported",
                UsageSource::Estimated => "estimated",
                UsageSource::None => "none",
            },
            cost_usd: record.cost_pico_usd.map(|cost| cost.get()),
            outcome: record.outcome.as_str(),
            request_outcome: record.request_outcome.map(|outcome| outcome.as_str()),
            status: record.status,
            error_code: record.error_code.as_deref(),
            upstream_status: record.upstream_status,
            finish_reason: record.finish_reason.as_deref(),
            content_frames: record.content_frames,
            time_to_first_token_ms: record.time_to_first_token_ms,
            duration_ms: record.duration_ms,
            request_duration_ms: record.request_duration_ms,
        }
    }
}
