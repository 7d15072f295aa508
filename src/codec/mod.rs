//! Avro records in the schema registry's wire format: a zero byte, the schema's id (big endian), the datum.
//!
//! The fast path is `serde_avro_fast`, which decodes with the writer's schema straight into the reader's type; that every
//! released schema can be read so is proven by the evolution tests. This module never registers a schema:
//! `tollstream topology apply` does. The registry is only asked for ids that were not seen before.

#[cfg(test)]
mod evolution;
pub mod generic;
mod registry;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_avro_fast::Schema;

use crate::records::{Record, Topic};
pub use registry::Registry;

/// Bytes before the datum.
pub(crate) const HEADER_BYTES: usize = 5;
/// Schemas that are kept at the most; then those of others are forgotten, and fetched again where they are met again.
const SCHEMAS_MAX: usize = 1_000;
/// Most elements of one Avro array or map that are read.
const SEQUENCE_MAX: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{bytes} bytes do not begin with the schema registry's header (a zero byte and a schema id)")]
    NotFramed { bytes: usize },
    #[error("schema {id} is not known yet")]
    UnknownSchema { id: u32 },
    #[error("the schema registry has no schema {id}; register it, or produce with the schema of the topic")]
    NoSuchSchema { id: u32 },
    #[error("schema {id} is not usable: {detail}")]
    BadSchema { id: u32, detail: String },
    #[error("not a record of schema {id}: {detail}")]
    Undecodable { id: u32, detail: String },
    #[error("{trailing} bytes follow the record of schema {id}")]
    Trailing { id: u32, trailing: usize },
    #[error("a record for {topic} does not fit its schema: {detail}")]
    Unencodable { topic: &'static str, detail: String },
    #[error("the schema of {subject} is not registered; run `tollstream topology apply`")]
    NotRegistered { subject: String },
    #[error("the schema registry refuses the schema of {subject}: {detail}")]
    Incompatible { subject: String, detail: String },
    #[error("schema registry {url} did not answer: {detail}")]
    Registry { url: String, detail: String },
    #[error(
        "schema registry {url} does not accept these credentials; check registry.user and registry.password, or \
         registry.token: {detail}"
    )]
    RegistryCredentials { url: String, detail: String },
    #[error(
        "the certificate of the schema registry {url} is not trusted; check registry.ca_file, which must hold who \
         signed it, and that it names that address: {detail}"
    )]
    RegistryCertificate { url: String, detail: String },
    #[error("the connection with the schema registry cannot be set up: {0}")]
    Tls(#[from] crate::tls::Error),
    #[error("registry.user, registry.password or registry.token has characters that a header cannot carry")]
    UnusableCredentials,
}

/// Encodes and decodes the records of all topics. Shared by everything in the process.
pub struct Codec {
    encoders: HashMap<Topic, (u32, Arc<Schema>)>,
    writers: RwLock<HashMap<u32, Arc<Schema>>>,
    /// `None` only in tests, which know all their schemas.
    registry: Option<Registry>,
}

impl Codec {
    /// Asks the registry for the ids of the schemas that this program writes.
    ///
    /// # Errors
    /// [`Error::NotRegistered`] when `topology apply` has not been run; [`Error::Registry`] when it does not answer.
    pub async fn connect(registry: Registry) -> Result<Self, Error> {
        let (mut encoders, mut writers) = (HashMap::new(), HashMap::new());
        for topic in Topic::ALL {
            let id = registry.id_of(topic).await?;
            let schema = Arc::new(parse(id, topic.schema())?);
            writers.insert(id, schema.clone());
            encoders.insert(topic, (id, schema));
        }
        Ok(Self { encoders, writers: RwLock::new(writers), registry: Some(registry) })
    }

    /// A codec that knows only the schemas of this program, under ids that it makes up; for tests without a registry.
    pub fn offline() -> Result<Self, Error> {
        let (mut encoders, mut writers) = (HashMap::new(), HashMap::new());
        for (id, topic) in (1..).zip(Topic::ALL) {
            let schema = Arc::new(parse(id, topic.schema())?);
            writers.insert(id, schema.clone());
            encoders.insert(topic, (id, schema));
        }
        Ok(Self { encoders, writers: RwLock::new(writers), registry: None })
    }

    /// A codec that only reads, and learns every schema from the registry when it meets it.
    pub fn reader(registry: Registry) -> Self {
        Self { encoders: HashMap::new(), writers: RwLock::default(), registry: Some(registry) }
    }

    /// Writes the record into `out`, which is emptied first and can be used again.
    pub fn encode<T: Record + Serialize>(&self, record: &T, out: &mut Vec<u8>) -> Result<(), Error> {
        let unencodable = |detail: String| Error::Unencodable { topic: T::TOPIC.name(), detail };
        let (id, schema) =
            self.encoders.get(&T::TOPIC).ok_or_else(|| unencodable("the topic has no schema".to_owned()))?;
        out.clear();
        out.push(0);
        out.extend_from_slice(&id.to_be_bytes());
        let mut config = serde_avro_fast::ser::SerializerConfig::new(schema);
        serde_avro_fast::to_datum(record, &mut *out, &mut config).map_err(|e| unencodable(e.to_string()))?;
        Ok(())
    }

