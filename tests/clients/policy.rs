//! `tollstream policy`, which needs nothing running.

use std::io::Write as _;
use std::process::{Command, Output};

use serde_json::Value;

const AUTO: &str = "topology/seed/policies/auto.toml";

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollstream")).arg("policy").args(arguments).output().expect("tollstream runs")
}

fn json(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// A file with the seed's policy, changed.
fn changed(from: &str, to: &str) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(AUTO).expect("the seed");
    assert!(text.contains(from), "{from}");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.replacen(from, to, 1).as_bytes()).expect("written");
    file
}

#[test]
fn check_names_file_line_and_column_of_everything_that_is_wrong() {
    assert_eq!(run(&["check", AUTO]).status.code(), Some(0));
    let line_of = |text: &str| {
        let seed = std::fs::read_to_string(AUTO).expect("the seed");
        seed.lines().position(|line| line.starts_with(text)).expect("a line") + 1
    };
    let table = [
        ("vip_tier = 4", "vip_tier = 9", line_of("vip_tier"), 1, "vip_tier: 9 has no [[tiers]]"),
        ("greeting = 1", "greeting = 7", line_of("greeting"), 1, "intents.greeting: 7 has no"),
        (
            "\"claude-opus-4-6\", \"gpt-4-turbo\", \"claude-sonnet",
            "\"nobody\", \"claude-sonnet",
            line_of("fallback"),
            1,
            "fallback: nobody is no model",
        ),
        ("max_attempts = 3", "max_attempts = ", line_of("max_attempts"), 16, "TOML parse error"),
    ];
    for (from, to, line, column, problem) in table {
        let file = changed(from, to);
        let path = file.path().to_str().expect("a path");
        let output = run(&["check", path]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(5), "{told}");
        assert!(told.contains(&format!("{path}:{line}:{column}: {problem}")), "{told}");
    }
}

#[test]
fn explain_says_tier_candidates_and_why() {
    let route = json(&["explain", "bom dia!"]);
    assert_eq!((&route["tier"], &route["tiering"]["intent"]), (&1.into(), &"greeting".into()), "{route}");
    assert_eq!(route["model"], "llama-3.2-3b-instruct");
    let vip = json(&["explain", "bom dia!", "--user-tier", "vip"]);
    assert_eq!((&vip["tier"], &vip["model"]), (&4.into(), &"claude-opus-4-6".into()));
    let given = json(&["explain", "bom dia!", "--tag", "intent=complex_question"]);
    assert_eq!((&given["tier"], &given["tiering"]["intent_source"]), (&3.into(), &"GIVEN".into()));
    let foreign = json(&["explain", "Пожалуйста, сравните оба договора и объясните подробно"]);
    assert_eq!((&foreign["tier"], &foreign["likelihoods_permille"]), (&2.into(), &Value::Null));
    assert_eq!(run(&["explain", "x", "--tag", "nonsense"]).status.code(), Some(1));
}

#[test]
fn diff_says_what_changed_and_which_utterances_go_elsewhere() {
    let utterances = "tests/routing/tuning-en.jsonl";
    let same = json(&["diff", AUTO, AUTO, "--utterances", utterances]);
    assert_eq!((&same["utterances"], same["moved"].as_array().map(Vec::len)), (&186.into(), Some(0)), "{same}");
    let all_up = changed("faq = 1", "faq = 2");
    let found = json(&["diff", AUTO, all_up.path().to_str().expect("a path"), "--utterances", utterances]);
    assert_eq!(found["changes"][0]["field"], "intents.faq", "{found}");
    let moved = found["moved"].as_array().expect("a list");
    let goes_up = |of: &Value| of["before"]["tier"].as_str() < of["after"]["tier"].as_str();
    assert!(moved.len() > 10 && moved.iter().all(goes_up), "{found}");
}
