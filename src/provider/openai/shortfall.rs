//! What a whole answer lacks of what was asked for.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::records::policy::{EMPTY, LENGTH, NOT_JSON, NOT_SCHEMA};

/// Longest answer that is held against a schema, in bytes; a longer one is taken to match.
const CHECKED_BYTES_MAX: usize = 1 << 20;
/// Longest schema, in bytes, that answers are held against.
const SCHEMA_BYTES_MAX: usize = 64 << 10;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, default)]
    response_format: Option<Format<'a>>,
}

#[derive(Deserialize)]
struct Format<'a> {
    #[serde(default)]
    r#type: String,
    #[serde(borrow, default)]
    json_schema: Option<JsonSchema<'a>>,
}

#[derive(Deserialize)]
struct JsonSchema<'a> {
    #[serde(borrow, default)]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Message {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
}

impl Message {
    fn is_empty(&self) -> bool {
        let blank = |text: &Option<String>| text.as_ref().is_none_or(|text| text.trim().is_empty());
        let no_calls = self.tool_calls.as_ref().is_none_or(|calls| calls.as_array().is_none_or(Vec::is_empty));
        blank(&self.content) && blank(&self.refusal) && no_calls && self.function_call.is_none()
    }

    /// It is text that was asked for, not a call and not a refusal.
    fn text(&self) -> Option<&str> {
        self.content.as_deref().filter(|text| !text.trim().is_empty())
    }
}

/// The first of `wanted` that the answer to a request has of these: nothing in it, cut by length, no JSON where JSON was asked
/// for, JSON that does not match the schema that was asked for. What cannot be understood lacks nothing that we know of.
pub fn shortfall(request: &[u8], answer: &[u8], wanted: &[String]) -> Option<String> {
    if wanted.is_empty() {
        return None;
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let has = |name: &&String| match name.as_str() {
        EMPTY => answer.choices.iter().all(|choice| choice.message.is_empty()),
        LENGTH => answer.choices.iter().any(|choice| choice.finish_reason.as_deref() == Some("length")),
        NOT_JSON => asks_for_json(request) && texts(&answer).any(|text| object(text).is_none()),
        NOT_SCHEMA => lacks_schema(request, &answer),
        _ => false,
    };
    wanted.iter().find(has).cloned()
}

fn texts(answer: &Answer) -> impl Iterator<Item = &str> {
    answer.choices.iter().filter_map(|choice| choice.message.text())
}

fn asks_for_json(request: &[u8]) -> bool {
    let request = serde_json::from_slice::<Request<'_>>(request);
    let format = request.ok().and_then(|request| request.response_format);
    format.is_some_and(|format| matches!(format.r#type.as_str(), "json_object" | "json_schema"))
}

fn lacks_schema(request: &[u8], answer: &Answer) -> bool {
    let Ok(request) = serde_json::from_slice::<Request<'_>>(request) else { return false };
    let schema = request.response_format.and_then(|format| format.json_schema).and_then(|of| of.schema);
    let Some(schema) = schema.filter(|schema| schema.get().len() <= SCHEMA_BYTES_MAX) else { return false };
    // A schema that is none is the client's to mend: its provider has taken it.
    let validator =
        serde_json::from_str(schema.get()).ok().and_then(|schema: Value| jsonschema::validator_for(&schema).ok());
    let Some(validator) = validator else { return false };
    texts(answer).filter(|text| text.len() <= CHECKED_BYTES_MAX).any(|text| match object(text) {
        Some(value) => !validator.is_valid(&value),
        None => true,
    })
}

fn object(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"{"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":
        {"type":"object","required":["a"],"properties":{"a":{"type":"integer"}}}}}}"#;
    const OBJECT: &str = r#"{"response_format":{"type":"json_object"}}"#;

    fn answer(content: &str, finish_reason: &str) -> String {
        let message = serde_json::json!({ "role": "assistant", "content": content });
        serde_json::json!({ "choices": [{ "message": message, "finish_reason": finish_reason }] }).to_string()
    }

    #[test]
    fn what_an_answer_lacks_is_named() {
        let all: Vec<String> = [EMPTY, LENGTH, NOT_JSON, NOT_SCHEMA].map(str::to_owned).to_vec();
        let table = [
            ("{}", answer("hello", "stop"), None),
            ("{}", answer(" \n", "stop"), Some(EMPTY)),
            ("{}", answer("hel", "length"), Some(LENGTH)),
            ("{}", answer("{", "stop"), None),
            (OBJECT, answer("{", "stop"), Some(NOT_JSON)),
            (OBJECT, answer(r#"{"b":1}"#, "stop"), None),
            (SCHEMA, answer("no", "stop"), Some(NOT_JSON)),
            (SCHEMA, answer(r#"{"b":1}"#, "stop"), Some(NOT_SCHEMA)),
            (SCHEMA, answer(r#"{"a":"1"}"#, "stop"), Some(NOT_SCHEMA)),
            (SCHEMA, answer(r#"{"a":1}"#, "stop"), None),
            ("garbage", answer("{", "stop"), None),
            (OBJECT, "garbage".to_owned(), None),
            (
                OBJECT,
                r#"{"choices":[{"message":{"content":null,"tool_calls":[{"id":"c"}]},"finish_reason":"tool_calls"}]}"#
                    .to_owned(),
                None,
            ),
            (SCHEMA, r#"{"choices":[{"message":{"refusal":"I cannot"},"finish_reason":"stop"}]}"#.to_owned(), None),
            ("{}", r#"{"choices":[]}"#.to_owned(), Some(EMPTY)),
        ];
        for (request, answer, expected) in table {
            assert_eq!(
                shortfall(request.as_bytes(), answer.as_bytes(), &all).as_deref(),
                expected,
                "{request} {answer}"
            );
        }
    }

    #[test]
    fn only_what_is_wanted_counts() {
        let short = answer("{\"a\":", "length");
        let found = |wanted: &str| shortfall(SCHEMA.as_bytes(), short.as_bytes(), &[wanted.to_owned()]);
        assert_eq!(found(NOT_JSON).as_deref(), Some(NOT_JSON));
        assert_eq!((found(EMPTY), found("unheard of")), (None, None));
    }

    #[test]
    fn a_schema_that_is_none_or_points_elsewhere_lacks_nothing() {
        for schema in [r#"{"type":7}"#, r#"{"$ref":"http://127.0.0.1:1/x"}"#, "7"] {
            let request =
                format!(r#"{{"response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}}}"#);
            let answer = answer("{}", "stop");
            assert_eq!(shortfall(request.as_bytes(), answer.as_bytes(), &[NOT_SCHEMA.to_owned()]), None, "{schema}");
        }
    }
}
