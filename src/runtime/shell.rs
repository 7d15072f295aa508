//! What all owned partitions of a process share: the producer, the calls, the load, the counters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::calls::{Calls, Report};
use super::checkpoints::{self, Slots};
use super::control::Control;
use super::fingerprint::Fingerprints;
use super::metrics::ProcessorMetrics;
use super::owner::{Lost, Record, outgoing, taken};
use super::publisher::{Deliveries, Publisher};
use super::refill::{self, Refill};
use super::room::{Hold, Room};
use super::shelf::Shelf;
use super::stillness::Stillness;
use crate::codec::{self, Codec};
use crate::config;
use crate::control::Tables;
use crate::domain::{Fingerprint, OrganizationId, RequestId};
use crate::failpoint::{Failpoint, reached};
use crate::processor::cache::{Directives, Entries, Index};
use crate::processor::checkpoint::Cut;
use crate::processor::content::{self, Content};
use crate::processor::health::Deployments;
use crate::processor::intent::Classifier;
use crate::processor::{Bounds, Capacity};
use crate::records::cache::CacheRecord;
use crate::records::dead_letters::DeadLetter;
use crate::records::requests::Chat;
use crate::telemetry::Traces;

/// Waits between two questions for a schema: first, and at the most.
const LEARN_RETRY_MIN: Duration = Duration::from_millis(100);
const LEARN_RETRY_MAX: Duration = Duration::from_secs(5);

/// Long bodies that are read and counted at once in this process, each on a thread of its own.
const READINGS_MAX: usize = 2;

/// What an acknowledgement is for; the number that comes back is the tenure's epoch and this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Commit,
    Disposal,
    Answer,
    /// Of an answer that is kept.
    Cache,
}

