//! The one place with unsafe code: a task is woken when a producer's queue of events is no longer empty.
//!
//! librdkafka calls back from its own thread, with the queue locked; the callback does nothing but wake. The crate offers
//! this for consumers only, and a thread that blocks in `poll` costs a switch of threads for every acknowledgement.
#![expect(unsafe_code, reason = "librdkafka's event callback has no safe form for a producer")]

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::task::Waker;

use futures_util::task::AtomicWaker;
use rdkafka::bindings::{
    rd_kafka_queue_cb_event_enable, rd_kafka_queue_destroy, rd_kafka_queue_get_main, rd_kafka_queue_length,
    rd_kafka_queue_t, rd_kafka_t,
};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

/// Wakes the registered task when the main queue of `producer` turns from empty to non-empty, until it is dropped.
pub struct QueueWaker<C: ProducerContext + 'static> {
    /// Keeps the client alive for longer than the queue.
    producer: Arc<BaseProducer<C>>,
    queue: *mut rd_kafka_queue_t,
    /// What the callback gets; freed after the callback is disabled.
    waker: Box<AtomicWaker>,
}

// SAFETY: librdkafka's queues may be used from any thread, and this one is disabled and destroyed only once, in `drop`.
unsafe impl<C: ProducerContext> Send for QueueWaker<C> {}
// SAFETY: by reference only the waker is touched, which is made for that.
unsafe impl<C: ProducerContext> Sync for QueueWaker<C> {}

unsafe extern "C" fn not_empty(_client: *mut rd_kafka_t, waker: *mut c_void) {
    // SAFETY: `waker` is the address that `QueueWaker::new` gave, which lives until the callback is disabled.
    unsafe { &*waker.cast::<AtomicWaker>() }.wake();
}

impl<C: ProducerContext> QueueWaker<C> {
    pub fn new(producer: Arc<BaseProducer<C>>) -> Self {
        let waker = Box::new(AtomicWaker::new());
        let address = ptr::from_ref(&*waker).cast_mut().cast::<c_void>();
        // SAFETY: the client lives as long as `producer`, the queue until it is destroyed, and the waker's address is
        // stable (it is boxed) and valid until `drop` has disabled the callback.
        let queue = unsafe {
            let queue = rd_kafka_queue_get_main(producer.client().native_ptr());
            rd_kafka_queue_cb_event_enable(queue, Some(not_empty), address);
            queue
        };
        Self { producer, queue, waker }
    }

    /// The task to wake; register before looking into the queue, so that nothing between is missed.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Whether librdkafka has nothing to tell.
    pub fn is_empty(&self) -> bool {
        // SAFETY: the queue is ours until `drop`.
        unsafe { rd_kafka_queue_length(self.queue) == 0 }
    }

    pub fn producer(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

impl<C: ProducerContext> Drop for QueueWaker<C> {
    fn drop(&mut self) {
        // SAFETY: the queue is ours and is not used again. Disabling takes the queue's lock, under which the callback
        // runs: none runs when it returns, so that the waker may be freed.
        unsafe {
            rd_kafka_queue_cb_event_enable(self.queue, None, ptr::null_mut());
            rd_kafka_queue_destroy(self.queue);
        }
    }
}
