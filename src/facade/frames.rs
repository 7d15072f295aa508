//! Frames from records of `responses`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::codec::{self, Codec};
use crate::records::responses::{Frame, ResponseRecord};
use crate::telemetry::health::Health;

/// Waits between attempts to reach the registry: first, and at the most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How long answers may wait for a schema while the registry does not answer, and for how long its records are passed over
/// then before it is asked again.
const LEARN_MAX: Duration = Duration::from_secs(5);
const PASSED_OVER: Duration = Duration::from_secs(10);
/// Schemas that are passed over at the most; then all are asked for again.
const PASSED_OVER_MAX: usize = 64;

#[derive(Clone)]
pub struct Decoder {
    codec: Arc<Codec>,
    health: Health,
    /// The name under which it is reported that a schema is missing.
    component: &'static str,
    /// Schemas that the registry could not tell, and until when it is not asked again.
    passed_over: Arc<Mutex<HashMap<u32, Instant>>>,
}

impl Decoder {
    pub fn new(codec: Arc<Codec>, health: Health, component: &'static str) -> Self {
        Self { codec, health, component, passed_over: Arc::default() }
    }

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

    /// Learns a schema; while the registry does not answer, this waits for a bounded time.
    async fn learn(&self, id: u32) -> Result<(), codec::Error> {
        let until = self.passed_over().get(&id).copied();
        if until.is_some_and(|until| Instant::now() < until) {
            return Err(codec::Error::UnknownSchema { id });
        }
        let learned = tokio::time::timeout(LEARN_MAX, self.ask_until_answered(id)).await;
        self.health.ready(self.component);
        let mut passed_over = self.passed_over();
        if learned.is_err() {
            if passed_over.len() >= PASSED_OVER_MAX {
                passed_over.clear();
            }
            passed_over.insert(id, Instant::now() + PASSED_OVER);
        } else {
            passed_over.remove(&id);
        }
        learned.unwrap_or(Err(codec::Error::UnknownSchema { id }))
    }

    async fn ask_until_answered(&self, id: u32) -> Result<(), codec::Error> {
        let mut wait = RETRY_MIN;
        loop {
            match self.codec.learn(id).await {
                Err(error @ codec::Error::Registry { .. }) => {
                    tracing::warn!(%error, schema = id, "answers wait for a schema");
                    self.health.missing(self.component, format!("schema {id} is not known: {error}"));
                }
                decided => return decided,
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    fn passed_over(&self) -> MutexGuard<'_, HashMap<u32, Instant>> {
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
