//! A provider's error answer as a [`Failure`].

use std::time::Duration;

use serde_json::Value;

use crate::domain::Timestamp;
use crate::provider::{Failure, FailureClass};

/// Most characters of the provider's words that are kept.
const WORDS_MAX: usize = 1_000;
/// Most characters of its type, code and parameter that are kept.
const NAME_MAX: usize = 200;
/// Longest wait that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What an error answer says beside its body.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrorHeaders<'a> {
    pub retry_after: Option<&'a str>,
    /// OpenAI's and Azure's, finer than `retry-after`.
    pub retry_after_ms: Option<&'a str>,
}

/// The failure that a status other than 2xx stands for; `now` serves the date form of `retry-after`.
pub fn from_status(status: u16, headers: ErrorHeaders<'_>, body: &[u8], now: Timestamp) -> Failure {
    let mut failure = Failure::new(class_of(status), format!("the provider answered with status {status}"));
    failure.upstream_status = Some(status);
    let words = serde_json::from_slice(body).ok().and_then(|answer: Value| fill(&mut failure, &answer));
    let ms = headers.retry_after_ms.and_then(|value| value.trim().parse::<f64>().ok()).map(|ms| ms / 1_000.0);
    let ms = ms.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(|wait| wait.min(RETRY_AFTER_MAX));
    let header = ms.or_else(|| headers.retry_after.and_then(|value| wait(value.trim(), now)));
    failure.retry_after = header.or(failure.retry_after);
    if let (true, Some(words)) = (is_the_clients(failure.class), words) {
        failure.message = words;
    }
    failure
}

/// The failure inside an answer with status 200: an `error` member that says something.
pub fn from_body(answer: &str) -> Option<Failure> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let error = answer.get(0).unwrap_or(&answer).get("error")?;
    if matches!(error, Value::Null | Value::Bool(false)) {
        return None;
    }
    let mut failure = Failure::new(FailureClass::Upstream, "the provider answered with status 200 and an error");
    failure.upstream_status = Some(200);
    fill(&mut failure, &answer);
    // Whether that was the client's mistake is the provider's word alone, so its words are not passed on.
    if failure.class == FailureClass::BadRequest {
        failure.class = FailureClass::Upstream;
    }
    Some(failure)
}

/// Whether the provider's words are for the client to read: they are about what it sent.
const fn is_the_clients(class: FailureClass) -> bool {
    matches!(class, FailureClass::BadRequest | FailureClass::ContextTooLong | FailureClass::ContentFilter)
}

fn class_of(status: u16) -> FailureClass {
    match status {
        429 => FailureClass::RateLimited,
        401 | 403 => FailureClass::Authentication,
        402 => FailureClass::QuotaExhausted,
        400 | 413 | 422 => FailureClass::BadRequest,
        // Anthropic's 529 is "overloaded".
        503 | 529 => FailureClass::Overloaded,
        408 | 409 | 425 => FailureClass::Upstream,
        300..=499 => FailureClass::Configuration,
        _ => FailureClass::Upstream,
    }
}

/// What types, codes and reasons say more exactly than the status: OpenAI's and Azure's `code`, Anthropic's `type`, Google's
/// `status` and `reason`, llama.cpp's `type`.
const NAMES: [(&str, FailureClass); 25] = [
    ("context_length_exceeded", FailureClass::ContextTooLong),
    ("exceed_context_size_error", FailureClass::ContextTooLong),
    ("content_filter", FailureClass::ContentFilter),
    ("content_policy_violation", FailureClass::ContentFilter),
    ("responsibleaipolicyviolation", FailureClass::ContentFilter),
    ("prohibited_content", FailureClass::ContentFilter),
    ("safety", FailureClass::ContentFilter),
    ("insufficient_quota", FailureClass::QuotaExhausted),
    ("billing_hard_limit_reached", FailureClass::QuotaExhausted),
    ("billing_not_active", FailureClass::QuotaExhausted),
    ("billing_error", FailureClass::QuotaExhausted),
    ("invalid_api_key", FailureClass::Authentication),
    ("api_key_invalid", FailureClass::Authentication),
    ("authentication_error", FailureClass::Authentication),
    ("permission_error", FailureClass::Authentication),
    ("unauthenticated", FailureClass::Authentication),
    ("permission_denied", FailureClass::Authentication),
    ("overloaded_error", FailureClass::Overloaded),
    ("unavailable", FailureClass::Overloaded),
    ("rate_limit_error", FailureClass::RateLimited),
    ("rate_limit_exceeded", FailureClass::RateLimited),
    ("resource_exhausted", FailureClass::RateLimited),
    ("model_not_found", FailureClass::Configuration),
    ("not_found_error", FailureClass::Configuration),
    ("request_too_large", FailureClass::BadRequest),
];

