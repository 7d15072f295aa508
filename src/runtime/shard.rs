//! The processor's one task: owns all its partitions, one loop over acknowledgements, reports, records and ticks.
//!
//! Each round drains every source, decides all of it, and runs what was acknowledged. Rebalance callbacks run inside the
//! consumer's poll: they stash the event and return, and the loop restores, drains and (un)assigns in its own time.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream as _;
use rdkafka::consumer::MessageStream;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::calls::{Calls, Report};
use super::checkpoints;
use super::control::Control;
use super::fingerprint::Fingerprints;
use super::kafka;
use super::lag::Lag;
use super::member::{self, Change, Member, Position, Received};
use super::metrics::{ProcessorMetrics, ProviderMetrics};
use super::owner::{Lost, Owner, Record};
use super::publisher::{Deliveries, Delivery, Publisher};
use super::refill::Refill;
use super::restore::{self, Restore, Takeover};
use super::room::Room;
use super::shelf::Shelf;
use super::shell::{Kept, Learned, Load, Shell, Tag, Topics, Understood, readings};
use super::stillness::Stillness;
use crate::codec::Codec;
use crate::config::{self, millis};
use crate::domain::ids::partition_of;
use crate::failpoint::{Failpoint, reached};
use crate::processor::health::Deployments;
use crate::processor::intent::Builtin;
use crate::processor::{Bounds, tokens};
use crate::provider::transport::Transport;
use crate::records::Topic;
use crate::telemetry::health::Health;
use crate::telemetry::{Metrics, Traces};

/// Records and reports that one round takes.
const ROUND_MAX: usize = 128;
/// Wait before a failed restore is tried again.
const RESTORE_RETRY: Duration = Duration::from_millis(500);
/// The name under which the shard reports its health, and of its consumer group.
pub const COMPONENT: &str = "processor";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("processor: the producer is broken: {0}")]
    Producer(KafkaError),
    #[error("processor: {0}")]
    Member(#[from] member::Error),
    #[error("processor: {0}")]
    Transport(String),
    #[error("processor: the tokenizer's table cannot be read: {0}")]
    Tokenizer(String),
}

/// What the shard is made of.
pub struct Options {
    pub config: config::Config,
    pub partitions: u32,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub control: Control,
    pub deployments: Deployments,
    pub health: Health,
    pub metrics: Metrics,
    pub traces: Traces,
    pub cancel: CancellationToken,
}

/// What became of a restore.
type Restored = (i32, Result<Takeover, restore::Error>);

/// Everything that woke the loop.
#[derive(Default)]
struct Round<'a> {
    acknowledgements: Vec<Delivery>,
    reports: Vec<Report>,
    restored: Vec<Restored>,
    learned: Vec<Learned>,
    understood: Vec<Understood>,
    kept: Vec<Kept>,
    records: Vec<BorrowedMessage<'a>>,
    errors: Vec<KafkaError>,
    change: Option<Change>,
    tick: bool,
    cancelled: bool,
}

struct Channels {
    reports: mpsc::Receiver<Report>,
    learned: mpsc::Receiver<Learned>,
    understood: mpsc::Receiver<Understood>,
    kept: mpsc::Receiver<Kept>,
    restored: mpsc::Receiver<Restored>,
}

struct Shard {
    member: Arc<Member>,
    config: config::Config,
    shell: Shell,
    health: Health,
    restore: Restore,
    restored: mpsc::Sender<Restored>,
    restores: JoinSet<()>,
    /// By partition, the end of the restore that was begun last.
    giving_up: HashMap<i32, CancellationToken>,
    owners: BTreeMap<i32, Owner>,
    /// Partition by epoch, for acknowledgements.
    epochs: HashMap<u64, i32>,
    next_epoch: u64,
    /// By partition, the record that ended the last tenure because the decision on it could not be written.
    undecidable: HashMap<i32, (i64, String)>,
    /// Partitions that are assigned to us, whether restored or not.
    mine: Vec<i32>,
    /// Partitions that an assignment waits for, and since when.
    restoring: BTreeMap<i32, Instant>,
    /// Partitions whose journal cannot be understood, and why; the others go on.
    closed: BTreeMap<i32, String>,
    /// Partitions that the consumer has.
    assigned: Vec<i32>,
    paused: Vec<i32>,
    revocation: Option<(Vec<i32>, Instant)>,
    stopping: Option<Instant>,
    offsets_due: Instant,
}