impl Tag {
    /// The epoch and the kind of a number that came back.
    pub const fn of(number: u64) -> (u64, Self) {
        let kind = match number & 3 {
            0 => Self::Commit,
            1 => Self::Disposal,
            2 => Self::Answer,
            _ => Self::Cache,
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
    pub cache: String,
}

/// A schema that was asked for: its id, the epoch that asked, and what came of it.
pub type Learned = (u32, u64, Result<(), codec::Error>);

/// What a long body says: the epoch that asked, and the reading; `None` when its thread broke off.
pub type Understood = (u64, Option<Reading>);

/// A body that was read.
#[derive(Debug)]
pub struct Reading {
    pub content: Result<Content, content::Error>,
    /// Keyed hash of it.
    pub fingerprint: String,
    /// What it may want of the cache.
    pub cache: Option<(Fingerprint, Directives)>,
}

impl Reading {
    /// Takes time in proportion to the body, nearly all of it to count its tokens.
    /// The classifier reads it, too, where a policy chooses the model by it.
    pub fn of(chat: &Chat, control: &Tables, classifier: &dyn Classifier, fingerprints: &Fingerprints) -> Self {
        let mut content = content::read(&chat.body);
        if let Ok(content) = &mut content {
            let model = chat.model.as_ref().map(|model| model.as_str()).or(content.model.as_deref());
            let policy = model.and_then(|model| control.policy(model));
            if policy.is_some_and(|(_, policy)| policy.value.reads_content()) {
                content.classify(classifier);
            }
        }
        let cache = Self::cache(chat, &mut content, control, fingerprints);
        Self { content, fingerprint: fingerprints.of(&chat.body), cache }
    }

    /// Whether answers to such a request are kept, and by what they are found.
    fn cache(
        chat: &Chat,
        content: &mut Result<Content, content::Error>,
        control: &Tables,
        fingerprints: &Fingerprints,
    ) -> Option<(Fingerprint, Directives)> {
        let caching = control.terms(&chat.organization, None)?.plan.cache?;
        let read = content.as_ref().ok()?;
        let header = chat.cache_control.as_deref().map(Directives::parse).unwrap_or(Ok(Directives::default()));
        let directives = match header {
            Ok(header) => header.and(read.cache),
            Err(detail) => {
                *content = Err(content::Error::CacheControl(detail));
                return None;
            }
        };
        let is_kept = (read.is_steady || caching.any_temperature) && (!read.has_tools || caching.tools);
        let form = [read.stream, read.include_usage];
        let found = is_kept.then(|| fingerprints.content(&chat.organization, form, &chat.body).ok()).flatten()?;
        Some((found, directives))
    }
}

/// What became of a checkpoint: the epoch that kept it, its slots, and the offset of the journal that it holds.
pub type Kept = (u64, Slots, Result<i64, checkpoints::Error>);

pub struct Shell {
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub control: Control,
    /// How the deployments do.
    pub deployments: Deployments,
    pub calls: Arc<Calls>,
    pub deliveries: Arc<Deliveries>,
    pub reports: mpsc::Sender<Report>,
    pub learned: mpsc::Sender<Learned>,
    pub understood: mpsc::Sender<Understood>,
    pub readings: Arc<Semaphore>,
    pub kept: mpsc::Sender<Kept>,
    pub tasks: JoinSet<()>,
    pub topics: Topics,
    pub bounds: Bounds,
    pub fingerprints: Fingerprints,
    /// Tells what requests are about.
    pub classifier: Arc<dyn Classifier>,
    pub dead_letter_bytes_max: usize,
    pub checkpoints: checkpoints::Writer,
    /// Entries of the journal after which a checkpoint is kept.
    pub checkpoint_distance: i64,
    /// Largest record that the producer takes.
    pub record_bytes_max: usize,
    pub load: Load,
    /// For the records that wait.
    pub held: Room,
    /// Answers that are kept.
    pub shelf: Shelf,
    /// For the answers that come in and may be kept.
    pub arriving: Room,
    pub cache: config::Cache,
    pub refill: Refill,
    pub stillness: Stillness,
    pub metrics: ProcessorMetrics,
    pub traces: Traces,
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
    pub fn answer(&self, partition: i32, request: &RequestId, payload: &[u8], epoch: u64) -> Result<bool, Lost> {
        let record = outgoing(&self.topics.responses, partition, request.as_str().as_bytes(), payload);
        reached(Failpoint::BeforeTerminal);
        let sent = taken(self.publisher.send_telling_failures(record, &self.deliveries, Tag::answer(epoch)));
        reached(Failpoint::AfterTerminal);
        sent
    }

    /// Puts a record into `dead-letters`; `false` when the producer is full.
    pub fn dead_letter(&self, partition: i32, letter: &DeadLetter, epoch: u64) -> Result<bool, Lost> {
        let mut payload = Vec::new();
        self.codec.encode(letter, &mut payload).map_err(|e| Lost::Write(e.to_string()))?;
        let record =
            outgoing(&self.topics.dead_letters, partition, letter.key.as_deref().unwrap_or_default(), &payload);
        reached(Failpoint::BeforeDeadLetter);
        let taken = self.dispose(record, epoch)?;
        reached(Failpoint::AfterDeadLetter);
        Ok(taken)
    }

    /// Produces a record once more, to the partition where it belongs; `false` when the producer is full.
    pub fn forward(
        &self,
        partition: i32,
        organization: &OrganizationId,
        record: Record<'_>,
        epoch: u64,
    ) -> Result<bool, Lost> {
        let key = record.key.unwrap_or(organization.as_str().as_bytes());
        reached(Failpoint::BeforeForward);
        let taken = self.dispose(outgoing(&self.topics.requests, partition, key, record.payload), epoch)?;
        reached(Failpoint::AfterForward);
        Ok(taken)
    }

    fn dispose(&self, record: super::publisher::Outgoing<'_>, epoch: u64) -> Result<bool, Lost> {
        taken(self.publisher.send(record, &self.deliveries, Tag::disposal(epoch)))
    }

    /// Reads the bodies of a partition's answers, in the background, until `given_up`.
    pub fn refill(&mut self, partition: i32, index: &Index, given_up: CancellationToken) {
        let of = |(organization, entries): (&OrganizationId, &Entries)| {
            let organization = organization.clone();
            entries.iter().map(move |entry| (organization.clone(), entry.fingerprint)).collect::<Vec<_>>()
        };
        let wanted: refill::Wanted = index.organizations().flat_map(of).collect();
        if wanted.is_empty() {
            return;
        }
        let (refill, handle) = (self.refill.clone(), tokio::runtime::Handle::current());
        self.tasks.spawn(async move {
            let read = tokio::task::spawn_blocking(move || refill.run(partition, &wanted, &given_up, &handle));
            if let Err(error) = read.await {
                tracing::warn!(kafka.partition = partition, %error, "reading the cache broke off");
            }
        });
    }

    /// Puts an answer on `cache`; what the full producer does not take is not there after a restart, and asked anew.
    pub fn cache(&self, partition: i32, record: &CacheRecord, epoch: u64) -> Result<(), Lost> {
        let (mut payload, key) = (Vec::new(), CacheRecord::key(&record.organization, record.fingerprint));
        self.codec.encode(record, &mut payload).map_err(|e| Lost::Write(e.to_string()))?;
        let outgoing = outgoing(&self.topics.cache, partition, key.as_bytes(), &payload);
        if let Err(error) = self.publisher.send_telling_failures(outgoing, &self.deliveries, Tag::cache(epoch)) {
            tracing::warn!(kafka.partition = partition, %error, "an answer is kept here alone");
        }
        Ok(())
    }

    /// Takes an answer off `cache`; one that stays is passed over, since the journal says that it is gone.
    pub fn uncache(&self, partition: i32, organization: &OrganizationId, fingerprint: Fingerprint, epoch: u64) {
        let key = CacheRecord::key(organization, fingerprint);
        let outgoing = outgoing(&self.topics.cache, partition, key.as_bytes(), &[]);
        if let Err(error) = self.publisher.send_tombstone(outgoing, &self.deliveries, Tag::cache(epoch)) {
            tracing::debug!(kafka.partition = partition, %error, "an answer that is not kept any more stays on cache");
        }
    }

    /// Writes a checkpoint in the background.
    pub fn keep_checkpoint(&mut self, partition: i32, epoch: u64, cut: Cut, slots: Slots) {
        let (writer, kept) = (self.checkpoints.clone(), self.kept.clone());
        self.tasks.spawn(async move {
            let (slots, outcome) = writer.write(partition, cut, slots).await;
            let _ = kept.send((epoch, slots, outcome)).await;
        });
    }

    /// Reads a long body on a thread of its own. One that has begun goes on when it is aborted; nobody gets its result
    /// then, and it keeps its place among those that are read at once.
    pub fn read(&mut self, chat: Box<Chat>, epoch: u64) -> AbortHandle {
        let (fingerprints, readings) = (self.fingerprints.clone(), self.readings.clone());
        let (understood, control) = (self.understood.clone(), self.control.tables());
        let classifier = Arc::clone(&self.classifier);
        self.tasks.spawn(async move {
            // It is never closed.
            let Ok(place) = readings.acquire_owned().await else { return };
            let reading = tokio::task::spawn_blocking(move || {
                let reading = Reading::of(&chat, &control, &*classifier, &fingerprints);
                drop(place);
                reading
            });
            let _ = understood.send((epoch, reading.await.ok())).await;
        })
    }

    /// Fetches a schema in the background, for as long as the registry is away or until it is aborted.
    pub fn learn(&mut self, id: u32, epoch: u64) -> AbortHandle {
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
        })
    }
}

