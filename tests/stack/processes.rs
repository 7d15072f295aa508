//! Processes as operators run them: several share the partitions, one is killed, and everything ends when it should.

use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tollstream::node::{Node, Role};

use super::fixture::{eventually, key, stack, up};
use super::process::{Process, run};

async fn ask(process: &Process, key: &str) -> u16 {
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let url = format!("{}/v1/chat/completions", process.facade);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
    client.post(url).bearer_auth(key).json(&body).send().await.map_or(0, |a| a.status().as_u16())
}

#[tokio::test]
async fn two_processes_share_the_partitions_and_one_takes_over_when_the_other_is_killed() {
    let config = stack().isolated("processes").await;
    let keys = [key(&config, "org_demo"), key(&config, "org_123")];
    let mut first = run(&config, "first");
    first.ready().await;
    let mut second = run(&config, "second");
    second.ready().await;
    eventually("a share for each", async || {
        let (a, b) = (first.partitions().await, second.partitions().await);
        (a + b == 4 && a > 0 && b > 0).then_some(())
    })
    .await;
    for key in &keys {
        assert_eq!((ask(&first, key).await, ask(&second, key).await), (200, 200));
    }
    second.kill().await;
    eventually("all partitions", async || (first.partitions().await == 4).then_some(())).await;
    for key in &keys {
        assert_eq!(ask(&first, key).await, 200);
    }
}

#[tokio::test]
async fn a_process_is_not_ready_before_its_roles_have_said_how_they_are() {
    let config = stack().isolated("early").await;
    let node = Node::start(config, &[Role::Processor, Role::Projection, Role::Sink]).await.expect("a node");
    // From the moment on at which its health can be asked.
    let known: Vec<&str> = node.health.components().into_keys().collect();
    assert!(["processor", "projection", "sink", "events"].iter().all(|role| known.contains(role)), "{known:?}");
    assert!(!node.health.serves());
    node.stop().await.expect("a clean stop");
}

fn listens(url: &str) -> bool {
    let address = url.trim_start_matches("http://");
    let address = address.split('/').next().unwrap_or(address);
    std::net::TcpStream::connect(address).is_ok()
}

#[tokio::test]
async fn an_ephemeral_stack_ends_on_sigterm_and_leaves_nothing() {
    let (mut child, description) = up(&[]);
    let addresses = [&description.facade, &description.kafka, &description.registry, &description.clickhouse];
    assert!(addresses.iter().all(|address| listens(address)));
    let pid = Pid::from_raw(child.id() as i32).expect("a pid");
    kill_process(pid, Signal::TERM).expect("signalled");
    let status = tokio::task::spawn_blocking(move || child.wait()).await.expect("joined").expect("ended");
    assert!(status.success(), "{status}");
    assert!(!addresses.iter().any(|address| listens(address)));
    assert!(!description.data.exists(), "{}", description.data.display());
}

#[tokio::test]
async fn an_ephemeral_stack_ends_when_its_parent_is_gone() {
    // A shell as the parent, which ends while the stack runs.
    let output = tempfile::NamedTempFile::new().expect("a file");
    let shell = format!(
        "'{}' up --ephemeral --json --no-demo > '{}' 2>/dev/null & while [ ! -s '{1}' ]; do sleep 0.1; done",
        env!("CARGO_BIN_EXE_tollstream"),
        output.path().display()
    );
    let ended = tokio::task::spawn_blocking(move || Command::new("sh").arg("-c").arg(shell).status()).await;
    assert!(ended.expect("joined").expect("a shell").success());
    let text = std::fs::read_to_string(output.path()).expect("a description");
    let description: tollstream::cli::up::Description = serde_json::from_str(&text).expect("JSON");
    eventually("the end of the stack", async || {
        let gone = !listens(&description.kafka) && !listens(&description.facade) && !description.data.exists();
        gone.then_some(())
    })
    .await;
}
