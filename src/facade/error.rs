//! Every way in which a request ends without its answer, and how HTTP says so: the one place that maps errors.
//!
//! The shape is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, as a plain response before content and as an
//! event of the stream after it. The processor's own errors come in that shape already, with their status.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;

use super::rate_limits;
use super::reassembly::Fault;
use crate::control::edit;
use crate::domain::{KeyId, OrganizationId, RequestId, Timestamp};
use crate::processor::refusal;
use crate::records::Outcome;
use crate::records::responses::{ApiError, Terminal};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// OpenAI's SDKs repeat a request after many errors, unless this says otherwise.
pub const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// When a refused client may come back, where nothing better is known.
const RETRY_MS: u64 = 1_000;
/// The code of an error that waiting does not help against: a budget is used up.
const INSUFFICIENT_QUOTA: &str = "insufficient_quota";
/// nginx's status for a request that its client ended; nobody reads it, but it is counted.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Why the facade itself refuses a request, or ends it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("you did not provide an API key; send it as `Authorization: Bearer YOUR_KEY`")]
    NoKey,
    #[error("the API key is not known")]
    UnknownKey,
    #[error("this is the hash of a key, not a key; send the key itself, as it was shown when it was made")]
    HashAsKey,
    #[error("the API key {key} is revoked; use another one")]
    KeyRevoked { key: KeyId },
    #[error("the API key {key} expired at {at}; use another one")]
    KeyExpired { key: KeyId, at: Timestamp },
    #[error(
        "the API key {key} lacks the scope {scope:?}, which this needs; use another key, or have the scope added to it"
    )]
    MissingScope { key: KeyId, scope: &'static str },
    #[error("too many wrong API keys came from this address; wait, and try again with the right one")]
    TooManyWrongKeys { wait_ms: u64 },
    #[error(
        "there is no admin key yet: start the process with TOLLSTREAM_ADMIN_KEY_SHA256 in its environment or .env, or make a key with `tollstream keys create --scope admin`"
    )]
    NoAdminKey,
    #[error(transparent)]
    Edit(edit::Refusal),
    #[error("{0}")]
    VersionMismatch(edit::Refusal),
    #[error("control cannot be changed or read now: {detail}")]
    ControlUnavailable { detail: String },
    #[error("the journal cannot be read now: {detail}")]
    JournalUnreadable { detail: String },
    #[error("usage cannot be told now: {detail}")]
    UsageUnavailable { detail: String },
    #[error("an API key does not belong into a URL, where it is logged on the way; send it as `Authorization: Bearer`")]
    KeyInQuery,
    #[error(
        "this key covers several organizations; name one in the header x-tollstream-organization or in metadata.organization_id"
    )]
    OrganizationRequired,
    #[error("the header x-tollstream-organization and metadata.organization_id name different organizations")]
    OrganizationConflict,
    #[error("this API key does not cover organization {organization:?}")]
    OrganizationNotCovered { organization: String },
    #[error("organization {organization} is not active")]
    OrganizationInactive { organization: OrganizationId },
    #[error("the body is larger than {max} bytes")]
    BodyTooLarge { max: usize },
    #[error("the body could not be read to its end")]
    BodyUnreadable,
    #[error("the body did not come within {seconds} seconds")]
    BodyTimeout { seconds: u64 },
    #[error("the body is not valid JSON: {detail}")]
    InvalidJson { detail: String },
    #[error("you must provide a {param} parameter")]
    Missing { param: &'static str },
    #[error("invalid value for {param}: {problem}")]
    InvalidField { param: &'static str, problem: String },
    #[error("invalid header {name}: {problem}")]
    InvalidHeader { name: &'static str, problem: String },
    #[error("the model {model:?} does not exist or you do not have access to it")]
    UnknownModel { model: String },
    #[error("unknown URL; see /openapi.json for what there is")]
    UnknownUrl,
    #[error("this URL does not take this method; see /openapi.json")]
    Method,
    #[error("a request with the id {id} is under way")]
    Duplicate { id: RequestId },
    #[error("too much is under way; try again later")]
    Overloaded,
    #[error("the gateway is not ready: {missing}")]
    NotReady { missing: &'static str },
    #[error("the gateway is shutting down; try again")]
    Stopping,
    #[error("the request could not be recorded; try again")]
    NotAcknowledged,
    #[error("no answer came before the request's deadline")]
    Deadline,
    #[error(
        "this Idempotency-Key was used with another body; give every request a key of its own, and repeat it only to ask the same again"
    )]
    KeyReused,
    #[error("the answer, or a part of it that you have not got, is no longer kept; ask anew")]
    AnswerExpired,
    #[error(
        "send the id of the last event that you have as the header Last-Event-ID; who has none asks again with the same Idempotency-Key"
    )]
    NoEventId,
    #[error("this request has no such event")]
    UnknownEvent,
    #[error("what was answered cannot be read now; try again")]
    AnswersUnreadable,
    #[error(transparent)]
    Answer(#[from] Fault),
    #[error("the gateway failed to handle this request")]
    Internal,
}

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NoKey
            | Self::UnknownKey
            | Self::HashAsKey
            | Self::KeyRevoked { .. }
            | Self::KeyExpired { .. }
            | Self::NoAdminKey
            | Self::KeyInQuery => StatusCode::UNAUTHORIZED,
            Self::OrganizationNotCovered { .. } | Self::OrganizationInactive { .. } | Self::MissingScope { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::TooManyWrongKeys { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::VersionMismatch(_) => StatusCode::PRECONDITION_FAILED,
            Self::Edit(edit::Refusal::NotFound { .. }) => StatusCode::NOT_FOUND,
            Self::Edit(edit::Refusal::Invalid { .. }) => StatusCode::BAD_REQUEST,
            Self::Edit(edit::Refusal::Exists { .. } | edit::Refusal::Conflict { .. } | edit::Refusal::InUse { .. }) => {
                StatusCode::CONFLICT
            }
            Self::ControlUnavailable { .. } | Self::JournalUnreadable { .. } | Self::UsageUnavailable { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::OrganizationRequired
            | Self::OrganizationConflict
            | Self::BodyUnreadable
            | Self::InvalidJson { .. }
            | Self::Missing { .. }
            | Self::InvalidField { .. }
            | Self::InvalidHeader { .. }
            | Self::NoEventId => StatusCode::BAD_REQUEST,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnknownModel { .. } | Self::UnknownUrl | Self::UnknownEvent => StatusCode::NOT_FOUND,
            Self::AnswerExpired => StatusCode::GONE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Duplicate { .. } | Self::KeyReused => StatusCode::CONFLICT,
            Self::Overloaded
            | Self::NotReady { .. }
            | Self::Stopping
            | Self::NotAcknowledged
            | Self::AnswersUnreadable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Self::Answer(_) => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::NoKey | Self::UnknownKey | Self::HashAsKey | Self::KeyInQuery => "invalid_api_key",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::KeyExpired { .. } => "key_expired",
            Self::NoAdminKey => "no_admin_key",
            Self::MissingScope { .. } => "insufficient_scope",
            Self::TooManyWrongKeys { .. } => "too_many_wrong_keys",
            Self::VersionMismatch(_) => "version_mismatch",
            Self::Edit(edit::Refusal::NotFound { .. }) => "not_found",
            Self::Edit(edit::Refusal::Invalid { .. }) => "invalid_value",
            Self::Edit(edit::Refusal::Exists { .. }) => "already_exists",
            Self::Edit(edit::Refusal::Conflict { .. }) => "version_conflict",
            Self::Edit(edit::Refusal::InUse { .. }) => "in_use",
            Self::ControlUnavailable { .. } => "control_unavailable",
            Self::JournalUnreadable { .. } => "journal_unreadable",
            Self::UsageUnavailable { .. } => "usage_unavailable",
            Self::OrganizationRequired => "organization_required",
            Self::OrganizationConflict => "organization_conflict",
            Self::OrganizationNotCovered { .. } => "organization_not_covered",
            Self::OrganizationInactive { .. } => "organization_inactive",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyUnreadable => "body_unreadable",
            Self::BodyTimeout { .. } => "body_timeout",
            Self::InvalidJson { .. } => "invalid_json",
            Self::Missing { .. } => "missing_required_parameter",
            Self::InvalidField { .. } => "invalid_value",
            Self::InvalidHeader { .. } => "invalid_header",
            Self::UnknownModel { .. } => "model_not_found",
            Self::UnknownUrl => "unknown_url",
            Self::Method => "method_not_allowed",
            Self::Duplicate { .. } => "duplicate_request_id",
            Self::Overloaded => "overloaded",
            Self::NotReady { .. } => "not_ready",
            Self::Stopping => "shutting_down",
            Self::NotAcknowledged => "not_acknowledged",
            Self::Deadline => "deadline_exceeded",
            Self::KeyReused => "idempotency_key_reused",
            Self::AnswerExpired => "answer_expired",
            Self::NoEventId => "missing_last_event_id",
            Self::UnknownEvent => "event_not_found",
            Self::AnswersUnreadable => "answers_unreadable",
            Self::Answer(fault) => fault.code(),
            Self::Internal => "internal_error",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Missing { param } | Self::InvalidField { param, .. } => Some(param),
            Self::InvalidHeader { name, .. } => Some(name),
            Self::Edit(edit::Refusal::Invalid { problems, .. }) => {
                problems.first().map(|problem| problem.at.as_str()).filter(|at| !at.is_empty())
            }
            Self::VersionMismatch(_) => Some("If-Match"),
            Self::NoEventId => Some("Last-Event-ID"),
            Self::KeyReused => Some("Idempotency-Key"),
            Self::UnknownModel { .. } => Some("model"),
            Self::OrganizationRequired | Self::OrganizationConflict | Self::OrganizationNotCovered { .. } => {
                Some("metadata.organization_id")
            }
            _ => None,
        }
    }
}

