//! `tollstream keys create`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;

use super::connection::Connection;
use super::output;
use crate::codec::{Codec, Registry};
use crate::domain::OrganizationId;
use crate::runtime::control_log::ControlLog;
use crate::runtime::publisher::Publisher;
use crate::topology::keys;

/// API keys
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Make a key of an organization; its secret is printed this once
    Create(Create),
}

#[derive(Debug, Clone, Args)]
pub struct Create {
    #[command(flatten)]
    pub connection: Connection,
    /// Who pays
    #[arg(long, value_name = "ID")]
    pub organization: String,
    /// The key's public name; made up when left out
    #[arg(long, value_name = "ID")]
    pub name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Create(arguments) = command;
    let config = arguments.connection.load()?;
    let organization = OrganizationId::parse(&arguments.organization).context("--organization")?;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    let codec = Arc::new(Codec::connect(registry).await?);
    let publisher = Publisher::new(&config.kafka)?;
    let mut log = ControlLog::open(&config.kafka, codec).await?;
    let key = keys::create(&mut log, &publisher, &organization, arguments.name.as_deref()).await?;
    let secret = key.secret.expose();
    if arguments.json {
        let (id, organization) = (key.id.as_str(), key.organization.as_str());
        output::line(&json!({ "key": id, "organization": organization, "secret": secret }).to_string());
    } else {
        output::line(secret);
        output::note(&format!("key {} of {}; the secret above is not shown again", key.id, key.organization));
    }
    Ok(ExitCode::SUCCESS)
}
