//! `tollstream plans | organizations | keys | models | policies`: the verbs of control, and `tollstream apply`. What is
//! inside of models has verbs of its own: `tollstream deployments | prices`.

pub mod apply;
pub mod deployments;
pub mod fields;
pub mod keys;
pub mod prices;
mod session;
mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connection::Connection;
use super::output;
use crate::control::document::{self, Object};
use crate::control::edit::Edit;
use crate::records::control::{Entity, EntityKind};

pub use fields::{ModelFields, OrganizationFields, PlanFields, PolicyFields};
use session::{Session, written};

/// The fields of a kind that have flags of their own.
pub trait Fields: Args {
    const KIND: EntityKind;

    /// What was given, as members of the document.
    fn document(&self) -> anyhow::Result<Object>;
}

#[derive(Debug, Clone, Subcommand)]
pub enum Command<F: Args> {
    /// Make a new one
    Create(Create<F>),
    /// Show one
    Show(Show),
    /// List all
    List(List),
    /// Change some fields of one
    Update(Update<F>),
    /// Delete one that nothing uses any more
    Delete(Target),
    /// Who changed what, and when
    History(History),
}

#[derive(Debug, Clone, Args)]
pub struct Create<F: Args> {
    #[command(flatten)]
    pub connection: Connection,
    /// What it is called
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// Its document, TOML or JSON; - reads standard input. Flags win over it
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub fields: F,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Show {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print one JSON object
    #[arg(long, conflicts_with = "toml")]
    pub json: bool,
    /// Print it as `tollstream apply` reads it
    #[arg(long)]
    pub toml: bool,
}

#[derive(Debug, Clone, Args)]
pub struct List {
    #[command(flatten)]
    pub connection: Connection,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Update<F: Args> {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(value_name = "ID")]
    pub id: String,
    /// The fields to change, TOML or JSON; - reads standard input. Flags win over it
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub fields: F,
    /// Take a field away, for example limits.requests_per_minute
    #[arg(long, value_name = "FIELD")]
    pub unset: Vec<String>,
    #[command(flatten)]
    pub seen: Seen,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// One of them, to be ended.
#[derive(Debug, Clone, Args)]
pub struct Target {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub seen: Seen,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Seen {
    /// Only if it is still at this version, as `show` told it
    #[arg(long, value_name = "N")]
    pub version: Option<i64>,
}

#[derive(Debug, Clone, Args)]
pub struct History {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Runs a command of one kind.
pub async fn run<F: Fields>(command: Command<F>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(arguments) => create(arguments).await,
        Command::Show(arguments) => show(F::KIND, arguments).await,
        Command::List(arguments) => list(F::KIND, arguments).await,
        Command::Update(arguments) => update(arguments).await,
        Command::Delete(arguments) => delete(F::KIND, arguments).await,
        Command::History(arguments) => history(F::KIND, arguments).await,
    }
}

async fn create<F: Fields>(arguments: Create<F>) -> anyhow::Result<ExitCode> {
    let kind = F::KIND;
    let mut document = read(kind, arguments.file.as_deref())?;
    document::merge(&mut document, arguments.fields.document()?);
    if let Some(id) = arguments.id {
        document.insert(kind.id_field().to_owned(), Value::from(id));
    }
    let mut session = Session::open(&arguments.connection).await?;
    let done = session.write(Edit::Create { kind, document, key: None }, &actor(kind.plural(), "create")).await;
    Ok(written(done, arguments.json, "created"))
}

async fn show(kind: EntityKind, arguments: Show) -> anyhow::Result<ExitCode> {
    let log = session::reader(&arguments.connection).await?;
    let Some(entity) = log.tables().entity(kind, &arguments.id) else {
        return Ok(session::not_found(kind, &arguments.id));
    };
    let version = log.tables().version_of(kind, &arguments.id);
    if arguments.toml {
        output::line(view::toml(&arguments.id, &entity)?.trim_end());
    } else if arguments.json {
        output::line(&view::json(&arguments.id, &entity, version).to_string());
    } else {
        view::one(&arguments.id, &entity, version);
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(kind: EntityKind, arguments: List) -> anyhow::Result<ExitCode> {
    let log = session::reader(&arguments.connection).await?;
    let all = log.tables().ids(kind).filter_map(|(id, version)| Some((id, log.tables().entity(kind, id)?, version)));
    let all: Vec<(&str, Entity, i64)> = all.collect();
    if arguments.json {
        all.iter().for_each(|(id, entity, version)| output::line(&view::json(id, entity, *version).to_string()));
    } else {
        view::many(kind, &all);
    }
    Ok(ExitCode::SUCCESS)
}

async fn update<F: Fields>(arguments: Update<F>) -> anyhow::Result<ExitCode> {
    let kind = F::KIND;
    let mut patch = read(kind, arguments.file.as_deref())?;
    // Not merged: what is null is taken away from the entity.
    overlay(&mut patch, arguments.fields.document()?);
    for field in &arguments.unset {
        overlay(&mut patch, unset(field));
    }
    anyhow::ensure!(!patch.is_empty(), "there is nothing to change; give fields, --unset FIELD or -f FILE");
    let mut session = Session::open(&arguments.connection).await?;
    let edit = Edit::Update { kind, id: arguments.id, patch, version: arguments.seen.version };
    let done = session.write(edit, &actor(kind.plural(), "update")).await;
    Ok(written(done, arguments.json, "updated"))
}

async fn delete(kind: EntityKind, arguments: Target) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(&arguments.connection).await?;
    let edit = Edit::Delete { kind, id: arguments.id, version: arguments.seen.version };
    let done = session.write(edit, &actor(kind.plural(), "delete")).await;
    Ok(written(done, arguments.json, "deleted"))
}

async fn history(kind: EntityKind, arguments: History) -> anyhow::Result<ExitCode> {
    let entries = session::history(&arguments.connection, kind, &arguments.id).await?;
    if entries.is_empty() {
        return Ok(session::not_found(kind, &arguments.id));
    }
    if arguments.json {
        for entry in &entries {
            output::line(&serde_json::to_string(entry)?);
        }
    } else {
        view::history(&entries);
    }
    Ok(ExitCode::SUCCESS)
}

/// Who changes control, as its records say.
fn actor(what: &str, verb: &str) -> String {
    format!("tollstream {what} {verb} (uid {})", rustix::process::getuid().as_raw())
}

/// Reads a document: of one entity, or a file of `apply` with exactly one.
fn read(kind: EntityKind, path: Option<&Path>) -> anyhow::Result<Object> {
    let Some(path) = path else { return Ok(Object::new()) };
    let text = text(path)?;
    let mut object = if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON object", path.display()))?
    } else {
        document::table(&text).map_err(|problem| anyhow::anyhow!("{}: {problem}", path.display()))?
    };
    match (object.len(), object.get_mut(kind.plural())) {
        (1, Some(Value::Array(items))) if items.len() == 1 => match items.pop() {
            Some(Value::Object(only)) => Ok(only),
            _ => anyhow::bail!("{}: [[{}]] is no table", path.display(), kind.plural()),
        },
        _ => Ok(object),
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("cannot read standard input");
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts members over those of a patch, nulls included.
fn overlay(patch: &mut Object, over: Object) {
    for (name, value) in over {
        match (patch.get_mut(&name), value) {
            (Some(Value::Object(inner)), Value::Object(over)) => overlay(inner, over),
            (_, value) => {
                patch.insert(name, value);
            }
        }
    }
}

/// The patch that takes a field away.
fn unset(field: &str) -> Object {
    let patch = field.rsplit('.').fold(Value::Null, |inner, name| json!({ name: inner }));
    match patch {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}
