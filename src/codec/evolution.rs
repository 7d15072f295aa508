//! The proof that the fast path reads every released schema as Avro's resolution rules say.
//!
//! For each writer's schema, released or planted, a generated datum is decoded by apache-avro with resolution to the
//! current schema, and by the fast path, whose result is written again with the current schema. Both must be the same.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::{RecordField, RecordSchema, ResolvedSchema};
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use crate::domain::Fingerprint;
use crate::random::Random;
use crate::records::cache::CacheRecord;
use crate::records::control::ControlRecord;
use crate::records::dead_letters::DeadLetter;
use crate::records::journal::{FACT_KINDS, JournalRecord};
use crate::records::requests::RequestRecord;
use crate::records::responses::ResponseRecord;
use crate::records::state::StateRecord;
use crate::records::usage::UsageRecord;
use crate::records::{Record, Topic};
use crate::topology::{Files, compatibility, schemas};

/// Data generated for each writer's schema.
const DATA: u64 = 40;

impl Random {
    fn text(&mut self) -> String {
        let letters: Vec<char> = "abcdefghijklmnopqrstuvwxyz0123456789_-.:/@+~".chars().collect();
        (0..=self.below(11)).map(|_| letters[self.below(letters.len() as u64) as usize]).collect()
    }
}

/// A datum of the schema whose values our types take: identifiers, counts that are not negative, facts of a known kind.
fn generate(schema: &Schema, names: &ResolvedSchema<'_>, random: &mut Random) -> Value {
    match schema {
        Schema::Null => Value::Null,
        Schema::Boolean => Value::Boolean(random.below(2) == 1),
        Schema::Int => Value::Int(random.below(200) as i32),
        Schema::Long => Value::Long(random.below(1 << 40) as i64),
        Schema::Bytes => Value::Bytes((0..random.below(20)).map(|_| random.below(256) as u8).collect()),
        Schema::String => Value::String(random.text()),
        Schema::Array(array) => {
            Value::Array((0..random.below(4)).map(|_| generate(&array.items, names, random)).collect())
        }
        Schema::Map(map) => {
            Value::Map((0..random.below(4)).map(|_| (random.text(), generate(&map.types, names, random))).collect())
        }
        Schema::Union(union) => {
            let branch = random.below(union.variants().len() as u64) as u32;
            Value::Union(branch, Box::new(generate(&union.variants()[branch as usize], names, random)))
        }
        Schema::Record(record) if record.name.name() == "Fact" => fact(record, names, random),
        Schema::Record(record) => {
            let mut field = |field: &RecordField| match (&field.schema, field.name.as_str()) {
                (Schema::String, "content" | "fingerprint") => fingerprint(random),
                (Schema::Array(_), "fingerprints") => Value::Array((0..3).map(|_| fingerprint(random)).collect()),
                (schema, _) => generate(schema, names, random),
            };
            Value::Record(record.fields.iter().map(|f| (f.name.clone(), field(f))).collect())
        }
        Schema::Enum(symbols) => {
            let symbol = random.below(symbols.symbols.len() as u64) as u32;
            Value::Enum(symbol, symbols.symbols[symbol as usize].clone())
        }
        Schema::Ref { name } => generate(names.get_names()[name], names, random),
        other => panic!("the schemas have no {other:?} yet"),
    }
}

fn fingerprint(random: &mut Random) -> Value {
    Value::String(Fingerprint::new(random.below(u64::MAX).into()).to_string())
}

/// A fact's envelope: the kind says which field is set.
fn fact(record: &RecordSchema, names: &ResolvedSchema<'_>, random: &mut Random) -> Value {
    let known: Vec<&str> = record.fields.iter().map(|f| f.name.as_str()).filter(|n| FACT_KINDS.contains(n)).collect();
    let kind = known[random.below(known.len() as u64) as usize];
    let mut field = |field: &RecordField| match &field.schema {
        Schema::String if field.name == "kind" => Value::String(kind.to_owned()),
        Schema::Union(union) if known.contains(&field.name.as_str()) => {
            let branch = usize::from(field.name == kind);
            Value::Union(branch as u32, Box::new(generate(&union.variants()[branch], names, random)))
        }
        added => generate(added, names, random),
    };
    Value::Record(record.fields.iter().map(|f| (f.name.clone(), field(f))).collect())
}