    /// Reads a record; the whole payload must be the record.
    ///
    /// # Errors
    /// [`Error::UnknownSchema`] is a reason to [`learn`](Self::learn) and try again; everything else is final.
    pub fn decode<T: Record + DeserializeOwned>(&self, payload: &[u8]) -> Result<T, Error> {
        let id = schema_id(payload)?;
        let schema = {
            let writers = self.writers.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            writers.get(&id).cloned().ok_or(Error::UnknownSchema { id })?
        };
        decode_datum(&payload[HEADER_BYTES..], id, &schema)
    }

    /// Fetches a writer's schema from the registry.
    ///
    /// # Errors
    /// [`Error::Registry`] is worth a retry; [`Error::NoSuchSchema`] and [`Error::BadSchema`] are final.
    pub async fn learn(&self, id: u32) -> Result<(), Error> {
        let registry = self.registry.as_ref().ok_or(Error::NoSuchSchema { id })?;
        let text = registry.schema(id).await?;
        let schema = Arc::new(parse(id, &text)?);
        let mut writers = self.writers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if writers.len() >= SCHEMAS_MAX {
            writers.retain(|id, _| self.encoders.values().any(|(own, _)| own == id));
        }
        writers.insert(id, schema);
        Ok(())
    }

    /// Reads a record, learning its schema first if need be.
    pub async fn decode_learning<T: Record + DeserializeOwned>(&self, payload: &[u8]) -> Result<T, Error> {
        match self.decode(payload) {
            Err(Error::UnknownSchema { id }) => {
                self.learn(id).await?;
                self.decode(payload)
            }
            decided => decided,
        }
    }
}

/// The id of the schema that a payload was written with.
pub fn schema_id(payload: &[u8]) -> Result<u32, Error> {
    match payload {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(Error::NotFramed { bytes: payload.len() }),
    }
}

fn parse(id: u32, text: &str) -> Result<Schema, Error> {
    text.parse().map_err(|e: serde_avro_fast::schema::SchemaError| Error::BadSchema { id, detail: e.to_string() })
}

/// Reads one datum that was written with `schema` and must fill `datum`.
pub fn decode_datum<T: DeserializeOwned>(datum: &[u8], id: u32, schema: &Schema) -> Result<T, Error> {
    let mut config = serde_avro_fast::de::DeserializerConfig::new(schema);
    config.max_seq_size = SEQUENCE_MAX;
    let read = serde_avro_fast::de::read::SliceRead::new(datum);
    let mut state = serde_avro_fast::de::DeserializerState::with_config(read, config);
    let record = T::deserialize(state.deserializer()).map_err(|e| Error::Undecodable { id, detail: e.to_string() })?;
    let trailing = std::io::copy(&mut state.into_reader(), &mut std::io::sink()).unwrap_or(0);
    match trailing {
        0 => Ok(record),
        _ => Err(Error::Trailing { id, trailing: trailing as usize }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrganizationId, RequestId};
    use crate::records::requests::{Cancel, Request, RequestRecord};

    fn record() -> RequestRecord {
        let request_id = RequestId::parse("r1").unwrap();
        let organization = OrganizationId::parse("acme").unwrap();
        Request::Cancel(Cancel { request_id, organization, reason: "why".into() }).into()
    }

    #[test]
    fn a_record_comes_back_as_it_went() {
        let (codec, mut out) = (Codec::offline().unwrap(), Vec::new());
        codec.encode(&record(), &mut out).unwrap();
        assert_eq!(out[0], 0);
        assert_eq!(codec.decode::<RequestRecord>(&out).unwrap(), record());
    }

    #[test]
    fn what_is_not_a_record_says_why() {
        let (codec, mut out) = (Codec::offline().unwrap(), Vec::new());
        codec.encode(&record(), &mut out).unwrap();
        let decode = |payload: &[u8]| codec.decode::<RequestRecord>(payload).unwrap_err();
        assert!(matches!(decode(b""), Error::NotFramed { bytes: 0 }));
        assert!(matches!(decode(b"{\"model\":1}"), Error::NotFramed { .. }));
        assert!(matches!(decode(&[0, 0, 0, 9, 9, 1]), Error::UnknownSchema { id: 2313 }));
        assert!(matches!(decode(&out[..out.len() - 1]), Error::Undecodable { .. }));
        let mut longer = out.clone();
        longer.extend_from_slice(b"xx");
        assert!(matches!(decode(&longer), Error::Trailing { trailing: 2, .. }));
        // A length that promises more than there is must not be allocated.
        let mut huge = out[..5].to_vec();
        huge.extend_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert!(matches!(decode(&huge), Error::Undecodable { .. }));
    }
}
