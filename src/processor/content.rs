//! What is read of a request's body: a borrowed view, for routing and for the features of the commit.
//!
//! The body itself is never rebuilt; it reaches the provider as the client sent it. What is derived from content is
//! derived here, by the owner, and never believed from the record.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::records::journal::Features;

/// What a body asks for, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// As the body says it; the record may say otherwise.
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub features: Features,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the body is not a chat completion request: {0}")]
    Json(String),
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
    tools: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// Largest output cap that is taken, in tokens: a thousand times what any model puts out.
const OUTPUT_CAP_MAX: u64 = 1_000_000_000;

/// Reads the body once.
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
    Ok(Content {
        model: view.model.map(Cow::into_owned),
        stream: view.stream.unwrap_or(false),
        include_usage: view.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        features: Features {
            body_bytes: body.len() as u64,
            messages: view.messages.count,
            text_bytes: view.messages.text_bytes,
            tools: view.tools.map_or(0, |tools| tools.len() as u32),
            images: view.messages.images,
            choices,
            output_cap: view.max_completion_tokens.or(view.max_tokens),
            input_tokens: None,
        },
    })
}

/// Counts of the messages.
#[derive(Default)]
struct Messages {
    count: u32,
    text_bytes: u64,
    images: u32,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Text,
}

/// Size of a message's content: a string, null, or a list of parts.
#[derive(Default)]
struct Text {
    bytes: u64,
    images: u32,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Text,
    #[serde(default)]
    image_url: Option<IgnoredAny>,
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
                Ok(Text { bytes: text.len() as u64, images: 0 })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Text, A::Error> {
                let mut all = Text::default();
                while let Some(part) = parts.next_element::<Part>()? {
                    all.bytes += part.text.bytes;
                    all.images += u32::from(part.image_url.is_some());
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Measuring)
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
            input_tokens: None,
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
}
