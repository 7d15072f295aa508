//! A chat request as OpenAI's API takes it, checked as far as the simulator uses it.

use serde::Deserialize;
use serde_json::Value;

use super::text;

/// A request that is refused with status 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub message: String,
    pub param: Option<&'static str>,
}

fn wrong(param: &'static str, message: impl Into<String>) -> Error {
    Error { message: message.into(), param: Some(param) }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub model: String,
    pub is_stream: bool,
    pub include_usage: bool,
    pub choices: u32,
    pub tokens_max: Option<usize>,
    pub stops: Vec<String>,
    pub shape: Shape,
    /// The text of the last message of the user.
    pub question: String,
    /// By the rule of [`super`].
    pub prompt_tokens: u64,
    /// After each message: a number for the conversation so far, and its tokens.
    pub prefixes: Vec<(u64, u64)>,
    pub seed: i64,
    /// The fault that the request itself asks for.
    pub fault: Option<String>,
}

/// What the answer is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Text,
    /// JSON, by this schema where one is given.
    Json {
        schema: Option<Value>,
    },
    /// A call of this function. OpenAI ends it with `stop` where the function was named by the request.
    Call {
        function: String,
        parameters: Value,
        is_named: bool,
    },
}

#[derive(Deserialize)]
struct Wire {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<i64>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    stop: Option<Value>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Value>,
    response_format: Option<Value>,
    seed: Option<i64>,
    x_simulate_fault: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Value>,
    #[serde(default)]
    tool_calls: Option<Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Tool {
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
}

impl Request {
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let wire: Wire = serde_json::from_slice(body).map_err(|e| Error {
            message: format!("We could not parse the JSON body of your request. ({e})"),
            param: None,
        })?;
        let model = wire.model.clone().filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| wrong("model", "you must provide a model parameter"))?;
        let messages =
            wire.messages.as_deref().ok_or_else(|| wrong("messages", "Missing required parameter: 'messages'."))?;
        if messages.is_empty() {
            return Err(wrong("messages", "Invalid 'messages': empty array. Expected an array with minimum length 1."));
        }
        let is_stream = wire.stream.unwrap_or(false);
        if wire.stream_options.is_some() && !is_stream {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(wrong("stream_options", message));
        }
        let choices = u32::try_from(wire.n.unwrap_or(1)).ok().filter(|n| (1..=128).contains(n));
        let limit = [("max_completion_tokens", wire.max_completion_tokens), ("max_tokens", wire.max_tokens)];
        let limit = limit.into_iter().find_map(|(name, limit)| Some((name, limit?)));
        let tokens_max = limit.map(|(name, limit)| {
            let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
            limit.ok_or_else(|| {
                wrong(name, format!("Invalid '{name}': integer below minimum value. Expected a value >= 1."))
            })
        });

        let tools_tokens = tools_tokens(wire.tools.as_deref().unwrap_or_default());
        let mut prompt_tokens = tools_tokens + 3;
        let mut prefixes = Vec::with_capacity(messages.len());
        let mut hash = text::hash(0, &model);
        let mut question = String::new();
        for message in messages {
            let content = content_text(message.content.as_ref());
            let calls = message.tool_calls.as_ref().filter(|calls| !calls.is_null()).map(Value::to_string);
            let calls = calls.unwrap_or_default();
            prompt_tokens += ((content.len() + calls.len()) as u64).div_ceil(4) + 3;
            hash = text::hash(text::hash(text::hash(hash, &message.role), &content), &calls);
            prefixes.push((hash, prompt_tokens));
            if message.role == "user" {
                question = content;
            }
        }
        Ok(Self {
            model,
            is_stream,
            include_usage: wire.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false),
            choices: choices.ok_or_else(|| wrong("n", "Invalid 'n': expected an integer from 1 to 128."))?,
            tokens_max: tokens_max.transpose()?,
            stops: stops(wire.stop.as_ref())?,
            shape: shape(&wire)?,
            question,
            prompt_tokens,
            prefixes,
            seed: wire.seed.unwrap_or(0),
            fault: wire.x_simulate_fault,
        })
    }
}

