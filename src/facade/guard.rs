//! What becomes of a failed authentication: it is counted by its reason, and who gives wrong keys has to wait.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::error::Refusal;
use super::failures::Failures;
use super::server::ClientAddress;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counts and slows the failures of one listener.
#[derive(Default)]
pub struct Guard {
    failures: Mutex<Failures>,
    counted: Family<ReasonLabel, Counter>,
}

impl Guard {
    /// Registers its counter under a name that begins with `prefix`.
    pub fn register(metrics: &crate::telemetry::Metrics, prefix: &str) -> Self {
        let guard = Self::default();
        metrics.register(|registry| {
            let help = "Requests without a key that may do this, by reason";
            registry.sub_registry_with_prefix(prefix).register("authentication_failures", help, guard.counted.clone());
        });
        guard
    }

    /// Passes on who was let in. A wrong key after too many of them is answered with the time to wait.
    pub fn judge<T>(&self, from: Option<ClientAddress>, found: Result<T, Refusal>) -> Result<T, Refusal> {
        let refusal = match found {
            Ok(found) => return Ok(found),
            Err(refusal) => refusal,
        };
        let Some((reason, is_wrong_key)) = reason(&refusal) else { return Err(refusal) };
        self.counted.get_or_create(&ReasonLabel { reason }).inc();
        let wait = from.filter(|_| is_wrong_key).and_then(|ClientAddress(from)| self.failed(from));
        Err(wait.map_or(refusal, throttled))
    }

    /// Refuses an address that has to wait, whatever its key is: for the listener of operators, whose first key people choose.
    pub fn admit(&self, from: Option<ClientAddress>) -> Result<(), Refusal> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = from.and_then(|ClientAddress(from)| failures.waits(from, Instant::now()));
        match wait {
            Some(wait) => {
                self.counted.get_or_create(&ReasonLabel { reason: "waiting" }).inc();
                Err(throttled(wait))
            }
            None => Ok(()),
        }
    }

    fn failed(&self, from: IpAddr) -> Option<Duration> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).failed(from, Instant::now())
    }
}

fn throttled(wait: Duration) -> Refusal {
    Refusal::TooManyWrongKeys { wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) }
}

/// Why an authentication failed, and whether a key was given that is wrong. `None`: it did not fail.
const fn reason(refusal: &Refusal) -> Option<(&'static str, bool)> {
    match refusal {
        Refusal::NoKey => Some(("missing", false)),
        Refusal::KeyInQuery => Some(("in_query", false)),
        Refusal::UnknownKey => Some(("unknown", true)),
        Refusal::HashAsKey => Some(("hash", true)),
        Refusal::KeyRevoked { .. } => Some(("revoked", true)),
        Refusal::KeyExpired { .. } => Some(("expired", true)),
        Refusal::MissingScope { .. } => Some(("scope", false)),
        Refusal::NoAdminKey => Some(("no_admin_key", true)),
        _ => None,
    }
}
