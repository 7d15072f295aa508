//! The connections' ends: a permit for each request that may be under way, and a listener for each answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::Refusal;
use super::hub::{Cancelled, Hub, OnDisconnect};
use super::slot::Slot;

/// Most bytes of request bodies that are in memory at once, from their first byte to the producer.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// Most of the requests under way, in percent, whose bodies are slow to come.
const SLOW_BODIES_PERCENT_MAX: usize = 25;

/// One of the requests that may be under way, and the bytes of its body.
pub struct Permit {
    hub: Arc<Hub>,
    body_bytes: usize,
    /// It has one of the places for slow bodies.
    is_slow: bool,
}

impl Permit {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub, body_bytes: 0, is_slow: false }
    }

    /// Takes one of the places for bodies that are slow to come: who opens requests and sends nothing holds few of them.
    pub fn take_slow_place(&mut self) -> Result<(), Refusal> {
        if self.is_slow {
            return Ok(());
        }
        let most = (self.hub.requests_max() * SLOW_BODIES_PERCENT_MAX / 100).max(1);
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

    pub(super) fn release_body(&mut self) {
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
        self.hub.metrics().finished();
    }
}

/// The connection's end of a slot. When it is dropped before the answer has ended, the client went away: the slot is
/// freed, and the request cancelled, if it was asked here and does not outlive its client.
pub struct Listener {
    pub(super) hub: Arc<Hub>,
    pub slot: Arc<Slot>,
    /// `None`: the answer is only read.
    pub(super) ask: Option<Ask>,
    pub(super) permit: Option<Permit>,
}

/// A request that was asked here.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub tag: u64,
    pub on_disconnect: OnDisconnect,
    pub sent: bool,
}

impl Listener {
    /// The time of the answer is over. True when it may go on all the same, since it is on its way from the log.
    pub fn goes_on_late(&self) -> bool {
        let goes_on = self.slot.goes_on();
        if !goes_on {
            self.hub.give_up(&self.slot, Refusal::Deadline, Cancelled::Deadline);
        }
        goes_on
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let permit = self.permit.take();
        match self.ask {
            Some(ask) => self.hub.close_slot(ask, &self.slot, permit),
            None => _ = self.slot.abandon(),
        }
        self.hub.readers().remove(&self.slot);
    }
}
