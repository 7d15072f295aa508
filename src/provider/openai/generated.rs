//! What of a message, or of a delta of one, the model generated: text, reasoning, refusals, calls of tools.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A borrowed view of a message or delta.
#[derive(Deserialize)]
pub struct Generated<'a> {
    #[serde(borrow)]
    pub role: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
}

impl Generated<'_> {
    /// Bytes of generated text, without JSON's escapes and syntax.
    pub fn text_bytes(&self) -> u64 {
        let texts = [self.content, self.refusal, self.reasoning_content, self.reasoning];
        let texts = texts.into_iter().flatten().map(|raw| text_bytes(raw.get()));
        let calls = [self.tool_calls, self.function_call];
        let calls = calls.into_iter().flatten().filter_map(|raw| serde_json::from_str(raw.get()).ok());
        texts.chain(calls.map(|calls| call_bytes(&calls))).sum()
    }
}

/// The text of a raw JSON string. What is no string counts as it stands.
fn text_bytes(raw: &str) -> u64 {
    let bytes = match raw.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        None => raw.len(),
        Some(text) if memchr::memchr(b'\\', text.as_bytes()).is_none() => text.len(),
        Some(text) => serde_json::from_str::<String>(raw).map_or(text.len(), |text| text.len()),
    };
    bytes as u64
}

/// Names and arguments of calls.
fn call_bytes(calls: &Value) -> u64 {
    match calls {
        Value::Array(calls) => calls.iter().map(call_bytes).sum(),
        Value::Object(_) => {
            let call = calls.get("function").or_else(|| calls.get("custom")).unwrap_or(calls);
            let parts = ["name", "arguments", "input"].iter().filter_map(|name| call.get(name)?.as_str());
            parts.map(|text| text.len() as u64).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_generated_text_counts_without_its_syntax() {
        let table = [
            (r#"{"role":"assistant","content":null}"#, 0),
            (r#"{"content":"olá"}"#, 4),
            (r#"{"content":"a\n\u00e1\\"}"#, 5),
            (r#"{"content":"","refusal":"no","reasoning_content":"abc","reasoning":"d"}"#, 6),
            (r#"{"content":[1]}"#, 3),
            (r#"{"tool_calls":[{"id":"call_1","type":"function","function":{"name":"ab","arguments":"{}"}}]}"#, 4),
            (r#"{"tool_calls":[{"index":0,"function":{"arguments":"12"}},{"custom":{"name":"x","input":"y"}}]}"#, 4),
            (r#"{"function_call":{"name":"abc","arguments":"1"},"temperature":1e400}"#, 4),
        ];
        for (json, bytes) in table {
            assert_eq!(serde_json::from_str::<Generated<'_>>(json).unwrap().text_bytes(), bytes, "{json}");
        }
    }
}
