//! What a request is about: the likelihoods of six intents, read from the last thing that the user says.
//!
//! Words, pairs of words, concepts of a lexicon in two languages and counts are added up by weights that were fitted on
//! labelled utterances (tests/routing). Everything is in integers, so that every machine comes to the same. No network, and
//! no more of a text than [`TEXT_BYTES_MAX`]. A model can take its place behind [`Classifier`].

mod features;
mod hash;
mod lexicon;
mod text;

use std::sync::LazyLock;

pub use features::{Feature, features};
use hash::{Fnv, Hashed};
use lexicon::Lexicon;
use text::Words;

use crate::records::journal::Measures;

/// The intents that the classifier knows.
pub const INTENTS: [&str; 6] =
    ["greeting", "faq", "basic_support", "complex_question", "sales_negotiation", "high_value"];

/// Most bytes of a text that are read: its beginning and its end.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

const WEIGHTS: &str = include_str!("weights.tsv");
/// Weights are thousandths.
const ONE: i64 = 1_000;

/// The conversation, as the request holds it.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// The last message of the user.
    pub last_user: &'a str,
    /// The user's message before it, and the assistant's: what "it" and "yes" refer to.
    pub earlier_user: Option<&'a str>,
    pub earlier_assistant: Option<&'a str>,
    /// Messages of the user before the last one.
    pub turns: u32,
}

/// In permille, in the order of [`INTENTS`]; they sum to 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likelihoods(pub [u16; INTENTS.len()]);

/// Tells what a request is about: the same for the same conversation, on every machine.
pub trait Classifier: Send + Sync {
    /// `None`: it does not understand the text, which is in another language or in none.
    fn classify(&self, conversation: &Conversation<'_>) -> Option<Likelihoods>;
    /// Changes whenever its answers may.
    fn version(&self) -> &str;
}

/// The classifier that the program carries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Builtin;

/// Lexicon and weights, read once.
struct Model {
    lexicon: Lexicon,
    /// By the hash of a feature, its place and its weight for each intent.
    weights: Hashed<(usize, [i32; INTENTS.len()])>,
    version: String,
}

static MODEL: LazyLock<Model> = LazyLock::new(Model::load);

impl Builtin {
    /// Reads lexicon and weights, so that no request waits for it.
    pub fn new() -> Self {
        LazyLock::force(&MODEL);
        Self
    }
}

impl Classifier for Builtin {
    fn classify(&self, conversation: &Conversation<'_>) -> Option<Likelihoods> {
        let Read { mut scores, words, known, bytes } = MODEL.read(conversation);
        if bytes >= FOREIGN_BYTES_MIN && known * FOREIGN_SHARE < words {
            return None;
        }
        // "Yes, please do" asks for what was talked about.
        if let Some(earlier) = conversation.earlier_user.filter(|_| is_assent(conversation.last_user)) {
            let before = Conversation { last_user: earlier, earlier_user: None, earlier_assistant: None, turns: 0 };
            scores.iter_mut().zip(MODEL.read(&before).scores).for_each(|(score, earlier)| *score += earlier);
        }
        Some(softmax(scores))
    }

    fn version(&self) -> &str {
        &MODEL.version
    }
}

/// What the features of a conversation come to.
#[derive(Default)]
struct Read {
    scores: [i64; INTENTS.len()],
    /// Of the last message: words, how many of them have weights, and their bytes.
    words: usize,
    known: usize,
    bytes: usize,
}

/// A text of so many bytes of words is foreign when less than one in so many of them is known. Nearly every third word of
/// English and Portuguese is.
const FOREIGN_BYTES_MIN: usize = 12;
const FOREIGN_SHARE: usize = 5;

/// Words that say yes to what was offered, and most words of a message that says only that.
const ASSENT: [&str; 14] =
    ["yes", "yep", "yeah", "do", "go", "ahead", "please", "sim", "isso", "pode", "podem", "quero", "manda", "favor"];
const ASSENT_WORDS_MAX: usize = 6;

fn is_assent(text: &str) -> bool {
    let words = Words::of(text);
    let says_yes = words.iter().filter(|word| ASSENT.contains(word)).count() >= 2;
    says_yes && words.len() <= ASSENT_WORDS_MAX && words.marks.questions == 0 && words.marks.numbers == 0
}

impl Model {
    fn read(&self, conversation: &Conversation<'_>) -> Read {
        let mut read = Read::default();
        // Each counts once.
        let mut seen = vec![false; self.weights.len()];
        features(conversation, &mut |feature| {
            let found = self.weights.get(&feature.hash());
            if let Some(word) = feature.word() {
                read.words += 1;
                read.known += usize::from(found.is_some());
                read.bytes += word.len();
            }
            if let Some((place, weights)) = found
                && !std::mem::replace(&mut seen[*place], true)
            {
                read.scores.iter_mut().zip(weights).for_each(|(score, weight)| *score += i64::from(*weight));
            }
        });
        read
    }

