//! The files of an archive: Avro containers whose records are those of the topic, each with where it stood.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_avro_fast::Schema;
use serde_avro_fast::object_container_file_encoding::{Compression, CompressionLevel, Reader, Writer, WriterBuilder};
use serde_avro_fast::ser::SerializerConfig;

use crate::domain::Timestamp;
use crate::records::{Record, Topic};

/// Fixed, so that the same records give the same bytes.
const SYNC_MARKER: [u8; 16] = *b"tollstream-logs.";
const BLOCK_BYTES: u32 = 128 * 1024;

/// A record, and where it stood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Archived<T> {
    pub offset: i64,
    /// The broker's.
    pub timestamp: Timestamp,
    pub key: Option<String>,
    pub value: T,
}

/// The schema of a topic's files.
pub fn schema(topic: Topic) -> String {
    let name = topic.name().replace('-', "_");
    format!(
        r#"{{"type":"record","name":"archived_{name}","namespace":"tollstream.files","fields":[
            {{"name":"offset","type":"long"}},
            {{"name":"timestamp","type":{{"type":"long","logicalType":"timestamp-millis"}}}},
            {{"name":"key","type":["null","string"],"default":null}},
            {{"name":"value","type":{}}}]}}"#,
        topic.schema()
    )
}

/// A file that is being written, in memory.
pub struct Writing {
    writer: Writer<'static, 'static, Vec<u8>>,
}

impl Writing {
    pub fn begin(topic: Topic) -> Result<Self, String> {
        let writer = WriterBuilder::with_owned_config(SerializerConfig::new(parsed(topic)?))
            .compression(Compression::Deflate { level: CompressionLevel::new(1) })
            .approx_block_size(BLOCK_BYTES)
            .sync_marker(SYNC_MARKER)
            .build(Vec::new());
        Ok(Self { writer: writer.map_err(|e| e.to_string())? })
    }

    pub fn add<T: Record + Serialize>(&mut self, record: &Archived<T>) -> Result<(), String> {
        self.writer.serialize(record).map_err(|e| e.to_string())
    }

    pub fn bytes(&self) -> usize {
        self.writer.inner().len()
    }

    pub fn finish(self) -> Result<Vec<u8>, String> {
        self.writer.into_inner().map_err(|e| e.to_string())
    }
}

/// Gives the records of a file, in their order, until it is told to end.
///
/// # Errors
/// What is wrong with the file, or the taker's own error.
pub fn each<T: Record + DeserializeOwned, E>(
    bytes: &[u8],
    damaged: impl Fn(String) -> E,
    mut take: impl FnMut(Archived<T>) -> Result<std::ops::ControlFlow<()>, E>,
) -> Result<std::ops::ControlFlow<()>, E> {
    let mut reader = Reader::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    while let Some(record) = reader.deserialize_next::<Archived<T>>().map_err(|e| damaged(e.to_string()))? {
        if take(record)?.is_break() {
            return Ok(std::ops::ControlFlow::Break(()));
        }
    }
    Ok(std::ops::ControlFlow::Continue(()))
}

/// Parsed once for each topic, and kept.
fn parsed(topic: Topic) -> Result<&'static Schema, String> {
    static PARSED: Mutex<Option<HashMap<Topic, &'static Schema>>> = Mutex::new(None);
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = parsed.get_or_insert_default();
    if let Some(schema) = parsed.get(&topic) {
        return Ok(schema);
    }
    let schema: Schema = schema(topic).parse().map_err(|e: serde_avro_fast::schema::SchemaError| e.to_string())?;
    let schema: &'static Schema = Box::leak(Box::new(schema));
    parsed.insert(topic, schema);
    Ok(schema)
}
