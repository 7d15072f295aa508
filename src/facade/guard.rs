//! What becomes of a failed authentication: it is counted by its reason, and who gives wrong keys has to wait.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::error::Refusal;
use super::failures::Failures;
use super::server::ClientAddress;
use crate::telemetry::labels::{Closed, Label};

/// Why an authentication failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Missing,
    InQuery,
    Unknown,
    Hash,
    Revoked,
    Expired,
    Scope,
    NoAdminKey,
    /// It has to wait, whatever its key is.
    Waiting,
}

impl Label for Reason {
    const NAME: &'static str = "reason";
    const VALUES: &'static [Self] = &[
        Self::Missing,
        Self::InQuery,
        Self::Unknown,
        Self::Hash,
        Self::Revoked,
        Self::Expired,
        Self::Scope,
        Self::NoAdminKey,
        Self::Waiting,
    ];

    fn value(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::InQuery => "in_query",
            Self::Unknown => "unknown",
            Self::Hash => "hash",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Scope => "scope",
            Self::NoAdminKey => "no_admin_key",
            Self::Waiting => "waiting",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Counts and slows the failures of one listener.
pub struct Guard {
    failures: Mutex<Failures>,
    counted: Closed<Reason, Counter>,
}

impl Guard {
    /// Registers its counter under a name that begins with `prefix`.
    pub fn register(metrics: &crate::telemetry::Metrics, prefix: &'static str) -> Self {
        let meaning = "Requests without a key that may do this, by reason";
        Self { failures: Mutex::default(), counted: metrics.scope(prefix).counters("authentication_failures", meaning) }
    }

    /// Passes on who was let in. A wrong key after too many of them is answered with the time to wait.
    pub fn judge<T>(&self, from: Option<ClientAddress>, found: Result<T, Refusal>) -> Result<T, Refusal> {
        let refusal = match found {
            Ok(found) => return Ok(found),
            Err(refusal) => refusal,
        };
        let Some((reason, is_wrong_key)) = reason(&refusal) else { return Err(refusal) };
        self.counted.of(reason).inc();
        let wait = from.filter(|_| is_wrong_key).and_then(|ClientAddress(from)| self.failed(from));
        Err(wait.map_or(refusal, throttled))
    }

    /// Refuses an address that has to wait, whatever its key is: for the listener of operators, whose first key people choose.
    pub fn admit(&self, from: Option<ClientAddress>) -> Result<(), Refusal> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = from.and_then(|ClientAddress(from)| failures.waits(from, Instant::now()));
        match wait {
            Some(wait) => {
                self.counted.of(Reason::Waiting).inc();
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
const fn reason(refusal: &Refusal) -> Option<(Reason, bool)> {
    match refusal {
        Refusal::NoKey => Some((Reason::Missing, false)),
        Refusal::KeyInQuery => Some((Reason::InQuery, false)),
        Refusal::UnknownKey => Some((Reason::Unknown, true)),
        Refusal::HashAsKey => Some((Reason::Hash, true)),
        Refusal::KeyRevoked { .. } => Some((Reason::Revoked, true)),
        Refusal::KeyExpired { .. } => Some((Reason::Expired, true)),
        Refusal::MissingScope { .. } => Some((Reason::Scope, false)),
        Refusal::NoAdminKey => Some((Reason::NoAdminKey, true)),
        _ => None,
    }
}
