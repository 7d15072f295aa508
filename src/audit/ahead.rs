//! Reading on a thread of its own: records are read while those before them are decoded and checked, a bounded number ahead.
//!
//! Only bytes cross over, many records in one buffer. Decoded records would not do: their many small parts would be
//! allocated on one thread and freed on the other, which costs more than the second thread gives.

use std::ops::ControlFlow;
use std::sync::mpsc::{SyncSender, sync_channel};

/// What is handed over at once: so many records at the most, and no more once they have so many bytes.
const BATCH_MAX: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait at the most.
const BATCHES_MAX: usize = 4;

/// Records one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Of each its offset, and where it ends in the bytes.
    records: Vec<(i64, usize)>,
}

/// Where records go that have been read.
pub struct Ahead {
    batch: Batch,
    batches: SyncSender<Batch>,
}

impl Ahead {
    /// Gives a record; [`ControlFlow::Break`]: nothing more is taken.
    pub fn give(&mut self, offset: i64, payload: &[u8]) -> ControlFlow<()> {
        let Batch { bytes, records } = &mut self.batch;
        bytes.extend_from_slice(payload);
        records.push((offset, bytes.len()));
        let waits = records.len() < BATCH_MAX && bytes.len() < BATCH_BYTES;
        if waits { ControlFlow::Continue(()) } else { self.hand_over() }
    }

    fn hand_over(&mut self) -> ControlFlow<()> {
        let (bytes, records) = (Vec::with_capacity(self.batch.bytes.len()), Vec::with_capacity(BATCH_MAX));
        let batch = std::mem::replace(&mut self.batch, Batch { bytes, records });
        if self.batches.send(batch).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Runs `read` on a thread of its own and `take` on this one, until one of them ends. What was read before `read` failed is
/// taken.
///
/// # Errors
/// That of `take`, else that of `read`.
pub fn read_ahead<E: Send>(
    read: impl FnOnce(&mut Ahead) -> Result<(), E> + Send,
    mut take: impl FnMut(i64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let (batches, received) = sync_channel(BATCHES_MAX);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut ahead = Ahead { batch: Batch::default(), batches };
            let ended = read(&mut ahead);
            // Nobody may be there any more.
            let _ = ahead.hand_over();
            ended
        });
        let taken = received.iter().try_for_each(|batch: Batch| {
            let mut begin = 0;
            batch.records.iter().try_for_each(|(offset, end)| {
                let payload = &batch.bytes[begin..*end];
                begin = *end;
                take(*offset, payload)
            })
        });
        drop(received);
        let ended = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        taken.and(ended)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(number: usize) -> Vec<u8> {
        number.to_string().repeat(number % 5).into_bytes()
    }

    #[test]
    fn everything_is_taken_in_order_as_it_was_read() {
        for count in [0, 1, BATCH_MAX, BATCH_MAX + 1, BATCH_MAX * BATCHES_MAX * 3 + 7] {
            let mut taken = 0;
            let read = |ahead: &mut Ahead| {
                assert!((0..count).all(|number| ahead.give(number as i64, &payload(number)).is_continue()));
                Ok::<(), ()>(())
            };
            let take = |offset, bytes: &[u8]| {
                assert_eq!((offset, bytes), (taken as i64, payload(taken).as_slice()));
                taken += 1;
                Ok(())
            };
            assert_eq!(read_ahead(read, take), Ok(()));
            assert_eq!(taken, count);
        }
    }

    #[test]
    fn large_records_are_handed_over_at_once() {
        let (batches, received) = sync_channel(2);
        let mut ahead = Ahead { batch: Batch::default(), batches };
        assert!(ahead.give(0, &vec![0; BATCH_BYTES - 1]).is_continue());
        assert!(received.try_recv().is_err());
        assert!(ahead.give(1, &[0]).is_continue());
        assert_eq!(received.try_recv().unwrap().records, [(0, BATCH_BYTES - 1), (1, BATCH_BYTES)]);
    }

    #[test]
    fn what_was_read_before_a_failure_is_taken() {
        let mut taken = 0;
        let read = |ahead: &mut Ahead| {
            assert!((0..BATCH_MAX as i64 + 9).all(|offset| ahead.give(offset, b"x").is_continue()));
            Err("read no more")
        };
        let take = |_, _: &[u8]| {
            taken += 1;
            Ok(())
        };
        assert_eq!((read_ahead(read, take), taken), (Err("read no more"), BATCH_MAX + 9));
    }

    #[test]
    fn reading_ends_when_nothing_is_taken_any_more() {
        let read = |ahead: &mut Ahead| {
            // It would go on for ever.
            assert!((0..i64::MAX).any(|offset| ahead.give(offset, b"x").is_break()));
            Err("the reader")
        };
        let take = |offset, _: &[u8]| if offset < 3 { Ok(()) } else { Err("the taker") };
        assert_eq!(read_ahead(read, take), Err("the taker"));
    }
}
