//! A partition that this process owns: its records decided in order, each decision one commit, commands after the
//! acknowledgement. What that means is [`Tenure`]'s; this is its shell.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use rdkafka::error::KafkaError;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::calls::{Report, Source as Answers};
use super::checkpoints::{self, Keeper, Slots};
use super::clock;
use super::flight::Flight;
use super::publisher::{self, Outgoing};
use super::restore::Takeover;
use super::room::Hold;
use super::shell::{Reading, Shell, Tag};
use super::timeline::{Timeline, Timelines};
use super::trace;
use crate::codec;
use crate::domain::ids::partition_of;
use crate::domain::{Fingerprint, OrganizationId, RequestKey, Timestamp};
use crate::failpoint::{Failpoint, reached};
use crate::processor::cache::{Bodies, Wanted};
use crate::processor::health::{Ended as Observed, Health};
use crate::processor::inference::AttemptReport;
use crate::processor::tenure::{Circumstances, Gap, Tenure};
use crate::processor::{Command, Input, ProviderCall, ServedFrom, Serving, content, key_of, terminal_again};
use crate::records::cache::CacheRecord;
use crate::records::dead_letters::{DeadLetter, Source};
use crate::records::journal::{Commit, Entry, Fact, JournalRecord};
use crate::records::requests::{Chat, Request, RequestRecord};
use crate::records::responses::ResponseRecord;

/// Longest body that is read and counted at once: that takes 0.14 ms of English (docs/PERFORMANCE.md). A longer one is read
/// on another thread, and its partition's records wait for it in order.
const READ_AT_ONCE_BYTES_MAX: usize = 4 << 10;
/// Records of one partition that may wait (for a schema, a dead letter, the producer) before it is paused.
const HELD_RECORDS_MAX: usize = 1_000;
/// Bytes of records of one partition that may wait before it is paused.
const HELD_BYTES_MAX: usize = 32 << 20;
/// Bytes of commits that may wait for the full producer before the tenure ends.
const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// Terminal frames that may wait for the full producer before no further record is decided.
const ANSWERS_WAITING_MAX: usize = 1_000;
/// Largest commit that is appended: far more than any decision has, and half of what the journal takes.
const COMMIT_BYTES_MAX: usize = 512 << 10;
/// Largest buffer that is kept for the next record.
const PAYLOAD_BYTES_KEPT: usize = 64 << 10;
/// Commits of a tick that say whose time is over, of the answers that are kept.
const EXPIRIES_OF_TICK_MAX: usize = 8;
/// What Kafka adds to a record, and a little more.
const RECORD_OVERHEAD_BYTES: usize = 1_024;

/// Why a tenure ends.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Lost {
    #[error(transparent)]
    Gap(#[from] Gap),
    #[error("kafka did not acknowledge: {0}")]
    Delivery(KafkaError),
    #[error("a record could not be written: {0}")]
    Write(String),
    #[error("{bytes} bytes of commits wait for kafka")]
    Backlog { bytes: usize },
    #[error("this process stood still with a call decided; somebody else may have the partition by now")]
    StoodStill,
    /// What was decided on a record cannot be put on the journal. The next tenure puts the record aside.
    #[error("the decision on record {source_offset:?} cannot be written: {detail}")]
    Unwritable { source_offset: Option<i64>, detail: String },
}

/// A record of `requests`, as it lies in the fetch buffer.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub offset: i64,
    /// The record's own time.
    pub at: Timestamp,
    pub key: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

/// A record that waits.
struct Held {
    offset: i64,
    at: Timestamp,
    key: Option<Vec<u8>>,
    payload: Vec<u8>,
    /// Bytes of its body, which is in memory a second time while it is read.
    body_bytes: usize,
}

impl Held {
    fn of(record: Record<'_>) -> Self {
        let (key, payload) = (record.key.map(<[u8]>::to_vec), record.payload.to_vec());
        Self { offset: record.offset, at: record.at, key, payload, body_bytes: 0 }
    }

    /// Waits for this.
    fn before(self, obstacle: &Obstacle) -> Self {
        let body_bytes = match obstacle {
            Obstacle::Reading(chat, _) => chat.body.len(),
            Obstacle::Schema(..) | Obstacle::Disposal(_) => 0,
        };
        Self { body_bytes, ..self }
    }

    fn bytes(&self) -> usize {
        self.payload.len() + self.key.as_ref().map_or(0, Vec::len) + self.body_bytes
    }

    fn record(&self) -> Record<'_> {
        Record { offset: self.offset, at: self.at, key: self.key.as_deref(), payload: &self.payload }
    }
}

