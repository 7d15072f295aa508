//! Requests and tokens per minute, and requests at a time.
//!
//! A bucket per limit, exact in integers: what was taken runs out evenly, a limit's worth in a minute of the partition's
//! time. That is the generic cell rate algorithm (ITU-T I.371, Annex A) as a leaky bucket with a burst of one minute.
//! Nothing here is a counter of a process: the buckets are the owner's state, so a limit holds however many processes and
//! facades there are, and a new owner goes on where the former one was.

use serde::{Deserialize, Serialize};

use crate::domain::Timestamp;
use crate::records::control::Limits;
use crate::records::journal::{LimitCharge, LimitScope};
use crate::records::responses::{RateLimit, RateLimits};

/// Milliseconds of a minute: what one unit weighs in a bucket, so that a limit of so many a minute runs out by so much in
/// each millisecond.
const MINUTE_MS: u64 = 60_000;

/// What was taken of one limit and has not run out yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bucket {
    /// Units times [`MINUTE_MS`], as of `at`.
    level: u64,
    /// The limit by which it runs out.
    per_minute: u64,
    at: Timestamp,
}

impl Bucket {
    /// What is left in it at `at`, in units times [`MINUTE_MS`]. A time before its own is its own.
    fn level_at(&self, at: Timestamp) -> u64 {
        let elapsed = u64::try_from(at.since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.level.saturating_sub(self.per_minute.saturating_mul(elapsed))
    }

    pub fn is_empty_at(&self, at: Timestamp) -> bool {
        self.level_at(at) == 0
    }

    /// Takes so many units of a limit, whether there is room for them or not.
    pub fn take(&mut self, per_minute: u64, units: u64, at: Timestamp) {
        let level = self.level_at(at).saturating_add(units.saturating_mul(MINUTE_MS));
        *self = Self { level, per_minute, at: at.max(self.at) };
    }

    /// It is known now how many units were used where `charged` had been taken.
    pub fn correct(&mut self, charged: u64, used: u64, at: Timestamp) {
        let level = self.level_at(at);
        self.level = match used.checked_sub(charged) {
            Some(more) => level.saturating_add(more.saturating_mul(MINUTE_MS)),
            None => level.saturating_sub((charged - used).saturating_mul(MINUTE_MS)),
        };
        self.at = at.max(self.at);
    }

    /// Whether so many units fit; if not, in how many milliseconds they will. `None`: they never do.
    fn fits(&self, per_minute: u64, units: u64, at: Timestamp) -> Result<(), Option<u64>> {
        let (most, wanted) = (per_minute.saturating_mul(MINUTE_MS), units.saturating_mul(MINUTE_MS));
        if wanted > most || per_minute == 0 {
            return Err(None);
        }
        let over = self.level_at(at).saturating_sub(most - wanted);
        if over == 0 { Ok(()) } else { Err(Some(self.run_out_ms(over))) }
    }

    /// What is left of a limit.
    fn left(&self, per_minute: u64, at: Timestamp) -> RateLimit {
        let (most, level) = (per_minute.saturating_mul(MINUTE_MS), self.level_at(at));
        RateLimit {
            limit: per_minute,
            remaining: most.saturating_sub(level) / MINUTE_MS,
            reset_ms: if per_minute == 0 { MINUTE_MS } else { self.run_out_ms(level) },
        }
    }

    /// In how many milliseconds so much of it runs out: by the limit that it was taken of, which may have changed since.
    const fn run_out_ms(&self, level: u64) -> u64 {
        if self.per_minute == 0 { 0 } else { level.div_ceil(self.per_minute) }
    }
}

/// The buckets of an organization, of one of its keys, or of its calls of a model, and how many are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meter {
    pub requests: Bucket,
    pub tokens: Bucket,
    /// Derived from the open requests.
    #[serde(skip)]
    pub open: u32,
}

/// Why a request does not fit into the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    pub scope: LimitScope,
    pub what: What,
    pub limit: u64,
    /// When it would; `None`: nobody knows, or never.
    pub retry_after_ms: Option<u64>,
    /// It is more than the whole limit.
    pub never: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Requests,
    Tokens,
    Concurrent,
}

impl Exceeded {
    /// As facts name it.
    pub fn name(&self) -> String {
        let what = match self.what {
            What::Requests => "requests_per_minute",
            What::Tokens => "tokens_per_minute",
            What::Concurrent => "concurrent_requests",
        };
        format!("{}.{what}", scope_name(self.scope))
    }
}

pub const fn scope_name(scope: LimitScope) -> &'static str {
    match scope {
        LimitScope::Organization => "organization",
        LimitScope::Key => "key",
        LimitScope::Model => "model",
        LimitScope::Unknown => "unknown",
    }
}

