//! A borrowed view of a JSON object's members, and the splicing of them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A member of an object: its name with escapes resolved, its value as it stands.
#[derive(Debug)]
pub struct Member<'a> {
    pub key: Cow<'a, str>,
    pub value: &'a str,
    /// Where the value begins in the object's text.
    start: usize,
}

/// An object as text, with the places of its members. The text is known to be valid JSON.
#[derive(Debug)]
pub struct Object<'a> {
    text: &'a str,
    /// Just behind the opening brace.
    open: usize,
    members: Vec<Member<'a>>,
}

impl<'a> Object<'a> {
    pub fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(MembersVisitor { base: text.as_ptr() as usize })?;
        json.end()?;
        let open = text.find('{').map_or(0, |at| at + 1);
        Ok(Self { text, open, members })
    }

    pub fn text(&self) -> &'a str {
        self.text
    }

    pub fn members(&self) -> &[Member<'a>] {
        &self.members
    }

    /// The value under `key`; of several the last, as most parsers take it. `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.members.iter().rev().find(|m| m.key == key).map(|m| m.value).filter(|value| *value != "null")
    }

    pub fn splice<'o>(&'o self) -> Splice<'o, 'a> {
        Splice { object: self, edits: Vec::new(), added: Vec::new() }
    }
}

/// Edits of an object that leave every other byte as it was.
pub struct Splice<'o, 'a> {
    object: &'o Object<'a>,
    /// By the number of the member; `None` removes it.
    edits: Vec<(usize, Option<Cow<'o, str>>)>,
    added: Vec<(&'static str, Cow<'o, str>)>,
}

impl<'o> Splice<'o, '_> {
    /// Gives every member named `key` the JSON text `value`, and adds one at the end where there is none. Of duplicates
    /// all are set, so that it does not matter which one a parser takes.
    pub fn set(&mut self, key: &'static str, value: impl Into<Cow<'o, str>>) {
        let value = value.into();
        let mut places = self.object.members.iter().enumerate().filter(|(_, m)| m.key == key).map(|(i, _)| i);
        let Some(first) = places.next() else { return self.added.push((key, value)) };
        self.edits.extend(places.map(|i| (i, Some(value.clone()))));
        self.edits.push((first, Some(value)));
    }

    /// Gives the member with this number a value.
    pub fn replace(&mut self, index: usize, value: impl Into<Cow<'o, str>>) {
        self.edits.push((index, Some(value.into())));
    }

    /// Removes the member with this number.
    pub fn remove(&mut self, index: usize) {
        self.edits.push((index, None));
    }

    pub fn is_unchanged(&self) -> bool {
        self.edits.is_empty() && self.added.is_empty()
    }

    pub fn render(&self) -> String {
        let Object { text, open, members } = self.object;
        let extra: usize = self.edits.iter().filter_map(|(_, v)| v.as_ref()).map(|v| v.len()).sum::<usize>()
            + self.added.iter().map(|(k, v)| k.len() + v.len() + 4).sum::<usize>();
        let mut out = String::with_capacity(text.len() + extra);
        out.push_str(&text[..*open]);
        let (mut at, mut is_first) = (*open, true);
        for (i, member) in members.iter().enumerate() {
            let edit = self.edits.iter().find(|(index, _)| *index == i).map(|(_, value)| value);
            let lead = &text[at..member.start];
            at = member.start + member.value.len();
            let value = match edit {
                Some(None) => continue,
                Some(Some(value)) => value,
                None => member.value,
            };
            // When the members before it are gone, the comma that parted them goes too.
            let comma = if is_first && i > 0 { lead.find(',').map_or(0, |c| c + 1) } else { 0 };
            out.push_str(&lead[comma..]);
            out.push_str(value);
            is_first = false;
        }
        for (key, value) in &self.added {
            out.push_str(if is_first { "\"" } else { ",\"" });
            out.push_str(key);
            out.push_str("\":");
            out.push_str(value);
            is_first = false;
        }
        out.push_str(&text[at..]);
        out
    }
}

/// `text` as a JSON string.
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

struct MembersVisitor {
    /// Address of the text, from which the places of the values follow.
    base: usize,
}

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(12);
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let value = map.next_value::<&'de RawValue>()?.get();
            members.push(Member { key, value, start: value.as_ptr() as usize - self.base });
        }
        Ok(members)
    }
}