/// The records that wait, in order.
struct Waiting {
    records: VecDeque<Held>,
    /// Their share of what may wait in the process.
    room: Hold,
}

impl Waiting {
    fn push_back(&mut self, held: Held) {
        self.room.take_anyway(held.bytes());
        self.records.push_back(held);
    }

    fn push_front(&mut self, held: Held) {
        self.room.take_anyway(held.bytes());
        self.records.push_front(held);
    }

    fn pop_front(&mut self) -> Option<Held> {
        let held = self.records.pop_front()?;
        self.room.keep(self.room.bytes().saturating_sub(held.bytes()));
        Some(held)
    }

    fn is_congested(&self) -> bool {
        let bytes = self.room.bytes();
        self.records.len() >= HELD_RECORDS_MAX || bytes >= HELD_BYTES_MAX || (bytes > 0 && !self.room.room().fits(0))
    }
}

/// Why the first held record cannot be decided yet.
enum Obstacle {
    /// Its schema is being fetched, by this task.
    Schema(u32, AbortHandle),
    /// Its body is long, and is being read by this task.
    Reading(Box<Chat>, AbortHandle),
    /// It is being put elsewhere; then it is skipped for this reason.
    Disposal(&'static str),
}

/// What became of a record.
enum Taken {
    Decided,
    Waits(Obstacle),
    /// The full producer did not take what has to be put elsewhere first; it is tried again.
    Later,
}

struct CallHandle {
    cancel: CancellationToken,
    abort: AbortHandle,
}

/// One tenure of this process over a partition.
pub struct Owner {
    pub partition: i32,
    /// Of this process's tenures; part of every tag, so that a former tenure's acknowledgements are known as such.
    pub epoch: u64,
    tenure: Tenure,
    /// Commits that the full producer has not taken yet.
    outbox: VecDeque<(Option<OrganizationId>, Vec<u8>)>,
    outbox_bytes: usize,
    /// Terminal frames that the full producer has not taken yet, and their partitions.
    answers: VecDeque<(i32, Box<ResponseRecord>)>,
    calls: HashMap<RequestKey, CallHandle>,
    bodies: HashMap<RequestKey, Bytes>,
    /// Answers that fell short, while the next tier is asked.
    answers_kept: HashMap<RequestKey, Bytes>,
    /// Answers that come in and others may get, until their requests are over.
    flights: HashMap<RequestKey, Arc<Flight>>,
    /// Ends the reading of the answers that are kept.
    refilling: CancellationToken,
    held: Waiting,
    obstacle: Option<Obstacle>,
    /// The last source offset whose commit is acknowledged.
    decided: Option<i64>,
    /// The last one that was given to the consumer group.
    committed: Option<i64>,
    pub draining: bool,
    /// Commits that wait since before this process stood still: none of their calls may be made.
    stale: usize,
    /// A record on which the decision could not be written, and why.
    undecidable: Option<(i64, String)>,
    checkpoints: Keeper,
    timelines: Timelines,
    payload: Vec<u8>,
}

impl Owner {
    /// Begins a tenure: publishes again what the former owner settled lately, posts what it spent without saying so in
    /// time, and calls anew or settles what it left open.
    pub fn begin(
        takeover: Takeover,
        epoch: u64,
        undecidable: Option<(i64, String)>,
        shell: &mut Shell,
    ) -> Result<Self, Lost> {
        let decided = takeover.tenure.state().last_source_offset;
        let mut owner = Self {
            partition: takeover.partition,
            epoch,
            tenure: takeover.tenure,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            answers: VecDeque::new(),
            calls: HashMap::new(),
            bodies: HashMap::new(),
            answers_kept: HashMap::new(),
            flights: HashMap::new(),
            refilling: CancellationToken::new(),
            held: Waiting { records: VecDeque::new(), room: shell.held.hold() },
            obstacle: None,
            decided,
            committed: None,
            draining: false,
            stale: 0,
            undecidable,
            checkpoints: Keeper::new(takeover.begin, takeover.stale),
            timelines: Timelines::default(),
            payload: Vec::new(),
        };
        match owner.recover(shell, takeover.bodies) {
            Ok(()) => {
                shell.refill(owner.partition, &owner.tenure.state().cache, owner.refilling.clone());
                Ok(owner)
            }
            Err(lost) => {
                owner.abandon(shell);
                Err(lost)
            }
        }
    }

