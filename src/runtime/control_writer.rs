//! Changing control: an operator's wish is decided on the log as it is now, written, and looked at again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::clock;
use super::control_log::{self, ControlLog};
use super::publisher::Publisher;
use crate::codec::Codec;
use crate::config;
use crate::control::Change;
use crate::control::check::{self, Violation};
use crate::control::edit::{self, Edit, Refusal, Wanted};
use crate::control::history::Entry;
use crate::records::control::{Entity, EntityKind};

/// Histories that are read at the same time; each reads the whole log.
const HISTORIES_MAX: usize = 2;
/// How long a change may take in all, other changes before it included.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Control(#[from] control_log::Error),
    #[error("kafka did not take the change within {} s; a change may have taken effect all the same: look before you repeat it", WRITE_TIMEOUT.as_secs())]
    TimedOut,
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub kind: EntityKind,
    pub id: String,
    /// `None`: it is deleted.
    pub entity: Option<Entity>,
    /// Of the entity; of a deletion, the deletion's offset.
    pub version: i64,
    /// What does not hold now, because somebody else changed something at the same time.
    pub broken: Vec<Violation>,
}

/// Decides on the log as it is now, and writes.
///
/// # Errors
/// [`Error::Refused`], and then nothing was changed.
pub async fn write(log: &mut ControlLog, publisher: &Publisher, edit: Edit, actor: &str) -> Result<Written, Error> {
    log.refresh().await?;
    let (kind, id) = match &edit {
        Edit::Create { kind, document, .. } => {
            (*kind, crate::control::document::id_of(*kind, document).unwrap_or_default().to_owned())
        }
        Edit::Update { kind, id, .. } | Edit::Delete { kind, id, .. } => (*kind, id.clone()),
        Edit::Revoke { id, .. } => (EntityKind::Key, id.clone()),
    };
    let Some(wanted) = edit::decide(log.tables(), edit, clock::now())? else {
        let (entity, version) = (log.tables().entity(kind, &id), log.tables().version_of(kind, &id));
        return Ok(Written { kind, id, entity, version, broken: Vec::new() });
    };
    let outcome = log.write(publisher, vec![wanted.clone()], actor).await?;
    if let Some(Change::Conflict { version }) = outcome.first() {
        return Err(overtaken(&wanted, *version).into());
    }
    let version = match wanted.entity {
        Some(_) => log.tables().version_of(kind, &id),
        None => log.tables().offset(),
    };
    let broken = check::broken(log.tables(), std::slice::from_ref(&wanted));
    for violation in &broken {
        tracing::warn!(%violation, "control: changes at the same time do not fit together");
    }
    tracing::info!(entity.kind = kind.name(), entity.id = %id, version, actor, "control changed");
    Ok(Written { kind, id, entity: wanted.entity, version, broken })
}

fn overtaken(wanted: &Wanted, version: i64) -> Refusal {
    let (kind, id) = (wanted.kind, wanted.id.clone());
    match wanted.expected_version {
        -1 => Refusal::Exists { kind, id },
        expected => Refusal::Conflict { kind, id, expected, version },
    }
}

/// The writer of a process that serves operators. It reads the log when it is first needed.
pub struct ControlWriter {
    kafka: config::Kafka,
    codec: Arc<Codec>,
    publisher: Publisher,
    /// One change at a time: each is decided on what the one before left.
    log: Mutex<Option<ControlLog>>,
    histories: Semaphore,
}

impl ControlWriter {
    pub fn new(kafka: config::Kafka, codec: Arc<Codec>, publisher: Publisher) -> Self {
        Self { kafka, codec, publisher, log: Mutex::new(None), histories: Semaphore::new(HISTORIES_MAX) }
    }

    /// See [`write()`].
    ///
    /// # Errors
    /// Also when Kafka does not answer in time.
    pub async fn write(&self, edit: Edit, actor: &str) -> Result<Written, Error> {
        let until = Instant::now() + WRITE_TIMEOUT;
        let timed_out = |_| Error::TimedOut;
        let mut kept = tokio::time::timeout_at(until, self.log.lock()).await.map_err(timed_out)?;
        // A log that was left in the middle of a read is not used again.
        let log = kept.take();
        let written = async {
            let mut log = match log {
                Some(log) => log,
                None => ControlLog::open(&self.kafka, self.codec.clone()).await?,
            };
            let written = write(&mut log, &self.publisher, edit, actor).await;
            Ok::<_, Error>((log, written))
        };
        let (log, written) = tokio::time::timeout_at(until, written).await.map_err(timed_out)??;
        if !matches!(written, Err(Error::Control(_))) {
            *kept = Some(log);
        }
        written
    }

    /// Reads the whole log for what became of one entity.
    ///
    /// # Errors
    /// When Kafka does not answer in time.
    pub async fn history(&self, kind: EntityKind, id: &str) -> Result<Vec<Entry>, Error> {
        let read = async {
            let _place = self.histories.acquire().await;
            control_log::history(&self.kafka, self.codec.clone(), kind, id).await
        };
        Ok(tokio::time::timeout(WRITE_TIMEOUT, read).await.map_err(|_| Error::TimedOut)??)
    }
}
