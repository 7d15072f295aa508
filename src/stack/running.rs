//! The foreground form: engines that belong to this process and end with it.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};

use super::engine::{self, Launch};
use super::install::{Installed, install};
use super::layout::Layout;
use super::record::{EngineState, EngineStatus, Mode, Phase, Record};
use super::supervisor::Supervisor;
use super::{Addresses, Engine, Error, Identity, Options, Progress, process, ready};

/// How often a starting engine is asked.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long a port may stay taken by an engine that was just killed.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// How much of a log is shown when its engine does not come up.
const TAIL_BYTES: u64 = 4_000;

/// Engines that serve. They are started again when they end by themselves; they end with [`Running::stop`], and are killed
/// when this value is dropped or its process is killed.
#[derive(Debug)]
pub struct Running {
    /// Where clients find the engines.
    pub addresses: Addresses,
    layout: Layout,
    stop_timeout: Duration,
    supervisor: Supervisor,
    // Declared last: the directory is let go when the engines have ended.
    _lock: File,
}

impl Running {
    /// What every engine's process does now.
    pub fn engines(&self) -> Vec<EngineStatus> {
        self.supervisor.record().borrow().engines.clone()
    }

    /// The paths of this stack.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns when an engine ended too often to be started again, with the reason.
    pub async fn failed(&self) -> Error {
        gave_up(&mut self.supervisor.record(), &self.layout, &Engine::ALL).await
    }

    /// Ends the engines: SIGTERM, a bounded wait, SIGKILL.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { supervisor, stop_timeout, _lock, .. } = self;
        spawn_blocking(move || supervisor.stop(stop_timeout))
            .await
            .map_err(|_| Error::Internal { what: "the end of the engines" })?
    }
}

/// Installs what is missing, starts the engines as children of this process and returns when all of them serve.
pub async fn up(options: Options, progress: &Progress) -> Result<Running, Error> {
    up_as(Mode::Foreground, options, progress).await
}

pub(super) async fn up_as(mode: Mode, options: Options, progress: &Progress) -> Result<Running, Error> {
    let preparation = (options.clone(), progress.clone());
    let prepared = spawn_blocking(move || prepare(&preparation.0, &preparation.1))
        .await
        .map_err(|_| Error::Internal { what: "the preparation of the engines" })??;
    let Prepared { layout, lock, installed, launches } = prepared;
    let record = new_record(mode, &options)?;
    let addresses = record.addresses.clone();
    let supervisor = Supervisor::spawn(layout.clone(), record, options.restarts.clone())?;
    let running = Running { addresses, layout, stop_timeout: options.stop_timeout, supervisor, _lock: lock };
    let task = progress.task("starting kafka, registry and clickhouse", None);
    match bring_up(&running, launches, installed, options.start_timeout, progress).await {
        Ok(()) => {
            task.done("kafka, registry and clickhouse serve");
            Ok(running)
        }
        Err(error) => {
            drop(task);
            // The first error is what the caller has to know.
            let _ = running.stop().await;
            Err(error)
        }
    }
}

fn new_record(mode: Mode, options: &Options) -> Result<Record, Error> {
    Ok(Record {
        owner: Identity::own().ok_or(Error::Internal { what: "this process, as /proc has it," })?,
        mode,
        phase: Phase::Starting,
        ports: options.ports,
        addresses: Addresses::from(&options.ports),
        engines: Engine::ALL.into_iter().map(EngineStatus::waiting).collect(),
    })
}

/// All that happens before the first engine is started.
struct Prepared {
    layout: Layout,
    lock: File,
    installed: Installed,
    launches: BTreeMap<Engine, Launch>,
}

fn prepare(options: &Options, progress: &Progress) -> Result<Prepared, Error> {
    let layout = Layout::create(&options.data)?;
    let lock = lock(&layout)?;
    let installed = install(&options.engines, progress)?;
    end_orphans(&layout, options.stop_timeout, progress)?;
    // A record that is still there was left by an owner that was killed, and so were its engines a moment ago.
    let patience = match Record::read(&layout) {
        Some(_) => PORT_PATIENCE,
        None => Duration::ZERO,
    };
    options.ports.check(patience)?;
    let launches = Engine::ALL
        .into_iter()
        .map(|one| Ok((one, engine::prepare(one, &layout, &installed, &options.ports)?)))
        .collect::<Result<_, Error>>()?;
    Ok(Prepared { layout, lock, installed, launches })
}