    fn recover(&mut self, shell: &mut Shell, mut bodies: HashMap<RequestKey, Bytes>) -> Result<(), Lost> {
        let (tenure, state) = (self.tenure.id(), self.tenure.state());
        let again: Vec<Command> = state.memory.ended().map(|e| terminal_again(e, tenure, state.clock)).collect();
        let orphaned: Vec<i64> = state.orphans().map(|(offset, _)| offset).collect();
        let mut left_open: Vec<RequestKey> = state.open_requests().map(|(key, _)| key.clone()).collect();
        left_open.sort();
        for key in &left_open {
            shell.load.opened(&key.organization);
        }
        for answer in again {
            self.run(shell, answer)?;
        }
        for journal_offset in orphaned {
            self.decide(shell, &Input::Orphaned(journal_offset), clock::now(), None)?;
            shell.metrics.orphans.inc();
        }
        for key in left_open {
            let body = bodies.remove(&key);
            let simulated = self.is_simulated(shell, &key);
            let input = Input::TakenOver { key, has_body: body.is_some(), simulated };
            self.decide(shell, &input, clock::now(), body.as_ref())?;
        }
        Ok(())
    }

    /// Whether the current attempt of an open request is a simulator's.
    fn is_simulated(&self, shell: &Shell, key: &RequestKey) -> bool {
        let open = self.tenure.state().open(key).filter(|open| !open.started.source.is_served());
        let Some(open) = open else { return false };
        let tables = shell.control.tables();
        let model = tables.model(&open.started.model);
        let deployment = model.and_then(|(_, model)| model.value.deployment(&open.started.deployment));
        deployment.is_some_and(|deployment| shell.calls.simulator(&deployment.credential).is_some())
    }

    /// Offset of the tenure's `OwnershipTaken`.
    pub const fn tenure(&self) -> i64 {
        self.tenure.id()
    }

    /// Where reading `requests` begins, when the journal says so.
    pub fn resume_offset(&self) -> Option<i64> {
        self.tenure.state().last_source_offset.map(|offset| offset + 1)
    }

    /// Takes the next record in offset order.
    pub fn take(&mut self, shell: &mut Shell, record: Record<'_>) -> Result<(), Lost> {
        if self.draining {
            return Ok(());
        }
        if !self.may_decide() || !self.held.records.is_empty() {
            self.held.push_back(Held::of(record));
            return Ok(());
        }
        match self.decide_record(shell, record)? {
            Taken::Decided => {}
            Taken::Waits(obstacle) => {
                self.held.push_back(Held::of(record).before(&obstacle));
                self.obstacle = Some(obstacle);
            }
            Taken::Later => self.held.push_back(Held::of(record)),
        }
        Ok(())
    }

    /// Whether nothing stands before the next record.
    fn may_decide(&self) -> bool {
        self.obstacle.is_none() && self.outbox.is_empty() && self.answers.len() < ANSWERS_WAITING_MAX
    }

    /// Whether so much waits that the partition should be paused.
    pub fn is_congested(&self) -> bool {
        self.held.is_congested()
    }

    /// Nothing is under way: no call, no unacknowledged commit.
    pub fn is_idle(&self) -> bool {
        self.tenure.is_idle() && self.calls.is_empty() && self.outbox.is_empty() && self.answers.is_empty()
    }

    /// Takes the acknowledgement of the next commit and runs its commands.
    pub fn acknowledged(&mut self, shell: &mut Shell, outcome: Result<i64, KafkaError>) -> Result<(), Lost> {
        let pending = self.tenure.acknowledged(outcome.map_err(Lost::Delivery)?)?;
        self.decided = self.decided.max(pending.source_offset);
        self.timelines.acknowledged(&shell.metrics);
        reached(Failpoint::CommitAcknowledged);
        for command in pending.commands {
            self.run(shell, command)?;
        }
        self.stale = self.stale.saturating_sub(1);
        self.keep_checkpoint(shell);
        reached(Failpoint::CommandsRun);
        self.retry(shell)
    }

    /// A checkpoint is kept, or could not be.
    pub fn kept(&mut self, shell: &Shell, slots: Slots, outcome: Result<i64, checkpoints::Error>) {
        match self.checkpoints.kept(slots, outcome) {
            Ok(()) => {
                shell.metrics.checkpoints.inc();
            }
            Err(error) => {
                shell.metrics.checkpoint_failures.inc();
                tracing::warn!(kafka.partition = self.partition, %error, "a checkpoint could not be kept; trying again");
            }
        }
    }

    /// Entries of the journal that a takeover would read.
    pub fn checkpoint_distance(&self) -> i64 {
        self.checkpoints.distance(&self.tenure)
    }

    fn keep_checkpoint(&mut self, shell: &mut Shell) {
        if let Some((cut, slots)) = self.checkpoints.take(&self.tenure) {
            shell.keep_checkpoint(self.partition, self.epoch, cut, slots);
        }
    }

