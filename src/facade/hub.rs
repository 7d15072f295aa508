//! All requests that wait for answers here: admits them, sends them, gives frames to their slots, cancels what is given up.
//!
//! Nothing here touches Kafka: records leave through a [`Bus`], acknowledgements and frames come in by calls.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::catch_up::Readers;
use super::error::Refusal;
use super::listener::{Ask, Listener, Permit};
use super::metrics::Metrics;
use super::slot::{Asked, Bounds, Shared, Slot, Step};
use super::sse::{EventId, Position};
use crate::codec::Codec;
use crate::domain::ids::partition_of;
use crate::domain::{OrganizationId, RequestKey};
use crate::records::requests::{Cancel, Chat, Request, RequestRecord};
use crate::records::responses::{Frame, FrameBody};
use crate::runtime::publisher;

/// Most bytes that leave a slot at once.
const PIECE_BYTES_MAX: usize = 16 << 10;
/// Cancels that wait because the producer is full; more are lost and counted.
const CANCELS_WAITING_MAX: usize = 20_000;
/// Room that a record needs beside the body.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// The tag of cancels, whose acknowledgement nobody waits for.
const CANCEL_TAG: u64 = 0;

/// Takes records for `requests`. What became of one comes to [`Hub::delivered`] with its tag.
pub trait Bus: Send + Sync {
    fn send(&self, sending: Sending<'_>) -> Result<(), publisher::Error>;

    /// Whether what is sent now can be expected to be acknowledged.
    fn acknowledges(&self) -> bool;
}

/// A record for `requests`.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    pub partition: i32,
    pub key: &'a [u8],
    pub payload: &'a [u8],
    pub tag: u64,
    /// Somebody waits for the acknowledgement itself.
    pub is_awaited: bool,
    /// Of its trace.
    pub traceparent: Option<&'a str>,
}

/// What becomes of a request whose client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    Cancel,
    /// It is cancelled so much later.
    KeepFor(Duration),
    Keep,
}

/// How a request is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asking {
    pub stream: bool,
    /// A repeat is answered as the first one was.
    pub idempotent: bool,
    pub on_disconnect: OnDisconnect,
}

/// Where and within which bounds a hub works.
pub struct Options {
    pub bus: Box<dyn Bus>,
    pub codec: Arc<Codec>,
    pub metrics: Metrics,
    /// Of `requests` and of `responses`.
    pub partitions: u32,
    /// The partition of `responses` on which answers come.
    pub reply_partition: i32,
    /// Begins the nonce of every request, and is no other process's.
    pub nonce: String,
    pub requests_max: usize,
    pub slot_bytes_max: usize,
    pub slots_bytes_max: usize,
}

pub struct Hub {
    options: Options,
    shared: Arc<Shared>,
    readers: Readers,
    slots: Mutex<Slots>,
    /// Cancels that the producer had no room for.
    cancels: Mutex<VecDeque<Cancel>>,
    next_tag: AtomicU64,
    pub(super) open: AtomicUsize,
    pub(super) bodies_bytes: AtomicUsize,
    pub(super) slow_bodies: AtomicUsize,
    listening: AtomicBool,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Slots {
    /// By the tag of its request, which its nonce names too.
    by_tag: HashMap<u64, Arc<Slot>>,
    /// Of those whose id nobody else may use meanwhile.
    keys: HashSet<RequestKey>,
    /// Requests that go on for a while although their clients are gone.
    lingering: HashMap<u64, Lingering>,
    /// Cancels whose acknowledgement somebody waits for.
    awaited: HashMap<u64, oneshot::Sender<bool>>,
}

struct Lingering {
    key: RequestKey,
    until: Instant,
    /// It is one of the requests under way still.
    _permit: Option<Permit>,
}

/// Why a request whose terminal has not come is cancelled; becomes the reason of the cancel record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cancelled {
    ClientDisconnected,
    Requested,
    Deadline,
    AnswerBroken,
    NotAcknowledged,
    ShuttingDown,
}

