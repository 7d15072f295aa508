//! The laptop stack on real engines: what starts, what survives which kill, and what is left alone.
//!
//! Each test has a data directory and ports of its own. The engines are installed once for the user, as in life.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tollstream::stack::{self, Engine, EngineState, Identity, Options, Ports, Progress, Record};

/// The longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A stack behind the command line, ended when the test is over, however that happens.
struct Detached {
    directory: tempfile::TempDir,
    ports: Ports,
}

impl Detached {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ports: Ports::free().unwrap() }
    }

    fn data(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.arg("stack").args(arguments).arg("--data").arg(self.data()).stdin(Stdio::null()).output().unwrap()
    }

    fn up(&self) -> Output {
        let ports = &self.ports;
        let flags = [
            ("--kafka-port", ports.kafka),
            ("--kafka-controller-port", ports.kafka_controller),
            ("--registry-port", ports.registry),
            ("--clickhouse-port", ports.clickhouse_http),
            ("--clickhouse-tcp-port", ports.clickhouse_tcp),
        ]
        .map(|(flag, port)| format!("{flag}={port}"));
        let mut arguments = vec!["up"];
        arguments.extend(flags.iter().map(String::as_str));
        self.run(&arguments)
    }

    fn up_well(&self) {
        let output = self.up();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn status(&self) -> (bool, Value) {
        let output = self.run(&["status", "--json"]);
        (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
    }

    fn record(&self) -> Option<Record> {
        Record::read(&stack::Layout::open(self.data()).unwrap())
    }

    /// The processes of the stack: its supervisor and its engines.
    fn processes(&self) -> Vec<Identity> {
        let record = self.record().unwrap();
        let engines = record.engines.iter().filter_map(|status| status.process);
        std::iter::once(record.owner).chain(engines).collect()
    }

    fn sql(&self, query: &str) -> Result<String, String> {
        sql(self.ports.clickhouse_http, query)
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

fn sql(port: u16, query: &str) -> Result<String, String> {
    use std::io::{Read, Write};
    let exchange = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n{query}", query.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.contains(" 200 ") { Ok(body.trim().to_owned()) } else { Err(body.to_owned()) }
}

fn kill(process: Identity) {
    let status = Command::new("kill").args(["-9", &process.pid.to_string()]).status().unwrap();
    assert!(status.success(), "process {} was not there to be killed", process.pid);
}

/// Waits until something holds; fails with its last objection.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(objection) => assert!(Instant::now() < deadline, "{what}: {objection}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn gone(processes: &[Identity]) {
    eventually("processes end", || {
        processes.iter().find(|process| process.is_alive()).map_or(Ok(()), |process| Err(format!("{process:?} runs")))
    });
}

#[test]
fn the_life_of_a_stack_through_kills_and_restarts() {
    let stack = Detached::new();
    assert!(!stack.status().0, "a stack that was never started is up");

    // Up serves, says where, and a second up changes nothing.
    let output = stack.up();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains(&format!("127.0.0.1:{}", stack.ports.kafka)), "{table}");
    assert!(table.contains(&format!("http://127.0.0.1:{}/apis/ccompat/v7", stack.ports.registry)), "{table}");
    let (up, status) = stack.status();
    assert!(up, "{status}");
    let first = stack.processes();
    assert_eq!(first.len(), 4);
    let again = stack.up();
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("already up") || stack.processes() == first);
    assert_eq!(stack.processes(), first);

    // Another stack on the same port is told who has it and how to avoid it, and leaves it running.
    let other = Detached { directory: tempfile::tempdir().unwrap(), ports: stack.ports };
    let refused = other.up();
    assert!(!refused.status.success());
    let message = String::from_utf8(refused.stderr).unwrap();
    for part in [&stack.ports.kafka.to_string(), "java", "--kafka-port"] {
        assert!(message.contains(part), "{part} is missing in: {message}");
    }

    // ClickHouse is killed: it comes back by itself, with its data.
    stack.sql("CREATE DATABASE kept ENGINE = Atomic").unwrap();
    stack.sql("CREATE TABLE kept.rows (n UInt64) ENGINE = MergeTree ORDER BY n").unwrap();
    stack.sql("INSERT INTO kept.rows SELECT number FROM numbers(1000)").unwrap();
    let before = stack.record().unwrap();
    let clickhouse = before.engines.iter().find(|status| status.engine == Engine::ClickHouse).unwrap();
    kill(clickhouse.process.unwrap());
    eventually("clickhouse restarts", || {
        let record = stack.record().ok_or("no record")?;
        let status = record.engines.iter().find(|status| status.engine == Engine::ClickHouse).ok_or("no status")?;
        if status.restarts == 1 && status.state == EngineState::Running { Ok(()) } else { Err(format!("{status:?}")) }
    });
    let sum = eventually("clickhouse answers", || stack.sql("SELECT sum(n) FROM kept.rows"));
    assert_eq!(sum, "499500");

    // The supervisor is killed: its engines go with it, and the next up recovers.
    let processes = stack.processes();
    kill(processes[0]);
    gone(&processes);
    assert!(!stack.status().0, "a stack without processes is up");
    stack.up_well();
    assert_eq!(stack.sql("SELECT sum(n) FROM kept.rows").unwrap(), "499500");

    // Everything is killed at once, as by a lost machine.
    let processes = stack.processes();
    for process in processes.iter().rev() {
        kill(*process);
    }
    gone(&processes);
    stack.up_well();
    assert_eq!(stack.sql("SELECT count() FROM kept.rows").unwrap(), "1000");

    // Down ends exactly its own: a stranger that mentions the data directory stays.
    let mut stranger = Command::new("sh")
        .args(["-c", "read line", "sh"])
        .arg(stack.data().join("clickhouse/data"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let processes = stack.processes();
    assert!(stack.run(&["down"]).status.success());
    assert!(processes.iter().all(|process| !process.is_alive()), "down left {processes:?}");
    assert!(stranger.try_wait().unwrap().is_none(), "down ended a stranger");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(stack.record(), None);
    let (up, status) = stack.status();
    assert!(!up && status["engines"].as_array().unwrap().iter().all(|engine| engine["state"] == "down"), "{status}");
    assert!(stack.run(&["down"]).status.success(), "a second down is no error");

    // What it printed can be read, also now.
    let logs = stack.run(&["logs", "kafka", "-n", "5"]);
    assert!(logs.status.success());
    assert_eq!(String::from_utf8(logs.stdout).unwrap().lines().count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_foreground_form_serves_and_ends_with_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let data: PathBuf = directory.path().join("stack");
    let mut options = Options::new(&data).unwrap();
    options.ports = Ports::free().unwrap();
    let running = stack::up(options.clone(), &Progress::Quiet).await.unwrap();
    assert_eq!(sql(options.ports.clickhouse_http, "SELECT 1").unwrap(), "1");
    let report = stack::daemon::status(&data).await.unwrap();
    assert!(report.up, "{report:?}");

    // One data directory, one owner: neither a second start nor `down` touches it.
    let second = stack::up(Options { ports: Ports::free().unwrap(), ..options.clone() }, &Progress::Quiet).await;
    assert!(matches!(second, Err(stack::Error::DataInUse { .. })), "{second:?}");
    let down = stack::daemon::down(&data, Duration::from_secs(1), &Progress::Quiet).await;
    assert!(matches!(down, Err(stack::Error::DataInUse { .. })), "{down:?}");

    let processes: Vec<Identity> = running.engines().into_iter().filter_map(|status| status.process).collect();
    assert_eq!(processes.len(), 3);
    assert!(processes.iter().all(|process| process.is_alive()));
    running.stop().await.unwrap();
    assert!(processes.iter().all(|process| !process.is_alive()));

    // Dropped without a word, nothing is left either; the same directory starts again.
    let running = stack::up(options, &Progress::Quiet).await.unwrap();
    let processes: Vec<Identity> = running.engines().into_iter().filter_map(|status| status.process).collect();
    drop(running);
    assert!(processes.iter().all(|process| !process.is_alive()));
}
