//! Named points on the way of a record at which a process ends or stops itself, as a crash or a stalled machine would.
//!
//! For the fault tests: they name a point by the environment of a `tollstream run` and look what becomes of the records.
//! Only programs that are built with the feature `failpoints` know them; without it, which is how every release is built,
//! [`reached`] is nothing at all. "Before" and "after" a record is produced mean before and after the producer took it:
//! what it took may or may not be on the topic after a kill, as in life.

/// Where a process can be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Failpoint {
    /// A tenure: its `OwnershipTaken`, and the end of the takeover.
    BeforeOwnership,
    AfterOwnership,
    OwnershipAcknowledged,
    TakenOver,
    /// A commit, and its commands.
    BeforeCommit,
    AfterCommit,
    CommitAcknowledged,
    CommandsRun,
    /// A call of a provider, and what it leads to.
    BeforeCall,
    AfterCall,
    CallEnded,
    /// A frame with content.
    BeforeContent,
    AfterContent,
    ContentAcknowledged,
    /// A terminal frame.
    BeforeTerminal,
    AfterTerminal,
    /// A record that is put elsewhere.
    BeforeDeadLetter,
    AfterDeadLetter,
    BeforeForward,
    AfterForward,
    DisposalAcknowledged,
    /// A checkpoint: its parts, and the marker that vouches for them.
    BeforePart,
    AfterPart,
    BeforeMarker,
    AfterMarker,
    /// The offsets of the group `processor`.
    BeforeOffsets,
    AfterOffsets,
    /// journal -> usage.
    BeforeUsage,
    AfterUsage,
    UsageAcknowledged,
    BeforeUsageOffsets,
    AfterUsageOffsets,
    /// usage -> ClickHouse.
    BeforeInsert,
    AfterInsert,
    BeforeLetter,
    AfterLetter,
    BeforeRowOffsets,
    AfterRowOffsets,
    /// journal -> ClickHouse.
    BeforeEvents,
    AfterEvents,
    BeforeEventOffsets,
    AfterEventOffsets,
    /// HTTP -> requests, responses -> HTTP.
    BeforeRequest,
    AfterRequest,
    RequestAcknowledged,
    FrameReceived,
    /// A replay.
    PartitionReplayed,
}

#[cfg(feature = "failpoints")]
pub use armed::{Armed, arm, reached};

/// A process reaches a point.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn reached(_: Failpoint) {}

#[cfg(feature = "failpoints")]
mod armed {
    use std::fmt;
    use std::io::Write as _;
    use std::str::FromStr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use clap::ValueEnum as _;
    use rustix::process::{Signal, getpid, kill_process};

    use super::Failpoint;

    static ARMED: OnceLock<Armed> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    /// How often a thread that is to stop looks whether it did, how many times at the most, and how long a stop lasts at
    /// the least.
    const STOP_LOOK: Duration = Duration::from_millis(1);
    const STOP_LOOKS_MAX: u32 = 10_000;
    const STOPPED_MIN: Duration = Duration::from_secs(1);

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Kill,
        Stop,
        /// Ends the task that gets there.
        Panic,
    }

    /// What happens where: `before-commit=kill@3` kills the process the third time that it gets there.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Armed {
        point: Failpoint,
        action: Action,
        passing: u64,
    }

    impl FromStr for Armed {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let form = || format!("{text:?} is not of the form before-commit=kill@1");
            let (point, action) = text.split_once('=').ok_or_else(form)?;
            let (action, passing) = action.split_once('@').ok_or_else(form)?;
            let action = match action {
                "kill" => Action::Kill,
                "stop" => Action::Stop,
                "panic" => Action::Panic,
                _ => return Err(form()),
            };
            let passing = passing.parse().ok().filter(|passing| *passing > 0).ok_or_else(form)?;
            Ok(Self { point: Failpoint::from_str(point, false)?, action, passing })
        }
    }

    impl fmt::Display for Armed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let action = match self.action {
                Action::Kill => "kill",
                Action::Stop => "stop",
                Action::Panic => "panic",
            };
            let point = self.point.to_possible_value();
            write!(f, "{}={action}@{}", point.as_ref().map_or("", clap::builder::PossibleValue::get_name), self.passing)
        }
    }

    /// Arms a point for the life of the process; the first one that is armed stays.
    pub fn arm(armed: Armed) {
        let _ = ARMED.set(armed);
    }

    /// A process reaches a point: if it is the armed one, this may be its end. The mark on standard error says so.
    pub fn reached(point: Failpoint) {
        let Some(armed) = ARMED.get().filter(|armed| armed.point == point) else { return };
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 != armed.passing {
            return;
        }
        let _ = writeln!(std::io::stderr(), "failpoint {armed}");
        match armed.action {
            Action::Kill => signal(Signal::KILL),
            Action::Stop => {
                signal(Signal::STOP);
                await_stop();
            }
            Action::Panic => std::panic::resume_unwind(Box::new("failpoint")),
        }
    }

    fn signal(signal: Signal) {
        // A process may signal itself; nothing else can go wrong.
        let _ = kill_process(getpid(), signal);
    }

    /// A stop reaches one thread first, and this one may be another: it must not go on before it has stopped, too, which it
    /// knows by the time that has passed when it wakes.
    fn await_stop() {
        for _ in 0..STOP_LOOKS_MAX {
            let looked = Instant::now();
            std::thread::sleep(STOP_LOOK);
            if looked.elapsed() > STOPPED_MIN {
                return;
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_happens_where_is_read_as_it_is_written() {
            for text in ["before-commit=kill@3", "taken-over=stop@1", "call-ended=panic@2"] {
                assert_eq!(text.parse::<Armed>().unwrap().to_string(), text);
            }
            for text in
                ["before-commit", "before-commit=kill", "before-commit=kill@0", "before-commit=sleep@1", "no=kill@1"]
            {
                assert!(text.parse::<Armed>().is_err(), "{text}");
            }
        }
    }
}
