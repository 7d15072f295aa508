//! What is read of a request's body: a borrowed view, for routing and for the features of the commit.
//!
//! The body itself is never rebuilt; it reaches the provider as the client sent it. What is derived from content is
//! derived here, by the owner, and never believed from the record.
//!
//! The tokens are counted as the reader comes by their texts, so nothing is kept of them. That is nearly all of the time
//! that reading takes: a long body belongs on another thread.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::cache::Directives;
use super::intent::Classifier;
use super::spoken::{Excerpt, Role, Spoken};
use super::tokens;
use crate::records::journal::{Features, ResponseFormat};

/// What a body asks for, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// As the body says it; the record may say otherwise.
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    /// `temperature` is 0.
    pub is_steady: bool,
    /// It names tools or functions.
    pub has_tools: bool,
    /// What the body says of the cache.
    pub cache: Directives,
    pub features: Features,
    /// For the classifier; empty once that has read it.
    pub spoken: Box<Spoken>,
}

impl Content {
    /// Lets the classifier read what was said, for a policy that goes by it.
    pub fn classify(&mut self, classifier: &dyn Classifier) {
        std::mem::take(&mut self.spoken).classify(classifier, &mut self.features);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the body is not a chat completion request: {0}")]
    Json(String),
    #[error("cache-control: {0}")]
    CacheControl(String),
    #[error("{member}: {problem}")]
    Cache { member: &'static str, problem: &'static str },
    #[error("the body is larger than any that is read")]
    TooLarge,
    #[error("messages must have at least one message")]
    NoMessages,
    #[error("n must be from 1 to 128")]
    Choices,
    #[error("{name} must be at most {OUTPUT_CAP_MAX}")]
    OutputCap { name: &'static str },
}

#[derive(Deserialize)]
struct View<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    messages: Messages,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    tools: Option<Tools>,
    #[serde(borrow, default)]
    temperature: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cache: Option<&'a RawValue>,
    #[serde(borrow, default)]
    functions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response_format: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// Largest output cap that is taken, in tokens: a thousand times what any model puts out.
const OUTPUT_CAP_MAX: u64 = 1_000_000_000;

/// Reads the body once, and counts the tokens of what a provider takes as input: contents, roles and names, tool calls,
/// and the JSON of tools and response format as it stands, which is no less than what a provider makes of it.
pub fn read(body: &[u8]) -> Result<Content, Error> {
    let view: View<'_> = serde_json::from_slice(body).map_err(|e| Error::Json(e.to_string()))?;
    if view.messages.count == 0 {
        return Err(Error::NoMessages);
    }
    let choices = view.n.unwrap_or(1);
    if choices == 0 || choices > 128 {
        return Err(Error::Choices);
    }
    for (name, cap) in [("max_completion_tokens", view.max_completion_tokens), ("max_tokens", view.max_tokens)] {
        if cap.is_some_and(|cap| cap > OUTPUT_CAP_MAX) {
            return Err(Error::OutputCap { name });
        }
    }
    let cache = view.cache.map(Directives::of_member).transpose();
    let cache = cache.map_err(|(member, problem)| Error::Cache { member, problem })?.unwrap_or_default();
    let tools = view.tools.unwrap_or_default();
    let response_format = view.response_format.map_or(ResponseFormat::Text, response_format);
    let json = |value: Option<&RawValue>| value.map_or(0, |value| tokens::count(value.get()));
    let input_tokens = view.messages.tokens
        + tokens::PER_IMAGE * u64::from(view.messages.images)
        + tools.tokens
        + json(view.functions)
        + json(view.response_format)
        + tokens::PER_ANSWER;
    Ok(Content {
        model: view.model.map(Cow::into_owned),
        stream: view.stream.unwrap_or(false),
        include_usage: view.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        is_steady: view.temperature.and_then(|value| value.get().parse::<f64>().ok()).is_some_and(|value| value == 0.0),
        has_tools: tools.count > 0 || view.functions.is_some_and(|functions| functions.get() != "null"),
        cache,
        features: Features {
            body_bytes: body.len() as u64,
            messages: view.messages.count,
            text_bytes: view.messages.text_bytes,
            tools: tools.count,
            images: view.messages.images,
            choices,
            output_cap: view.max_completion_tokens.or(view.max_tokens),
            input_tokens: Some(input_tokens),
            response_format,
            likelihoods: None,
            measures: None,
        },
        spoken: Box::new(view.messages.spoken),
    })
}

/// What is not of the form that providers take is theirs to refuse.
fn response_format(format: &RawValue) -> ResponseFormat {
    #[derive(Deserialize)]
    struct Format<'a> {
        #[serde(borrow, default)]
        r#type: Option<Cow<'a, str>>,
    }
    let format: Option<Format<'_>> = serde_json::from_str(format.get()).ok();
    match format.and_then(|format| format.r#type).as_deref() {
        Some("json_object") => ResponseFormat::JsonObject,
        Some("json_schema") => ResponseFormat::JsonSchema,
        _ => ResponseFormat::Text,
    }
}

/// Counts of the messages.
#[derive(Default)]
struct Messages {
    count: u32,
    text_bytes: u64,
    images: u32,
    /// Of everything but the images.
    tokens: u64,
    spoken: Spoken,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    role: Speaker,
    #[serde(default)]
    name: Option<Counted>,
    #[serde(default)]
    content: Text,
    #[serde(default)]
    refusal: Counted,
    #[serde(default)]
    tool_calls: Calls,
    #[serde(default)]
    function_call: Calls,
}

impl Message {
    fn tokens(&self) -> u64 {
        let name = self.name.as_ref().map_or(0, |name| name.0 + tokens::PER_NAME);
        let calls = self.tool_calls.0 + self.function_call.0;
        tokens::PER_MESSAGE + self.role.tokens + name + self.content.tokens + self.refusal.0 + calls
    }
}

/// Size of a message's content: a string, null, or a list of parts.
#[derive(Default)]
struct Text {
    bytes: u64,
    images: u32,
    tokens: u64,
    excerpt: Excerpt,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Text,
    #[serde(default)]
    refusal: Counted,
    #[serde(default)]
    image_url: Option<IgnoredAny>,
}

/// The role of a message.
#[derive(Default)]
struct Speaker {
    tokens: u64,
    role: Role,
}

/// Tokens of a string. Anything else has none: it is the provider's to refuse.
#[derive(Default)]
struct Counted(u64);

/// Tokens of the names and arguments of tool calls.
#[derive(Default)]
struct Calls(u64);

/// The tools, and the tokens of their JSON.
#[derive(Default)]
struct Tools {
    count: u32,
    tokens: u64,
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Messages;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Messages, A::Error> {
                let mut messages = Messages::default();
                while let Some(message) = list.next_element::<Message>()? {
                    messages.count += 1;
                    messages.text_bytes += message.content.bytes;
                    messages.images += message.content.images;
                    messages.tokens += message.tokens();
                    messages.spoken.says(message.role.role, message.content.excerpt);
                }
                Ok(messages)
            }
        }
        deserializer.deserialize_seq(Counting)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Measuring;
        impl<'de> Visitor<'de> for Measuring {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of content parts, or null")
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<Text, E> {
                Ok(Text::default())
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                let mut excerpt = Excerpt::default();
                excerpt.push(text);
                Ok(Text { bytes: text.len() as u64, images: 0, tokens: tokens::count(text), excerpt })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Text, A::Error> {
                let mut all = Text::default();
                while let Some(part) = parts.next_element::<Part>()? {
                    all.bytes += part.text.bytes;
                    all.images += part.text.images + u32::from(part.image_url.is_some());
                    all.tokens += part.text.tokens + part.refusal.0;
                    all.excerpt.push(&part.text.excerpt.text());
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Measuring)
    }
}

impl<'de> Deserialize<'de> for Tools {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Tools;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tools")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tools, A::Error> {
                let mut tools = Tools::default();
                while let Some(tool) = list.next_element::<&'de RawValue>()? {
                    tools.count += 1;
                    tools.tokens += tokens::count(tool.get());
                }
                Ok(tools)
            }
        }
        deserializer.deserialize_seq(Counting)
    }
}

