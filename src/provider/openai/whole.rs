//! A whole answer: ours in `id`, `object` and `model`, the provider's in everything else.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

use super::generated::Generated;
use super::identity::{Identity, is_created};
use super::members::Object;
use super::{from_body, token_usage};
use crate::provider::{Failure, FailureClass, Summary};

/// Makes the client's answer of the provider's, and says what it used.
pub fn whole(body: &[u8], identity: &Identity) -> Result<(Bytes, Summary), Failure> {
    let garbage = |message| Failure::new(FailureClass::Garbage, message);
    let text = std::str::from_utf8(body).map_err(|_| garbage("the provider's answer is not UTF-8"))?;
    let object = match Object::parse(text) {
        Ok(object) => object,
        Err(_) => return Err(from_body(text).unwrap_or_else(|| garbage("the provider's answer is not a JSON object"))),
    };
    if let Some(failure) = object.get("error").and_then(|_| from_body(text)) {
        return Err(failure);
    }
    let choices: Vec<ChoiceView<'_>> = object
        .get("choices")
        .and_then(|choices| serde_json::from_str(choices).ok())
        .filter(|choices: &Vec<ChoiceView<'_>>| !choices.is_empty())
        .ok_or_else(|| from_body(text).unwrap_or_else(|| garbage("the provider's answer has no choices")))?;

    let mut splice = object.splice();
    splice.set("id", identity.id.as_str());
    splice.set("object", "\"chat.completion\"");
    splice.set("model", identity.model.as_str());
    if !object.get("created").is_some_and(is_created) {
        splice.set("created", identity.created.as_str());
    }
    let summary = Summary {
        usage: object.get("usage").and_then(token_usage),
        finish_reason: choices.first().and_then(|choice| choice.finish_reason.as_deref()).map(str::to_owned),
        text_bytes: choices.iter().filter_map(|choice| choice.message.as_ref()).map(Generated::text_bytes).sum(),
    };
    Ok((Bytes::from(splice.render()), summary))
}

#[derive(Deserialize)]
struct ChoiceView<'a> {
    #[serde(borrow)]
    message: Option<Generated<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ModelName, RequestId, Timestamp, TokenUsage};

    fn identity() -> Identity {
        let (id, model) = (RequestId::parse("r1").unwrap(), ModelName::parse("gpt-4o").unwrap());
        Identity::new(&id, &model, Timestamp::from_millis(1_700_000_000_999))
    }

    #[test]
    fn an_answer_is_named_by_us_and_keeps_the_rest_byte_for_byte() {
        let body = r#"{ "id": "x", "object":"chat.completion","created":5,"model":"up","choices":[ {"index":0,"message":{"role":"assistant","content":"ol\u00e1\n"},"logprobs":{"p":-0.10,"q":1e400},"finish_reason":"stop"}], "usage":{"prompt_tokens":3,"completion_tokens":2},"x":1e400}"#;
        let (out, summary) = whole(body.as_bytes(), &identity()).unwrap();
        let expected = body.replace(r#""id": "x""#, r#""id": "chatcmpl-r1""#).replace(r#""up""#, r#""gpt-4o""#);
        assert_eq!(out, expected);
        let usage = TokenUsage { input: Some(3), output: Some(2), ..TokenUsage::default() };
        let finish_reason = Some("stop".into());
        assert_eq!(summary, Summary { usage: Some(usage), finish_reason, text_bytes: 5 });
    }

    #[test]
    fn what_an_answer_lacks_is_added() {
        let (out, summary) = whole(br#"{"choices":[{}]}"#, &identity()).unwrap();
        let expected =
            r#"{"choices":[{}],"id":"chatcmpl-r1","object":"chat.completion","model":"gpt-4o","created":1700000000}"#;
        assert_eq!(out, expected);
        assert_eq!(summary, Summary::default());
    }

    #[test]
    fn an_answer_that_a_filter_left_empty_is_an_answer() {
        let body = br#"{"choices":[{"message":{"content":null},"finish_reason":"content_filter"}],"usage":{"prompt_tokens":12,"completion_tokens":14}}"#;
        let (_, summary) = whole(body, &identity()).unwrap();
        assert_eq!(summary.finish_reason.as_deref(), Some("content_filter"));
        assert_eq!(summary.usage.unwrap().output, Some(14));
    }

    #[test]
    fn generated_text_is_counted_wherever_it_is() {
        let body = r#"{"choices":[{"message":{"content":null,"tool_calls":[{"id":"call_123","function":{"name":"ab","arguments":"{}"}}]}},{"message":{"content":"xyz","refusal":"no"}}]}"#;
        assert_eq!(whole(body.as_bytes(), &identity()).unwrap().1.text_bytes, 9);
    }

    #[test]
    fn the_decision_table_of_failures() {
        let table = [
            (&br#"{"error":{"message":"m"}}"#[..], FailureClass::Upstream),
            (br#"{"choices":[{}],"error":{"message":"m"}}"#, FailureClass::Upstream),
            (br#"[{"error":{"message":"m"}}]"#, FailureClass::Upstream),
            (br#"{"error":{"message":"m","type":"overloaded_error"}}"#, FailureClass::Overloaded),
            (br#"{"promptFeedback":{"blockReason":"SAFETY"}}"#, FailureClass::ContentFilter),
            (b"<html>", FailureClass::Garbage),
            (b"", FailureClass::Garbage),
            (b"{}", FailureClass::Garbage),
            (br#"{"choices":[]}"#, FailureClass::Garbage),
            (br#"{"choices":3}"#, FailureClass::Garbage),
            (b"\xff", FailureClass::Garbage),
            (b"data: {\"choices\":[]}\n\n", FailureClass::Garbage),
        ];
        for (body, class) in table {
            assert_eq!(whole(body, &identity()).unwrap_err().class, class, "{}", String::from_utf8_lossy(body));
        }
        assert!(whole(br#"{"choices":[{}],"error":null}"#, &identity()).is_ok());
    }
}
