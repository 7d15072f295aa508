//! The files of an archive: Avro containers whose records are those of the topic, each with where it stood.

use std::collections::HashMap;
use std::io::{BufRead as _, Read as _};
use std::ops::ControlFlow;
use std::sync::{LazyLock, Mutex, PoisonError};

use flate2::read::DeflateDecoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_avro_fast::Schema;
use serde_avro_fast::de::DeserializerState;
use serde_avro_fast::object_container_file_encoding::{Compression, CompressionLevel, Writer, WriterBuilder};
use serde_avro_fast::ser::SerializerConfig;

use crate::domain::Timestamp;
use crate::records::{Record, Topic};

/// Fixed, so that the same records give the same bytes.
const SYNC_MARKER: [u8; 16] = *b"tollstream-logs.";
const BLOCK_BYTES: u32 = 128 * 1024;
/// Most bytes of a block: the largest record, and what is before it.
const BLOCK_BYTES_MAX: u64 = 64 << 20;

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
/// A block is inflated as a whole and its records are decoded from that slice: `serde_avro_fast`'s own reader takes them out of
/// the stream that inflates, which takes half as long again.
///
/// # Errors
/// What is wrong with the file, or the taker's own error.
pub fn each<T: Record + DeserializeOwned, E>(
    bytes: &[u8],
    damaged: impl Fn(String) -> E,
    mut take: impl FnMut(Archived<T>) -> Result<ControlFlow<()>, E>,
) -> Result<ControlFlow<()>, E> {
    let [header_of, block_of] = frame().map_err(&damaged)?;
    let mut state = DeserializerState::from_slice(bytes, header_of);
    let header = Header::deserialize(state.deserializer()).map_err(|e| damaged(e.to_string()))?;
    let schema: Schema = header.schema().and_then(parse).map_err(&damaged)?;
    let codec = header.meta.get("avro.codec").map_or(&b"null"[..], |codec| codec.as_ref());
    let (mut rest, sync, mut inflated) = (state.into_reader(), header.sync, Vec::new());
    while !rest.fill_buf().is_ok_and(<[u8]>::is_empty) {
        let mut state = DeserializerState::new(rest, block_of);
        let block = Block::deserialize(state.deserializer()).map_err(|e| damaged(e.to_string()))?;
        rest = state.into_reader();
        if block.sync != sync {
            return Err(damaged("a block does not end with the file's marker".to_owned()));
        }
        let data = match codec {
            b"null" => block.data,
            b"deflate" => {
                inflated.clear();
                let inflating = DeflateDecoder::new(block.data).take(BLOCK_BYTES_MAX).read_to_end(&mut inflated);
                inflating.map_err(|e| damaged(e.to_string()))?;
                &inflated[..]
            }
            other => return Err(damaged(format!("its codec is {}", String::from_utf8_lossy(other)))),
        };
        let mut records = DeserializerState::from_slice(data, &schema);
        for _ in 0..block.count {
            let record = Archived::deserialize(records.deserializer()).map_err(|e| damaged(e.to_string()))?;
            if take(record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if !records.into_reader().fill_buf().is_ok_and(<[u8]>::is_empty) {
            return Err(damaged("a block has more than its records".to_owned()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// What a container begins with, and each of its blocks: <https://avro.apache.org/docs/1.12.0/specification/#object-container-files>.
const FRAME: [&str; 2] = [
    r#"{"type":"record","name":"Header","fields":[
        {"name":"magic","type":{"type":"fixed","name":"Magic","size":4}},
        {"name":"meta","type":{"type":"map","values":"bytes"}},
        {"name":"sync","type":{"type":"fixed","name":"Sync","size":16}}]}"#,
    r#"{"type":"record","name":"Block","fields":[
        {"name":"count","type":"long"},
        {"name":"data","type":"bytes"},
        {"name":"sync","type":{"type":"fixed","name":"Sync","size":16}}]}"#,
];
const MAGIC: &[u8] = b"Obj\x01";

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    magic: &'a [u8],
    #[serde(borrow)]
    meta: HashMap<&'a str, &'a [u8]>,
    #[serde(borrow)]
    sync: &'a [u8],
}

impl<'a> Header<'a> {
    fn schema(&self) -> Result<&'a str, String> {
        if self.magic != MAGIC {
            return Err("it is no Avro container".to_owned());
        }
        let schema = self.meta.get("avro.schema").ok_or("it has no schema")?;
        std::str::from_utf8(schema).map_err(|e| e.to_string())
    }
}

#[derive(Deserialize)]
struct Block<'a> {
    count: u64,
    #[serde(borrow)]
    data: &'a [u8],
    #[serde(borrow)]
    sync: &'a [u8],
}

fn frame() -> Result<&'static [Schema; 2], String> {
    static FRAME_SCHEMAS: LazyLock<Result<[Schema; 2], String>> =
        LazyLock::new(|| Ok([parse(FRAME[0])?, parse(FRAME[1])?]));
    FRAME_SCHEMAS.as_ref().map_err(Clone::clone)
}

fn parse(schema: &str) -> Result<Schema, String> {
    schema.parse().map_err(|e: serde_avro_fast::schema::SchemaError| e.to_string())
}

/// Parsed once for each topic, and kept.
fn parsed(topic: Topic) -> Result<&'static Schema, String> {
    static PARSED: Mutex<Option<HashMap<Topic, &'static Schema>>> = Mutex::new(None);
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = parsed.get_or_insert_default();
    if let Some(schema) = parsed.get(&topic) {
        return Ok(schema);
    }
    let schema: &'static Schema = Box::leak(Box::new(parse(&schema(topic))?));
    parsed.insert(topic, schema);
    Ok(schema)
}
