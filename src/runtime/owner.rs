//! A partition that this process owns: its records decided in order, each decision one commit, commands after the
//! acknowledgement.
//!
//! The state runs ahead of the acknowledgements (commits are appended without waiting for the one before), but no
//! command runs before its own commit and all before it are acknowledged. A sole writer's acknowledged offsets are
//! contiguous; any other acknowledgement means that somebody else wrote, and ends the tenure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rdkafka::error::KafkaError;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::clock;
use super::publisher::{self, Outgoing};
use super::shell::{Shell, Tag};
use crate::codec;
use crate::domain::ids::partition_of;
use crate::domain::{OrganizationId, RequestKey, Timestamp};
use crate::processor::inference::AttemptReport;
use crate::processor::{
    Command, Context, Decision, Input, ProviderCall, State, commit, content, decide, evolve, key_of,
};
use crate::records::dead_letters::DeadLetter;
use crate::records::journal::{Commit, Entry, Fact, JournalRecord};
use crate::records::requests::{Request, RequestRecord};

/// Records of one partition that may wait (for a schema, a dead letter, the producer) before it is paused.
pub const HELD_RECORDS_MAX: usize = 1_000;

/// Why a tenure ends.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Lost {
    #[error("a commit stands at offset {found}, not at {expected}: another owner has written")]
    Gap { expected: i64, found: i64 },
    #[error("kafka did not acknowledge: {0}")]
    Delivery(KafkaError),
    #[error("a record could not be written: {0}")]
    Write(String),
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
}

impl Held {
    fn of(record: Record<'_>) -> Self {
        let (key, payload) = (record.key.map(<[u8]>::to_vec), record.payload.to_vec());
        Self { offset: record.offset, at: record.at, key, payload }
    }

    fn record(&self) -> Record<'_> {
        Record { offset: self.offset, at: self.at, key: self.key.as_deref(), payload: &self.payload }
    }
}

/// Why the first held record cannot be decided yet.
enum Obstacle {
    /// Its schema is being fetched.
    Schema(u32),
    /// It is being put elsewhere; then it is skipped for this reason.
    Disposal(&'static str),
}

/// What became of a record.
enum Taken {
    Decided,
    Waits(Obstacle),
}

struct Pending {
    source_offset: Option<i64>,
    commands: Vec<Command>,
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
    pub tenure: i64,
    state: State,
    next_sequence: i64,
    /// Where the next acknowledgement must stand.
    next_offset: i64,
    pending: VecDeque<Pending>,
    /// Commits that the full producer has not taken yet.
    outbox: VecDeque<(Option<OrganizationId>, Vec<u8>)>,
    /// Terminal frames that the full producer has not taken yet.
    answers: VecDeque<(i32, RequestKey, Vec<u8>)>,
    calls: HashMap<RequestKey, CallHandle>,
    bodies: HashMap<RequestKey, Bytes>,
    held: VecDeque<Held>,
    obstacle: Option<Obstacle>,
    /// The last source offset whose commit is acknowledged.
    decided: Option<i64>,
    /// The last one that was given to the consumer group.
    committed: Option<i64>,
    pub draining: bool,
    payload: Vec<u8>,
}

impl Owner {
    /// Begins a tenure: settles what the former owner left open.
    pub fn begin(tenure: super::restore::Tenure, epoch: u64, shell: &mut Shell) -> Result<Self, Lost> {
        let decided = tenure.state.last_source_offset;
        let mut owner = Self {
            partition: tenure.partition,
            epoch,
            tenure: tenure.id,
            state: tenure.state,
            next_sequence: 0,
            next_offset: tenure.id + 1,
            pending: VecDeque::new(),
            outbox: VecDeque::new(),
            answers: VecDeque::new(),
            calls: HashMap::new(),
            bodies: HashMap::new(),
            held: VecDeque::new(),
            obstacle: None,
            decided,
            committed: None,
            draining: false,
            payload: Vec::new(),
        };
        let mut left_open: Vec<RequestKey> = owner.state.open_requests().map(|(key, _)| key.clone()).collect();
        left_open.sort();
        for key in left_open {
            shell.load.opened(&key.organization);
            owner.decide(shell, &Input::TakenOver(key), clock::now(), None)?;
        }
        Ok(owner)
    }

