//! `stack.json`: who runs the stack of a data directory, where it listens, and which processes belong to it.

use std::fs;

use serde::{Deserialize, Serialize};

use super::engine::write_file;
use super::layout::Layout;
use super::{Engine, Error, Identity, Ports};

/// Where clients find the engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Kafka's bootstrap server, `127.0.0.1:PORT`.
    pub kafka: String,
    /// The base of the registry's Confluent-compatible interface.
    pub registry: String,
    /// ClickHouse over HTTP.
    pub clickhouse: String,
}

impl From<&Ports> for Addresses {
    fn from(ports: &Ports) -> Self {
        Self {
            kafka: format!("127.0.0.1:{}", ports.kafka),
            registry: format!("http://127.0.0.1:{}/apis/ccompat/v7", ports.registry),
            clickhouse: format!("http://127.0.0.1:{}", ports.clickhouse_http),
        }
    }
}

impl Addresses {
    /// The address of one engine.
    pub fn of(&self, engine: Engine) -> &str {
        match engine {
            Engine::Kafka => &self.kafka,
            Engine::Registry => &self.registry,
            Engine::ClickHouse => &self.clickhouse,
        }
    }
}

/// Who owns the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A process that does something else too, and ends the engines when it ends.
    Foreground,
    /// The process that `tollstream stack up` leaves behind.
    Detached,
}

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not all engines have answered yet.
    Starting,
    /// All engines have answered once.
    Serving,
    /// The engines are being ended.
    Stopping,
}

/// What the supervisor knows about the process of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineState {
    /// Its process runs.
    Running,
    /// It has not been started yet, or it ended and will be started again.
    Waiting,
    /// It ended too often and is left alone.
    Failed,
    /// It was ended on purpose.
    Stopped,
}

/// The process of one engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Which engine.
    pub engine: Engine,
    /// What its process does.
    pub state: EngineState,
    /// Its process, while one runs.
    pub process: Option<Identity>,
    /// How often it was started again since the stack came up.
    pub restarts: u32,
    /// Why it ended last.
    pub last_end: Option<String>,
}

impl EngineStatus {
    pub(super) fn waiting(engine: Engine) -> Self {
        Self { engine, state: EngineState::Waiting, process: None, restarts: 0, last_end: None }
    }
}

/// The record of a stack that is up, or that was when its owner was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process that owns the engines.
    pub owner: Identity,
    /// What kind of process that is.
    pub mode: Mode,
    /// How far the start has come.
    pub phase: Phase,
    /// Where the engines listen.
    pub ports: Ports,
    /// Where clients find the engines.
    pub addresses: Addresses,
    /// The processes.
    pub engines: Vec<EngineStatus>,
}

impl Record {
    /// The record of a data directory. None: there is none, or it cannot be understood, as after a crash of the machine.
    pub fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(layout.record()).ok()?).ok()
    }

    pub(super) fn write(&self, layout: &Layout) -> Result<(), Error> {
        let text =
            serde_json::to_string_pretty(self).map_err(|_| Error::Internal { what: "the record of the stack" })?;
        write_file(&layout.record(), &(text + "\n"))
    }

    pub(super) fn remove(layout: &Layout) -> Result<(), Error> {
        match fs::remove_file(layout.record()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", &layout.record())(error))
            }
            _ => Ok(()),
        }
    }
}
