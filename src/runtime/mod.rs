//! The Kafka shell: it performs what the processors decided, and decides nothing.

pub mod calls;
pub mod checkpoints;
pub mod clock;
pub mod control;
pub mod control_log;
pub mod control_writer;
pub mod deployments;
pub mod fingerprint;
pub mod flight;
pub mod kafka;
pub mod lag;
pub mod member;
pub mod metrics;
pub mod owner;
pub mod publisher;
mod queue_waker;
pub mod reach;
pub mod refill;
pub mod restore;
pub mod room;
pub mod schema_wait;
pub mod shard;
pub mod shelf;
pub mod shell;
mod stillness;
mod timeline;
mod trace;