fn prove(topic: Topic, writer: &str, what: &str) {
    match topic {
        Topic::Requests => prove_as::<RequestRecord>(writer, what),
        Topic::Journal => prove_as::<JournalRecord>(writer, what),
        Topic::Responses => prove_as::<ResponseRecord>(writer, what),
        Topic::State => prove_as::<StateRecord>(writer, what),
        Topic::Cache => prove_as::<CacheRecord>(writer, what),
        Topic::Control => prove_as::<ControlRecord>(writer, what),
        Topic::Usage => prove_as::<UsageRecord>(writer, what),
        Topic::DeadLetters => prove_as::<DeadLetter>(writer, what),
    }
}

fn prove_as<T: Record + Serialize + DeserializeOwned>(writer: &str, what: &str) {
    let what = format!("{}: {what}", T::TOPIC.name());
    let schema = Schema::parse_str(writer).unwrap_or_else(|e| panic!("{what}: {e}\n{writer}"));
    let current = Schema::parse_str(T::TOPIC.schema()).unwrap();
    compatibility::full(&schema, &current).unwrap_or_else(|e| panic!("{what}: {e}"));
    let fast: serde_avro_fast::Schema = writer.parse().unwrap_or_else(|e| panic!("{what}: {e}"));
    let codec = super::Codec::offline().unwrap();
    let names = ResolvedSchema::new(&schema).unwrap();
    let write = GenericDatumWriter::builder(&schema).build().unwrap();
    let resolve = GenericDatumReader::builder(&schema).reader_schema(&current).build().unwrap();
    let read = GenericDatumReader::builder(&current).build().unwrap();
    let (mut random, mut again) = (Random(0x2545_f491_4f6c_dd1d), Vec::new());
    for _ in 0..DATA {
        let datum = write.write_value_to_vec(generate(&schema, &names, &mut random)).unwrap();
        let resolved = resolve.read_value(&mut datum.as_slice()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let record: T = super::decode_datum(&datum, 1, &fast).unwrap_or_else(|e| panic!("{what}: {e}"));
        codec.encode(&record, &mut again).unwrap_or_else(|e| panic!("{what}: {e}"));
        let taken = read.read_value(&mut &again[super::HEADER_BYTES..]).unwrap();
        assert_eq!(taken, resolved, "{what}");
    }
}

#[test]
fn every_released_schema_is_read_as_avro_says() {
    let files = Files::embedded();
    for topic in Topic::ALL {
        prove(topic, topic.schema(), "the current schema");
        for (number, text) in schemas::history(&files, topic) {
            prove(topic, &text, &format!("release {number}"));
        }
    }
}

#[test]
fn what_an_older_version_did_not_have_yet_gets_the_default_of_the_schema() {
    // Taking a field with a default away gives a schema from before it, which proves that each default is the same in
    // the schema and in the Rust type.
    let mut count = 0;
    for topic in Topic::ALL {
        for (what, writer) in changed(topic, &mut without_field) {
            // A field that holds the definition of a type which another one names cannot be taken away alone.
            if !Schema::parse_str(&writer).is_ok_and(|schema| ResolvedSchema::new(&schema).is_ok()) {
                continue;
            }
            prove(topic, &writer, &what);
            count += 1;
        }
    }
    assert!(count > 100, "{count} fields have defaults");
}

#[test]
fn what_a_newer_version_adds_is_passed_over() {
    let mut count = 0;
    for topic in Topic::ALL {
        for (what, writer) in changed(topic, &mut with_field) {
            prove(topic, &writer, &what);
            count += 1;
        }
        for (what, writer) in changed(topic, &mut with_kind) {
            prove(topic, &writer, &what);
            count += 1;
        }
    }
    assert!(count > 20, "{count} records");
}

#[test]
fn a_symbol_that_a_newer_version_adds_reads_as_the_default() {
    let mut count = 0;
    for topic in Topic::ALL {
        for (what, writer) in changed(topic, &mut with_symbol) {
            prove(topic, &writer, &what);
            count += 1;
        }
    }
    assert!(count >= 8, "{count} enums");
}

/// Makes the n-th possible change of a kind in a definition, and says what it was; `None`: not here, count on.
type Change<'a> = &'a mut dyn FnMut(&mut Map<String, Json>, &mut usize) -> Option<String>;

/// The topic's current schema with a change, once for each place where it can be made.
fn changed(topic: Topic, change: Change<'_>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for place in 0.. {
        let mut schema: Json = serde_json::from_str(topic.schema()).unwrap();
        let Some(what) = visit(&mut schema, &mut { place }, change) else { break };
        all.push((what, define_first_mentions(schema)));
    }
    all
}

