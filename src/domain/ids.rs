//! Identifiers. Each is a validated, cheaply cloned string of its own type, so that two can never be confused.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

/// Longest identifier that is taken, in bytes.
pub const ID_BYTES_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{what} is empty; give 1 to {ID_BYTES_MAX} characters")]
    Empty { what: &'static str },
    #[error("{what} has {bytes} bytes; the most is {ID_BYTES_MAX}")]
    TooLong { what: &'static str, bytes: usize },
    #[error("{what} has {character:?} at byte {at}; letters, digits and _ - . : / @ + ~ are allowed")]
    Character { what: &'static str, character: char, at: usize },
}

fn validate(what: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty { what });
    }
    if text.len() > ID_BYTES_MAX {
        return Err(Error::TooLong { what, bytes: text.len() });
    }
    if text.bytes().all(|byte| ALLOWED[usize::from(byte)]) {
        return Ok(());
    }
    let refused = text.char_indices().find(|(_, c)| !u8::try_from(*c).is_ok_and(|byte| ALLOWED[usize::from(byte)]));
    refused.map_or(Ok(()), |(at, character)| Err(Error::Character { what, character, at }))
}

/// Which bytes an identifier may have.
const ALLOWED: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        allowed[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
            || matches!(byte as u8, b'_' | b'-' | b'.' | b':' | b'/' | b'@' | b'+' | b'~');
        byte += 1;
    }
    allowed
};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks the text: 1 to [`ID_BYTES_MAX`] bytes of letters, digits and `_-.:/@+~`.
            pub fn parse(text: &str) -> Result<Self, Error> {
                validate($what, text)?;
                Ok(Self(SmolStr::new(text)))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $what))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

id!(
    /// Who pays, and the unit of ordering: everything of one organization is on one partition.
    OrganizationId, "organization"
);
id!(
    /// A request within its organization; two organizations may use the same one.
    RequestId, "request id"
);
id!(
    /// The public name of an API key (never its secret).
    KeyId, "key id"
);
id!(
    /// What a client asks for: `gpt-4o-mini`, an alias of it, or `auto`.
    ModelName, "model"
);
id!(
    /// One place where a model is served.
    DeploymentId, "deployment"
);
id!(
    /// A routing policy.
    PolicyName, "policy"
);
id!(
    /// What an organization may use and spend.
    PlanName, "plan"
);
id!(
    /// A conversation, as the client names it.
    ConversationId, "conversation id"
);
id!(
    /// The client's end user, a pseudonym.
    UserId, "user"
);

/// A request across organizations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestKey {
    pub organization: OrganizationId,
    pub request: RequestId,
}

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organization, self.request)
    }
}

/// Kafka's murmur2 (seed 0x9747b28c), as `org.apache.kafka.common.utils.Utils.murmur2` computes it.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition that Java's default partitioner gives a key: murmur2 with the sign bit cleared, modulo `partitions`.
pub fn partition_of(key: &str, partitions: u32) -> i32 {
    ((murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions.max(1)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_gives_what_kafka_gives() {
        // From Apache Kafka's UtilsTest.testMurmur2.
        let table: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, hash) in table {
            assert_eq!(murmur2(key) as i32, hash, "{key:?}");
        }
    }

    #[test]
    fn an_id_says_what_is_wrong_with_it() {
        assert_eq!(OrganizationId::parse("").unwrap_err(), Error::Empty { what: "organization" });
        assert_eq!(
            OrganizationId::parse("acme corp").unwrap_err(),
            Error::Character { what: "organization", character: ' ', at: 4 }
        );
        assert!(matches!(RequestId::parse(&"x".repeat(201)), Err(Error::TooLong { bytes: 201, .. })));
        assert_eq!(RequestId::parse("0190f5a2-7c1e-7b3a").unwrap().as_str(), "0190f5a2-7c1e-7b3a");
    }
}
