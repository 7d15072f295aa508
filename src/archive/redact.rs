//! Takes the words out of a request's body: every letter and digit of what people said is replaced, and everything else
//! stays, so that sizes, structure and parameters are still those of the request.

use bytes::Bytes;
use serde_json::{Map, Value};

/// Parameters of a request that stay as they are; every other member loses its words.
const PARAMETERS: [&str; 18] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stream",
    "stream_options",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
    "top_logprobs",
    "service_tier",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "store",
];
/// Members of a message, and of a part of its content, whose value is a word of the protocol.
const KEPT: [&str; 2] = ["role", "type"];

/// The body without words. One that is no JSON object is emptied.
pub fn redact(body: &[u8]) -> Bytes {
    let Ok(Value::Object(mut members)) = serde_json::from_slice::<Value>(body) else { return Bytes::new() };
    for (name, value) in &mut members {
        match name.as_str() {
            "messages" => each_object(value, |message| {
                for (name, value) in message {
                    match name.as_str() {
                        "role" => {}
                        "content" if value.is_array() => each_object(value, |part| {
                            part.iter_mut()
                                .filter(|(name, _)| !KEPT.contains(&name.as_str()))
                                .for_each(|(_, v)| words(v));
                        }),
                        _ => words(value),
                    }
                }
            }),
            name if PARAMETERS.contains(&name) => {}
            _ => words(value),
        }
    }
    serde_json::to_vec(&members).map_or_else(|_| Bytes::new(), Bytes::from)
}

/// Changes the objects of a list; whatever else is in it loses its words.
fn each_object(value: &mut Value, change: impl Fn(&mut Map<String, Value>)) {
    let Value::Array(items) = value else { return words(value) };
    for item in items {
        match item {
            Value::Object(members) => change(members),
            other => words(other),
        }
    }
}

fn words(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.chars().map(blank).collect(),
        Value::Number(number) => *number = 0.into(),
        Value::Array(items) => items.iter_mut().for_each(words),
        Value::Object(members) => members.values_mut().for_each(words),
        Value::Null | Value::Bool(_) => {}
    }
}

fn blank(c: char) -> char {
    match c {
        '0'..='9' => '0',
        c if c.is_alphabetic() || c.is_numeric() => 'x',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_and_the_shape_stays() {
        let body = r#"{"model":"auto","max_tokens":12,"user":"ann","metadata":{"id":"123","n":7},"messages":[
            {"role":"user","content":"Meu CPF é 123.456.789-09, ligue!"},
            {"role":"user","content":[{"type":"text","text":"Ana"},{"type":"image_url","image_url":{"url":"https://a.b/c1"}}]}]}"#;
        let redacted: Value = serde_json::from_slice(&redact(body.as_bytes())).unwrap();
        let wanted = serde_json::json!({
            "model": "auto", "max_tokens": 12, "user": "xxx", "metadata": {"id": "000", "n": 0},
            "messages": [
                {"role": "user", "content": "xxx xxx x 000.000.000-00, xxxxx!"},
                {"role": "user", "content": [
                    {"type": "text", "text": "xxx"}, {"type": "image_url", "image_url": {"url": "xxxxx://x.x/x0"}}]},
            ],
        });
        assert_eq!(redacted, wanted);
        for wrong in ["", "[1]", "{", "\"secret\""] {
            assert_eq!(redact(wrong.as_bytes()), Bytes::new(), "{wrong}");
        }
    }
}
