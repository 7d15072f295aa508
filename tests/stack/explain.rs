//! `tollstream explain` and `tollstream reprice` on the journal of a gateway that ran.

use std::process::{Command, Output};

use serde_json::Value;
use tollstream::config::Config;
use tollstream::domain::ids::partition_of;
use tollstream::processor::content;

use super::stream::{ORGANIZATION, PARTITIONS, World, chat, question};

/// The prices that the gateway's control has.
const PRICES: &str = include_str!("../../topology/seed/models.toml");

fn run(config: &Config, arguments: &[&str]) -> Output {
    let kafka = &config.kafka;
    Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(arguments)
        .args(["--brokers", &kafka.brokers, "--topic-prefix", &kafka.topic_prefix])
        .args(["--registry", &config.registry.url])
        .output()
        .expect("tollstream runs")
}

/// The exit code, and what it prints as JSON.
fn json(config: &Config, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = run(config, &[arguments, &["--json"]].concat());
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), value)
}

/// The story of a request, of which there must be one.
fn explained(config: &Config, request: &str) -> Value {
    let (code, found) = json(config, &["explain", request, "--organization", ORGANIZATION]);
    assert_eq!((code, found["requests"].as_array().map(Vec::len)), (Some(0), Some(1)), "{found}");
    found["requests"][0].clone()
}

fn kinds(step: &Value) -> Vec<&str> {
    step["facts"].as_array().expect("facts").iter().map(|fact| fact["kind"].as_str().expect("a kind")).collect()
}

#[tokio::test]
async fn requests_are_explained_and_priced_anew_from_the_journal() {
    let mut world = World::start("explain").await;
    let partition = partition_of(ORGANIZATION, PARTITIONS);
    let text = "Onde está a minha encomenda? ".repeat(10_000);
    let long = format!(r#"{{"model":"gpt-4o-mini","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    // The long one is read on another thread, and those behind it wait in order.
    world.ask(partition, chat("long", &long)).await;
    let answered = ["long", "short-0", "short-1", "short-2"];
    for request in &answered[1..] {
        world.ask(partition, question(request)).await;
    }
    world.ask(partition, chat("refused", r#"{"model":"no-such","messages":[{"role":"user","content":"x"}]}"#)).await;
    for request in answered.iter().chain(&["refused"]) {
        world.terminal_of(request).await;
    }
    world.stop().await;
    let config = &world.config;

    let mut output_tokens = 0;
    let mut offsets = Vec::new();
    for request in answered {
        let story = explained(config, request);
        assert_eq!((&story["outcome"], &story["status"]), (&"completed".into(), &200.into()), "{story:#}");
        let steps = story["steps"].as_array().expect("steps");
        assert_eq!(kinds(&steps[0]), ["request_admitted", "request_routed", "attempt_started"]);
        assert_eq!(kinds(steps.last().expect("a step")), ["attempt_ended", "request_settled"]);
        let attempt = &story["attempts"][0];
        assert_eq!(attempt["posted_pico_usd"], story["cost_pico_usd"]);
        assert!(attempt["price_version"].is_i64() && steps[0]["control_offset"].is_i64());
        output_tokens += attempt["usage"]["output"].as_i64().expect("output");
        offsets.push(steps[0]["offset"].as_i64().expect("an offset"));
        let features = &steps[0]["facts"][0]["request_admitted"]["features"];
        if request == "long" {
            let counted = content::read(long.as_bytes()).expect("content").features.input_tokens;
            assert_eq!(features["input_tokens"].as_u64(), counted);
        }
        assert!(features["input_tokens"].as_u64() > Some(0), "{features}");
    }
    assert!(offsets.is_sorted(), "nothing overtakes the long one: {offsets:?}");
    let refused = explained(config, "refused");
    assert_eq!((&refused["outcome"], &refused["status"]), (&"refused".into(), &404.into()));

    let told = run(config, &["explain", "long"]);
    let text = String::from_utf8_lossy(&told.stdout);
    for wanted in ["request long of org_demo", "completed 200, cost $", "gpt-4o-mini at ", "routed", "settled"] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    assert_eq!(json(config, &["explain", "nobodys"]).0, Some(1));
    assert_eq!(json(config, &["explain", "long", "--organization", "org_other"]).0, Some(1));
    assert_eq!(json(config, &["explain", "long", "--config", "/no/such/file"]).0, Some(2));

    let folder = tempfile::tempdir().expect("a folder");
    let prices = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let (code, same) = json(config, &["reprice", "--prices", &prices("same.toml", PRICES)]);
    let all = &same["all"];
    assert_eq!((code, &all["postings"], &all["compared"]), (Some(0), &4.into(), &4.into()), "{same:#}");
    assert_eq!((&all["difference_pico_usd"], &all["recorded_pico_usd"]), (&"0".into(), &all["new_pico_usd"]));
    let dearer =
        PRICES.replace("output = \"0.6\"", "output = \"1000\"").replace("output = \"0.60\"", "output = \"1000\"");
    assert_ne!(dearer, PRICES);
    let dearer = prices("dearer.toml", &dearer);
    let (_, more) = json(config, &["reprice", "--prices", &dearer, "--organization", ORGANIZATION]);
    let difference = output_tokens * (1_000_000_000 - 600_000);
    assert_eq!(more["all"]["difference_pico_usd"], difference.to_string(), "{more:#}");
    assert_eq!(more["rows"][0]["model"], "gpt-4o-mini");
    assert_eq!(json(config, &["reprice", "--prices", &dearer, "--until", "1h"]).0, Some(1));
    assert_eq!(json(config, &["reprice", "--prices", &prices("wrong.toml", "x")]).0, Some(2));
    let told = run(config, &["reprice", "--prices", &dearer]);
    let text = String::from_utf8_lossy(&told.stdout);
    assert!(text.contains("gpt-4o-mini") && text.contains('+'), "{text}");
}
