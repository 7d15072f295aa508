//! The engines and a gateway of the whole run, and gateways of one test on the same engines.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tollstream::cli::up::Description;
use tollstream::config::Config;

use super::usage::world::Engines;

/// How long anything that a test waits for may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The first start may have to install the engines.
const START: Duration = Duration::from_secs(900);

pub struct Stack {
    pub description: Description,
    /// Ends by itself when this process is gone; held so that its pipes stay open.
    _child: Mutex<Child>,
}

/// The stack of the run, started by the first test that asks.
pub fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    STACK.get_or_init(|| {
        tollstream::tls::install_provider();
        let (child, description) = up(&[]);
        Stack { description, _child: Mutex::new(child) }
    })
}

/// `tollstream up --ephemeral` with more arguments: the process and what it says of itself.
pub fn up(arguments: &[&str]) -> (Child, Description) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(["up", "--ephemeral", "--json", "--no-demo"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("tollstream starts");
    let started = Instant::now();
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    assert!(started.elapsed() < START, "the stack took {:?}", started.elapsed());
    let description = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    (child, description)
}

impl Stack {
    /// A configuration on the same engines with topics and tables of its own, applied and empty.
    pub async fn isolated(&self, name: &str) -> Config {
        isolated_on(name, &Engines::shared()).await
    }
}

/// A configuration on these engines with topics and tables of its own, applied and empty.
pub async fn isolated_on(name: &str, engines: &Engines) -> Config {
    let unique = format!("{name}_{}_{:x}", std::process::id(), rand());
    let mut config = Config { instance: unique.clone(), ..Config::default() };
    config.kafka.brokers.clone_from(&engines.kafka);
    config.kafka.topic_prefix = format!("{unique}.");
    config.kafka.session_timeout_ms = 6_000;
    config.registry.url.clone_from(&engines.registry);
    config.clickhouse.url.clone_from(&engines.clickhouse);
    config.clickhouse.database = unique;
    config.facade.listen.set_port(0);
    config.admin.listen.set_port(0);
    config.sink.batch_ms = 100;
    let options = tollstream::topology::apply::Options::laptop().expect("the embedded topology holds");
    tollstream::topology::apply::run(&config, &options).await.expect("the topology applies");
    config
}

fn rand() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("random bytes");
    u32::from_le_bytes(bytes)
}

/// Asks again until there is an answer, at most for [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Rows of a query, each a JSON object.
pub async fn rows(description: &Description, query: &str) -> Vec<serde_json::Value> {
    let answer = reqwest::Client::new()
        .post(&description.clickhouse)
        .body(format!("{query} FORMAT JSONEachRow"))
        .send()
        .await
        .expect("clickhouse answers");
    let (status, text) = (answer.status(), answer.text().await.expect("a body"));
    assert!(status.is_success(), "{query}: {text}");
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}