/// Runs the processor until `cancel`, then finishes what is under way within the configured bound.
pub async fn run(options: Options) -> Result<(), Error> {
    let transport = Transport::new(&options.config.providers).map_err(|e| Error::Transport(e.to_string()))?;
    tokio::task::spawn_blocking(tokens::load).await.map_err(|e| Error::Tokenizer(e.to_string()))?;
    let kafka = options.config.kafka.clone();
    let requests = kafka::topic_name(&kafka, Topic::Requests);
    let client = kafka::member(&kafka, kafka::hot_consumer(&kafka, COMPONENT), &options.config.instance);
    let lag = Lag::register(&options.metrics, COMPONENT);
    let member = Arc::new(Member::join(&client, &requests, lag)?);
    options.health.missing(COMPONENT, "no partition is assigned yet");
    let cancel = options.cancel.clone();
    let deliveries = Deliveries::new();
    let (mut shard, mut channels) = Shard::new(options, transport, member.clone(), deliveries.clone());
    let mut stream = member.stream();
    let mut ticks = tokio::time::interval(millis(shard.config.processor.tick_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cancelled = Box::pin(cancel.cancelled_owned());
    loop {
        let stopping = shard.stopping.is_some();
        let round = std::future::poll_fn(|cx| {
            let mut round = poll_round(cx, &deliveries, &mut channels, &mut stream);
            round.change = shard.member.try_changed();
            round.tick = ticks.poll_tick(cx).is_ready();
            round.cancelled = !stopping && cancelled.as_mut().poll(cx).is_ready();
            if round.is_empty() { Poll::Pending } else { Poll::Ready(round) }
        })
        .await;
        shard.take(round)?;
        if shard.is_done() {
            break;
        }
    }
    drop(stream);
    let positions = shard.leave();
    if let Some(member) = Arc::into_inner(member) {
        member.leave(&positions).await;
    }
    Ok(())
}

fn poll_round<'a>(
    cx: &mut Context<'_>,
    deliveries: &Deliveries,
    channels: &mut Channels,
    stream: &mut MessageStream<'a, member::Context>,
) -> Round<'a> {
    let mut round = Round::default();
    let _ = deliveries.poll_drain(cx, &mut round.acknowledgements);
    let _ = channels.reports.poll_recv_many(cx, &mut round.reports, ROUND_MAX);
    let _ = channels.restored.poll_recv_many(cx, &mut round.restored, ROUND_MAX);
    let _ = channels.learned.poll_recv_many(cx, &mut round.learned, ROUND_MAX);
    let _ = channels.understood.poll_recv_many(cx, &mut round.understood, ROUND_MAX);
    let _ = channels.kept.poll_recv_many(cx, &mut round.kept, ROUND_MAX);
    while round.records.len() < ROUND_MAX {
        match Pin::new(&mut *stream).poll_next(cx) {
            Poll::Ready(Some(Ok(message))) => round.records.push(message),
            Poll::Ready(Some(Err(error))) => round.errors.push(error),
            Poll::Ready(None) | Poll::Pending => break,
        }
    }
    if round.records.len() == ROUND_MAX {
        // There may be more that nothing would wake us for.
        cx.waker().wake_by_ref();
    }
    round
}

impl Round<'_> {
    fn is_empty(&self) -> bool {
        self.acknowledgements.is_empty()
            && self.reports.is_empty()
            && self.restored.is_empty()
            && self.learned.is_empty()
            && self.understood.is_empty()
            && self.kept.is_empty()
            && self.records.is_empty()
            && self.errors.is_empty()
            && self.change.is_none()
            && !self.tick
            && !self.cancelled
    }
}

