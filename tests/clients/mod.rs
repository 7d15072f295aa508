//! Official SDKs and the examples, as people use them.

mod producer;
mod python;
mod sdk;