/// Offers every definition in document order.
fn visit(schema: &mut Json, place: &mut usize, change: Change<'_>) -> Option<String> {
    match schema {
        Json::Array(branches) => branches.iter_mut().find_map(|branch| visit(branch, place, change)),
        Json::Object(object) => {
            if let Some(what) = change(object, place) {
                return Some(what);
            }
            for key in ["items", "values", "type"] {
                if let Some(what) = object.get_mut(key).and_then(|inner| visit(inner, place, change)) {
                    return Some(what);
                }
            }
            let fields = object.get_mut("fields").and_then(Json::as_array_mut)?;
            fields.iter_mut().find_map(|field| visit(&mut field["type"], place, change))
        }
        _ => None,
    }
}

/// Whether this is the place; counts down.
fn here(place: &mut usize) -> bool {
    let here = *place == 0;
    *place = place.wrapping_sub(1);
    here
}

fn without_field(object: &mut Map<String, Json>, place: &mut usize) -> Option<String> {
    let name = object.get("name").cloned();
    let fields = object.get_mut("fields").and_then(Json::as_array_mut)?;
    let index = (0..fields.len()).find(|i| fields[*i].get("default").is_some() && here(place))?;
    let removed = fields.remove(index);
    // The definitions that go with it are needed where they are mentioned later.
    object.insert("removed".into(), removed["type"].clone());
    Some(format!("before {}.{}", name.unwrap_or_default(), removed["name"]))
}

fn with_field(object: &mut Map<String, Json>, place: &mut usize) -> Option<String> {
    let name = object.get("name").cloned();
    let fields = object.get_mut("fields").and_then(Json::as_array_mut).filter(|_| here(place))?;
    fields.insert(0, json!({ "name": "added", "type": ["null", "string"], "default": null }));
    fields.push(json!({ "name": "added_last", "type": { "type": "array", "items": "long" }, "default": [] }));
    Some(format!("fields added to {}", name.unwrap_or_default()))
}

fn with_kind(object: &mut Map<String, Json>, place: &mut usize) -> Option<String> {
    let name = object.get("name").cloned();
    let fields = object.get_mut("fields").and_then(Json::as_array_mut)?;
    if !fields.iter().any(|field| field["name"] == "kind" && field["type"] == "string") || !here(place) {
        return None;
    }
    let inner = json!({ "name": "of_it", "type": { "type": "map", "values": "bytes" } });
    let kind = json!({ "type": "record", "name": "AddedKind", "fields": [inner] });
    fields.push(json!({ "name": "added_kind", "type": ["null", kind], "default": null }));
    Some(format!("a kind added to {}", name.unwrap_or_default()))
}

fn with_symbol(object: &mut Map<String, Json>, place: &mut usize) -> Option<String> {
    let name = object.get("name").cloned();
    let symbols = object.get_mut("symbols").and_then(Json::as_array_mut).filter(|_| here(place))?;
    symbols.push(json!("ADDED"));
    Some(format!("a symbol added to {}", name.unwrap_or_default()))
}

/// Moves the definitions of a removed field to where they are mentioned first.
fn define_first_mentions(mut schema: Json) -> String {
    let mut definitions = Map::new();
    take_removed(&mut schema, &mut definitions);
    define(&mut schema, &mut definitions);
    schema.to_string()
}

fn take_removed(schema: &mut Json, definitions: &mut Map<String, Json>) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(|item| take_removed(item, definitions)),
        Json::Object(object) => {
            if let Some(removed) = object.remove("removed") {
                collect(&removed, definitions);
            }
            object.values_mut().for_each(|value| take_removed(value, definitions));
        }
        _ => {}
    }
}

fn collect(schema: &Json, definitions: &mut Map<String, Json>) {
    match schema {
        Json::Array(items) => items.iter().for_each(|item| collect(item, definitions)),
        Json::Object(object) => {
            if let (Some(name), true) = (object.get("name").and_then(Json::as_str), object.contains_key("type")) {
                definitions.insert(name.to_owned(), schema.clone());
            }
            object.values().for_each(|value| collect(value, definitions));
        }
        _ => {}
    }
}

fn define(schema: &mut Json, definitions: &mut Map<String, Json>) {
    match schema {
        Json::String(name) => {
            if let Some(definition) = definitions.remove(name.as_str()) {
                *schema = definition;
                define(schema, definitions);
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| define(item, definitions)),
        Json::Object(object) => {
            for key in ["type", "items", "values"] {
                object.get_mut(key).into_iter().for_each(|inner| define(inner, definitions));
            }
            let fields = object.get_mut("fields").and_then(Json::as_array_mut);
            fields.into_iter().flatten().for_each(|field| define(&mut field["type"], definitions));
        }
        _ => {}
    }
}
