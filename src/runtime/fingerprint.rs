//! Keyed hashes of bodies: equal bodies have equal fingerprints, and nobody without the key can test a guess.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::config::Secret;
use crate::domain::{Fingerprint, OrganizationId};
use crate::processor::canonical;
use crate::records::cache::CacheRecord;

/// What is kept of the hash, in bytes.
const BYTES: usize = 16;

#[derive(Clone)]
pub struct Fingerprints {
    keyed: Hmac<Sha256>,
}

impl Fingerprints {
    /// All processes of an installation need the same key; without one, the fingerprints are those of a key that all know.
    pub fn new(key: Option<&Secret>) -> Self {
        let key = key.map_or("tollstream", Secret::expose);
        // HMAC takes keys of any length: a long one is hashed first (RFC 2104).
        let keyed = Hmac::new_from_slice(key.as_bytes()).unwrap_or_else(|_| unreachable!("keys have any length"));
        Self { keyed }
    }

    /// Of what determines the answer to a request of an organization, in the form in which it is delivered.
    ///
    /// # Errors
    /// The body is no JSON object.
    pub fn content(
        &self,
        organization: &OrganizationId,
        [stream, include_usage]: [bool; 2],
        body: &[u8],
    ) -> std::io::Result<Fingerprint> {
        let mut canonical = vec![u8::from(stream), u8::from(stream && include_usage)];
        canonical::write(body, &mut canonical)?;
        // With a key of the organization's own, so that equal requests of two organizations have nothing in common.
        let key =
            self.keyed.clone().chain_update(b"cache\0").chain_update(organization.as_str()).finalize().into_bytes();
        let keyed = Hmac::<Sha256>::new_from_slice(&key).unwrap_or_else(|_| unreachable!("keys have any length"));
        Ok(Fingerprint::of_hash(&keyed.chain_update(&canonical).finalize().into_bytes().into()))
    }

    /// The seal of a record that only we may write.
    pub fn seal(&self, record: &CacheRecord) -> String {
        let sealed = self.keyed.clone().chain_update(b"seal\0");
        let with = |hash: Hmac<Sha256>, piece: &Vec<u8>| {
            hash.chain_update((piece.len() as u64).to_be_bytes()).chain_update(piece)
        };
        hex::encode(record.sealed().iter().fold(sealed, with).finalize().into_bytes())
    }

    /// In hexadecimal.
    pub fn of(&self, body: &[u8]) -> String {
        let hash = self.keyed.clone().chain_update(body).finalize().into_bytes();
        hex::encode(&hash[..BYTES])
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::{Timestamp, TokenUsage};

    #[test]
    fn a_fingerprint_depends_on_body_and_key() {
        let (plain, keyed) = (Fingerprints::new(None), Fingerprints::new(Some(&Secret::new("k".into()))));
        assert_eq!(plain.of(b"hello"), plain.of(b"hello"));
        assert_ne!(plain.of(b"hello"), plain.of(b"hellO"));
        assert_ne!(plain.of(b"hello"), keyed.of(b"hello"));
        // RFC 4231, test case 2, cut to 128 bits.
        let jefe = Fingerprints::new(Some(&Secret::new("Jefe".into())));
        assert_eq!(jefe.of(b"what do ya want for nothing?"), "5bdcc146bf60754e6a042426089575c7");
    }

    #[test]
    fn whatever_is_changed_of_an_answer_breaks_its_seal() {
        let fingerprints = Fingerprints::new(None);
        let record = CacheRecord {
            organization: "acme".parse().unwrap(),
            fingerprint: Fingerprint::new(7),
            request_id: "r".parse().unwrap(),
            expires_at: Timestamp::from_millis(9),
            usage: TokenUsage::NOTHING,
            finish_reason: Some("stop".into()),
            events: vec![Bytes::from_static(b"{}"), Bytes::from_static(b"{1}")],
            body: None,
            seal: String::new(),
        };
        let seal = fingerprints.seal(&record);
        assert_eq!(fingerprints.seal(&CacheRecord { seal: seal.clone(), ..record.clone() }), seal);
        let [first, second] = [record.events[0].clone(), record.events[1].clone()];
        for changed in [
            CacheRecord { organization: "acmf".parse().unwrap(), ..record.clone() },
            CacheRecord { fingerprint: Fingerprint::new(8), ..record.clone() },
            CacheRecord { request_id: "s".parse().unwrap(), ..record.clone() },
            CacheRecord { expires_at: Timestamp::from_millis(10), ..record.clone() },
            CacheRecord { usage: TokenUsage { output: Some(1), ..TokenUsage::NOTHING }, ..record.clone() },
            CacheRecord { finish_reason: Some("stoq".into()), ..record.clone() },
            CacheRecord { events: vec![second.clone(), first.clone()], ..record.clone() },
            CacheRecord { events: vec![Bytes::from_static(b"{}{1}")], ..record.clone() },
            CacheRecord { events: vec![first], body: Some(second), ..record.clone() },
        ] {
            assert_ne!(fingerprints.seal(&changed), seal, "{changed:?}");
        }
        assert_ne!(Fingerprints::new(Some(&Secret::new("k".into()))).seal(&record), seal);
    }
}
