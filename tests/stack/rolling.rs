//! A rolling restart under load: every stream that was begun comes to its end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollstream::config::Config;

use super::audit::audit;
use super::fixture::{eventually, key, stack};
use super::process::{Process, run};

const INSTANCES: [&str; 3] = ["one", "two", "three"];
/// Clients of each process.
const CLIENTS: usize = 4;
/// Wait of a client that was refused, as a balancer's next look.
const REFUSED_WAIT: Duration = Duration::from_millis(50);

/// What the clients of one process saw.
#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    whole: AtomicUsize,
    refused: AtomicUsize,
    /// How each one ended that did not come to its end.
    interrupted: Mutex<Vec<String>>,
}

impl Seen {
    fn interrupt(&self, how: &str) {
        self.interrupted.lock().expect("whole").push(how.to_owned());
    }

    fn of(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }
}

/// Asks for one stream after the other until `stop`.
async fn stream(facade: String, key: String, seen: Arc<Seen>, stop: CancellationToken) {
    let client = reqwest::Client::new();
    let body = json!({"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "Hello"}]});
    while !stop.is_cancelled() {
        let asked = client.post(format!("{facade}/v1/chat/completions")).bearer_auth(&key).json(&body).send().await;
        let Some(answer) = asked.ok().filter(|answer| answer.status().is_success()) else {
            seen.refused.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(REFUSED_WAIT).await;
            continue;
        };
        seen.open.fetch_add(1, Ordering::SeqCst);
        let text = answer.text().await;
        seen.open.fetch_sub(1, Ordering::SeqCst);
        match text {
            Ok(text) if text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\"") => {
                seen.whole.fetch_add(1, Ordering::SeqCst);
            }
            Ok(text) => seen.interrupt(text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default()),
            Err(error) => seen.interrupt(&error.to_string()),
        }
    }
}

struct Running {
    process: Process,
    seen: Arc<Seen>,
    stop: CancellationToken,
    clients: JoinSet<()>,
}

async fn start(config: &Config, instance: &str, keys: &[String]) -> Running {
    let mut process = run(config, instance);
    process.ready().await;
    let (seen, stop, mut clients) = (Arc::<Seen>::default(), CancellationToken::new(), JoinSet::new());
    for client in 0..CLIENTS {
        let key = keys[client % keys.len()].clone();
        clients.spawn(stream(process.facade.clone(), key, seen.clone(), stop.clone()));
    }
    Running { process, seen, stop, clients }
}

impl Running {
    /// Ends the process as an operator does, with streams open on it.
    async fn stop_under_load(self) {
        eventually("streams", async || (Seen::of(&self.seen.open) > 0).then_some(())).await;
        self.process.stop().await;
        end(&self.seen, &self.stop, self.clients).await;
    }
}

/// Ends clients.
async fn end(seen: &Seen, stop: &CancellationToken, mut clients: JoinSet<()>) {
    stop.cancel();
    while clients.join_next().await.is_some() {}
    assert_eq!(*seen.interrupted.lock().expect("whole"), [""; 0], "{} streams were whole", Seen::of(&seen.whole));
    assert!(Seen::of(&seen.whole) > 0);
}

async fn rolls(name: &str, static_membership: bool) {
    let mut config = stack().isolated(name).await;
    config.kafka.static_membership = static_membership;
    let keys = [key(&config, "org_demo"), key(&config, "org_123")];
    let mut running = VecDeque::new();
    for instance in INSTANCES {
        running.push_back(start(&config, instance, &keys).await);
    }
    for instance in INSTANCES {
        running.pop_front().expect("a process").stop_under_load().await;
        running.push_back(start(&config, instance, &keys).await);
        // Everybody is served before the next one goes.
        let whole: Vec<usize> = running.iter().map(|r| Seen::of(&r.seen.whole)).collect();
        eventually("streams on all", async || {
            running.iter().zip(&whole).all(|(r, before)| Seen::of(&r.seen.whole) > *before).then_some(())
        })
        .await;
    }
    let mut processes = Vec::new();
    for Running { process, seen, stop, clients } in running {
        end(&seen, &stop, clients).await;
        processes.push(process);
    }
    for process in processes {
        process.stop().await;
    }
    let (code, report) = audit(&config, &[]);
    assert_eq!(code, Some(0), "{report:#}");
    assert!(report["counts"]["tenures"].as_u64() > Some(4), "{report:#}");
}

#[tokio::test]
async fn a_rolling_restart_interrupts_no_stream() {
    rolls("rolling", false).await;
}

#[tokio::test]
async fn a_rolling_restart_of_static_members_interrupts_no_stream() {
    rolls("static", true).await;
}
