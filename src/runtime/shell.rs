//! What all owned partitions of a process share: the producer, the calls, the load, the counters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::calls::{Calls, Report};
use super::control::Control;
use super::fingerprint::Fingerprints;
use super::owner::{Lost, Record, outgoing, taken};
use super::publisher::{Deliveries, Publisher};
use super::stillness::Stillness;
use crate::codec::{self, Codec};
use crate::domain::{OrganizationId, RequestKey};
use crate::failpoint::{Failpoint, reached};
use crate::processor::{Bounds, Capacity};
use crate::records::Outcome;
use crate::records::dead_letters::DeadLetter;
use crate::telemetry::Metrics;

/// Waits between two questions for a schema: first, and at the most.
const LEARN_RETRY_MIN: Duration = Duration::from_millis(100);
const LEARN_RETRY_MAX: Duration = Duration::from_secs(5);

/// What an acknowledgement is for; the number that comes back is the tenure's epoch and this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Commit,
    Disposal,
    Answer,
}

impl Tag {
    /// The epoch and the kind of a number that came back.
    pub const fn of(number: u64) -> (u64, Self) {
        let kind = match number & 3 {
            0 => Self::Commit,
            1 => Self::Disposal,
            _ => Self::Answer,
        };
        (number >> 2, kind)
    }
}

/// Names of the topics that the processor writes.
pub struct Topics {
    pub requests: String,
    pub journal: String,
    pub responses: String,
    pub dead_letters: String,
}

/// A schema that was asked for: its id, the epoch that asked, and what came of it.
pub type Learned = (u32, u64, Result<(), codec::Error>);

pub struct Shell {
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub control: Control,
    pub calls: Arc<Calls>,
    pub deliveries: Arc<Deliveries>,
    pub reports: mpsc::Sender<Report>,
    pub learned: mpsc::Sender<Learned>,
    pub tasks: JoinSet<()>,
    pub topics: Topics,
    pub bounds: Bounds,
    pub fingerprints: Fingerprints,
    pub dead_letter_bytes_max: usize,
    /// Largest record that the producer takes.
    pub record_bytes_max: usize,
    pub load: Load,
    pub stillness: Stillness,
    pub metrics: ProcessorMetrics,
}

impl Shell {
    /// Appends a commit; `false` when the producer is full.
    pub fn append(
        &self,
        partition: i32,
        organization: Option<&OrganizationId>,
        payload: &[u8],
        epoch: u64,
    ) -> Result<bool, Lost> {
        let key = organization.map(|o| o.as_str().as_bytes()).unwrap_or_default();
        let record = outgoing(&self.topics.journal, partition, key, payload);
        reached(Failpoint::BeforeCommit);
        let sent = taken(self.publisher.send(record, &self.deliveries, Tag::commit(epoch)));
        reached(Failpoint::AfterCommit);
        sent
    }

    /// Publishes a terminal frame; `false` when the producer is full.
    pub fn answer(&self, partition: i32, key: &RequestKey, payload: &[u8], epoch: u64) -> Result<bool, Lost> {
        let record = outgoing(&self.topics.responses, partition, key.request.as_str().as_bytes(), payload);
        reached(Failpoint::BeforeTerminal);
        let sent = taken(self.publisher.send_telling_failures(record, &self.deliveries, Tag::answer(epoch)));
        reached(Failpoint::AfterTerminal);
        sent
    }

    /// Puts a record into `dead-letters`.
    pub fn dead_letter(&self, partition: i32, letter: &DeadLetter, epoch: u64) -> Result<(), Lost> {
        let mut payload = Vec::new();
        self.codec.encode(letter, &mut payload).map_err(|e| Lost::Write(e.to_string()))?;
        let record =
            outgoing(&self.topics.dead_letters, partition, letter.key.as_deref().unwrap_or_default(), &payload);
        reached(Failpoint::BeforeDeadLetter);
        self.dispose(record, epoch)?;
        reached(Failpoint::AfterDeadLetter);
        Ok(())
    }

    /// Produces a record once more, to the partition where it belongs.
    pub fn forward(
        &self,
        partition: i32,
        organization: &OrganizationId,
        record: Record<'_>,
        epoch: u64,
    ) -> Result<(), Lost> {
        let key = record.key.unwrap_or(organization.as_str().as_bytes());
        reached(Failpoint::BeforeForward);
        self.dispose(outgoing(&self.topics.requests, partition, key, record.payload), epoch)?;
        reached(Failpoint::AfterForward);
        Ok(())
    }

    fn dispose(&self, record: super::publisher::Outgoing<'_>, epoch: u64) -> Result<(), Lost> {
        match taken(self.publisher.send(record, &self.deliveries, Tag::disposal(epoch)))? {
            true => Ok(()),
            // Rare twice over; a new tenure tries again.
            false => Err(Lost::Write("the producer is full".to_owned())),
        }
    }

