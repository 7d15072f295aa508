//! The thread that starts the engines, watches them and starts them again.
//!
//! The kernel ends an engine when the *thread* that started it ends (`PR_SET_PDEATHSIG`), which is how engines cannot
//! outlive a process that is killed. So one thread starts all of them and lives as long as they do.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::watch;

use super::engine::Launch;
use super::layout::Layout;
use super::record::{EngineState, EngineStatus, Phase, Record};
use super::restart::{History, RestartPolicy, Verdict};
use super::{Engine, Error, Identity};

/// How often the engines are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the size of the logs is looked at.
const LOGS_EVERY: Duration = Duration::from_secs(5);
/// A log that is longer than this many bytes begins anew; one older log is kept.
const LOG_BYTES: u64 = 16 * 1024 * 1024;
/// More than the number of orders that are ever under way.
const ORDERS: usize = 8;

enum Order {
    Start(Launch),
    Serving,
    Stop { grace: Duration },
}

/// The handle of the thread. Without [`Supervisor::stop`], dropping it kills the engines.
#[derive(Debug)]
pub(super) struct Supervisor {
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    record: watch::Receiver<Record>,
}

impl Supervisor {
    /// Starts the thread, with no engines yet.
    pub(super) fn spawn(layout: Layout, record: Record, policy: RestartPolicy) -> Result<Self, Error> {
        fs::create_dir_all(layout.logs()).map_err(Error::file("create the directory", &layout.logs()))?;
        record.write(&layout)?;
        let (orders, inbox) = sync_channel(ORDERS);
        let (sender, receiver) = watch::channel(record);
        let watcher = Watcher { layout, policy, record: sender, slots: Vec::new(), logs_checked: Instant::now() };
        let thread = std::thread::Builder::new()
            .name("stack-supervisor".to_owned())
            .spawn(move || watcher.run(&inbox))
            .map_err(|cause| Error::Run { program: "the supervising thread".to_owned(), cause })?;
        Ok(Self { orders: Some(orders), thread: Some(thread), record: receiver })
    }

    pub(super) fn start(&self, launch: Launch) -> Result<(), Error> {
        self.order(Order::Start(launch))
    }

    /// All engines have answered.
    pub(super) fn serving(&self) -> Result<(), Error> {
        self.order(Order::Serving)
    }

    pub(super) fn record(&self) -> watch::Receiver<Record> {
        self.record.clone()
    }

    /// Ends the engines and the thread. Blocks, at most a little longer than `grace`.
    pub(super) fn stop(mut self, grace: Duration) -> Result<(), Error> {
        self.order(Order::Stop { grace })?;
        self.join()
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        const GONE: Error = Error::Internal { what: "the supervising thread" };
        let orders = self.orders.as_ref().ok_or(GONE)?;
        orders.send(order).map_err(|_| GONE)
    }

    fn join(&mut self) -> Result<(), Error> {
        self.orders = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(Error::Internal { what: "the supervising thread" }),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // The closed channel is the order to kill; the result has nobody left to go to.
        let _ = self.join();
    }
}

/// An engine and what is going on with it.
struct Slot {
    launch: Launch,
    history: History,
    activity: Activity,
}

enum Activity {
    Running(Child),
    Waiting(Instant),
    Over,
}

struct Watcher {
    layout: Layout,
    policy: RestartPolicy,
    record: watch::Sender<Record>,
    slots: Vec<Slot>,
    logs_checked: Instant,
}

impl Watcher {
    fn run(mut self, inbox: &Receiver<Order>) {
        let grace = loop {
            match inbox.recv_timeout(LOOK_EVERY) {
                Ok(Order::Start(launch)) => self.add(launch),
                Ok(Order::Serving) => self.publish(|record| record.phase = Phase::Serving),
                Ok(Order::Stop { grace }) => break grace,
                Err(RecvTimeoutError::Disconnected) => break Duration::ZERO,
                Err(RecvTimeoutError::Timeout) => {}
            }
            for index in 0..self.slots.len() {
                self.look(index);
            }
            if self.logs_checked.elapsed() >= LOGS_EVERY {
                self.logs_checked = Instant::now();
                self.rotate_logs();
            }
        };
        self.end_all(grace);
    }

    fn add(&mut self, launch: Launch) {
        self.slots.push(Slot { launch, history: History::default(), activity: Activity::Over });
        self.start(self.slots.len() - 1);
    }

