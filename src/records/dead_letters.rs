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

impl Record for DeadLetter {
    const TOPIC: Topic = Topic::DeadLetters;
}
