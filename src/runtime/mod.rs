//! The Kafka shell: it performs what the processors decided, and decides nothing.

pub mod clock;
pub mod control_log;
pub mod kafka;
pub mod publisher;