    fn look(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        match &mut slot.activity {
            Activity::Running(child) => match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => self.ended(index, &describe(status)),
                Err(error) => self.ended(index, &error.to_string()),
            },
            Activity::Waiting(until) if Instant::now() >= *until => {
                let engine = slot.launch.engine;
                self.update(engine, |status| status.restarts += 1);
                self.start(index);
            }
            Activity::Waiting(_) | Activity::Over => {}
        }
    }

    fn start(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let engine = slot.launch.engine;
        match spawn(&slot.launch) {
            Ok(child) => {
                let process = Identity::of(child.id());
                slot.activity = Activity::Running(child);
                tracing::info!(engine = engine.name(), pid = process.map(|p| p.pid), "engine started");
                self.update(engine, |status| {
                    status.state = EngineState::Running;
                    status.process = process;
                });
            }
            Err(error) => self.ended(index, &error.to_string()),
        }
    }

    fn ended(&mut self, index: usize, reason: &str) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let engine = slot.launch.engine;
        let now = Instant::now();
        let state = match slot.history.ended(&self.policy, now) {
            Verdict::RestartAfter(delay) => {
                tracing::warn!(
                    engine = engine.name(),
                    reason,
                    delay_ms = delay.as_millis(),
                    "engine ended, starting it again"
                );
                slot.activity = Activity::Waiting(now + delay);
                EngineState::Waiting
            }
            Verdict::GiveUp => {
                tracing::error!(engine = engine.name(), reason, "engine ended too often, leaving it");
                slot.activity = Activity::Over;
                EngineState::Failed
            }
        };
        self.update(engine, |status| {
            status.state = state;
            status.process = None;
            status.last_end = Some(reason.to_owned());
        });
    }

    fn end_all(&mut self, grace: Duration) {
        self.publish(|record| record.phase = Phase::Stopping);
        for slot in &mut self.slots {
            if let Activity::Running(child) = &mut slot.activity {
                signal(child, Signal::TERM);
            }
        }
        let deadline = Instant::now() + grace;
        for slot in &mut self.slots {
            let Activity::Running(child) = &mut slot.activity else {
                continue;
            };
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    if !grace.is_zero() {
                        tracing::warn!(engine = slot.launch.engine.name(), "engine does not end, killing it");
                    }
                    signal(child, Signal::KILL);
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // After SIGKILL this takes no longer than the kernel needs.
            let _ = child.wait();
            slot.activity = Activity::Over;
        }
        self.record.send_modify(|record| {
            for status in &mut record.engines {
                status.state = EngineState::Stopped;
                status.process = None;
            }
        });
        if let Err(error) = Record::remove(&self.layout) {
            tracing::warn!(%error, "the record of the stack is left behind");
        }
    }

    fn update(&self, engine: Engine, change: impl FnOnce(&mut EngineStatus)) {
        self.publish(|record| {
            if let Some(status) = record.engines.iter_mut().find(|status| status.engine == engine) {
                change(status);
            }
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.borrow().clone();
        change(&mut record);
        if let Err(error) = record.write(&self.layout) {
            // The processes can still be found by their arguments.
            tracing::warn!(%error, "the record of the stack is out of date");
        }
        // Whoever waits for a state finds it in the file too.
        self.record.send_replace(record);
    }

    fn rotate_logs(&self) {
        for slot in &self.slots {
            if let Err(error) = rotate(&slot.launch.log) {
                tracing::warn!(%error, log = %slot.launch.log.display(), "log cannot be shortened");
            }
        }
    }
}

/// Starts an engine. Its own process group keeps a Ctrl-C in the terminal from it: the owner ends it when it is time.
fn spawn(launch: &Launch) -> Result<Child, Error> {
    let log = append(&launch.log)?;
    let log_too = log.try_clone().map_err(Error::file("open", &launch.log))?;
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(&launch.program)
        .args(&launch.arguments)
        .current_dir(&launch.directory)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .process_group(0)
        .spawn()
        .map_err(|cause| Error::Run { program: format!("setpriv {}", launch.program.display()), cause })
}

/// Opens a log so that every write goes to its end, wherever that is by then.
pub(super) fn append(log: &Path) -> Result<File, Error> {
    OpenOptions::new().create(true).append(true).open(log).map_err(Error::file("open", log))
}

/// Keeps the old content under another name and empties the log in place, since the engine keeps writing to the same file.
/// What is written in between is lost; a log is not where anything of value is kept.
fn rotate(log: &Path) -> std::io::Result<()> {
    if fs::metadata(log)?.len() <= LOG_BYTES {
        return Ok(());
    }
    let mut older = log.as_os_str().to_owned();
    older.push(".1");
    fs::copy(log, older)?;
    OpenOptions::new().write(true).open(log)?.set_len(0)
}

fn signal(child: &Child, signal: Signal) {
    if let Some(process) = Identity::of(child.id()) {
        process.signal(signal);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{Addresses, Mode, Ports};

    fn supervisor(directory: &Path, policy: RestartPolicy) -> (Layout, Supervisor) {
        let layout = Layout::create(directory).unwrap();
        let ports = Ports::default();
        let record = Record {
            owner: Identity::own().unwrap(),
            mode: Mode::Foreground,
            phase: Phase::Starting,
            ports,
            addresses: Addresses::from(&ports),
            engines: Engine::ALL.into_iter().map(EngineStatus::waiting).collect(),
        };
        let supervisor = Supervisor::spawn(layout.clone(), record, policy).unwrap();
        (layout, supervisor)
    }

    fn shell(layout: &Layout, script: &str) -> Launch {
        Launch {
            engine: Engine::Kafka,
            program: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            directory: layout.root().to_owned(),
            log: layout.log(Engine::Kafka),
        }
    }

    async fn until(supervisor: &Supervisor, wanted: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
        let mut record = supervisor.record();
        let reached = record.wait_for(|record| wanted(&record.engines[0]));
        let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
        reached.expect("the state was not reached").unwrap().engines[0].clone()
    }

    #[tokio::test]
    async fn an_engine_that_is_killed_is_started_again() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, supervisor) = supervisor(directory.path(), RestartPolicy::default());
        supervisor.start(shell(&layout, "echo up; exec sleep 1000")).unwrap();
        let first = until(&supervisor, |status| status.process.is_some()).await;
        assert!(first.process.unwrap().signal(Signal::KILL));
        let second = until(&supervisor, |s| s.process.is_some() && s.process != first.process).await;
        assert_eq!((second.restarts, second.last_end.as_deref()), (1, Some("signal 9")));
        assert_eq!(Record::read(&layout).unwrap().engines[0], second);
        supervisor.stop(Duration::from_secs(10)).unwrap();
        assert!(!second.process.unwrap().is_alive());
        assert_eq!(Record::read(&layout), None);
    }

    #[tokio::test]
    async fn an_engine_that_cannot_run_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let policy =
            RestartPolicy { max_restarts: 2, first_delay: Duration::from_millis(1), ..RestartPolicy::default() };
        let (layout, supervisor) = supervisor(directory.path(), policy);
        supervisor.start(shell(&layout, "echo broken >&2; exit 7")).unwrap();
        let status = until(&supervisor, |status| status.state == EngineState::Failed).await;
        assert_eq!((status.restarts, status.last_end.as_deref()), (2, Some("exit code 7")));
        assert_eq!(fs::read_to_string(layout.log(Engine::Kafka)).unwrap(), "broken\nbroken\nbroken\n");
    }

    #[tokio::test]
    async fn a_dropped_supervisor_leaves_nothing_running() {
        let directory = tempfile::tempdir().unwrap();
        let (layout, supervisor) = supervisor(directory.path(), RestartPolicy::default());
        supervisor.start(shell(&layout, "trap '' TERM; while :; do sleep 1; done")).unwrap();
        let process = until(&supervisor, |status| status.process.is_some()).await.process;
        drop(supervisor);
        assert!(!process.unwrap().is_alive());
    }

    #[test]
    fn a_long_log_begins_anew_and_its_old_content_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("kafka.log");
        let mut writer = append(&log).unwrap();
        std::io::Write::write_all(&mut writer, &vec![b'x'; 17 * 1024 * 1024]).unwrap();
        rotate(&log).unwrap();
        std::io::Write::write_all(&mut writer, b"next\n").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "next\n");
        let older = directory.path().join("kafka.log.1");
        assert_eq!(fs::metadata(older).unwrap().len(), 17 * 1024 * 1024);
    }
}
