//! One tenure over a partition, without Kafka: decisions in order, each one commit, commands after acknowledgement.
//!
//! The state runs ahead of the acknowledgements (commits are appended without waiting for the one before), but no
//! command runs before its own commit and all before it are acknowledged. A sole writer's acknowledged offsets are
//! contiguous; any other acknowledgement means that somebody else wrote, and ends the tenure.

use std::collections::VecDeque;

use super::checkpoint::Cut;
use super::health::Health;
use super::{Capacity, Command, Context, Input, State, commit, decide, evolve};
use crate::control::Tables;
use crate::domain::Timestamp;
use crate::processor::Bounds;
use crate::records::journal::Commit;

/// An acknowledgement that a sole writer cannot get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a commit stands at offset {found}, not at {expected}: another owner has written")]
pub struct Gap {
    pub expected: i64,
    pub found: i64,
}

/// What a decision is made with, beside the state and the input.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The time of the record, or the owner's own.
    pub at: Timestamp,
    pub control: &'a Tables,
    pub capacity: Capacity,
    pub bounds: &'a Bounds,
    pub health: Health<'a>,
}

/// A commit that waits for its acknowledgement.
#[derive(Debug)]
pub struct Pending {
    pub source_offset: Option<i64>,
    /// To be run now.
    pub commands: Vec<Command>,
}

#[derive(Debug)]
pub struct Tenure {
    /// Offset of its `OwnershipTaken`.
    id: i64,
    state: State,
    next_sequence: i64,
    /// Where the next acknowledgement must stand.
    next_offset: i64,
    pending: VecDeque<Pending>,
}

impl Tenure {
    /// Begins with the state that the journal holds up to the tenure's own `OwnershipTaken` at offset `id`.
    pub fn begin(id: i64, state: State) -> Self {
        Self { id, state, next_sequence: 0, next_offset: id + 1, pending: VecDeque::new() }
    }

    pub const fn id(&self) -> i64 {
        self.id
    }

    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Decides, and folds the decision. The commit is to be appended, in this order; `None`: there is nothing to say.
    /// The commands come back from [`acknowledged`](Self::acknowledged).
    pub fn decide(&mut self, input: &Input<'_>, with: Circumstances<'_>) -> Option<Commit> {
        let context = Context {
            at: self.state.clock.max(with.at),
            tenure: self.id,
            control: with.control,
            capacity: with.capacity,
            bounds: with.bounds,
            health: with.health,
        };
        let mut decision = decide(&self.state, input, &context);
        if decision.facts.is_empty() {
            return None;
        }
        let commands = std::mem::take(&mut decision.commands);
        let commit = commit(&mut decision, self.next_sequence, &context);
        evolve(&mut self.state, &commit);
        self.next_sequence += 1;
        self.pending.push_back(Pending { source_offset: commit.source_offset, commands });
        Some(commit)
    }

    /// Takes the acknowledgement of the next commit.
    ///
    /// # Errors
    /// [`Gap`] when the commit does not stand where it must: no command may run any more.
    pub fn acknowledged(&mut self, found: i64) -> Result<Pending, Gap> {
        let expected = self.next_offset;
        let pending = self.pending.pop_front().filter(|_| found == expected).ok_or(Gap { expected, found })?;
        self.next_offset += 1;
        Ok(pending)
    }

    /// The state up to the latest decision; `None` while money of former owners waits to be posted. It may be kept once
    /// that decision is [acknowledged](Self::has_acknowledged).
    pub fn cut(&self) -> Option<Cut> {
        let journal_offset = self.id + self.next_sequence;
        let cut =
            || Cut { tenure: self.id, journal_offset, next_sequence: self.next_sequence, state: self.state.clone() };
        self.state.orphans().next().is_none().then(cut)
    }

    /// Whether everything up to this offset of the journal is acknowledged.
    pub const fn has_acknowledged(&self, journal_offset: i64) -> bool {
        journal_offset < self.next_offset
    }

    /// Offset of the journal up to which everything is acknowledged.
    pub const fn end(&self) -> i64 {
        self.next_offset
    }

    /// Commits that wait for their acknowledgements.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// No commit waits for its acknowledgement.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}