/// Visits any value; what it has to say is in its strings.
macro_rules! nothing_in_scalars {
    ($of:ty) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }
        fn visit_unit<E>(self) -> Result<$of, E> {
            Ok(Default::default())
        }
        fn visit_bool<E>(self, _: bool) -> Result<$of, E> {
            Ok(Default::default())
        }
        fn visit_i64<E>(self, _: i64) -> Result<$of, E> {
            Ok(Default::default())
        }
        fn visit_u64<E>(self, _: u64) -> Result<$of, E> {
            Ok(Default::default())
        }
        fn visit_f64<E>(self, _: f64) -> Result<$of, E> {
            Ok(Default::default())
        }
    };
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Counted;
            nothing_in_scalars!(Counted);
            fn visit_str<E>(self, text: &str) -> Result<Counted, E> {
                Ok(Counted(tokens::count(text)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Counted, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Counted::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counted, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Counted::default())
            }
        }
        deserializer.deserialize_any(Counting)
    }
}

impl<'de> Deserialize<'de> for Speaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Speaking;
        impl<'de> Visitor<'de> for Speaking {
            type Value = Speaker;
            nothing_in_scalars!(Speaker);
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Speaker, E> {
                Ok(Speaker { tokens: tokens::count(name), role: Role::of(name) })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Speaker, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Speaker::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Speaker, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Speaker::default())
            }
        }
        deserializer.deserialize_any(Speaking)
    }
}

