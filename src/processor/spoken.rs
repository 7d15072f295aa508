//! What was said in a conversation, as far as its intent is read from it: bounded copies, made while the body is read.

use super::intent::{self, Classifier, Conversation, TEXT_BYTES_MAX};
use crate::records::journal::{Features, Likelihoods};

/// A text of which only the beginning and the end are kept when it is long: people say what they want in one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Excerpt {
    head: String,
    /// The last bytes beyond the head, and perhaps some before them.
    tail: String,
}

const HALF: usize = TEXT_BYTES_MAX / 2 - 1;

impl Excerpt {
    /// Adds a part of the text, on a line of its own.
    pub fn push(&mut self, text: &str) {
        if !self.head.is_empty() && !text.is_empty() {
            self.append("\n");
        }
        self.append(text);
    }

    fn append(&mut self, text: &str) {
        let room = if self.tail.is_empty() { HALF.saturating_sub(self.head.len()) } else { 0 };
        let (head, rest) = text.split_at(text.floor_char_boundary(room));
        self.head.push_str(head);
        if rest.len() > HALF {
            self.tail.clear();
        }
        self.tail.push_str(&rest[rest.ceil_char_boundary(rest.len().saturating_sub(HALF))..]);
        // What is cut off is cut off rarely: the tail may grow to twice its length first.
        if self.tail.len() > 2 * HALF {
            let from = self.tail.ceil_char_boundary(self.tail.len() - HALF);
            self.tail.drain(..from);
        }
    }

    /// The whole, or its beginning and its end.
    pub fn text(mut self) -> String {
        let from = self.tail.ceil_char_boundary(self.tail.len().saturating_sub(HALF));
        self.head.push_str(&self.tail[from..]);
        self.head
    }
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    User,
    Assistant,
    #[default]
    Other,
}

impl Role {
    pub fn of(name: &str) -> Self {
        match name {
            "user" => Self::User,
            "assistant" => Self::Assistant,
            _ => Self::Other,
        }
    }
}

/// The last words of the user, and what they follow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spoken {
    last_user: Option<Excerpt>,
    earlier_user: Option<Excerpt>,
    earlier_assistant: Option<Excerpt>,
    assistant: Option<Excerpt>,
    users: u32,
}

impl Spoken {
    pub fn says(&mut self, role: Role, text: Excerpt) {
        match role {
            Role::User => {
                self.users = self.users.saturating_add(1);
                self.earlier_user = self.last_user.replace(text);
                self.earlier_assistant = self.assistant.take();
            }
            Role::Assistant => self.assistant = Some(text),
            Role::Other => {}
        }
    }

    /// Adds the intents' likelihoods and the measures to the features.
    pub fn classify(self, classifier: &dyn Classifier, features: &mut Features) {
        let last_user = self.last_user.map(Excerpt::text).unwrap_or_default();
        let (earlier_user, earlier_assistant) =
            (self.earlier_user.map(Excerpt::text), self.earlier_assistant.map(Excerpt::text));
        let conversation = Conversation {
            last_user: &last_user,
            earlier_user: earlier_user.as_deref(),
            earlier_assistant: earlier_assistant.as_deref(),
            turns: self.users.saturating_sub(1),
        };
        features.likelihoods = classifier.classify(&conversation).map(|likelihoods| {
            let [greeting, faq, basic_support, complex_question, sales_negotiation, high_value] = likelihoods.0;
            Likelihoods { greeting, faq, basic_support, complex_question, sales_negotiation, high_value }
        });
        features.measures = Some(intent::measures(&conversation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_beginning_and_the_end_are_kept() {
        let text = |parts: &[&str]| {
            let mut excerpt = Excerpt::default();
            parts.iter().for_each(|part| excerpt.push(part));
            excerpt.text()
        };
        assert_eq!(text(&["a", "", "b"]), "a\nb");
        let exact = "x".repeat(2 * HALF);
        assert_eq!(text(&[&exact]), exact);
        let long = format!("begin{}end", "ã".repeat(100_000));
        let kept = text(&[&long]);
        assert!(kept.starts_with("begin") && kept.ends_with("end") && kept.len() <= TEXT_BYTES_MAX);
        let many = vec!["0123456789ã"; 10_000];
        let kept = text(&many);
        assert!(kept.ends_with("9ã") && kept.len() <= TEXT_BYTES_MAX && kept.len() > TEXT_BYTES_MAX - 20);
    }

    #[test]
    fn the_last_words_of_the_user_are_read_with_what_they_follow() {
        let mut spoken = Spoken::default();
        let of = |text: &str| {
            let mut excerpt = Excerpt::default();
            excerpt.push(text);
            excerpt
        };
        for (role, text) in [("system", "s"), ("user", "a"), ("assistant", "b"), ("tool", "t"), ("user", "c")] {
            spoken.says(Role::of(role), of(text));
        }
        spoken.says(Role::Assistant, of("prefilled"));
        let text = |excerpt: &Option<Excerpt>| excerpt.clone().map(Excerpt::text);
        assert_eq!(text(&spoken.last_user).as_deref(), Some("c"));
        assert_eq!(text(&spoken.earlier_user).as_deref(), Some("a"));
        assert_eq!(text(&spoken.earlier_assistant).as_deref(), Some("b"));
        assert_eq!(spoken.users, 2);
    }
}
