//! What an answer says about itself in our name, whatever the provider said.

use bytes::Bytes;

use super::members;
use crate::domain::{ModelName, RequestId, Timestamp};

/// The `id` and the `model` of every part of an answer, and its `created` where the provider gave none.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Each is JSON text.
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: String,
}

impl Identity {
    pub fn new(request_id: &RequestId, model: &ModelName, at: Timestamp) -> Self {
        Self {
            id: id_of(request_id),
            model: members::quote(model.as_str()),
            created: (at.as_millis() / 1_000).to_string(),
        }
    }
}

/// An answer, or a part of one, that was made for another request.
///
/// # Errors
/// It is no JSON object.
pub fn renamed(answer: &[u8], request_id: &RequestId) -> Result<Bytes, serde_json::Error> {
    let text = std::str::from_utf8(answer).map_err(serde::de::Error::custom)?;
    let object = members::Object::parse(text)?;
    let mut splice = object.splice();
    splice.set("id", id_of(request_id));
    Ok(Bytes::from(splice.render()))
}

fn id_of(request_id: &RequestId) -> String {
    format!("\"chatcmpl-{request_id}\"")
}

/// A `created` that can be kept: whole seconds.
pub(super) fn is_created(raw: &str) -> bool {
    raw.parse::<u64>().is_ok()
}
