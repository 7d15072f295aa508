//! An archive in an S3-compatible store, by an implementation of S3 that is not ours (moto).

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tollstream::config::Config;
use tollstream::domain::ids::partition_of;

use super::python::python;
use crate::stack::stream::{ORGANIZATION, PARTITIONS, World, question};

/// A server of S3 on loopback that ends when nobody holds its standard input any more.
const SERVER: &str = "
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
";

struct Store {
    endpoint: String,
    child: Child,
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Store {
    fn start() -> Self {
        let mut child = Command::new(python("moto[server]==5.1.4\n"))
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let port: u16 = line.trim().parse().unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { endpoint: format!("http://127.0.0.1:{port}"), child }
    }

    /// The exit code, and what a command prints as JSON.
    fn json(&self, config: Option<&Config>, folder: &std::path::Path, arguments: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.args(arguments).arg("--json").current_dir(folder);
        if let Some(config) = config {
            let path = folder.join("config.toml");
            std::fs::write(&path, toml::to_string(config).expect("TOML")).expect("written");
            command.arg("--config").arg(path);
        }
        let variables = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ];
        let output = command.envs(variables).output().expect("tollstream runs");
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code(), value)
    }
}

#[tokio::test]
async fn a_bucket_holds_an_archive_that_replays_as_the_topics_do() {
    tollstream::tls::install_provider();
    let store = Store::start();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let made = client.put(format!("{}/logs", store.endpoint)).send().await.expect("an answer");
    assert!(made.status().is_success(), "{made:?}");
    let mut world = World::start("bucket").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    for request in ["one", "two", "three"] {
        world.ask(partition, question(request)).await;
    }
    for request in ["one", "two", "three"] {
        world.terminal_of(request).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (config, folder) = (&world.config.clone(), folder.path());
    let url = "s3://logs/archive/of-the-day";
    let (code, added) = store.json(Some(config), folder, &["archive", "write", "--to", url]);
    assert_eq!((code, &added["added"]["requests"]["records"]), (Some(0), &3.into()), "{added:#}");
    let (code, checked) = store.json(None, folder, &["archive", "check", url]);
    assert_eq!((code, &checked["problems"]), (Some(0), &Value::Array(Vec::new())), "{checked:#}");
    // Nothing came, so nothing is added.
    world.stop().await;
    let (code, added) = store.json(Some(config), folder, &["archive", "write", "--to", url]);
    assert_eq!((code, added["added"]["requests"].is_null()), (Some(0), true), "{added:#}");
    let replay = ["replay", "--reclassify", "--verify", "--no-clickhouse"];
    let (code, of_topics) = store.json(Some(config), folder, &[&replay[..], &["--run", "topics"]].concat());
    assert_eq!(code, Some(0), "{of_topics:#}");
    let (code, of_bucket) =
        store.json(Some(config), folder, &[&replay[..], &["--run", "bucket", "--archive", url]].concat());
    assert_eq!((code, &of_bucket["candidates"]), (Some(0), &of_topics["candidates"]));
    assert_eq!(of_bucket["candidates"][0]["all"]["recorded"]["requests"], 3);
    let (code, none) = store.json(None, folder, &["archive", "check", "s3://logs/elsewhere"]);
    assert!(
        code == Some(2) && none["error"].as_str().is_some_and(|error| error.contains("nothing was archived there")),
        "{none}"
    );
}
