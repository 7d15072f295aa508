//! What became of one entity: every change that was written, effective or not, by whom, and what it changed.

use std::collections::VecDeque;

use serde::Serialize;

use super::Change;
use super::document::{self, FieldChange, Object};
use crate::domain::Timestamp;
use crate::records::control::{ControlRecord, EntityKind};

/// Most entries that are kept, the latest.
const ENTRIES_MAX: usize = 1_000;

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    Created,
    Changed,
    Deleted,
    /// It expected another version, so it changed nothing.
    Conflict,
}

impl Effect {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
            Self::Conflict => "conflict",
        }
    }
}

/// One change that was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its offset on control, which is the entity's version where it took effect.
    pub version: i64,
    pub at: String,
    pub actor: String,
    pub effect: Effect,
    pub expected_version: i64,
    /// Of a conflict: what it would have changed. A key's hash is none of it.
    pub changes: Vec<FieldChange>,
}

/// The history of one entity, as far as the log was read.
#[derive(Debug)]
pub struct History {
    kind: EntityKind,
    id: String,
    now: Option<Object>,
    entries: VecDeque<Entry>,
}

impl History {
    pub fn of(kind: EntityKind, id: &str) -> Self {
        Self { kind, id: id.to_owned(), now: None, entries: VecDeque::new() }
    }

    /// Takes what became of the record at `offset`.
    pub fn note(&mut self, offset: i64, record: &ControlRecord, change: Change) {
        let Ok((kind, entity)) = record.change() else { return };
        if kind != self.kind || record.id != self.id {
            return;
        }
        let after = entity.map(|entity| document::show(&record.id, &entity));
        let changes = document::difference(self.now.as_ref(), after.as_ref());
        let effect = match (change, &self.now, &after) {
            (Change::Conflict { .. }, _, _) => Effect::Conflict,
            (Change::Effective, _, None) => Effect::Deleted,
            (Change::Effective, None, Some(_)) => Effect::Created,
            (Change::Effective, Some(_), Some(_)) => Effect::Changed,
        };
        if change == Change::Effective {
            self.now = after;
        }
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            version: offset,
            at: Timestamp::to_string(&record.at),
            actor: record.actor.clone(),
            effect,
            expected_version: record.expected_version,
            changes,
        });
    }

    /// From the first that is kept to the last.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::control::{Entity, Organization, Stamp};

    #[test]
    fn every_change_is_told_and_what_it_changed() {
        let stamp = |actor: &str| Stamp { change_id: "c".into(), actor: actor.into(), at: Timestamp::from_millis(0) };
        let named = |name: &str| Entity::Organization(Organization::named(name));
        let records = [
            ControlRecord::put("acme", named("A"), -1, stamp("ann")),
            ControlRecord::put("other", named("O"), -1, stamp("ann")),
            ControlRecord::put("acme", named("B"), 0, stamp("bob")),
            ControlRecord::put("acme", named("C"), 0, stamp("cat")),
            ControlRecord::delete(EntityKind::Organization, "acme", 2, stamp("bob")),
        ];
        let (mut tables, mut history) =
            (crate::control::Tables::default(), History::of(EntityKind::Organization, "acme"));
        for (offset, record) in (0..).zip(&records) {
            let change = tables.apply(offset, record).unwrap();
            history.note(offset, record, change);
        }
        let told: Vec<(i64, String, &str, usize)> = history
            .into_entries()
            .into_iter()
            .map(|e| (e.version, e.actor, e.effect.as_str(), e.changes.iter().filter(|c| c.field == "name").count()))
            .collect();
        let told: Vec<(i64, &str, &str, usize)> = told.iter().map(|(v, a, e, n)| (*v, a.as_str(), *e, *n)).collect();
        assert_eq!(
            told,
            [(0, "ann", "created", 1), (2, "bob", "changed", 1), (3, "cat", "conflict", 1), (4, "bob", "deleted", 1)]
        );
    }
}
