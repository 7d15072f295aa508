//! What is on each topic: one file per topic, each the Rust form of its schema in `schemas/avro/`.
//!
//! A topic with several kinds of record has an envelope (`kind` and one nullable field per kind), because a union cannot
//! grow under FULL_TRANSITIVE compatibility. The envelope stays at the edge: inside, a record is an enum.

pub mod cache;
pub mod control;
pub mod dead_letters;
pub mod journal;
pub mod policy;
pub mod requests;
pub mod responses;
pub mod state;
pub mod usage;

use serde::{Deserialize, Serialize};

/// The topics of Tollstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    Requests,
    Journal,
    Responses,
    State,
    Cache,
    Control,
    Usage,
    DeadLetters,
}

impl Topic {
    pub const ALL: [Self; 8] = [
        Self::Requests,
        Self::Journal,
        Self::Responses,
        Self::State,
        Self::Cache,
        Self::Control,
        Self::Usage,
        Self::DeadLetters,
    ];

    /// The name without the configured prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Journal => "journal",
            Self::Responses => "responses",
            Self::State => "state",
            Self::Cache => "cache",
            Self::Control => "control",
            Self::Usage => "usage",
            Self::DeadLetters => "dead-letters",
        }
    }

    /// The Avro schema that this program writes.
    pub const fn schema(self) -> &'static str {
        match self {
            Self::Requests => include_str!("../../schemas/avro/requests.avsc"),
            Self::Journal => include_str!("../../schemas/avro/journal.avsc"),
            Self::Responses => include_str!("../../schemas/avro/responses.avsc"),
            Self::State => include_str!("../../schemas/avro/state.avsc"),
            Self::Cache => include_str!("../../schemas/avro/cache.avsc"),
            Self::Control => include_str!("../../schemas/avro/control.avsc"),
            Self::Usage => include_str!("../../schemas/avro/usage.avsc"),
            Self::DeadLetters => include_str!("../../schemas/avro/dead-letters.avsc"),
        }
    }

    /// The topic of this name (without prefix).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

/// A type that is the value of the records of one topic.
pub trait Record {
    const TOPIC: Topic;
}

/// An envelope that names a kind which this program does not know, or whose field is not set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("kind {kind:?} is not known to this version; it knows {known}")]
    UnknownKind { kind: String, known: &'static str },
    #[error("kind is {kind:?}, but its field is null")]
    Missing { kind: String },
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Origin {
    #[default]
    Live,
    Replay,
    Shadow,
    /// Also every symbol that a newer version writes.
    #[serde(other)]
    Unknown,
}

impl Origin {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Live => "live",
            Self::Replay => "replay",
            Self::Shadow => "shadow",
        }
    }
}

/// How an attempt or a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// The provider's answer is whole.
    Completed,
    /// Something went wrong on the way.
    Failed,
    /// Never admitted.
    Refused,
    /// The asker went away or asked for the end.
    Cancelled,
    /// The owner went away in the middle.
    Interrupted,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Where the token counts of a posting come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UsageSource {
    /// The provider said so.
    Reported,
    /// The provider did not say; counted from what passed through.
    Estimated,
    /// The provider used nothing: known zeros.
    None,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}
