//! Control as it was at any moment: what a decision of the past was made on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Tables;
use crate::records::control::{ControlRecord, Entity, EntityKind, Stamp};

/// Entities that are as they would be, whatever control says of them; where control has none, there is none.
pub type Overrides = BTreeMap<(EntityKind, String), Entity>;

/// The rules of every moment: control's records, folded as far as a commit used them.
#[derive(Debug, Clone)]
pub struct Rules {
    records: Arc<[(i64, ControlRecord)]>,
    next: usize,
    tables: Tables,
    overrides: Arc<Overrides>,
}

impl Rules {
    /// Out of all records of control that can be understood, in their order; those that cannot are passed over.
    pub fn new(records: Arc<[(i64, ControlRecord)]>) -> Self {
        Self { records, next: 0, tables: Tables::default(), overrides: Arc::default() }
    }

    /// The same moments, with other entities in the place of some: they keep their versions.
    pub fn overridden(&self, overrides: Arc<Overrides>) -> Self {
        if overrides.is_empty() {
            return self.clone();
        }
        Self { overrides, ..Self::new(self.records.clone()) }
    }

    /// Rules that never change.
    pub fn fixed(tables: Tables) -> Self {
        Self { records: Arc::from([]), next: 0, tables, overrides: Arc::default() }
    }

    /// The tables at an offset of control.
    pub fn at(&mut self, offset: i64) -> &Tables {
        if offset < self.tables.offset() {
            (self.next, self.tables) = (0, Tables::default());
        }
        while let Some((at, record)) = self.records.get(self.next).filter(|(at, _)| *at <= offset) {
            // What every reader passes over, this one does, too.
            let _ = self.tables.apply(*at, &as_overridden(record, &self.overrides));
            self.next += 1;
        }
        // The last records before it may be such that nobody understands.
        if self.tables.offset() < offset {
            self.tables.pass(offset);
        }
        &self.tables
    }

    /// Of the moment that was asked for last.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }
}

fn as_overridden<'a>(record: &'a ControlRecord, overrides: &Overrides) -> Cow<'a, ControlRecord> {
    if overrides.is_empty() || record.deleted {
        return Cow::Borrowed(record);
    }
    let kind = EntityKind::ALL.into_iter().find(|kind| kind.name() == record.kind);
    let entity = kind.and_then(|kind| overrides.get(&(kind, record.id.clone())));
    match entity {
        Some(entity) => {
            let (change_id, actor, at) = (record.change_id.clone(), record.actor.clone(), record.at);
            let stamp = Stamp { change_id, actor, at };
            Cow::Owned(ControlRecord::put(&record.id, entity.clone(), record.expected_version, stamp))
        }
        None => Cow::Borrowed(record),
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::new(Arc::from([]))
    }
}