    /// Where reading `requests` begins, when the journal says so.
    pub fn resume_offset(&self) -> Option<i64> {
        self.state.last_source_offset.map(|offset| offset + 1)
    }

    /// Takes the next record in offset order.
    pub fn take(&mut self, shell: &mut Shell, record: Record<'_>) -> Result<(), Lost> {
        if self.draining {
            return Ok(());
        }
        if self.obstacle.is_some() || !self.held.is_empty() || !self.outbox.is_empty() {
            self.held.push_back(Held::of(record));
            return Ok(());
        }
        if let Taken::Waits(obstacle) = self.decide_record(shell, record)? {
            self.held.push_back(Held::of(record));
            self.obstacle = Some(obstacle);
        }
        Ok(())
    }

    /// Whether so much waits that the partition should be paused.
    pub fn is_congested(&self) -> bool {
        self.held.len() >= HELD_RECORDS_MAX
    }

    /// Nothing is under way: no call, no unacknowledged commit.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.calls.is_empty() && self.outbox.is_empty() && self.answers.is_empty()
    }

    /// Takes the acknowledgement of the next commit and runs its commands.
    pub fn acknowledged(&mut self, shell: &mut Shell, outcome: Result<i64, KafkaError>) -> Result<(), Lost> {
        let found = outcome.map_err(Lost::Delivery)?;
        let expected = self.next_offset;
        let Some(pending) = self.pending.pop_front().filter(|_| found == expected) else {
            return Err(Lost::Gap { expected, found });
        };
        self.next_offset += 1;
        self.decided = self.decided.max(pending.source_offset);
        for command in pending.commands {
            self.run(shell, command)?;
        }
        self.retry(shell)
    }

    /// A dead letter or a forwarded record is acknowledged: the record that waited for it is skipped.
    pub fn disposed(&mut self, shell: &mut Shell, outcome: Result<i64, KafkaError>) -> Result<(), Lost> {
        outcome.map_err(Lost::Delivery)?;
        let Some(Obstacle::Disposal(reason)) = self.obstacle.take() else { return Ok(()) };
        let Some(held) = self.held.pop_front() else { return Ok(()) };
        self.decide(shell, &Input::Skip { source_offset: held.offset, reason }, held.at, None)?;
        self.decide_held(shell)
    }

    /// The schema that the first held record waits for was fetched, or there is none.
    pub fn learned(&mut self, shell: &mut Shell, id: u32, outcome: &Result<(), codec::Error>) -> Result<(), Lost> {
        if !matches!(self.obstacle, Some(Obstacle::Schema(wanted)) if wanted == id) {
            return Ok(());
        }
        self.obstacle = None;
        match outcome {
            Ok(()) => self.decide_held(shell),
            Err(error) => {
                let Some(held) = self.held.pop_front() else { return Ok(()) };
                let obstacle = self.dead_letter(shell, held.record(), "unknown_schema", &error.to_string())?;
                self.held.push_front(held);
                self.obstacle = Some(obstacle);
                Ok(())
            }
        }
    }

    /// A provider call has ended.
    pub fn reported(&mut self, shell: &mut Shell, report: AttemptReport) -> Result<(), Lost> {
        self.calls.remove(&report.key);
        self.decide(shell, &Input::AttemptEnded(report), clock::now(), None)
    }

    /// What the full producer did not take is tried again, and what waited behind it.
    pub fn retry(&mut self, shell: &mut Shell) -> Result<(), Lost> {
        while let Some((organization, payload)) = self.outbox.front() {
            if !shell.append(self.partition, organization.as_ref(), payload, self.epoch)? {
                return Ok(());
            }
            self.outbox.pop_front();
        }
        while let Some((partition, key, payload)) = self.answers.front() {
            if !shell.answer(*partition, key, payload, self.epoch)? {
                return Ok(());
            }
            self.answers.pop_front();
        }
        self.decide_held(shell)
    }

