//! The ACLs of `docs/production.md`, given to the principals of the test.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::clients::python::python;

/// The guide's lines `acls --allow-principal ...` for one principal, as one line for each resource and operation.
fn of_the_guide(principal: &str) -> String {
    let guide = std::fs::read_to_string("docs/production.md").unwrap();
    let lines = guide.lines().filter_map(|line| line.strip_prefix("acls --allow-principal "));
    let mut bindings = String::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let (mut operations, mut resources) = (Vec::new(), Vec::new());
        if words.next() != Some(principal) {
            continue;
        }
        while let Some(flag) = words.next() {
            let value = words.next().unwrap_or_else(|| panic!("{flag} has no value in: {line}"));
            match flag {
                "--operation" => operations.push(value),
                "--topic" => resources.push(("topic", value.trim_matches('\''))),
                "--group" => resources.push(("group", value)),
                _ => panic!("{flag} in: {line}"),
            }
        }
        for (kind, name) in &resources {
            for operation in &operations {
                bindings.push_str(&format!("{principal} {operation} {kind} {name}\n"));
            }
        }
    }
    assert!(!bindings.is_empty(), "the guide has no ACLs for {principal}");
    bindings
}

pub fn give(principal: &str, brokers: &str) {
    let requirements = std::fs::read_to_string("examples/python/requirements.txt").unwrap();
    let mut child = Command::new(python(&requirements))
        .args(["tests/stack/connections/acls.py", brokers])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(of_the_guide(principal).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
