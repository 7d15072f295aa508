//! A provider for the laptop and for tests: an HTTP server that speaks OpenAI's chat completions format as the named
//! models would, deterministically, with faults on purpose. Nothing of it is used by the gateway itself.
//!
//! Tokens: a message has `ceil(bytes of its text / 4) + 3`, a tool `ceil(bytes of name, description and parameters / 4) + 3`,
//! a prompt the sum of these and 3; a completion has as many as its stream has pieces ([`text`]), and one for the
//! name of a called function. With `prompt_caching`, the longest beginning of the conversation that was seen
//! before is cached as OpenAI counts it: from 1,024 tokens, in steps of 128.
//!
//! Any request may ask for a fault: by the header `x-simulate-fault`, or, since unknown members pass a gateway, by the
//! member `x_simulate_fault`. `none` excepts it from the faults of the behavior. Faults and paces may be of some models only,
//! so that one simulator is a sound deployment and a sick one at once.

mod answer;
pub mod behavior;
pub mod errors;
mod request;
mod serve;
pub mod text;
mod wire;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use behavior::{Behavior, Fault, FaultRule, PaceRule};

/// How long `stop` waits for connections to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Most beginnings of conversations that are remembered; then it starts anew.
const PREFIXES_MAX: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot tell the simulator's address: {0}")]
    Address(std::io::Error),
    #[error("{0} is not a loopback address; the simulator asks for no key, so it serves this machine only")]
    NotLoopback(SocketAddr),
}

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Other seeds give other answers and other faults.
    pub seed: u64,
    pub behavior: Behavior,
    pub prompt_caching: bool,
}

/// The running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    app: Arc<App>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves on `listener`, which is bound to a loopback address, until stopped or dropped.
    pub fn start(options: Options, listener: TcpListener) -> Result<Self, Error> {
        let addr = listener.local_addr().map_err(Error::Address)?;
        if !addr.ip().is_loopback() {
            return Err(Error::NotLoopback(addr));
        }
        let app = Arc::new(App {
            seed: options.seed,
            prompt_caching: options.prompt_caching,
            behavior: ArcSwap::from_pointee(options.behavior.clone()),
            initial: options.behavior,
            counters: Counters::default(),
            prefixes: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(Arc::clone(&app), listener));
        Ok(Self { addr, app, tasks })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL for clients: `http://127.0.0.1:4010/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Changes the behavior for requests that come from now on.
    pub fn set_behavior(&self, behavior: Behavior) {
        self.app.behavior.store(Arc::new(behavior));
    }

    pub fn stats(&self) -> Stats {
        self.app.counters.read()
    }

    /// Ends all connections, those under way too.
    pub async fn stop(mut self) {
        self.app.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // What does not end in time is aborted with the set.
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.stop.cancel();
    }
}

/// What was asked of the simulator so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    pub connections: u64,
    pub requests: u64,
    /// Answered to their end, refusals included.
    pub completed: u64,
    /// That had a fault on purpose.
    pub faulted: u64,
    /// Whose client went away before the end.
    pub cancelled: u64,
    pub in_flight: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    completed: AtomicU64,
    faulted: AtomicU64,
    cancelled: AtomicU64,
}

impl Counters {
    fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let ended = read(&self.completed) + read(&self.faulted) + read(&self.cancelled);
        let requests = read(&self.requests);
        Stats {
            connections: read(&self.connections),
            requests,
            completed: read(&self.completed),
            faulted: read(&self.faulted),
            cancelled: read(&self.cancelled),
            in_flight: requests.saturating_sub(ended),
        }
    }
}

#[derive(Debug)]
struct App {
    seed: u64,
    prompt_caching: bool,
    behavior: ArcSwap<Behavior>,
    /// What fields that a change leaves out go back to.
    initial: Behavior,
    counters: Counters,
    prefixes: Mutex<HashSet<u64>>,
    stop: CancellationToken,
}

impl App {
    /// Tokens of the prompt that were seen before, and remembers this one.
    fn cached_tokens(&self, prefixes: &[(u64, u64)]) -> u64 {
        if !self.prompt_caching {
            return 0;
        }
        let mut seen = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = prefixes.iter().rev().find(|(hash, _)| seen.contains(hash)).map_or(0, |(_, tokens)| *tokens);
        if seen.len() + prefixes.len() > PREFIXES_MAX {
            seen.clear();
        }
        seen.extend(prefixes.iter().take(PREFIXES_MAX).map(|(hash, _)| *hash));
        if known < 1_024 { 0 } else { known - known % 128 }
    }
}

#[cfg(test)]
mod tests;
