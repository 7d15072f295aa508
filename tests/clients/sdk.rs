//! OpenAI's own Python SDK, against the gateway and straight against the simulator.

use std::path::Path;
use std::process::{Command, Stdio};

use super::python::python;
use crate::stack::fixture::stack;

/// The SDK that is tested with.
const REQUIREMENTS: &str = "openai==3.54.0\n";

fn script(name: &str, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    let output = Command::new(python(REQUIREMENTS)).arg(path).args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("the script runs");
    assert!(
        output.status.success(),
        "{name}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_openai_sdk_works_with_the_gateway() {
    let description = &stack().description;
    script("openai_sdk.py", &[&format!("{}/v1", description.facade), &description.api_key]);
}

#[test]
fn the_openai_sdk_works_straight_with_the_simulator() {
    let simulator = stack().description.simulator.as_ref().expect("a simulator");
    script("simulator_sdk.py", &[&format!("{simulator}/v1")]);
}