    /// A dead letter or a forwarded record is acknowledged: the record that waited for it is skipped.
    pub fn disposed(&mut self, shell: &mut Shell, outcome: Result<i64, KafkaError>) -> Result<(), Lost> {
        outcome.map_err(Lost::Delivery)?;
        reached(Failpoint::DisposalAcknowledged);
        let Some(Obstacle::Disposal(reason)) = self.obstacle.take() else { return Ok(()) };
        let Some(held) = self.held.pop_front() else { return Ok(()) };
        self.decide(shell, &Input::Skip { source_offset: held.offset, reason }, held.at, None)?;
        self.decide_held(shell)
    }

    /// The schema that the first held record waits for was fetched, or there is none.
    pub fn learned(&mut self, shell: &mut Shell, id: u32, outcome: &Result<(), codec::Error>) -> Result<(), Lost> {
        if !matches!(self.obstacle, Some(Obstacle::Schema(wanted, _)) if wanted == id) {
            return Ok(());
        }
        self.obstacle = None;
        if let Err(error) = outcome
            && let Some(held) = self.held.pop_front()
        {
            let taken = self.dead_letter(shell, held.record(), "unknown_schema", &error.to_string())?;
            self.held.push_front(held);
            match taken {
                Taken::Waits(obstacle) => self.obstacle = Some(obstacle),
                // It will be asked for once more.
                Taken::Decided | Taken::Later => return Ok(()),
            }
        }
        self.decide_held(shell)
    }

    /// The long body of the first held record was read.
    ///
    /// # Errors
    /// Also when the reading broke off: the next tenure puts the record aside.
    pub fn understood(&mut self, shell: &mut Shell, reading: Option<Reading>) -> Result<(), Lost> {
        // Whoever has the partition next reads it again.
        if self.draining || !matches!(self.obstacle, Some(Obstacle::Reading(..))) {
            return Ok(());
        }
        let Some(Obstacle::Reading(chat, _)) = self.obstacle.take() else { return Ok(()) };
        let Some(held) = self.held.pop_front() else { return Ok(()) };
        let reading = reading.ok_or_else(|| Lost::Unwritable {
            source_offset: Some(held.offset),
            detail: "its body could not be read to the end".to_owned(),
        })?;
        self.decide_chat(shell, (held.offset, held.at), &chat, reading)?;
        self.decide_held(shell)
    }

    /// News of a provider call.
    pub fn reported(&mut self, shell: &mut Shell, report: Report) -> Result<(), Lost> {
        let input = match report {
            // The next one says the same and more.
            Report::Progressed(..) if !self.outbox.is_empty() => return Ok(()),
            Report::Progressed(key, progressed) => Input::AttemptProgressed(key, progressed),
            Report::Ended(report) => return self.ended(shell, report),
        };
        self.decide(shell, &input, clock::now(), None)
    }

    /// A provider call ended. An answer that falls short is kept while the next tier is asked.
    fn ended(&mut self, shell: &mut Shell, mut report: Box<AttemptReport>) -> Result<(), Lost> {
        let key = report.key.clone();
        self.calls.remove(&key);
        self.timelines.answered(&key);
        report.earlier = self.answers_kept.remove(&key);
        if let Some(earlier) = &report.earlier {
            shell.load.dropped(&key.organization, earlier.len());
        }
        let short = report.body.clone().filter(|_| report.shortfall.is_some());
        self.observe(shell, &key, Observed::of(&report));
        self.decide(shell, &Input::AttemptEnded(report), clock::now(), None)?;
        if let Some(body) = short.filter(|_| self.tenure.state().open(&key).is_some()) {
            shell.load.kept(&key.organization, body.len());
            self.answers_kept.insert(key, body);
        }
        Ok(())
    }

    /// What the end of a request's current attempt says about its deployment.
    fn observe(&self, shell: &Shell, key: &RequestKey, ended: Observed) {
        if let Some(open) = self.tenure.state().open(key).filter(|open| !open.started.source.is_served()) {
            let mut board = shell.deployments.lock().unwrap_or_else(PoisonError::into_inner);
            board.ended(&open.started.deployment, ended, clock::now());
        }
    }

