//! Records of any schema as JSON, for people: fields and kinds that this version does not know show, too.
//!
//! Slow on purpose: nothing on the way of a request uses this.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use base64::Engine as _;
use serde_json::{Map, Value as Json};

use super::{Error, HEADER_BYTES, Registry, schema_id};

/// Most bytes that one length within a datum may ask for.
const ALLOCATION_BYTES_MAX: usize = 64 << 20;
/// Most schemas that are kept.
const SCHEMAS_MAX: usize = 1_000;

/// Decodes with the writer's schema, which it fetches by its id.
pub struct Decoder {
    registry: Registry,
    /// Schemas, and why one is not to be had for good.
    schemas: HashMap<u32, Result<Arc<Schema>, String>>,
}

impl Decoder {
    pub fn new(registry: Registry) -> Self {
        // The first call in the process decides; without it the library's own bound of 512 MiB holds.
        apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES_MAX);
        Self { registry, schemas: HashMap::new() }
    }

    /// The record as JSON.
    ///
    /// # Errors
    /// [`Error::Registry`] is worth a retry; everything else is final for this record.
    pub async fn decode(&mut self, payload: &[u8]) -> Result<Json, Error> {
        let id = schema_id(payload)?;
        let schema = self.schema(id).await?;
        decode(&payload[HEADER_BYTES..], id, &schema)
    }

    async fn schema(&mut self, id: u32) -> Result<Arc<Schema>, Error> {
        if !self.schemas.contains_key(&id) {
            let schema = match self.registry.schema(id).await {
                Ok(text) => Schema::parse_str(&text).map(Arc::new).map_err(|e| e.to_string()),
                Err(Error::NoSuchSchema { .. }) => Err("the registry does not have it".to_owned()),
                Err(e) => return Err(e),
            };
            if self.schemas.len() >= SCHEMAS_MAX {
                self.schemas.clear();
            }
            self.schemas.insert(id, schema);
        }
        let found = self.schemas.get(&id).cloned().ok_or(Error::NoSuchSchema { id })?;
        found.map_err(|detail| Error::BadSchema { id, detail })
    }
}

/// Decodes one datum, which must be whole.
fn decode(datum: &[u8], id: u32, schema: &Schema) -> Result<Json, Error> {
    let undecodable = |detail: String| Error::Undecodable { id, detail };
    let reader = GenericDatumReader::builder(schema).build().map_err(|e| undecodable(e.to_string()))?;
    let mut source = Source { rest: datum, starved: false };
    let value = reader.read_value(&mut source).map_err(|e| undecodable(e.to_string()))?;
    match (source.starved, source.rest.len()) {
        // The library reads some values that are cut off as null.
        (true, _) => Err(undecodable("it ends too early".to_owned())),
        (false, 0) => Ok(json(value)),
        (false, trailing) => Err(Error::Trailing { id, trailing }),
    }
}

/// A reader that remembers whether more was asked for than there was.
struct Source<'a> {
    rest: &'a [u8],
    starved: bool,
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let taken = into.len().min(self.rest.len());
        self.starved |= taken < into.len();
        let (now, later) = self.rest.split_at(taken);
        into[..taken].copy_from_slice(now);
        self.rest = later;
        Ok(taken)
    }
}

/// Bytes as people read them: text where it is text, else `base64:` and the encoding.
pub fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("base64:{}", base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}

/// Numbers stay integers: nothing about money goes through a float.
fn json(value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Boolean(flag) => flag.into(),
        Value::Int(number) | Value::Date(number) | Value::TimeMillis(number) => number.into(),
        Value::Long(number)
        | Value::TimeMicros(number)
        | Value::TimestampMillis(number)
        | Value::TimestampMicros(number)
        | Value::TimestampNanos(number)
        | Value::LocalTimestampMillis(number)
        | Value::LocalTimestampMicros(number)
        | Value::LocalTimestampNanos(number) => number.into(),
        Value::Float(number) => f64::from(number).into(),
        Value::Double(number) => number.into(),
        Value::Bytes(bytes) | Value::Fixed(_, bytes) => readable(&bytes).into(),
        Value::String(text) | Value::Enum(_, text) => text.into(),
        Value::Union(_, inner) => json(*inner),
        Value::Array(items) => items.into_iter().map(json).collect(),
        Value::Map(entries) => {
            // In one order, so that the same record always prints the same.
            let sorted: std::collections::BTreeMap<String, Value> = entries.into_iter().collect();
            Json::Object(sorted.into_iter().map(|(key, value)| (key, json(value))).collect())
        }
        Value::Record(fields) => {
            Json::Object(fields.into_iter().map(|(name, value)| (name, json(value))).collect::<Map<_, _>>())
        }
        Value::Uuid(id) => id.to_string().into(),
        Value::Decimal(_) | Value::BigDecimal(_) | Value::Duration(_) => format!("{value:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::domain::{OrganizationId, RequestId};
    use crate::records::Topic;
    use crate::records::requests::{Cancel, Request, RequestRecord};

    fn datum() -> Vec<u8> {
        let request_id = RequestId::parse("r1").unwrap();
        let organization = OrganizationId::parse("acme").unwrap();
        let cancel = Cancel { request_id, organization, reason: "why".into() };
        let (codec, mut out) = (Codec::offline().unwrap(), Vec::new());
        codec.encode(&RequestRecord::from(Request::Cancel(cancel)), &mut out).unwrap();
        out.split_off(HEADER_BYTES)
    }

    #[test]
    fn a_record_prints_as_its_fields() {
        let schema = Schema::parse_str(Topic::Requests.schema()).unwrap();
        let printed = decode(&datum(), 1, &schema).unwrap().to_string();
        let expected = r#"{"kind":"cancel","chat":null,"cancel":{"request_id":"r1","organization":"acme","reason":"why"},"purge_cache":null}"#;
        assert_eq!(printed, expected);
    }

    #[test]
    fn what_is_cut_or_too_long_is_no_record() {
        let schema = Schema::parse_str(Topic::Requests.schema()).unwrap();
        let datum = datum();
        for cut in 0..datum.len() {
            assert!(matches!(decode(&datum[..cut], 1, &schema), Err(Error::Undecodable { .. })), "{cut}");
        }
        let longer = [datum.as_slice(), b"x"].concat();
        assert!(matches!(decode(&longer, 1, &schema), Err(Error::Trailing { trailing: 1, .. })));
        // A length that promises more than there is must not be allocated.
        let huge = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(decode(&huge, 1, &schema).is_err());
    }

    #[test]
    fn money_stays_an_integer_and_bytes_stay_bytes() {
        assert_eq!(json(Value::Long(9_007_199_254_740_993)).to_string(), "9007199254740993");
        assert_eq!(json(Value::Bytes("{\"a\":\"ü\"}".into())), "{\"a\":\"ü\"}");
        assert_eq!(json(Value::Bytes(vec![0xff, 0xfe])), "base64://4=");
    }
}
