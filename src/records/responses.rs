//! `responses`: the frames of answers. Key: request id; on the partition that the asker named.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::journal::CacheOutcome;
use super::{EnvelopeError, Outcome, Record, Topic};
use crate::domain::{DeploymentId, ModelName, OrganizationId, PicoUsd, RequestId, Timestamp, TokenUsage};

/// The envelope as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseRecord {
    pub kind: String,
    pub organization: OrganizationId,
    pub request_id: RequestId,
    #[serde(default)]
    pub nonce: Option<String>,
    pub tenure: i64,
    pub attempt: u32,
    pub sequence: u32,
    pub at: Timestamp,
    #[serde(default)]
    pub content: Option<Content>,
    #[serde(default)]
    pub terminal: Option<Box<Terminal>>,
}

/// Whose frame it is, and its place in the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub organization: OrganizationId,
    pub request_id: RequestId,
    pub nonce: Option<String>,
    pub tenure: i64,
    pub attempt: u32,
    pub sequence: u32,
    pub at: Timestamp,
    pub body: FrameBody,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FrameBody {
    Content(Content),
    Terminal(Box<Terminal>),
}

/// Some chunks of a streamed answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Set in the first frame of an attempt.
    #[serde(default)]
    pub head: Option<Head>,
    /// `chat.completion.chunk` objects in JSON, in order.
    pub events: Vec<Bytes>,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub tier: u8,
    /// `None`: nothing is limited.
    #[serde(default)]
    pub rate_limits: Option<Box<RateLimits>>,
    /// `None`: the cache was not looked into.
    #[serde(default)]
    pub cache: Option<CacheOutcome>,
}

/// What is left of a minute's limits, with this request taken out. Of several scopes the one with the least left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RateLimits {
    #[serde(default)]
    pub requests: Option<RateLimit>,
    #[serde(default)]
    pub tokens: Option<RateLimit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Per minute.
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset_ms: u64,
}

/// How the request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Terminal {
    pub outcome: Outcome,
    #[serde(default)]
    pub head: Option<Head>,
    /// The whole `chat.completion` object of an answer that is not streamed.
    #[serde(default)]
    pub body: Option<Bytes>,
    #[serde(default)]
    pub usage: Option<TokenUsage>,
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
    /// What it would have cost, had somebody been called for it.
    #[serde(default)]
    pub saved_pico_usd: Option<PicoUsd>,
    #[serde(default)]
    pub finish_reason: Option<String>,
    #[serde(default)]
    pub error: Option<ApiError>,
    /// Set when the request is a repeat.
    #[serde(default)]
    pub original: Option<Original>,
}

impl Terminal {
    /// A terminal that says nothing but this.
    pub const fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            head: None,
            body: None,
            usage: None,
            cost_pico_usd: None,
            saved_pico_usd: None,
            finish_reason: None,
            error: None,
            original: None,
        }
    }
}

/// Where the answer to the first of several equal requests stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Of `responses`.
    pub partition: i32,
    /// Its frames are not older than this.
    pub since: Timestamp,
    /// It is still being answered.
    pub open: bool,
}

/// An error in OpenAI's shape, with the HTTP status that fits it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    pub status: u16,
    pub r#type: String,
    pub code: String,
    pub message: String,
    #[serde(default)]
    pub param: Option<String>,
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// Of a request that was refused for what was left of them.
    #[serde(default)]
    pub rate_limits: Option<Box<RateLimits>>,
}

impl Record for ResponseRecord {
    const TOPIC: Topic = Topic::Responses;
}

impl From<Frame> for ResponseRecord {
    fn from(frame: Frame) -> Self {
        let (kind, content, terminal) = match frame.body {
            FrameBody::Content(content) => ("content", Some(content), None),
            FrameBody::Terminal(terminal) => ("terminal", None, Some(terminal)),
        };
        Self {
            kind: kind.to_owned(),
            organization: frame.organization,
            request_id: frame.request_id,
            nonce: frame.nonce,
            tenure: frame.tenure,
            attempt: frame.attempt,
            sequence: frame.sequence,
            at: frame.at,
            content,
            terminal,
        }
    }
}

impl TryFrom<ResponseRecord> for Frame {
    type Error = EnvelopeError;

    fn try_from(record: ResponseRecord) -> Result<Self, EnvelopeError> {
        let body = match record.kind.as_str() {
            "content" => record.content.map(FrameBody::Content),
            "terminal" => record.terminal.map(FrameBody::Terminal),
            _ => return Err(EnvelopeError::UnknownKind { kind: record.kind, known: "content, terminal" }),
        };
        let body = body.ok_or(EnvelopeError::Missing { kind: record.kind })?;
        Ok(Self {
            organization: record.organization,
            request_id: record.request_id,
            nonce: record.nonce,
            tenure: record.tenure,
            attempt: record.attempt,
            sequence: record.sequence,
            at: record.at,
            body,
        })
    }
}