    /// The offset to give to the consumer group, when there is a new one.
    pub fn offset_to_commit(&mut self) -> Option<i64> {
        let next = self.decided.map(|offset| offset + 1).filter(|next| self.committed.is_none_or(|done| done < *next));
        self.committed = next.or(self.committed);
        next
    }

    /// Ends the tenure: no command runs any more.
    pub fn abandon(self, shell: &mut Shell) {
        for call in self.calls.values() {
            call.abort.abort();
        }
        for (key, _) in self.state.open_requests() {
            shell.load.closed(&key.organization);
        }
    }

    fn decide_held(&mut self, shell: &mut Shell) -> Result<(), Lost> {
        while self.obstacle.is_none() && self.outbox.is_empty() && !self.draining {
            let Some(held) = self.held.pop_front() else { return Ok(()) };
            if let Taken::Waits(obstacle) = self.decide_record(shell, held.record())? {
                self.held.push_front(held);
                self.obstacle = Some(obstacle);
            }
        }
        Ok(())
    }

    fn decide_record(&mut self, shell: &mut Shell, record: Record<'_>) -> Result<Taken, Lost> {
        if self.state.last_source_offset.is_some_and(|last| record.offset <= last) {
            return Ok(Taken::Decided);
        }
        let request = match shell.codec.decode::<RequestRecord>(record.payload) {
            Ok(decoded) => Request::try_from(decoded).map_err(|e| ("unknown_kind", e.to_string())),
            Err(codec::Error::UnknownSchema { id }) => {
                shell.learn(id, self.epoch);
                return Ok(Taken::Waits(Obstacle::Schema(id)));
            }
            Err(error) => Err(("undecodable", error.to_string())),
        };
        let request = match request {
            Ok(request) => request,
            Err((code, detail)) => return self.dead_letter(shell, record, code, &detail).map(Taken::Waits),
        };
        let organization = match &request {
            Request::Chat(chat) => &chat.organization,
            Request::Cancel(cancel) => &cancel.organization,
        };
        if let Some(partition) = self.elsewhere(shell, organization) {
            shell.forward(partition, organization, record, self.epoch)?;
            shell.metrics.misplaced.inc();
            return Ok(Taken::Waits(Obstacle::Disposal("misplaced")));
        }
        match &request {
            Request::Chat(chat) => {
                let content = content::read(&chat.body);
                let input = Input::Chat { source_offset: record.offset, received_at: record.at, chat, content };
                self.decide(shell, &input, record.at, Some(&chat.body))?;
            }
            Request::Cancel(cancel) => {
                let input = Input::Cancel { source_offset: record.offset, received_at: record.at, cancel };
                self.decide(shell, &input, record.at, None)?;
            }
        }
        Ok(Taken::Decided)
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
    ) -> Result<Obstacle, Lost> {
        let kept = record.payload.len().min(shell.dead_letter_bytes_max);
        let letter = DeadLetter {
            topic: shell.topics.requests.clone(),
            partition: self.partition,
            offset: record.offset,
            at: record.at,
            reason: code.to_owned(),
            detail: detail.to_owned(),
            key: record.key.map(Bytes::copy_from_slice),
            payload: Some(Bytes::copy_from_slice(&record.payload[..kept])),
            payload_bytes: record.payload.len() as i64,
        };
        tracing::warn!(
            kafka.partition = self.partition,
            kafka.offset = record.offset,
            reason = code,
            "record put into dead-letters"
        );
        shell.metrics.dead.inc();
        shell.dead_letter(self.partition, record.key.unwrap_or_default(), &letter, self.epoch)?;
        Ok(Obstacle::Disposal(code))
    }

