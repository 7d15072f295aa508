//! Token usage as providers report it, sorted into disjoint classes.
//!
//! - `prompt_tokens` includes cached and cache-written tokens (OpenAI, OpenRouter, LiteLLM), so `input` is what remains.
//!   Where these are more than `prompt_tokens`, the provider evidently counts it without them, as Anthropic does its
//!   `input_tokens`: then it is `input` as it stands. Nothing is ever taken below zero.
//! - `completion_tokens` includes reasoning tokens (OpenAI). Where `total_tokens` shows that it does not (xAI: the total is
//!   prompt + completion + reasoning), or where there are more reasoning tokens than completion tokens, they are added.
//! - What is missing, null, negative or no whole number is unknown.

use serde_json::Value;

use crate::domain::TokenUsage;

/// Reads a `usage` object. `None` when neither input nor output is known.
pub fn token_usage(raw: &str) -> Option<TokenUsage> {
    let usage: Value = serde_json::from_str(raw).ok()?;
    let first = |paths: &[&str]| paths.iter().find_map(|path| count(usage.pointer(path)?));
    let cached_input = first(&[
        "/prompt_tokens_details/cached_tokens",
        "/input_tokens_details/cached_tokens",
        "/cache_read_input_tokens",
        "/prompt_cache_hit_tokens",
    ]);
    let cache_write = first(&[
        "/prompt_tokens_details/cache_write_tokens",
        "/prompt_tokens_details/cache_creation_tokens",
        "/cache_creation_input_tokens",
    ]);
    let prompt = first(&["/prompt_tokens"]);
    let input = match prompt {
        Some(prompt) => {
            let apart = cached_input.unwrap_or(0).saturating_add(cache_write.unwrap_or(0));
            Some(prompt.checked_sub(apart).unwrap_or(prompt))
        }
        None => first(&["/input_tokens"]),
    };

    let reasoning = first(&["/completion_tokens_details/reasoning_tokens", "/output_tokens_details/reasoning_tokens"]);
    let output = first(&["/completion_tokens", "/output_tokens"]).map(|completion| {
        let thought = reasoning.unwrap_or(0);
        let with_thought = completion.saturating_add(thought);
        let total = first(&["/total_tokens"]);
        let is_apart = total.is_some() && total == prompt.and_then(|prompt| prompt.checked_add(with_thought));
        if is_apart || thought > completion { with_thought } else { completion }
    });
    (input.is_some() || output.is_some()).then_some(TokenUsage { input, cached_input, cache_write, output, reasoning })
}

/// No answer has so many tokens; a larger count is a provider's mistake, and unknown.
const TOKENS_MAX: u64 = 1_000_000_000_000;

/// A count; some providers write whole numbers as floats.
fn count(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|f| *f >= 0.0 && f.fract() == 0.0 && *f < 9e15).map(|f| f as u64);
    value.as_u64().or_else(float).filter(|count| *count <= TOKENS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_table() {
        type Classes = Option<[Option<u64>; 5]>;
        let known = |input, output| Some([Some(input), None, None, Some(output), None]);
        let table: [(&str, &str, Classes); 17] = [
            ("plain", r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}"#, known(10, 5)),
            (
                "cached tokens are taken out",
                r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}"#,
                Some([Some(6), Some(4), None, Some(5), None]),
            ),
            (
                "no cached tokens are a known zero",
                r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":0}}"#,
                Some([Some(10), Some(0), None, Some(5), None]),
            ),
            (
                "OpenRouter's written tokens too",
                r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":3}}"#,
                Some([Some(3), Some(4), Some(3), Some(5), None]),
            ),
            (
                "Anthropic's fields beside prompt_tokens",
                r#"{"prompt_tokens":10,"completion_tokens":5,"cache_read_input_tokens":2,"cache_creation_input_tokens":3}"#,
                Some([Some(5), Some(2), Some(3), Some(5), None]),
            ),
            (
                "DeepSeek's hits",
                r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":2}"#,
                Some([Some(2), Some(8), None, Some(5), None]),
            ),
            (
                "Anthropic's own names are disjoint already",
                r#"{"input_tokens":10,"cache_read_input_tokens":100,"output_tokens":5}"#,
                Some([Some(10), Some(100), None, Some(5), None]),
            ),
            (
                "more cached than prompt: the prompt is without them",
                r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":12}}"#,
                Some([Some(10), Some(12), None, Some(5), None]),
            ),
            (
                "counts that no answer has are unknown",
                r#"{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615,"prompt_tokens_details":{"cached_tokens":18446744073709551615,"cache_write_tokens":5},"completion_tokens_details":{"reasoning_tokens":18446744073709551615},"total_tokens":3}"#,
                None,
            ),
            (
                "reasoning is part of the output",
                r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"completion_tokens_details":{"reasoning_tokens":3}}"#,
                Some([Some(10), None, None, Some(5), Some(3)]),
            ),
            (
                "xAI's is not, as the total shows",
                r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":18,"completion_tokens_details":{"reasoning_tokens":3}}"#,
                Some([Some(10), None, None, Some(8), Some(3)]),
            ),
            (
                "more reasoning than output",
                r#"{"prompt_tokens":10,"completion_tokens":5,"completion_tokens_details":{"reasoning_tokens":30}}"#,
                Some([Some(10), None, None, Some(35), Some(30)]),
            ),
            ("a missing count is unknown", r#"{"prompt_tokens":10}"#, Some([Some(10), None, None, None, None])),
            (
                "so are null, text, negative and broken ones",
                r#"{"prompt_tokens":null,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":"4"},"completion_tokens_details":{"reasoning_tokens":-1},"cache_creation_input_tokens":1.5}"#,
                Some([None, None, None, Some(5), None]),
            ),
            ("whole floats are counts", r#"{"prompt_tokens":10.0,"completion_tokens":5e0}"#, known(10, 5)),
            ("nothing known is no usage", r#"{"cost":1}"#, None),
            ("nor is what is no object", "7", None),
        ];
        for (rule, raw, expected) in table {
            let classes = token_usage(raw).map(|u| [u.input, u.cached_input, u.cache_write, u.output, u.reasoning]);
            let expected: Classes = expected;
            assert_eq!(classes, expected, "{rule}");
        }
    }
}
