//! Processes as operators run them: several share the partitions, one is killed, and everything ends when it should.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tollstream::config::Config;

use super::fixture::{eventually, stack, up};

const ALL_ROLES: &str = "facade,processor,projection,sink";

/// A `tollstream run` of its own, killed at the end of its test.
pub struct Process {
    pub child: Child,
    pub facade: String,
    pub admin: String,
    _config: tempfile::NamedTempFile,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

pub fn run(config: &Config, instance: &str) -> Process {
    run_roles(config, instance, ALL_ROLES)
}

pub fn run_roles(config: &Config, instance: &str, roles: &str) -> Process {
    let mut config = Config { instance: instance.to_owned(), ..config.clone() };
    let simulator = stack().description.simulator.as_ref().expect("a simulator");
    // Whatever keys the machine's environment has, nothing leaves it.
    config.providers.upstream_override = Some(format!("{simulator}/v1"));
    start_roles(config, roles)
}

/// Runs all roles with this configuration, on free ports.
pub fn start(config: Config) -> Process {
    start_roles(config, ALL_ROLES)
}

fn start_roles(mut config: Config, roles: &str) -> Process {
    config.facade.listen.set_port(free_port());
    config.admin.listen.set_port(free_port());
    let text = toml::to_string(&config).expect("TOML");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let child = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(["run", "--roles", roles, "--config"])
        .arg(file.path())
        .stdin(Stdio::null())
        .stderr(log_of(&config))
        .spawn()
        .expect("tollstream runs");
    Process {
        child,
        facade: format!("http://{}", config.facade.listen),
        admin: format!("http://{}", config.admin.listen),
        _config: file,
    }
}

/// A file in the folder that `TOLLSTREAM_TEST_LOGS` names, if it does.
fn log_of(config: &Config) -> Stdio {
    let Some(folder) = std::env::var_os("TOLLSTREAM_TEST_LOGS") else { return Stdio::null() };
    let name = format!("{}{}.log", config.kafka.topic_prefix, config.instance);
    let file = std::path::Path::new(&folder).join(name);
    std::fs::File::options().create(true).append(true).open(file).expect("a log").into()
}

impl Process {
    pub async fn ready(&self) {
        let url = format!("{}/health/ready", self.admin);
        eventually("ready", async || reqwest::get(&url).await.ok().filter(|a| a.status().is_success()).map(|_| ()))
            .await;
    }

    async fn partitions(&self) -> u64 {
        self.metric("tollstream_processor_partitions_owned").await
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = reqwest::get(format!("{}/metrics", self.admin)).await.expect("metrics").text().await.expect("text");
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// What `/health/ready` says.
    pub async fn readiness(&self) -> serde_json::Value {
        let answer = reqwest::get(format!("{}/health/ready", self.admin)).await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    /// Resident memory.
    pub fn memory_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// It has not ended, not even to be started again.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_none()
    }

    async fn ask(&self, key: &str) -> u16 {
        let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
        let url = format!("{}/v1/chat/completions", self.facade);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
        client.post(url).bearer_auth(key).json(&body).send().await.map_or(0, |a| a.status().as_u16())
    }
}

/// A metric without labels, as the admin address tells it.
pub async fn metric(admin: &str, name: &str) -> f64 {
    let text = reqwest::get(format!("{admin}/metrics")).await.expect("metrics").text().await.expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

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

#[tokio::test]
async fn two_processes_share_the_partitions_and_one_takes_over_when_the_other_is_killed() {
    let config = stack().isolated("processes").await;
    let keys = [key(&config, "org_demo"), key(&config, "org_123")];
    let first = run(&config, "first");
    first.ready().await;
    let mut second = run(&config, "second");
    second.ready().await;
    eventually("a share for each", async || {
        let (a, b) = (first.partitions().await, second.partitions().await);
        (a + b == 4 && a > 0 && b > 0).then_some(())
    })
    .await;
    for key in &keys {
        assert_eq!((first.ask(key).await, second.ask(key).await), (200, 200));
    }
    second.child.kill().expect("killed");
    second.child.wait().expect("ended");
    eventually("all partitions", async || (first.partitions().await == 4).then_some(())).await;
    for key in &keys {
        assert_eq!(first.ask(key).await, 200);
    }
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