/// Places for the long bodies that are read at once.
pub fn readings() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(READINGS_MAX))
}

/// Open requests of this process and the bytes of their bodies, in all and by organization.
pub struct Load {
    open: Use,
    by_organization: HashMap<OrganizationId, Use>,
    most: usize,
    share_percent: u8,
    bodies: Hold,
    gauges: (Gauge, Gauge),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Use {
    requests: usize,
    bytes: usize,
}

impl Load {
    /// At most `most` open requests with bodies in `bodies`, of both of which one organization may have `share_percent`.
    pub fn new(most: usize, share_percent: u8, bodies: &Room, metrics: &ProcessorMetrics) -> Self {
        let (open, by_organization, bodies) = (Use::default(), HashMap::new(), bodies.hold());
        Self {
            open,
            by_organization,
            most,
            share_percent,
            bodies,
            gauges: (metrics.open.clone(), metrics.bodies.clone()),
        }
    }

    pub fn opened(&mut self, organization: &OrganizationId) {
        self.change(organization, |used| used.requests += 1);
    }

    pub fn closed(&mut self, organization: &OrganizationId) {
        self.change(organization, |used| used.requests = used.requests.saturating_sub(1));
    }

    /// The body of an open request is kept.
    pub fn kept(&mut self, organization: &OrganizationId, bytes: usize) {
        self.bodies.take_anyway(bytes);
        self.change(organization, |used| used.bytes += bytes);
    }