/// Borrows a key where it has no escapes.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spliced(text: &str, edit: impl for<'o, 'a> Fn(&mut Splice<'o, 'a>)) -> String {
        let object = Object::parse(text).unwrap();
        let mut splice = object.splice();
        edit(&mut splice);
        splice.render()
    }

    #[test]
    fn a_member_is_replaced_where_it_stands() {
        assert_eq!(spliced(r#" { "a" : 1.0 , "b":[ ] }"#, |s| s.set("a", "true")), r#" { "a" : true , "b":[ ] }"#);
    }

    #[test]
    fn a_member_that_is_not_there_is_added_at_the_end() {
        assert_eq!(spliced("{}", |s| s.set("a", "1")), r#"{"a":1}"#);
        assert_eq!(spliced("{ \"b\": 1e400 }\n", |s| s.set("a", "1")), "{ \"b\": 1e400,\"a\":1 }\n");
    }

    #[test]
    fn members_are_removed_with_one_comma_each() {
        let text = r#"{ "a":1 , "b":2 , "c":3 }"#;
        let table: [(&[usize], &str); 6] = [
            (&[], text),
            (&[0], r#"{ "b":2 , "c":3 }"#),
            (&[1], r#"{ "a":1 , "c":3 }"#),
            (&[2], r#"{ "a":1 , "b":2 }"#),
            (&[0, 1], r#"{ "c":3 }"#),
            (&[0, 1, 2], "{ }"),
        ];
        for (removed, left) in table {
            assert_eq!(spliced(text, |s| removed.iter().for_each(|i| s.remove(*i))), left, "{removed:?}");
        }
    }

    #[test]
    fn duplicates_are_all_set_and_the_last_is_read() {
        let text = r#"{"m":1,"m":2}"#;
        assert_eq!(Object::parse(text).unwrap().get("m"), Some("2"));
        assert_eq!(spliced(text, |s| s.set("m", "3")), r#"{"m":3,"m":3}"#);
    }

    #[test]
    fn an_escaped_key_is_the_key_that_it_means() {
        assert_eq!(spliced(r#"{"mod\u0065l":1}"#, |s| s.set("model", "2")), r#"{"mod\u0065l":2}"#);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "1", "{", r#"{"a":1}x"#, r#"{"a":01}"#, "{\"a\":\"\n\"}"] {
            assert!(Object::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn depth_does_not_matter() {
        let deep = format!(r#"{{"a":{}{},"model":1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Object::parse(&deep).unwrap().get("model"), Some("1"));
    }

    fn whitespace() -> impl Strategy<Value = String> {
        "[ \t\n\r]{0,2}"
    }

    fn member() -> impl Strategy<Value = (String, String)> {
        let key = prop_oneof![Just("a".to_owned()), Just("model".to_owned()), "[a-z\\PC&&[^\"\\\\]]{0,4}"];
        let value = prop_oneof![
            Just("1.0".to_owned()),
            Just("1e400".to_owned()),
            Just("-0".to_owned()),
            Just("12345678901234567890123".to_owned()),
            Just("null".to_owned()),
            Just(r#"{"model":1,"model" : 2}"#.to_owned()),
            Just(r#"[ {},"}\"," ]"#.to_owned()),
            "[^\"\\\\\\pC]{0,8}".prop_map(|text| format!("\"{text}\"")),
        ];
        (key, value)
    }

    proptest! {
        #[test]
        fn splicing_keeps_all_other_members_byte_for_byte(
            members in prop::collection::vec((member(), whitespace(), whitespace(), whitespace()), 0..8),
            removed in prop::collection::vec(any::<bool>(), 8),
        ) {
            let text = members.iter().map(|((key, value), a, b, c)| format!("{a}\"{key}\"{b}:{c}{value}"));
            let text = format!("{{{}}}", text.collect::<Vec<_>>().join(","));
            let object = Object::parse(&text).unwrap();
            prop_assert_eq!(object.splice().render(), text.clone());

            let mut splice = object.splice();
            let mut expected: Vec<(String, String)> = Vec::new();
            for (i, ((key, value), ..)) in members.iter().enumerate() {
                match (key.as_str(), removed[i]) {
                    ("model", _) => expected.push((key.clone(), "\"new\"".into())),
                    (_, true) => splice.remove(i),
                    (_, false) => expected.push((key.clone(), value.clone())),
                }
            }
            splice.set("model", "\"new\"");
            if !expected.iter().any(|(key, _)| key == "model") {
                expected.push(("model".into(), "\"new\"".into()));
            }
            let out = splice.render();
            let object = Object::parse(&out).unwrap();
            let left: Vec<_> = object.members().iter().map(|m| (m.key.to_string(), m.value.to_owned())).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
