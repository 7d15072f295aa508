//! A text as the classifier sees it: words in lower case without accents, and marks that are no words.

/// The words of a text, one after the other in one buffer.
#[derive(Debug, Default)]
pub struct Words {
    text: String,
    /// Begin and end of each word.
    spans: Vec<(u32, u32)>,
    pub marks: Marks,
}

/// What is counted beside the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    pub questions: u32,
    pub exclamations: u32,
    pub lines: u32,
    /// Lines that look like code, a log or a table.
    pub code_lines: u32,
    pub list_items: u32,
    pub percents: u32,
    pub currencies: u32,
    /// Numbers, of any length.
    pub numbers: u32,
    /// Numbers of ten thousand and more, with or without separators.
    pub large_numbers: u32,
    /// Words that have digits and letters, or are numbers of four digits and more.
    pub references: u32,
    pub capitals: u32,
    pub letters: u32,
    pub emoji: u32,
    pub quotes: u32,
}

impl Words {
    pub fn of(text: &str) -> Self {
        let mut words = Self { text: String::with_capacity(text.len() + 8), ..Self::default() };
        text.lines().for_each(|line| words.marks.line(line));
        let mut begin = None::<usize>;
        let mut digits = 0u32;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let folded = fold(c);
            // A separator inside a number belongs to it: 1.150,00 and 2,500.
            let is_inside = matches!(c, '.' | ',') && digits > 0 && chars.peek().is_some_and(char::is_ascii_digit);
            if folded.is_none() && !is_inside {
                words.marks.mark(c);
                words.end(&mut begin, &mut digits);
                continue;
            }
            if c.is_uppercase() {
                words.marks.capitals += 1;
            }
            words.marks.letters += u32::from(c.is_alphabetic());
            // What is no letter is inside a number, and left out of it.
            let Some(folded) = folded else { continue };
            begin.get_or_insert(words.text.len());
            digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
            words.text.push(folded);
        }
        words.end(&mut begin, &mut digits);
        words
    }

    fn end(&mut self, begin: &mut Option<usize>, digits: &mut u32) {
        *digits = 0;
        let Some(from) = begin.take() else { return };
        let word = &self.text[from..];
        let number = word.bytes().filter(u8::is_ascii_digit).count();
        let is_number = number == word.len();
        if number > 0 {
            self.marks.numbers += 1;
            self.marks.references += u32::from(!is_number || number >= 4);
            self.marks.large_numbers += u32::from(is_number && (5..=9).contains(&number));
        }
        if is_number {
            // What number it is says nothing that the marks do not.
            self.text.truncate(from);
            self.text.push('0');
        }
        self.spans.push((u32::try_from(from).unwrap_or(0), u32::try_from(self.text.len()).unwrap_or(0)));
        self.text.push(' ');
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn word(&self, index: usize) -> Option<&str> {
        let (from, to) = *self.spans.get(index)?;
        self.text.get(from as usize..to as usize)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.word(index))
    }
}

impl Marks {
    fn mark(&mut self, c: char) {
        match c {
            '?' => self.questions += 1,
            '!' => self.exclamations += 1,
            '%' => self.percents += 1,
            '$' | '€' | '£' => self.currencies += 1,
            '"' | '“' | '”' | '\'' | '«' => self.quotes += 1,
            c if c as u32 >= 0x1f300 || ('\u{2600}'..='\u{27bf}').contains(&c) => self.emoji += 1,
            _ => {}
        }
    }

    fn line(&mut self, line: &str) {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            return;
        }
        self.lines += 1;
        let signs = trimmed.bytes().filter(|b| b"{}[]();=<>|\\_#:/*+".contains(b)).count();
        let is_code = signs >= 3 && signs * 8 >= trimmed.len();
        let separators = trimmed.bytes().filter(|b| matches!(b, b';' | b'|' | b'\t')).count();
        self.code_lines += u32::from(is_code || separators >= 3);
        let rest = trimmed.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_item =
            trimmed.starts_with(['-', '*', '•']) || (rest.len() < trimmed.len() && rest.starts_with([')', '.']));
        self.list_items += u32::from(is_item);
    }
}

/// A letter or digit in lower case and without accent; nothing for everything else.
fn fold(c: char) -> Option<char> {
    let plain = match c {
        'a'..='z' | '0'..='9' => c,
        'A'..='Z' => c.to_ascii_lowercase(),
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'À' | 'Á' | 'Â' | 'Ã' | 'Ä' => 'a',
        'è' | 'é' | 'ê' | 'ë' | 'È' | 'É' | 'Ê' | 'Ë' => 'e',
        'ì' | 'í' | 'î' | 'ï' | 'Ì' | 'Í' | 'Î' | 'Ï' => 'i',
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'Ò' | 'Ó' | 'Ô' | 'Õ' | 'Ö' => 'o',
        'ù' | 'ú' | 'û' | 'ü' | 'Ù' | 'Ú' | 'Û' | 'Ü' => 'u',
        'ç' | 'Ç' => 'c',
        'ñ' | 'Ñ' => 'n',
        // A letter of another script, as it is.
        _ if c.is_alphanumeric() => c,
        _ => return None,
    };
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_folded_and_numbers_are_one() {
        let words = Words::of("Não! R$ 1.150,00 é o preço do pedido PT-55120, 30% off…");
        let found: Vec<&str> = words.iter().collect();
        assert_eq!(found, ["nao", "r", "0", "e", "o", "preco", "do", "pedido", "pt", "0", "0", "off"]);
        let Marks { currencies, percents, numbers, references, large_numbers, exclamations, .. } = words.marks;
        assert_eq!((currencies, percents, numbers, references, large_numbers, exclamations), (1, 1, 3, 2, 2, 1));
    }

    #[test]
    fn lines_of_code_and_of_lists_are_counted() {
        let marks = Words::of("please:\n- one\n2) two\nconst x = f(a, b);\na;b;c;d\n").marks;
        assert_eq!((marks.lines, marks.list_items, marks.code_lines), (5, 2, 2));
    }

    #[test]
    fn nothing_is_too_odd() {
        for text in ["", " \n\t", "👍👍", "日本語 テスト", "\u{0}\u{7f}", &"a".repeat(5_000), "é̃̂"] {
            let words = Words::of(text);
            assert!(words.iter().all(|word| !word.is_empty()));
        }
        assert_eq!(Words::of("日本語").iter().collect::<Vec<_>>(), ["日本語"]);
    }
}
