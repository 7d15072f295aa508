//! `examples/python/ask.py`: a request over Kafka with confluent-kafka's stock serializer.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::python::python;
use crate::stack::fixture::{eventually, rows, stack};

fn ask(arguments: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
    let requirements = std::fs::read_to_string(folder.join("requirements.txt")).expect("requirements");
    let description = &stack().description;
    Command::new(python(&requirements))
        .arg(folder.join("ask.py"))
        .args(["--brokers", &description.kafka, "--registry", &description.registry])
        .args(arguments)
        .output()
        .expect("the example runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_stock_producer_is_answered_with_either_partitioner() {
    let description = &stack().description;
    // CRC32 and murmur2 agree on some organizations; of these two at least one lies elsewhere.
    for organization in ["org_demo", "org_123"] {
        for partitioner in ["murmur2", "default"] {
            let mut arguments = vec!["--organization", organization, "--partitioner", partitioner, "--frames"];
            arguments.extend(["--model", "gpt-4o-mini", "--prompt", "Where is my order?"]);
            let answer = ask(&arguments);
            let said = text(&answer.stderr);
            assert_eq!(answer.status.code(), Some(0), "{organization} {partitioner}: {said}");
            let frames: Vec<Value> =
                text(&answer.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            let terminal = frames.last().expect("frames");
            assert_eq!(
                (&terminal["kind"], &terminal["terminal"]["outcome"]),
                (&"terminal".into(), &"COMPLETED".into())
            );
            let content = frames.iter().filter(|frame| frame["kind"] == "content").count();
            assert!(content > 0 && terminal["sequence"] == content, "{content} frames before {terminal}");

            let request = terminal["request_id"].as_str().expect("an id").to_owned();
            let query = format!("SELECT * FROM {}.usage_exact WHERE request_id = '{request}'", description.database);
            let row = eventually("a row in ClickHouse", async || rows(description, &query).await.pop()).await;
            assert_eq!((&row["organization"], &row["outcome"]), (&organization.into(), &"completed".into()));
        }
    }
}

#[test]
fn a_refusal_is_told_and_ends_the_example() {
    let answer = ask(&["--organization", "org_demo", "--model", "no-such-model", "--prompt", "Hello?"]);
    assert_eq!(answer.status.code(), Some(1));
    assert!(text(&answer.stderr).contains("model_not_found"), "{}", text(&answer.stderr));
}
