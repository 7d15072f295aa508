//! Everything that is tested from the outside, in one binary: linking it once is most of the build.

#[cfg(test)]
mod stack;
