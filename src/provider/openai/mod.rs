//! OpenAI's chat completions format: requests out, answers in. Pure: bytes in, bytes out, no clock and no network.
//!
//! Nothing is parsed and written again as a whole. Members of objects are replaced, removed or added in place, and
//! every other byte stays as it was: numbers beyond what a float holds, duplicate keys, the order of members.

mod failure;
mod generated;
mod identity;
mod members;
mod request;
mod shortfall;
mod sse;
mod stream;
mod usage;
mod wait;
mod whole;

pub use failure::{from_body, from_status};
pub use identity::{Identity, renamed};
pub use request::{CapName, OutputCap, Wanted, request};
pub use shortfall::shortfall;
pub use stream::StreamDecoder;
pub use usage::token_usage;
pub use whole::whole;
