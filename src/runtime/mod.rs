//! The Kafka shell: it performs what the processors decided, and decides nothing.

pub mod clock;
pub mod kafka;
pub mod member;
pub mod publisher;
pub mod schema_wait;
