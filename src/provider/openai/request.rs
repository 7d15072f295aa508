//! The client's request as the provider gets it: `model` is the provider's name for it, a stream reports its usage, the
//! answer is no longer than what was reserved for it, and our own keys are out of it and of `metadata`. Every other byte is the
//! client's.

use bytes::Bytes;

use super::members::{Object, Splice, quote};
use crate::provider::{Failure, FailureClass};

/// Members of `metadata` that are for us and not for the provider.
const OUR_METADATA: [&str; 2] = ["organization_id", "user_tier"];
/// What a request says about the gateway's cache.
const OUR_CACHE: &str = "cache";

/// What the provider is asked for, whatever the client's request says.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub upstream_model: &'a str,
    pub stream: bool,
    pub output_cap: Option<OutputCap>,
}

/// At most so many tokens of each choice.
#[derive(Debug, Clone, Copy)]
pub struct OutputCap {
    pub tokens: u64,
    pub name: CapName,
}

/// The member that caps an answer's tokens. No name works for all:
///
/// - OpenAI's models since o1 refuse `max_tokens` (400 `unsupported_parameter`: "Use 'max_completion_tokens' instead"), and
///   no model takes both at once (API reference, `chat/create`). Azure serves the same models.
/// - Ollama takes `max_tokens` and passes over `max_completion_tokens` without a word (ollama/ollama#7125).
/// - Anthropic's compatible endpoint takes either (platform.claude.com/docs/en/api/openai-sdk), as do Gemini's and the
///   other ones, which had `max_tokens` first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapName {
    MaxTokens,
    MaxCompletionTokens,
}

impl CapName {
    /// By the host of the provider's base URL.
    pub fn at(base_url: &str) -> Self {
        let host = base_url.split_once("://").map_or(base_url, |(_, rest)| rest);
        let host = host.split(['/', ':']).next().unwrap_or_default().to_ascii_lowercase();
        let is_openai =
            |domain: &str| host.strip_suffix(domain).is_some_and(|left| left.is_empty() || left.ends_with('.'));
        if is_openai("openai.com") || is_openai("openai.azure.com") {
            Self::MaxCompletionTokens
        } else {
            Self::MaxTokens
        }
    }

    const fn member(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::MaxTokens => Self::MaxCompletionTokens,
            Self::MaxCompletionTokens => Self::MaxTokens,
        }
    }
}

/// Makes the provider's request. Of duplicate members named `model`, `stream_options`, `metadata` or as a cap every one is
/// treated alike, so that the provider's parser cannot pick one that we did not see.
pub fn request(body: &Bytes, wanted: &Wanted<'_>) -> Result<Bytes, Failure> {
    let Wanted { upstream_model, stream, output_cap } = *wanted;
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
            OUR_CACHE => splice.remove(i),
            _ => {}
        }
    }
    if stream && !has_options {
        splice.set("stream_options", r#"{"include_usage":true}"#);
    }
    if let Some(cap) = output_cap {
        lower(&object, &mut splice, cap);
    }
    Ok(Bytes::from(splice.render()))
}

