//! Control as it was at any moment: what a decision of the past was made on.

use std::sync::Arc;

use super::Tables;
use crate::records::control::ControlRecord;

/// The rules of every moment: control's records, folded as far as a commit used them.
#[derive(Debug, Clone)]
pub struct Rules {
    records: Arc<[(i64, ControlRecord)]>,
    next: usize,
    tables: Tables,
}

impl Rules {
    /// Out of all records of control that can be understood, in their order; those that cannot are passed over.
    pub fn new(records: Arc<[(i64, ControlRecord)]>) -> Self {
        Self { records, next: 0, tables: Tables::default() }
    }

    /// Rules that never change.
    pub fn fixed(tables: Tables) -> Self {
        Self { records: Arc::from([]), next: 0, tables }
    }

    /// The tables at an offset of control.
    pub fn at(&mut self, offset: i64) -> &Tables {
        if offset < self.tables.offset() {
            (self.next, self.tables) = (0, Tables::default());
        }
        while let Some((at, record)) = self.records.get(self.next).filter(|(at, _)| *at <= offset) {
            // What every reader passes over, this one does, too.
            let _ = self.tables.apply(*at, record);
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

impl Default for Rules {
    fn default() -> Self {
        Self::new(Arc::from([]))
    }
}
