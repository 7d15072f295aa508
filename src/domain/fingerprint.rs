//! Fingerprints of content: equal content has equal ones, and nobody can tell content from one.

use std::fmt;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// 128 bits of a hash; 32 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

impl Fingerprint {
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// Of the first 16 bytes of a hash.
    pub fn of_hash(hash: &[u8; 32]) -> Self {
        let mut bits = [0; 16];
        bits.copy_from_slice(&hash[..16]);
        Self(u128::from_be_bytes(bits))
    }

    /// Of this content, and of something that is no secret.
    pub fn with(self, more: &str) -> Self {
        Self::of_hash(&Sha256::new().chain_update(self.0.to_be_bytes()).chain_update(more).finalize().into())
    }

    /// `None`: the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits;
        impl Visitor<'_> for Digits {
            type Value = Fingerprint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("32 hexadecimal digits")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Fingerprint, E> {
                Fingerprint::parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        for bits in [0, 1, u128::MAX, 0x00ff_0000_0000_0000_0000_0000_0000_0001] {
            let text = Fingerprint::new(bits).to_string();
            assert_eq!((text.len(), Fingerprint::parse(&text)), (32, Some(Fingerprint::new(bits))));
            let json = serde_json::to_string(&Fingerprint::new(bits)).unwrap();
            assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), Fingerprint::new(bits));
        }
        for text in ["", "1", "+0000000000000000000000000000001", "0000000000000000000000000000000g"] {
            assert_eq!(Fingerprint::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_added_makes_another_one() {
        let one = Fingerprint::new(1);
        assert_ne!(one.with("a"), one.with("b"));
        assert_ne!(one.with("a"), Fingerprint::new(2).with("a"));
        assert_eq!(one.with("a"), one.with("a"));
    }
}