/// Where the providers have no name for it, their words: Anthropic's of a long prompt and of an empty account, Google's of
/// a long one, OpenAI's and Ollama's of a server that has no room.
const WORDS: [(&str, FailureClass); 8] = [
    ("prompt is too long", FailureClass::ContextTooLong),
    ("maximum context length", FailureClass::ContextTooLong),
    ("exceeds the maximum number of tokens allowed", FailureClass::ContextTooLong),
    ("exceeds the available context size", FailureClass::ContextTooLong),
    ("context size has been exceeded", FailureClass::ContextTooLong),
    ("credit balance is too low", FailureClass::QuotaExhausted),
    ("currently overloaded", FailureClass::Overloaded),
    ("maximum pending requests exceeded", FailureClass::Overloaded),
];

/// Takes type, code, parameter and wait over, and the class where they say more than the status; gives the provider's
/// words. The shapes are OpenAI's `{"error": {..}}`, which Anthropic's and llama.cpp's are like, Google's
/// `[{"error": {..}}]`, and plain `{"error": ".."}` (Ollama), `{"message": ".."}` and `{"detail": ".."}`.
fn fill(failure: &mut Failure, answer: &Value) -> Option<String> {
    let answer = answer.get(0).unwrap_or(answer);
    let error = answer.get("error").unwrap_or(answer);
    let named = |name: &str| match error.get(name)? {
        Value::String(text) if !text.is_empty() => Some(shortened(text, NAME_MAX)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    failure.upstream_type = named("type");
    failure.upstream_code = named("code");
    failure.upstream_param = named("param");
    let words = [Some(error), error.get("message"), error.get("detail")].into_iter().flatten();
    let words = words.filter_map(Value::as_str).find(|text| !text.is_empty()).map(|text| shortened(text, WORDS_MAX));
    let details = || error.get("details").and_then(Value::as_array).into_iter().flatten();
    let reasons = details().filter_map(|detail| detail.get("reason").and_then(Value::as_str).map(str::to_owned));
    let inner = error.get("innererror").and_then(|inner| inner.get("code")).and_then(Value::as_str).map(str::to_owned);
    let status = error.get("status").and_then(Value::as_str).map(str::to_owned);
    let mut names =
        reasons.chain(inner).chain(failure.upstream_code.clone()).chain(failure.upstream_type.clone()).chain(status);
    let by_name = names.find_map(|name| {
        let known = NAMES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
        known.map(|(_, class)| *class)
    });
    let lower = words.as_deref().map(str::to_ascii_lowercase).unwrap_or_default();
    let by_words = || WORDS.iter().find(|(known, _)| lower.contains(known)).map(|(_, class)| *class);
    if let Some(class) = by_words().or(by_name) {
        failure.class = class;
    }
    failure.retry_after = details().find_map(|detail| retry_delay(detail.get("retryDelay")?.as_str()?));
    words
}

/// Google's `RetryInfo.retryDelay`, a protobuf duration as JSON has it: `34.07s`.
fn retry_delay(text: &str) -> Option<Duration> {
    let seconds = text.strip_suffix('s')?.parse::<f64>().ok()?;
    Some(Duration::try_from_secs_f64(seconds).ok()?.min(RETRY_AFTER_MAX))
}

fn shortened(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

/// `Retry-After`: seconds (some providers send fractions) or a date.
fn wait(value: &str, now: Timestamp) -> Option<Duration> {
    let wait = match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => {
            let format = time::format_description::well_known::Rfc2822;
            let date = time::OffsetDateTime::parse(value, &format).ok()?;
            Timestamp::from_millis(date.unix_timestamp().checked_mul(1_000)?).since(now)
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

    #[test]
    fn the_status_decides_the_class() {
        let table = [
            (429, FailureClass::RateLimited),
            (400, FailureClass::BadRequest),
            (413, FailureClass::BadRequest),
            (422, FailureClass::BadRequest),
            (401, FailureClass::Authentication),
            (402, FailureClass::QuotaExhausted),
            (403, FailureClass::Authentication),
            (404, FailureClass::Configuration),
            (302, FailureClass::Configuration),
            (408, FailureClass::Upstream),
            (500, FailureClass::Upstream),
            (503, FailureClass::Overloaded),
            (504, FailureClass::Upstream),
            (529, FailureClass::Overloaded),
        ];
        for (status, class) in table {
            let failure = from_status(status, ErrorHeaders::default(), b"", NOW);
            assert_eq!((failure.class, failure.upstream_status), (class, Some(status)), "{status}");
            assert_eq!(failure.message, format!("the provider answered with status {status}"));
        }
    }

    #[test]
    fn the_providers_words_are_kept_for_a_clients_mistake_only() {
        let body = br#"{"error":{"message":"max_tokens is too large","type":"invalid_request_error","param":"max_tokens","code":null}}"#;
        let failure = from_status(400, ErrorHeaders::default(), body, NOW);
        assert_eq!(failure.message, "max_tokens is too large");
        assert_eq!(failure.upstream_type.as_deref(), Some("invalid_request_error"));
        assert_eq!(failure.upstream_param.as_deref(), Some("max_tokens"));
        assert_eq!(failure.upstream_code, None);
        let failure = from_status(
            401,
            ErrorHeaders::default(),
            br#"{"error":{"message":"Incorrect API key: sk-123","code":401}}"#,
            NOW,
        );
        assert_eq!(failure.message, "the provider answered with status 401");
        assert_eq!(failure.upstream_code.as_deref(), Some("401"));
    }

    #[test]
    fn errors_come_in_several_shapes() {
        for body in [
            r#"{"error":"no"}"#,
            r#"[{"error":{"message":"no"}}]"#,
            r#"{"message":"no"}"#,
            r#"{"detail":"no"}"#,
            r#"{"error":{"message":"no","type":7}}"#,
        ] {
            assert_eq!(from_status(400, ErrorHeaders::default(), body.as_bytes(), NOW).message, "no", "{body}");
        }
        for body in ["<html>", "", "null", "[]", r#"{"error":null}"#, r#"{"error":{"message":""}}"#] {
            let message = from_status(400, ErrorHeaders::default(), body.as_bytes(), NOW).message;
            assert_eq!(message, "the provider answered with status 400", "{body}");
        }
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let table = [
            ("20", Some(20_000)),
            ("0.5", Some(500)),
            (" 7 ", Some(7_000)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30_000)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999", Some(24 * 3_600_000)),
            ("-1", None),
            ("NaN", None),
            ("soon", None),
        ];
        for (value, ms) in table {
            let failure = from_status(429, ErrorHeaders { retry_after: Some(value), retry_after_ms: None }, b"", NOW);
            assert_eq!(failure.retry_after, ms.map(Duration::from_millis), "{value}");
        }
    }

    #[test]
    fn an_error_inside_a_200_is_the_providers_failure() {
        for body in [r#"{"error":{"message":"prompt text","code":502}}"#, r#"{"error":"x"}"#, r#"[{"error":{}}]"#] {
            let failure = from_body(body).unwrap();
            assert_eq!(failure.class, FailureClass::Upstream);
            assert_eq!(failure.message, "the provider answered with status 200 and an error");
        }
        for body in [r#"{"error":null}"#, r#"{"choices":[]}"#, "x"] {
            assert_eq!(from_body(body), None, "{body}");
        }
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let body = format!(r#"{{"error":{{"message":"{}"}}}}"#, "ã".repeat(5_000));
        assert_eq!(from_status(400, ErrorHeaders::default(), body.as_bytes(), NOW).message.chars().count(), WORDS_MAX);
    }

    /// What the providers document, as the simulator serves it.
    #[test]
    fn every_documented_error_has_its_cause() {
        let class_of = |provider: &str, name: &str| match (provider, name) {
            (_, "rate_limit") => FailureClass::RateLimited,
            (_, "quota" | "billing") => FailureClass::QuotaExhausted,
            (_, "overloaded") => FailureClass::Overloaded,
            (_, "server_error" | "timeout") => FailureClass::Upstream,
            (_, "authentication" | "permission") => FailureClass::Authentication,
            (_, "model_not_found") => FailureClass::Configuration,
            (_, "context_too_long") => FailureClass::ContextTooLong,
            (_, "content_filter") => FailureClass::ContentFilter,
            (_, "bad_request" | "request_too_large") => FailureClass::BadRequest,
            other => panic!("{other:?} has no expectation"),
        };
        for error in crate::simulate::errors::ALL {
            let header = |name: &str| error.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            let headers = ErrorHeaders { retry_after: header("retry-after"), retry_after_ms: header("retry-after-ms") };
            let failure = from_status(error.status, headers, error.body.as_bytes(), NOW);
            let what = format!("{}/{}", error.provider, error.name);
            assert_eq!(
                (failure.class, failure.upstream_status),
                (class_of(error.provider, error.name), Some(error.status)),
                "{what}"
            );
            let wait = match what.as_str() {
                "openai/rate_limit" => Some(1_500),
                "anthropic/rate_limit" => Some(30_000),
                "google/rate_limit" => Some(34_500),
                _ => None,
            };
            assert_eq!(failure.retry_after, wait.map(Duration::from_millis), "{what}");
            // What a client reads of somebody else's mistake is in our words.
            let is_ours = failure.message == format!("the provider answered with status {}", error.status);
            assert_eq!(is_ours, !is_the_clients(failure.class), "{what}: {}", failure.message);
            // The same inside an answer with status 200, before content.
            let inside = from_body(error.body).unwrap();
            if failure.class != FailureClass::BadRequest && error.name != "timeout" && what != "google/model_not_found"
            {
                let by_status_alone = ["openai/permission", "google/server_error"].contains(&what.as_str());
                assert!(inside.class == failure.class || by_status_alone, "{what}: {}", inside.class);
            }
            assert!(!inside.message.contains("sk-"), "{what}");
        }
    }
}
