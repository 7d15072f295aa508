//! Control from the command line: the log, the producer, and what an outcome looks like.

use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;

use super::super::connection::Connection;
use super::super::output;
use super::view;
use crate::codec::{Codec, Registry};
use crate::control::edit::{Edit, Refusal};
use crate::control::history::Entry;
use crate::records::control::EntityKind;
use crate::runtime::control_log::{self, ControlLog};
use crate::runtime::control_writer::{self, Error, Written};
use crate::runtime::publisher::Publisher;

/// Somebody else changed it, or it exists already.
pub const CONFLICT: u8 = 3;
const NOT_FOUND: u8 = 4;
/// What was asked for does not hold, or what is to be deleted is in use.
pub const INVALID: u8 = 5;

/// What a command writes with.
pub struct Session {
    pub log: ControlLog,
    pub publisher: Publisher,
}

impl Session {
    pub async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let config = connection.load()?;
        let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
        let codec = Arc::new(Codec::connect(registry).await?);
        let publisher = Publisher::new(&config.kafka)?;
        Ok(Self { log: ControlLog::open(&config.kafka, codec).await?, publisher })
    }

    pub async fn write(&mut self, edit: Edit, actor: &str) -> Result<Written, Error> {
        control_writer::write(&mut self.log, &self.publisher, edit, actor).await
    }
}

/// The log, to be read only.
pub async fn reader(connection: &Connection) -> anyhow::Result<ControlLog> {
    let config = connection.load()?;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    Ok(ControlLog::open(&config.kafka, Arc::new(Codec::reader(registry))).await?)
}

pub async fn history(connection: &Connection, kind: EntityKind, id: &str) -> anyhow::Result<Vec<Entry>> {
    let config = connection.load()?;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    Ok(control_log::history(&config.kafka, Arc::new(Codec::reader(registry)), kind, id).await?)
}

/// Says what became of a wish.
pub fn written(done: Result<Written, Error>, json: bool, verb: &str) -> ExitCode {
    let written = match done {
        Ok(written) => written,
        Err(error) => return failed(&error),
    };
    let (kind, id, version) = (written.kind.name(), written.id.as_str(), written.version);
    match (&written.entity, json) {
        (Some(entity), true) => output::line(&view::json(id, entity, version).to_string()),
        (None, true) => {
            output::line(&json!({ "object": kind, "id": id, "deleted": true, "version": version }).to_string());
        }
        (_, false) => output::line(&format!("{kind} {id} {verb}; version {version}")),
    }
    for violation in &written.broken {
        output::note(&format!("warning: somebody changed something else at the same time: {violation}"));
    }
    ExitCode::SUCCESS
}

/// Says why nothing was changed.
pub fn failed(error: &Error) -> ExitCode {
    match error {
        Error::Refused(Refusal::Invalid { kind, id, problems }) => {
            output::note(&format!("error: {} {id} is not right, and nothing was changed:", kind.name()));
            problems.iter().for_each(|problem| output::note(&format!("  {problem}")));
        }
        error => output::note(&format!("error: {}", crate::causes::causes(error))),
    }
    let code = match error {
        Error::Refused(Refusal::Conflict { .. } | Refusal::Exists { .. }) => CONFLICT,
        Error::Refused(Refusal::NotFound { .. }) => NOT_FOUND,
        Error::Refused(Refusal::Invalid { .. } | Refusal::InUse { .. }) => INVALID,
        Error::Control(_) | Error::TimedOut => return ExitCode::FAILURE,
    };
    ExitCode::from(code)
}

pub fn not_found(kind: EntityKind, id: &str) -> ExitCode {
    failed(&Error::Refused(Refusal::NotFound { kind, id: id.to_owned() }))
}
