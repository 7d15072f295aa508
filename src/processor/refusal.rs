//! Errors that askers see, in OpenAI's shape; each code once.

use std::time::Duration;

use super::limits::{Exceeded, What};
use crate::domain::{PicoUsd, Timestamp};
use crate::provider::{Failure, FailureClass};
use crate::records::journal::LimitScope;
use crate::records::responses::ApiError;

/// The status of a request that its asker gave up (nginx's 499: there is no registered one).
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Most characters of a message: some repeat what the asker sent.
const MESSAGE_CHARS_MAX: usize = 1_000;

/// Why a request is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub error: ApiError,
    /// The limit or budget that did not suffice, such as `organization.requests_per_minute`.
    pub limit: Option<String>,
}

impl From<ApiError> for Box<Refusal> {
    fn from(error: ApiError) -> Self {
        Self::new(Refusal { error, limit: None })
    }
}

fn error(status: u16, kind: &str, code: &str, message: impl Into<String>) -> ApiError {
    ApiError {
        status,
        r#type: kind.to_owned(),
        code: code.to_owned(),
        message: message.into().chars().take(MESSAGE_CHARS_MAX).collect(),
        param: None,
        retry_after_ms: None,
        rate_limits: None,
    }
}

pub fn invalid_request(message: impl Into<String>) -> ApiError {
    error(400, "invalid_request_error", "invalid_request", message)
}

pub fn model_missing() -> ApiError {
    let refusal = invalid_request("the request names no model; give \"model\" in the body");
    ApiError { code: "missing_model".into(), param: Some("model".into()), ..refusal }
}

pub fn model_not_found(model: &str) -> ApiError {
    let message = format!("the model {model:?} does not exist; GET /v1/models lists those that do");
    ApiError { param: Some("model".into()), ..error(404, "invalid_request_error", "model_not_found", message) }
}

pub fn no_price(model: &str) -> ApiError {
    let message = format!("no deployment of {model:?} has a price in force; a call without a price is not made");
    error(503, "server_error", "price_unknown", message)
}

pub fn too_large(bytes: usize, most: usize) -> ApiError {
    error(413, "invalid_request_error", "request_too_large", format!("the body has {bytes} bytes; the most is {most}"))
}

pub fn unsupported(what: &str) -> ApiError {
    error(400, "invalid_request_error", "unsupported", format!("{what} is not supported by this version"))
}

pub fn too_late() -> ApiError {
    error(504, "server_error", "deadline_exceeded", "the deadline had passed before the request could be decided")
}

pub fn unknown_organization(organization: &str) -> ApiError {
    let message = format!("organization {organization:?} does not exist or is not active");
    error(403, "invalid_request_error", "organization_not_found", message)
}

pub fn key_not_found(key: &str) -> ApiError {
    let message = format!("the key {key:?} does not exist; if it was made just now, ask again in a second");
    error(401, "invalid_request_error", "invalid_api_key", message)
}

pub fn key_revoked(key: &str) -> ApiError {
    error(401, "invalid_request_error", "key_revoked", format!("the key {key:?} is revoked; use another one"))
}

pub fn key_expired(key: &str, at: Timestamp) -> ApiError {
    error(401, "invalid_request_error", "key_expired", format!("the key {key:?} expired at {at}; use another one"))
}

/// The gateway's capacity, or the organization's share of it, is in use.
pub fn over_capacity(share: bool) -> ApiError {
    let refusal = match share {
        true => error(
            429,
            "rate_limit_error",
            "organization_share_exceeded",
            "too many requests of this organization are open",
        ),
        false => error(503, "server_error", "over_capacity", "the gateway is at its capacity"),
    };
    ApiError { retry_after_ms: Some(1_000), ..refusal }
}

/// A limit is used up.
pub fn limited(exceeded: &Exceeded) -> Box<Refusal> {
    let whose = match exceeded.scope {
        LimitScope::Key => "this key",
        LimitScope::Model => "this model",
        LimitScope::Organization | LimitScope::Unknown => "this organization",
    };
    let (what, kind) = match exceeded.what {
        What::Requests => ("requests per minute", "requests"),
        What::Tokens => ("tokens per minute", "tokens"),
        What::Concurrent => ("requests at a time", "requests"),
    };
    let limit = exceeded.limit;
    let message = match exceeded.never {
        true => format!("the request is larger than the limit of {limit} {what} of {whose}; it can never be admitted"),
        false => format!("the limit of {limit} {what} of {whose} is reached"),
    };
    let retry_after_ms = exceeded.retry_after_ms;
    let error = ApiError { retry_after_ms, ..error(429, kind, "rate_limit_exceeded", message) };
    Box::new(Refusal { error, limit: Some(exceeded.name()) })
}

/// The code of [`no_budget`].
pub const INSUFFICIENT_QUOTA: &str = "insufficient_quota";

