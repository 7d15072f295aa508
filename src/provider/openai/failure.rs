//! A provider's error answer as a [`Failure`].

use serde_json::Value;

use super::wait;
use crate::domain::Timestamp;
use crate::provider::{Failure, FailureClass};

/// Most characters of the provider's words that are kept.
const WORDS_MAX: usize = 1_000;
/// Most characters of its type, code and parameter that are kept.
const NAME_MAX: usize = 200;
/// The failure that a status other than 2xx stands for; `now` serves the headers that name a moment.
pub fn from_status<'a>(status: u16, header: impl Fn(&str) -> Option<&'a str>, body: &[u8], now: Timestamp) -> Failure {
    let mut failure = Failure::new(class_of(status), format!("the provider answered with status {status}"));
    failure.upstream_status = Some(status);
    let words = serde_json::from_slice(body).ok().and_then(|answer: Value| fill(&mut failure, &answer));
    // Google names an empty account as it names a limit: 402 RESOURCE_EXHAUSTED.
    if status == 402 {
        failure.class = FailureClass::QuotaExhausted;
    }
    failure.retry_after = wait::asked(&header, now).or(failure.retry_after);
    // Every answer of OpenAI and Anthropic names resets; only a limit is over with them.
    if failure.class == FailureClass::RateLimited {
        failure.retry_after = failure.retry_after.or_else(|| wait::until_reset(&header, now));
    }
    if let (true, Some(words)) = (is_the_clients(failure.class), words) {
        failure.message = words;
    }
    failure
}

/// The failure inside an answer with status 200: an `error` member that says something, or Google's word that it blocked
/// the prompt, which comes instead of an answer.
pub fn from_body(answer: &str) -> Option<Failure> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let first = answer.get(0).unwrap_or(&answer);
    let block = first.get("promptFeedback").and_then(|feedback| feedback.get("blockReason"));
    if let Some(reason) = block.and_then(Value::as_str) {
        let failure = Failure::new(FailureClass::ContentFilter, "the provider's content filter blocked the prompt");
        return Some(Failure {
            upstream_status: Some(200),
            upstream_code: Some(shortened(reason, NAME_MAX)),
            ..failure
        });
    }
    let error = first.get("error")?;
    if matches!(error, Value::Null | Value::Bool(false)) {
        return None;
    }
    // Where the code is a status, as with Google and llama.cpp, it says what the answer's own does not.
    let code = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let class = code.filter(|code| (400..600).contains(code)).map_or(FailureClass::Upstream, class_of);
    let mut failure = Failure::new(class, "the provider answered with status 200 and an error");
    failure.upstream_status = Some(200);
    fill(&mut failure, &answer);
    if code == Some(402) {
        failure.class = FailureClass::QuotaExhausted;
    }
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

/// What types, codes and reasons say more exactly than the status: OpenAI's and Azure's `code`, Anthropic's `type` and
/// `details.error_code`, Google's `status` and `reason`, llama.cpp's `type`.
const NAMES: [(&str, FailureClass); 32] = [
    ("context_length_exceeded", FailureClass::ContextTooLong),
    ("exceed_context_size_error", FailureClass::ContextTooLong),
    ("content_filter", FailureClass::ContentFilter),
    ("content_policy_violation", FailureClass::ContentFilter),
    ("responsibleaipolicyviolation", FailureClass::ContentFilter),
    ("prohibited_content", FailureClass::ContentFilter),
    ("safety", FailureClass::ContentFilter),
    ("insufficient_quota", FailureClass::QuotaExhausted),
    ("credit_balance_exhausted", FailureClass::QuotaExhausted),
    ("organization_usage_limit_exceeded", FailureClass::QuotaExhausted),
    ("organization_spend_limit_exceeded", FailureClass::QuotaExhausted),
    ("project_spend_limit_exceeded", FailureClass::QuotaExhausted),
    ("enforced_spend_limit_reached", FailureClass::QuotaExhausted),
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
    ("server_is_overloaded", FailureClass::Overloaded),
    ("service_unavailable_error", FailureClass::Overloaded),
    ("unavailable", FailureClass::Overloaded),
    ("rate_limit_error", FailureClass::RateLimited),
    ("rate_limit_exceeded", FailureClass::RateLimited),
    ("resource_exhausted", FailureClass::RateLimited),
    ("model_not_found", FailureClass::Configuration),
    ("not_found_error", FailureClass::Configuration),
    ("request_too_large", FailureClass::BadRequest),
];