impl Meter {
    /// What one more request with so many tokens takes; `None` where nothing is limited.
    ///
    /// # Errors
    /// The limit that it does not fit into.
    pub fn charge(
        &self,
        scope: LimitScope,
        limits: Limits,
        tokens: u64,
        at: Timestamp,
    ) -> Result<Option<LimitCharge>, Exceeded> {
        let Limits { requests_per_minute, tokens_per_minute, concurrent_requests } = limits;
        let exceeded =
            |what, limit, wait: Option<u64>, never| Exceeded { scope, what, limit, retry_after_ms: wait, never };
        if let Some(limit) = concurrent_requests
            && u64::from(self.open) >= limit
        {
            return Err(exceeded(What::Concurrent, limit, (limit > 0).then_some(1_000), limit == 0));
        }
        let minute = [
            (What::Requests, &self.requests, requests_per_minute, 1),
            (What::Tokens, &self.tokens, tokens_per_minute, tokens),
        ];
        for (what, bucket, limit, units) in minute {
            if let Some(limit) = limit {
                bucket.fits(limit, units, at).map_err(|wait| exceeded(what, limit, wait, wait.is_none()))?;
            }
        }
        let charge = LimitCharge { scope, requests_per_minute, tokens_per_minute, tokens };
        Ok((limits != Limits::NONE).then_some(charge))
    }

    /// Folds a charge.
    pub fn take(&mut self, charge: &LimitCharge, at: Timestamp) {
        if let Some(limit) = charge.requests_per_minute {
            self.requests.take(limit, 1, at);
        }
        if let Some(limit) = charge.tokens_per_minute {
            self.tokens.take(limit, charge.tokens, at);
        }
    }

    /// Folds what a charge came to.
    pub fn correct(&mut self, charge: &LimitCharge, used_tokens: u64, at: Timestamp) {
        if charge.tokens_per_minute.is_some() {
            self.tokens.correct(charge.tokens, used_tokens, at);
        }
    }

    /// Nothing is open, and everything has run out.
    pub fn is_at_rest(&self, at: Timestamp) -> bool {
        self.open == 0 && self.requests.is_empty_at(at) && self.tokens.is_empty_at(at)
    }

    /// What is left of the limits once this charge is taken.
    pub fn left_after(mut self, limits: Limits, charge: Option<&LimitCharge>, at: Timestamp) -> RateLimits {
        if let Some(charge) = charge {
            self.take(charge, at);
        }
        RateLimits {
            requests: limits.requests_per_minute.map(|limit| self.requests.left(limit, at)),
            tokens: limits.tokens_per_minute.map(|limit| self.tokens.left(limit, at)),
        }
    }
}

