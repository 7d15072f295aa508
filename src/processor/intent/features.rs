//! The features of a conversation: each a name, present or not. The fit (tests/routing/fit.py) sees exactly these.

use super::hash::Fnv;
use super::text::Words;
use super::{Conversation, MODEL};

/// A feature: what kind it is, and up to two words that it is made of.
#[derive(Debug, Clone, Copy)]
pub struct Feature<'a> {
    kind: &'static str,
    first: &'a str,
    second: &'a str,
}

impl Feature<'_> {
    /// The name under which it has weights: `KIND=FIRST` or `KIND=FIRST_SECOND`.
    pub fn name(&self) -> String {
        match self.second {
            "" => format!("{}={}", self.kind, self.first),
            second => format!("{}={}_{second}", self.kind, self.first),
        }
    }

    /// The word that it is; numbers are none.
    pub(super) fn word(&self) -> Option<&str> {
        (self.kind == WORD && self.first != "0").then_some(self.first)
    }

    /// Of the name.
    pub(super) fn hash(&self) -> u64 {
        let hash = Fnv::new().then(self.kind).then("=").then(self.first);
        match self.second {
            "" => hash.finish(),
            second => hash.then("_").then(second).finish(),
        }
    }
}

/// The kind of single words.
const WORD: &str = "w";
/// Words of a message up to which what was said before it is looked at, too.
const SHORT_WORDS: usize = 12;

/// Tells all features, some perhaps more than once.
pub fn features(conversation: &Conversation<'_>, tell: &mut dyn FnMut(Feature<'_>)) {
    let words = Words::of(conversation.last_user);
    plain(tell, "bias", "1");
    counts(&words, conversation.turns, tell);
    of_words(&words, tell);
    let concepts = MODEL.lexicon.concepts(&words);
    let names = MODEL.lexicon.names();
    for (name, count) in names.iter().zip(&concepts) {
        if *count > 0 {
            plain(tell, "c", name);
        }
        if *count > 1 {
            plain(tell, "cc", name);
        }
    }
    combinations(&words, names, &concepts, tell);
    if words.len() <= SHORT_WORDS {
        for (kind, earlier) in [("u", conversation.earlier_user), ("a", conversation.earlier_assistant)] {
            let Some(earlier) = earlier else { continue };
            let concepts = MODEL.lexicon.concepts(&Words::of(earlier));
            for (name, _) in names.iter().zip(concepts).filter(|(_, count)| *count > 0) {
                plain(tell, kind, name);
            }
        }
    }
}

