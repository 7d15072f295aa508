//! Balances over HTTP: the fold of a partition's journal, one at a time, since each is as large as an owner's state.

use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::error::Refusal;
use crate::audit::reader::Reader;
use crate::audit::statement::Statement;
use crate::codec::Codec;
use crate::config;
use crate::control::Tables;
use crate::domain::{OrganizationId, Timestamp};
use crate::runtime::clock;

/// Folds at a time.
const STATEMENTS_MAX: usize = 1;
/// How long a balance may take, the wait for those before it included.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads balances.
pub struct Statements {
    kafka: config::Kafka,
    codec: Arc<Codec>,
    turns: Arc<Semaphore>,
}

impl Statements {
    pub fn new(kafka: config::Kafka, codec: Arc<Codec>) -> Self {
        Self { kafka, codec, turns: Arc::new(Semaphore::new(STATEMENTS_MAX)) }
    }

    /// What the journal says of the organization at a moment, or now under `tables`.
    pub async fn of(
        &self,
        organization: &OrganizationId,
        at: Option<Timestamp>,
        tables: Arc<Tables>,
    ) -> Result<Statement, Refusal> {
        let (codec, handle) = (self.codec.clone(), Handle::current());
        let reader = Reader { kafka: self.kafka.clone(), codec, handle, progress: ProgressBar::hidden() };
        let organization = organization.clone();
        let read = async {
            let turn = self.turns.clone().acquire_owned().await.map_err(|_| Refusal::Stopping)?;
            let read = move || {
                // It is held until the fold has ended, whoever has given up waiting for it.
                let _turn = turn;
                reader.statement(&organization, at, clock::now(), Some(tables))
            };
            tokio::task::spawn_blocking(read).await.map_err(|_| Refusal::Internal)?.map_err(|error| unreadable(&error))
        };
        match tokio::time::timeout(STATEMENT_TIMEOUT, read).await {
            Ok(read) => read,
            Err(_) => Err(unreadable(&format!("it took more than {} s", STATEMENT_TIMEOUT.as_secs()))),
        }
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Refusal {
    tracing::warn!(%error, "a balance could not be read");
    Refusal::JournalUnreadable { detail: error.to_string() }
}
