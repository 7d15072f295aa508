//! Processes by identity, not by number: a pid alone may belong to a stranger by the time that a signal is sent.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::Error;

/// How often the end of a process is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One process of this boot: the number may be used again, number and start time together are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process number.
    pub pid: u32,
    /// Clock ticks from boot to the start of the process.
    pub start_ticks: u64,
}

impl Identity {
    /// The process that has this number now, unless it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat).map(|start_ticks| Self { pid, start_ticks })
    }

    /// The calling process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether this very process still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Asks this very process to end (SIGTERM). False: it has ended.
    pub fn terminate(self) -> bool {
        self.signal(Signal::TERM)
    }

    /// Sends a signal to this very process. False: it has ended.
    pub(super) fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return false;
        };
        // The descriptor pins the process before its identity is checked, so the number cannot change hands in between.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        self.is_alive() && pidfd_send_signal(descriptor, signal).is_ok()
    }

    /// Waits until this process has ended. False: it still runs when the time is over.
    pub(super) fn wait(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

/// The start time out of `/proc/PID/stat`, or nothing for a process that has ended and only waits to be reaped. The command's
/// name stands in parentheses and may itself contain any character, so fields are counted from the last parenthesis.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The command line of a process.
pub(super) fn arguments(pid: u32) -> Vec<String> {
    fs::read(format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The numbers of all processes that can be seen.
pub(super) fn all() -> Vec<u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes of this user that carry one of these exact arguments. The engines of a stack are started with an argument
/// that names its data directory, so nobody else's process is found.
pub(super) fn with_argument(markers: &[String]) -> Vec<Identity> {
    let user = geteuid().as_raw();
    all()
        .into_iter()
        .filter(|pid| fs::metadata(Path::new("/proc").join(pid.to_string())).is_ok_and(|m| m.uid() == user))
        .filter(|pid| arguments(*pid).iter().any(|argument| markers.contains(argument)))
        .filter_map(Identity::of)
        .collect()
}

/// Ends these processes: SIGTERM, a bounded wait, SIGKILL for what is left.
pub(super) fn end(processes: &[Identity], grace: Duration) -> Result<(), Error> {
    for process in processes {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + grace;
    for process in processes {
        if !process.wait(deadline.saturating_duration_since(Instant::now())) {
            process.signal(Signal::KILL);
        }
    }
    let left: Vec<String> = processes
        .iter()
        .filter(|process| !process.wait(Duration::from_secs(5)))
        .map(|process| process.pid.to_string())
        .collect();
    if left.is_empty() { Ok(()) } else { Err(Error::CannotEnd { pids: left.join(", ") }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3";
        assert_eq!(parse_stat(stat), Some(4711));
        assert_eq!(parse_stat(&stat.replace(" S ", " Z ")), None);
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn a_process_with_another_start_time_is_somebody_else() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        let stranger = Identity { start_ticks: own.start_ticks + 1, ..own };
        assert!(!stranger.is_alive());
        assert!(!stranger.signal(Signal::TERM));
    }

    #[test]
    fn processes_are_found_by_an_exact_argument_and_ended() {
        let marker = format!("--tollstream-test={}", std::process::id());
        let spawn = |argument: &str| {
            std::process::Command::new("sh")
                .args(["-c", "read line", "sh", argument])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let (mut ours, mut strangers) = (spawn(&marker), spawn(&format!("{marker}0")));
        // The kernel wakes the parent a moment before the new program's arguments can be read.
        let deadline = Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = with_argument(std::slice::from_ref(&marker));
            if !found.is_empty() || Instant::now() > deadline {
                break found;
            }
        };
        assert_eq!(found, [Identity::of(ours.id()).unwrap()]);
        end(&found, Duration::from_secs(5)).unwrap();
        assert!(ours.wait().unwrap().code().is_none());
        assert!(strangers.try_wait().unwrap().is_none());
        strangers.kill().unwrap();
        strangers.wait().unwrap();
    }
}
