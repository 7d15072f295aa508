//! What is killed, stopped or cut off on purpose, on the real engines. Every test asserts that its fault happened and ends
//! with the audit. Each has two sizes: a short one for `make test`, the full one for `make test-faults` (see [`suite`]).

mod log;
mod provider;
mod proxy;
mod suite;
mod world;

mod ambiguous;
mod kill;
mod ledger;
mod peers;
mod replay;
mod routing;
mod storm;
mod takeover;
mod two_owners;