impl Cancelled {
    pub const ALL: [Self; 6] = [
        Self::ClientDisconnected,
        Self::Requested,
        Self::Deadline,
        Self::AnswerBroken,
        Self::NotAcknowledged,
        Self::ShuttingDown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientDisconnected => "client_disconnected",
            Self::Requested => "requested",
            Self::Deadline => "deadline_exceeded",
            Self::AnswerBroken => "answer_broken",
            Self::NotAcknowledged => "not_acknowledged",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl Hub {
    pub fn new(options: Options) -> Arc<Self> {
        let bounds = Bounds {
            slot_bytes: options.slot_bytes_max,
            all_bytes: options.slots_bytes_max,
            fair_bytes: options.slots_bytes_max / options.requests_max.max(1),
            piece_bytes: PIECE_BYTES_MAX,
        };
        let hunger = Arc::new(Notify::new());
        let shared = Shared { bounds, metrics: options.metrics.clone(), hunger: hunger.clone() };
        Arc::new(Self {
            options,
            shared: Arc::new(shared),
            readers: Readers::new(hunger),
            slots: Mutex::default(),
            cancels: Mutex::default(),
            next_tag: AtomicU64::new(CANCEL_TAG + 1),
            open: AtomicUsize::new(0),
            bodies_bytes: AtomicUsize::new(0),
            slow_bodies: AtomicUsize::new(0),
            listening: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        })
    }

    pub(super) fn requests_max(&self) -> usize {
        self.options.requests_max
    }

    pub fn metrics(&self) -> &Metrics {
        &self.options.metrics
    }

    /// Those who are served from the log.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Answers can be received from now on: what is asked later cannot be missed.
    pub fn listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Takes no further requests.
    pub fn stop_admitting(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Lets a request in, before its body is read.
    pub fn admit(self: &Arc<Self>) -> Result<Permit, Refusal> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Refusal::Stopping);
        }
        if !self.listening.load(Ordering::Acquire) {
            return Err(Refusal::NotReady { missing: "it does not listen to Kafka yet" });
        }
        if !self.options.bus.acknowledges() {
            return Err(Refusal::NotReady { missing: "Kafka does not acknowledge records at present" });
        }
        // The permit takes itself back when it is too many.
        let permit = Permit::new(self.clone());
        self.options.metrics.begun();
        match self.open.fetch_add(1, Ordering::Relaxed) < self.options.requests_max {
            true => Ok(permit),
            false => Err(Refusal::Overloaded),
        }
    }

    /// Sends the request and opens the slot in which its answer will be.
    pub fn ask(self: &Arc<Self>, mut permit: Permit, mut chat: Box<Chat>, asking: Asking) -> Result<Listener, Refusal> {
        let key = RequestKey { organization: chat.organization.clone(), request: chat.request_id.clone() };
        let (tag, reply_partition) = (self.next_tag.fetch_add(1, Ordering::Relaxed), self.options.reply_partition);
        let nonce = format!("{}-{tag:x}", self.options.nonce);
        chat.reply_partition = Some(reply_partition);
        chat.reply_nonce = Some(nonce.clone());
        let traceparent = chat.traceparent.clone();
        let mut payload = Vec::with_capacity(chat.body.len() + RECORD_OVERHEAD_BYTES);
        self.encode(Request::Chat(chat), &mut payload)?;

        let Asking { stream, idempotent, on_disconnect } = asking;
        let outlives_client = on_disconnect != OnDisconnect::Cancel;
        let asked = Asked { key, stream, idempotent, outlives_client };
        let slot = Arc::new(Slot::asking(asked, reply_partition, nonce, self.shared.clone()));
        self.open_slot(tag, &slot)?;
        // From here on the slot is closed by the listener's end, which sends a cancel unless the request was never sent.
        let ask = Ask { tag, on_disconnect, sent: false };
        let mut listener = Listener { hub: self.clone(), slot, ask: Some(ask), permit: None };
        let to = &listener.slot.asked.key.organization;
        self.send_traced(to, &payload, tag, traceparent.as_deref())?;
        listener.ask = Some(Ask { sent: true, ..ask });
        permit.release_body();
        listener.permit = Some(permit);
        Ok(listener)
    }

    /// Opens a slot for what comes after this event in the answer to a request of the organization, asked anywhere.
    pub fn read(self: &Arc<Self>, permit: Permit, key: RequestKey, after: EventId) -> Result<Listener, Refusal> {
        if !u32::try_from(after.at.partition).is_ok_and(|partition| partition < self.options.partitions) {
            return Err(Refusal::UnknownEvent);
        }
        self.options.metrics.resumed();
        let slot = Arc::new(Slot::reading(key, after, self.shared.clone()));
        self.readers.locate(slot.clone());
        Ok(Listener { hub: self.clone(), slot, ask: None, permit: Some(permit) })
    }

