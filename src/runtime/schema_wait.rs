//! Records whose schema is not known yet. Their partitions wait, in order, until the registry has told it or has said
//! that there is none; the registry being away is a reason to wait, never to give a record up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::member::{Member, Received};
use crate::codec::{self, Codec};
use crate::domain::Timestamp;

/// Wait before the registry is asked again: first, and at the most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A record that was taken out of librdkafka's buffer.
#[derive(Debug, Clone)]
pub struct Kept {
    partition: i32,
    offset: i64,
    at: Timestamp,
    key: Option<Vec<u8>>,
    payload: Vec<u8>,
}

impl Kept {
    fn of(record: Received<'_>) -> Self {
        Self {
            partition: record.partition,
            offset: record.offset,
            at: record.at,
            key: record.key.map(<[u8]>::to_vec),
            payload: record.payload.to_vec(),
        }
    }

    pub fn received(&self) -> Received<'_> {
        Received {
            partition: self.partition,
            offset: self.offset,
            at: self.at,
            key: self.key.as_deref(),
            payload: &self.payload,
        }
    }
}

struct Learned {
    partition: i32,
    id: u32,
    outcome: Result<(), codec::Error>,
}

/// A partition that need not wait any longer.
pub struct Freed {
    /// Its records, in order; hold the rest back again if one of them needs another schema.
    pub records: VecDeque<Kept>,
    /// Why the first record can never be read, if that is so.
    pub unreadable: Option<codec::Error>,
}

/// The partitions that wait.
pub struct SchemaWait {
    codec: Arc<Codec>,
    waiting: BTreeMap<i32, VecDeque<Kept>>,
    learning: JoinSet<Learned>,
}

impl SchemaWait {
    pub fn new(codec: Arc<Codec>) -> Self {
        Self { codec, waiting: BTreeMap::new(), learning: JoinSet::new() }
    }

    /// Keeps the record if its partition waits.
    pub fn keeps(&mut self, record: Received<'_>) -> bool {
        let Some(waiting) = self.waiting.get_mut(&record.partition) else { return false };
        waiting.push_back(Kept::of(record));
        true
    }

    /// Holds the partition of this record, which needs schema `id`.
    pub fn hold(&mut self, member: &Member, record: Received<'_>, id: u32) {
        let partition = record.partition;
        tracing::info!(
            topic = member.topic(),
            partition,
            offset = record.offset,
            schema = id,
            "a new schema is fetched"
        );
        member.pause(partition);
        self.waiting.insert(partition, VecDeque::from([Kept::of(record)]));
        let codec = self.codec.clone();
        self.learning.spawn(async move { Learned { partition, id, outcome: learn(&codec, id).await } });
    }

    /// Forgets a partition that belongs to somebody else now.
    pub fn forget(&mut self, partition: i32) {
        self.waiting.remove(&partition);
    }

    /// Waits for the next partition that is free again; for ever if none waits.
    pub async fn freed(&mut self, member: &Member) -> Freed {
        loop {
            let Some(Ok(learned)) = self.learning.join_next().await else {
                std::future::pending::<()>().await;
                continue;
            };
            let Some(records) = self.waiting.remove(&learned.partition) else { continue };
            member.resume(learned.partition);
            // The partition may have come back meanwhile with other records, which this answer is not about.
            let first = records.front().and_then(|record| codec::schema_id(&record.payload).ok());
            let unreadable = learned.outcome.err().filter(|_| first == Some(learned.id));
            return Freed { records, unreadable };
        }
    }
}

async fn learn(codec: &Codec, id: u32) -> Result<(), codec::Error> {
    let mut wait = RETRY_MIN;
    loop {
        match codec.learn(id).await {
            Err(error @ codec::Error::Registry { .. }) => {
                tracing::warn!(schema = id, %error, "a schema cannot be fetched yet; its partition waits");
            }
            decided => return decided,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}
