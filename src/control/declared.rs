//! `tollstream apply`: the difference between what files declare and what control has.
//!
//! What no file names is left alone; what is as declared is not written again.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Tables;
use super::check;
use super::document::{self, FieldChange, Problem};
use super::edit::Wanted;
use crate::records::control::{Entity, EntityKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Create,
    Change,
    Unchanged,
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Unchanged => "unchanged",
        }
    }
}

/// One declared entity and what becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Item {
    pub kind: &'static str,
    pub id: String,
    pub action: Action,
    /// Of a change; a new entity is new as a whole.
    pub changes: Vec<FieldChange>,
    #[serde(skip)]
    pub wanted: Option<Wanted>,
}

/// The difference.
///
/// # Errors
/// What would not hold afterwards; then nothing is to be written.
pub fn difference(tables: &Tables, declared: &[(String, Entity)]) -> Result<Vec<Item>, Vec<Problem>> {
    let (mut seen, mut problems) = (BTreeMap::<(EntityKind, &str), ()>::new(), Vec::new());
    for (id, entity) in declared {
        if seen.insert((entity.kind(), id.as_str()), ()).is_some() {
            let at = format!("{}.{id}", entity.kind().plural());
            problems.push(Problem::new(at, "is in more than one file"));
        }
    }
    let items: Vec<Item> = declared.iter().map(|(id, entity)| item(tables, id, entity)).collect();
    let wanted: Vec<Wanted> = items.iter().filter_map(|item| item.wanted.clone()).collect();
    problems.extend(check::check(tables, &wanted).into_iter().map(|violation| {
        let at = format!("{}.{}.{}", violation.kind.plural(), violation.id, violation.at);
        Problem::new(at, violation.problem)
    }));
    if problems.is_empty() { Ok(items) } else { Err(problems) }
}

fn item(tables: &Tables, id: &str, entity: &Entity) -> Item {
    let kind = entity.kind();
    let there = tables.entity(kind, id);
    let action = match &there {
        None => Action::Create,
        Some(there) if there == entity => Action::Unchanged,
        Some(_) => Action::Change,
    };
    let changes = match (&there, action) {
        (Some(there), Action::Change) => {
            document::difference(Some(&document::show(id, there)), Some(&document::show(id, entity)))
        }
        _ => Vec::new(),
    };
    let put = || Wanted::put(id, entity.clone(), tables.version_of(kind, id));
    let wanted = (action != Action::Unchanged).then(put);
    Item { kind: kind.name(), id: id.to_owned(), action, changes, wanted }
}
