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

/// The failure that a status other than 2xx stands for. `retry_after` is the header's value; `now` serves its date form.
pub fn from_status(status: u16, retry_after: Option<&str>, body: &[u8], now: Timestamp) -> Failure {
    let class = class_of(status);
    let mut failure = Failure::new(class, format!("the provider answered with status {status}"));
    failure.upstream_status = Some(status);
    failure.retry_after = retry_after.and_then(|value| wait(value.trim(), now));
    let words = serde_json::from_slice(body).ok().and_then(|answer: Value| fill(&mut failure, &answer));
    if let (FailureClass::BadRequest, Some(words)) = (class, words) {
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
    Some(failure)
}

fn class_of(status: u16) -> FailureClass {
    match status {
        429 => FailureClass::RateLimited,
        400 | 413 | 422 => FailureClass::BadRequest,
        408 | 409 | 425 => FailureClass::Upstream,
        300..=499 => FailureClass::Configuration,
        _ => FailureClass::Upstream,
    }
}

/// Takes type, code and parameter over; gives the provider's words. The shapes are OpenAI's `{"error": {..}}`, Google's
/// `[{"error": {..}}]`, and plain `{"error": ".."}`, `{"message": ".."}` and `{"detail": ".."}`.
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
    words.filter_map(Value::as_str).find(|text| !text.is_empty()).map(|text| shortened(text, WORDS_MAX))
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
            (401, FailureClass::Configuration),
            (402, FailureClass::Configuration),
            (403, FailureClass::Configuration),
            (404, FailureClass::Configuration),
            (302, FailureClass::Configuration),
            (408, FailureClass::Upstream),
            (500, FailureClass::Upstream),
            (503, FailureClass::Upstream),
            (529, FailureClass::Upstream),
        ];
        for (status, class) in table {
            let failure = from_status(status, None, b"", NOW);
            assert_eq!((failure.class, failure.upstream_status), (class, Some(status)), "{status}");
            assert_eq!(failure.message, format!("the provider answered with status {status}"));
        }
    }

    #[test]
    fn the_providers_words_are_kept_for_a_clients_mistake_only() {
        let body = br#"{"error":{"message":"max_tokens is too large","type":"invalid_request_error","param":"max_tokens","code":null}}"#;
        let failure = from_status(400, None, body, NOW);
        assert_eq!(failure.message, "max_tokens is too large");
        assert_eq!(failure.upstream_type.as_deref(), Some("invalid_request_error"));
        assert_eq!(failure.upstream_param.as_deref(), Some("max_tokens"));
        assert_eq!(failure.upstream_code, None);
        let failure = from_status(401, None, br#"{"error":{"message":"Incorrect API key: sk-123","code":401}}"#, NOW);
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
            assert_eq!(from_status(400, None, body.as_bytes(), NOW).message, "no", "{body}");
        }
        for body in ["<html>", "", "null", "[]", r#"{"error":null}"#, r#"{"error":{"message":""}}"#] {
            let message = from_status(400, None, body.as_bytes(), NOW).message;
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
            let failure = from_status(429, Some(value), b"", NOW);
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
        assert_eq!(from_status(400, None, body.as_bytes(), NOW).message.chars().count(), WORDS_MAX);
    }
}