impl From<&Refusal> for ApiError {
    fn from(refusal: &Refusal) -> Self {
        let status = refusal.status();
        let r#type = match status {
            StatusCode::FORBIDDEN => "permission_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        Self {
            status: status.as_u16(),
            r#type: r#type.to_owned(),
            code: refusal.code().to_owned(),
            message: refusal.to_string(),
            param: refusal.param().map(str::to_owned),
            retry_after_ms: match refusal {
                Refusal::TooManyWrongKeys { wait_ms } => Some(*wait_ms),
                _ => (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_MS),
            },
            rate_limits: None,
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::from(&refusal)
    }
}

/// The error of a terminal whose answer is not whole; one without an error of its own is named by its outcome. Who asked
/// with an `Idempotency-Key` knows nothing of the request's id, which comes from it; and when a repeat would get the same
/// error (`is_final`), there is no use in asking it to repeat the request.
pub fn of_terminal(terminal: Terminal, idempotent: bool, is_final: bool) -> ApiError {
    let outcome = terminal.outcome;
    if idempotent && terminal.error.as_ref().is_some_and(|error| error.code == refusal::REQUEST_ID_REUSED) {
        return Refusal::KeyReused.into();
    }
    let mut error = terminal.error.unwrap_or_else(|| {
        let (status, code) = match outcome {
            Outcome::Cancelled => (CLIENT_CLOSED_REQUEST, "request_cancelled"),
            Outcome::Interrupted => (502, "answer_interrupted"),
            Outcome::Refused => (403, "request_refused"),
            Outcome::Unknown | Outcome::Completed | Outcome::Failed => (500, "internal_error"),
        };
        ApiError {
            status,
            r#type: "server_error".to_owned(),
            code: code.to_owned(),
            message: format!("the request ended without an answer: {}", outcome.as_str()),
            param: None,
            retry_after_ms: None,
            rate_limits: None,
        }
    });
    if is_final && (error.status >= 500 || error.status == 429) {
        error.retry_after_ms = None;
        error.message.push_str("; this is the answer of its Idempotency-Key: to ask anew, use another one");
    }
    error
}

