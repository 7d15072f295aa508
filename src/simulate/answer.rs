//! What the simulated model answers: a function of the request, the seed and the wanted length.

use serde_json::{Map, Value, json};

use super::request::{Request, Shape};
use super::text::{self, Random};

/// An answer, in the tokens that a stream has.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub id: String,
    pub choices: Vec<Choice>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The function that is called, in place of text; the tokens are its arguments then.
    pub call: Option<Call>,
    pub tokens: Vec<String>,
    pub finish_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub id: String,
    pub function: String,
}

impl Answer {
    /// Tokens of all choices; the name of a function is one.
    pub fn completion_tokens(&self) -> u64 {
        self.choices.iter().map(|choice| choice.tokens.len() as u64 + u64::from(choice.call.is_some())).sum()
    }
}

/// Answers `request`. `output_tokens` is the length, where it is not left to the prompt.
pub fn answer(request: &Request, seed: u64, output_tokens: Option<usize>) -> Answer {
    let conversation = request.prefixes.last().map_or(0, |(hash, _)| *hash);
    let seed = seed ^ conversation ^ (request.seed as u64).rotate_left(32);
    let mut random = Random::new(seed);
    let id = format!("chatcmpl-sim{:016x}", random.number());
    let choices = (0..request.choices).map(|_| choice(request, output_tokens, &mut random)).collect();
    Answer { id, choices }
}

fn choice(request: &Request, output_tokens: Option<usize>, random: &mut Random) -> Choice {
    let (mut call, mut finish_reason) = (None, "stop");
    let mut tokens = match &request.shape {
        Shape::Text => {
            let length = output_tokens.unwrap_or_else(|| 24 + random.below(73) as usize);
            let mut tokens = text::compose(&request.question, length, random);
            if output_tokens.is_some() {
                tokens.truncate(length);
            }
            until_stop(tokens, &request.stops)
        }
        Shape::Json { schema: None } => {
            let sentence = text::compose(&request.question, 12, random).concat();
            text::pieces(&json!({ "answer": sentence }).to_string())
        }
        Shape::Json { schema: Some(schema) } => {
            text::pieces(&by_schema(schema, &request.question, random, 0).to_string())
        }
        Shape::Call { function, parameters, is_named } => {
            let id = format!("call_{:016x}", random.number());
            call = Some(Call { id, function: function.clone() });
            finish_reason = if *is_named { "stop" } else { "tool_calls" };
            match by_schema(parameters, &request.question, random, 0) {
                arguments @ Value::Object(_) => text::pieces(&arguments.to_string()),
                _ => text::pieces("{}"),
            }
        }
    };
    if let Some(most) = request.tokens_max.filter(|most| *most < tokens.len()) {
        tokens.truncate(most);
        finish_reason = "length";
    }
    Choice { call, tokens, finish_reason }
}

/// The tokens before the first stop sequence, the last one shortened where it stands inside.
fn until_stop(tokens: Vec<String>, stops: &[String]) -> Vec<String> {
    let all = tokens.concat();
    let stop = stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| all.find(stop.as_str())).min();
    let Some(mut left) = stop else { return tokens };
    let mut kept = Vec::new();
    for mut token in tokens {
        token.truncate(left);
        left -= token.len();
        if !token.is_empty() {
            kept.push(token);
        }
        if left == 0 {
            break;
        }
    }
    kept
}

/// Deepest schema that is followed.
const DEPTH_MAX: u32 = 16;