    /// Time has passed: gives up what is overdue, and tries again what the producer did not take.
    pub fn tick(&mut self, shell: &mut Shell) -> Result<(), Lost> {
        let now = clock::now().max(self.tenure.state().clock);
        while let Some(key) = self.tenure.state().overdue(now).cloned() {
            tracing::warn!(kafka.partition = self.partition, request.id = %key.request, "a call never ended; given up");
            self.calls.remove(&key);
            let simulated = self.is_simulated(shell, &key);
            self.observe(shell, &key, Observed::Nothing);
            self.decide(shell, &Input::Overdue { key, simulated }, now, None)?;
        }
        for _ in 0..EXPIRIES_OF_TICK_MAX {
            if self.tenure.state().cache.expired(now).is_none() {
                break;
            }
            self.decide(shell, &Input::CacheExpired, now, None)?;
        }
        shell.metrics.shelf.set(shell.shelf.bytes() as i64);
        self.checkpoints.tick(&self.tenure, shell.checkpoint_distance);
        self.keep_checkpoint(shell);
        self.retry(shell)
    }

    /// What the full producer did not take is tried again, and what waited behind it.
    pub fn retry(&mut self, shell: &mut Shell) -> Result<(), Lost> {
        while let Some((organization, payload)) = self.outbox.front() {
            if !shell.append(self.partition, organization.as_ref(), payload, self.epoch)? {
                return Ok(());
            }
            self.outbox_bytes = self.outbox_bytes.saturating_sub(payload.len());
            self.outbox.pop_front();
        }
        while let Some((partition, answer)) = self.answers.pop_front() {
            if !self.answer(shell, partition, &answer)? {
                self.answers.push_front((partition, answer));
                return Ok(());
            }
        }
        self.decide_held(shell)
    }

    /// The offset to give to the consumer group, when there is a new one.
    pub fn offset_to_commit(&mut self) -> Option<i64> {
        let next = self.decided.map(|offset| offset + 1).filter(|next| self.committed.is_none_or(|done| done < *next));
        self.committed = next.or(self.committed);
        next
    }

    /// This process stood still, so somebody else may have the partition by now.
    pub fn stood_still(&mut self) {
        self.stale = self.tenure.waiting();
    }

    /// Ends the tenure: no command runs any more.
    pub fn abandon(self, shell: &mut Shell) {
        self.refilling.cancel();
        shell.shelf.leave(self.partition, shell.bounds.partitions);
        self.flights.values().for_each(|flight| flight.close());
        for call in self.calls.values() {
            call.abort.abort();
        }
        match &self.obstacle {
            Some(Obstacle::Schema(_, task) | Obstacle::Reading(_, task)) => task.abort(),
            Some(Obstacle::Disposal(_)) | None => {}
        }
        for (key, body) in self.bodies.iter().chain(&self.answers_kept) {
            shell.load.dropped(&key.organization, body.len());
        }
        for key in self.calls.keys() {
            self.observe(shell, key, Observed::Nothing);
        }
        for (key, _) in self.tenure.state().open_requests() {
            shell.load.closed(&key.organization);
        }
    }

