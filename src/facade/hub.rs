//! All requests that wait for answers here: admits them, sends them, gives frames to their slots, cancels what is given up.
//!
//! Nothing here touches Kafka: records leave through a [`Bus`], acknowledgements and frames come in by calls.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Refusal;
use super::metrics::Metrics;
use super::slot::{Bounds, Cancelled, Slot};
use super::sse::Position;
use crate::codec::Codec;
use crate::domain::RequestKey;
use crate::domain::ids::partition_of;
use crate::records::requests::{Cancel, Chat, Request, RequestRecord};
use crate::records::responses::Frame;
use crate::runtime::publisher;

/// Most bytes of request bodies that are in memory at once, from their first byte to the producer.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// Most of the requests under way, in percent, whose bodies are slow to come.
const SLOW_BODIES_PERCENT_MAX: usize = 25;
/// Most bytes of answers that wait for all clients together.
const SLOTS_BYTES_MAX: usize = 256 << 20;
/// Cancels that wait because the producer is full; more are lost and counted.
const CANCELS_WAITING_MAX: usize = 20_000;
/// Room that a record needs beside the body.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// The tag of cancels, whose acknowledgement nobody waits for.
const CANCEL_TAG: u64 = 0;

/// Takes records for `requests`. What became of one comes to [`Hub::delivered`] with its tag.
pub trait Bus: Send + Sync {
    fn send(&self, partition: i32, key: &[u8], payload: &[u8], tag: u64) -> Result<(), publisher::Error>;

    /// Whether what is sent now can be expected to be acknowledged.
    fn acknowledges(&self) -> bool;
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
}