    /// It is kept no longer.
    pub fn dropped(&mut self, organization: &OrganizationId, bytes: usize) {
        self.bodies.keep(self.bodies.bytes().saturating_sub(bytes));
        self.change(organization, |used| used.bytes = used.bytes.saturating_sub(bytes));
    }

    fn change(&mut self, organization: &OrganizationId, change: impl Fn(&mut Use)) {
        let used = self.by_organization.entry(organization.clone()).or_default();
        change(used);
        if *used == Use::default() {
            self.by_organization.remove(organization);
        }
        change(&mut self.open);
        self.gauges.0.set(self.open.requests as i64);
        self.gauges.1.set(self.open.bytes as i64);
    }

    /// Whether one more may be opened, with a body of so many bytes. Whoever has nothing open is not held to a share.
    pub fn room_for(&self, organization: Option<&OrganizationId>, bytes: usize) -> Capacity {
        let used = organization.and_then(|o| self.by_organization.get(o)).copied().unwrap_or_default();
        let share = |most: usize| most * usize::from(self.share_percent) / 100;
        let room = self.bodies.room();
        if self.open.requests >= self.most || !room.fits(bytes) {
            Capacity::Full
        } else if used.requests > 0
            && (used.requests >= share(self.most) || used.bytes + bytes > share(room.bytes_max()))
        {
            Capacity::ShareUsed
        } else {
            Capacity::Free
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_holds_no_more_than_its_share() {
        let (a, b) = (OrganizationId::parse("a").unwrap(), OrganizationId::parse("b").unwrap());
        let mut load = Load::new(4, 50, &Room::new(1_000), &ProcessorMetrics::default());
        assert_eq!(load.room_for(Some(&a), 0), Capacity::Free);
        load.opened(&a);
        load.opened(&a);
        assert_eq!(load.room_for(Some(&a), 0), Capacity::ShareUsed);
        assert_eq!(load.room_for(Some(&b), 0), Capacity::Free);
        load.opened(&b);
        load.opened(&b);
        assert_eq!(load.room_for(Some(&b), 0), Capacity::Full);
        load.closed(&a);
        assert_eq!(load.room_for(Some(&a), 0), Capacity::Free);
    }

    #[test]
    fn bodies_have_a_bound_in_bytes_and_an_organization_its_share_of_it() {
        let (a, b) = (OrganizationId::parse("a").unwrap(), OrganizationId::parse("b").unwrap());
        let room = Room::new(1_000);
        let mut load = Load::new(100, 50, &room, &ProcessorMetrics::default());
        assert_eq!(load.room_for(Some(&a), 900), Capacity::Free, "a first request is not held to the share");
        load.opened(&a);
        load.kept(&a, 400);
        assert_eq!(load.room_for(Some(&a), 100), Capacity::Free);
        assert_eq!(load.room_for(Some(&a), 101), Capacity::ShareUsed);
        assert_eq!(load.room_for(Some(&b), 600), Capacity::Free);
        assert_eq!(load.room_for(Some(&b), 601), Capacity::Full);
        load.dropped(&a, 400);
        load.closed(&a);
        assert_eq!((room.taken(), load.by_organization.len()), (0, 0));
    }

    #[test]
    fn a_tag_says_whose_and_what() {
        for (number, expected) in [
            (Tag::commit(7), (7, Tag::Commit)),
            (Tag::disposal(7), (7, Tag::Disposal)),
            (Tag::answer(9), (9, Tag::Answer)),
            (Tag::cache(9), (9, Tag::Cache)),
        ] {
            assert_eq!(Tag::of(number), expected);
        }
    }
}
