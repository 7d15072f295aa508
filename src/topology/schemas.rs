//! `schemas/avro/`: that both decoders take every schema, that schemas can grow, and that each change is released.

use std::collections::BTreeMap;

use apache_avro::Schema;
use serde_json::{Map, Value};

use super::{Files, Problem, compatibility};
use crate::records::Topic;

const FOLDER: &str = "schemas/avro";
const HISTORY: &str = "schemas/avro/history";

/// The file of a topic's current schema.
pub fn current_file(topic: Topic) -> String {
    format!("{FOLDER}/{}.avsc", topic.name())
}

/// The file of a topic's released schema.
pub fn history_file(topic: Topic, number: u32) -> String {
    format!("{HISTORY}/{}/{number:04}.avsc", topic.name())
}

/// The released schemas of a topic, by number.
pub fn history(files: &Files, topic: Topic) -> BTreeMap<u32, String> {
    let folder = format!("{HISTORY}/{}", topic.name());
    let number = |path: &str| path.rsplit_once('/')?.1.strip_suffix(".avsc")?.parse().ok();
    files.below(&folder).filter_map(|(path, text)| Some((number(path)?, text.to_owned()))).collect()
}

/// Adds what is wrong with the schemas to `problems`.
pub fn check(files: &Files, problems: &mut Vec<Problem>) {
    let mut named = BTreeMap::new();
    for topic in Topic::ALL {
        let file = current_file(topic);
        let Some(text) = files.get(&file) else {
            problems.push(Problem::new(&file, "", "the file is missing"));
            continue;
        };
        let Some(schema) = parse(&file, text, problems) else { continue };
        if let Ok(json) = serde_json::from_str::<Value>(text) {
            let mut walk = Walk { file: &file, named: &mut named, problems };
            walk.schema(&json, "");
        }
        check_history(files, topic, text, &schema, problems);
    }
    check_strangers(files, problems);
}

/// Both decoders must take it.
fn parse(file: &str, text: &str, problems: &mut Vec<Problem>) -> Option<Schema> {
    let fast = text.parse::<serde_avro_fast::Schema>();
    if let Err(e) = &fast {
        problems.push(Problem::new(file, "", format!("serde_avro_fast does not take it: {e}")));
    }
    match Schema::parse_str(text) {
        Ok(schema) => fast.is_ok().then_some(schema),
        Err(e) => {
            problems.push(Problem::new(file, "", format!("apache-avro does not take it: {e}")));
            None
        }
    }
}

fn check_history(files: &Files, topic: Topic, text: &str, schema: &Schema, problems: &mut Vec<Problem>) {
    let released = history(files, topic);
    let release = "run `tollstream topology release`";
    match released.last_key_value() {
        None => problems.push(Problem::new(&current_file(topic), "", format!("was never released; {release}"))),
        Some((number, last)) if !same(last, text) => {
            let problem = format!("differs from its last release {number:04}; {release} if that is meant");
            problems.push(Problem::new(&current_file(topic), "", problem));
        }
        Some(_) => {}
    }
    for (number, text) in &released {
        let file = history_file(topic, *number);
        let Some(older) = parse(&file, text, problems) else { continue };
        if let Err(why) = compatibility::full(&older, schema) {
            let problem = format!("{why}; a released schema is never edited, so change {}", current_file(topic));
            problems.push(Problem::new(&file, "", problem));
        }
    }
    for (expected, number) in (1..).zip(released.keys()) {
        if expected != *number {
            problems.push(Problem::new(&history_file(topic, expected), "", "is missing: releases have no gaps"));
            break;
        }
    }
}

/// Schemas and history of what is no topic.
fn check_strangers(files: &Files, problems: &mut Vec<Problem>) {
    for (path, _) in files.below(FOLDER) {
        let name = path.strip_prefix(&format!("{HISTORY}/")).and_then(|rest| rest.split_once('/')).map_or_else(
            || path.strip_prefix(&format!("{FOLDER}/")).and_then(|rest| rest.strip_suffix(".avsc")),
            |(name, _)| Some(name),
        );
        if name.and_then(Topic::from_name).is_none() {
            problems.push(Problem::new(path, "", "belongs to no topic of this version"));
        }
    }
}