/// A value that a JSON schema allows, for the keywords that tools use.
fn by_schema(schema: &Value, question: &str, random: &mut Random, depth: u32) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    if let Some(value) = schema.get("const").or_else(|| schema.get("enum")?.get(0)) {
        return value.clone();
    }
    if let Some(first) = ["anyOf", "oneOf", "allOf"].iter().find_map(|name| schema.get(name)?.get(0)) {
        return by_schema(first, question, random, depth + 1);
    }
    let kind = schema.get("type").and_then(|kind| kind.as_str().or_else(|| kind.get(0)?.as_str()));
    let lowest = schema.get("minimum").and_then(Value::as_i64).unwrap_or(1);
    match kind {
        Some("string") => Value::from(question.split_whitespace().next_back().unwrap_or("text")),
        Some("integer" | "number") => Value::from(lowest + random.below(5) as i64),
        Some("boolean") => Value::from(true),
        Some("array") => {
            let item = schema.get("items").map(|items| by_schema(items, question, random, depth + 1));
            Value::Array(item.into_iter().collect())
        }
        Some("null") => Value::Null,
        _ => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let members = properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), by_schema(schema, question, random, depth + 1)));
            Value::Object(members.collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(rest: &str) -> Answer {
        let json = format!(
            r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"How long does delivery take?"}}]{rest}}}"#
        );
        answer(&Request::parse(json.as_bytes()).unwrap(), 7, None)
    }

    #[test]
    fn an_answer_depends_on_the_request_and_the_seed_alone() {
        assert_eq!(answered(""), answered(""));
        assert_ne!(answered(""), answered(r#","seed":1"#));
        let choices = answered(r#","n":3"#).choices;
        assert_eq!(choices.len(), 3);
        assert_ne!(choices[0], choices[1]);
    }

    #[test]
    fn a_limit_ends_an_answer_with_length() {
        let limited = answered(r#","max_tokens":5"#);
        assert_eq!((limited.completion_tokens(), limited.choices[0].finish_reason), (5, "length"));
        assert_eq!(answered(r#","max_completion_tokens":5,"max_tokens":9"#).completion_tokens(), 5);
        assert_eq!(answered(r#","max_tokens":5000"#).choices[0].finish_reason, "stop");
    }

    #[test]
    fn a_stop_sequence_ends_an_answer_before_itself() {
        let all = answered("").choices[0].tokens.concat();
        let stop = &all[10..14];
        let stopped = answered(&format!(r#","stop":["zzz",{}]"#, json!(stop)));
        assert_eq!(stopped.choices[0].tokens.concat(), all[..all.find(stop).unwrap()]);
        assert_eq!(stopped.choices[0].finish_reason, "stop");
    }

    #[test]
    fn a_forced_tool_is_called_with_arguments_by_its_schema() {
        let tools = r#","tools":[{"type":"function","function":{"name":"lookup","parameters":{"type":"object","properties":{"city":{"type":"string"},"unit":{"enum":["c","f"]},"days":{"type":"integer","minimum":3},"tags":{"type":"array","items":{"type":"boolean"}}}}}}]"#;
        let required = answered(&format!(r#"{tools},"tool_choice":"required""#)).choices.remove(0);
        assert_eq!((required.call.unwrap().function.as_str(), required.finish_reason), ("lookup", "tool_calls"));
        let arguments: Value = serde_json::from_str(&required.tokens.concat()).unwrap();
        assert_eq!(
            (&arguments["city"], &arguments["unit"], &arguments["tags"]),
            (&json!("take?"), &json!("c"), &json!([true]))
        );
        assert!(arguments["days"].as_i64().unwrap() >= 3);
        let named = answered(&format!(r#"{tools},"tool_choice":{{"type":"function","function":{{"name":"lookup"}}}}"#));
        assert_eq!(named.choices[0].finish_reason, "stop");
        assert_eq!(answered(tools).choices[0].call, None);
    }

    #[test]
    fn json_is_answered_when_json_is_asked_for() {
        let plain = answered(r#","response_format":{"type":"json_object"}"#).choices[0].tokens.concat();
        assert!(serde_json::from_str::<Value>(&plain).unwrap()["answer"].is_string());
        let format = r#","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"ok":{"type":"boolean"}}}}}"#;
        assert_eq!(answered(format).choices[0].tokens.concat(), r#"{"ok":true}"#);
    }

    #[test]
    fn a_schema_without_end_is_followed_to_a_bound() {
        let mut schema = json!({"type": "string"});
        for _ in 0..100 {
            schema = json!({"type": "array", "items": schema});
        }
        assert!(by_schema(&schema, "", &mut Random::new(0), 0).is_array());
    }
}
