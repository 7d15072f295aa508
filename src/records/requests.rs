//! `requests`: what is asked. Key: organization.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{EnvelopeError, Origin, Record, Topic};
use crate::domain::{ConversationId, KeyId, ModelName, OrganizationId, RequestId, Timestamp, UserId};

/// The envelope as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    pub kind: String,
    #[serde(default)]
    pub chat: Option<Chat>,
    #[serde(default)]
    pub cancel: Option<Cancel>,
    #[serde(default)]
    pub purge_cache: Option<PurgeCache>,
}

/// One chat completion. The fields' meaning is in the schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    pub request_id: RequestId,
    pub organization: OrganizationId,
    #[serde(default)]
    pub lane: i32,
    #[serde(default)]
    pub key_id: Option<KeyId>,
    #[serde(default)]
    pub user: Option<UserId>,
    #[serde(default)]
    pub user_tier: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub conversation_id: Option<ConversationId>,
    #[serde(default)]
    pub model: Option<ModelName>,
    #[serde(default)]
    pub timeout_ms: Option<i64>,
    #[serde(default)]
    pub reply_partition: Option<i32>,
    #[serde(default)]
    pub reply_nonce: Option<String>,
    #[serde(default)]
    pub origin: Origin,
    #[serde(default)]
    pub traceparent: Option<String>,
    #[serde(default = "json")]
    pub content_type: String,
    #[serde(default)]
    pub encryption_key_id: Option<String>,
    #[serde(default)]
    pub content_ref: Option<String>,
    /// As the header of that name in HTTP.
    #[serde(default)]
    pub cache_control: Option<String>,
    pub body: Bytes,
}

fn json() -> String {
    "application/json".to_owned()
}

/// Ends a request of the same organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancel {
    pub request_id: RequestId,
    pub organization: OrganizationId,
    #[serde(default)]
    pub reason: String,
}

/// Forgets answers of an organization that are kept: all, or those of a model, or those kept before a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeCache {
    pub organization: OrganizationId,
    #[serde(default)]
    pub model: Option<ModelName>,
    #[serde(default)]
    pub before: Option<Timestamp>,
}

/// What is asked, without the envelope.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Chat(Box<Chat>),
    Cancel(Cancel),
    PurgeCache(PurgeCache),
}

impl Request {
    pub fn organization(&self) -> &OrganizationId {
        match self {
            Self::Chat(chat) => &chat.organization,
            Self::Cancel(cancel) => &cancel.organization,
            Self::PurgeCache(purge) => &purge.organization,
        }
    }
}

impl Record for RequestRecord {
    const TOPIC: Topic = Topic::Requests;
}

impl From<Request> for RequestRecord {
    fn from(request: Request) -> Self {
        let empty = |kind: &str| Self { kind: kind.to_owned(), chat: None, cancel: None, purge_cache: None };
        match request {
            Request::Chat(chat) => Self { chat: Some(*chat), ..empty("chat") },
            Request::Cancel(cancel) => Self { cancel: Some(cancel), ..empty("cancel") },
            Request::PurgeCache(purge) => Self { purge_cache: Some(purge), ..empty("purge_cache") },
        }
    }
}

impl TryFrom<RequestRecord> for Request {
    type Error = EnvelopeError;

    fn try_from(record: RequestRecord) -> Result<Self, EnvelopeError> {
        let request = match record.kind.as_str() {
            "chat" => record.chat.map(|chat| Self::Chat(Box::new(chat))),
            "cancel" => record.cancel.map(Self::Cancel),
            "purge_cache" => record.purge_cache.map(Self::PurgeCache),
            _ => return Err(EnvelopeError::UnknownKind { kind: record.kind, known: "chat, cancel, purge_cache" }),
        };
        request.ok_or(EnvelopeError::Missing { kind: record.kind })
    }
}
