//! Entities as tables, as JSON, and as files.

use serde_json::{Value, json};

use super::super::output;
use crate::control::document::{self, Object};
use crate::control::edit::VERSION;
use crate::control::history::Entry;
use crate::records::control::{Entity, EntityKind};

/// The members that a list shows, besides id and version.
const fn columns(kind: EntityKind) -> &'static [&'static str] {
    match kind {
        EntityKind::Plan => &["tiers", "models", "limits", "budget"],
        EntityKind::Organization => &["name", "active", "plan", "vip"],
        EntityKind::Key => &["prefix", "active", "organizations", "scopes", "expires_at", "description"],
        EntityKind::Model => &["tier", "owned_by", "aliases", "deployments", "limits"],
        EntityKind::Policy => &["default_tier", "max_attempts", "tiers", "fallback"],
    }
}

/// The document with its kind and version.
pub fn json(id: &str, entity: &Entity, version: i64) -> Value {
    let mut whole = Object::new();
    whole.insert("object".to_owned(), Value::from(entity.kind().name()));
    whole.insert(VERSION.to_owned(), Value::from(version));
    whole.extend(document::show(id, entity));
    Value::Object(whole)
}

/// As a file of `apply`.
pub fn toml(id: &str, entity: &Entity) -> anyhow::Result<String> {
    let file = json!({ entity.kind().plural(): [document::show(id, entity)] });
    Ok(toml::to_string(&file)?)
}

pub fn one(id: &str, entity: &Entity, version: i64) {
    let shown = document::show(id, entity);
    let mut rows: Vec<Vec<String>> = document::difference(None, Some(&shown))
        .into_iter()
        .map(|field| vec![field.field, field.after.map(|value| cell(&value)).unwrap_or_default()])
        .collect();
    rows.push(vec![VERSION.to_owned(), version.to_string()]);
    output::table(&["field", "value"], &rows);
}

pub fn many(kind: EntityKind, all: &[(&str, Entity, i64)]) {
    let mut headers = vec![kind.id_field()];
    headers.extend(columns(kind));
    headers.push(VERSION);
    let row = |(id, entity, version): &(&str, Entity, i64)| {
        let shown = document::show(id, entity);
        let cells = columns(kind).iter().map(|column| shown.get(*column).map(cell).unwrap_or_default());
        std::iter::once((*id).to_owned()).chain(cells).chain([version.to_string()]).collect()
    };
    output::table(&headers, &all.iter().map(row).collect::<Vec<_>>());
}

pub fn history(entries: &[Entry]) {
    let row = |entry: &Entry| {
        let changes = entry.changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        vec![
            entry.version.to_string(),
            entry.at.clone(),
            entry.actor.clone(),
            entry.effect.as_str().to_owned(),
            changes,
        ]
    };
    output::table(&["version", "at", "actor", "effect", "changes"], &entries.iter().map(row).collect::<Vec<_>>());
}

/// A value in few words: names in a row, tables by their number.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) if items.iter().any(Value::is_object) => items.len().to_string(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            members.iter().map(|(name, value)| format!("{name}={}", cell(value))).collect::<Vec<_>>().join(" ")
        }
    }
}
