//! The engines and a gateway of the whole run, and gateways of one test on the same engines.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tollstream::cli::up::Description;
use tollstream::config::Config;
use tollstream::stack::{Engine, EngineStatus, Ports, Progress, Running};
use tollstream::topology::{Seeds, apply};

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
        Engines::shared().isolated_with(name, None, |_| {}).await
    }
}

/// Where the engines are.
#[derive(Debug, Clone)]
pub struct Engines {
    pub kafka: String,
    pub registry: String,
    pub clickhouse: String,
}

impl Engines {
    /// Those of the whole run, which nobody may disturb.
    pub fn shared() -> Self {
        let shared = &stack().description;
        let (kafka, registry, clickhouse) = (&shared.kafka, &shared.registry, &shared.clickhouse);
        Self { kafka: kafka.clone(), registry: registry.clone(), clickhouse: clickhouse.clone() }
    }

    /// A configuration with topics and tables of its own, applied and empty; with `partitions` in place of the laptop's,
    /// and the seeds as they are changed.
    pub async fn isolated_with(&self, name: &str, partitions: Option<u32>, change: impl FnOnce(&mut Seeds)) -> Config {
        let unique = format!("{name}_{}_{:x}", std::process::id(), rand());
        let mut config = Config { instance: unique.clone(), ..Config::default() };
        config.kafka.brokers.clone_from(&self.kafka);
        config.kafka.topic_prefix = format!("{unique}.");
        config.kafka.session_timeout_ms = 6_000;
        config.registry.url.clone_from(&self.registry);
        config.clickhouse.url.clone_from(&self.clickhouse);
        config.clickhouse.database = unique;
        config.facade.listen.set_port(0);
        config.admin.listen.set_port(0);
        config.sink.batch_ms = 100;
        let mut options = apply::Options::laptop().expect("the embedded topology holds");
        options.partitions = partitions.or(options.partitions);
        change(&mut options.topology.seeds);
        apply::run(&config, &options).await.expect("the topology applies");
        config
    }
}

/// Engines of one test's own, to do harm to. They are started again when they die.
pub struct OwnEngines {
    running: Running,
    _data: tempfile::TempDir,
}

impl OwnEngines {
    pub async fn start() -> Self {
        Self::start_with(Ports::free().unwrap(), "").await
    }

    /// With further settings of Kafka's.
    pub async fn start_with(ports: Ports, kafka_properties: &str) -> Self {
        tollstream::tls::install_provider();
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("kafka/server.d");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("test.properties"), kafka_properties).unwrap();
        Self::start_in(data, ports).await
    }

    /// With further users of ClickHouse's.
    pub async fn start_with_users(users: &str) -> Self {
        tollstream::tls::install_provider();
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("clickhouse/etc/users.d");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("readers.xml"), users).unwrap();
        Self::start_in(data, Ports::free().unwrap()).await
    }

    async fn start_in(data: tempfile::TempDir, ports: Ports) -> Self {
        let mut options = tollstream::stack::Options::new(data.path()).unwrap();
        options.ports = ports;
        let running = tollstream::stack::up(options, &Progress::Quiet).await.unwrap();
        Self { running, _data: data }
    }

    pub fn addresses(&self) -> Engines {
        let own = &self.running.addresses;
        Engines { kafka: own.kafka.clone(), registry: own.registry.clone(), clickhouse: own.clickhouse.clone() }
    }

    /// Sends a signal to an engine.
    pub fn signal(&self, engine: Engine, signal: Signal) {
        let pid = self.status(engine).process.expect("the engine runs").pid;
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The process of an engine; another one after it was started again.
    pub fn pid(&self, engine: Engine) -> Option<i32> {
        i32::try_from(self.status(engine).process?.pid).ok()
    }

    pub fn status(&self, engine: Engine) -> EngineStatus {
        self.running.engines().into_iter().find(|status| status.engine == engine).expect("an engine")
    }

    pub async fn stop(self) {
        self.running.stop().await.unwrap();
    }
}

fn rand() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("random bytes");
    u32::from_le_bytes(bytes)
}

/// Asks again until there is an answer, at most for [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
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
    rows_at(&description.clickhouse, query).await
}

/// The same, of any ClickHouse.
pub async fn rows_at(clickhouse: &str, query: &str) -> Vec<serde_json::Value> {
    let answer = reqwest::Client::new()
        .post(clickhouse)
        .body(format!("{query} FORMAT JSONEachRow"))
        .send()
        .await
        .expect("clickhouse answers");
    let (status, text) = (answer.status(), answer.text().await.expect("a body"));
    assert!(status.is_success(), "{query}: {text}");
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

/// Makes an API key of an organization.
pub fn key(config: &Config, organization: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(["keys", "create", "--organization", organization])
        .args(["--brokers", &config.kafka.brokers, "--registry", &config.registry.url])
        .args(["--topic-prefix", &config.kafka.topic_prefix])
        .output()
        .expect("a key");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
