//! `tollstream cache`: which answers are kept for an organization, and how they are forgotten.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::audit::{COULD_NOT_LOOK, reader};
use super::connection::Connection;
use super::output;
use crate::audit::reader::Reader;
use crate::audit::statement::Statement;
use crate::causes::causes;
use crate::codec::{Codec, Registry};
use crate::config::Config;
use crate::domain::{ModelName, Moment, OrganizationId, Timestamp};
use crate::purge::{self, DECISION_MAX, Purged};
use crate::records::requests::PurgeCache;
use crate::runtime::clock;
use crate::runtime::publisher::Publisher;

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
    #[arg(long, visible_alias = "older-than", value_name = "TIME")]
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
    let is_known = statement.tables.organization(&arguments.organization).is_some();
    if !is_known && statement.state.cache.of(&arguments.organization).is_none() {
        bail!("control has no organization {}", arguments.organization);
    }
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
    let (config, organization) = (arguments.connection.load()?, &arguments.organization);
    let before = arguments.before.map(|before| before.before(clock::now()));
    let known = statement(config.clone(), organization).await?;
    let codec = Arc::new(Codec::connect(Registry::new(&config.registry, &config.kafka.topic_prefix)?).await?);
    let reader = Arc::new(Reader { codec, ..reader(config.clone())? });
    reader.progress.finish_and_clear();
    let publisher = Publisher::new(&config.kafka)?;
    let wanted = PurgeCache { organization: organization.clone(), model: arguments.model.clone(), before };
    let Purged { partition, offset, answers } = purge::purge(reader, &publisher, known, wanted).await?;
    let place = format!("requests/{partition} offset {offset}");
    match (arguments.json, answers) {
        (true, _) => output::line(
            &json!({ "organization": organization.as_str(), "purged": answers.is_some(), "answers": answers, "record": place })
                .to_string(),
        ),
        (false, Some(answers)) => output::line(&format!("{answers} answers of {organization} are forgotten ({place})")),
        (false, None) => output::note(&format!(
            "{place} asks for it, and nobody has decided it within {} s: it holds as soon as a gateway does",
            DECISION_MAX.as_secs()
        )),
    }
    Ok(if answers.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