/// Where the providers have no name for it, their words: Anthropic's of a long prompt, of its filter and of an account
/// that is empty or at its limit, Google's of a long prompt and of an account without billing, OpenAI's of its filter, and
/// OpenAI's and Ollama's of a server that has no room.
const WORDS: [(&str, FailureClass); 14] = [
    ("prompt is too long", FailureClass::ContextTooLong),
    ("maximum context length", FailureClass::ContextTooLong),
    ("exceeds the maximum number of tokens allowed", FailureClass::ContextTooLong),
    ("exceeds the available context size", FailureClass::ContextTooLong),
    ("context size has been exceeded", FailureClass::ContextTooLong),
    ("output blocked by content filtering policy", FailureClass::ContentFilter),
    ("rejected as a result of our safety system", FailureClass::ContentFilter),
    ("flagged as potentially violating our usage policy", FailureClass::ContentFilter),
    ("credit balance is too low", FailureClass::QuotaExhausted),
    ("you have reached your specified api usage limits", FailureClass::QuotaExhausted),
    ("you have reached your specified workspace api usage limits", FailureClass::QuotaExhausted),
    ("please enable billing", FailureClass::QuotaExhausted),
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
    let detail = error.get("details").and_then(|details| details.get("error_code")?.as_str()).map(str::to_owned);
    let status = error.get("status").and_then(Value::as_str).map(str::to_owned);
    let mut names = reasons
        .chain(inner)
        .chain(detail)
        .chain(failure.upstream_code.clone())
        .chain(failure.upstream_type.clone())
        .chain(status);
    let by_name = names.find_map(|name| {
        let known = NAMES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
        known.map(|(_, class)| *class)
    });
    let lower = words.as_deref().map(str::to_ascii_lowercase).unwrap_or_default();
    let by_words = || WORDS.iter().find(|(known, _)| lower.contains(known)).map(|(_, class)| *class);
    if let Some(class) = by_words().or(by_name) {
        failure.class = class;
    }
    failure.retry_after = details().find_map(|detail| wait::retry_delay(detail.get("retryDelay")?.as_str()?));
    words
}

