//! `tollstream demo traffic`: a synthetic day through a gateway that `tollstream up` runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use futures_util::stream;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::audit::bar;
use super::output;
use super::signals;
use super::up::{Description, running};
use crate::demo::{Day, Question, TENANTS};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a new key may take until it is let in.
const KEY_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Most requests that are under way at once.
const CONCURRENCY_MAX: usize = 512;
/// In which thirds of the day some providers fail, and how.
const BAD_HOURS: [&str; 3] =
    ["claude-haiku*@status=503:12%", "gpt-4*@status=429;retry-after=1:8%", "claude-sonnet*@cut-after=0:5%"];

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// A synthetic day: five organizations, two languages, six intents, people who come back, providers that fail
    Traffic(Traffic),
}

#[derive(Debug, Clone, Args)]
pub struct Traffic {
    /// How many requests
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub requests: usize,
    /// Another seed is another day
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests under way at once
    #[arg(long, value_name = "N", default_value_t = 48)]
    pub concurrency: usize,
    /// All providers answer: no failures on purpose in the middle of the day
    #[arg(long)]
    pub no_faults: bool,
    /// The directory that `up` was given
    #[arg(long, default_value = ".tollstream", value_name = "DIR")]
    pub data: PathBuf,
    /// Really call the providers whose keys the gateway has, and pay for it
    #[arg(long)]
    pub yes: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Traffic(traffic) = command;
    ensure!((1..=CONCURRENCY_MAX).contains(&traffic.concurrency), "--concurrency must be from 1 to {CONCURRENCY_MAX}");
    ensure!(traffic.requests > 0, "--requests must be at least 1");
    let description = running(&traffic.data).with_context(|| {
        format!("no gateway runs from {}; start one with `tollstream up --detach`", traffic.data.display())
    })?;
    let paid = &description.provider_keys;
    ensure!(
        traffic.yes || paid.is_empty(),
        "the gateway has provider keys ({}), so some of these {} requests would be real calls that cost money; say --yes, or start it without these keys",
        paid.join(", "),
        traffic.requests
    );
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build()?;
    let (key_id, key) = tenants(&client, &description).await?;
    let begun = Instant::now();
    let progress = bar();
    progress.set_length(traffic.requests as u64);
    let told = tokio::select! {
        told = day(&client, &description, &key, &traffic, &progress) => told,
        signal = signals::terminated() => Err(anyhow::anyhow!("ended by {signal}")),
    };
    progress.finish_and_clear();
    // What went wrong first is told first.
    let restored = restore(&client, &description, &key_id).await;
    let told = told?;
    restored?;
    let seconds = begun.elapsed().as_secs_f64();
    match traffic.json {
        true => output::line(&json!({ "requests": traffic.requests, "answers": told, "seconds": seconds }).to_string()),
        false => {
            let rows: Vec<Vec<String>> =
                told.iter().map(|(what, count)| vec![what.clone(), count.to_string()]).collect();
            output::table(&["answer", "requests"], &rows);
            output::line(&format!(
                "\n{} requests in {seconds:.1} s, {:.0} requests/s\nwhat they cost: tollstream balance demo_shop; what another policy would make of them: docs/replay.md",
                traffic.requests,
                traffic.requests as f64 / seconds.max(f64::MIN_POSITIVE)
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the organizations of the day, and a key for all of them: its id, and itself.
async fn tenants(client: &reqwest::Client, description: &Description) -> anyhow::Result<(String, String)> {
    let operator =
        |path: &str| client.post(format!("{}/admin/v1/{path}", description.admin)).bearer_auth(&description.admin_key);
    for tenant in TENANTS {
        let body = json!({ "id": tenant.id, "name": tenant.name, "plan": tenant.plan });
        let answer = operator("organizations").json(&body).send().await?;
        let status = answer.status();
        // It is there from a day before.
        ensure!(
            status.is_success() || status == reqwest::StatusCode::CONFLICT,
            "making organization {}: the gateway answered {status}: {}",
            tenant.id,
            answer.text().await?
        );
    }
    let ids: Vec<&str> = TENANTS.iter().map(|tenant| tenant.id).collect();
    let answer = operator("keys").json(&json!({ "organizations": ids, "description": "demo traffic" })).send().await?;
    let status = answer.status();
    let made: Value = answer.json().await?;
    ensure!(status.is_success(), "making a key: the gateway answered {status}: {made}");
    let key = made["secret"].as_str().context("the new key has no secret")?.to_owned();
    let key_id = made["id"].as_str().context("the new key has no id")?.to_owned();
    let until = Instant::now() + KEY_TIMEOUT;
    loop {
        let answer = client.get(format!("{}/v1/models", description.facade)).bearer_auth(&key).send().await?;
        if answer.status().is_success() {
            return Ok((key_id, key));
        }
        ensure!(Instant::now() < until, "the new key was not let in: {}", answer.status());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The day in five parts, of which the second to the fourth have their failures.
async fn day(
    client: &reqwest::Client,
    description: &Description,
    key: &str,
    traffic: &Traffic,
    progress: &ProgressBar,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut questions = Day::new(traffic.seed).take(traffic.requests);
    let part = traffic.requests.div_ceil(BAD_HOURS.len() + 2);
    let mut told = BTreeMap::<String, u64>::new();
    for number in 0..BAD_HOURS.len() + 2 {
        let fault = number.checked_sub(1).and_then(|hour| BAD_HOURS.get(hour)).filter(|_| !traffic.no_faults);
        behave(client, description, fault.copied()).await?;
        let of_part: Vec<Question> = questions.by_ref().take(part).collect();
        let asked = of_part.into_iter().map(|question| ask(client, description, key, question));
        let mut answers = stream::iter(asked).buffer_unordered(traffic.concurrency);
        while let Some(answer) = answers.next().await {
            *told.entry(answer?).or_default() += 1;
            progress.inc(1);
        }
    }
    Ok(told)
}

/// Lets the simulator answer at once, with one kind of failure at the most.
async fn behave(client: &reqwest::Client, description: &Description, fault: Option<&str>) -> anyhow::Result<()> {
    let Some(simulator) = &description.simulator else { return Ok(()) };
    let base = simulator.trim_end_matches('/').trim_end_matches("/v1");
    let faults: Vec<&str> = fault.into_iter().collect();
    let body = json!({ "ttft_ms": 20, "tokens_per_second": 2_000, "faults": faults });
    let answer = client.put(format!("{base}/admin/behavior")).json(&body).send().await?;
    let status = answer.status();
    ensure!(status.is_success(), "the simulator answered {status}: {}", answer.text().await?);
    Ok(())
}

/// Leaves nothing of the day behind but what was asked: its key is revoked, and the simulator behaves as before.
async fn restore(client: &reqwest::Client, description: &Description, key_id: &str) -> anyhow::Result<()> {
    let revoked = revoke(client, description, key_id).await.context("revoking the key of the day");
    // Whatever became of the other.
    calm(client, description).await.context("letting the simulator behave as before")?;
    revoked
}

async fn revoke(client: &reqwest::Client, description: &Description, key_id: &str) -> anyhow::Result<()> {
    let url = format!("{}/admin/v1/keys/{key_id}/revoke", description.admin);
    client.post(url).bearer_auth(&description.admin_key).send().await?.error_for_status()?;
    Ok(())
}

async fn calm(client: &reqwest::Client, description: &Description) -> anyhow::Result<()> {
    let Some(simulator) = &description.simulator else { return Ok(()) };
    let base = simulator.trim_end_matches('/').trim_end_matches("/v1");
    client.put(format!("{base}/admin/behavior")).json(&json!({})).send().await?.error_for_status()?;
    Ok(())
}

/// Asks, and says what came of it.
async fn ask(
    client: &reqwest::Client,
    description: &Description,
    key: &str,
    question: Question,
) -> anyhow::Result<String> {
    let answer = client
        .post(format!("{}/v1/chat/completions", description.facade))
        .bearer_auth(key)
        .header("x-tollstream-conversation", &question.conversation)
        .json(&question.body)
        .send()
        .await?;
    let status = answer.status();
    if !status.is_success() {
        let error: Value = answer.json().await.unwrap_or_default();
        let code = error["error"]["code"].as_str().unwrap_or("-");
        return Ok(format!("{} {code}", status.as_u16()));
    }
    let mut chunks = answer.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        if question.leaves {
            return Ok("left before its end".to_owned());
        }
        if chunk.is_err() {
            return Ok("200, then cut off".to_owned());
        }
    }
    Ok("200".to_owned())
}
