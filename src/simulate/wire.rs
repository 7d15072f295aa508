//! Answers as bytes: whole ones, and the steps of streamed ones.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Choice};
use super::behavior::Break;
use super::errors::Documented;

/// What every part of an answer says about it.
pub struct Frame<'a> {
    pub answer: &'a Answer,
    pub model: &'a str,
    /// Seconds since 1970.
    pub created: i64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
}

/// One thing that a stream does.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Sends bytes at once.
    Send(Bytes),
    /// Sends a token when it is due.
    Token(Bytes),
    /// Breaks the connection.
    Cut,
    /// Does nothing any more.
    Stall,
}

impl Frame<'_> {
    pub fn usage(&self) -> Value {
        let completion_tokens = self.answer.completion_tokens();
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": { "cached_tokens": self.cached_tokens, "audio_tokens": 0 },
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        })
    }

    pub fn whole(&self) -> Bytes {
        let choices = self.answer.choices.iter().enumerate().map(|(index, choice)| {
            let text = choice.tokens.concat();
            let message = match &choice.call {
                None => json!({ "role": "assistant", "content": text, "refusal": null, "annotations": [] }),
                Some(call) => {
                    let function = json!({ "name": call.function, "arguments": text });
                    let calls = json!([{ "id": call.id, "type": "function", "function": function }]);
                    json!({ "role": "assistant", "content": null, "tool_calls": calls, "refusal": null, "annotations": [] })
                }
            };
            json!({ "index": index, "message": message, "logprobs": null, "finish_reason": choice.finish_reason })
        });
        let answer = json!({
            "id": self.answer.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": choices.collect::<Vec<_>>(),
            "usage": self.usage(),
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        });
        Bytes::from(answer.to_string())
    }

    /// The whole of a stream that goes well.
    pub fn steps(&self, include_usage: bool) -> Vec<Step> {
        let head = format!(
            r#"data: {{"id":"{}","object":"chat.completion.chunk","created":{},"model":{},"service_tier":"default","system_fingerprint":"{FINGERPRINT}","choices":["#,
            self.answer.id,
            self.created,
            Value::from(self.model),
        );
        let tail = if include_usage { "],\"usage\":null}\n\n" } else { "]}\n\n" };
        let event = |index: usize, delta: String, finish_reason: &str| {
            let choice =
                format!(r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}"#);
            Bytes::from([head.as_str(), &choice, tail].concat())
        };
        let choices = || self.answer.choices.iter().enumerate();
        let longest = choices().map(|(_, choice)| choice.tokens.len()).max().unwrap_or(0);

        let mut steps = Vec::with_capacity((longest + 2) * self.answer.choices.len() + 2);
        steps.extend(choices().map(|(index, choice)| Step::Send(event(index, first_delta(choice), "null"))));
        for at in 0..longest {
            let tokens = choices().filter_map(|(index, choice)| Some((index, choice, choice.tokens.get(at)?)));
            steps.extend(tokens.map(|(index, choice, token)| Step::Token(event(index, delta(choice, token), "null"))));
        }
        let reason = |choice: &Choice| format!("\"{}\"", choice.finish_reason);
        steps.extend(choices().map(|(index, choice)| Step::Send(event(index, "{}".into(), &reason(choice)))));
        if include_usage {
            steps.push(Step::Send(Bytes::from(format!("{head}],\"usage\":{}}}\n\n", self.usage()))));
        }
        steps.push(Step::Send(Bytes::from_static(b"data: [DONE]\n\n")));
        steps
    }
}

pub const SERVER_ERROR: &str = "The server had an error while processing your request.";
const FINGERPRINT: &str = "fp_simulated";

/// The first delta of a choice: its role, and the beginning of a call.
fn first_delta(choice: &Choice) -> String {
    match &choice.call {
        None => r#"{"role":"assistant","content":"","refusal":null}"#.into(),
        Some(call) => {
            let function = json!({ "name": call.function, "arguments": "" });
            let call = json!({ "index": 0, "id": call.id, "type": "function", "function": function });
            json!({ "role": "assistant", "content": null, "tool_calls": [call], "refusal": null }).to_string()
        }
    }
}

