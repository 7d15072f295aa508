//! Has an organization's owner forget answers of the cache, and tells how many it forgot: for commands and for HTTP alike.
//! What is forgotten the owner decides in its turn; here a record is written, and the journal is read.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::audit::reader::{self, Reader};
use crate::audit::statement::Statement;
use crate::domain::OrganizationId;
use crate::records::Topic;
use crate::records::journal::Fact;
use crate::records::requests::{PurgeCache, Request, RequestRecord};
use crate::runtime::kafka;
use crate::runtime::publisher::{Deliveries, Outgoing, Publisher};

/// How long whoever has the partition may take, and how long it is until the journal is looked at again.
pub const DECISION_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long Kafka may take to acknowledge the record.
const DELIVERY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("control has no organization {0}")]
    UnknownOrganization(OrganizationId),
    #[error(transparent)]
    Journal(#[from] reader::Error),
    #[error("kafka did not take the record: {0}")]
    NotTaken(String),
    #[error("requests/{partition} offset {offset} was not taken for a purge; see dead-letters")]
    NotDecided { partition: i32, offset: i64 },
    #[error("reading broke off")]
    BrokeOff,
}

/// Where it was asked, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// Of its record on `requests`.
    pub partition: i32,
    pub offset: i64,
    /// How many were forgotten. `None`: nobody has decided it yet; it holds as soon as somebody does.
    pub answers: Option<u64>,
}

/// Asks for it, and waits for the decision; `known` is what the journal says of the organization now.
///
/// # Errors
/// Before the record is written, and then nothing is forgotten; or when its decision cannot be read.
pub async fn purge(
    reader: Arc<Reader>,
    publisher: &Publisher,
    known: Statement,
    mut purge: PurgeCache,
) -> Result<Purged, Error> {
    let organization = purge.organization.clone();
    let has_answers = known.state.cache.of(&organization).is_some();
    if known.tables.organization(&organization).is_none() && !has_answers {
        return Err(Error::UnknownOrganization(organization));
    }
    // Answers have the name of the model itself.
    let named = purge.model.as_ref().and_then(|name| known.tables.model(name)).map(|(name, _)| name.clone());
    purge.model = named.or(purge.model);
    let (partition, mut behind) = (known.partition, known.behind());
    drop(known);
    let offset = publish(&reader, publisher, partition, purge).await?;
    let until = Instant::now() + DECISION_MAX;
    loop {
        let (reader, of) = (Arc::clone(&reader), organization.clone());
        let look = move || reader.decision_on(&of, behind, offset);
        let (next, facts) = tokio::task::spawn_blocking(look).await.map_err(|_| Error::BrokeOff)??;
        behind = next;
        match facts.as_deref() {
            Some([Fact::CachePurged(purged)]) => {
                return Ok(Purged { partition, offset, answers: Some(purged.entries) });
            }
            Some(_) => return Err(Error::NotDecided { partition, offset }),
            None if Instant::now() >= until => return Ok(Purged { partition, offset, answers: None }),
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Puts the record where the organization's requests are.
async fn publish(reader: &Reader, publisher: &Publisher, partition: i32, purge: PurgeCache) -> Result<i64, Error> {
    let not_taken = |error: &dyn std::fmt::Display| Error::NotTaken(error.to_string());
    let (topic, organization) = (kafka::topic_name(&reader.kafka, Topic::Requests), purge.organization.clone());
    let mut payload = Vec::new();
    let record = RequestRecord::from(Request::PurgeCache(purge));
    reader.codec.encode(&record, &mut payload).map_err(|error| not_taken(&error))?;
    let (deliveries, mut arrived) = (Deliveries::new(), Vec::new());
    let outgoing = Outgoing { topic: &topic, partition, key: organization.as_str().as_bytes(), payload: &payload };
    publisher.send(outgoing, &deliveries, 0).map_err(|error| not_taken(&error))?;
    let acknowledged = tokio::time::timeout(DELIVERY_MAX, deliveries.drain(&mut arrived)).await;
    acknowledged.map_err(|_| not_taken(&"it did not acknowledge it in time"))?;
    match arrived.pop().map(|delivery| delivery.outcome) {
        Some(Ok(offset)) => Ok(offset),
        Some(Err(error)) => Err(not_taken(&error)),
        None => Err(not_taken(&"it said nothing of it")),
    }
}
