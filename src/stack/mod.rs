//! The engines of a laptop: Apache Kafka, a schema registry and ClickHouse, installed by their package managers and run as
//! plain processes on 127.0.0.1.
//!
//! Two forms. [`up`] starts the engines as children of this process and returns a [`Running`] that owns them: they end with
//! it, also when this process is killed. [`daemon`] puts the same form behind a process of its own, which
//! `tollstream stack up` leaves behind and `tollstream stack down` ends.
//!
//! Nothing here is used in production, and nothing outside this folder knows how the engines are started.

pub mod daemon;
mod definition;
mod engine;
mod error;
mod install;
mod layout;
mod ports;
mod prerequisites;
mod process;
mod program;
mod progress;
mod ready;
mod record;
mod restart;
mod running;
mod supervisor;

use std::path::PathBuf;
use std::time::Duration;

pub use definition::{CLICKHOUSE_VERSION, CLUSTER_ID, KAFKA_VERSION, REGISTRY_VERSION, SHARED_FILES, SharedFile};
pub use engine::Engine;
pub use error::Error;
pub use install::{Installed, install};
pub use layout::Layout;
pub use ports::{Ports, check_port, free_port};
pub use prerequisites::{Missing, Need, Tool, check as check_prerequisites};
pub use process::Identity;
pub use progress::Progress;
pub use record::{Addresses, EngineState, EngineStatus, Mode, Phase, Record};
pub use restart::RestartPolicy;
pub use running::{Running, up};

/// What to start, where, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything that one stack keeps: data, logs, configuration and the record of its processes.
    pub data: PathBuf,
    /// Where the engines themselves are installed, shared by all stacks of a user.
    pub engines: PathBuf,
    /// Where the engines listen, on 127.0.0.1 only.
    pub ports: Ports,
    /// How long one engine may take until it serves.
    pub start_timeout: Duration,
    /// How long an engine may take to end after SIGTERM before it is killed.
    pub stop_timeout: Duration,
    /// How often an engine that ends by itself is started again.
    pub restarts: RestartPolicy,
}

impl Options {
    /// The default ports, bounds and engine directory for a stack that lives in `data`.
    pub fn new(data: impl Into<PathBuf>) -> Result<Self, Error> {
        Ok(Self {
            data: data.into(),
            engines: engines_directory()?,
            ports: Ports::default(),
            start_timeout: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(20),
            restarts: RestartPolicy::default(),
        })
    }
}

/// Where engines are installed unless somebody says otherwise: `$TOLLSTREAM_ENGINES`, else a folder of the user's cache.
pub fn engines_directory() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TOLLSTREAM_ENGINES")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("tollstream")))
        .or_else(|| set("HOME").map(|home| home.join(".cache").join("tollstream")))
        .ok_or(Error::NoCacheDirectory)
}
