//! Where a projection goes on in a partition of the journal. Which commits are effective depends on what came before, so
//! the committed offset carries the tenancy at that offset in its metadata: `1:TENURE:NEXT_SEQUENCE`, `-` for no tenure.

use crate::records::journal::Tenancy;
use crate::runtime::member::Position;

/// First part of the note: how the rest is to be read.
const FORMAT: &str = "1";

/// A place between two journal records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of the next record.
    pub offset: i64,
    pub tenancy: Tenancy,
}

impl Checkpoint {
    pub fn position(&self, partition: i32) -> Position {
        let Tenancy { tenure, next_sequence } = self.tenancy;
        let tenure = tenure.map_or_else(|| "-".to_owned(), |tenure| tenure.to_string());
        Position { partition, offset: Some(self.offset), note: format!("{FORMAT}:{tenure}:{next_sequence}") }
    }

    /// `None` when there is nothing to go on from, or not in a form that this version reads: then the whole partition
    /// is read again, and the repeats are dropped by their ids downstream.
    pub fn of(position: &Position) -> Option<Self> {
        let offset = position.offset?;
        let mut parts = position.note.split(':');
        let (format, tenure, sequence) = (parts.next()?, parts.next()?, parts.next()?);
        if format != FORMAT || parts.next().is_some() {
            return None;
        }
        let tenure = match tenure {
            "-" => None,
            number => Some(number.parse().ok().filter(|tenure| (0..offset).contains(tenure))?),
        };
        let next_sequence = sequence.parse().ok().filter(|sequence| *sequence >= 0)?;
        Some(Self { offset, tenancy: Tenancy { tenure, next_sequence } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_comes_back_as_it_went() {
        for tenure in [None, Some(0), Some(41)] {
            let checkpoint = Checkpoint { offset: 42, tenancy: Tenancy { tenure, next_sequence: 7 } };
            assert_eq!(Checkpoint::of(&checkpoint.position(3)), Some(checkpoint));
        }
        let vacant = Checkpoint { offset: 0, tenancy: Tenancy::VACANT };
        assert_eq!(vacant.position(0).note, "1:-:0");
    }

    #[test]
    fn a_note_that_is_not_ours_is_no_checkpoint() {
        let of = |offset, note: &str| Checkpoint::of(&Position { partition: 0, offset, note: note.to_owned() });
        for note in ["", "1", "1:2", "1:2:3:4", "2:2:3", "1:x:3", "1:2:x", "1:-1:3", "1:2:-3", "1:9:3"] {
            assert_eq!(of(Some(9), note), None, "{note:?}");
        }
        assert_eq!(of(None, "1:2:3"), None);
        assert!(of(Some(9), "1:8:3").is_some());
    }
}
