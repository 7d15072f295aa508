//! Names by their hash: FNV-1a (Fowler, Noll, Vo), 64 bits, byte by byte as a word is read.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by hashes that are spread well already.
pub type Hashed<T> = HashMap<u64, T, BuildHasherDefault<AsItIs>>;

#[derive(Debug, Clone, Copy)]
pub struct Fnv(u64);

impl Fnv {
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub const fn push(&mut self, byte: u8) {
        self.0 = (self.0 ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }

    #[must_use]
    pub fn then(mut self, text: &str) -> Self {
        text.bytes().for_each(|byte| self.push(byte));
        self
    }

    pub fn of(text: &str) -> u64 {
        Self::new().then(text).finish()
    }

    pub const fn finish(self) -> u64 {
        self.0
    }
}

/// Takes a hash for one.
#[derive(Debug, Default)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = (self.0 << 8) | u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