    /// Cancels a request of the organization, if it is under way; returns when Kafka has acknowledged that.
    pub async fn cancel_as_requested(&self, key: RequestKey) -> Result<(), Refusal> {
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let organization = key.organization.clone();
        let mut payload = Vec::with_capacity(RECORD_OVERHEAD_BYTES);
        self.encode(Request::Cancel(cancel_of(&key, Cancelled::Requested)), &mut payload)?;
        let (sender, acknowledged) = oneshot::channel();
        self.slots().awaited.insert(tag, sender);
        if let Err(refusal) = self.send(&organization, &payload, tag, true) {
            self.slots().awaited.remove(&tag);
            return Err(refusal);
        }
        match acknowledged.await {
            Ok(true) => {
                self.options.metrics.cancelled(Cancelled::Requested);
                Ok(())
            }
            Ok(false) | Err(_) => Err(Refusal::NotAcknowledged),
        }
    }

    fn encode(&self, request: Request, payload: &mut Vec<u8>) -> Result<(), Refusal> {
        self.options.codec.encode(&RequestRecord::from(request), payload).map_err(|error| {
            tracing::error!(%error, "a request could not be encoded");
            Refusal::Internal
        })
    }

    fn send(&self, to: &OrganizationId, payload: &[u8], tag: u64, is_awaited: bool) -> Result<(), Refusal> {
        let (partition, key) = self.place(to);
        self.sent(Sending { partition, key, payload, tag, is_awaited, traceparent: None })
    }

    fn send_traced(&self, to: &OrganizationId, payload: &[u8], tag: u64, of: Option<&str>) -> Result<(), Refusal> {
        let (partition, key) = self.place(to);
        self.sent(Sending { partition, key, payload, tag, is_awaited: false, traceparent: of })
    }

