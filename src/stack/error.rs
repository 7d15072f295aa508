//! What can go wrong with the engines, each told so that the reader knows what to do next.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Engine, Missing};

/// Why the engines could not be installed, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither an engine directory is named nor a home directory known.
    #[error("no place to install the engines: set TOLLSTREAM_ENGINES to a directory, or HOME")]
    NoCacheDirectory,
    /// Programs that the engines need are not there.
    #[error(transparent)]
    Prerequisites(#[from] Missing),
    /// A path that the engines' own configuration formats cannot carry.
    #[error("the directory {} cannot be used: the engines' configuration needs a path of plain UTF-8 without any of {forbidden}", path.display())]
    Path { path: PathBuf, forbidden: String },
    /// A file operation failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    File { action: &'static str, path: PathBuf, cause: std::io::Error },
    /// A program could not be started.
    #[error("cannot run {program}: {cause}")]
    Run { program: String, cause: std::io::Error },
    /// A program ended with an error.
    #[error("{program} ended with {status}; the end of its output:\n{output}")]
    Program { program: String, status: String, output: String },
    /// Something took longer than it may.
    #[error("{what} took longer than {} s", limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    /// An installation finished without the file that it is for.
    #[error("{engine} was installed without {file}: {hint}")]
    Incomplete { engine: Engine, file: String, hint: &'static str },
    /// Somebody else listens where an engine wants to.
    #[error("port {port} for {purpose} is taken{}; end that process or choose another port with {flag}", holder.as_deref().map(|holder| format!(" by {holder}")).unwrap_or_default())]
    PortTaken { port: u16, purpose: &'static str, flag: &'static str, holder: Option<String> },
    /// Two engines were given the same port.
    #[error("port {port} is given to both {first} and {second}; give one of them another port with {flag}")]
    PortTwice { port: u16, first: &'static str, second: &'static str, flag: &'static str },
    /// No free port could be found.
    #[error("no free port on 127.0.0.1 found in {attempts} attempts")]
    NoFreePort { attempts: u32 },
    /// Another process runs a stack in this data directory.
    #[error("the data directory {} is in use by {holder}", data.display())]
    DataInUse { data: PathBuf, holder: String },
    /// The stack of this data directory already runs, on other ports than asked for.
    #[error("the stack in {} is up with {purpose} on port {actual}, not {wanted}; run `tollstream stack down` first to change it", data.display())]
    OtherPort { data: PathBuf, purpose: &'static str, actual: u16, wanted: u16 },
    /// An engine runs but does not answer.
    #[error("{engine} did not answer within {} s ({reason}); the end of its log {}:\n{tail}", limit.as_secs(), log.display())]
    NotServing { engine: Engine, limit: Duration, reason: String, log: PathBuf, tail: String },
    /// An engine ended again and again.
    #[error("{engine} ended too often to be started again ({reason}); the end of its log {}:\n{tail}", log.display())]
    GaveUp { engine: Engine, reason: String, log: PathBuf, tail: String },
    /// The supervising process reported why it could not start the engines.
    #[error("{0}")]
    Supervisor(String),
    /// The supervising process ended without a word.
    #[error("the supervisor ended before the engines served; the end of its log {}:\n{tail}", log.display())]
    SupervisorEnded { log: PathBuf, tail: String },
    /// Processes of this stack are still there after SIGKILL.
    #[error("processes of this stack cannot be ended: {pids}")]
    CannotEnd { pids: String },
    /// A thread or task of this module ended unexpectedly.
    #[error("{what} ended unexpectedly")]
    Internal { what: &'static str },
}

impl Error {
    /// For `map_err`: which file, and what was tried with it.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::File { action, path, cause }
    }
}
