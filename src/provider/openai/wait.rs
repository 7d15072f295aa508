//! How long a provider asks to wait, by the headers and details that providers document. No wait is longer than a day.

use std::time::Duration;

use crate::domain::Timestamp;

/// Longest wait that is believed.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Units of OpenAI's durations, in seconds. `ms` stands before `m`, which it begins with.
const UNITS: [(&str, f64); 5] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];

/// What the headers ask for: `retry-after-ms`, OpenAI's and Azure's, which is finer, else `retry-after`.
pub fn asked<'a>(header: &impl Fn(&str) -> Option<&'a str>, now: Timestamp) -> Option<Duration> {
    let ms = header("retry-after-ms").and_then(|value| value.trim().parse::<f64>().ok());
    ms.and_then(|ms| bounded(ms / 1_000.0)).or_else(|| retry_after(header("retry-after")?.trim(), now))
}

/// When there is room again under the limits that are used up: the last of them counts, since all must have room. OpenAI
/// gives durations (`6m0s`), Anthropic moments (RFC 3339).
/// platform.openai.com/docs/guides/rate-limits, docs.anthropic.com/en/api/rate-limits
pub fn until_reset<'a>(header: &impl Fn(&str) -> Option<&'a str>, now: Timestamp) -> Option<Duration> {
    let is_used_up = |name: String| header(&name).is_some_and(|left| left.trim() == "0");
    let durations = ["requests", "tokens"].into_iter().filter_map(|of| {
        let reset = header(&format!("x-ratelimit-reset-{of}"))?;
        duration(reset.trim()).filter(|_| is_used_up(format!("x-ratelimit-remaining-{of}")))
    });
    let moments = ["requests", "tokens", "input-tokens", "output-tokens"].into_iter().filter_map(|of| {
        let reset: Timestamp = header(&format!("anthropic-ratelimit-{of}-reset"))?.trim().parse().ok()?;
        Some(reset.since(now)).filter(|_| is_used_up(format!("anthropic-ratelimit-{of}-remaining")))
    });
    durations.chain(moments).max().map(|wait| wait.min(WAIT_MAX))
}

/// Google's `RetryInfo.retryDelay`, a protobuf duration as JSON has it: `34.07s`.
pub fn retry_delay(text: &str) -> Option<Duration> {
    bounded(text.strip_suffix('s')?.parse().ok()?)
}

/// `Retry-After`: seconds (some providers send fractions) or a date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.parse() {
        return bounded(seconds);
    }
    let date = time::OffsetDateTime::parse(value, &time::format_description::well_known::Rfc2822).ok()?;
    Some(Timestamp::from_millis(date.unix_timestamp().checked_mul(1_000)?).since(now).min(WAIT_MAX))
}

/// A duration as Go writes it, which OpenAI's headers are: `1s`, `6m0s`, `12ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, seconds) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        total = total.checked_add(bounded(number.parse::<f64>().ok()? * seconds)?)?;
        rest = &after[unit.len()..];
    }
    (!text.is_empty()).then_some(total)
}

fn bounded(seconds: f64) -> Option<Duration> {
    // What is beyond any duration is long as well.
    let seconds = seconds.min(WAIT_MAX.as_secs_f64());
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

    fn header<'a>(headers: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<&'a str> {
        move |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
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
            ("soon", None),
        ];
        for (value, ms) in table {
            let wait = asked(&header(&[("retry-after", value)]), NOW);
            assert_eq!(wait, ms.map(Duration::from_millis), "{value}");
        }
    }

    #[test]
    fn milliseconds_are_finer_than_seconds() {
        let both = [("retry-after", "2"), ("retry-after-ms", "1500")];
        assert_eq!(asked(&header(&both), NOW), Some(Duration::from_millis(1_500)));
        let odd = [("retry-after", "2"), ("retry-after-ms", "soon")];
        assert_eq!(asked(&header(&odd), NOW), Some(Duration::from_secs(2)));
    }

    #[test]
    fn durations_are_as_go_writes_them() {
        let table = [
            ("1s", Some(1_000)),
            ("6m0s", Some(360_000)),
            ("12ms", Some(12)),
            ("1m59.56s", Some(119_560)),
            ("1h2m3s", Some(3_723_000)),
            ("400d", Some(24 * 3_600_000)),
            ("", None),
            ("7", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
            ("1..2s", None),
        ];
        for (text, ms) in table {
            assert_eq!(duration(text), ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_reset_counts_where_nothing_is_left_and_the_last_one_does() {
        let openai = |requests, tokens| {
            [
                ("x-ratelimit-remaining-requests", requests),
                ("x-ratelimit-reset-requests", "1s"),
                ("x-ratelimit-remaining-tokens", tokens),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ]
        };
        for (requests, tokens, seconds) in [("0", "0", Some(360)), ("0", "9", Some(1)), ("9", "9", None)] {
            let wait = until_reset(&header(&openai(requests, tokens)), NOW);
            assert_eq!(wait, seconds.map(Duration::from_secs), "{requests} {tokens}");
        }
        let anthropic = [
            ("anthropic-ratelimit-requests-remaining", "3"),
            ("anthropic-ratelimit-requests-reset", "1994-11-06T09:49:37Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            ("anthropic-ratelimit-input-tokens-reset", "1994-11-06T08:49:49Z"),
            ("anthropic-ratelimit-output-tokens-remaining", "0"),
            ("anthropic-ratelimit-output-tokens-reset", "later"),
        ];
        assert_eq!(until_reset(&header(&anthropic), NOW), Some(Duration::from_secs(12)));
        assert_eq!(until_reset(&header(&[]), NOW), None);
    }
}
