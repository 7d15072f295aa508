//! `tollstream cache`: which answers are kept for an organization, and how they are forgotten.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use super::audit::{COULD_NOT_LOOK, Moment, reader};
use super::connection::Connection;
use super::output;
use crate::audit::statement::Statement;
use crate::causes::causes;
use crate::codec::{Codec, Registry};
use crate::config::Config;
use crate::domain::{ModelName, OrganizationId, Timestamp};
use crate::records::Topic;
use crate::records::requests::{PurgeCache, Request, RequestRecord};
use crate::runtime::{clock, kafka};

/// How long a purge waits for whoever has the partition, and between two looks.
const DECISION_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(300);
const DELIVERY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Args)]
pub struct Cache {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show which answers are kept for an organization, by model
    Stats(Stats),
    /// Forget answers of an organization: all, or those of a model, or those that are older than a time
    Purge(Purge),
}

#[derive(Debug, Clone, Args)]
pub struct Stats {
    #[command(flatten)]
    pub connection: Connection,
    /// Whose answers
    #[arg(value_name = "ORGANIZATION")]
    pub organization: OrganizationId,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Purge {
    #[command(flatten)]
    pub connection: Connection,
    /// Whose answers
    #[arg(value_name = "ORGANIZATION")]
    pub organization: OrganizationId,
    /// Only those of this model
    #[arg(long, value_name = "MODEL")]
    pub model: Option<ModelName>,
    /// Only those kept before then: 2026-11-23T10:00:00Z, or 30s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME")]
    pub before: Option<Moment>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub async fn run(arguments: Cache) -> anyhow::Result<ExitCode> {
    let (done, is_json) = match &arguments.command {
        Command::Stats(stats) => (self::stats(stats).await, stats.json),
        Command::Purge(purge) => (self::purge(purge).await, purge.json),
    };
    match done {
        Ok(code) => Ok(code),
        Err(error) => {
            match is_json {
                true => output::line(&json!({ "error": causes(error.as_ref()) }).to_string()),
                false => output::note(&format!("could not be done: {}", causes(error.as_ref()))),
            }
            Ok(ExitCode::from(COULD_NOT_LOOK))
        }
    }
}

async fn statement(config: Config, organization: &OrganizationId) -> anyhow::Result<Statement> {
    let (reader, organization) = (reader(config)?, organization.clone());
    let read = move || {
        let statement = reader.statement(&organization, None, clock::now(), None);
        reader.progress.finish_and_clear();
        statement
    };
    Ok(tokio::task::spawn_blocking(read).await.context("reading broke off")??)
}

async fn stats(arguments: &Stats) -> anyhow::Result<ExitCode> {
    let statement = statement(arguments.connection.load()?, &arguments.organization).await?;
    let described = describe(&statement, &arguments.organization);
    if arguments.json {
        output::line(&described.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows: Vec<Vec<String>> = described["models"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|of| {
            ["model", "answers", "bytes", "hits", "oldest", "next_to_expire"]
                .iter()
                .map(|name| text(&of[name]))
                .collect()
        })
        .collect();
    output::table(&["model", "answers", "bytes", "hits", "oldest", "next to expire"], &rows);
    let of = &described["limits"];
    output::line(&match of.is_null() {
        true => "\nits plan keeps no answers".to_owned(),
        false => format!(
            "\n{} of {} answers, {} of {} bytes; as of {}, journal/{} before offset {}",
            described["answers"],
            of["entries_max"],
            described["bytes"],
            of["bytes_max"],
            text(&described["at"]),
            statement.partition,
            statement.journal_offset,
        ),
    });
    Ok(ExitCode::SUCCESS)
}

fn describe(statement: &Statement, organization: &OrganizationId) -> Value {
    /// Of one model.
    struct Of {
        answers: u64,
        bytes: u64,
        hits: u64,
        oldest: Timestamp,
        expires: Timestamp,
    }
    let mut models: std::collections::BTreeMap<&ModelName, Of> = std::collections::BTreeMap::new();
    let entries = statement.state.cache.of(organization);
    for entry in entries.into_iter().flat_map(|entries| entries.iter()) {
        let new = || Of { answers: 0, bytes: 0, hits: 0, oldest: entry.kept_at, expires: entry.expires_at };
        let of = models.entry(&entry.model).or_insert_with(new);
        of.answers += 1;
        of.bytes += entry.bytes;
        of.hits += entry.hits;
        of.oldest = of.oldest.min(entry.kept_at);
        of.expires = of.expires.min(entry.expires_at);
    }
    let models: Vec<Value> = models
        .into_iter()
        .map(|(model, Of { answers, bytes, hits, oldest, expires })| {
            json!({
                "model": model.as_str(), "answers": answers, "bytes": bytes, "hits": hits,
                "oldest": oldest.to_string(), "next_to_expire": expires.to_string(),
            })
        })
        .collect();
    let caching = statement.tables.terms(organization, None).and_then(|terms| terms.plan.cache);
    let limits = caching
        .map(|of| json!({ "ttl_seconds": of.ttl_seconds, "entries_max": of.entries_max, "bytes_max": of.bytes_max }));
    json!({
        "organization": organization.as_str(),
        "at": statement.at.to_string(),
        "as_of": { "journal_partition": statement.partition, "journal_offset": statement.journal_offset },
        "answers": entries.map_or(0, |entries| entries.len()),
        "bytes": entries.map_or(0, |entries| entries.bytes()),
        "limits": limits,
        "models": models,
    })
}

async fn purge(arguments: &Purge) -> anyhow::Result<ExitCode> {
    let config = arguments.connection.load()?;
    let now = clock::now();
    let before = arguments.before.map(|before| before.before(now));
    let known = statement(config.clone(), &arguments.organization).await?;
    if known.tables.organization(&arguments.organization).is_none() {
        bail!("control has no organization {}", arguments.organization);
    }
    let meant = known.state.cache.to_purge(&arguments.organization, arguments.model.as_ref(), before).len();
    let purge = PurgeCache { organization: arguments.organization.clone(), model: arguments.model.clone(), before };
    let offset = publish(&config, known.partition, purge).await?;
    let since = tokio::time::Instant::now();
    let is_decided = loop {
        let decided = statement(config.clone(), &arguments.organization).await?.state.last_source_offset;
        if decided.is_some_and(|decided| decided >= offset) {
            break true;
        }
        if since.elapsed() > DECISION_MAX {
            break false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let place = format!("requests/{} offset {offset}", known.partition);
    match (arguments.json, is_decided) {
        (true, _) => output::line(
            &json!({ "organization": arguments.organization.as_str(), "purged": is_decided, "answers": meant, "record": place })
                .to_string(),
        ),
        (false, true) => output::line(&format!("about {meant} answers of {} are forgotten ({place})", arguments.organization)),
        (false, false) => output::note(&format!(
            "{place} asks for it, and nobody has decided it within {} s: it holds as soon as a gateway does",
            DECISION_MAX.as_secs()
        )),
    }
    Ok(if is_decided { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts the record where the organization's requests are.
async fn publish(config: &Config, partition: i32, purge: PurgeCache) -> anyhow::Result<i64> {
    let codec = Codec::connect(Registry::new(&config.registry, &config.kafka.topic_prefix)?).await?;
    let (topic, organization) = (kafka::topic_name(&config.kafka, Topic::Requests), purge.organization.clone());
    let mut payload = Vec::new();
    codec.encode(&RequestRecord::from(Request::PurgeCache(purge)), &mut payload)?;
    let producer: FutureProducer = kafka::producer(&config.kafka).create()?;
    let record = FutureRecord::to(&topic).partition(partition).key(organization.as_str()).payload(&payload);
    let sent = producer.send(record, DELIVERY_MAX).await;
    Ok(sent.map_err(|(error, _)| error).context("kafka did not take the record")?.offset)
}
