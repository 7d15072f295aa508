//! The detached form: a process of its own that owns the engines, and what others do with it.
//!
//! `up` starts the binary again with the hidden command [`SUPERVISE`]; that process runs the foreground form until it is
//! told to end. The two talk once, over the new process's standard output: one line of JSON when the engines serve, or
//! when they cannot. Everybody else finds the process through the record in the data directory, and never by number alone.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use super::record::{EngineState, Mode, Phase, Record};
use super::running::{end_orphans, lock, tail, up_as};
use super::{Addresses, Engine, Error, Layout, Options, Ports, Progress, install, process, ready, supervisor};

/// The hidden command of the supervising process.
pub const SUPERVISE: [&str; 2] = ["stack", "supervise"];
/// What a supervisor needs besides the time that its engines need.
const MARGIN: Duration = Duration::from_secs(30);
/// How often a stack that somebody else starts is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How a stack came to be up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was started.
    Started,
    /// It was up already.
    AlreadyUp,
}

/// What the supervising process says to the one that started it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Serving,
    Failed(String),
}

/// Ports that somebody asked for by name; the others may be what they are.
pub type Wanted = [Option<u16>; 5];

/// Installs what is missing, leaves a supervising process behind and returns when all engines serve.
pub async fn up(options: Options, wanted: Wanted, progress: &Progress) -> Result<(Outcome, Record), Error> {
    let layout = Layout::create(&options.data)?;
    if let Some(record) = await_or_end_present(&layout, &options, progress).await? {
        check_ports(&layout, &record.ports, wanted)?;
        return Ok((Outcome::AlreadyUp, record));
    }
    // Installed here and not in the supervisor, so that the bars are seen.
    let (engines, shown) = (options.engines.clone(), progress.clone());
    blocking(move || install(&engines, &shown).map(|_| ())).await?;
    let task = progress.task("starting kafka, registry and clickhouse", None);
    let mut child = spawn(&layout, &options)?;
    let word = tokio::time::timeout(options.start_timeout + MARGIN, first_word(&mut child, &layout));
    match word.await {
        Ok(Ok(Word::Serving)) => {
            task.done("kafka, registry and clickhouse serve");
            let record = Record::read(&layout).ok_or(Error::Internal { what: "the supervisor" })?;
            Ok((Outcome::Started, record))
        }
        Ok(Ok(Word::Failed(reason))) => Err(Error::Supervisor(reason)),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let _ = child.kill().await;
            Err(Error::TimedOut { what: "the start of the engines".to_owned(), limit: options.start_timeout + MARGIN })
        }
    }
}

