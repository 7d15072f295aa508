//! `tollstream archive`: the logs as files that outlive the topics.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::runtime::Handle;

use super::audit::{COULD_NOT_LOOK, reader};
use super::connection::Connection;
use super::output;
use crate::archive::write::{self, Archiver};
use crate::archive::{Content, Place};
use crate::causes::causes;
use crate::records::Topic;

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Add what came since the last time
    Write(Write),
    /// Hold every file against the manifest: exit code 0 if all are whole, 1 if one is damaged, 2 if it could not look
    Check(Check),
}

#[derive(Debug, Clone, Args)]
pub struct Write {
    /// A directory, or s3://BUCKET/PREFIX with the usual AWS_ variables; default: archive.url of the configuration
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// What of the content is kept: as it was, with every letter and digit of what people said replaced, or none
    #[arg(long, value_enum, default_value_t = Content::Keep)]
    pub content: Content,
    #[command(flatten)]
    pub connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Check {
    /// A directory, or s3://BUCKET/PREFIX with the usual AWS_ variables
    #[arg(value_name = "URL")]
    pub url: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let (json, ran) = match command {
        Command::Write(arguments) => (arguments.json, add(arguments).await),
        Command::Check(arguments) => (arguments.json, check(arguments).await),
    };
    ran.or_else(|error| {
        match json {
            true => output::line(&json!({ "error": causes(error.as_ref()) }).to_string()),
            false => output::note(&format!("error: {}", causes(error.as_ref()))),
        }
        Ok(ExitCode::from(COULD_NOT_LOOK))
    })
}

async fn add(arguments: Write) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let config = arguments.connection.load()?;
    let url = arguments.to.or_else(|| config.archive.url.clone());
    let url =
        url.context("there is no place to write to; give one with --to, or set archive.url in the configuration")?;
    let (reader, handle, content) = (reader(config)?, Handle::current(), arguments.content);
    let write = move || {
        let place = Place::open(&url, true, handle)?;
        let added = Archiver { reader: &reader, place: &place, content }.run();
        reader.progress.finish_and_clear();
        anyhow::Ok((added?, url))
    };
    let (added, url) = tokio::task::spawn_blocking(write).await.context("archiving broke off")??;
    if arguments.json {
        output::line(&json!({ "archive": url, "added": added }).to_string());
    } else if added.is_empty() {
        output::line(&format!("{url} has everything already"));
    } else {
        let row = |(topic, added): (&&str, &write::Added)| {
            vec![
                (*topic).to_owned(),
                added.files.to_string(),
                added.records.to_string(),
                format!("{:.1} MB", added.bytes as f64 / 1e6),
            ]
        };
        output::table(&["topic", "files", "records", "size"], &added.iter().map(row).collect::<Vec<_>>());
        output::line(&format!("\nadded to {url} {} in {:.1} s", content.name(), begun.elapsed().as_secs_f64()));
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(arguments: Check) -> anyhow::Result<ExitCode> {
    let (handle, url) = (Handle::current(), arguments.url.clone());
    let look = move || anyhow::Ok(write::check(&Place::open(&url, false, handle)?)?);
    let (manifest, problems) = tokio::task::spawn_blocking(look).await.context("looking broke off")??;
    match arguments.json {
        true => output::line(&json!({ "files": manifest.files.len(), "problems": problems }).to_string()),
        false => {
            let mut rows = Vec::new();
            for topic in [Topic::Journal, Topic::Control, Topic::Requests] {
                for partition in manifest.partitions(topic) {
                    let range = manifest.range(topic, partition);
                    let records: u64 = manifest.of(topic, partition).map(|file| file.records).sum();
                    let last = manifest.of(topic, partition).filter_map(|file| file.last_at).max();
                    rows.push(vec![
                        format!("{}/{partition}", topic.name()),
                        format!("{} to {}", range.start, range.end),
                        records.to_string(),
                        last.map_or_else(String::new, |at| at.to_string()),
                    ]);
                }
            }
            output::table(&["partition", "offsets", "records", "last"], &rows);
            problems.iter().for_each(|problem| output::line(&format!("DAMAGED {problem}")));
            output::line(&format!("\n{} files, {} problems", manifest.files.len(), problems.len()));
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