fn delta(choice: &Choice, token: &str) -> String {
    let token = Value::from(token);
    match choice.call {
        None => format!(r#"{{"content":{token}}}"#),
        Some(_) => format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":{token}}}}}]}}"#),
    }
}

/// How an answer that began well goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Breaking {
    pub how: Break,
    /// Half of them by default; 0 is before anything was sent.
    pub after_tokens: Option<usize>,
    /// The error of [`Break::Error`], where it is a provider's own.
    pub error: Option<&'static Documented>,
}

impl Breaking {
    /// The body of [`Break::Error`] where the answer is not streamed.
    pub fn error_body(&self) -> String {
        self.error.map_or_else(|| error_body(SERVER_ERROR, "server_error", None, None), |error| error.body.to_owned())
    }

    fn error_event(&self) -> String {
        self.error.map_or_else(|| format!("data: {}\n\n", self.error_body()), Documented::event)
    }
}

/// Lets a stream break.
pub fn broken(mut steps: Vec<Step>, breaking: Breaking) -> Vec<Step> {
    let tokens = steps.iter().filter(|step| matches!(step, Step::Token(_))).count();
    let after = breaking.after_tokens.unwrap_or(tokens / 2).min(tokens);
    let mut sent = 0;
    let at = steps.iter().position(|step| {
        let is_reached = sent == after;
        sent += usize::from(matches!(step, Step::Token(_)));
        is_reached
    });
    steps.truncate(if after == 0 { 0 } else { at.unwrap_or(steps.len()) });
    match breaking.how {
        Break::Cut => steps.push(Step::Cut),
        Break::Stall => steps.push(Step::Stall),
        Break::Garbage => steps.push(Step::Send(Bytes::from_static(b"data: {\"id\":\"chatcmpl-<html>\n\n"))),
        Break::Error => steps.push(Step::Send(Bytes::from(breaking.error_event()))),
        Break::Truncate => {}
    }
    steps
}

/// An error in OpenAI's shape.
pub fn error_body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> String {
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::answer::answer;
    use crate::simulate::request::Request;

    fn steps(rest: &str) -> Vec<Step> {
        let json =
            format!(r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"Hello"}}],"max_tokens":4{rest}}}"#);
        let request = Request::parse(json.as_bytes()).unwrap();
        let answer = answer(&request, 7, None);
        let frame = Frame { answer: &answer, model: "gpt-4o", created: 1, prompt_tokens: 9, cached_tokens: 0 };
        frame.steps(true)
    }

    #[test]
    fn a_stream_is_roles_tokens_reasons_usage_and_done() {
        let kinds: String = steps(r#","n":2"#)
            .iter()
            .map(|step| match step {
                Step::Token(_) => 't',
                Step::Send(bytes) if bytes.ends_with(b"[DONE]\n\n") => 'd',
                Step::Send(bytes) if memchr::memmem::find(bytes, b"\"length\"").is_some() => 'f',
                Step::Send(bytes) if memchr::memmem::find(bytes, b"total_tokens").is_some() => 'u',
                Step::Send(_) => 'r',
                Step::Cut | Step::Stall => 'x',
            })
            .collect();
        assert_eq!(kinds, "rrttttttttffud");
    }

    #[test]
    fn a_stream_breaks_after_the_tokens_it_is_told() {
        let all = steps("");
        for (after, sent) in [(None, 3), (Some(0), 0), (Some(1), 2), (Some(4), 5), (Some(99), 5)] {
            let breaking = Breaking { how: Break::Cut, after_tokens: after, error: None };
            let broken = broken(all.clone(), breaking);
            assert_eq!((&broken[..sent], &broken[sent..]), (&all[..sent], &[Step::Cut][..]), "{after:?}");
        }
    }
}
