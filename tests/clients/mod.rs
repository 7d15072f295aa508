//! Official SDKs and the examples, as people use them.

mod archive;
mod policy;
mod producer;
pub mod python;
mod sdk;
