//! Reasons to end that come from outside.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How often a process looks whether its parent is still there.
const PARENT_CHECK: Duration = Duration::from_millis(250);

/// Waits for SIGTERM or SIGINT and gives its name.
pub async fn terminated() -> &'static str {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        },
        // Without handlers the signals end the process by themselves.
        _ => std::future::pending().await,
    }
}

/// Waits until the process that was the parent at the call is gone.
pub async fn orphaned() {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        tokio::time::sleep(PARENT_CHECK).await;
    }
}
