//! The evolution of schemas against the real registry: what FULL_TRANSITIVE takes, and that this version reads it.

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::{Value, json};
use tollstream::codec::{self, Codec, Registry};
use tollstream::records::requests::{Request, RequestRecord};
use tollstream::records::{EnvelopeError, Topic};
use tollstream::topology::compatibility;

use super::fixture::stack;

/// The topic's schema with a change.
fn changed(topic: Topic, change: impl Fn(&mut Value)) -> String {
    let mut schema: Value = serde_json::from_str(topic.schema()).expect("JSON");
    change(&mut schema);
    schema.to_string()
}

fn fields(record: &mut Value) -> &mut Vec<Value> {
    record["fields"].as_array_mut().expect("fields")
}

fn add_kind(schema: &mut Value) {
    let embed = json!({"type": "record", "name": "Embed", "fields": [{"name": "body", "type": "bytes"}]});
    fields(schema).push(json!({"name": "embed", "type": ["null", embed], "default": null}));
}

fn add_field(schema: &mut Value) {
    let chat = &mut fields(schema)[1]["type"][1];
    fields(chat).push(json!({"name": "priority", "type": ["null", "int"], "default": null}));
}

/// Adds a symbol to the first enum there is.
fn add_symbol(schema: &mut Value) -> bool {
    match schema {
        Value::Array(items) => items.iter_mut().any(add_symbol),
        Value::Object(object) => match object.get_mut("symbols").and_then(Value::as_array_mut) {
            Some(symbols) => {
                symbols.push(json!("BRAND_NEW"));
                true
            }
            None => object.values_mut().any(add_symbol),
        },
        _ => false,
    }
}

/// A datum of a schema without references; what the JSON leaves out is the schema's default.
fn datum(schema: &Schema, value: &Value) -> Avro {
    match schema {
        Schema::Record(record) => {
            let field = |field: &apache_avro::schema::RecordField| {
                let given = value.get(&field.name).or(field.default.as_ref()).unwrap_or(&Value::Null);
                (field.name.clone(), datum(&field.schema, given))
            };
            Avro::Record(record.fields.iter().map(field).collect())
        }
        Schema::Union(_) if value.is_null() => Avro::Union(0, Box::new(Avro::Null)),
        Schema::Union(union) => Avro::Union(1, Box::new(datum(&union.variants()[1], value))),
        Schema::Enum(symbols) => {
            let symbol = value.as_str().expect("a symbol");
            let index = symbols.symbols.iter().position(|known| known == symbol).expect("a known symbol");
            Avro::Enum(index as u32, symbol.to_owned())
        }
        Schema::Map(_) => Avro::Map(std::collections::HashMap::new()),
        Schema::Bytes => Avro::Bytes(value.as_str().expect("text").as_bytes().to_vec()),
        Schema::String => Avro::String(value.as_str().expect("text").to_owned()),
        Schema::Int => Avro::Int(value.as_i64().expect("a number") as i32),
        Schema::Long => Avro::Long(value.as_i64().expect("a number")),
        other => panic!("{other:?}"),
    }
}

async fn registry(name: &str) -> Registry {
    let config = stack().isolated(name).await;
    Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry")
}

#[tokio::test]
async fn the_registry_takes_what_may_be_added_and_nothing_else() {
    let registry = registry("grow").await;
    for topic in Topic::ALL {
        let subject = registry.subject(topic);
        assert_eq!(registry.compatibility(&subject).await.expect("an answer").as_deref(), Some("FULL_TRANSITIVE"));
        let kind = changed(topic, add_kind);
        registry.register_text(&subject, &kind).await.unwrap_or_else(|e| panic!("an added kind: {e}"));
        let symbol = changed(topic, |schema| {
            add_kind(schema);
            add_symbol(schema);
        });
        registry.register_text(&subject, &symbol).await.unwrap_or_else(|e| panic!("an added symbol: {e}"));

        let refused = [
            changed(topic, |schema| {
                // One more branch of a union.
                let union = json!({"name": "embed", "default": null, "type": ["null",
                    {"type": "record", "name": "Embed", "fields": [{"name": "body", "type": "bytes"}]},
                    {"type": "record", "name": "Other", "fields": []}]});
                fields(schema).push(union);
            }),
            changed(topic, |schema| fields(schema).push(json!({"name": "required", "type": "long"}))),
            changed(topic, |schema| {
                fields(schema).remove(0);
            }),
        ];
        let current = Schema::parse_str(&kind).expect("a schema");
        for schema in refused {
            let answer = registry.register_text(&subject, &schema).await;
            assert!(matches!(answer, Err(codec::Error::Incompatible { .. })), "{}: {answer:?}", topic.name());
            // The offline check comes to the same answer.
            let offline = compatibility::full(&current, &Schema::parse_str(&schema).expect("a schema"));
            assert!(offline.is_err(), "{}", topic.name());
        }
    }
}

#[tokio::test]
async fn what_a_newer_version_writes_is_read() {
    let registry = registry("newer").await;
    let subject = registry.subject(Topic::Requests);
    let text = changed(Topic::Requests, |schema| {
        add_field(schema);
        assert!(add_symbol(schema));
        add_kind(schema);
    });
    let id = registry.register_text(&subject, &text).await.expect("the newer schema");
    let codec = Codec::connect(registry).await.expect("a codec");
    let schema = Schema::parse_str(&text).expect("a schema");
    let writer = GenericDatumWriter::builder(&schema).build().expect("a writer");
    let write = |value: Value| {
        let mut payload = vec![0];
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend(writer.write_value_to_vec(datum(&schema, &value)).expect("a datum"));
        payload
    };

    let chat = json!({
        "request_id": "r1", "organization": "acme", "priority": 7, "origin": "BRAND_NEW", "body": "{}",
    });
    let payload = write(json!({"kind": "chat", "chat": chat, "cancel": null, "embed": null}));
    assert!(matches!(codec.decode::<RequestRecord>(&payload), Err(codec::Error::UnknownSchema { .. })));
    let record: RequestRecord = codec.decode_learning(&payload).await.expect("it decodes");
    let Ok(Request::Chat(chat)) = Request::try_from(record) else { panic!("a chat") };
    assert_eq!((chat.request_id.as_str(), &chat.body[..]), ("r1", &b"{}"[..]));
    assert_eq!(chat.origin, tollstream::records::Origin::Unknown, "the default symbol");

    let payload = write(json!({"kind": "embed", "chat": null, "cancel": null, "embed": {"body": "x"}}));
    let record: RequestRecord = codec.decode_learning(&payload).await.expect("it decodes");
    let unknown = Request::try_from(record);
    assert!(matches!(unknown, Err(EnvelopeError::UnknownKind { ref kind, .. }) if kind == "embed"), "{unknown:?}");
}
