//! Who is served from the log, and what is read next: laggards, repeats whose original's answer is there, and streams that
//! are gone on with.
//!
//! A partition is read in sweeps. A sweep begins where the first hungry slot goes on, gives each frame to all slots that
//! take part, and never waits for one: a slot that is full keeps its position and takes part in a later sweep. At the end
//! of the log it goes on with what is written, as long as somebody follows, and begins anew for those who are behind.
//! Nothing here touches Kafka; `reader` does.

pub mod reader;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::error::Refusal;
use super::slot::{Need, Slot, Step};
use super::sse::Position;
use crate::domain::{RequestId, RequestKey, Timestamp};
use crate::records::responses::Frame;

/// Records after which a sweep that has not reached the end begins anew for those who are behind.
const SWEEP_RECORDS_MAX: u32 = 100_000;
/// Records that are rather read than jumped over: a jump is a fetch more.
const JUMP_RECORDS_MIN: i64 = 1_000;

/// All slots that are served from the log. Their number is bounded by that of the requests under way.
pub struct Readers {
    hunger: Arc<Notify>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Those of which it is still to be found out where in the log they begin.
    unlocated: Vec<Arc<Slot>>,
    partitions: HashMap<i32, Partition>,
}

#[derive(Default)]
struct Partition {
    by_request: HashMap<RequestId, Vec<Arc<Slot>>>,
    /// Those that go on behind the frame at this offset, if it is theirs.
    sought: HashMap<i64, Vec<Arc<Slot>>>,
}

/// How far a partition has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// Offset of the next record.
    pub next: i64,
    /// The end of the log was reached.
    pub ended: bool,
    pub records: u32,
}

impl Sweep {
    pub const fn from(offset: i64) -> Self {
        Self { next: offset, ended: false, records: 0 }
    }
}

/// What to do with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Read on.
    Stay,
    /// Begin a sweep at this offset.
    Read(i64),
    /// Nobody needs anything.
    Leave,
}

/// What a record led to.
#[derive(Debug, Default, PartialEq)]
pub struct Given {
    /// Some slot left the sweep.
    pub left: bool,
    /// Requests that are to be cancelled, since their answers are broken.
    pub broken: Vec<RequestKey>,
}

impl Readers {
    pub fn new(hunger: Arc<Notify>) -> Self {
        Self { hunger, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when some slot may need something.
    pub async fn hungry(&self) {
        self.hunger.notified().await;
    }

    /// A laggard, whose place in the log is known.
    pub fn add(&self, slot: Arc<Slot>) {
        self.lock().insert(slot);
        self.hunger.notify_one();
    }

    /// A reader of an answer whose place in the log is still to be found.
    pub fn locate(&self, slot: Arc<Slot>) {
        self.lock().unlocated.push(slot);
        self.hunger.notify_one();
    }

    /// The slots whose place is to be found; they are given back by [`located`](Self::located) or failed.
    pub fn unlocated(&self) -> Vec<Arc<Slot>> {
        std::mem::take(&mut self.lock().unlocated)
    }

    /// The partition of the slot has these offsets, and its answer begins at `since` at the earliest.
    pub fn located(&self, slot: Arc<Slot>, log: Range<i64>, since: i64) {
        slot.located(log, since);
        self.lock().insert(slot);
    }

    /// What is before this offset is no longer kept.
    pub fn cut(&self, partition: i32, first: i64) {
        if let Some(partition) = self.lock().partitions.get(&partition) {
            partition.by_request.values().flatten().for_each(|slot| slot.cut(first));
        }
    }

    /// The connection of a slot is gone.
    pub fn remove(&self, slot: &Arc<Slot>) {
        let mut inner = self.lock();
        inner.unlocated.retain(|other| !Arc::ptr_eq(other, slot));
        if let Entry::Occupied(mut partition) = inner.partitions.entry(slot.partition()) {
            partition.get_mut().remove(slot);
            if partition.get().by_request.is_empty() {
                partition.remove();
            }
        }
    }

    /// All of them.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        let inner = self.lock();
        let located = inner.partitions.values().flat_map(|partition| partition.by_request.values().flatten());
        inner.unlocated.iter().chain(located).cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        let located = inner.partitions.values().flat_map(|partition| partition.by_request.values());
        inner.unlocated.len() + located.map(Vec::len).sum::<usize>()
    }

    /// What to do next with each partition that is read or is to be.
    pub fn plan(&self, sweeps: &HashMap<i32, Sweep>) -> Vec<(i32, Plan)> {
        let mut inner = self.lock();
        let mut plans = Vec::new();
        inner.partitions.retain(|number, partition| {
            plans.push((*number, partition.plan(sweeps.get(number))));
            !partition.by_request.is_empty()
        });
        let left = sweeps.keys().filter(|number| plans.iter().all(|(planned, _)| planned != *number));
        let left: Vec<_> = left.map(|number| (*number, Plan::Leave)).collect();
        plans.extend(left);
        plans
    }

    /// Whether somebody wants to see this record.
    pub fn wants(&self, at: Position, key: &[u8]) -> bool {
        self.lock()
            .partitions
            .get(&at.partition)
            .is_some_and(|partition| partition.sought.contains_key(&at.offset) || !partition.of(key).is_empty())
    }

    /// Gives a record to all that want it; `None`: it is no frame.
    pub fn give(&self, at: Position, key: &[u8], frame: Option<&Frame>) -> Given {
        let (sought, slots) = {
            let mut inner = self.lock();
            let Some(partition) = inner.partitions.get_mut(&at.partition) else { return Given::default() };
            (partition.sought.remove(&at.offset), partition.of(key).to_vec())
        };
        let mut given = Given { left: sought.is_some(), ..Given::default() };
        for slot in sought.into_iter().flatten() {
            slot.sought(at.offset, frame);
        }
        let Some(frame) = frame else { return given };
        for slot in slots {
            match slot.logged(at.offset, frame) {
                Step::Nothing | Step::Lagging | Step::Repeats(_) => {}
                Step::Left => given.left = true,
                Step::Broken => {
                    given.left = true;
                    given.broken.push(slot.asked.key.clone());
                }
            }
        }
        given
    }
}

impl Inner {
    fn insert(&mut self, slot: Arc<Slot>) {
        let partition = self.partitions.entry(slot.partition()).or_default();
        if let Some(offset) = slot.sought_at() {
            partition.sought.entry(offset).or_default().push(slot.clone());
        }
        partition.by_request.entry(slot.asked.key.request.clone()).or_default().push(slot);
    }
}

impl Partition {
    fn of(&self, key: &[u8]) -> &[Arc<Slot>] {
        let slots = std::str::from_utf8(key).ok().and_then(|key| self.by_request.get(key));
        slots.map_or(&[], Vec::as_slice)
    }