impl Shard {
    fn new(
        options: Options,
        transport: Transport,
        member: Arc<Member>,
        deliveries: Arc<Deliveries>,
    ) -> (Self, Channels) {
        let Options { config, partitions, codec, publisher, control, deployments, health, metrics, traces, .. } =
            options;
        let (reports, reports_in) = mpsc::channel(config.processor.calls_max.max(1));
        let (learned, learned_in) = mpsc::channel(partitions.max(1) as usize);
        let (understood, understood_in) = mpsc::channel(partitions.max(1) as usize);
        let (kept, kept_in) = mpsc::channel(partitions.max(1) as usize);
        let (restored, restored_in) = mpsc::channel(partitions.max(1) as usize);
        let counters = ProcessorMetrics::register(&metrics);
        let bodies = Room::new(config.processor.bodies_bytes_max);
        let name = |topic| kafka::topic_name(&config.kafka, topic);
        let shelf = Shelf::new(config.cache.bytes_max);
        if config.processor.fingerprint_key.is_none() {
            tracing::warn!(
                "processor.fingerprint_key is not set: who reads the journal can test guesses of short prompts, and who writes \
                 to `cache` can forge answers"
            );
        }
        let fingerprints = Fingerprints::new(config.processor.fingerprint_key.as_ref());
        let shell = Shell {
            calls: Arc::new(Calls::new(
                transport,
                &config,
                codec.clone(),
                publisher.clone(),
                ProviderMetrics::register(&metrics),
            )),
            codec: codec.clone(),
            publisher: publisher.clone(),
            control,
            deployments,
            deliveries,
            reports,
            learned,
            understood,
            readings: readings(),
            kept,
            tasks: JoinSet::new(),
            topics: Topics {
                requests: name(Topic::Requests),
                journal: name(Topic::Journal),
                responses: name(Topic::Responses),
                dead_letters: name(Topic::DeadLetters),
                cache: name(Topic::Cache),
            },
            bounds: Bounds {
                partitions,
                body_bytes_max: config.processor.body_bytes_max,
                timeout: millis(config.processor.timeout_ms),
                timeout_max: millis(config.processor.timeout_max_ms),
            },
            fingerprints: fingerprints.clone(),
            classifier: Arc::new(Builtin::new()),
            checkpoints: checkpoints::Writer {
                codec: codec.clone(),
                publisher: publisher.clone(),
                topic: name(Topic::State),
            },
            checkpoint_distance: i64::try_from(config.processor.checkpoint_commits).unwrap_or(i64::MAX),
            dead_letter_bytes_max: config.processor.dead_letter_bytes_max,
            record_bytes_max: config.kafka.record_bytes_max,
            load: Load::new(
                config.processor.calls_max,
                config.processor.organization_share_percent,
                &bodies,
                &counters,
            ),
            held: Room::new(config.processor.held_bytes_max),
            shelf: shelf.clone(),
            arriving: Room::new(config.cache.arriving_bytes_max),
            cache: config.cache.clone(),
            refill: Refill {
                kafka: config.kafka.clone(),
                codec: codec.clone(),
                publisher: publisher.clone(),
                fingerprints: fingerprints.clone(),
                shelf,
                topic: name(Topic::Cache),
                dead_letters: name(Topic::DeadLetters),
                dead_letter_bytes_max: config.processor.dead_letter_bytes_max,
            },
            stillness: Stillness::new(millis(config.kafka.session_timeout_ms)),
            metrics: counters.clone(),
            traces,
        };
        let restore = Restore {
            kafka: config.kafka.clone(),
            codec,
            publisher,
            owner: config.instance.clone(),
            open_max: config.processor.calls_max,
            room: bodies,
            metrics: counters,
        };
        let shard = Self {
            member,
            shell,
            health,
            restore,
            restored,
            restores: JoinSet::new(),
            giving_up: HashMap::new(),
            owners: BTreeMap::new(),
            epochs: HashMap::new(),
            next_epoch: 1,
            undecidable: HashMap::new(),
            mine: Vec::new(),
            restoring: BTreeMap::new(),
            closed: BTreeMap::new(),
            assigned: Vec::new(),
            paused: Vec::new(),
            revocation: None,
            stopping: None,
            offsets_due: Instant::now(),
            config,
        };
        let channels = Channels {
            reports: reports_in,
            learned: learned_in,
            understood: understood_in,
            kept: kept_in,
            restored: restored_in,
        };
        (shard, channels)
    }

