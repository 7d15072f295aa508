//! Which frames make an answer, in which order: the reader's half of the contract in `schemas/avro/responses.avsc`.
//!
//! The attempt (with its tenure) of the first content frame is followed. Its sequence has no gap, a frame that comes again
//! is dropped, and a completed terminal counts as many content frames as were seen; anything else ends the answer with an
//! error, so that what a client sees is always a gap-free prefix of one attempt. Values in, values out.

use crate::records::Outcome;

/// An answer that cannot be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a part of the answer is missing: frame {expected} was expected, {found} came")]
    Gap { expected: u32, found: u32 },
    #[error("the answer was interrupted and began again")]
    OtherAttempt,
    #[error("the answer came without its body")]
    NoBody,
}

impl Fault {
    pub const fn code(self) -> &'static str {
        match self {
            Self::Gap { .. } => "answer_incomplete",
            Self::OtherAttempt => "answer_interrupted",
            Self::NoBody => "answer_without_body",
        }
    }
}

/// What to do with a content frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one.
    Take,
    /// It came before, or belongs to an attempt that this one superseded.
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Followed {
    tenure: i64,
    attempt: u32,
}

/// The frames of one answer seen so far.
#[derive(Debug, Default)]
pub struct Reassembly {
    followed: Option<Followed>,
    /// Sequence of the next content frame, which is the number of those seen.
    next: u32,
}

impl Reassembly {
    /// Goes on behind this content frame.
    pub fn after(tenure: i64, attempt: u32, sequence: u32) -> Self {
        Self { followed: Some(Followed { tenure, attempt }), next: sequence.saturating_add(1) }
    }

    /// The frames from this one on come again.
    pub fn go_back(&mut self, sequence: u32) {
        self.next = self.next.min(sequence);
    }

    /// A content frame.
    pub fn content(&mut self, tenure: i64, attempt: u32, sequence: u32) -> Result<Verdict, Fault> {
        let frame = Followed { tenure, attempt };
        let followed = *self.followed.get_or_insert(frame);
        if followed != frame {
            let newer = attempt > followed.attempt || tenure > followed.tenure;
            return if newer { Err(Fault::OtherAttempt) } else { Ok(Verdict::Drop) };
        }
        match sequence.cmp(&self.next) {
            std::cmp::Ordering::Less => Ok(Verdict::Drop),
            std::cmp::Ordering::Equal => {
                self.next += 1;
                Ok(Verdict::Take)
            }
            std::cmp::Ordering::Greater => Err(Fault::Gap { expected: self.next, found: sequence }),
        }
    }

    /// The terminal of a streamed answer. Its tenure may be another one (a new owner publishes again what was settled):
    /// the attempt and the number of frames tell whether what was seen is the whole answer.
    pub fn terminal(&self, attempt: u32, sequence: u32, outcome: Outcome) -> Result<(), Fault> {
        if outcome != Outcome::Completed {
            return Ok(());
        }
        if self.followed.is_some_and(|followed| followed.attempt != attempt) {
            return Err(Fault::OtherAttempt);
        }
        if sequence != self.next {
            return Err(Fault::Gap { expected: self.next, found: sequence });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_taken_in_order_and_once() {
        let mut answer = Reassembly::default();
        assert_eq!(answer.content(7, 1, 0), Ok(Verdict::Take));
        assert_eq!(answer.content(7, 1, 0), Ok(Verdict::Drop));
        assert_eq!(answer.content(7, 1, 1), Ok(Verdict::Take));
        assert_eq!(answer.content(7, 1, 0), Ok(Verdict::Drop));
        assert_eq!(answer.content(7, 1, 3), Err(Fault::Gap { expected: 2, found: 3 }));
    }

    #[test]
    fn an_answer_that_does_not_begin_at_its_beginning_has_a_gap() {
        assert_eq!(Reassembly::default().content(7, 1, 1), Err(Fault::Gap { expected: 0, found: 1 }));
    }

    #[test]
    fn a_newer_attempt_interrupts_and_an_older_one_is_dropped() {
        let table = [
            ((7, 2), Err(Fault::OtherAttempt)),
            ((9, 1), Err(Fault::OtherAttempt)),
            ((9, 2), Err(Fault::OtherAttempt)),
            ((3, 1), Ok(Verdict::Drop)),
            ((7, 0), Ok(Verdict::Drop)),
        ];
        for ((tenure, attempt), verdict) in table {
            let mut answer = Reassembly::default();
            answer.content(7, 1, 0).unwrap();
            assert_eq!(answer.content(tenure, attempt, 0), verdict, "tenure {tenure} attempt {attempt}");
        }
    }

    #[test]
    fn an_answer_is_gone_on_with_behind_a_frame_or_read_again_from_one() {
        let mut answer = Reassembly::after(7, 1, 4);
        assert_eq!(answer.content(7, 1, 4), Ok(Verdict::Drop));
        assert_eq!(answer.content(7, 1, 5), Ok(Verdict::Take));
        assert_eq!(answer.content(7, 2, 0), Err(Fault::OtherAttempt));
        answer.go_back(5);
        answer.go_back(9);
        assert_eq!(answer.content(7, 1, 5), Ok(Verdict::Take));
        assert_eq!(answer.terminal(1, 6, Outcome::Completed), Ok(()));
    }

    #[test]
    fn a_completed_terminal_must_count_what_was_seen() {
        let mut answer = Reassembly::default();
        assert_eq!(answer.terminal(1, 0, Outcome::Completed), Ok(()));
        assert_eq!(answer.terminal(1, 2, Outcome::Completed), Err(Fault::Gap { expected: 0, found: 2 }));
        answer.content(7, 1, 0).unwrap();
        assert_eq!(answer.terminal(1, 1, Outcome::Completed), Ok(()));
        assert_eq!(answer.terminal(1, 0, Outcome::Completed), Err(Fault::Gap { expected: 1, found: 0 }));
        assert_eq!(answer.terminal(2, 1, Outcome::Completed), Err(Fault::OtherAttempt));
        assert_eq!(answer.terminal(2, 9, Outcome::Interrupted), Ok(()));
    }

    proptest! {
        /// Whatever arrives, what is taken is a gap-free, duplicate-free prefix of the first frame's attempt.
        #[test]
        fn only_a_prefix_of_one_attempt_is_taken(frames in prop::collection::vec((0..3_i64, 0..3_u32, 0..6_u32), 0..40)) {
            let (mut answer, mut taken) = (Reassembly::default(), Vec::new());
            for (tenure, attempt, sequence) in &frames {
                match answer.content(*tenure, *attempt, *sequence) {
                    Ok(Verdict::Take) => taken.push((*tenure, *attempt, *sequence)),
                    Ok(Verdict::Drop) => {}
                    Err(_) => break,
                }
            }
            for (index, (tenure, attempt, sequence)) in taken.iter().enumerate() {
                prop_assert_eq!((tenure, attempt), (&frames[0].0, &frames[0].1));
                prop_assert_eq!(*sequence as usize, index);
            }
        }
    }
}
