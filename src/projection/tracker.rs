//! How far a log is dealt with: records are read in order, what they led to is acknowledged in any order, and the
//! committed place never passes a record of which anything is outstanding.

use std::collections::VecDeque;

/// Tracks one partition. `P` is the place after a record: what may be committed once all before it is done.
#[derive(Debug)]
pub struct Tracker<P> {
    /// From the oldest unfinished record on. A record that leads to nothing joins the one before it.
    entries: VecDeque<Entry<P>>,
    /// Number of `entries[0]`.
    first: u64,
    /// The place up to which everything is done.
    done: Option<P>,
}

#[derive(Debug)]
struct Entry<P> {
    outstanding: usize,
    after: P,
}

impl<P> Default for Tracker<P> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), first: 0, done: None }
    }
}

impl<P: Copy> Tracker<P> {
    /// A record was read that leads to so many acknowledgements; gives the number by which they are told.
    pub fn read(&mut self, outstanding: usize, after: P) -> u64 {
        match self.entries.back_mut() {
            Some(last) if outstanding == 0 => last.after = after,
            None if outstanding == 0 => self.done = Some(after),
            _ => self.entries.push_back(Entry { outstanding, after }),
        }
        (self.first + self.entries.len() as u64).saturating_sub(1)
    }

    /// One acknowledgement of the record with this number.
    pub fn acknowledged(&mut self, number: u64) {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            entry.outstanding = entry.outstanding.saturating_sub(1);
        }
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.outstanding == 0) {
            self.first += 1;
            self.done = Some(entry.after);
        }
    }

    /// The place up to which everything is done; `None` before the first.
    pub fn done(&self) -> Option<P> {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_that_leads_to_nothing_is_done_when_all_before_it_is() {
        let mut tracker = Tracker::default();
        tracker.read(0, 1);
        assert_eq!(tracker.done(), Some(1));
        let two = tracker.read(1, 2);
        tracker.read(0, 3);
        assert_eq!(tracker.done(), Some(1));
        tracker.acknowledged(two);
        assert_eq!(tracker.done(), Some(3));
    }

    #[test]
    fn an_acknowledgement_from_nowhere_changes_nothing() {
        let mut tracker = Tracker::default();
        let one = tracker.read(1, 1);
        tracker.acknowledged(one + 5);
        assert_eq!(tracker.done(), None);
        tracker.acknowledged(one);
        tracker.acknowledged(one);
        assert_eq!(tracker.done(), Some(1));
    }

    proptest! {
        /// Against the plain definition: done is the place after the longest run of finished records from the start.
        #[test]
        fn done_never_passes_an_unfinished_record(
            records in prop::collection::vec(0_usize..3, 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
            eagerness in 0_usize..4,
        ) {
            let mut tracker = Tracker::default();
            let mut model: Vec<usize> = Vec::new();
            let mut open: Vec<(usize, u64)> = Vec::new();
            let mut order = order.into_iter();
            let mut acknowledge = |tracker: &mut Tracker<usize>, model: &mut Vec<usize>, open: &mut Vec<(usize, u64)>| {
                let Some(pick) = order.next() else { return };
                if open.is_empty() { return }
                let (record, number) = open.swap_remove(pick.index(open.len()));
                model[record] -= 1;
                tracker.acknowledged(number);
            };
            let expected = |model: &[usize]| match model.iter().take_while(|outstanding| **outstanding == 0).count() {
                0 => None,
                done => Some(done),
            };
            for outstanding in records {
                let record = model.len();
                let number = tracker.read(outstanding, record + 1);
                model.push(outstanding);
                open.extend(std::iter::repeat_n((record, number), outstanding));
                for _ in 0..eagerness {
                    acknowledge(&mut tracker, &mut model, &mut open);
                    prop_assert_eq!(tracker.done(), expected(&model));
                }
                prop_assert_eq!(tracker.done(), expected(&model));
                prop_assert!(open.is_empty() == tracker.entries.is_empty());
            }
            for (record, number) in open {
                model[record] -= 1;
                tracker.acknowledged(number);
                prop_assert_eq!(tracker.done(), expected(&model));
            }
            prop_assert_eq!(tracker.done(), Some(model.len()));
        }
    }
}
