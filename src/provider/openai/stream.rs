//! A streamed answer: the provider's bytes in, chunks out as OpenAI's SDKs expect them.
//!
//! Every chunk has our `id`, `model` and `object` and one `created`; the first of each choice has a role; usage is in one
//! chunk of its own before the end, and only where the client asked for it. The rest is the provider's, byte for byte.
//!
//! Nothing is handed out before content came, so a call that fails without having handed anything out may be made
//! again elsewhere. The end of the stream is good when every choice has its finish reason, with or without `[DONE]`.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::generated::Generated;
use super::identity::{Identity, is_created};
use super::members::Object;
use super::sse::{Event, EventParser};
use super::{from_body, token_usage};
use crate::provider::{Failure, FailureClass, Summary};

/// Most choices of one answer; OpenAI's own bound on `n` is 128.
const CHOICES_MAX: u32 = 1_024;

#[derive(Debug)]
pub struct StreamDecoder {
    parser: EventParser,
    answer: AnswerState,
}

/// What is known of the answer so far.
#[derive(Debug)]
struct AnswerState {
    identity: Identity,
    include_usage: bool,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    event_bytes_max: usize,
    has_content: bool,
    created: Option<String>,
    choices: BTreeMap<u32, Choice>,
    text_bytes: u64,
    /// The last usage that was reported, as it stands.
    usage: Option<String>,
    /// The provider's own chunk with that usage.
    usage_chunk: Option<Bytes>,
    end: Option<Result<(), Failure>>,
}

#[derive(Debug, Default)]
struct Choice {
    has_role: bool,
    finish_reason: Option<String>,
}

impl StreamDecoder {
    pub fn new(identity: Identity, include_usage: bool, event_bytes_max: usize) -> Self {
        let answer = AnswerState {
            identity,
            include_usage,
            ready: VecDeque::new(),
            ready_bytes: 0,
            event_bytes_max,
            has_content: false,
            created: None,
            choices: BTreeMap::new(),
            text_bytes: 0,
            usage: None,
            usage_chunk: None,
            end: None,
        };
        Self { parser: EventParser::new(event_bytes_max), answer }
    }

    /// Takes bytes in; what follows the end of the answer is passed over.
    pub fn push(&mut self, bytes: &[u8]) {
        let Self { parser, answer } = self;
        if answer.end.is_none() && parser.push(bytes, &mut |event| answer.event(&event)).is_err() {
            answer.too_large();
        }
    }

    /// The provider's bytes ended in good order.
    pub fn finish(&mut self) {
        let Self { parser, answer } = self;
        if answer.end.is_some() {
            return;
        }
        if parser.finish(&mut |event| answer.event(&event)).is_err() {
            return answer.too_large();
        }
        let stray = String::from_utf8_lossy(parser.stray());
        if !stray.trim().is_empty() {
            let garbage = || Failure::new(FailureClass::Garbage, "the provider's answer is not an event stream");
            return answer.fail(from_body(&stray).unwrap_or_else(garbage));
        }
        answer.ended();
    }

    /// The connection broke. An answer that was finished by then stands.
    pub fn broken(&mut self) {
        if self.answer.end.is_none() {
            self.answer.ended();
        }
    }

    /// The caller gave up. An end that was there before stays.
    pub fn fail(&mut self, failure: Failure) {
        self.answer.fail(failure);
    }

    /// The next chunk that is ready to be handed out.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.answer.pop()
    }

    /// Bytes that wait for more of them, or to be handed out.
    pub fn waiting_bytes(&self) -> usize {
        self.parser.waiting_bytes() + self.answer.ready_bytes
    }

    /// Whether content came.
    pub fn has_content(&self) -> bool {
        self.answer.has_content
    }

    /// How the answer ended. Chunks that came before are still to be handed out.
    pub fn end(&self) -> Option<&Result<(), Failure>> {
        self.answer.end.as_ref()
    }

    pub fn summary(&self) -> Summary {
        Summary {
            usage: self.answer.usage.as_deref().and_then(token_usage),
            finish_reason: self.answer.choices.values().next().and_then(|choice| choice.finish_reason.clone()),
            text_bytes: self.answer.text_bytes,
        }
    }
}

