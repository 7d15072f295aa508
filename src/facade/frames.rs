//! Frames from records of `responses`.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::{self, Codec};
use crate::records::responses::{Frame, ResponseRecord};
use crate::telemetry::health::Health;

/// Waits between attempts to reach the registry: first, and at the most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Decoder {
    pub codec: Arc<Codec>,
    pub health: Health,
    /// The name under which it is reported that a schema is missing.
    pub component: &'static str,
}

impl Decoder {
    /// The frame, or why the record is none. While the registry does not answer about an unknown schema, this waits.
    pub async fn frame(&self, payload: &[u8]) -> Result<Frame, String> {
        let decoded = match self.codec.decode::<ResponseRecord>(payload) {
            Err(codec::Error::UnknownSchema { id }) => match self.learn(id).await {
                Ok(()) => self.codec.decode::<ResponseRecord>(payload),
                Err(error) => Err(error),
            },
            decoded => decoded,
        };
        Frame::try_from(decoded.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    async fn learn(&self, id: u32) -> Result<(), codec::Error> {
        let mut wait = RETRY_MIN;
        loop {
            match self.codec.learn(id).await {
                Err(error @ codec::Error::Registry { .. }) => {
                    tracing::warn!(%error, schema = id, "answers wait for a schema");
                    self.health.missing(self.component, format!("schema {id} is not known: {error}"));
                }
                decided => {
                    self.health.ready(self.component);
                    return decided;
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
}
