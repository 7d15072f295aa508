//! `requests`: what is asked. Key: organization.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{EnvelopeError, Origin, Record, Topic};
use crate::domain::{ConversationId, KeyId, ModelName, OrganizationId, RequestId, UserId};

/// The envelope as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    pub kind: String,
    #[serde(default)]
    pub chat: Option<Chat>,
    #[serde(default)]
    pub cancel: Option<Cancel>,
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

/// What is asked, without the envelope.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Chat(Box<Chat>),
    Cancel(Cancel),
}

impl Record for RequestRecord {
    const TOPIC: Topic = Topic::Requests;
}

impl From<Request> for RequestRecord {
    fn from(request: Request) -> Self {
        match request {
            Request::Chat(chat) => Self { kind: "chat".to_owned(), chat: Some(*chat), cancel: None },
            Request::Cancel(cancel) => Self { kind: "cancel".to_owned(), chat: None, cancel: Some(cancel) },
        }
    }
}

impl TryFrom<RequestRecord> for Request {
    type Error = EnvelopeError;

    fn try_from(record: RequestRecord) -> Result<Self, EnvelopeError> {
        let request = match record.kind.as_str() {
            "chat" => record.chat.map(|chat| Self::Chat(Box::new(chat))),
            "cancel" => record.cancel.map(Self::Cancel),
            _ => return Err(EnvelopeError::UnknownKind { kind: record.kind, known: "chat, cancel" }),
        };
        request.ok_or(EnvelopeError::Missing { kind: record.kind })
    }
}
