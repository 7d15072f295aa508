//! The upstreams: wire formats, each a pure translation, over one shared transport.

pub mod openai;
pub mod transport;

use std::time::Duration;

use bytes::Bytes;

pub use self::openai::CapName;
pub use self::transport::{Answer, AnswerStream, Transport, Whole};

use crate::config::Secret;
use crate::domain::{ModelName, RequestId, TokenUsage};

/// One provider call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Becomes the `id` of the answer: `chatcmpl-` and this.
    pub request_id: RequestId,
    /// Becomes the `model` of the answer.
    pub model: ModelName,
    pub upstream: Upstream,
    /// The client's request, byte for byte.
    pub body: Bytes,
    pub stream: bool,
    /// Whether the client asked for usage in its stream; it is asked of the provider in any case.
    pub include_usage: bool,
    /// The provider is told this cap of the tokens of each choice, or a lower one of the client's.
    pub output_cap: Option<u64>,
    /// What is left until the deadline.
    pub timeout: Duration,
    /// Of which trace the call is, as the provider is told.
    pub traceparent: Option<String>,
}

/// Where a call goes.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// OpenAI-compatible, for example `https://api.openai.com/v1`.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// What a cap of the answer's tokens is called there.
    pub cap_name: CapName,
    pub credential: Option<Secret>,
}

/// What is known of an answer at its end, whole or not.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// As the provider reported it.
    pub usage: Option<TokenUsage>,
    /// Of the first choice.
    pub finish_reason: Option<String>,
    /// Text that came, in bytes, for an estimate where usage was not reported.
    pub text_bytes: u64,
}

/// A call that gave no answer, or only part of one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{class}: {message}")]
pub struct Failure {
    pub class: FailureClass,
    pub upstream_status: Option<u16>,
    /// The provider's own words about a client's mistake, else ours; never content.
    pub message: String,
    /// The provider's `error.type`, `error.code` and `error.param`.
    pub upstream_type: Option<String>,
    pub upstream_code: Option<String>,
    pub upstream_param: Option<String>,
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure in our own words.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self {
            class,
            upstream_status: None,
            message: message.into(),
            upstream_type: None,
            upstream_code: None,
            upstream_param: None,
            retry_after: None,
        }
    }
}

/// Why a call failed; decides whether another deployment is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// No connection: the provider got nothing.
    Connect,
    /// No connection in time: the same.
    ConnectTimeout,
    /// No first token, no next token, or no end in time.
    FirstTokenTimeout,
    BetweenTokensTimeout,
    Deadline,
    /// 429.
    RateLimited,
    /// Our account with the provider has no money left or is at a limit of spending: waiting does not help.
    QuotaExhausted,
    /// The provider has no room for anybody: 503, 529, or an error that says so.
    Overloaded,
    /// 401, 403: our credential is wrong, or may not do this.
    Authentication,
    /// 404 and the like: our catalogue is wrong.
    Configuration,
    /// 400, 413, 422: the client's request is wrong.
    BadRequest,
    /// The request does not fit into the model's context.
    ContextTooLong,
    /// The provider's filter stopped the request, with an error or with a word in place of an answer. An answer that ends
    /// with the finish reason `content_filter` is none of these even when nothing is in it: the provider reported and
    /// billed it, OpenAI documents the reason as one of a good answer, and LiteLLM passes it on too (its issue 8953).
    ContentFilter,
    /// Other 5xx, a passing refusal (408, 409, 425), or a 200 that carries an error.
    Upstream,
    /// Not the format that it should be.
    Garbage,
    /// The stream ended in its middle.
    Cut,
    /// More bytes than the bound.
    TooLarge,
    /// There is no room for the answer among those of all calls.
    NoRoom,
}

impl FailureClass {
    pub const ALL: [Self; 18] = [
        Self::Connect,
        Self::ConnectTimeout,
        Self::FirstTokenTimeout,
        Self::BetweenTokensTimeout,
        Self::Deadline,
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::Overloaded,
        Self::Authentication,
        Self::Configuration,
        Self::BadRequest,
        Self::ContextTooLong,
        Self::ContentFilter,
        Self::Upstream,
        Self::Garbage,
        Self::Cut,
        Self::TooLarge,
        Self::NoRoom,
    ];

    /// Whether the provider did no work on the request: it got nothing, or refused it.
    pub const fn is_refusal(self) -> bool {
        match self {
            Self::Connect
            | Self::ConnectTimeout
            | Self::RateLimited
            | Self::QuotaExhausted
            | Self::Overloaded
            | Self::Authentication
            | Self::Configuration
            | Self::BadRequest
            | Self::ContextTooLong
            | Self::ContentFilter => true,
            Self::FirstTokenTimeout
            | Self::BetweenTokensTimeout
            | Self::Deadline
            | Self::Upstream
            | Self::Garbage
            | Self::Cut
            | Self::TooLarge
            | Self::NoRoom => false,
        }
    }

    /// The class that facts name so.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.code() == code)
    }

    /// As facts, metrics and errors name it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Connect => "upstream_unreachable",
            Self::ConnectTimeout => "upstream_connect_timeout",
            Self::FirstTokenTimeout => "upstream_first_token_timeout",
            Self::BetweenTokensTimeout => "upstream_stalled",
            Self::Deadline => "deadline_exceeded",
            Self::RateLimited => "upstream_rate_limited",
            Self::QuotaExhausted => "upstream_quota",
            Self::Overloaded => "upstream_overloaded",
            Self::Authentication => "upstream_authentication",
            Self::Configuration => "upstream_configuration",
            Self::BadRequest => "upstream_bad_request",
            Self::ContextTooLong => "upstream_context_too_long",
            Self::ContentFilter => "upstream_content_filter",
            Self::Upstream => "upstream_error",
            Self::Garbage => "upstream_garbage",
            Self::Cut => "upstream_cut",
            Self::TooLarge => "upstream_too_large",
            Self::NoRoom => "over_capacity",
        }
    }
}

impl std::fmt::Display for FailureClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}
