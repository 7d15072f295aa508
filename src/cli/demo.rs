//! One request from the question to the row that says what it cost, on the screen.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;

use super::output;
use super::up::Description;

const QUESTION: &str = "Olá! Posso trocar um produto depois de sete dias?";
const MODEL: &str = "auto";
/// How long the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the row may take to arrive in ClickHouse.
const ROW_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Asks, streams the answer, and reads the row back by SQL.
pub async fn run(description: &Description) -> anyhow::Result<()> {
    crate::tls::install_provider();
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build()?;
    output::line(&format!("\n> {QUESTION}   (model {MODEL}, streamed)\n"));
    let request_id = ask(&client, description).await?;
    let query = format!(
        "SELECT organization, request_id, model, deployment, tier, input_tokens, output_tokens, \
         toString(cost_usd) AS cost_usd, simulated, outcome, duration_ms FROM {}.usage_exact \
         WHERE organization = '{}' AND request_id = '{request_id}'",
        description.database, description.organization
    );
    output::line(&format!("\n\nclickhouse> {query}\n"));
    output::line(row(&client, description, &query).await?.trim_end());
    Ok(())
}

async fn ask(client: &reqwest::Client, description: &Description) -> anyhow::Result<String> {
    let body = serde_json::json!({
        "model": MODEL, "stream": true, "messages": [{"role": "user", "content": QUESTION}],
        "metadata": {"organization_id": description.organization},
    });
    let answer = client
        .post(format!("{}/v1/chat/completions", description.facade))
        .bearer_auth(&description.api_key)
        .json(&body)
        .send()
        .await?;
    let status = answer.status();
    let header = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    if !status.is_success() {
        anyhow::bail!("the gateway answered {status}: {}", answer.text().await?);
    }
    let request_id = header.context("the answer has no x-request-id")?;
    let (mut events, mut pending) = (answer.bytes_stream(), Vec::new());
    let mut done = false;
    while let Some(bytes) = events.next().await {
        pending.extend_from_slice(&bytes?);
        while let Some(end) = memchr::memchr(b'\n', &pending) {
            let line: Vec<u8> = pending.drain(..=end).collect();
            done |= print_delta(&String::from_utf8_lossy(&line));
        }
    }
    anyhow::ensure!(done, "the stream ended without [DONE]");
    Ok(request_id)
}

/// Prints the text of an event; true for the last one.
fn print_delta(line: &str) -> bool {
    let Some(data) = line.trim_end().strip_prefix("data: ") else { return false };
    if data == "[DONE]" {
        return true;
    }
    let chunk: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
    if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str() {
        let mut out = std::io::stdout().lock();
        // A terminal that went away is no reason to fail.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
    false
}

async fn row(client: &reqwest::Client, description: &Description, query: &str) -> anyhow::Result<String> {
    let until = tokio::time::Instant::now() + ROW_TIMEOUT;
    loop {
        let asked = format!("{query} FORMAT Vertical");
        let answer = client.post(&description.clickhouse).body(asked).send().await?.error_for_status()?;
        let text = answer.text().await?;
        if !text.trim().is_empty() {
            return Ok(text);
        }
        let seconds = ROW_TIMEOUT.as_secs();
        anyhow::ensure!(tokio::time::Instant::now() < until, "no row within {seconds} s; is the sink running?");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