    fn place<'a>(&self, to: &'a OrganizationId) -> (i32, &'a [u8]) {
        (partition_of(to.as_str(), self.options.partitions), to.as_str().as_bytes())
    }

    fn sent(&self, sending: Sending<'_>) -> Result<(), Refusal> {
        let sent = self.options.bus.send(sending);
        sent.map_err(|error| match error {
            publisher::Error::Full => Refusal::Overloaded,
            error => {
                tracing::error!(%error, "a request could not be given to Kafka");
                Refusal::NotAcknowledged
            }
        })
    }

    /// Two equal requests under way may have one id only if the second is answered as the first is.
    fn open_slot(&self, tag: u64, slot: &Arc<Slot>) -> Result<(), Refusal> {
        let (mut slots, asked) = (self.slots(), &slot.asked);
        if !asked.idempotent && !slots.keys.insert(asked.key.clone()) {
            return Err(Refusal::Duplicate { id: asked.key.request.clone() });
        }
        slots.by_tag.insert(tag, slot.clone());
        Ok(())
    }

    /// The connection of a request that was asked here is gone.
    pub(super) fn close_slot(&self, ask: Ask, slot: &Slot, permit: Option<Permit>) {
        let (asked, cancels) = (&slot.asked, slot.abandon());
        let mut slots = self.slots();
        slots.by_tag.remove(&ask.tag);
        if !asked.idempotent {
            slots.keys.remove(&asked.key);
        }
        match ask.on_disconnect {
            _ if !cancels || !ask.sent => {}
            OnDisconnect::Keep => {}
            OnDisconnect::KeepFor(time) => {
                let lingering = Lingering { key: asked.key.clone(), until: Instant::now() + time, _permit: permit };
                slots.lingering.insert(ask.tag, lingering);
            }
            OnDisconnect::Cancel => {
                drop(slots);
                self.cancel(&asked.key, Cancelled::ClientDisconnected);
            }
        }
    }

    /// How many requests wait for their answers.
    #[cfg(test)]
    pub fn slots_open(&self) -> usize {
        self.slots().by_tag.len()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, tag: u64) -> Option<Arc<Slot>> {
        self.slots().by_tag.get(&tag).cloned()
    }

    /// What became of a record.
    pub fn delivered(&self, delivery: &publisher::Delivery) {
        if delivery.tag == CANCEL_TAG {
            if delivery.outcome.is_err() {
                self.options.metrics.lost_cancel();
            }
            return;
        }
        if let Some(awaits) = self.slots().awaited.remove(&delivery.tag) {
            // Who waited for it may be gone.
            let _ = awaits.send(delivery.outcome.is_ok());
            return;
        }
        // A client may have gone away in the meantime.
        let Some(slot) = self.slot(delivery.tag) else { return };
        match &delivery.outcome {
            Ok(_) => slot.acknowledged(),
            Err(error) => {
                tracing::warn!(%error, "a request was not acknowledged");
                // It may be on the topic all the same. Who can ask again will find it there.
                if slot.fail(Refusal::NotAcknowledged) && !slot.asked.idempotent {
                    self.cancel(&slot.asked.key, Cancelled::NotAcknowledged);
                }
            }
        }
    }

    /// A frame from the own partition of `responses`, as it was written.
    pub fn frame(&self, at: Position, frame: &Frame) {
        let Some(tag) = frame.nonce.as_deref().and_then(|nonce| self.tag_of(nonce)) else {
            self.options.metrics.foreign_frame();
            return;
        };
        let own = |key: &RequestKey| key.request == frame.request_id && key.organization == frame.organization;
        let mut slots = self.slots();
        let slot = slots.by_tag.get(&tag).filter(|slot| own(&slot.asked.key)).cloned();
        if slots.lingering.get(&tag).is_some_and(|lingering| own(&lingering.key)) {
            if let FrameBody::Terminal(_) = frame.body {
                slots.lingering.remove(&tag);
            }
            return;
        }
        drop(slots);
        let Some(slot) = slot else {
            self.options.metrics.foreign_frame();
            return;
        };
        match slot.live(at.offset, frame) {
            Step::Nothing | Step::Left => {}
            Step::Broken => self.cancel(&slot.asked.key, Cancelled::AnswerBroken),
            Step::Lagging => self.readers.add(slot),
            Step::Repeats(original) => {
                self.options.metrics.replayed();
                match u32::try_from(original.partition).is_ok_and(|p| p < self.options.partitions) {
                    true => self.readers.locate(slot),
                    false => self.give_up(&slot, Refusal::AnswerExpired, Cancelled::AnswerBroken),
                }
            }
        }
    }

    /// A record that was read again from the log. True when there may be something to plan for the catch-up reader.
    pub fn logged(&self, at: Position, key: &[u8], frame: Option<&Frame>) -> bool {
        let given = self.readers.give(at, key, frame);
        for key in &given.broken {
            self.cancel(key, Cancelled::AnswerBroken);
        }
        given.left
    }

    fn tag_of(&self, nonce: &str) -> Option<u64> {
        let tag = nonce.strip_prefix(self.options.nonce.as_str())?.strip_prefix('-')?;
        u64::from_str_radix(tag, 16).ok()
    }

    /// Ends an open request with an error, and cancels it.
    pub(super) fn give_up(&self, slot: &Slot, refusal: Refusal, reason: Cancelled) {
        if slot.fail(refusal) {
            self.cancel(&slot.asked.key, reason);
        }
    }

    /// Ends all open responses; for the end of the process. What outlives its client goes on, and can be read elsewhere.
    pub fn end_all(&self) {
        let mut slots: Vec<_> = self.slots().by_tag.values().cloned().collect();
        slots.extend(self.readers.slots());
        for slot in slots {
            if slot.fail(Refusal::Stopping) && !slot.asked.outlives_client {
                self.cancel(&slot.asked.key, Cancelled::ShuttingDown);
            }
        }
    }

    fn cancel(&self, key: &RequestKey, reason: Cancelled) {
        self.options.metrics.cancelled(reason);
        if let Err(cancel) = self.send_cancel(cancel_of(key, reason)) {
            let mut waiting = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.len() < CANCELS_WAITING_MAX {
                true => waiting.push_back(cancel),
                false => self.options.metrics.lost_cancel(),
            }
        }
    }

    /// To be called from time to time: cancels what was kept long enough, and sends the cancels that waited for room.
    pub fn look(&self, now: Instant) {
        let over: Vec<_> = self.slots().lingering.extract_if(|_, lingering| lingering.until <= now).collect();
        for (_, lingering) in over {
            self.cancel(&lingering.key, Cancelled::ClientDisconnected);
        }
        let mut waiting = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(cancel) = waiting.pop_front() {
            if let Err(cancel) = self.send_cancel(cancel) {
                waiting.push_front(cancel);
                return;
            }
        }
    }

    /// Gives the cancel back when the producer is full.
    fn send_cancel(&self, cancel: Cancel) -> Result<(), Cancel> {
        let mut payload = Vec::with_capacity(RECORD_OVERHEAD_BYTES);
        let sent = self.encode(Request::Cancel(cancel.clone()), &mut payload);
        match sent.and_then(|()| self.send(&cancel.organization, &payload, CANCEL_TAG, false)) {
            Ok(()) => Ok(()),
            Err(Refusal::Overloaded) => Err(cancel),
            Err(_) => {
                self.options.metrics.lost_cancel();
                Ok(())
            }
        }
    }
}

fn cancel_of(key: &RequestKey, reason: Cancelled) -> Cancel {
    let (request_id, organization) = (key.request.clone(), key.organization.clone());
    Cancel { request_id, organization, reason: reason.as_str().to_owned() }
}
