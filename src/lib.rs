//! Tollstream: the event-sourced LLM gateway. `docs/ARCHITECTURE.md` has the picture and the map.

pub mod archive;
pub mod audit;
pub mod causes;
pub mod cli;
pub mod codec;
pub mod config;
pub mod control;
pub mod demo;
pub mod domain;
pub mod explain;
pub mod facade;
pub mod failpoint;
pub mod node;
pub mod processor;
pub mod projection;
pub mod provider;
pub mod purge;
pub mod queries;
#[cfg(test)]
mod random;
pub mod records;
pub mod replay;
pub mod reprice;
pub mod runtime;
pub mod simulate;
pub mod sink;
pub mod stack;
pub mod telemetry;
pub mod tls;
pub mod topology;
