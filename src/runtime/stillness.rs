//! Whether this process stood still: stopped, frozen or starved for so long that its session may be over. Others may own
//! its partitions then, and it has not heard of that yet.

use std::time::{Duration, Instant};

pub struct Stillness {
    longest: Duration,
    /// When the current round of the loop began. Rounds follow each other within a tick of the clock.
    round_at: Instant,
}

impl Stillness {
    /// The group's coordinator counts a session from the last heartbeat, which may be a sixth of the session old when the
    /// process stops; half of it is safe.
    pub fn new(session: Duration) -> Self {
        Self { longest: session / 2, round_at: Instant::now() }
    }

    /// A round begins; whether this process stood still since the one before began.
    pub fn begin_round(&mut self) -> bool {
        let stood_still = self.in_this_round();
        self.round_at = Instant::now();
        stood_still
    }

    /// Whether it stood still since this round began.
    pub fn in_this_round(&self) -> bool {
        self.round_at.elapsed() >= self.longest
    }
}
