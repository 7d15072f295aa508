//! `cache`: bodies of answers that are kept, compacted. Key: fingerprint and organization; on the organization's partition.
//!
//! The journal says which ones are kept; what is here beyond that is left over, and what is missing is asked anew.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Record, Topic};
use crate::domain::{Fingerprint, OrganizationId, RequestId, Timestamp, TokenUsage};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheRecord {
    pub organization: OrganizationId,
    pub fingerprint: Fingerprint,
    /// For which the answer was made.
    pub request_id: RequestId,
    pub expires_at: Timestamp,
    pub usage: TokenUsage,
    #[serde(default)]
    pub finish_reason: Option<String>,
    /// Of a streamed answer: `chat.completion.chunk` objects in JSON, in order.
    pub events: Vec<Bytes>,
    /// Of one that is not: the `chat.completion` object.
    #[serde(default)]
    pub body: Option<Bytes>,
    /// Keyed hash over the rest: nobody else's record is taken for an answer.
    pub seal: String,
}

impl Record for CacheRecord {
    const TOPIC: Topic = Topic::Cache;
}

impl CacheRecord {
    pub fn key(organization: &OrganizationId, fingerprint: Fingerprint) -> String {
        format!("{fingerprint}/{organization}")
    }

    /// What is sealed, piece by piece.
    pub fn sealed(&self) -> Vec<Vec<u8>> {
        let mut pieces = vec![
            self.organization.as_str().as_bytes().to_vec(),
            self.fingerprint.to_string().into_bytes(),
            self.request_id.as_str().as_bytes().to_vec(),
            self.expires_at.as_millis().to_be_bytes().to_vec(),
            self.finish_reason.clone().unwrap_or_default().into_bytes(),
        ];
        let TokenUsage { input, cached_input, cache_write, output, reasoning } = self.usage;
        let counts = [input, cached_input, cache_write, output, reasoning];
        pieces.push(counts.iter().flat_map(|count| format!("{count:?},").into_bytes()).collect());
        // So that the last event of one is not taken for the body of another.
        pieces.push((self.events.len() as u64).to_be_bytes().to_vec());
        pieces.extend(self.events.iter().map(|event| event.to_vec()));
        pieces.extend(self.body.iter().map(|body| body.to_vec()));
        pieces
    }
}
