//! An error with everything beneath it: HTTP clients say "error sending request" and keep the reason for those who ask.

use std::error::Error;

/// The error's text and its causes', each once.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_said_once() {
        let inner = std::io::Error::other(std::io::Error::other("inner"));
        assert_eq!(causes(&Outer(inner)), "outer: inner");
    }
}