/// The refusal of a model name that cannot exist.
pub fn unknown_model(model: &str) -> Refusal {
    // Whatever a client sends comes back to it, but not megabytes of it.
    let model = model.chars().take(crate::domain::ids::ID_BYTES_MAX).collect();
    Refusal::UnknownModel { model }
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Shape<'a>,
}

#[derive(Serialize)]
struct Shape<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

/// The error as JSON, in OpenAI's shape.
pub fn json(error: &ApiError) -> Vec<u8> {
    let shape =
        Shape { message: &error.message, r#type: &error.r#type, param: error.param.as_deref(), code: &error.code };
    // Writing strings into memory cannot fail; an empty body would still have its status.
    serde_json::to_vec(&Envelope { error: shape }).unwrap_or_default()
}

/// The error as a plain HTTP response.
pub fn response(error: &ApiError, request_id: &RequestId) -> Response {
    let status = StatusCode::from_u16(error.status).ok().filter(|s| s.is_client_error() || s.is_server_error());
    let mut response = Response::new(Body::from(json(error)));
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_REQUEST_ID, value(request_id.as_str()));
    if let Some(ms) = error.retry_after_ms {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
    }
    if let Some(limits) = &error.rate_limits {
        rate_limits::insert(headers, limits);
    }
    if error.code == INSUFFICIENT_QUOTA {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    response
}

/// The error as the last event of a stream.
pub fn event(error: &ApiError) -> Bytes {
    let mut event = Vec::with_capacity(256);
    event.extend_from_slice(b"data: ");
    // serde_json escapes line breaks, so this is one line.
    event.extend_from_slice(&json(error));
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// A header's value; ours are made of identifiers and numbers, which are always valid.
pub fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::responses::{RateLimit, RateLimits};

    #[test]
    fn a_refusal_has_openais_shape() {
        let error = ApiError::from(Refusal::Missing { param: "model" });
        assert_eq!(error.status, 400);
        assert_eq!(
            String::from_utf8(json(&error)).unwrap(),
            r#"{"error":{"message":"you must provide a model parameter","type":"invalid_request_error","param":"model","code":"missing_required_parameter"}}"#
        );
    }

    #[test]
    fn an_overload_says_when_to_come_back() {
        let response = response(&Refusal::Overloaded.into(), &RequestId::parse("r1").unwrap());
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["retry-after-ms"], "1000");
        assert_eq!(response.headers()["x-request-id"], "r1");
    }

    #[test]
    fn who_is_over_a_limit_hears_how_much_is_left_and_who_is_over_a_budget_need_not_try_again() {
        let requests = Some(RateLimit { limit: 60, remaining: 0, reset_ms: 1_000 });
        let mut error = ApiError {
            status: 429,
            code: "rate_limit_exceeded".into(),
            retry_after_ms: Some(12),
            rate_limits: Some(Box::new(RateLimits { requests, tokens: None })),
            ..Refusal::Internal.into()
        };
        let headers = |error: &ApiError| response(error, &RequestId::parse("r1").unwrap()).headers().clone();
        let limited = headers(&error);
        assert_eq!(limited["x-ratelimit-remaining-requests"], "0");
        assert_eq!(limited["x-ratelimit-reset-requests"], "1s");
        assert_eq!(
            (&limited["retry-after"], &limited["retry-after-ms"]),
            (&"1".parse().unwrap(), &"12".parse().unwrap())
        );
        assert!(!limited.contains_key(SHOULD_RETRY));
        error.code = "insufficient_quota".into();
        assert_eq!(headers(&error)[SHOULD_RETRY], "false");
    }

    #[test]
    fn a_terminals_status_that_is_no_error_becomes_500() {
        let mut error = ApiError::from(Refusal::Internal);
        for status in [0, 99, 200, 302, 1000] {
            error.status = status;
            assert_eq!(response(&error, &RequestId::parse("r1").unwrap()).status(), 500, "{status}");
        }
    }
}
