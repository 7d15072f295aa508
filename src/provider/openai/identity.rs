//! What an answer says about itself in our name, whatever the provider said.

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
            id: format!("\"chatcmpl-{request_id}\""),
            model: members::quote(model.as_str()),
            created: (at.as_millis() / 1_000).to_string(),
        }
    }
}

/// A `created` that can be kept: whole seconds.
pub(super) fn is_created(raw: &str) -> bool {
    raw.parse::<u64>().is_ok()
}