fn shortened(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulate::errors::{ALL, Documented};

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

    fn no_header<'a>(_: &str) -> Option<&'a str> {
        None
    }

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
            let failure = from_status(status, no_header, b"", NOW);
            assert_eq!((failure.class, failure.upstream_status), (class, Some(status)), "{status}");
            assert_eq!(failure.message, format!("the provider answered with status {status}"));
        }
    }

    #[test]
    fn the_providers_words_are_kept_for_a_clients_mistake_only() {
        let body = br#"{"error":{"message":"max_tokens is too large","type":"invalid_request_error","param":"max_tokens","code":null}}"#;
        let failure = from_status(400, no_header, body, NOW);
        assert_eq!(failure.message, "max_tokens is too large");
        assert_eq!(failure.upstream_type.as_deref(), Some("invalid_request_error"));
        assert_eq!(failure.upstream_param.as_deref(), Some("max_tokens"));
        assert_eq!(failure.upstream_code, None);
        let failure =
            from_status(401, no_header, br#"{"error":{"message":"Incorrect API key: sk-123","code":401}}"#, NOW);
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
            assert_eq!(from_status(400, no_header, body.as_bytes(), NOW).message, "no", "{body}");
        }
        for body in ["<html>", "", "null", "[]", r#"{"error":null}"#, r#"{"error":{"message":""}}"#] {
            let message = from_status(400, no_header, body.as_bytes(), NOW).message;
            assert_eq!(message, "the provider answered with status 400", "{body}");
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
        assert_eq!(from_status(400, no_header, body.as_bytes(), NOW).message.chars().count(), WORDS_MAX);
    }

    #[test]
    fn a_filter_that_blocks_a_prompt_instead_of_answering_is_a_failure() {
        let failure = from_body(r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#).unwrap();
        assert_eq!((failure.class, failure.upstream_code.as_deref()), (FailureClass::ContentFilter, Some("SAFETY")));
        assert_eq!(from_body(r#"{"promptFeedback":{"safetyRatings":[]},"choices":[]}"#), None);
    }

    #[test]
    fn a_code_that_is_a_status_says_what_a_200_does_not() {
        let table = [
            (503, FailureClass::Overloaded),
            (429, FailureClass::RateLimited),
            (402, FailureClass::QuotaExhausted),
            (404, FailureClass::Configuration),
            (400, FailureClass::Upstream),
            (500, FailureClass::Upstream),
            (7, FailureClass::Upstream),
        ];
        for (code, class) in table {
            let body = format!(r#"{{"error":{{"message":"m","code":{code}}}}}"#);
            assert_eq!(from_body(&body).unwrap().class, class, "{code}");
        }
    }

    #[test]
    fn resets_are_for_limits_and_come_after_what_was_asked_for() {
        let resets = |name: &str| match name {
            "x-ratelimit-remaining-requests" => Some("0"),
            "x-ratelimit-reset-requests" => Some("6m0s"),
            _ => None,
        };
        let wait = |status, body: &str| from_status(status, resets, body.as_bytes(), NOW).retry_after;
        assert_eq!(wait(429, ""), Some(Duration::from_secs(360)));
        assert_eq!(wait(500, ""), None);
        assert_eq!(wait(429, r#"{"error":{"code":"insufficient_quota"}}"#), None);
        let details = r#"{"error":{"details":[{"retryDelay":"2s"}]}}"#;
        assert_eq!(wait(429, details), Some(Duration::from_secs(2)));
    }

    fn failure_of(error: &'static Documented) -> Failure {
        if error.status == 200 {
            return from_body(error.body).unwrap();
        }
        let header = |name: &str| error.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        from_status(error.status, header, error.body.as_bytes(), NOW)
    }

    fn expected(error: &Documented) -> FailureClass {
        match error.name {
            "rate_limit" | "slow_down" => FailureClass::RateLimited,
            "quota" | "billing" | "billing_limit" | "credit_balance" | "spend_limit" | "usage_limit" => {
                FailureClass::QuotaExhausted
            }
            "overloaded" | "server_is_overloaded" => FailureClass::Overloaded,
            "server_error" | "timeout" => FailureClass::Upstream,
            "authentication" | "permission" => FailureClass::Authentication,
            "model_not_found" => FailureClass::Configuration,
            "context_too_long" => FailureClass::ContextTooLong,
            "content_filter" | "safety_system" | "usage_policy" => FailureClass::ContentFilter,
            "bad_request" | "request_too_large" => FailureClass::BadRequest,
            other => panic!("{other:?} has no expectation"),
        }
    }

    #[test]
    fn every_documented_error_has_its_cause_and_its_wait() {
        for error in ALL {
            let what = format!("{}/{}", error.provider, error.name);
            let failure = failure_of(error);
            let found = (failure.class, failure.upstream_status);
            assert_eq!(found, (expected(error), Some(error.status)), "{what}");
            let wait = match what.as_str() {
                "openai/rate_limit" => Some(1_500),
                "anthropic/rate_limit" => Some(30_000),
                "google/rate_limit" => Some(34_500),
                _ => None,
            };
            assert_eq!(failure.retry_after, wait.map(Duration::from_millis), "{what}");
        }
    }

    /// What a client reads of somebody else's mistake is in our words; of its own, in the provider's, which name no key.
    #[test]
    fn no_client_reads_a_key_or_another_ones_words() {
        for error in ALL {
            let what = format!("{}/{}", error.provider, error.name);
            let failure = failure_of(error);
            let is_ours = failure.message.starts_with("the provider");
            assert_eq!(is_ours, !is_the_clients(failure.class) || error.status == 200, "{what}: {}", failure.message);
            let secret =
                error.body.replace("sk-simul****ated", "sk-0123456789").replace("claude-simulated", "sk-0123456789");
            let leaked = from_status(error.status, no_header, secret.as_bytes(), NOW).message;
            let refusal = crate::processor::refusal::upstream(&failure);
            for text in [&failure.message, &leaked, &refusal.message, &refusal.code] {
                assert!(!text.contains("sk-") && !text.contains("org-"), "{what}: {text}");
            }
        }
    }

    /// Before content, an error inside an answer with status 200 has the same cause, so that the next candidate is called.
    #[test]
    fn an_error_inside_an_answer_has_the_cause_that_it_has_as_a_status() {
        // Of these the status alone says it, or the client is to blame by the provider's word alone.
        let by_status = ["openai/permission"];
        for error in ALL {
            let what = format!("{}/{}", error.provider, error.name);
            let class = match expected(error) {
                FailureClass::BadRequest => FailureClass::Upstream,
                _ if by_status.contains(&what.as_str()) => FailureClass::Upstream,
                class => class,
            };
            let inside = from_body(error.body).unwrap();
            assert_eq!((inside.class, inside.upstream_status), (class, Some(200)), "{what}");
            assert!(inside.message.starts_with("the provider"), "{what}: {}", inside.message);
        }
    }
}
