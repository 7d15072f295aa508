//! Text as a model might write it, in the language of the prompt; the same for the same prompt and seed.
//!
//! A token here is a piece of at most [`PIECE_CHARACTERS_MAX`] characters that ends where a word ends, the space before a
//! word being part of it. So the tokens of a completion are exactly the pieces that a stream has.

/// Most characters of one token.
pub const PIECE_CHARACTERS_MAX: usize = 8;

/// A small generator of deterministic numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is more than 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.get(self.below(of.len() as u64) as usize).copied().unwrap_or_default()
    }
}

/// A number for a text (64-bit FNV-1a), going on from `hash`.
pub fn hash(hash: u64, text: &str) -> u64 {
    // The length parts texts that are hashed one after the other.
    let bytes = text.as_bytes().iter().copied().chain((text.len() as u64).to_le_bytes());
    bytes.fold(hash ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    English,
    Portuguese,
}

/// Words that tell the two languages apart; none of them is a word of both.
const ENGLISH: &[&str] = &[
    "the", "of", "is", "are", "you", "your", "what", "how", "please", "my", "in", "on", "for", "and", "with", "can",
    "does", "hello", "hi", "hey", "thanks", "when", "where", "why", "which", "this", "that", "about", "want", "need",
    "have", "it",
];
const PORTUGUESE: &[&str] = &[
    "de", "da", "que", "não", "nao", "você", "voce", "para", "uma", "um", "com", "por", "como", "qual", "meu", "minha",
    "está", "obrigado", "obrigada", "olá", "ola", "oi", "bom", "dia", "quero", "preciso", "quando", "onde", "quanto",
    "na", "em", "é", "os", "sobre", "porque", "isso", "tenho", "fatura", "pedido",
];

/// The language of a text: the one with more of its words, English when none is ahead.
pub fn language(text: &str) -> Language {
    let mut lead = 0_i64;
    for word in words(text).take(2_000) {
        lead -= i64::from(ENGLISH.contains(&word.as_str()));
        lead += i64::from(PORTUGUESE.contains(&word.as_str()));
        lead += i64::from(word.contains(['ã', 'õ', 'ç', 'á', 'é', 'í', 'ó', 'ú', 'â', 'ê', 'ô']));
    }
    if lead > 0 { Language::Portuguese } else { Language::English }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Words that the answer can be about: the longer ones of the question.
fn topics(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in words(text).take(200) {
        let length = word.chars().count();
        let is_common = ENGLISH.contains(&word.as_str()) || PORTUGUESE.contains(&word.as_str());
        if (4..=20).contains(&length) && !is_common && !found.contains(&word) {
            found.push(word);
        }
    }
    found.truncate(6);
    found
}

const ENGLISH_SENTENCES: &[&str] = &[
    "The short answer on {} is that it depends on what you have already tried.",
    "Let us look at {} step by step, starting with what is known.",
    "A good first step is to check {} against your most recent records.",
    "In most cases {} works as expected once the settings agree.",
    "If {} still looks wrong, compare it with an earlier example.",
    "Keep in mind that {} may take a few minutes to show everywhere.",
    "It also helps to write down when {} last changed, and who changed it.",
    "There are two common ways to handle {}, and both are safe to try.",
    "The first is quicker, while the second gives you more control over {}.",
    "Should anything about {} be unclear, tell me what you see and we go on from there.",
];
const PORTUGUESE_SENTENCES: &[&str] = &[
    "A resposta curta sobre {} é que depende do que você já tentou.",
    "Vamos olhar {} passo a passo, começando pelo que já se sabe.",
    "Um bom primeiro passo é conferir {} com os seus registros mais recentes.",
    "Na maioria dos casos, {} funciona como esperado quando as configurações combinam.",
    "Se {} ainda parecer errado, compare com um exemplo anterior.",
    "Lembre que {} pode levar alguns minutos para aparecer em todos os lugares.",
    "Também ajuda anotar quando {} mudou pela última vez, e quem mudou.",
    "Há duas maneiras comuns de tratar {}, e as duas são seguras.",
    "A primeira é mais rápida, e a segunda dá mais controle sobre {}.",
    "Se algo sobre {} não ficar claro, diga o que você vê e seguimos daí.",
];

/// An answer to `question` of as many whole sentences as give `tokens`, or a little more.
pub fn compose(question: &str, tokens: usize, random: &mut Random) -> Vec<String> {
    let (sentences, openings, fallback) = match language(question) {
        Language::English => {
            (ENGLISH_SENTENCES, &["Sure.", "Happy to help.", "Thanks for asking."][..], "your request")
        }
        Language::Portuguese => {
            (PORTUGUESE_SENTENCES, &["Claro.", "Com prazer.", "Obrigado por perguntar."][..], "o seu pedido")
        }
    };
    let topics = topics(question);
    let topics: Vec<&str> =
        if topics.is_empty() { vec![fallback] } else { topics.iter().map(String::as_str).collect() };
    let mut answer = pieces(random.pick(openings));
    while answer.len() < tokens {
        let sentence = random.pick(sentences).replace("{}", random.pick(&topics));
        answer.extend(pieces(&format!(" {sentence}")));
    }
    answer
}

/// Cuts a text into tokens.
pub fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::with_capacity(text.len() / 4);
    let mut characters = 0;
    for c in text.chars() {
        match pieces.last_mut().filter(|_| c != ' ' && characters < PIECE_CHARACTERS_MAX) {
            Some(piece) => {
                piece.push(c);
                characters += 1;
            }
            None => {
                pieces.push(c.to_string());
                characters = 1;
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_is_that_of_the_prompt() {
        for text in ["Olá, qual é o status do meu pedido?", "oi", "preciso de ajuda com a fatura", "Obrigado!"] {
            assert_eq!(language(text), Language::Portuguese, "{text}");
        }
        for text in ["Hello", "What is the status of my order?", "", "42", "日本語"] {
            assert_eq!(language(text), Language::English, "{text}");
        }
    }

    #[test]
    fn an_answer_is_the_same_for_the_same_seed_and_about_the_question() {
        let answer = |seed| compose("Qual é o prazo de entrega?", 40, &mut Random::new(seed)).concat();
        assert_eq!(answer(1), answer(1));
        assert_ne!(answer(1), answer(2));
        assert!(answer(1).contains("entrega") || answer(1).contains("prazo"), "{}", answer(1));
        assert!(answer(1).ends_with('.'));
    }

    #[test]
    fn tokens_are_pieces_of_words() {
        assert_eq!(pieces("It is  configurações."), ["It", " is", " ", " configu", "rações."]);
        assert!(pieces("").is_empty());
    }

    #[test]
    fn hashed_texts_do_not_run_into_each_other() {
        assert_ne!(hash(hash(0, "ab"), "c"), hash(hash(0, "a"), "bc"));
    }
}