    /// One round: acknowledgements first, since they free what the rest waits for.
    fn take(&mut self, round: Round<'_>) -> Result<(), Error> {
        if self.shell.stillness.begin_round() {
            tracing::warn!("this process stood still, and its session may be over");
            self.owners.values_mut().for_each(Owner::stood_still);
        }
        for Delivery { tag, outcome } in round.acknowledgements {
            self.acknowledged(tag, outcome);
        }
        for report in round.reports {
            let organization = report.key().organization.as_str();
            let partition = partition_of(organization, self.shell.bounds.partitions);
            self.with_owner(partition, |owner, shell| owner.reported(shell, report));
        }
        for (id, epoch, outcome) in round.learned {
            if let Some(partition) = self.epochs.get(&epoch).copied() {
                self.with_owner(partition, |owner, shell| owner.learned(shell, id, &outcome));
            }
        }
        for (epoch, reading) in round.understood {
            if let Some(partition) = self.epochs.get(&epoch).copied() {
                self.with_owner(partition, |owner, shell| owner.understood(shell, reading));
            }
        }
        for (epoch, slots, outcome) in round.kept {
            let owner = self.epochs.get(&epoch).and_then(|partition| self.owners.get_mut(partition));
            if let Some(owner) = owner {
                owner.kept(&self.shell, slots, outcome);
            }
        }
        let mut holding = Vec::new();
        for message in &round.records {
            let received = Received::of(message);
            let record =
                Record { offset: received.offset, at: received.at, key: received.key, payload: received.payload };
            self.with_owner(received.partition, |owner, shell| {
                owner.take(shell, record)?;
                if owner.is_congested() && !holding.contains(&received.partition) {
                    holding.push(received.partition);
                }
                Ok(())
            });
        }
        for partition in holding {
            self.pause(partition);
        }
        for error in round.errors {
            self.member.check(error)?;
        }
        for (partition, restored) in round.restored {
            self.restored(partition, restored)?;
        }
        if let Some(change) = round.change {
            self.rebalanced(change);
        }
        if round.cancelled {
            tracing::info!(open = self.owners.len(), "processor stops: finishing what is under way");
            self.stopping = Some(Instant::now() + millis(self.config.processor.drain_ms));
            self.owners.values_mut().for_each(|owner| owner.draining = true);
        }
        if round.tick {
            self.tick()?;
        }
        while self.shell.tasks.try_join_next().is_some() {}
        while self.restores.try_join_next().is_some() {}
        self.finish_revocation()
    }

    fn acknowledged(&mut self, tag: u64, outcome: Result<i64, KafkaError>) {
        let (epoch, kind) = Tag::of(tag);
        let Some(partition) = self.epochs.get(&epoch).copied() else { return };
        match kind {
            Tag::Commit => self.with_owner(partition, |owner, shell| owner.acknowledged(shell, outcome)),
            Tag::Disposal => self.with_owner(partition, |owner, shell| owner.disposed(shell, outcome)),
            // The next tenure publishes it again.
            // It is here in any case, and asked anew where it is not.
            Tag::Cache => {
                if let Err(error) = outcome {
                    tracing::warn!(kafka.partition = partition, %error, "an answer is kept here alone");
                }
            }
            Tag::Answer => self.with_owner(partition, |_, _| outcome.map(|_| ()).map_err(Lost::Delivery)),
        }
    }

    /// Runs a step of an owner; one that fails loses its tenure and is restored.
    fn with_owner(&mut self, partition: i32, step: impl FnOnce(&mut Owner, &mut Shell) -> Result<(), Lost>) {
        let Some(owner) = self.owners.get_mut(&partition) else { return };
        if let Err(lost) = step(owner, &mut self.shell) {
            tracing::warn!(kafka.partition = partition, tenure = owner.tenure(), %lost, "tenure ended; restoring");
            self.shell.metrics.tenures_lost.inc();
            // Time for the group to say whose the partition is now.
            let wait = match lost {
                Lost::StoodStill => millis(self.config.kafka.session_timeout_ms) / 2,
                _ => Duration::ZERO,
            };
            if let Lost::Unwritable { source_offset: Some(offset), detail } = lost {
                self.undecidable.insert(partition, (offset, detail));
            }
            self.close(partition);
            self.give_away(&[partition]);
            if self.mine.contains(&partition) && self.stopping.is_none() {
                self.begin_restore(partition, wait);
            }
        }
    }

    fn close(&mut self, partition: i32) {
        if let Some(owner) = self.owners.remove(&partition) {
            self.epochs.remove(&owner.epoch);
            owner.abandon(&mut self.shell);
        }
        self.shell.metrics.partitions.set(self.owners.len() as i64);
    }