/// Sets the caps that the client gave to no more than `cap`, and gives one where there is none that the provider heeds.
fn lower<'o>(object: &'o Object<'_>, splice: &mut Splice<'o, '_>, cap: OutputCap) {
    let given = |name: CapName| object.members().iter().filter(move |m| m.key == name.member() && m.value != "null");
    let lowest = |name: CapName| {
        let theirs = given(name).filter_map(|member| member.value.parse::<u64>().ok());
        theirs.fold(cap.tokens, u64::min).to_string()
    };
    let (own, other) = (cap.name, cap.name.other());
    match (given(own).next().is_some(), given(other).next().is_some()) {
        (true, false) => splice.set(own.member(), lowest(own)),
        // Both are the provider's to refuse.
        (true, true) => {
            splice.set(own.member(), lowest(own));
            splice.set(other.member(), lowest(other));
        }
        // OpenAI's older models take it, and the newer ones say by themselves what they take.
        (false, true) if own == CapName::MaxCompletionTokens => splice.set(other.member(), lowest(other)),
        // It may be passed over in silence, so its value goes where it counts.
        (false, true) => {
            for (i, _) in object.members().iter().enumerate().filter(|(_, m)| m.key == other.member()) {
                splice.remove(i);
            }
            splice.set(own.member(), lowest(other));
        }
        (false, false) => splice.set(own.member(), cap.tokens.to_string()),
    }
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

    fn wanted(upstream_model: &str, stream: bool) -> Wanted<'_> {
        Wanted { upstream_model, stream, output_cap: None }
    }

    fn sent(body: &str, stream: bool) -> String {
        let bytes = request(&Bytes::from(body.to_owned()), &wanted("up/model", stream)).unwrap();
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
    fn a_cap_is_lowered_to_what_was_reserved_and_never_raised() {
        let both = r#""max_tokens":50,"max_completion_tokens":200"#;
        let table = [
            ("none is given", r#""a":1"#, r#""a":1,"max_tokens":100"#, r#""a":1,"max_completion_tokens":100"#),
            ("a lower one", r#""max_tokens":7,"a":1"#, r#""max_tokens":7,"a":1"#, r#""max_tokens":7,"a":1"#),
            ("a higher one", r#""max_tokens":700"#, r#""max_tokens":100"#, r#""max_tokens":100"#),
            (
                "the newer name, where it may be passed over",
                r#""max_completion_tokens":700,"a":1"#,
                r#""a":1,"max_tokens":100"#,
                r#""max_completion_tokens":100,"a":1"#,
            ),
            (
                "both",
                both,
                r#""max_tokens":50,"max_completion_tokens":100"#,
                r#""max_tokens":50,"max_completion_tokens":100"#,
            ),
            (
                "duplicates alike",
                r#""max_tokens":300,"max_tokens":9,"max_tokens":null"#,
                r#""max_tokens":9,"max_tokens":9,"max_tokens":9"#,
                r#""max_tokens":9,"max_tokens":9,"max_tokens":9"#,
            ),
            (
                "null is none",
                r#""max_tokens":null"#,
                r#""max_tokens":100"#,
                r#""max_tokens":null,"max_completion_tokens":100"#,
            ),
            ("what is no count", r#""max_tokens":1e9"#, r#""max_tokens":100"#, r#""max_tokens":100"#),
        ];
        for (rule, given, others, openais) in table {
            for (name, expected) in [(CapName::MaxTokens, others), (CapName::MaxCompletionTokens, openais)] {
                let body = Bytes::from(format!(r#"{{"model":"up/model",{given}}}"#));
                let output_cap = Some(OutputCap { tokens: 100, name });
                let sent = request(&body, &Wanted { output_cap, ..wanted("up/model", false) }).unwrap();
                assert_eq!(sent, format!(r#"{{"model":"up/model",{expected}}}"#), "{rule}, {name:?}");
                assert_eq!(request(&body, &wanted("up/model", false)).unwrap(), body, "{rule}, without one of ours");
            }
        }
    }

    #[test]
    fn a_cap_is_called_as_the_provider_calls_it() {
        for url in
            ["https://api.openai.com/v1", "https://eu.api.openai.com/v1", "https://x.openai.azure.com:443/openai/v1"]
        {
            assert_eq!(CapName::at(url), CapName::MaxCompletionTokens, "{url}");
        }
        for url in [
            "https://api.anthropic.com/v1",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "http://127.0.0.1:11434/v1",
            "https://api.groq.com/openai/v1",
            "https://notopenai.com/v1",
        ] {
            assert_eq!(CapName::at(url), CapName::MaxTokens, "{url}");
        }
    }

    #[test]
    fn a_model_name_is_escaped() {
        let bytes = request(&Bytes::from_static(b"{}"), &wanted("a\"b", false)).unwrap();
        assert_eq!(bytes, r#"{"model":"a\"b"}"#);
    }

    #[test]
    fn what_is_no_json_object_is_the_clients_mistake() {
        for body in [&b"[]"[..], b"", b"{\"a\":}", b"\xff{}", b"{\"a\":\"\xff\"}"] {
            let failure = request(&Bytes::copy_from_slice(body), &wanted("m", false)).unwrap_err();
            assert_eq!(failure.class, FailureClass::BadRequest, "{body:?}");
        }
    }
}