    fn remove(&mut self, slot: &Arc<Slot>) {
        let other = |other: &Arc<Slot>| !Arc::ptr_eq(other, slot);
        if let Some(slots) = self.by_request.get_mut(&slot.asked.key.request) {
            slots.retain(other);
            if slots.is_empty() {
                self.by_request.remove(&slot.asked.key.request);
            }
        }
        self.sought.retain(|_, slots| {
            slots.retain(other);
            !slots.is_empty()
        });
    }

    fn plan(&mut self, sweep: Option<&Sweep>) -> Plan {
        let position = sweep.map(|sweep| sweep.next);
        let mut needs = Vec::new();
        self.by_request.retain(|_, slots| {
            slots.retain(|slot| {
                let need = slot.need(position);
                needs.push(need);
                need != Need::Nothing
            });
            !slots.is_empty()
        });
        self.sought.retain(|_, slots| {
            slots.retain(|slot| slot.sought_at().is_some());
            !slots.is_empty()
        });
        let plan = next(sweep, &needs);
        let start = match plan {
            Plan::Leave => return plan,
            Plan::Read(start) => start,
            Plan::Stay => position.unwrap_or(0),
        };
        self.by_request.values().flatten().for_each(|slot| slot.join(start));
        plan
    }
}

/// What to do with a partition whose slots need this.
fn next(sweep: Option<&Sweep>, needs: &[Need]) -> Plan {
    let position = sweep.map_or(i64::MAX, |sweep| sweep.next);
    let (mut ahead, mut behind) = (None, None);
    for need in needs {
        let (first, from) = match need {
            Need::Nothing | Need::Later => continue,
            Need::From(from) if *from < position => (&mut behind, *from),
            // Without a sweep, who took part in one waits for the next.
            Need::Fed(from) if sweep.is_none() => (&mut behind, *from),
            Need::From(from) | Need::Fed(from) => (&mut ahead, *from),
        };
        *first = Some(first.map_or(from, |first: i64| first.min(from)));
    }
    let is_over = sweep.is_none_or(|sweep| sweep.ended || sweep.records >= SWEEP_RECORDS_MAX);
    match (ahead, behind) {
        (None, None) => Plan::Leave,
        (None, Some(behind)) => Plan::Read(behind),
        (Some(_), Some(behind)) if is_over => Plan::Read(behind),
        (Some(ahead), _) if ahead.saturating_sub(position) > JUMP_RECORDS_MIN => Plan::Read(ahead),
        (Some(_), _) => Plan::Stay,
    }
}

/// Since when the answers of these slots are looked for, the earliest by partition.
fn questions(slots: &[Arc<Slot>]) -> HashMap<i32, Option<Timestamp>> {
    let mut questions = HashMap::<i32, Option<Timestamp>>::new();
    for slot in slots {
        let earliest = questions.entry(slot.partition()).or_default();
        *earliest = match (*earliest, slot.since()) {
            (Some(earliest), Some(since)) => Some(earliest.min(since)),
            (earliest, since) => earliest.or(since),
        };
    }
    questions
}

/// Ends those whose place in the log could not be found.
fn fail(slots: Vec<Arc<Slot>>) {
    for slot in slots {
        slot.fail(Refusal::AnswersUnreadable);
    }
}
