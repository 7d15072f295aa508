//! `tollstream providers`: how the deployments do, as one process knows from its own calls.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::output;

/// How long the process may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Args)]
pub struct Providers {
    /// The admin listener of a process with the role processor
    #[arg(long, default_value = "http://127.0.0.1:4001", value_name = "URL")]
    pub admin_url: String,
    /// An admin key; `tollstream up` has it in .tollstream/keys.json
    #[arg(long, env = "TOLLSTREAM_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    pub admin_key: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub async fn run(arguments: Providers) -> anyhow::Result<ExitCode> {
    let url = format!("{}/admin/v1/providers", arguments.admin_url.trim_end_matches('/'));
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let asked = client.get(&url).bearer_auth(&arguments.admin_key).send().await;
    let response = asked.with_context(|| format!("{url} does not answer; name the process with --admin-url"))?;
    let (status, body) = (response.status(), response.json::<Value>().await.context("the answer is no JSON")?);
    if !status.is_success() {
        bail!("{url} says {status}: {}", body["error"]["message"].as_str().unwrap_or("nothing more"));
    }
    if arguments.json {
        output::line(&body.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let deployments = body["data"].as_array().map_or(&[][..], Vec::as_slice);
    if deployments.is_empty() {
        output::note("this process has called nobody yet");
        return Ok(ExitCode::SUCCESS);
    }
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let columns =
        ["deployment", "state", "until", "latency_ms", "in_flight", "window_answered", "window_failed", "last_failure"];
    let rows: Vec<Vec<String>> =
        deployments.iter().map(|of| columns.iter().map(|column| text(&of[column])).collect()).collect();
    output::table(&columns, &rows);
    Ok(ExitCode::SUCCESS)
}