/// The record of a stack that is up in this data directory. One that is starting is waited for; one that has given an engine
/// up is ended, so that it can be started anew.
async fn await_or_end_present(
    layout: &Layout,
    options: &Options,
    progress: &Progress,
) -> Result<Option<Record>, Error> {
    let deadline = tokio::time::Instant::now() + options.start_timeout + MARGIN;
    while let Some(record) = live(layout) {
        match (record.mode, record.phase) {
            (Mode::Foreground, _) => {
                return Err(Error::DataInUse {
                    data: layout.root().to_owned(),
                    holder: format!("process {}, which runs its engines in the foreground", record.owner.pid),
                });
            }
            (Mode::Detached, Phase::Serving) => {
                if record.engines.iter().all(|status| status.state != EngineState::Failed) {
                    return Ok(Some(record));
                }
                progress.say("an engine of this stack has failed; starting the stack anew");
                down(layout.root(), options.stop_timeout, progress).await?;
            }
            (Mode::Detached, Phase::Starting | Phase::Stopping) => {
                if tokio::time::Instant::now() >= deadline {
                    return Err(Error::TimedOut {
                        what: format!("the start or end of the stack of process {}", record.owner.pid),
                        limit: options.start_timeout + MARGIN,
                    });
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
    Ok(None)
}

fn check_ports(layout: &Layout, actual: &Ports, wanted: Wanted) -> Result<(), Error> {
    for (named, wanted) in actual.named().into_iter().zip(wanted) {
        if let Some(wanted) = wanted
            && wanted != named.port
        {
            return Err(Error::OtherPort {
                data: layout.root().to_owned(),
                purpose: named.purpose,
                actual: named.port,
                wanted,
            });
        }
    }
    Ok(())
}

/// The record of a data directory, if the process that wrote it still runs.
fn live(layout: &Layout) -> Option<Record> {
    Record::read(layout).filter(|record| {
        record.owner.is_alive()
            && match record.mode {
                Mode::Foreground => true,
                Mode::Detached => is_supervisor(record.owner.pid, layout),
            }
    })
}

/// Whether a process is the supervisor of exactly this data directory.
fn is_supervisor(pid: u32, layout: &Layout) -> bool {
    let arguments = process::arguments(pid);
    arguments.windows(2).any(|pair| pair == SUPERVISE)
        && arguments.windows(2).any(|pair| pair[0] == "--data" && pair[1] == layout.text())
}

fn spawn(layout: &Layout, options: &Options) -> Result<Child, Error> {
    std::fs::create_dir_all(layout.logs()).map_err(Error::file("create the directory", &layout.logs()))?;
    let program =
        std::env::current_exe().map_err(|cause| Error::Run { program: "this program once more".to_owned(), cause })?;
    let log = supervisor::append(&layout.supervisor_log())?;
    let mut command = Command::new(&program);
    command.args(SUPERVISE).arg("--data").arg(layout.root()).args(arguments(options));
    // The directory is not kept busy by a process that outlives the shell in it.
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command.spawn().map_err(|cause| Error::Run { program: program.display().to_string(), cause })
}

/// The options that the supervising process is started with, besides its data directory.
fn arguments(options: &Options) -> Vec<OsString> {
    let engines = std::path::absolute(&options.engines).unwrap_or_else(|_| options.engines.clone());
    let mut arguments: Vec<OsString> = vec!["--engines".into(), engines.into()];
    for named in options.ports.named() {
        arguments.extend([named.flag.into(), named.port.to_string().into()]);
    }
    for (flag, time) in [("--start-timeout-s", options.start_timeout), ("--stop-timeout-s", options.stop_timeout)] {
        arguments.extend([flag.into(), time.as_secs().to_string().into()]);
    }
    arguments
}

async fn first_word(child: &mut Child, layout: &Layout) -> Result<Word, Error> {
    let ended = || {
        let log = layout.supervisor_log();
        Error::SupervisorEnded { tail: tail(&log), log }
    };
    let output = child.stdout.take().ok_or_else(ended)?;
    let line = BufReader::new(output).lines().next_line().await.ok().flatten().ok_or_else(ended)?;
    serde_json::from_str(&line).map_err(|_| ended())
}

/// The supervising process: runs the engines until SIGTERM or SIGINT. An error has been told to whoever started it.
pub async fn supervise(options: Options) -> Result<(), Error> {
    // A session of its own: the terminal that `up` was typed into may go away. It fails for the leader of a group, who
    // was started by hand and wants to keep its terminal.
    let _ = rustix::process::setsid();
    let mut ends = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = &mut ends else {
        return Err(Error::Internal { what: "the handling of signals" });
    };
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);
    let started = tokio::select! {
        started = up_as(Mode::Detached, options, &Progress::Lines) => started,
        () = &mut stop => return Ok(()),
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            say(&Word::Failed(error.to_string()));
            return Err(error);
        }
    };
    say(&Word::Serving);
    stop.await;
    tracing::info!("ending the engines");
    running.stop().await
}

/// One line for the process that started this one; it may be gone.
fn say(word: &Word) {
    if let Ok(line) = serde_json::to_string(word) {
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

/// Ends the stack of a data directory: its supervisor, which ends the engines, or engines that a killed supervisor left.
/// True: something was ended. Nothing but processes of this data directory is touched.
pub async fn down(data: &Path, grace: Duration, progress: &Progress) -> Result<bool, Error> {
    if !data.exists() {
        return Ok(false);
    }
    let layout = Layout::open(data)?;
    let progress = progress.clone();
    blocking(move || {
        let present = live(&layout);
        if let Some(record) = &present {
            if record.mode == Mode::Foreground {
                return Err(Error::DataInUse {
                    data: layout.root().to_owned(),
                    holder: format!("process {}, which ends its engines itself when it ends", record.owner.pid),
                });
            }
            record.owner.signal(Signal::TERM);
            if !record.owner.wait(grace + MARGIN) {
                progress.say("the supervisor does not end; killing it and its engines");
                process::end(&[record.owner], Duration::ZERO)?;
            }
        }
        // With the lock nobody else can be starting engines here; what is left has no owner.
        let _lock = lock(&layout)?;
        let orphans = end_orphans(&layout, grace, &progress)?;
        Record::remove(&layout)?;
        Ok(present.is_some() || orphans > 0)
    })
    .await
}

/// What people see of one engine.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// Which engine.
    pub engine: Engine,
    /// Up, starting, restarting, failed, down.
    pub state: &'static str,
    /// Where clients find it.
    pub address: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started again since the stack came up.
    pub restarts: u32,
    /// What it prints.
    pub log: PathBuf,
    /// Why it does not serve.
    pub reason: Option<String>,
}

/// What people see of a stack.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether all engines serve.
    pub up: bool,
    /// The data directory.
    pub data: PathBuf,
    /// The process that owns the engines.
    pub supervisor: Option<u32>,
    /// Where clients find the engines.
    pub addresses: Option<Addresses>,
    /// The engines.
    pub engines: Vec<EngineReport>,
}

/// Asks every engine of a data directory now.
pub async fn status(data: &Path) -> Result<Report, Error> {
    if !data.exists() {
        // Asking changes nothing, so nothing is created either; the paths are those that `up` would use.
        let logs = std::path::absolute(data).unwrap_or_else(|_| data.to_owned()).join("logs");
        let engines = Engine::ALL.into_iter().map(|engine| down_report(engine, logs.join(format!("{engine}.log"))));
        return Ok(Report {
            up: false,
            data: data.to_owned(),
            supervisor: None,
            addresses: None,
            engines: engines.collect(),
        });
    }
    let layout = Layout::open(data)?;
    let record = live(&layout);
    let mut engines = Vec::with_capacity(Engine::ALL.len());
    for engine in Engine::ALL {
        engines.push(report(engine, record.as_ref(), &layout).await);
    }
    Ok(Report {
        up: engines.iter().all(|engine| engine.state == "up"),
        data: layout.root().to_owned(),
        supervisor: record.as_ref().map(|record| record.owner.pid),
        addresses: record.map(|record| record.addresses),
        engines,
    })
}

fn down_report(engine: Engine, log: PathBuf) -> EngineReport {
    EngineReport { engine, state: "down", address: None, pid: None, restarts: 0, log, reason: None }
}

async fn report(engine: Engine, record: Option<&Record>, layout: &Layout) -> EngineReport {
    let log = layout.log(engine);
    let found = record.and_then(|record| {
        let status = record.engines.iter().find(|status| status.engine == engine)?;
        Some((record, status))
    });
    let Some((record, status)) = found else {
        return down_report(engine, log);
    };
    let process = status.process.filter(|process| process.is_alive());
    let (state, reason) = match (status.state, process) {
        (EngineState::Running, Some(_)) => match ready::probe(engine, &record.addresses).await {
            Ok(()) => ("up", None),
            Err(reason) => ("starting", Some(reason)),
        },
        (EngineState::Running | EngineState::Waiting, _) if status.restarts == 0 && status.last_end.is_none() => {
            ("starting", None)
        }
        (EngineState::Running | EngineState::Waiting, _) => ("restarting", status.last_end.clone()),
        (EngineState::Failed, _) => ("failed", status.last_end.clone()),
        (EngineState::Stopped, _) => ("down", None),
    };
    EngineReport {
        engine,
        state,
        address: Some(record.addresses.of(engine).to_owned()),
        pid: process.map(|process| process.pid),
        restarts: status.restarts,
        log,
        reason,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Internal { what: "a background thread" })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_compared_only_where_somebody_asked() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let ports = Ports::default();
        check_ports(&layout, &ports, [None; 5]).unwrap();
        check_ports(&layout, &ports, [Some(9092), None, None, None, None]).unwrap();
        let error = check_ports(&layout, &ports, [None, None, Some(18_081), None, None]).unwrap_err();
        assert!(matches!(error, Error::OtherPort { actual: 8081, wanted: 18_081, .. }));
    }

    #[tokio::test]
    async fn a_stack_that_never_was_is_down_and_stays_unmade() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("none");
        assert!(!down(&data, Duration::ZERO, &Progress::Quiet).await.unwrap());
        let report = status(&data).await.unwrap();
        assert!(!report.up && report.engines.iter().all(|engine| engine.state == "down"));
        assert!(!data.exists());
    }

    #[tokio::test]
    async fn a_foreign_process_with_a_recorded_number_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let ports = Ports::default();
        let record = Record {
            owner: crate::stack::Identity::of(stranger.id()).unwrap(),
            mode: Mode::Detached,
            phase: Phase::Serving,
            ports,
            addresses: Addresses::from(&ports),
            engines: Vec::new(),
        };
        record.write(&layout).unwrap();
        assert!(!down(layout.root(), Duration::ZERO, &Progress::Quiet).await.unwrap());
        assert!(stranger.try_wait().unwrap().is_none(), "the stranger was ended");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
