//! `tollstream up --detach`: a gateway that stays, and what it leaves behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tollstream::cli::up::Description;

use super::fixture::eventually;

/// A gateway on engines of its own that stays until this value goes.
struct Detached(tempfile::TempDir);

impl Detached {
    fn data(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.args(arguments).arg("--data").arg(self.data()).stdin(Stdio::null()).output().expect("it runs")
    }

    /// What it says of itself.
    fn up(&self) -> Description {
        let ports = ["--free-ports", "--facade-port=0", "--admin-port=0", "--simulator-port=0"];
        let output = self.run(&[["up", "--detach", "--no-demo", "--json"].as_slice(), &ports].concat());
        let (out, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{notes}");
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stays_answers_and_its_log_holds_no_key() {
    let detached = Detached(tempfile::tempdir().expect("a directory"));
    let description = detached.up();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ask = async || {
        let body = serde_json::json!({"model": "auto", "messages": [{"role": "user", "content": "Hello"}]});
        let url = format!("{}/v1/chat/completions", description.facade);
        client.post(url).bearer_auth(&description.api_key).json(&body).send().await
    };
    assert_eq!(ask().await.expect("an answer").status(), reqwest::StatusCode::OK);
    assert_eq!(detached.up().pid, description.pid, "it is up already");
    let log = std::fs::read_to_string(detached.data().join("logs/gateway.log")).expect("a log");
    assert!(log.contains("facade listens"), "{log}");
    for secret in [&description.api_key, &description.admin_key] {
        assert!(secret.len() > 32 && !log.contains(secret.as_str()), "a key is in the log");
    }
    assert!(!log.contains('\u{1b}'), "colours in a file: {log}");
    traffic(&detached);
    paid_traffic(&detached);
    broken_off_traffic(&detached, &description).await;
    assert!(detached.run(&["down"]).status.success());
    assert!(ask().await.is_err(), "it is down");
    let nobody = detached.run(&["demo", "traffic", "--requests", "1"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no gateway runs from"), "{nobody:?}");
}

/// With a provider's key, a day would cost money.
fn paid_traffic(detached: &Detached) {
    let path = detached.data().join("gateway.json");
    let text = std::fs::read_to_string(&path).expect("a record");
    let mut record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    record["description"]["provider_keys"] = serde_json::json!(["env:SOME_KEY"]);
    std::fs::write(&path, record.to_string()).expect("written");
    let asked = detached.run(&["demo", "traffic", "--requests", "1"]);
    let told = String::from_utf8_lossy(&asked.stderr);
    assert!(!asked.status.success() && told.contains("env:SOME_KEY") && told.contains("say --yes"), "{told}");
    assert!(detached.run(&["demo", "traffic", "--requests", "1", "--yes"]).status.success());
    std::fs::write(&path, text).expect("written");
}

/// A day that is ended by a signal leaves no key, and the simulator as it was.
async fn broken_off_traffic(detached: &Detached, description: &Description) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let get = async |url: String, key: &str| -> serde_json::Value {
        let answer = client.get(url).bearer_auth(key).send().await.expect("an answer");
        answer.error_for_status().expect("it is there").json().await.expect("JSON")
    };
    let behavior = format!("{}/admin/behavior", description.simulator.as_ref().expect("a simulator"));
    let before = get(behavior.clone(), "").await;
    let mut day = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(["demo", "traffic", "--requests", "1000000", "--data"])
        .arg(detached.data())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("it runs");
    eventually("the day has begun", async || (get(behavior.clone(), "").await != before).then_some(())).await;
    let id = i32::try_from(day.id()).ok().and_then(rustix::process::Pid::from_raw).expect("an id");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("signalled");
    let ended = tokio::task::spawn_blocking(move || {
        let mut told = String::new();
        std::io::Read::read_to_string(day.stderr.as_mut().expect("stderr"), &mut told).expect("text");
        (day.wait().expect("it ends"), told)
    });
    let (status, told) = ended.await.expect("it ends");
    assert!(!status.success() && told.contains("ended by SIGTERM"), "{status} {told}");
    assert_eq!(get(behavior, "").await, before);
    let keys = get(format!("{}/admin/v1/keys?limit=1000", description.admin), &description.admin_key).await;
    let of_days: Vec<_> =
        keys["data"].as_array().expect("keys").iter().filter(|key| key["description"] == "demo traffic").collect();
    assert!(of_days.len() >= 4 && of_days.iter().all(|key| key["active"] == false), "{of_days:?}");
}

/// A short synthetic day goes through it, with its mistakes; the simulator is afterwards as it was.
fn traffic(detached: &Detached) {
    let output = detached.run(&["demo", "traffic", "--requests", "150", "--concurrency", "16", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let answers = told["answers"].as_object().expect("answers");
    let all: u64 = answers.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(all, 150, "{told}");
    assert!(answers["200"].as_u64() > Some(75), "{told}");
    let again = detached.run(&["demo", "traffic", "--requests", "1", "--json"]);
    assert!(again.status.success(), "its organizations are there already: {again:?}");
    let down = detached.run(&["demo", "traffic", "--requests", "1", "--concurrency", "0"]);
    assert!(String::from_utf8_lossy(&down.stderr).contains("--concurrency must be from 1"), "{down:?}");
}
