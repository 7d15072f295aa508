//! `tollstream keys`: a key's secret is printed once, when it is made.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::connection::Connection;
use super::super::output;
use super::fields::KeyFields;
use super::session::{self, Session, written};
use super::{Fields as _, History, List, Show, Target, Update, actor, read};
use crate::control::document;
use crate::control::edit::Edit;
use crate::records::control::{Entity, EntityKind};
use crate::topology::keys;

/// API keys
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Make a key; its secret is printed this once
    Create(Create),
    /// Show one, without its secret
    Show(Show),
    /// List all
    List(List),
    /// Change some fields of one
    Update(Update<KeyFields>),
    /// End a key for ever; within a second nobody takes it any more
    Revoke(Target),
    /// Delete one, and what it was; revoke it instead to keep that
    Delete(Target),
    /// Who changed what, and when
    History(History),
}

#[derive(Debug, Clone, Args)]
pub struct Create {
    #[command(flatten)]
    pub connection: Connection,
    /// The key's public name; made up when left out
    #[arg(long, value_name = "ID")]
    pub name: Option<String>,
    /// Its document, TOML or JSON; - reads standard input. Flags win over it
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub fields: KeyFields,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(arguments) => create(arguments).await,
        Command::Show(arguments) => super::show(EntityKind::Key, arguments).await,
        Command::List(arguments) => super::list(EntityKind::Key, arguments).await,
        Command::Update(arguments) => super::update(arguments).await,
        Command::Revoke(arguments) => revoke(arguments).await,
        Command::Delete(arguments) => super::delete(EntityKind::Key, arguments).await,
        Command::History(arguments) => super::history(EntityKind::Key, arguments).await,
    }
}

async fn create(arguments: Create) -> anyhow::Result<ExitCode> {
    let kind = EntityKind::Key;
    let mut document = read(kind, arguments.file.as_deref())?;
    document::merge(&mut document, arguments.fields.document()?);
    if let Some(name) = arguments.name {
        document.insert(kind.id_field().to_owned(), Value::from(name));
    }
    let mut session = Session::open(&arguments.connection).await?;
    let made = keys::create(&mut session.log, &session.publisher, document, &actor(kind.plural(), "create")).await;
    let made = match made {
        Ok(made) => made,
        Err(keys::Error::Control(error)) => return Ok(session::failed(&error)),
        Err(error @ keys::Error::Randomness(_)) => return Err(error.into()),
    };
    let (id, secret) = (made.written.id.as_str(), made.secret.expose());
    let organizations: Vec<&str> = match &made.written.entity {
        Some(Entity::Key(key)) => key.organizations.iter().map(|id| id.as_str()).collect(),
        _ => Vec::new(),
    };
    if arguments.json {
        let (only, version) = (organizations.first(), made.written.version);
        let shown = json!({ "key": id, "organization": only, "organizations": organizations, "version": version, "secret": secret });
        output::line(&shown.to_string());
    } else {
        output::line(secret);
        let of = if organizations.is_empty() { "operators".to_owned() } else { organizations.join(", ") };
        output::note(&format!("key {id} of {of}; the secret above is not shown again"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke(arguments: Target) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(&arguments.connection).await?;
    let edit = Edit::Revoke { id: arguments.id, version: arguments.seen.version };
    let done = session.write(edit, &actor(EntityKind::Key.plural(), "revoke")).await;
    Ok(written(done, arguments.json, "revoked"))
}
