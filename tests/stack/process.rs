//! A `tollstream run` of its own, as operators run it.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tollstream::config::Config;
use tollstream::stack::free_port;

use super::fixture::{eventually, stack};

/// Lines of its log that are shown when a test fails.
const LOG_LINES: usize = 40;

/// What is run.
#[derive(Default)]
pub struct Launch<'a> {
    pub instance: &'a str,
    /// Comma separated; all by default.
    pub roles: Option<&'a str>,
    /// See `src/failpoint.rs`.
    pub failpoint: Option<String>,
}

/// Killed at the end of its test.
pub struct Process {
    pub facade: String,
    pub admin: String,
    instance: String,
    child: Child,
    log: tempfile::NamedTempFile,
    _config: tempfile::NamedTempFile,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the log of {}:", self.instance);
            lines[lines.len().saturating_sub(LOG_LINES)..].iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Runs all roles, with the simulator of the run as every provider.
pub fn run(config: &Config, instance: &str) -> Process {
    simulated(config, Launch { instance, ..Launch::default() })
}

pub fn run_roles(config: &Config, instance: &str, roles: &str) -> Process {
    simulated(config, Launch { instance, roles: Some(roles), ..Launch::default() })
}

fn simulated(config: &Config, launch: Launch<'_>) -> Process {
    let mut config = config.clone();
    let simulator = stack().description.simulator.as_ref().expect("a simulator");
    // Whatever keys the machine's environment has, nothing leaves it.
    config.providers.upstream_override = Some(format!("{simulator}/v1"));
    Process::start(&config, launch)
}

/// A metric without labels, as the admin address tells it.
pub async fn metric(admin: &str, name: &str) -> f64 {
    let text = reqwest::get(format!("{admin}/metrics")).await.expect("metrics").text().await.expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

impl Process {
    pub fn start(config: &Config, launch: Launch<'_>) -> Self {
        Self::start_with(config, launch, &[])
    }

    /// With further variables in its environment.
    pub fn start_with(config: &Config, launch: Launch<'_>, environment: &[(&str, &str)]) -> Self {
        let mut config = Config { instance: launch.instance.to_owned(), ..config.clone() };
        config.facade.listen.set_port(free_port().expect("a port"));
        config.admin.listen.set_port(free_port().expect("a port"));
        let text = toml::to_string(&config).expect("TOML");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.args(["run", "--config"]).arg(file.path());
        command.args(launch.roles.iter().flat_map(|roles| ["--roles", roles]));
        command.envs(launch.failpoint.iter().map(|failpoint| ("TOLLSTREAM_FAILPOINT", failpoint)));
        command.envs(environment.iter().copied());
        let output = log.reopen().expect("the log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn().expect("tollstream runs");
        Self {
            facade: format!("http://{}", config.facade.listen),
            admin: format!("http://{}", config.admin.listen),
            instance: launch.instance.to_owned(),
            child,
            log,
            _config: file,
        }
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log.path()).expect("the log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub async fn ready(&mut self) {
        let url = format!("{}/health/ready", self.admin);
        let child = &mut self.child;
        eventually("ready", async || {
            let ended = child.try_wait().expect("a status");
            assert!(ended.is_none(), "it ended instead: {ended:?}");
            reqwest::get(&url).await.ok().filter(|answer| answer.status().is_success()).map(|_| ())
        })
        .await;
    }

    pub async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("{}/health/ready", self.admin)).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// A counter or gauge of its metrics.
    pub async fn metric(&self, name: &str) -> u64 {
        metric(&self.admin, name).await as u64
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

    pub async fn partitions(&self) -> u64 {
        self.metric("tollstream_processor_partitions_owned").await
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a pid");
        kill_process(pid, signal).expect("signalled");
    }

    /// The kernel's letter for what it does: `T` is stopped.
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a process");
        // The name before it is in parentheses and may hold anything.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
    }

    /// Waits until it has ended by itself or by a signal.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the end of a process", async || child.try_wait().expect("a status")).await
    }

    /// Kills it as `kill -9` does.
    pub async fn kill(mut self) {
        self.signal(Signal::KILL);
        let status = self.ended().await;
        assert_eq!(status.signal(), Some(9), "{status}");
    }

    /// Ends it in good order.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}: {}", self.log());
    }
}
