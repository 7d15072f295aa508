//! What is left of the limits, in OpenAI's headers.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::error::value;
use crate::records::responses::{RateLimit, RateLimits};

/// Limit, remaining, reset.
const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Says what is left. What is not limited has no header.
pub fn insert(headers: &mut HeaderMap, limits: &RateLimits) {
    for (names, limit) in [(REQUESTS, limits.requests), (TOKENS, limits.tokens)] {
        let Some(RateLimit { limit, remaining, reset_ms }) = limit else { continue };
        let values = [HeaderValue::from(limit), HeaderValue::from(remaining), value(&Duration(reset_ms).to_string())];
        headers.extend(names.into_iter().zip(values));
    }
}

/// Milliseconds as OpenAI writes them, which is as Go does: `12ms`, `1s`, `8.64s`, `6m0s`, `1h0m30s`.
struct Duration(u64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0 / 1_000, self.0 % 1_000);
        if seconds == 0 && millis > 0 {
            return write!(f, "{millis}ms");
        }
        let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}", seconds % 60)?;
        if millis > 0 {
            write!(f, ".{}", format!("{millis:03}").trim_end_matches('0'))?;
        }
        f.write_str("s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        let table = [
            (0, "0s"),
            (12, "12ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (8_640, "8.64s"),
            (59_001, "59.001s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (90_500, "1m30.5s"),
            (3_600_000, "1h0m0s"),
            (3_630_007, "1h0m30.007s"),
        ];
        for (ms, text) in table {
            assert_eq!(Duration(ms).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_limited_has_no_header() {
        let mut headers = HeaderMap::new();
        insert(&mut headers, &RateLimits::default());
        assert!(headers.is_empty());
        let tokens = Some(RateLimit { limit: 10_000, remaining: 9_990, reset_ms: 60 });
        insert(&mut headers, &RateLimits { tokens, requests: None });
        let text: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let expected = [
            ("x-ratelimit-limit-tokens", "10000"),
            ("x-ratelimit-remaining-tokens", "9990"),
            ("x-ratelimit-reset-tokens", "60ms"),
        ];
        assert_eq!(text, expected);
    }
}
