//! What a client says so that it can ask again, go on with a stream, or leave a request running.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::error::Refusal;
use super::sse::EventId;
use crate::domain::{OrganizationId, RequestId};

const IDEMPOTENCY_HEADER: &str = "Idempotency-Key";
const RESUME_HEADER: &str = "x-tollstream-resume";
const EVENT_HEADER: &str = "Last-Event-ID";
/// The query parameter of those who cannot set headers.
const EVENT_PARAMETER: &str = "last_event_id";
/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// The header's value. Given twice, nobody knows which of them was meant.
fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(Refusal::InvalidHeader { name, problem: "it is given more than once".to_owned() }),
    }
}

/// The key under which a request may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey<'a>(&'a [u8]);

pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey<'_>>, Refusal> {
    let Some(value) = only(headers, IDEMPOTENCY_HEADER)? else { return Ok(None) };
    let key = value.as_bytes();
    let is_printable = key.iter().all(|byte| (b' '..=b'~').contains(byte));
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !is_printable {
        let problem = format!("1 to {KEY_BYTES_MAX} characters of printable ASCII are expected");
        return Err(Refusal::InvalidHeader { name: IDEMPOTENCY_HEADER, problem });
    }
    Ok(Some(IdempotencyKey(key)))
}

/// The id of the organization's request with this key: always the same, on every facade, and no key can be read from it.
#[expect(clippy::expect_used, reason = "letters, digits and an underscore are always an identifier")]
pub fn request_id(organization: &OrganizationId, key: IdempotencyKey<'_>) -> RequestId {
    let mut hash = Sha256::new();
    hash.update((organization.as_str().len() as u64).to_be_bytes());
    hash.update(organization.as_str());
    hash.update(key.0);
    let id = format!("idem_{}", hex::encode(&hash.finalize()[..16]));
    RequestId::parse(&id).expect("an identifier")
}

/// How long the request goes on when its client is gone.
pub fn resume(headers: &HeaderMap, max: Duration) -> Result<Option<Duration>, Refusal> {
    let Some(value) = only(headers, RESUME_HEADER)? else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let problem = || format!("seconds from 0 to {} are expected", max.as_secs());
    let resume = seconds.filter(|time| *time <= max);
    resume.map(Some).ok_or_else(|| Refusal::InvalidHeader { name: RESUME_HEADER, problem: problem() })
}

/// The last event that the client has. The header goes before the query.
pub fn last_event(headers: &HeaderMap, query: Option<&str>) -> Result<EventId, Refusal> {
    let of_header = only(headers, EVENT_HEADER)?.map(|value| value.to_str().unwrap_or("?").trim());
    let of_query = || {
        let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == EVENT_PARAMETER).map(|(_, value)| value)
    };
    let text = of_header.or_else(of_query).filter(|text| !text.is_empty()).ok_or(Refusal::NoEventId)?;
    let problem = "the id of an event, PARTITION-OFFSET-INDEX, is expected".to_owned();
    EventId::parse(text).ok_or(Refusal::InvalidHeader { name: EVENT_HEADER, problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facade::sse::Position;

    fn map(name: &'static str, value: &[u8]) -> HeaderMap {
        let value = axum::http::HeaderValue::from_bytes(value).unwrap();
        [(name.parse().unwrap(), value)].into_iter().collect()
    }

    #[test]
    fn a_key_is_printable_and_not_long() {
        let valid = [b"a".as_slice(), b"with spaces and ~", &[b'k'; 255]];
        for key in valid {
            assert_eq!(idempotency_key(&map("idempotency-key", key)), Ok(Some(IdempotencyKey(key))));
        }
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
        for key in [b"".as_slice(), b"a\tb", "\u{e9}".as_bytes(), &[b'k'; 256]] {
            let refusal = idempotency_key(&map("idempotency-key", key)).unwrap_err();
            assert!(matches!(refusal, Refusal::InvalidHeader { name: "Idempotency-Key", .. }), "{key:?}");
        }
        let mut twice = map("idempotency-key", b"a");
        twice.append("idempotency-key", HeaderValue::from_static("a"));
        assert!(matches!(idempotency_key(&twice), Err(Refusal::InvalidHeader { name: "Idempotency-Key", .. })));
    }

    #[test]
    fn a_key_is_one_request_of_its_organization() {
        let id = |organization: &str, key| {
            request_id(&OrganizationId::parse(organization).unwrap(), IdempotencyKey(key)).to_string()
        };
        let first = id("acme", b"order-1");
        assert_eq!(first, id("acme", b"order-1"));
        assert_eq!(first, "idem_5e983331dd167f3ae5d7f14bd1d2e383");
        for other in [id("acme", b"order-2"), id("globex", b"order-1"), id("acmeo", b"rder-1"), id("acm", b"eorder-1")]
        {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn a_time_to_go_on_is_bounded() {
        let read = |value: &[u8]| resume(&map("x-tollstream-resume", value), Duration::from_secs(600));
        assert_eq!(resume(&HeaderMap::new(), Duration::ZERO), Ok(None));
        assert_eq!(read(b"0"), Ok(Some(Duration::ZERO)));
        assert_eq!(read(b"600"), Ok(Some(Duration::from_secs(600))));
        for value in [b"601".as_slice(), b"-1", b"1.5", b"", b"soon", &[0xff]] {
            assert!(matches!(read(value), Err(Refusal::InvalidHeader { name: RESUME_HEADER, .. })), "{value:?}");
        }
    }

    #[test]
    fn the_last_event_is_in_the_header_or_the_query() {
        let event = EventId { at: Position { partition: 3, offset: 17 }, index: 2 };
        let header = map("last-event-id", b"3-17-2");
        assert_eq!(last_event(&header, Some("last_event_id=1-1-1")), Ok(event));
        assert_eq!(last_event(&HeaderMap::new(), Some("a=b&last_event_id=3-17-2")), Ok(event));
        for query in [None, Some(""), Some("last_event_id="), Some("last_event=3-17-2")] {
            assert_eq!(last_event(&HeaderMap::new(), query), Err(Refusal::NoEventId), "{query:?}");
        }
        for value in [b"3-17".as_slice(), b"x", b"3-17-2-1", b"3-17--2", &[0xff], "3-17-\u{b2}".as_bytes()] {
            let refusal = last_event(&map("last-event-id", value), None).unwrap_err();
            assert!(matches!(refusal, Refusal::InvalidHeader { name: "Last-Event-ID", .. }), "{value:?}");
        }
    }
}
