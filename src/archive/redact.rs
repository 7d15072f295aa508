//! Takes the words out of a request's body: every letter and digit of what people said is replaced, and everything else
//! stays, so that sizes, structure and parameters are still those of the request.

use bytes::Bytes;
use serde_json::Value;

/// Members of a message whose value is a word of the protocol.
const KEPT: [&str; 4] = ["role", "type", "id", "tool_call_id"];

/// The body without words. One that is no JSON object is emptied.
pub fn redact(body: &[u8]) -> Bytes {
    let Ok(Value::Object(mut members)) = serde_json::from_slice::<Value>(body) else { return Bytes::new() };
    for (name, value) in &mut members {
        match name.as_str() {
            "messages" | "tools" | "functions" | "prompt" | "input" | "metadata" | "user" | "stop" | "prediction" => {
                words(value);
            }
            _ => {}
        }
    }
    serde_json::to_vec(&members).map_or_else(|_| Bytes::new(), Bytes::from)
}

fn words(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.chars().map(blank).collect(),
        Value::Array(items) => items.iter_mut().for_each(words),
        Value::Object(members) => {
            for (name, value) in members {
                if !KEPT.contains(&name.as_str()) {
                    words(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
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
        let body = r#"{"model":"auto","max_tokens":12,"user":"ann","messages":[
            {"role":"user","content":"Meu CPF é 123.456.789-09, ligue!"},
            {"role":"user","content":[{"type":"text","text":"Ana"},{"type":"image_url","image_url":{"url":"https://a.b/c1"}}]}]}"#;
        let redacted: Value = serde_json::from_slice(&redact(body.as_bytes())).unwrap();
        let wanted = serde_json::json!({
            "model": "auto", "max_tokens": 12, "user": "xxx",
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