/// A member of a tool call, or of the function in it.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum CallMember {
    Function,
    Custom,
    Name,
    Arguments,
    Input,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for Calls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Calls;
            nothing_in_scalars!(Calls);
            fn visit_str<E>(self, _: &str) -> Result<Calls, E> {
                Ok(Calls::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Calls, A::Error> {
                let mut all = Calls::default();
                while let Some(call) = list.next_element::<Calls>()? {
                    all.0 += call.0;
                }
                Ok(all)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Calls, A::Error> {
                let mut all = Calls::default();
                while let Some(member) = map.next_key::<CallMember>()? {
                    all.0 += match member {
                        CallMember::Function | CallMember::Custom => map.next_value::<Calls>()?.0,
                        CallMember::Name | CallMember::Arguments | CallMember::Input => map.next_value::<Counted>()?.0,
                        CallMember::Other => {
                            map.next_value::<IgnoredAny>()?;
                            0
                        }
                    };
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Counting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_counted_without_rebuilding_the_body() {
        let body = br#"{"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true},"n":2,"max_tokens":9,
            "messages":[{"role":"system","content":"abc"},{"role":"assistant","content":null},
            {"role":"user","content":[{"type":"text","text":"de"},{"type":"image_url","image_url":{"url":"x"}}]}],
            "tools":[{"type":"function"}],"strange":1e400}"#;
        let content = read(body).unwrap();
        assert_eq!(content.model.as_deref(), Some("gpt-4o"));
        assert!(content.stream && content.include_usage);
        let expected = Features {
            body_bytes: body.len() as u64,
            messages: 3,
            text_bytes: 5,
            tools: 1,
            images: 1,
            choices: 2,
            output_cap: Some(9),
            // Three messages, the answer, three roles, "abc", "de", the image, and the tool's JSON.
            input_tokens: Some(3 * 3 + 3 + 3 + 1 + 1 + 765 + tokens::count(r#"{"type":"function"}"#)),
            response_format: ResponseFormat::Text,
            likelihoods: None,
            measures: None,
        };
        assert_eq!(content.features, expected);
    }

    #[test]
    fn a_body_that_cannot_be_understood_says_where() {
        let error = |body: &str| read(body.as_bytes()).unwrap_err().to_string();
        assert!(error("{\"model\":").contains("line 1"));
        assert!(error("[]").contains("invalid"));
        assert!(error("{\"model\":\"m\"}").contains("messages"));
        assert!(error("{\"model\":\"m\",\"messages\":\"hi\"}").contains("list of messages"));
        assert_eq!(error("{\"model\":\"m\",\"messages\":[]}"), Error::NoMessages.to_string());
        assert_eq!(error("{\"messages\":[{\"content\":\"x\"}],\"n\":0}"), Error::Choices.to_string());
        assert!(error("\u{feff}{}").contains("expected value"));
    }

    fn counted(body: &str) -> u64 {
        read(body.as_bytes()).unwrap().features.input_tokens.unwrap()
    }

    /// The example of OpenAI's cookbook, "How to count tokens with tiktoken", where gpt-4o counts 124.
    #[test]
    fn a_chat_has_as_many_tokens_as_openai_counts() {
        let body = r#"{"model":"gpt-4o","messages":[
            {"role":"system","content":"You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
            {"role":"system","name":"example_user","content":"New synergies will help drive top-line growth."},
            {"role":"system","name":"example_assistant","content":"Things working well together will increase revenue."},
            {"role":"system","name":"example_user","content":"Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
            {"role":"system","name":"example_assistant","content":"Let's talk later when we're less busy about how to do better."},
            {"role":"user","content":"This late pivot means we don't have time to boil the ocean for the client deliverable."}]}"#;
        assert_eq!(counted(body), 124);
    }

    #[test]
    fn everything_that_a_provider_takes_as_input_is_counted() {
        let message = |rest: &str| format!(r#"{{"messages":[{{"role":"user"{rest}}}]}}"#);
        let nothing = 3 + 3 + 1;
        let table = [
            ("an empty message", message(""), 0),
            ("escapes are resolved", message(r#","content":"\u0068ello\u0020world""#), 2),
            ("parts", message(r#","content":[{"type":"text","text":"hello"},{"type":"text","text":" world"}]"#), 2),
            ("a name", message(r#","name":"hello""#), 1 + 1),
            ("a refusal", message(r#","refusal":"hello world""#), 2),
            (
                "a tool call's name and arguments, not its id",
                message(
                    r#","tool_calls":[{"id":"call_1","type":"function","function":{"name":"hello","arguments":"{\"a\":1}"}}]"#,
                ),
                1 + tokens::count(r#"{"a":1}"#),
            ),
            ("a function call of old", message(r#","function_call":{"name":"hello","arguments":"{}"}"#), 2),
            ("what is not of its form", message(r#","name":[1,"x"],"tool_calls":7,"refusal":{"a":"b"}"#), 1),
            (
                "the response format and functions of old",
                r#"{"messages":[{"role":"user"}],"response_format":{"type":"json_object"},"functions":[]}"#.to_owned(),
                tokens::count(r#"{"type":"json_object"}"#) + tokens::count("[]"),
            ),
        ];
        for (rule, body, tokens) in table {
            assert_eq!(counted(&body), nothing + tokens, "{rule}");
        }
    }
}