impl AnswerState {
    fn pop(&mut self) -> Option<Bytes> {
        let chunk = if self.has_content { self.ready.pop_front() } else { None }?;
        self.ready_bytes -= chunk.len();
        Some(chunk)
    }

    fn push(&mut self, chunk: Bytes) {
        self.ready_bytes += chunk.len();
        self.ready.push_back(chunk);
        if !self.has_content && self.ready_bytes > self.event_bytes_max {
            self.too_large();
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        let data = event.data.trim_ascii();
        if self.end.is_some() || data.is_empty() {
            return;
        }
        if data == b"[DONE]" {
            return self.ended();
        }
        let object = std::str::from_utf8(data).ok().and_then(|text| Object::parse(text).ok());
        match object {
            Some(object) => self.chunk(&object, event),
            // The end of the stream cut it; the end says what that means.
            None if event.is_unterminated => {}
            // Google's errors are in a list.
            None => match std::str::from_utf8(data).ok().and_then(from_body) {
                Some(failure) => self.fail(failure),
                None => self.garbage("an event of the provider's answer is not a JSON object"),
            },
        }
    }

    fn chunk(&mut self, object: &Object<'_>, event: &Event<'_>) {
        if let Some(failure) = object.get("error").and_then(|_| from_body(object.text())) {
            return self.fail(failure);
        }
        if event.name == b"error" {
            let message = "the provider answered with status 200 and an error";
            return self.fail(Failure { upstream_status: Some(200), ..Failure::new(FailureClass::Upstream, message) });
        }
        let usage = object.get("usage");
        let choices = match object.get("choices") {
            Some(choices) => choices,
            None if usage.is_some() => "[]",
            None if !event.name.is_empty() => return,
            None => {
                return match from_body(object.text()) {
                    Some(failure) => self.fail(failure),
                    None => self.garbage("an event of the provider's answer has no choices"),
                };
            }
        };
        let Ok(views) = serde_json::from_str::<Vec<ChoiceView<'_>>>(choices) else {
            return self.garbage("the choices of the provider's answer cannot be read");
        };
        if views.iter().any(|view| view.index.unwrap_or(0) >= CHOICES_MAX) {
            return self.garbage("the provider's answer has too many choices");
        }

        let mut splice = object.splice();
        let repaired = self.fold(choices, &views);
        let missing = object.get("choices").is_none().then(|| choices.to_owned());
        if let Some(choices) = repaired.or(missing) {
            splice.set("choices", choices);
        }
        let created = self.created.get_or_insert_with(|| {
            let first = object.get("created").filter(|created| is_created(created));
            first.unwrap_or(&self.identity.created).to_owned()
        });
        splice.set("id", self.identity.id.as_str());
        splice.set("object", "\"chat.completion.chunk\"");
        splice.set("created", created.as_str());
        splice.set("model", self.identity.model.as_str());
        for (i, member) in object.members().iter().enumerate().filter(|(_, member)| member.key == "usage") {
            match (self.include_usage, views.is_empty() && usage.is_some()) {
                (true, false) if member.value == "null" => {}
                (true, false) => splice.replace(i, "null"),
                (true, true) => {}
                (false, _) => splice.remove(i),
            }
        }
        let chunk = on_one_line(splice.render());
        let usage = usage.map(str::to_owned);
        match usage {
            Some(usage) => {
                self.usage = Some(usage);
                self.usage_chunk = None;
                if !views.is_empty() {
                    self.push(chunk);
                } else if self.include_usage {
                    self.usage_chunk = Some(chunk);
                }
            }
            None => self.push(chunk),
        }
    }