    fn rebalanced(&mut self, change: Change) {
        match change {
            Change::Assigned(partitions) => {
                tracing::info!(?partitions, "partitions assigned");
                for partition in &partitions {
                    if !self.mine.contains(partition) {
                        self.mine.push(*partition);
                    }
                    if self.stopping.is_none() {
                        self.begin_restore(*partition, Duration::ZERO);
                    }
                }
                if partitions.is_empty() {
                    // An empty share of the group is an assignment too, and has to be answered.
                    self.member.assign(&[]);
                }
            }
            Change::Revoked(partitions) => {
                tracing::info!(?partitions, "partitions revoked");
                self.mine.retain(|partition| !partitions.contains(partition));
                self.restoring.retain(|partition, _| !partitions.contains(partition));
                self.closed.retain(|partition, _| !partitions.contains(partition));
                for partition in &partitions {
                    if let Some(owner) = self.owners.get_mut(partition) {
                        owner.draining = true;
                    }
                    // One that still waits must not take from the next owner what is no longer ours.
                    if let Some(restore) = self.giving_up.remove(partition) {
                        restore.cancel();
                    }
                }
                let until = Instant::now() + millis(self.config.processor.drain_ms);
                let (mut all, _) = self.revocation.take().unwrap_or((Vec::new(), until));
                all.extend(partitions);
                self.revocation = Some((all, until));
            }
        }
        self.tell_health();
    }

    fn tell_health(&self) {
        self.shell.metrics.restoring.set(self.restoring.len() as i64);
        self.shell.metrics.closed.set(self.closed.len() as i64);
        let closed = self.closed.iter().map(|(partition, why)| format!("partition {partition} is closed: {why}"));
        match closed.collect::<Vec<_>>().join("; ") {
            _ if !self.restoring.is_empty() => {
                self.health.missing(COMPONENT, format!("restoring {} partitions", self.restoring.len()));
            }
            closed if closed.is_empty() => self.health.ready(COMPONENT),
            closed if self.owners.is_empty() => self.health.missing(COMPONENT, closed),
            closed => self.health.degraded(COMPONENT, closed),
        }
    }

    fn begin_restore(&mut self, partition: i32, wait: Duration) {
        self.restoring.entry(partition).or_insert_with(Instant::now);
        self.closed.remove(&partition);
        self.tell_health();
        let (restore, restored, control) = (self.restore.clone(), self.restored.clone(), self.shell.control.clone());
        let handle = tokio::runtime::Handle::current();
        let given_up = CancellationToken::new();
        if let Some(earlier) = self.giving_up.insert(partition, given_up.clone()) {
            earlier.cancel();
        }
        self.restores.spawn(async move {
            let Some(()) = given_up.run_until_cancelled(tokio::time::sleep(wait)).await else { return };
            let taken = tokio::task::spawn_blocking(move || restore.take_over(partition, &given_up, &handle)).await;
            let Ok(taken) = taken else { return };
            if let Ok(takeover) = &taken {
                control.reached(takeover.tenure.state().control_offset.unwrap_or(-1)).await;
            }
            let _ = restored.send((partition, taken)).await;
        });
    }

    fn restored(&mut self, partition: i32, restored: Result<Takeover, restore::Error>) -> Result<(), Error> {
        let Some(since) = self.restoring.get(&partition).copied() else { return Ok(()) };
        match restored {
            Ok(takeover) => {
                self.restoring.remove(&partition);
                let epoch = self.next_epoch;
                self.next_epoch += 1;
                let (tenure, begin) = (takeover.tenure.id(), takeover.begin);
                tracing::info!(kafka.partition = partition, tenure, begin, "partition taken over");
                self.shell.metrics.restored.inc_by(u64::try_from(tenure + 1 - begin).unwrap_or(0));
                let undecidable = self.undecidable.remove(&partition);
                match Owner::begin(takeover, epoch, undecidable, &mut self.shell) {
                    Ok(owner) => {
                        reached(Failpoint::TakenOver);
                        self.shell.metrics.restores.observe(since.elapsed().as_secs_f64());
                        self.epochs.insert(epoch, partition);
                        let position = Position { partition, offset: owner.resume_offset(), note: String::new() };
                        self.owners.insert(partition, owner);
                        self.assigned.push(partition);
                        self.member.assign(&[position]);
                    }
                    Err(lost) => {
                        tracing::warn!(kafka.partition = partition, %lost, "tenure could not begin; restoring");
                        self.begin_restore(partition, RESTORE_RETRY);
                    }
                }
            }
            // The restore after it is under way.
            Err(restore::Error::GivenUp { .. }) => return Ok(()),
            Err(error) if error.is_final() => {
                tracing::error!(kafka.partition = partition, %error, "partition stays closed; the others go on");
                self.restoring.remove(&partition);
                self.shell.metrics.restore_failures.inc();
                self.closed.insert(partition, error.to_string());
                // The assignment has to be answered also when nothing of it can be read.
                self.member.assign(&[]);
            }
            Err(error) => {
                tracing::warn!(kafka.partition = partition, %error, "restore failed; trying again");
                self.shell.metrics.restore_failures.inc();
                self.begin_restore(partition, RESTORE_RETRY);
            }
        }
        self.shell.metrics.partitions.set(self.owners.len() as i64);
        self.tell_health();
        Ok(())
    }