fn tools_tokens(tools: &[Tool]) -> u64 {
    let functions = tools.iter().filter_map(|tool| tool.function.as_ref());
    let bytes = functions.map(|function| {
        let parameters = function.parameters.as_ref().map_or(0, |parameters| parameters.to_string().len());
        function.name.len() + function.description.as_ref().map_or(0, String::len) + parameters
    });
    bytes.map(|bytes| (bytes as u64).div_ceil(4) + 3).sum()
}

/// The text of a content: itself, or its text parts. An image counts as 340 bytes, so that it is 85 tokens.
fn content_text(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let image = || "\0".repeat(340);
            let text = |part: &Value| part.get("text").and_then(Value::as_str).map_or_else(image, str::to_owned);
            parts.iter().map(text).collect()
        }
        _ => String::new(),
    }
}

fn stops(stop: Option<&Value>) -> Result<Vec<String>, Error> {
    let refused = || wrong("stop", "Invalid 'stop': expected a string or an array of at most 4 strings.");
    match stop {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop.clone()]),
        Some(Value::Array(stops)) if stops.len() <= 4 => {
            stops.iter().map(|stop| stop.as_str().map(str::to_owned).ok_or_else(refused)).collect()
        }
        Some(_) => Err(refused()),
    }
}

fn shape(wire: &Wire) -> Result<Shape, Error> {
    let functions = || wire.tools.iter().flatten().filter_map(|tool| tool.function.as_ref());
    let call = |function: &Function, is_named| Shape::Call {
        function: function.name.clone(),
        parameters: function.parameters.clone().unwrap_or(Value::Null),
        is_named,
    };
    match &wire.tool_choice {
        Some(Value::String(choice)) if choice == "required" => {
            let first = functions().next();
            return first
                .map(|f| call(f, false))
                .ok_or_else(|| wrong("tool_choice", "'tool_choice' is only allowed when 'tools' are specified."));
        }
        Some(choice @ Value::Object(_)) => {
            let name = choice.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            let named = functions().find(|function| function.name == name);
            return named
                .map(|f| call(f, true))
                .ok_or_else(|| wrong("tool_choice", format!("Tool choice '{name}' not found in 'tools' parameter.")));
        }
        _ => {}
    }
    let format = wire.response_format.as_ref();
    Ok(match format.and_then(|format| format.get("type")?.as_str()) {
        Some("json_object") => Shape::Json { schema: None },
        Some("json_schema") => Shape::Json { schema: format.and_then(|f| f.pointer("/json_schema/schema")).cloned() },
        _ => Shape::Text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Request, Error> {
        Request::parse(json.as_bytes())
    }

    #[test]
    fn tokens_of_a_prompt_follow_the_rule() {
        let request = parse(r#"{"model":"m","messages":[{"role":"system","content":"12345"},{"role":"user","content":[{"type":"text","text":"1234"},{"type":"image_url","image_url":{}}]}]}"#).unwrap();
        assert_eq!(request.prompt_tokens, 3 + (2 + 3) + (86 + 3));
    }

    #[test]
    fn what_openai_refuses_is_refused_by_parameter() {
        let message = r#""messages":[{"role":"user","content":"x"}]"#;
        let table = [
            ("{".to_owned(), None),
            (format!("{{{message}}}"), Some("model")),
            (r#"{"model":"m"}"#.to_owned(), Some("messages")),
            (r#"{"model":"m","messages":[]}"#.to_owned(), Some("messages")),
            (format!(r#"{{"model":"m",{message},"n":0}}"#), Some("n")),
            (format!(r#"{{"model":"m",{message},"max_tokens":0}}"#), Some("max_tokens")),
            (format!(r#"{{"model":"m",{message},"stop":3}}"#), Some("stop")),
            (format!(r#"{{"model":"m",{message},"stream_options":{{}}}}"#), Some("stream_options")),
            (format!(r#"{{"model":"m",{message},"tool_choice":"required"}}"#), Some("tool_choice")),
        ];
        for (json, param) in table {
            assert_eq!(parse(&json).unwrap_err().param, param, "{json}");
        }
    }

    #[test]
    fn members_that_the_simulator_does_not_know_are_no_mistake() {
        assert!(
            parse(r#"{"model":"m","messages":[{"role":"user","content":"x","y":1}],"z":1e400,"stop":null}"#).is_ok()
        );
    }
}