    /// Takes note of the choices of a chunk. Gives them repaired where they lack what SDKs rely on: a role at first, an
    /// index, a delta.
    fn fold(&mut self, choices: &str, views: &[ChoiceView<'_>]) -> Option<String> {
        let mut repairs = Vec::new();
        for (i, view) in views.iter().enumerate() {
            let choice = self.choices.entry(view.index.unwrap_or(0)).or_default();
            let lacks_role = !choice.has_role && view.delta.as_ref().is_none_or(|delta| delta.role.is_none());
            choice.has_role = true;
            if lacks_role || view.index.is_none() || view.delta.is_none() {
                repairs.push((i, lacks_role));
            }
            let text_bytes = view.delta.as_ref().map_or(0, Generated::text_bytes);
            self.text_bytes += text_bytes;
            self.has_content |= text_bytes > 0;
            if let Some(reason) = view.finish_reason.as_deref().filter(|reason| !reason.is_empty()) {
                choice.finish_reason = Some(reason.to_owned());
                self.has_content = true;
            }
        }
        if repairs.is_empty() { None } else { repair(choices, &repairs) }
    }

    /// `[DONE]`, or the end of the bytes.
    fn ended(&mut self) {
        let finished = self.choices.values().filter(|choice| choice.finish_reason.is_some()).count();
        if finished == 0 || finished < self.choices.len() {
            let message = "the provider's answer ended without a finish reason";
            return self.fail(Failure::new(FailureClass::Cut, message));
        }
        self.end = Some(Ok(()));
        if let Some(usage) = self.usage.as_deref().filter(|_| self.include_usage) {
            let chunk = self.usage_chunk.take().unwrap_or_else(|| {
                let Identity { id, model, created } = &self.identity;
                let created = self.created.as_ref().unwrap_or(created);
                let usage = on_one_line(usage.to_owned());
                let usage = String::from_utf8_lossy(&usage);
                Bytes::from(format!(
                    r#"{{"id":{id},"object":"chat.completion.chunk","created":{created},"model":{model},"choices":[],"usage":{usage}}}"#
                ))
            });
            self.push(chunk);
        }
    }

    fn fail(&mut self, failure: Failure) {
        if self.end.is_none() {
            self.end = Some(Err(failure));
        }
    }

    fn garbage(&mut self, message: &str) {
        self.fail(Failure::new(FailureClass::Garbage, message));
    }

    fn too_large(&mut self) {
        let message = format!("an event of the provider's answer has more than {} bytes", self.event_bytes_max);
        self.fail(Failure::new(FailureClass::TooLarge, message));
    }
}

/// JSON over several lines of data would not be one line of an event any more. A line feed can only stand between tokens.
fn on_one_line(json: String) -> Bytes {
    if memchr::memchr(b'\n', json.as_bytes()).is_some() { json.replace('\n', " ").into() } else { json.into() }
}

/// The choices with what the named ones lack: index, delta, and the role where told.
fn repair(choices: &str, repairs: &[(usize, bool)]) -> Option<String> {
    let raw: Vec<&RawValue> = serde_json::from_str(choices).ok()?;
    let mut out = String::with_capacity(choices.len() + 24 * repairs.len());
    for (i, choice) in raw.iter().enumerate() {
        out.push(if i == 0 { '[' } else { ',' });
        let Some((_, lacks_role)) = repairs.iter().find(|(index, _)| *index == i) else {
            out.push_str(choice.get());
            continue;
        };
        let object = Object::parse(choice.get()).ok()?;
        let delta = Object::parse(object.get("delta").unwrap_or("{}")).ok()?;
        let mut delta = delta.splice();
        if *lacks_role {
            delta.set("role", "\"assistant\"");
        }
        let delta = delta.render();
        let mut splice = object.splice();
        if object.get("index").is_none() {
            splice.set("index", "0");
        }
        splice.set("delta", delta);
        out.push_str(&splice.render());
    }
    out.push(']');
    Some(out)
}

#[derive(Deserialize)]
struct ChoiceView<'a> {
    index: Option<u32>,
    #[serde(borrow)]
    delta: Option<Generated<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