    fn decide_held(&mut self, shell: &mut Shell) -> Result<(), Lost> {
        while self.may_decide() && !self.draining {
            let Some(held) = self.held.pop_front() else { return Ok(()) };
            match self.decide_record(shell, held.record())? {
                Taken::Decided => {}
                Taken::Waits(obstacle) => {
                    self.held.push_front(held.before(&obstacle));
                    self.obstacle = Some(obstacle);
                }
                Taken::Later => {
                    self.held.push_front(held);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn decide_record(&mut self, shell: &mut Shell, record: Record<'_>) -> Result<Taken, Lost> {
        if self.tenure.state().last_source_offset.is_some_and(|last| record.offset <= last) {
            return Ok(Taken::Decided);
        }
        if let Some((_, detail)) = self.undecidable.as_ref().filter(|(offset, _)| *offset == record.offset) {
            return self.dead_letter(shell, record, "undecidable", detail);
        }
        let request = match shell.codec.decode::<RequestRecord>(record.payload) {
            Ok(decoded) => Request::try_from(decoded).map_err(|e| ("unknown_kind", e.to_string())),
            Err(codec::Error::UnknownSchema { id }) => {
                let learning = shell.learn(id, self.epoch);
                return Ok(Taken::Waits(Obstacle::Schema(id, learning)));
            }
            Err(error) => Err(("undecodable", error.to_string())),
        };
        let request = match request {
            Ok(request) => request,
            Err((code, detail)) => return self.dead_letter(shell, record, code, &detail),
        };
        let organization = request.organization();
        if let Some(partition) = self.elsewhere(shell, organization) {
            let bytes = record.payload.len() + record.key.map_or(0, <[u8]>::len) + RECORD_OVERHEAD_BYTES;
            if bytes > shell.record_bytes_max {
                let detail =
                    format!("it belongs on partition {partition}, and is too large to be moved: {bytes} bytes");
                return self.dead_letter(shell, record, "misplaced_too_large", &detail);
            }
            if !shell.forward(partition, organization, record, self.epoch)? {
                return Ok(Taken::Later);
            }
            shell.metrics.misplaced.inc();
            return Ok(Taken::Waits(Obstacle::Disposal("misplaced")));
        }
        match request {
            // It is refused for its size, so nobody need know what is in it.
            Request::Chat(chat) if chat.body.len() > shell.bounds.body_bytes_max => {
                let fingerprint = shell.fingerprints.of(&chat.body);
                let reading = Reading { content: Err(content::Error::TooLarge), fingerprint, cache: None };
                self.decide_chat(shell, (record.offset, record.at), &chat, reading)?;
            }
            Request::Chat(chat) if chat.body.len() > READ_AT_ONCE_BYTES_MAX => {
                let reading = shell.read(chat.clone(), self.epoch);
                return Ok(Taken::Waits(Obstacle::Reading(chat, reading)));
            }
            Request::Chat(chat) => {
                let tables = shell.control.tables();
                let reading = Reading::of(&chat, &tables, &*shell.classifier, &shell.fingerprints);
                self.decide_chat(shell, (record.offset, record.at), &chat, reading)?;
            }
            Request::Cancel(cancel) => {
                let input = Input::Cancel { source_offset: record.offset, received_at: record.at, cancel: &cancel };
                self.decide(shell, &input, record.at, None)?;
            }
            Request::PurgeCache(purge) => {
                let input = Input::PurgeCache { source_offset: record.offset, purge: &purge };
                self.decide(shell, &input, record.at, None)?;
            }
        }
        Ok(Taken::Decided)
    }

    fn decide_chat(
        &mut self,
        shell: &mut Shell,
        (source_offset, received_at): (i64, Timestamp),
        chat: &Chat,
        Reading { content, fingerprint, cache }: Reading,
    ) -> Result<(), Lost> {
        let shelf = shell.shelf.clone();
        let wanted = |(content, directives)| Wanted { content, directives, bodies: Bodies::Live(&shelf) };
        let (fingerprint, cache) = (Some(fingerprint), cache.map(wanted));
        let cache = cache.as_ref();
        let input = Input::Chat { source_offset, received_at, chat, content, fingerprint, cache };
        self.decide(shell, &input, received_at, Some(&chat.body))
    }

    fn elsewhere(&self, shell: &Shell, organization: &OrganizationId) -> Option<i32> {
        let partition = partition_of(organization.as_str(), shell.bounds.partitions);
        (partition != self.partition).then_some(partition)
    }

    fn dead_letter(
        &self,
        shell: &mut Shell,
        record: Record<'_>,
        code: &'static str,
        detail: &str,
    ) -> Result<Taken, Lost> {
        let Record { offset, at, key, payload } = record;
        let source = Source { topic: &shell.topics.requests, partition: self.partition, offset, at, key, payload };
        let letter = DeadLetter::of(source, code, detail, shell.dead_letter_bytes_max);
        if !shell.dead_letter(self.partition, &letter, self.epoch)? {
            return Ok(Taken::Later);
        }
        tracing::warn!(
            kafka.partition = self.partition,
            kafka.offset = record.offset,
            reason = code,
            "record put into dead-letters"
        );
        shell.metrics.dead.inc();
        Ok(Taken::Waits(Obstacle::Disposal(code)))
    }

    fn decide(
        &mut self,
        shell: &mut Shell,
        input: &Input<'_>,
        at: Timestamp,
        body: Option<&Bytes>,
    ) -> Result<(), Lost> {
        let control = shell.control.tables();
        let (organization, arrived) = match input {
            Input::Chat { source_offset, chat, received_at, .. } => {
                let (topic, group) = (&shell.topics.requests, super::shard::COMPONENT);
                let at = trace::Place { topic, partition: self.partition, offset: *source_offset, group };
                let span = trace::process(&shell.traces, at, chat);
                (Some(&chat.organization), Some(Timeline::begin(*received_at, span)))
            }
            _ => (None, None),
        };
        let capacity = shell.load.room_for(organization, body.map_or(0, Bytes::len));
        let deployments = Arc::clone(&shell.deployments);
        let board = deployments.lock().unwrap_or_else(PoisonError::into_inner);
        let health = Health::Live(&board, clock::now());
        let with = Circumstances { at, control: &control, capacity, bounds: &shell.bounds, health };
        let Some(commit) = self.tenure.decide(input, with) else { return Ok(()) };
        drop(board);
        self.timelines.decided(&commit, arrived, shell, self.partition);
        self.account(shell, &commit, body);
        let (organization, source_offset) = (commit.organization.clone(), commit.source_offset);
        let record = JournalRecord::from(Entry::Commit(commit));
        let unwritable = |detail| Lost::Unwritable { source_offset, detail };
        shell.codec.encode(&record, &mut self.payload).map_err(|e| unwritable(e.to_string()))?;
        if self.payload.len() > COMMIT_BYTES_MAX {
            return Err(unwritable(format!("it has {} bytes", self.payload.len())));
        }
        if !self.outbox.is_empty() || !shell.append(self.partition, organization.as_ref(), &self.payload, self.epoch)? {
            self.outbox_bytes += self.payload.len();
            self.outbox.push_back((organization, self.payload.clone()));
        }
        match self.outbox_bytes {
            bytes if bytes > OUTBOX_BYTES_MAX => Err(Lost::Backlog { bytes }),
            _ => Ok(()),
        }
    }

    /// Keeps the process's load, the bodies and the counters in step with the facts.
    fn account(&mut self, shell: &mut Shell, commit: &Commit, body: Option<&Bytes>) {
        for fact in &commit.facts {
            match fact {
                Fact::CacheLookedUp(looked_up) => shell.metrics.looked_up(looked_up.outcome),
                Fact::CacheInserted(_) => {
                    shell.metrics.cached.inc();
                }
                Fact::CacheEvicted(evicted) => {
                    shell.metrics.evicted.inc_by(evicted.fingerprints.len() as u64);
                }
                Fact::CachePurged(purged) => {
                    shell.metrics.evicted.inc_by(purged.entries);
                }
                _ => {}
            }
        }
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return };
        for fact in &commit.facts {
            match fact {
                Fact::RequestAdmitted(_) => {
                    shell.load.opened(organization);
                    shell.metrics.admitted.inc();
                }
                Fact::RequestRefused(refused) => shell.metrics.refused(&refused.code),
                Fact::AttemptStarted(started) => {
                    if !started.source.is_served() {
                        let mut board = shell.deployments.lock().unwrap_or_else(PoisonError::into_inner);
                        board.started(&started.deployment, clock::now());
                    }
                    if let Some(body) = body {
                        self.bodies.insert(key_of(organization, &request.request_id), body.clone());
                        shell.load.kept(organization, body.len());
                    }
                }
                Fact::RequestSettled(settled) => {
                    shell.load.closed(organization);
                    shell.metrics.settled(settled.outcome);
                    let key = key_of(organization, &request.request_id);
                    for body in [self.bodies.remove(&key), self.answers_kept.remove(&key)].into_iter().flatten() {
                        shell.load.dropped(organization, body.len());
                    }
                }
                Fact::AttemptEnded(posting) => shell.metrics.posted(posting),
                Fact::OrphanPosted(orphan) => shell.metrics.posted(&orphan.posting),
                Fact::RequestRouted(_)
                | Fact::AttemptProgressed(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CancelRequested(_)
                | Fact::RecordSkipped(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::CachePurged(_) => {}
            }
        }
    }

    fn run(&mut self, shell: &mut Shell, command: Command) -> Result<(), Lost> {
        match command {
            Command::Call(call) => self.call(shell, *call)?,
            Command::Abort(key) => {
                if let Some(call) = self.calls.get(&key) {
                    call.cancel.cancel();
                }
            }
            Command::Serve(serving) => self.serve(shell, *serving)?,
            Command::Keep { of, fingerprint, expires_at } => self.keep(shell, &of, fingerprint, expires_at)?,
            Command::Forget { organization, fingerprints } => {
                for fingerprint in fingerprints {
                    shell.shelf.remove(&organization, fingerprint);
                    shell.uncache(self.partition, &organization, fingerprint, self.epoch);
                }
            }
            Command::Answer { partition, frame } => {
                if let Some(flight) = self.flights.remove(&key_of(&frame.organization, &frame.request_id)) {
                    flight.close();
                }
                let answer = ResponseRecord::from(*frame);
                if !self.answers.is_empty() || !self.answer(shell, partition, &answer)? {
                    self.answers.push_back((partition, Box::new(answer)));
                }
            }
        }
        Ok(())
    }

    /// Gives an answer that is at hand, or comes in for somebody else.
    fn serve(&mut self, shell: &mut Shell, serving: Serving) -> Result<(), Lost> {
        if self.stale > 0 || shell.stillness.in_this_round() {
            return Err(Lost::StoodStill);
        }
        let organization = &serving.key.organization;
        let source = match &serving.from {
            ServedFrom::Cache(fingerprint) => shell.shelf.get(organization, *fingerprint).map(Answers::Kept),
            ServedFrom::Call(leader) => {
                let flight = self.flights.get(&key_of(organization, leader));
                flight.map(|flight| Answers::Flight(Arc::clone(flight), leader.clone()))
            }
        };
        let (key, cancel) = (serving.key.clone(), CancellationToken::new());
        if self.tenure.state().open(&key).is_none_or(|open| open.cancelled) {
            cancel.cancel();
        }
        let (source, reports) = (source.unwrap_or(Answers::Nothing), shell.reports.clone());
        let from = (source, self.timelines.served(&serving));
        let running = Arc::clone(&shell.calls).serve(self.tenure.id(), serving, from, cancel.clone(), reports);
        let abort = shell.tasks.spawn(running);
        self.calls.insert(key, CallHandle { cancel, abort });
        Ok(())
    }

    /// Keeps the answer that came in for a request, here and on `cache`.
    fn keep(
        &mut self,
        shell: &Shell,
        of: &RequestKey,
        fingerprint: Fingerprint,
        expires_at: Timestamp,
    ) -> Result<(), Lost> {
        let Some((events, summary, body)) = self.flights.get(of).and_then(|flight| flight.answer()) else {
            return Ok(());
        };
        let mut record = CacheRecord {
            organization: of.organization.clone(),
            fingerprint,
            request_id: of.request.clone(),
            expires_at,
            usage: summary.usage.unwrap_or_default(),
            finish_reason: summary.finish_reason,
            events,
            body,
            seal: String::new(),
        };
        record.seal = shell.fingerprints.seal(&record);
        shell.cache(self.partition, &record, self.epoch)?;
        shell.shelf.put(&of.organization, fingerprint, Arc::new(record.into()));
        Ok(())
    }

    /// Publishes a terminal frame; `false` when the producer is full.
    fn answer(&mut self, shell: &Shell, partition: i32, answer: &ResponseRecord) -> Result<bool, Lost> {
        shell.codec.encode(answer, &mut self.payload).map_err(|e| Lost::Write(e.to_string()))?;
        let taken = shell.answer(partition, &answer.request_id, &self.payload, self.epoch);
        if self.payload.capacity() > PAYLOAD_BYTES_KEPT {
            self.payload = Vec::new();
        }
        taken
    }

    fn call(&mut self, shell: &mut Shell, call: ProviderCall) -> Result<(), Lost> {
        if self.stale > 0 || shell.stillness.in_this_round() {
            return Err(Lost::StoodStill);
        }
        // A body is missing only when the request was settled meanwhile.
        let Some(body) = self.bodies.get(&call.key).cloned() else { return Ok(()) };
        let (key, cancel) = (call.key.clone(), CancellationToken::new());
        if self.tenure.state().open(&key).is_some_and(|open| open.cancelled) {
            cancel.cancel();
        }
        let open = self.tenure.state().open(&key);
        let span = self.timelines.called(&call, open.map_or("", |open| open.started.provider.as_str()));
        let flight = call.is_kept.then(|| {
            let new = || Arc::new(Flight::new(&shell.arriving, shell.cache.answer_bytes_max));
            let flight = self.flights.entry(key.clone()).or_insert_with(new);
            flight.begin();
            Arc::clone(flight)
        });
        let (tenure, reports) = (self.tenure.id(), shell.reports.clone());
        let running = Arc::clone(&shell.calls).run(tenure, call, body, (flight, span), cancel.clone(), reports);
        let abort = shell.tasks.spawn(running);
        self.calls.insert(key, CallHandle { cancel, abort });
        Ok(())
    }

    /// Ends the calls under way; their reports follow.
    pub fn cancel_calls(&self) {
        for call in self.calls.values() {
            call.cancel.cancel();
        }
    }
}

/// A record for the producer.
pub fn outgoing<'a>(topic: &'a str, partition: i32, key: &'a [u8], payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, partition, key, payload }
}

/// Whether the producer took a record: a full one says no, everything else that goes wrong ends the tenure.
pub fn taken(sent: Result<(), publisher::Error>) -> Result<bool, Lost> {
    match sent {
        Ok(()) => Ok(true),
        Err(publisher::Error::Full) => Ok(false),
        Err(error) => Err(Lost::Write(error.to_string())),
    }
}

impl Tag {
    /// Of a commit.
    pub const fn commit(epoch: u64) -> u64 {
        epoch << 2
    }

    /// Of a dead letter or a forwarded record.
    pub const fn disposal(epoch: u64) -> u64 {
        (epoch << 2) | 1
    }

    /// Of a terminal frame.
    pub const fn answer(epoch: u64) -> u64 {
        (epoch << 2) | 2
    }

    /// Of an answer that is kept.
    pub const fn cache(epoch: u64) -> u64 {
        (epoch << 2) | 3
    }
}
