//! `dead-letters`: what could not be understood, with the reason and where it stood. Key: as in the source.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Record, Topic};
use crate::domain::Timestamp;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub at: Timestamp,
    /// A code, for example `undecodable`.
    pub reason: String,
    /// For people: what was wrong and what to do.
    pub detail: String,
    #[serde(default)]
    pub key: Option<Bytes>,
    /// As it was, cut at the configured size.
    #[serde(default)]
    pub payload: Option<Bytes>,
    /// Its whole size.
    pub payload_bytes: i64,
}

/// Most bytes of the source's key, and most characters of the detail, that are kept.
const KEY_BYTES_MAX: usize = 1_024;
const DETAIL_CHARS_MAX: usize = 1_000;

/// A record that cannot be understood, where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub at: Timestamp,
    pub key: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

impl DeadLetter {
    /// The letter for a record, with at most `payload_max` bytes of its payload; so it always fits its topic.
    pub fn of(source: Source<'_>, reason: &str, detail: &str, payload_max: usize) -> Self {
        let kept = |bytes: &[u8], most: usize| Bytes::copy_from_slice(&bytes[..bytes.len().min(most)]);
        Self {
            topic: source.topic.to_owned(),
            partition: source.partition,
            offset: source.offset,
            at: source.at,
            reason: reason.to_owned(),
            detail: detail.chars().take(DETAIL_CHARS_MAX).collect(),
            key: source.key.map(|key| kept(key, KEY_BYTES_MAX)),
            payload: Some(kept(source.payload, payload_max)),
            payload_bytes: i64::try_from(source.payload.len()).unwrap_or(i64::MAX),
        }
    }
}

impl Record for DeadLetter {
    const TOPIC: Topic = Topic::DeadLetters;
}