    /// Fetches a schema in the background, for as long as the registry is away.
    pub fn learn(&mut self, id: u32, epoch: u64) {
        let (codec, learned) = (self.codec.clone(), self.learned.clone());
        self.tasks.spawn(async move {
            let mut wait = LEARN_RETRY_MIN;
            let outcome = loop {
                match codec.learn(id).await {
                    Err(error @ codec::Error::Registry { .. }) => {
                        tracing::warn!(schema.id = id, %error, "fetching a schema");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LEARN_RETRY_MAX);
                    }
                    outcome => break outcome,
                }
            };
            let _ = learned.send((id, epoch, outcome)).await;
        });
    }
}

/// Open requests of this process, in all and by organization.
pub struct Load {
    open: usize,
    by_organization: HashMap<OrganizationId, usize>,
    most: usize,
    share: usize,
    gauge: Gauge,
}

impl Load {
    /// At most `most` open requests, of which one organization may have `share_percent`.
    pub fn new(most: usize, share_percent: u8, gauge: Gauge) -> Self {
        let share = (most * usize::from(share_percent) / 100).max(1);
        Self { open: 0, by_organization: HashMap::new(), most, share, gauge }
    }

    pub fn opened(&mut self, organization: &OrganizationId) {
        self.open += 1;
        *self.by_organization.entry(organization.clone()).or_default() += 1;
        self.gauge.set(self.open as i64);
    }

    pub fn closed(&mut self, organization: &OrganizationId) {
        self.open = self.open.saturating_sub(1);
        self.gauge.set(self.open as i64);
        if let Some(count) = self.by_organization.get_mut(organization) {
            *count -= 1;
            if *count == 0 {
                self.by_organization.remove(organization);
            }
        }
    }

    /// Whether one more may be opened.
    pub fn room_for(&self, organization: Option<&OrganizationId>) -> Capacity {
        let held = organization.and_then(|o| self.by_organization.get(o)).copied().unwrap_or(0);
        if self.open >= self.most {
            Capacity::Full
        } else if held >= self.share {
            Capacity::ShareUsed
        } else {
            Capacity::Free
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What the processor counts.
#[derive(Clone, Default)]
pub struct ProcessorMetrics {
    pub admitted: Counter,
    pub refused: Counter,
    pub dead: Counter,
    pub misplaced: Counter,
    pub tenures_lost: Counter,
    pub orphans: Counter,
    pub partitions: Gauge,
    pub open: Gauge,
    settled: Family<OutcomeLabel, Counter>,
}

impl ProcessorMetrics {
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("tollstream_processor");
            registry.register("requests_admitted", "Requests admitted", own.admitted.clone());
            registry.register("requests_refused", "Requests refused before a provider call", own.refused.clone());
            registry.register("requests_settled", "Requests settled, by outcome", own.settled.clone());
            registry.register("records_dead", "Records put into dead-letters", own.dead.clone());
            registry.register("records_misplaced", "Records moved to their partition", own.misplaced.clone());
            registry.register("tenures_lost", "Tenures that ended in their middle", own.tenures_lost.clone());
            registry.register("orphans_posted", "Ends of calls of former owners, posted", own.orphans.clone());
            registry.register("partitions_owned", "Partitions owned by this process", own.partitions.clone());
            registry.register("requests_open", "Requests admitted and not settled", own.open.clone());
        });
        own
    }

    pub fn settled(&self, outcome: Outcome) {
        self.settled.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_holds_no_more_than_its_share() {
        let (a, b) = (OrganizationId::parse("a").unwrap(), OrganizationId::parse("b").unwrap());
        let mut load = Load::new(4, 50, Gauge::default());
        assert_eq!(load.room_for(Some(&a)), Capacity::Free);
        load.opened(&a);
        load.opened(&a);
        assert_eq!(load.room_for(Some(&a)), Capacity::ShareUsed);
        assert_eq!(load.room_for(Some(&b)), Capacity::Free);
        load.opened(&b);
        load.opened(&b);
        assert_eq!(load.room_for(Some(&b)), Capacity::Full);
        load.closed(&a);
        assert_eq!(load.room_for(Some(&a)), Capacity::Free);
    }

    #[test]
    fn a_tag_says_whose_and_what() {
        for (number, expected) in [
            (Tag::commit(7), (7, Tag::Commit)),
            (Tag::disposal(7), (7, Tag::Disposal)),
            (Tag::answer(9), (9, Tag::Answer)),
        ] {
            assert_eq!(Tag::of(number), expected);
        }
    }
}