fn plain(tell: &mut dyn FnMut(Feature<'_>), kind: &'static str, first: &str) {
    tell(Feature { kind, first, second: "" });
}

fn of_words(words: &Words, tell: &mut dyn FnMut(Feature<'_>)) {
    let mut before = "";
    for word in words.iter() {
        plain(tell, WORD, word);
        if !before.is_empty() {
            tell(Feature { kind: "b", first: before, second: word });
        }
        before = word;
    }
    for (kind, index) in [("first", Some(0)), ("last", words.len().checked_sub(1))] {
        if let Some(word) = index.and_then(|index| words.word(index)) {
            plain(tell, kind, word);
        }
    }
}

/// Tells in which of some ranges a count is; none of them is told as 0.
fn range(tell: &mut dyn FnMut(Feature<'_>), kind: &'static str, count: u32, ranges: &[(u32, &'static str)]) {
    for (_, name) in ranges.iter().filter(|(from, _)| count >= *from) {
        plain(tell, kind, name);
    }
}

fn counts(words: &Words, turns: u32, tell: &mut dyn FnMut(Feature<'_>)) {
    let marks = &words.marks;
    let length = u32::try_from(words.len()).unwrap_or(u32::MAX);
    let lengths = [
        (1, "1"),
        (3, "3"),
        (6, "6"),
        (10, "10"),
        (16, "16"),
        (25, "25"),
        (40, "40"),
        (60, "60"),
        (90, "90"),
        (140, "140"),
    ];
    range(tell, "len", length, &lengths);
    range(tell, "questions", marks.questions, &[(1, "1"), (2, "2"), (3, "3")]);
    range(tell, "exclamations", marks.exclamations, &[(1, "1"), (3, "3")]);
    range(tell, "lines", marks.lines, &[(2, "2"), (4, "4"), (8, "8")]);
    range(tell, "code", marks.code_lines, &[(1, "1"), (2, "2"), (4, "4")]);
    range(tell, "items", marks.list_items, &[(1, "1"), (3, "3")]);
    range(tell, "percents", marks.percents, &[(1, "1"), (2, "2")]);
    range(tell, "currencies", marks.currencies, &[(1, "1"), (2, "2"), (4, "4")]);
    range(tell, "numbers", marks.numbers, &[(1, "1"), (2, "2"), (3, "3"), (5, "5"), (8, "8"), (14, "14")]);
    range(tell, "large", marks.large_numbers, &[(1, "1"), (2, "2")]);
    range(tell, "references", marks.references, &[(1, "1"), (3, "3")]);
    range(tell, "emoji", marks.emoji, &[(1, "1")]);
    range(tell, "quotes", marks.quotes, &[(2, "2")]);
    range(tell, "turns", turns, &[(1, "1"), (2, "2")]);
    let shouts = marks.letters >= 8 && marks.capitals.saturating_mul(2) > marks.letters;
    range(tell, "capitals", u32::from(shouts), &[(1, "1")]);
}

/// What only means something together.
fn combinations(words: &Words, names: &[&str], concepts: &[u32], tell: &mut dyn FnMut(Feature<'_>)) {
    let has = |name: &str| names.iter().position(|known| *known == name).is_some_and(|at| concepts[at] > 0);
    let marks = &words.marks;
    let (short, long) = (words.len() <= 14, words.len() >= 35);
    let is_mine = has("mine") || has("matter") || marks.references > 0;
    let asks = marks.questions > 0 || has("howto") || has("define") || has("offers");
    let pleasantry = has("greet") || has("thanks") || has("bye") || has("ack") || has("smalltalk");
    let grave = has("legal") || has("security") || has("safety") || has("outage") || has("churn") || has("exec");
    let table = [
        ("short_pleasantry", short && pleasantry && !asks && !grave && marks.numbers == 0),
        ("very_short", words.len() <= 3 && marks.numbers == 0 && marks.questions == 0),
        ("asks_in_general", short && asks && !is_mine && !grave && !has("nego")),
        ("asks_of_mine", asks && is_mine && !grave && !long),
        ("mine_with_reference", is_mine && marks.references > 0 && !long),
        ("long_analysis", long && has("analyse")),
        ("long_numbers", long && marks.numbers >= 5),
        ("analysis_without_grief", has("analyse") && !grave && !has("nego")),
        ("deal", has("nego") && (has("iffy") || marks.currencies > 0 || marks.percents > 0)),
        ("ours_deal", has("ours") && has("nego")),
        ("grave_many", grave && has("many")),
        ("grave_large", grave && (marks.large_numbers > 0 || has("ours"))),
        ("grave_without_question", grave && marks.questions == 0),
        ("grave_long", grave && words.len() >= 16),
        ("large_loss", marks.large_numbers > 0 && !has("nego") && !asks),
        (
            "graves",
            ["legal", "security", "safety", "outage", "churn", "exec"].iter().filter(|name| has(name)).count() >= 2,
        ),
        ("tech_long", has("tech") && words.len() >= 20),
        ("text_task", has("text") && (marks.quotes >= 2 || short)),
        ("fault_of_mine", has("fault") && !grave && !long),
        ("why_question", has("why") && asks && !short),
    ];
    for (name, _) in table.iter().filter(|(_, holds)| *holds) {
        plain(tell, "x", name);
    }
}