/// Whether two texts say the same schema, documentation included.
pub fn same(a: &str, b: &str) -> bool {
    match (serde_json::from_str::<Value>(a), serde_json::from_str::<Value>(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// The current schemas that differ from their last release, with the files that a release writes.
pub fn unreleased(files: &Files) -> Vec<(Topic, String, String)> {
    let changed = |topic: &Topic| {
        let text = files.get(&current_file(*topic))?;
        let released = history(files, *topic);
        let last = released.last_key_value();
        let next = last.map_or(1, |(number, _)| number + 1);
        let changed = last.is_none_or(|(_, last)| !same(last, text));
        changed.then(|| (*topic, history_file(*topic, next), text.to_owned()))
    };
    Topic::ALL.iter().filter_map(changed).collect()
}

/// A walk over a schema's JSON that looks at what the parsers do not mind.
struct Walk<'a> {
    file: &'a str,
    /// Named types by full name, without documentation, and the file that had them first.
    named: &'a mut BTreeMap<String, (Value, String)>,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    fn problem(&mut self, at: &str, problem: impl Into<String>) {
        self.problems.push(Problem::new(self.file, at, problem));
    }

    fn schema(&mut self, schema: &Value, at: &str) {
        match schema {
            Value::Array(branches) => {
                let nullable = branches.len() == 2 && branches.first().is_some_and(|b| b == "null");
                if !nullable {
                    self.problem(at, "a union other than [\"null\", type] cannot grow; use kind and nullable fields");
                }
                branches.iter().for_each(|branch| self.schema(branch, at));
            }
            Value::Object(object) => {
                match object.get("type").and_then(Value::as_str) {
                    Some("record") => self.record(object, at),
                    Some("enum") => self.enumeration(object, at),
                    Some("array") => object.get("items").into_iter().for_each(|items| self.schema(items, at)),
                    Some("map") => object.get("values").into_iter().for_each(|values| self.schema(values, at)),
                    _ => {}
                }
                self.repeated(object, at);
            }
            _ => {}
        }
    }

    fn enumeration(&mut self, object: &Map<String, Value>, at: &str) {
        let symbols = object.get("symbols").and_then(Value::as_array);
        let default = object.get("default");
        if !default.is_some_and(|default| symbols.is_some_and(|symbols| symbols.contains(default))) {
            self.problem(at, "an enum needs a default symbol, so that older readers take new ones");
        }
    }

    fn record(&mut self, object: &Map<String, Value>, at: &str) {
        let fields: Vec<&Value> = object.get("fields").and_then(Value::as_array).into_iter().flatten().collect();
        let named = |field: &Value| field.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let envelope = fields.iter().any(|field| named(field) == "kind" && field["type"] == "string");
        for field in fields {
            let at = format!("{at}{}{}", if at.is_empty() { "" } else { "." }, named(field));
            let (schema, default) = (&field["type"], field.get("default"));
            if envelope && is_record(schema) {
                self.problem(&at, "a kind's field must be [\"null\", record] with default null");
            }
            if schema.is_array() && default != Some(&Value::Null) {
                self.problem(&at, "a nullable field needs \"default\": null, else it cannot be added or removed");
            }
            self.schema(schema, &at);
        }
    }

    /// A named type that several schemas define is one type, and must be the same everywhere.
    fn repeated(&mut self, object: &Map<String, Value>, at: &str) {
        let Some(name) = object.get("name").and_then(Value::as_str) else { return };
        let definition = without_docs(&Value::Object(object.clone()));
        match self.named.get(name) {
            None => {
                self.named.insert(name.to_owned(), (definition, self.file.to_owned()));
            }
            Some((first, _)) if *first == definition => {}
            Some((_, file)) => {
                let problem = format!("{name} differs from the one in {file}; make them equal or rename one");
                self.problem(at, problem);
            }
        }
    }
}

fn is_record(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "record")
}

fn without_docs(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            // The namespace is the outermost record's, which not every definition repeats.
            let kept = object.iter().filter(|(key, _)| !matches!(key.as_str(), "doc" | "namespace"));
            Value::Object(kept.map(|(key, value)| (key.clone(), without_docs(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_docs).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl Fn(&mut Files)) -> String {
        let (mut files, mut problems) = (Files::embedded(), Vec::new());
        change(&mut files);
        check(&files, &mut problems);
        problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
    }

    fn edit(files: &mut Files, path: &str, from: &str, to: &str) {
        let text = files.get(path).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        let text = text.replacen(from, to, 1);
        files.set(path, &text);
    }

    #[test]
    fn the_shipped_schemas_hold() {
        assert_eq!(problems(|_| ()), "");
        assert_eq!(unreleased(&Files::embedded()), []);
    }

    #[test]
    fn a_changed_schema_wants_a_release_and_a_release_satisfies_it() {
        let path = current_file(Topic::Requests);
        let change = |files: &mut Files| {
            let to = r#"{"name": "note", "type": ["null", "string"], "default": null}, {"name": "kind""#;
            edit(files, &path, r#"{"name": "kind""#, to);
        };
        assert!(problems(change).contains("topology release"));
        let released = |files: &mut Files| {
            change(files);
            for (topic, file, text) in unreleased(files) {
                assert_eq!((topic, file.as_str()), (Topic::Requests, "schemas/avro/history/requests/0003.avsc"));
                files.set(&file, &text);
            }
        };
        assert_eq!(problems(released), "");
    }

    #[test]
    fn what_would_break_readers_is_found() {
        let cases = [
            (r#""default": "UNKNOWN"}, "default": "LIVE"}"#, r#""x": 1}, "default": "LIVE"}"#, "default symbol"),
            (r#"{"name": "lane", "type": "int", "default": 0"#, r#"{"name": "lane", "type": "int""#, "history"),
            (r#"{"name": "body", "type": "bytes""#, r#"{"name": "bodies", "type": "bytes""#, "history"),
            (r#""name": "chat", "default": null, "type": ["null", "#, r#""name": "chat", "type": ["null", "#, "chat: "),
            (r#"["null", "long"]"#, r#"["null", "long", "string"]"#, "cannot grow"),
            (r#""REPLAY", "#, "", "Origin differs"),
        ];
        for (from, to, expected) in cases {
            let found = problems(|files| edit(files, &current_file(Topic::Requests), from, to));
            // Renaming or dropping what has a default is compatible, but still not released.
            assert!(found.contains(expected) || found.contains("topology release"), "{to}: {found}");
            if expected != "history" {
                assert!(found.contains(expected), "{to}: {found}");
            }
        }
        let found = problems(|files| {
            edit(
                files,
                &current_file(Topic::Requests),
                r#"{"name": "body", "type": "bytes""#,
                r#"{"name": "b", "type": "bytes""#,
            )
        });
        assert!(found.contains("cannot read records"), "{found}");
    }

    #[test]
    fn a_stranger_and_a_gap_are_found() {
        let found = problems(|files| {
            files.set("schemas/avro/plans.avsc", "{}");
            files.set("schemas/avro/history/dead-letters/0003.avsc", Topic::DeadLetters.schema());
        });
        assert!(found.contains("plans.avsc: belongs to no topic"), "{found}");
        assert!(found.contains("dead-letters/0002.avsc: is missing"), "{found}");
    }
}