/// Takes the data directory for this process, or says who has it.
pub(super) fn lock(layout: &Layout) -> Result<File, Error> {
    let path = layout.lock();
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::DataInUse {
            data: layout.root().to_owned(),
            holder: match Record::read(layout) {
                Some(record) => format!("the stack of process {}", record.owner.pid),
                None => "another process that is starting or ending a stack".to_owned(),
            },
        }),
        Err(TryLockError::Error(cause)) => Err(Error::file("lock", &path)(cause)),
    }
}

/// Ends engines of this data directory whose owner is gone. Only called with the lock held: nobody owns them.
pub(super) fn end_orphans(layout: &Layout, grace: Duration, progress: &Progress) -> Result<usize, Error> {
    let orphans = process::with_argument(&engine::markers(layout));
    for orphan in &orphans {
        progress.say(&format!("ending process {} that a killed supervisor left behind", orphan.pid));
    }
    process::end(&orphans, grace)?;
    Ok(orphans.len())
}

async fn bring_up(
    running: &Running,
    mut launches: BTreeMap<Engine, Launch>,
    installed: Installed,
    limit: Duration,
    progress: &Progress,
) -> Result<(), Error> {
    let start = Instant::now();
    let kafka = launches.remove(&Engine::Kafka);
    for (_, launch) in launches {
        running.supervisor.start(launch)?;
    }
    let layout = running.layout.clone();
    spawn_blocking(move || format_kafka(&layout, &installed))
        .await
        .map_err(|_| Error::Internal { what: "the formatting of Kafka's storage" })??;
    if let Some(launch) = kafka {
        running.supervisor.start(launch)?;
    }
    let mut waits: JoinSet<Result<(), Error>> = JoinSet::new();
    for one in Engine::ALL {
        let (addresses, layout) = (running.addresses.clone(), running.layout.clone());
        let record = running.supervisor.record();
        let progress = progress.clone();
        waits.spawn(async move {
            serves(one, &addresses, record, &layout, limit).await?;
            progress.say(&format!("{one} serves after {:.1} s", start.elapsed().as_secs_f64()));
            Ok(())
        });
    }
    while let Some(one) = waits.join_next().await {
        one.map_err(|_| Error::Internal { what: "the wait for an engine" })??;
    }
    running.supervisor.serving()?;
    let mut record = running.supervisor.record();
    let serving = record.wait_for(|record| record.phase == Phase::Serving).await;
    serving.map(|_| ()).map_err(|_| Error::Internal { what: "the supervising thread" })
}

/// Formats Kafka's storage once.
fn format_kafka(layout: &Layout, installed: &Installed) -> Result<(), Error> {
    let Some(launch) = engine::kafka_format(layout, installed)? else {
        return Ok(());
    };
    let output = std::process::Command::new(&launch.program)
        .args(&launch.arguments)
        .current_dir(&launch.directory)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|cause| Error::Run { program: launch.program.display().to_string(), cause })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program {
        program: "the formatting of Kafka's storage".to_owned(),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Waits until an engine answers, it is given up, or the time is over.
async fn serves(
    one: Engine,
    addresses: &Addresses,
    mut record: watch::Receiver<Record>,
    layout: &Layout,
    limit: Duration,
) -> Result<(), Error> {
    let mut reason = "it was not asked".to_owned();
    let asked = async {
        loop {
            match ready::probe(one, addresses).await {
                Ok(()) => return,
                Err(error) => reason = error,
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let engines = [one];
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(limit, asked) => outcome,
        error = gave_up(&mut record, layout, &engines) => return Err(error),
    };
    outcome.map_err(|_| {
        let log = layout.log(one);
        Error::NotServing { engine: one, limit, reason, tail: tail(&log), log }
    })
}

/// Returns when one of these engines has been given up.
async fn gave_up(record: &mut watch::Receiver<Record>, layout: &Layout, engines: &[Engine]) -> Error {
    let failed = |status: &&EngineStatus| status.state == EngineState::Failed && engines.contains(&status.engine);
    match record.wait_for(|record| record.engines.iter().any(|status| failed(&status))).await {
        Ok(record) => {
            let Some(status) = record.engines.iter().find(failed) else {
                return Error::Internal { what: "an engine" };
            };
            let log = layout.log(status.engine);
            Error::GaveUp {
                engine: status.engine,
                reason: status.last_end.clone().unwrap_or_default(),
                tail: tail(&log),
                log,
            }
        }
        Err(_) => Error::Internal { what: "the supervising thread" },
    }
}

/// The end of a log, for an error message.
pub(super) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
}