    fn pause(&mut self, partition: i32) {
        if !self.paused.contains(&partition) {
            self.member.pause(partition);
            self.paused.push(partition);
            self.shell.metrics.paused.set(self.paused.len() as i64);
        }
    }

    fn tick(&mut self) -> Result<(), Error> {
        let partitions: Vec<i32> = self.owners.keys().copied().collect();
        for partition in partitions {
            self.with_owner(partition, |owner, shell| owner.tick(shell));
            let congested = self.owners.get(&partition).is_some_and(Owner::is_congested);
            match (congested, self.paused.contains(&partition)) {
                (true, false) => self.pause(partition),
                (false, true) => {
                    self.member.resume(partition);
                    self.paused.retain(|paused| *paused != partition);
                    self.shell.metrics.paused.set(self.paused.len() as i64);
                }
                _ => {}
            }
        }
        let distance = self.owners.values().map(Owner::checkpoint_distance).max();
        self.shell.metrics.checkpoint_distance.set(distance.unwrap_or(0));
        if let Some(fatal) = self.shell.publisher.fatal_error() {
            return Err(Error::Producer(fatal));
        }
        if self.offsets_due <= Instant::now() {
            self.offsets_due = Instant::now() + millis(self.config.processor.offset_commit_ms);
            self.commit_offsets();
        }
        Ok(())
    }

    /// The journal is the authority; the group's offsets are for lag, and the next commit repeats what failed.
    fn commit_offsets(&mut self) {
        let positions = self.positions();
        if positions.is_empty() {
            return;
        }
        reached(Failpoint::BeforeOffsets);
        self.member.commit(&positions);
        reached(Failpoint::AfterOffsets);
    }

    fn positions(&mut self) -> Vec<Position> {
        let next = |(partition, owner): (&i32, &mut Owner)| {
            let offset = owner.offset_to_commit()?;
            Some(Position { partition: *partition, offset: Some(offset), note: String::new() })
        };
        self.owners.iter_mut().filter_map(next).collect()
    }

    /// Gives revoked partitions away once nothing is under way on them, or when the bound has passed.
    fn finish_revocation(&mut self) -> Result<(), Error> {
        let Some((partitions, until)) = self.revocation.take() else { return Ok(()) };
        let idle = partitions.iter().all(|p| self.owners.get(p).is_none_or(Owner::is_idle));
        if !idle && Instant::now() < until {
            self.revocation = Some((partitions, until));
            return Ok(());
        }
        self.commit_offsets();
        for partition in &partitions {
            self.close(*partition);
        }
        self.give_away(&partitions);
        Ok(())
    }

    fn give_away(&mut self, partitions: &[i32]) {
        let had: Vec<i32> = partitions.iter().copied().filter(|p| self.assigned.contains(p)).collect();
        self.assigned.retain(|partition| !had.contains(partition));
        self.paused.retain(|partition| !had.contains(partition));
        self.shell.metrics.paused.set(self.paused.len() as i64);
        self.member.unassign(&had);
    }

    fn is_done(&self) -> bool {
        match self.stopping {
            Some(until) => self.owners.values().all(Owner::is_idle) || Instant::now() >= until,
            None => false,
        }
    }

    /// Ends what is left, and gives the last offsets.
    fn leave(mut self) -> Vec<Position> {
        let positions = self.positions();
        for partition in self.owners.keys().copied().collect::<Vec<_>>() {
            self.close(partition);
        }
        self.health.forget(COMPONENT);
        positions
    }
}
