//! Which words and phrases speak of what: `lexicon.tsv` as a table that is asked word by word.

use super::hash::{Fnv, Hashed};
use super::text::Words;

const LEXICON: &str = include_str!("lexicon.tsv");
/// Fewest bytes of a word before `*`.
const PREFIX_BYTES_MIN: usize = 2;

/// A word of a phrase: as it is, or all that begin with it.
type WordId = u16;

/// The table.
#[derive(Debug, Default)]
pub struct Lexicon {
    names: Vec<&'static str>,
    exact: Hashed<WordId>,
    prefixes: Hashed<WordId>,
    words: WordId,
    /// By the first word, the others and the concept.
    phrases: Vec<Vec<(Vec<WordId>, u16)>>,
}

impl Lexicon {
    pub fn load() -> Self {
        let mut lexicon = Self::default();
        for line in LEXICON.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, phrases)) = line.split_once('\t') else { continue };
            let concept = u16::try_from(lexicon.names.len()).unwrap_or(u16::MAX);
            lexicon.names.push(name);
            for phrase in phrases.split(", ") {
                let mut ids: Vec<WordId> = phrase.split([' ', '-']).map(|word| lexicon.id(word)).collect();
                let first = ids.remove(0);
                lexicon.phrases.resize(usize::from(lexicon.words), Vec::new());
                lexicon.phrases[usize::from(first)].push((ids, concept));
            }
        }
        lexicon
    }

    fn id(&mut self, word: &'static str) -> WordId {
        let next = self.words;
        let (table, word) = match word.strip_suffix('*') {
            Some(prefix) => (&mut self.prefixes, prefix),
            None => (&mut self.exact, word),
        };
        let id = *table.entry(Fnv::of(word)).or_insert(next);
        self.words += WordId::from(id == next);
        id
    }

    /// The names of the concepts, in the order in which [`concepts`](Self::concepts) counts them.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// How often the words speak of each concept.
    pub fn concepts(&self, words: &Words) -> Vec<u32> {
        let mut counts = vec![0; self.names.len()];
        let ids: Vec<Ids> = words.iter().map(|word| self.ids(word)).collect();
        for (index, of) in ids.iter().enumerate() {
            for first in of.iter() {
                for (rest, concept) in self.phrases.get(usize::from(first)).into_iter().flatten() {
                    let follows = |(at, id): (usize, &WordId)| {
                        ids.get(index + 1 + at).is_some_and(|of| of.iter().any(|known| known == *id))
                    };
                    if rest.iter().enumerate().all(follows) {
                        counts[usize::from(*concept)] += 1;
                    }
                }
            }
        }
        counts
    }

    fn ids(&self, word: &str) -> Ids {
        let mut ids = Ids::default();
        let mut hash = Fnv::new();
        for (index, byte) in word.bytes().enumerate() {
            hash.push(byte);
            if index + 1 >= PREFIX_BYTES_MIN
                && let Some(id) = self.prefixes.get(&hash.finish())
            {
                ids.push(*id);
            }
        }
        if let Some(id) = self.exact.get(&hash.finish()) {
            ids.push(*id);
        }
        ids
    }
}

/// What a word is in the lexicon; of more than four only the first count.
#[derive(Debug, Clone, Copy, Default)]
struct Ids {
    ids: [WordId; 4],
    length: usize,
}

impl Ids {
    const fn push(&mut self, id: WordId) {
        if self.length < self.ids.len() {
            self.ids[self.length] = id;
            self.length += 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = WordId> + '_ {
        self.ids[..self.length].iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_prefixes_and_phrases_are_found() {
        let lexicon = Lexicon::load();
        let found = |text: &str| -> Vec<&str> {
            let counts = lexicon.concepts(&Words::of(text));
            let named = lexicon.names().iter().zip(counts);
            named.filter(|(_, count)| *count > 0).map(|(name, _)| *name).collect()
        };
        assert_eq!(found("Bom dia"), ["greet"]);
        assert!(found("Desconto de volume").contains(&"nego"));
        assert!(found("meu advogado").contains(&"legal") && found("meu advogado").contains(&"mine"));
        assert!(found("where is my parcel").contains(&"fault"));
        assert!(!found("where my parcel is").contains(&"fault"));
        assert!(found("").is_empty() && found("日本語").is_empty());
    }

    #[test]
    fn every_line_has_a_name_of_its_own_and_plain_words() {
        let mut names = std::collections::BTreeSet::new();
        for line in LEXICON.lines().filter(|line| !line.starts_with('#')) {
            let (name, phrases) = line.split_once('\t').unwrap();
            assert!(names.insert(name), "{name} is there twice");
            for phrase in phrases.split(", ") {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ' ' | '-' | '*');
                assert!(!phrase.is_empty() && phrase.chars().all(plain), "{name}: {phrase:?}");
            }
        }
    }
}
