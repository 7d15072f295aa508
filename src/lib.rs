//! Tollstream, the event-sourced LLM gateway.

pub mod cli;
pub mod stack;