pub struct Hub {
    options: Options,
    bounds: Bounds,
    slots: Mutex<Slots>,
    /// Cancels that the producer had no room for.
    cancels: Mutex<VecDeque<Cancel>>,
    next_tag: AtomicU64,
    open: AtomicUsize,
    bodies_bytes: AtomicUsize,
    slow_bodies: AtomicUsize,
    listening: AtomicBool,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Slots {
    /// By the tag of its request, which its nonce names too.
    by_tag: HashMap<u64, Arc<Slot>>,
    keys: HashSet<RequestKey>,
}

impl Hub {
    pub fn new(options: Options) -> Arc<Self> {
        let bounds = Bounds {
            slot_bytes: options.slot_bytes_max,
            all_bytes: SLOTS_BYTES_MAX,
            fair_bytes: SLOTS_BYTES_MAX / options.requests_max.max(1),
        };
        Arc::new(Self {
            options,
            bounds,
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

    pub fn metrics(&self) -> &Metrics {
        &self.options.metrics
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
        let permit = Permit { hub: self.clone(), body_bytes: 0, is_slow: false };
        self.options.metrics.begun();
        match self.open.fetch_add(1, Ordering::Relaxed) < self.options.requests_max {
            true => Ok(permit),
            false => Err(Refusal::Overloaded),
        }
    }

    /// Sends the request and opens the slot in which its answer will be.
    pub fn ask(self: &Arc<Self>, mut permit: Permit, mut chat: Box<Chat>, stream: bool) -> Result<Listener, Refusal> {
        let key = RequestKey { organization: chat.organization.clone(), request: chat.request_id.clone() };
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        chat.reply_partition = Some(self.options.reply_partition);
        chat.reply_nonce = Some(format!("{}-{tag:x}", self.options.nonce));
        let record_bytes = chat.body.len() + RECORD_OVERHEAD_BYTES;
        let record = RequestRecord::from(Request::Chat(chat));
        let mut payload = Vec::with_capacity(record_bytes);
        self.options.codec.encode(&record, &mut payload).map_err(|error| {
            tracing::error!(%error, "a request could not be encoded");
            Refusal::Internal
        })?;
        drop(record);

        let slot = Arc::new(Slot::new(key, stream, self.bounds, self.options.metrics.clone()));
        self.open_slot(tag, &slot)?;
        // From here on the slot is closed by the listener's end, which sends a cancel unless the request was never sent.
        let mut listener = Listener { hub: self.clone(), slot, tag, sent: false, permit: None };
        let organization = listener.slot.key.organization.as_str();
        let partition = partition_of(organization, self.options.partitions);
        self.options.bus.send(partition, organization.as_bytes(), &payload, tag).map_err(|error| match error {
            publisher::Error::Full => Refusal::Overloaded,
            error => {
                tracing::error!(%error, "a request could not be given to Kafka");
                Refusal::NotAcknowledged
            }
        })?;
        listener.sent = true;
        permit.release_body();
        listener.permit = Some(permit);
        Ok(listener)
    }

    fn open_slot(&self, tag: u64, slot: &Arc<Slot>) -> Result<(), Refusal> {
        let mut slots = self.slots();
        if !slots.keys.insert(slot.key.clone()) {
            return Err(Refusal::Duplicate { id: slot.key.request.clone() });
        }
        slots.by_tag.insert(tag, slot.clone());
        Ok(())
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
        // A client may have gone away in the meantime.
        let Some(slot) = self.slot(delivery.tag) else { return };
        match &delivery.outcome {
            Ok(_) => slot.acknowledged(),
            Err(error) => {
                tracing::warn!(%error, "a request was not acknowledged");
                // It may be on the topic all the same.
                self.give_up(&slot, Refusal::NotAcknowledged, Cancelled::NotAcknowledged);
            }
        }
    }

    /// A frame from `responses`.
    pub fn frame(&self, at: Position, frame: Frame) {
        let slot = frame.nonce.as_deref().and_then(|nonce| self.tag_of(nonce)).and_then(|tag| self.slot(tag));
        let own =
            |slot: &Arc<Slot>| slot.key.request == frame.request_id && slot.key.organization == frame.organization;
        let Some(slot) = slot.filter(own) else {
            self.options.metrics.foreign_frame();
            return;
        };
        if let Some(reason) = slot.frame(at, frame) {
            self.cancel(&slot.key, reason);
        }
    }

    fn tag_of(&self, nonce: &str) -> Option<u64> {
        let tag = nonce.strip_prefix(self.options.nonce.as_str())?.strip_prefix('-')?;
        u64::from_str_radix(tag, 16).ok()
    }

    /// Ends an open request with an error, and cancels it.
    fn give_up(&self, slot: &Slot, refusal: Refusal, reason: Cancelled) {
        if slot.fail(refusal) {
            self.cancel(&slot.key, reason);
        }
    }

    /// Ends all open requests; for the end of the process.
    pub fn end_all(&self) {
        let slots: Vec<_> = self.slots().by_tag.values().cloned().collect();
        for slot in slots {
            self.give_up(&slot, Refusal::Stopping, Cancelled::ShuttingDown);
        }
    }

    fn cancel(&self, key: &RequestKey, reason: Cancelled) {
        self.options.metrics.cancelled(reason);
        let (request_id, organization) = (key.request.clone(), key.organization.clone());
        let cancel = Cancel { request_id, organization, reason: reason.as_str().to_owned() };
        if let Err(cancel) = self.send_cancel(cancel) {
            let mut waiting = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.len() < CANCELS_WAITING_MAX {
                true => waiting.push_back(cancel),
                false => self.options.metrics.lost_cancel(),
            }
        }
    }

    /// Sends the cancels that waited for room in the producer.
    pub fn send_waiting_cancels(&self) {
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
        let organization = cancel.organization.clone();
        let partition = partition_of(organization.as_str(), self.options.partitions);
        let mut payload = Vec::with_capacity(RECORD_OVERHEAD_BYTES);
        if let Err(error) =
            self.options.codec.encode(&RequestRecord::from(Request::Cancel(cancel.clone())), &mut payload)
        {
            tracing::error!(%error, "a cancel could not be encoded");
            self.options.metrics.lost_cancel();
            return Ok(());
        }
        match self.options.bus.send(partition, organization.as_str().as_bytes(), &payload, CANCEL_TAG) {
            Ok(()) => Ok(()),
            Err(publisher::Error::Full) => Err(cancel),
            Err(error) => {
                tracing::warn!(%error, "a cancel could not be given to Kafka");
                self.options.metrics.lost_cancel();
                Ok(())
            }
        }
    }
}

/// One of the requests that may be under way, and the bytes of its body.
pub struct Permit {
    hub: Arc<Hub>,
    body_bytes: usize,
    /// It has one of the places for slow bodies.
    is_slow: bool,
}

impl Permit {
    /// Takes one of the places for bodies that are slow to come: who opens requests and sends nothing holds few of them.
    pub fn take_slow_place(&mut self) -> Result<(), Refusal> {
        if self.is_slow {
            return Ok(());
        }
        let most = (self.hub.options.requests_max * SLOW_BODIES_PERCENT_MAX / 100).max(1);
        if self.hub.slow_bodies.fetch_add(1, Ordering::Relaxed) >= most {
            self.hub.slow_bodies.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Overloaded);
        }
        self.is_slow = true;
        Ok(())
    }

    /// Takes room for so many more bytes of the body.
    pub fn take_body(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.hub.bodies_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > BODIES_BYTES_MAX {
            self.hub.bodies_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Refusal::Overloaded);
        }
        self.body_bytes += bytes;
        Ok(())
    }

    fn release_body(&mut self) {
        if std::mem::take(&mut self.is_slow) {
            self.hub.slow_bodies.fetch_sub(1, Ordering::Relaxed);
        }
        self.hub.bodies_bytes.fetch_sub(std::mem::take(&mut self.body_bytes), Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release_body();
        self.hub.open.fetch_sub(1, Ordering::Relaxed);
        self.hub.options.metrics.finished();
    }
}

/// The connection's end of a slot. When it is dropped before the request has ended, the client went away: the slot is
/// freed and the request cancelled.
pub struct Listener {
    hub: Arc<Hub>,
    pub slot: Arc<Slot>,
    tag: u64,
    sent: bool,
    permit: Option<Permit>,
}

impl Listener {
    /// Ends the request because its time is over.
    pub fn give_up_late(&self) {
        self.hub.give_up(&self.slot, Refusal::Deadline, Cancelled::Deadline);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut slots = self.hub.slots();
        slots.by_tag.remove(&self.tag);
        slots.keys.remove(&self.slot.key);
        drop(slots);
        drop(self.permit.take());
        if self.slot.abandon() && self.sent {
            self.hub.cancel(&self.slot.key, Cancelled::ClientDisconnected);
        }
    }
}