    fn load() -> Self {
        let mut weights = Hashed::default();
        for line in WEIGHTS.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, values)) = line.split_once('\t') else { continue };
            let mut of = [0; INTENTS.len()];
            for (weight, value) in of.iter_mut().zip(values.split('\t')) {
                *weight = value.parse().unwrap_or(0);
            }
            let place = weights.len();
            weights.insert(Fnv::of(name), (place, of));
        }
        Self { lexicon: Lexicon::load(), weights, version: format!("builtin-{:016x}", Fnv::of(WEIGHTS)) }
    }
}

/// e^(-n/8) in 2^-32, for n from 0: what is not in it is nothing.
static EXPONENTIALS: LazyLock<Vec<u64>> = LazyLock::new(|| {
    // e^(-1/8) in 2^-32, rounded: 0.882496902584595.
    const STEP: u128 = 3_790_295_334;
    let mut table = vec![1u64 << 32];
    while let Some(last) = table.last().copied().filter(|last| *last > 0) {
        table.push(u64::try_from((u128::from(last) * STEP) >> 32).unwrap_or(0));
    }
    table
});

/// Likelihoods of scores in thousandths.
fn softmax(scores: [i64; INTENTS.len()]) -> Likelihoods {
    let most = scores.iter().copied().max().unwrap_or(0);
    let shares = scores.map(|score| {
        // In 64ths of an eighth, the table's values and straight lines between them.
        let below = (most - score).saturating_mul(512) / ONE;
        let (index, part) = (usize::try_from(below / 64).unwrap_or(usize::MAX), (below % 64) as u64);
        let at = |index: usize| EXPONENTIALS.get(index).copied().unwrap_or(0);
        (at(index) * (64 - part) + at(index.saturating_add(1)) * part) / 64
    });
    let total: u64 = shares.iter().sum::<u64>().max(1);
    let mut permille = shares.map(|share| u16::try_from(share * 1_000 / total).unwrap_or(0));
    // What rounding left over is the likeliest one's.
    let left = 1_000u16.saturating_sub(permille.iter().sum());
    if let Some(index) = (0..permille.len()).max_by_key(|index| (scores[*index], std::cmp::Reverse(*index))) {
        permille[index] += left;
    }
    Likelihoods(permille)
}

/// Words that set limits to what is asked for.
const CONSTRAINTS: [&str; 22] = [
    "without", "except", "must", "only", "least", "most", "maximum", "minimum", "max", "min", "budget", "deadline",
    "sem", "exceto", "maximo", "minimo", "menos", "apenas", "somente", "teto", "prazo", "limite",
];
/// Frequent words of each language that the other does not have.
const PORTUGUESE: [&str; 16] = [
    "que", "nao", "de", "um", "uma", "para", "pra", "com", "meu", "minha", "voces", "vcs", "por", "esta", "eu", "isso",
];
const ENGLISH: [&str; 16] =
    ["the", "is", "you", "to", "and", "of", "it", "my", "for", "with", "not", "have", "this", "we", "are", "what"];

/// What is counted of a word, by its hash.
static COUNTED: LazyLock<Hashed<[u32; 3]>> = LazyLock::new(|| {
    let mut counted = Hashed::<[u32; 3]>::default();
    for (kind, words) in [&CONSTRAINTS[..], &PORTUGUESE[..], &ENGLISH[..]].into_iter().enumerate() {
        words.iter().for_each(|word| counted.entry(Fnv::of(word)).or_default()[kind] = 1);
    }
    counted
});

/// Counts the last message of the user.
pub fn measures(conversation: &Conversation<'_>) -> Measures {
    let words = Words::of(conversation.last_user);
    let mut counts = [0u32; 3];
    for of in words.iter().filter_map(|word| COUNTED.get(&Fnv::of(word))) {
        counts.iter_mut().zip(of).for_each(|(count, of)| *count = count.saturating_add(*of));
    }
    let [constraints, portuguese, english] = counts;
    Measures {
        words: u32::try_from(words.len()).unwrap_or(u32::MAX),
        questions: words.marks.questions,
        code_lines: words.marks.code_lines,
        numbers: words.marks.numbers,
        list_items: words.marks.list_items,
        constraints,
        turns: conversation.turns,
        portuguese: portuguese > english,
    }
}

#[cfg(test)]
mod tests;
