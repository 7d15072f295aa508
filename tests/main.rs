//! Everything that is tested from the outside, in one binary: linking it once is most of the build. `stack` works on the
//! real engines, which are started once per run and end with it; `faults` ends and stops what it can there; `clients` runs
//! the official SDKs and the examples; `docs` holds the guides against the source.

#[cfg(test)]
mod clients;
#[cfg(test)]
mod docs;
#[cfg(feature = "failpoints")]
#[cfg(test)]
mod faults;
#[cfg(test)]
mod stack;
