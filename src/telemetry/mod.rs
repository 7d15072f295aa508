//! What people see of a running process: logs, metrics, traces, health.

pub mod attribute;
pub mod health;
pub mod labels;
pub mod metrics;
pub mod trace;
pub mod values;

use std::io::IsTerminal as _;

pub use metrics::Metrics;
pub use trace::Traces;

/// Starts logging to standard error: `RUST_LOG` or the given level, JSON lines when `json`.
pub fn log(json: bool, default_level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call (tests) keeps the first subscriber.
    let _ = if json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}
