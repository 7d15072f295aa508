//! Files with several entities: `[[plans]]`, `[[organizations]]`, `[[models]]`, `[[policies]]`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Object, Problem, from_toml, id_of, parse};
use crate::records::control::{Entity, EntityKind};

/// What a file has, in the order in which one may name the other; adds what is wrong with it to `problems`.
pub fn file(text: &str, problems: &mut Vec<Problem>) -> Vec<(String, Entity)> {
    let mut tables = match table(text) {
        Ok(tables) => tables,
        Err(problem) => {
            problems.push(problem);
            return Vec::new();
        }
    };
    let mut entities = Vec::new();
    for kind in [EntityKind::Model, EntityKind::Plan, EntityKind::Organization, EntityKind::Policy] {
        match tables.shift_remove(kind.plural()) {
            None => {}
            Some(Value::Array(items)) => list(kind, items, &mut entities, problems),
            Some(_) => problems.push(Problem::new(kind.plural(), format!("is no list; write [[{}]]", kind.plural()))),
        }
    }
    for (name, _) in tables {
        let what = match name == EntityKind::Key.plural() {
            true => "keys have secrets and stand in no file; make them with `tollstream keys create`",
            false => "is not known; known are [[plans]], [[organizations]], [[models]] and [[policies]]",
        };
        problems.push(Problem::new(name, what));
    }
    entities
}

/// The top of a TOML file.
///
/// # Errors
/// Where it is no TOML.
pub fn table(text: &str) -> Result<Object, Problem> {
    let table = toml::from_str::<toml::Table>(text).map_err(|e| Problem::new("", e.to_string().trim_end()))?;
    Ok(table.into_iter().map(|(name, value)| (name, from_toml(value))).collect())
}

fn list(kind: EntityKind, items: Vec<Value>, entities: &mut Vec<(String, Entity)>, problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (index, item) in items.into_iter().enumerate() {
        let Value::Object(object) = item else {
            problems.push(Problem::new(format!("{}[{index}]", kind.plural()), "is no table"));
            continue;
        };
        let at = match id_of(kind, &object) {
            Some(id) => format!("{}.{id}", kind.plural()),
            None => format!("{}[{index}]", kind.plural()),
        };
        match parse(kind, object, None) {
            Ok((id, _)) if !seen.insert(id.clone()) => problems.push(Problem::new(at, "is there more than once")),
            Ok(entity) => entities.push(entity),
            Err(found) => problems.extend(found.into_iter().map(|problem| match problem.at.as_str() {
                "" => Problem::new(at.clone(), problem.problem),
                inner => Problem::new(format!("{at}.{inner}"), problem.problem),
            })),
        }
    }
}
