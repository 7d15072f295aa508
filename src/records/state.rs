//! `state`: checkpoints of the fold of the journal, on the journal's partition. Key: tenure, slot and part. No content.
//!
//! Nothing but a shorter way: whatever is missing or wrong here, the journal holds everything.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{EnvelopeError, Record, Topic};
use crate::domain::Timestamp;

/// The envelope as it is on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    pub kind: String,
    #[serde(default)]
    part: Option<Part>,
    #[serde(default)]
    marker: Option<Marker>,
}

/// A part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub tenure: i64,
    pub slot: i32,
    pub name: String,
    pub body: Bytes,
}

/// Says that the parts of a checkpoint are whole, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    pub tenure: i64,
    pub slot: i32,
    pub fold_version: i32,
    /// The last entry of the journal that is folded.
    pub journal_offset: i64,
    /// That the next commit of the tenure carries.
    pub next_sequence: i64,
    pub clock: Timestamp,
    #[serde(default)]
    pub control_offset: Option<i64>,
    #[serde(default)]
    pub last_source_offset: Option<i64>,
    pub parts: i32,
    /// Over names and bodies of the parts.
    pub digest: String,
}

/// What is on the topic, without the envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Part(Part),
    Marker(Marker),
}

impl Record for StateRecord {
    const TOPIC: Topic = Topic::State;
}

impl Part {
    pub fn key(tenure: i64, slot: i32, name: &str) -> String {
        format!("{tenure}/{slot}/{name}")
    }
}

impl Marker {
    pub fn key(tenure: i64, slot: i32) -> String {
        format!("{tenure}/{slot}")
    }
}

impl From<Piece> for StateRecord {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Part(part) => Self { kind: "part".to_owned(), part: Some(part), marker: None },
            Piece::Marker(marker) => Self { kind: "marker".to_owned(), part: None, marker: Some(marker) },
        }
    }
}

impl TryFrom<StateRecord> for Piece {
    type Error = EnvelopeError;

    fn try_from(record: StateRecord) -> Result<Self, EnvelopeError> {
        let piece = match record.kind.as_str() {
            "part" => record.part.map(Self::Part),
            "marker" => record.marker.map(Self::Marker),
            _ => return Err(EnvelopeError::UnknownKind { kind: record.kind, known: "part, marker" }),
        };
        piece.ok_or(EnvelopeError::Missing { kind: record.kind })
    }
}
