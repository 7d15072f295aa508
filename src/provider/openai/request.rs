//! The client's request as the provider gets it: `model` is the provider's name for it, a stream reports its usage,
//! and our own keys are out of `metadata`. Every other byte is the client's.

use bytes::Bytes;

use super::members::{Object, quote};
use crate::provider::{Failure, FailureClass};

/// Members of `metadata` that are for us and not for the provider.
const OUR_METADATA: [&str; 2] = ["organization_id", "user_tier"];

/// Makes the provider's request. Of duplicate members named `model`, `stream_options` or `metadata` every one is
/// treated alike, so that the provider's parser cannot pick one that we did not see.
pub fn request(body: &Bytes, upstream_model: &str, stream: bool) -> Result<Bytes, Failure> {
    let invalid = |_| Failure::new(FailureClass::BadRequest, "the request is not a JSON object");
    let text =
        std::str::from_utf8(body).map_err(|_| Failure::new(FailureClass::BadRequest, "the request is not UTF-8"))?;
    let object = Object::parse(text).map_err(invalid)?;

    let mut splice = object.splice();
    splice.set("model", quote(upstream_model));
    let mut has_options = false;
    for (i, member) in object.members().iter().enumerate() {
        match member.key.as_ref() {
            "stream_options" if stream => {
                has_options = true;
                // Anything but an object is the client's mistake, and the provider's to name.
                match Object::parse(member.value) {
                    Ok(options) => splice.replace(i, with_usage(&options)),
                    Err(_) if member.value == "null" => splice.replace(i, r#"{"include_usage":true}"#),
                    Err(_) => {}
                }
            }
            "metadata" => match Object::parse(member.value).ok().and_then(|metadata| without_ours(&metadata)) {
                Some(left) if left.is_empty() => splice.remove(i),
                Some(left) => splice.replace(i, left),
                None => {}
            },
            _ => {}
        }
    }
    if stream && !has_options {
        splice.set("stream_options", r#"{"include_usage":true}"#);
    }
    Ok(Bytes::from(splice.render()))
}

fn with_usage(options: &Object<'_>) -> String {
    let mut splice = options.splice();
    splice.set("include_usage", "true");
    splice.render()
}

/// The metadata without our keys: `None` when none of them is there, empty when nothing else is.
fn without_ours(metadata: &Object<'_>) -> Option<String> {
    let mut splice = metadata.splice();
    let is_ours = |key: &str| OUR_METADATA.contains(&key);
    for (i, _) in metadata.members().iter().enumerate().filter(|(_, member)| is_ours(&member.key)) {
        splice.remove(i);
    }
    if splice.is_unchanged() {
        return None;
    }
    let is_all_ours = metadata.members().iter().all(|member| is_ours(&member.key));
    Some(if is_all_ours { String::new() } else { splice.render() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(body: &str, stream: bool) -> String {
        let bytes = request(&Bytes::from(body.to_owned()), "up/model", stream).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_decision_table() {
        let usage = r#""stream_options":{"include_usage":true}"#;
        let table = [
            (
                "the model is named as the provider names it",
                false,
                r#"{"model":"x","messages":[]}"#,
                r#"{"model":"up/model","messages":[]}"#.to_owned(),
            ),
            (
                "a request without a model gets one",
                false,
                r#"{"messages":[]}"#,
                r#"{"messages":[],"model":"up/model"}"#.to_owned(),
            ),
            (
                "every duplicate model is named alike",
                false,
                r#"{"model":"a","z":1,"model":"b"}"#,
                r#"{"model":"up/model","z":1,"model":"up/model"}"#.to_owned(),
            ),
            (
                "a stream is asked for usage",
                true,
                r#"{"model":"x","stream":true}"#,
                format!(r#"{{"model":"up/model","stream":true,{usage}}}"#),
            ),
            (
                "a whole answer is not",
                false,
                r#"{"model":"x","stream":false}"#,
                r#"{"model":"up/model","stream":false}"#.to_owned(),
            ),
            (
                "other stream options stay",
                true,
                r#"{"model":"x","stream_options":{"a": 1.0}}"#,
                r#"{"model":"up/model","stream_options":{"a": 1.0,"include_usage":true}}"#.to_owned(),
            ),
            (
                "usage that was declined is asked for",
                true,
                r#"{"model":"x","stream_options":{"include_usage":false}}"#,
                format!(r#"{{"model":"up/model",{usage}}}"#),
            ),
            (
                "null stream options are none",
                true,
                r#"{"model":"x","stream_options":null}"#,
                format!(r#"{{"model":"up/model",{usage}}}"#),
            ),
            (
                "wrong stream options are the provider's to refuse",
                true,
                r#"{"model":"x","stream_options":3}"#,
                r#"{"model":"up/model","stream_options":3}"#.to_owned(),
            ),
            (
                "stream options without a stream too",
                false,
                r#"{"model":"x","stream_options":{}}"#,
                r#"{"model":"up/model","stream_options":{}}"#.to_owned(),
            ),
            (
                "our metadata goes, the rest stays",
                false,
                r#"{"model":"x","metadata":{"organization_id":"o","k" : "v","user_tier":"vip"}}"#,
                r#"{"model":"up/model","metadata":{"k" : "v"}}"#.to_owned(),
            ),
            (
                "metadata of ours alone goes whole",
                false,
                r#"{"metadata":{"organization_id":"o"},"model":"x"}"#,
                r#"{"model":"up/model"}"#.to_owned(),
            ),
            (
                "empty metadata stays",
                false,
                r#"{"model":"x","metadata":{ }}"#,
                r#"{"model":"up/model","metadata":{ }}"#.to_owned(),
            ),
            (
                "metadata that is no object stays",
                false,
                r#"{"model":"x","metadata":[1]}"#,
                r#"{"model":"up/model","metadata":[1]}"#.to_owned(),
            ),
            (
                "a user_tier outside of metadata is not ours",
                false,
                r#"{"model":"x","user_tier":"vip"}"#,
                r#"{"model":"up/model","user_tier":"vip"}"#.to_owned(),
            ),
            (
                "numbers, unknown members and duplicates survive",
                false,
                "{ \"t\":1.0,\"model\":\"x\", \"big\":1e400,\n\"z\":0.10000000000000000001,\"z\":2}",
                "{ \"t\":1.0,\"model\":\"up/model\", \"big\":1e400,\n\"z\":0.10000000000000000001,\"z\":2}".to_owned(),
            ),
        ];
        for (rule, stream, body, expected) in table {
            assert_eq!(sent(body, stream), expected, "{rule}");
        }
    }

    #[test]
    fn a_model_name_is_escaped() {
        let bytes = request(&Bytes::from_static(b"{}"), "a\"b", false).unwrap();
        assert_eq!(bytes, r#"{"model":"a\"b"}"#);
    }

    #[test]
    fn what_is_no_json_object_is_the_clients_mistake() {
        for body in [&b"[]"[..], b"", b"{\"a\":}", b"\xff{}", b"{\"a\":\"\xff\"}"] {
            let failure = request(&Bytes::copy_from_slice(body), "m", false).unwrap_err();
            assert_eq!(failure.class, FailureClass::BadRequest, "{body:?}");
        }
    }
}
