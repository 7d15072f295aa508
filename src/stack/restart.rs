//! When an engine that ended by itself is started again, and when that stops making sense.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often an engine may end before it is left alone.
#[derive(Clone, Debug)]
pub struct RestartPolicy {
    /// At most this many restarts within `window`.
    pub max_restarts: usize,
    /// The time over which restarts are counted.
    pub window: Duration,
    /// The wait before the first restart; it doubles with each further one in the window.
    pub first_delay: Duration,
    /// The longest wait before a restart.
    pub max_delay: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 6,
            window: Duration::from_secs(120),
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
        }
    }
}

/// What to do about an engine that ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    RestartAfter(Duration),
    GiveUp,
}

/// The recent ends of one engine.
#[derive(Debug, Default)]
pub(super) struct History {
    ends: VecDeque<Instant>,
}

impl History {
    pub(super) fn ended(&mut self, policy: &RestartPolicy, now: Instant) -> Verdict {
        while self.ends.front().is_some_and(|end| now.duration_since(*end) > policy.window) {
            self.ends.pop_front();
        }
        if self.ends.len() >= policy.max_restarts {
            return Verdict::GiveUp;
        }
        let doublings = u32::try_from(self.ends.len()).unwrap_or(u32::MAX).min(16);
        self.ends.push_back(now);
        let delay = policy.first_delay.saturating_mul(1 << doublings);
        Verdict::RestartAfter(delay.min(policy.max_delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RestartPolicy {
        RestartPolicy {
            max_restarts: 3,
            window: Duration::from_secs(60),
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_millis(300),
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_then_the_engine_is_left_alone() {
        let (mut history, now) = (History::default(), Instant::now());
        let verdicts: Vec<_> = (0..4).map(|_| history.ended(&policy(), now)).collect();
        assert_eq!(
            verdicts,
            [
                Verdict::RestartAfter(Duration::from_millis(100)),
                Verdict::RestartAfter(Duration::from_millis(200)),
                Verdict::RestartAfter(Duration::from_millis(300)),
                Verdict::GiveUp,
            ]
        );
    }

    #[test]
    fn ends_outside_the_window_are_forgotten() {
        let (mut history, start) = (History::default(), Instant::now());
        for _ in 0..3 {
            history.ended(&policy(), start);
        }
        assert_eq!(
            history.ended(&policy(), start + Duration::from_secs(61)),
            Verdict::RestartAfter(Duration::from_millis(100))
        );
    }
}
