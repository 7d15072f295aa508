//! What changes between two documents, member by member.

use serde::Serialize;
use serde_json::Value;

use super::Object;

/// A member that changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldChange {
    /// For example `deployments[0].prices[1].input`.
    pub field: String,
    /// `None`: it is not there.
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl std::fmt::Display for FieldChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
        write!(f, "{} {} -> {}", self.field, text(&self.before), text(&self.after))
    }
}

/// All of them, in the order of the documents. `None` is an entity that is not there.
pub fn difference(before: Option<&Object>, after: Option<&Object>) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let empty = Object::new();
    objects("", before.unwrap_or(&empty), after.unwrap_or(&empty), &mut changes);
    changes
}

fn objects(at: &str, before: &Object, after: &Object, changes: &mut Vec<FieldChange>) {
    let path = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    for (name, value) in before {
        values(path(name), Some(value), after.get(name), changes);
    }
    for (name, value) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
        values(path(name), None, Some(value), changes);
    }
}

fn values(field: String, before: Option<&Value>, after: Option<&Value>, changes: &mut Vec<FieldChange>) {
    let empty = Object::new();
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Object(before)), Some(Value::Object(after))) => objects(&field, before, after, changes),
        (Some(Value::Object(before)), None) => objects(&field, before, &empty, changes),
        (None, Some(Value::Object(after))) => objects(&field, &empty, after, changes),
        // Lists of names are compared whole, lists of tables by their place.
        (Some(Value::Array(before)), Some(Value::Array(after))) if before.iter().chain(after).all(Value::is_object) => {
            for index in 0..before.len().max(after.len()) {
                values(format!("{field}[{index}]"), before.get(index), after.get(index), changes);
            }
        }
        (before, after) => {
            changes.push(FieldChange { field, before: before.cloned(), after: after.cloned() });
        }
    }
}
