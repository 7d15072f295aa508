//! `tollstream explain`: what became of a request.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::audit::{COULD_NOT_LOOK, reader};
use super::connection::Connection;
use super::output;
use crate::audit::plan;
use crate::causes::causes;
use crate::domain::{Moment, OrganizationId, PicoUsd, RequestId, Timestamp};
use crate::explain::tell::{Line, cost, duration, lines, tokens, usd};
use crate::explain::{Attempt, Posted, Step, Stories, Story};
use crate::records::journal::{Entry, JournalRecord};
use crate::runtime::clock;

#[derive(Debug, Clone, Args)]
pub struct Explain {
    /// The request's id: the `x-request-id` of its answer
    pub request_id: RequestId,
    /// Whose request it is; with it only one partition is read
    #[arg(long, value_name = "ID")]
    pub organization: Option<OrganizationId>,
    /// From the tenure on that was in force then: 2026-11-23T10:00:00Z, or 30s, 15m, 2h, 7d ago; default: everything
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    #[command(flatten)]
    pub connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Whatever keeps it from looking is told, and is an exit code of its own.
pub async fn run(arguments: Explain) -> anyhow::Result<ExitCode> {
    let stories = match find(&arguments).await {
        Ok(stories) => stories,
        Err(error) => {
            match arguments.json {
                true => output::line(&json!({ "found": null, "error": causes(error.as_ref()) }).to_string()),
                false => output::note(&format!("could not look: {}", causes(error.as_ref()))),
            }
            return Ok(ExitCode::from(COULD_NOT_LOOK));
        }
    };
    let found = !stories.is_empty();
    match arguments.json {
        true => {
            let described: Vec<Value> = stories.iter().map(describe).collect::<Result<_, _>>()?;
            output::line(&json!({ "found": found, "requests": described }).to_string());
        }
        false if found => stories.iter().for_each(show),
        false => output::note(&format!("the journal has no request {}", arguments.request_id)),
    }
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn find(arguments: &Explain) -> anyhow::Result<Vec<Story>> {
    let reader = reader(arguments.connection.load()?)?;
    let since = arguments.since.map(|since| since.before(clock::now()));
    let (request_id, organization) = (arguments.request_id.clone(), arguments.organization.clone());
    let look = move || {
        let extents = plan::journal(&reader, organization.as_ref(), since, None)?;
        let read = reader.entries(
            &extents,
            |partition| Stories::new(partition, request_id.clone(), organization.clone()),
            |stories, given| stories.take(given.offset, given.entry, given.counts, given.owner),
        );
        reader.progress.finish_and_clear();
        let mut found = Vec::new();
        for stories in read {
            found.extend(stories?.finish());
        }
        anyhow::Ok(found)
    };
    tokio::task::spawn_blocking(look).await.context("looking broke off")?
}

fn show(story: &Story) {
    for line in heading(story) {
        output::line(&line);
    }
    output::line("");
    let told = lines(story);
    let row = |line: &Line| {
        let what = if line.counts { line.what.to_owned() } else { format!("({})", line.what) };
        vec![
            line.at.to_string(),
            duration(line.after),
            format!("+{}", duration(line.step)),
            line.place.clone(),
            what,
            line.details.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = told.iter().map(row).collect();
    output::table(&["at", "after", "step", "journal", "what", "details"], &rows);
    if told.iter().any(|line| !line.counts) {
        output::line("(in brackets: commits that do not count, of an owner that had lost the partition)");
    }
    if story.left_out > 0 {
        output::line(&format!("and {} commits more", story.left_out));
    }
    let attempts = story.attempts();
    if !attempts.is_empty() {
        output::line("");
        let headers = ["attempt", "who", "prices", "reserved", "posted", "released", "overdrawn", "tokens"];
        output::table(&headers, &attempts.iter().map(money).collect::<Vec<_>>());
    }
    output::line("");
}

fn heading(story: &Story) -> Vec<String> {
    let mut heading = vec![format!("request {} of {}", story.request_id, story.organization)];
    if let Some(context) = story.context() {
        let named = |name: &str, value: Option<String>| value.map(|value| format!("{name} {value}"));
        let version = context.policy_version.map_or_else(String::new, |v| format!(" (control offset {v})"));
        let parts = [
            Some(format!("came {}", context.received_at)),
            named("asked for", context.requested_model.as_ref().map(ToString::to_string)),
            named("policy", context.policy.as_ref().map(|policy| format!("{policy}{version}"))),
            named("key", context.key_id.as_ref().map(ToString::to_string)),
            named("user", context.user.as_ref().map(ToString::to_string)),
            Some(if context.stream { "streamed" } else { "whole" }.to_owned()),
        ];
        heading.push(parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    heading.push(match story.end() {
        Some((outcome, status, spent)) => format!("{} {status}, cost {}", outcome.as_str(), cost(spent)),
        None => "not settled".to_owned(),
    });
    let tenures: Vec<String> = tenures(story).map(|(tenure, owner)| format!("{tenure} ({owner})")).collect();
    heading.push(format!("decided in the tenures {}", tenures.join(", ")));
    heading
}

/// Every tenure that has a commit that counts, and its owner.
fn tenures(story: &Story) -> impl Iterator<Item = (i64, &str)> {
    let mut seen = None;
    story.effective().filter_map(move |step| {
        let tenure = step.commit.tenure;
        (seen.replace(tenure) != Some(tenure)).then(|| (tenure, step.owner.as_deref().unwrap_or("owner not read")))
    })
}

fn money(attempt: &Attempt) -> Vec<String> {
    let orphans = attempt.orphans.iter().map(|orphan| format!(" and {} for a former owner", cost(*orphan)));
    let amount = |amount: Option<PicoUsd>| amount.map_or_else(|| "-".to_owned(), usd);
    vec![
        attempt.attempt.to_string(),
        format!("{} at {}", attempt.model, attempt.deployment),
        format!("control offset {}", attempt.price_version),
        amount(attempt.reserved),
        std::iter::once(posted(attempt.posted)).chain(orphans).collect(),
        amount(attempt.released()),
        amount(attempt.overdrawn),
        attempt.usage.as_ref().map_or_else(|| "-".to_owned(), tokens),
    ]
}

fn posted(posted: Posted) -> String {
    match posted {
        Posted::NotYet => "not yet".to_owned(),
        Posted::Unknown => cost(None),
        Posted::Amount(amount) => usd(amount),
    }
}

fn describe(story: &Story) -> anyhow::Result<Value> {
    let received = story.context().map(|context| context.received_at);
    let steps: Vec<Value> = story.steps.iter().map(|step| described_step(step, received)).collect::<Result<_, _>>()?;
    let end = story.end();
    Ok(json!({
        "organization": story.organization.as_str(),
        "request_id": story.request_id.as_str(),
        "context": without_nulls(serde_json::to_value(story.context())?),
        "outcome": end.map(|(outcome, ..)| outcome.as_str()),
        "status": end.map(|(_, status, _)| status),
        "cost_pico_usd": end.and_then(|(.., cost)| cost).and_then(PicoUsd::to_long),
        "tenures": tenures(story).map(|(tenure, owner)| json!({ "tenure": tenure, "owner": owner })).collect::<Vec<_>>(),
        "attempts": story.attempts().iter().map(described_attempt).collect::<Vec<_>>(),
        "steps": steps,
        "commits_left_out": story.left_out,
    }))
}

fn described_step(step: &Step, received: Option<Timestamp>) -> anyhow::Result<Value> {
    let commit = &step.commit;
    let record = without_nulls(serde_json::to_value(JournalRecord::from(Entry::Commit(commit.clone())))?);
    Ok(json!({
        "partition": step.partition,
        "offset": step.offset,
        "counts": step.counts,
        "owner": step.owner,
        "tenure": commit.tenure,
        "sequence": commit.sequence,
        "control_offset": commit.control_offset,
        "at": commit.at.as_millis(),
        "after_ms": received.map(|received| commit.at.as_millis() - received.as_millis()),
        "input": record["commit"]["input"],
        "source_offset": commit.source_offset,
        "facts": record["commit"]["facts"],
    }))
}

fn described_attempt(attempt: &Attempt) -> Value {
    let pico = |amount: Option<PicoUsd>| amount.and_then(PicoUsd::to_long);
    let posted = match attempt.posted {
        Posted::Amount(amount) => Some(amount),
        Posted::NotYet | Posted::Unknown => None,
    };
    json!({
        "attempt": attempt.attempt,
        "model": attempt.model.as_str(),
        "deployment": attempt.deployment.as_str(),
        "provider": attempt.provider,
        "started_at": attempt.started_at.map(Timestamp::as_millis),
        "ended_at": attempt.ended_at.map(Timestamp::as_millis),
        "price_version": attempt.price_version,
        "outcome": attempt.outcome.map(|outcome| outcome.as_str()),
        "usage": attempt.usage,
        "usage_source": attempt.usage_source,
        "reserved_pico_usd": pico(attempt.reserved),
        "posted_pico_usd": pico(posted),
        "released_pico_usd": pico(attempt.released()),
        "overdrawn_pico_usd": pico(attempt.overdrawn),
        "orphans_pico_usd": attempt.orphans.iter().map(|orphan| pico(*orphan)).collect::<Vec<_>>(),
    })
}

/// Members that are null say nothing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            members.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        scalar => scalar,
    }
}
