//! Where in a file something is wrong, as people look for it: its line and column.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Line and column, both from 1, of a member such as `rules[0].when.window`, or of the nearest one around it that is there.
pub fn locate(text: &str, at: &str) -> Option<(usize, usize)> {
    let table = DeTable::parse(text).ok()?;
    let mut begin = 0;
    let mut value: Option<&Spanned<DeValue<'_>>> = None;
    for step in at.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|step| !step.is_empty()) {
        let next = match value.map(Spanned::get_ref) {
            None => table.get_ref().get_key_value(step),
            Some(DeValue::Table(inner)) => inner.get_key_value(step),
            Some(DeValue::Array(items)) => {
                let Some(item) = step.parse::<usize>().ok().and_then(|index| items.get(index)) else { break };
                (begin, value) = (item.span().start, Some(item));
                continue;
            }
            Some(_) => break,
        };
        let Some((key, found)) = next else { break };
        (begin, value) = (key.span().start, Some(found));
    }
    Some(position(text, begin))
}

/// Line and column of a byte.
pub fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_by_its_path() {
        let text =
            "name = \"x\"\n[intents]\nfaq = 9\n\n[[tiers]]\ntier = 1\n\n[[tiers]]\ntier = 2\ncandidates = [\"a\"]\n";
        let table = [
            ("name", Some((1, 1))),
            ("intents.faq", Some((3, 1))),
            ("tiers[1].tier", Some((9, 1))),
            ("tiers[1].candidates", Some((10, 1))),
            // What is not there is told where it should be.
            ("tiers[0].weights", Some((5, 1))),
            ("nowhere", Some((1, 1))),
        ];
        for (at, expected) in table {
            assert_eq!(locate(text, at), expected, "{at}");
        }
        assert_eq!(locate("= broken", "name"), None);
        assert_eq!(position("ã\nbc", 4), (2, 2));
    }
}