    fn decide(
        &mut self,
        shell: &mut Shell,
        input: &Input<'_>,
        at: Timestamp,
        body: Option<&Bytes>,
    ) -> Result<(), Lost> {
        let control = shell.control.tables();
        let organization = match input {
            Input::Chat { chat, .. } => Some(&chat.organization),
            Input::Cancel { .. } | Input::Skip { .. } | Input::AttemptEnded(_) | Input::TakenOver(_) => None,
        };
        let bounds = shell.bounds;
        let context = Context {
            at: self.state.clock.max(at),
            tenure: self.tenure,
            control: &control,
            capacity: shell.load.room_for(organization),
            bounds: &bounds,
        };
        let mut decision: Decision = decide(&self.state, input, &context);
        if decision.facts.is_empty() {
            return Ok(());
        }
        let commands = std::mem::take(&mut decision.commands);
        let commit = commit(&mut decision, self.next_sequence, &context);
        evolve(&mut self.state, &commit);
        self.next_sequence += 1;
        self.account(shell, &commit, &commands, body);
        self.pending.push_back(Pending { source_offset: commit.source_offset, commands });
        let organization = commit.organization.clone();
        let record = JournalRecord::from(Entry::Commit(commit));
        shell.codec.encode(&record, &mut self.payload).map_err(|e| Lost::Write(e.to_string()))?;
        if !self.outbox.is_empty() || !shell.append(self.partition, organization.as_ref(), &self.payload, self.epoch)? {
            self.outbox.push_back((organization, self.payload.clone()));
        }
        Ok(())
    }

    /// Keeps the process's load, the bodies and the counters in step with the facts.
    fn account(&mut self, shell: &mut Shell, commit: &Commit, commands: &[Command], body: Option<&Bytes>) {
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return };
        for fact in &commit.facts {
            match fact {
                Fact::RequestAdmitted(_) => {
                    shell.load.opened(organization);
                    shell.metrics.admitted.inc();
                }
                Fact::RequestRefused(_) => {
                    shell.metrics.refused.inc();
                }
                Fact::RequestSettled(settled) => {
                    shell.load.closed(organization);
                    shell.metrics.settled(settled.outcome);
                    self.bodies.remove(&key_of(organization, &request.request_id));
                }
                Fact::RequestRouted(_)
                | Fact::AttemptStarted(_)
                | Fact::AttemptEnded(_)
                | Fact::CancelRequested(_)
                | Fact::RecordSkipped(_) => {}
            }
        }
        let call = commands.iter().find_map(|command| match command {
            Command::Call(call) => Some(call),
            Command::Abort(_) | Command::Answer { .. } => None,
        });
        if let (Some(call), Some(body)) = (call, body) {
            self.bodies.insert(call.key.clone(), body.clone());
        }
    }

    fn run(&mut self, shell: &mut Shell, command: Command) -> Result<(), Lost> {
        match command {
            Command::Call(call) => self.call(shell, *call),
            Command::Abort(key) => {
                if let Some(call) = self.calls.get(&key) {
                    call.cancel.cancel();
                }
            }
            Command::Answer { partition, frame } => {
                let key = RequestKey { organization: frame.organization.clone(), request: frame.request_id.clone() };
                let record = crate::records::responses::ResponseRecord::from(*frame);
                shell.codec.encode(&record, &mut self.payload).map_err(|e| Lost::Write(e.to_string()))?;
                if !self.answers.is_empty() || !shell.answer(partition, &key, &self.payload, self.epoch)? {
                    self.answers.push_back((partition, key, self.payload.clone()));
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, shell: &mut Shell, call: ProviderCall) {
        // A body is missing only when the request was settled meanwhile.
        let Some(body) = self.bodies.get(&call.key).cloned() else { return };
        let (key, cancel) = (call.key.clone(), CancellationToken::new());
        if self.state.open(&key).is_some_and(|open| open.cancelled) {
            cancel.cancel();
        }
        let running = Arc::clone(&shell.calls).run(self.tenure, call, body, cancel.clone(), shell.reports.clone());
        let abort = shell.tasks.spawn(running);
        self.calls.insert(key, CallHandle { cancel, abort });
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
}