/// Of several scopes the one with the least left, for each limit.
pub fn least(a: RateLimits, b: RateLimits) -> RateLimits {
    let less = |a: Option<RateLimit>, b: Option<RateLimit>| match (a, b) {
        (Some(a), Some(b)) => Some(if b.remaining < a.remaining { b } else { a }),
        (a, b) => a.or(b),
    };
    RateLimits { requests: less(a.requests, b.requests), tokens: less(a.tokens, b.tokens) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn limits(requests: Option<u64>, tokens: Option<u64>, concurrent: Option<u64>) -> Limits {
        Limits { requests_per_minute: requests, tokens_per_minute: tokens, concurrent_requests: concurrent }
    }

    fn taken(meter: &mut Meter, limits: Limits, tokens: u64, now: i64) -> Result<(), Exceeded> {
        let charge = meter.charge(LimitScope::Organization, limits, tokens, at(now))?;
        if let Some(charge) = charge {
            meter.take(&charge, at(now));
        }
        Ok(())
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_evenly() {
        let (mut meter, limits) = (Meter::default(), limits(Some(3), None, None));
        let table = [
            (0, None),
            (0, None),
            (0, None),
            // One has run out after twenty seconds.
            (1, Some(19_999)),
            (19_999, Some(1)),
            (20_000, None),
            (20_000, Some(20_000)),
            (60_000, None),
            (60_000, None),
            (60_000, Some(20_000)),
            (1_000_000, None),
        ];
        for (now, wait) in table {
            let found = taken(&mut meter, limits, 0, now).err().and_then(|exceeded| exceeded.retry_after_ms);
            assert_eq!(found, wait, "at {now}");
        }
    }

    #[test]
    fn tokens_are_corrected_to_what_was_used() {
        let (mut meter, limits) = (Meter::default(), limits(None, Some(1_000), None));
        taken(&mut meter, limits, 900, 0).unwrap();
        let refused = taken(&mut meter, limits, 200, 0).unwrap_err();
        assert_eq!((refused.what, refused.retry_after_ms, refused.never), (What::Tokens, Some(6_000), false));
        let charge = LimitCharge {
            scope: LimitScope::Organization,
            requests_per_minute: None,
            tokens_per_minute: Some(1_000),
            tokens: 900,
        };
        meter.correct(&charge, 100, at(0));
        taken(&mut meter, limits, 900, 0).unwrap();
        // More than was taken: the limit is overrun, and the wait longer.
        meter.correct(&charge, 1_900, at(0));
        assert_eq!(taken(&mut meter, limits, 1, 0).unwrap_err().retry_after_ms, Some(60_060));
        assert!(!meter.is_at_rest(at(119_999)) && meter.is_at_rest(at(120_000)));
    }

    #[test]
    fn what_is_more_than_the_limit_never_fits() {
        let meter = Meter::default();
        for limits in [limits(None, Some(10), None), limits(Some(0), None, None), limits(None, None, Some(0))] {
            let refused = meter.charge(LimitScope::Key, limits, 11, at(0)).unwrap_err();
            assert!(refused.never && refused.retry_after_ms.is_none(), "{refused:?}");
        }
    }

    #[test]
    fn after_a_change_of_the_limit_the_wait_is_by_what_was_taken_of_the_old_one() {
        let old = limits(None, Some(600), None);
        for new in [60, 300, 1_200] {
            let mut meter = Meter::default();
            taken(&mut meter, old, 600, 0).unwrap();
            let new = limits(None, Some(new), None);
            let (wanted, mut now, mut waits) = (new.tokens_per_minute.unwrap(), 0, 0);
            while let Err(exceeded) = taken(&mut meter.clone(), new, wanted, now) {
                now += i64::try_from(exceeded.retry_after_ms.unwrap()).unwrap();
                waits += 1;
            }
            assert!(now > 0 && waits == 1, "{new:?}: {waits} waits until {now}");
            assert!(taken(&mut meter.clone(), new, wanted, now - 1).is_err());
            let left = meter.left_after(new, None, at(0)).tokens.unwrap();
            assert_eq!(left.reset_ms, 60_000);
        }
    }

    #[test]
    fn as_many_at_a_time_as_the_limit_says() {
        let mut meter = Meter::default();
        for open in 0..5 {
            meter.open = open;
            assert!(meter.charge(LimitScope::Model, limits(None, None, Some(5)), 1, at(0)).is_ok_and(|c| c.is_some()));
        }
        meter.open = 5;
        let refused = meter.charge(LimitScope::Model, limits(None, None, Some(5)), 1, at(0)).unwrap_err();
        assert_eq!(refused.name(), "model.concurrent_requests");
    }

    #[test]
    fn what_is_left_is_told_with_the_request_taken_out() {
        let (meter, limits) = (Meter::default(), limits(Some(60), Some(1_000), None));
        let charge = meter.charge(LimitScope::Organization, limits, 100, at(0)).unwrap();
        let left = meter.left_after(limits, charge.as_ref(), at(0));
        assert_eq!(left.requests, Some(RateLimit { limit: 60, remaining: 59, reset_ms: 1_000 }));
        assert_eq!(left.tokens, Some(RateLimit { limit: 1_000, remaining: 900, reset_ms: 6_000 }));
        let other = RateLimits { requests: Some(RateLimit { limit: 5, remaining: 3, reset_ms: 9 }), tokens: None };
        assert_eq!(least(left, other), RateLimits { requests: other.requests, tokens: left.tokens });
    }

    proptest! {
        /// In no minute more than twice the limit (a full bucket, and what ran out meanwhile), and in a long time never
        /// more than the limit allows; what is told to wait is exactly what has to be waited.
        #[test]
        fn the_limit_holds_and_the_wait_is_exact(
            limit in 1_u64..200,
            steps in proptest::collection::vec((0_i64..5_000, 1_u64..20), 1..300),
        ) {
            let (mut meter, limits) = (Meter::default(), limits(None, Some(limit), None));
            let (mut now, mut admitted) = (0, 0);
            for (step, tokens) in steps {
                now += step;
                match taken(&mut meter, limits, tokens, now) {
                    Ok(()) => admitted += tokens,
                    Err(exceeded) => match exceeded.retry_after_ms {
                        None => prop_assert!(tokens > limit),
                        Some(wait) => {
                            let later = now + wait as i64;
                            prop_assert!(taken(&mut meter.clone(), limits, tokens, later - 1).is_err());
                            prop_assert!(taken(&mut meter.clone(), limits, tokens, later).is_ok());
                        }
                    },
                }
                prop_assert!(admitted <= limit + (limit * now as u64).div_ceil(MINUTE_MS));
            }
        }
    }
}