/// The worst case of a request does not fit into what is left of a budget.
pub fn no_budget(who: &str, account: &str, period: &str, wanted: PicoUsd, left: PicoUsd) -> Box<Refusal> {
    let message = format!(
        "the budget of {account} {who} for this {period} does not suffice: the request may cost {wanted} USD, and {left} USD \
         are left; ask for fewer output tokens, or have the budget raised"
    );
    let error = error(429, INSUFFICIENT_QUOTA, INSUFFICIENT_QUOTA, message);
    Box::new(Refusal { error, limit: Some(format!("{account}.{period}")) })
}

/// The plan that the organization names is not there.
pub fn plan_missing(organization: &str) -> ApiError {
    let message = format!(
        "the plan of organization {organization:?} does not exist any more; its operator has to give it another"
    );
    error(403, "invalid_request_error", "plan_missing", message)
}

/// The plan does not have the model.
pub fn model_not_allowed(model: &str) -> ApiError {
    let message =
        format!("the plan of this organization does not allow the model {model:?}; GET /v1/models lists those it does");
    ApiError { param: Some("model".into()), ..error(403, "invalid_request_error", "model_not_allowed", message) }
}

/// No model that may answer has what the request needs.
pub fn not_capable(model: &str, need: &str) -> ApiError {
    let message =
        format!("no model that {model:?} may choose for this organization is capable of {need}; name one that is");
    ApiError { param: Some("model".into()), ..error(400, "invalid_request_error", "no_capable_model", message) }
}

/// The input fits into the context of no model that may answer.
pub fn context_length(tokens: u64, window: u64) -> ApiError {
    let message = format!(
        "the messages are about {tokens} tokens, and the largest context of a model that may answer is {window}; send fewer"
    );
    ApiError {
        param: Some("messages".into()),
        ..error(400, "invalid_request_error", "context_length_exceeded", message)
    }
}

/// A request that was asked before; its answer is being given, or was.
pub fn duplicate(open: bool) -> ApiError {
    let message = match open {
        true => "a request with this id is being answered already",
        false => "a request with this id was answered already",
    };
    error(409, "invalid_request_error", "duplicate_request_id", message)
}

/// The code of [`other_body`].
pub const REQUEST_ID_REUSED: &str = "request_id_reused";

pub fn other_body() -> ApiError {
    let message = "a request with this id was asked before with another body; give every request an id of its own";
    error(409, "invalid_request_error", REQUEST_ID_REUSED, message)
}

pub fn deadline() -> ApiError {
    error(504, "server_error", "deadline_exceeded", "the deadline passed before the request was answered")
}

/// What is left of the error of a request that a former owner settled.
pub fn ended_before(status: u16, code: Option<&str>) -> ApiError {
    let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
    error(
        status,
        kind,
        code.unwrap_or("failed"),
        "the request has ended; the details went with the worker that knew them",
    )
}

pub fn cancelled() -> ApiError {
    error(CLIENT_CLOSED_REQUEST, "invalid_request_error", "cancelled", "the request was cancelled")
}

pub fn interrupted() -> ApiError {
    let message = "the gateway's worker was replaced while it answered; send the request again";
    ApiError { retry_after_ms: Some(0), ..error(503, "server_error", "interrupted", message) }
}

/// What the asker sees of a provider's failure.
pub fn upstream(failure: &Failure) -> ApiError {
    let (status, kind) = match failure.class {
        FailureClass::BadRequest | FailureClass::ContextTooLong | FailureClass::ContentFilter => {
            (400, "invalid_request_error")
        }
        FailureClass::RateLimited => (429, "rate_limit_error"),
        FailureClass::FirstTokenTimeout | FailureClass::BetweenTokensTimeout | FailureClass::Deadline => {
            (504, "server_error")
        }
        FailureClass::NoRoom | FailureClass::Overloaded => (503, "server_error"),
        FailureClass::Connect
        | FailureClass::ConnectTimeout
        | FailureClass::QuotaExhausted
        | FailureClass::Authentication
        | FailureClass::Configuration
        | FailureClass::Upstream
        | FailureClass::Garbage
        | FailureClass::Cut
        | FailureClass::TooLarge => (502, "server_error"),
    };
    let mut refusal = error(status, kind, failure.class.code(), failure.message.clone());
    // In OpenAI's words, whatever the provider's are.
    let code = match failure.class {
        FailureClass::BadRequest => failure.upstream_code.clone(),
        FailureClass::ContextTooLong => Some("context_length_exceeded".to_owned()),
        FailureClass::ContentFilter => Some("content_filter".to_owned()),
        _ => None,
    };
    if let Some(code) = code {
        refusal.code = code;
    }
    if refusal.status == 400 {
        refusal.param = failure.upstream_param.clone();
    }
    refusal.retry_after_ms =
        failure.retry_after.map(|after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    refusal
}
