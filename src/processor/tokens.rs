//! How many tokens a text has, by OpenAI's o200k_base: the estimate of what a call's input is billed by.
//!
//! Exact for OpenAI's models since gpt-4o; the other providers do not publish theirs or have one of their own, and for
//! them it is an estimate, which is all that can be had before the call. The crate counts in time linear in the text
//! whatever the text is; tiktoken takes quadratic time on a long run of one letter, which any client could send.

use bpe_openai::o200k_base;

/// What the chat format adds to each message, to a message with a name, and once for the answer (OpenAI's cookbook, "How
/// to count tokens with tiktoken").
pub const PER_MESSAGE: u64 = 3;
pub const PER_NAME: u64 = 1;
pub const PER_ANSWER: u64 = 3;

/// What an image counts as: its size is not known here. One of 1024 x 1024 at high detail, 85 and 170 for each of four
/// tiles (OpenAI's guide "Images and vision", for gpt-4o); at low detail it would be 85, and at the most 1,445.
pub const PER_IMAGE: u64 = 765;

/// Reads the tokenizer's table, so that no request waits for it.
pub fn load() {
    count("");
    // The first text makes the pattern's own tables.
    count("Hello, world!\n");
}

/// Tokens of a text, special ones taken as the text that they are.
pub fn count(text: &str) -> u64 {
    o200k_base().count(text) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are Python tiktoken's (0.14, o200k_base).
    #[test]
    fn a_text_has_as_many_tokens_as_tiktoken_gives_it() {
        let table = [
            ("", 0),
            ("hello world", 2),
            ("tiktoken is great!", 6),
            ("Olá, mundo! Não há devolução após trinta dias.", 13),
            ("  leading spaces\n\n\tand tabs", 6),
            ("fn main() { println!(\"{}\", 42); }", 10),
            ("😀", 1),
            ("👩‍👩‍👧‍👦 família", 12),
            ("1234567890", 4),
            ("<|endoftext|>", 7),
            ("今天天气很好", 4),
            (" \n \n x", 2),
        ];
        for (text, tokens) in table {
            assert_eq!(count(text), tokens, "{text:?}");
        }
        assert_eq!(count(&"a".repeat(1_000)), 125);
    }
}
