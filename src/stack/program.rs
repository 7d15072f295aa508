//! Runs a program of an installation to its end: bounded in time, and with the end of its output kept for the error message.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::Error;

/// How often a running program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How many lines of each output of a failed program are shown.
const LINES: usize = 20;

/// Runs a program in a process group of its own, so that all of it can be ended when the time is over. `look` is called
/// again and again meanwhile.
pub(super) fn run(program: &str, limit: Duration, command: &mut Command, look: impl Fn()) -> Result<(), Error> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|cause| Error::Run { program: program.to_owned(), cause })?;
    // Both outputs are kept apart, so that much on one of them does not push the reason out that stands on the other.
    let tails = [child.stdout.take().map(keep_tail), child.stderr.take().map(keep_tail)];
    let deadline = Instant::now() + limit;
    let status = loop {
        look();
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            Ok(None) | Err(_) => {
                end_group(&mut child);
                return Err(Error::TimedOut { what: program.to_owned(), limit });
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    let lines: Vec<String> = tails.into_iter().flatten().flat_map(|tail| tail.join().unwrap_or_default()).collect();
    Err(Error::Program { program: program.to_owned(), status: status.to_string(), output: lines.join("\n") })
}

/// Reads an output to its end and keeps the last lines.
fn keep_tail(pipe: impl Read + Send + 'static) -> JoinHandle<VecDeque<String>> {
    std::thread::spawn(move || {
        let mut tail = VecDeque::with_capacity(LINES);
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if tail.len() == LINES {
                tail.pop_front();
            }
            tail.push_back(String::from_utf8_lossy(&line).into_owned());
        }
        tail
    })
}

fn end_group(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // The child is not reaped yet, so the number is still its own.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<(), Error> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run("sh", limit, &mut command, || {})
    }

    #[test]
    fn a_failed_program_is_told_with_the_end_of_its_output() {
        let error = shell("echo broken >&2; seq 100; exit 3", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("broken") && error.contains("\n100"), "{error}");
        assert!(!error.contains("\n50\n"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let error = shell("sleep 1000 & wait", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }
}
