//! How many tokens a text has, by OpenAI's o200k_base: the estimate of what a call's input is billed by.
//!
//! Exact for OpenAI's models since gpt-4o; the other providers do not publish theirs or have one of their own, and for
//! them it is an estimate, which is all that can be had before the call. The crate counts in time linear in the text
//! whatever the text is; tiktoken takes quadratic time on a long run of one letter, which any client could send.

use std::collections::HashMap;

use bpe_openai::o200k_base;

/// A longer piece (nothing that people write has one: a run of dashes, a line of base64) is counted in parts of so many
/// bytes, and parts that are the same once. The count is then too high, by one token for each part at the most. Without it
/// runs of signs that are tokens at many lengths take a millisecond and a half for each KiB.
const PART_BYTES: usize = 1 << 10;

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
    let tokenizer = o200k_base();
    let of = |piece: &[u8]| tokenizer.bpe.count(piece) as u64;
    let piece = |piece: &str| {
        if piece.len() <= PART_BYTES {
            return of(piece.as_bytes());
        }
        let mut known = HashMap::new();
        piece.as_bytes().chunks(PART_BYTES).map(|part| *known.entry(part).or_insert_with(|| of(part))).sum()
    };
    tokenizer.split(text).map(piece).sum()
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

    #[test]
    fn a_piece_that_is_counted_in_parts_has_at_most_one_token_more_for_each() {
        for (pattern, bytes) in [("-", 20_000), ("=-", 20_000), ("-=#", 20_001), ("a", 20_000), ("QmFzZTY0", 20_000)] {
            let text = pattern.repeat(bytes / pattern.len());
            let (exact, parts) = (o200k_base().count(text.as_str()) as u64, text.len().div_ceil(PART_BYTES) as u64);
            assert!((exact..=exact + parts).contains(&count(&text)), "{pattern}: {} and {exact}", count(&text));
        }
    }
}
