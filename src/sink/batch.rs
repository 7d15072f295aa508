//! What is written to ClickHouse at one go, and how far each partition is read then.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::codec::{self, Codec};
use crate::config;
use crate::domain::Timestamp;
use crate::projection::checkpoint::Checkpoint;
use crate::records::dead_letters::{DeadLetter, Source};
use crate::records::journal::Tenancy;
use crate::runtime::member::{Position, Received};

/// What leads to rows, dead letters, and the offsets that may be committed when both are acknowledged.
pub struct Batch<T> {
    items: Vec<T>,
    rows: usize,
    letters: Vec<Encoded>,
    /// Of the records and dead letters, as they are on their topics.
    bytes: usize,
    ends: BTreeMap<i32, Place>,
    /// Of its records.
    oldest: Option<Timestamp>,
    begun: Option<Instant>,
}

/// A place between two records of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the next record.
    pub offset: i64,
    /// Of a partition of the journal.
    pub tenancy: Option<Tenancy>,
}

impl Place {
    fn position(self, partition: i32) -> Position {
        match self.tenancy {
            Some(tenancy) => Checkpoint { offset: self.offset, tenancy }.position(partition),
            None => Position { partition, offset: Some(self.offset), note: String::new() },
        }
    }
}

/// A record that could not be read.
pub struct Letter {
    letter: DeadLetter,
}

/// A dead letter as it is sent.
pub struct Encoded {
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Letter {
    pub fn new(topic: &str, record: Received<'_>, reason: &str, error: &codec::Error, bytes_max: usize) -> Self {
        let Received { partition, offset, at, key, payload } = record;
        let source = Source { topic, partition, offset, at, key, payload };
        Self { letter: DeadLetter::of(source, reason, &error.to_string(), bytes_max) }
    }

    pub fn encoded(self, codec: &Codec) -> Result<Encoded, codec::Error> {
        let mut payload = Vec::new();
        codec.encode(&self.letter, &mut payload)?;
        Ok(Encoded { key: self.letter.key.unwrap_or_default().to_vec(), payload })
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        let (items, letters, ends) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { items, rows: 0, letters, bytes: 0, ends, oldest: None, begun: None }
    }
}

impl<T> Batch<T> {
    /// What so many rows are made of; its record was written then, and took so many bytes on its topic.
    pub fn add(&mut self, item: T, rows: usize, (at, bytes): (Timestamp, usize)) {
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
        self.bytes += bytes;
        self.rows += rows;
        self.items.push(item);
    }

    pub fn add_letter(&mut self, letter: Encoded) {
        self.bytes += letter.payload.len();
        self.letters.push(letter);
    }

    /// A partition is read up to there, whatever its last record led to.
    pub fn reach(&mut self, partition: i32, place: Place) {
        self.begun.get_or_insert_with(Instant::now);
        let end = self.ends.entry(partition).or_insert(place);
        if end.offset < place.offset {
            *end = place;
        }
    }

    pub fn is_full(&self, sink: &config::Sink) -> bool {
        self.rows + self.letters.len() >= sink.batch_rows || self.bytes >= sink.batch_bytes
    }

    /// When the batch is to be written at the latest; `None` when it is empty.
    pub fn due_at(&self, after: Duration) -> Option<Instant> {
        self.begun.map(|begun| begun + after)
    }

    pub fn items(&self) -> &[T] {
        &self.items
    }

    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// When its oldest record was written.
    pub const fn oldest(&self) -> Option<Timestamp> {
        self.oldest
    }

    pub fn letters(&self) -> &[Encoded] {
        &self.letters
    }

    /// Of each partition, where reading goes on after this batch.
    pub fn ends(&self) -> impl Iterator<Item = Position> + '_ {
        self.ends.iter().map(|(partition, place)| place.position(*partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(offset: i64, payload: &[u8]) -> Encoded {
        let at = Timestamp::from_millis(5);
        let record = Received { partition: 1, offset, at, key: Some(b"acme"), payload };
        let error = codec::Error::NotFramed { bytes: payload.len() };
        Letter::new("usage", record, "undecodable", &error, 10).encoded(&Codec::offline().unwrap()).unwrap()
    }

    fn settings(batch_rows: usize) -> config::Sink {
        config::Sink { batch_rows, batch_bytes: 1_000, ..config::Sink::default() }
    }

    fn behind(offset: i64) -> Place {
        Place { offset: offset + 1, tenancy: None }
    }

    #[test]
    fn an_empty_batch_is_never_due() {
        let batch = Batch::<()>::default();
        assert_eq!(batch.due_at(Duration::ZERO), None);
        assert!(!batch.is_full(&settings(1)));
    }

    #[test]
    fn a_batch_ends_after_its_last_record_whatever_that_was() {
        let mut batch = Batch::<()>::default();
        for (partition, offset) in [(1, 7), (1, 6), (0, 3)] {
            batch.add_letter(Encoded { key: vec![], payload: vec![0; 10] });
            batch.reach(partition, behind(offset));
        }
        let ends: Vec<_> = batch.ends().map(|end| (end.partition, end.offset)).collect();
        assert_eq!(ends, [(0, Some(4)), (1, Some(8))]);
        assert!(batch.is_full(&settings(3)) && !batch.is_full(&settings(4)));
        assert!(batch.due_at(Duration::ZERO).is_some());
    }

    #[test]
    fn a_batch_of_records_that_lead_to_nothing_is_due_and_keeps_the_tenancy() {
        let mut batch = Batch::<()>::default();
        let tenancy = Some(Tenancy { tenure: Some(2), next_sequence: 5 });
        batch.reach(3, Place { offset: 9, tenancy });
        assert!(batch.due_at(Duration::ZERO).is_some() && !batch.is_full(&settings(1)));
        assert_eq!(batch.ends().map(|end| end.note).collect::<Vec<_>>(), ["1:2:5"]);
    }

    #[test]
    fn large_records_fill_a_batch() {
        let mut batch = Batch::default();
        batch.add((), 1, (Timestamp::from_millis(5), 999));
        assert!(!batch.is_full(&settings(1_000)));
        batch.add_letter(Encoded { key: vec![], payload: vec![0; 1] });
        assert!(batch.is_full(&settings(1_000)));
    }

    #[test]
    fn a_batch_is_counted_by_its_rows() {
        let mut batch = Batch::default();
        batch.add((), 3, (Timestamp::from_millis(5), 1));
        assert!(batch.is_full(&settings(3)) && !batch.is_full(&settings(4)));
        assert_eq!((batch.rows(), batch.items().len()), (3, 1));
    }

    #[test]
    fn a_dead_letter_says_where_it_stood_and_is_cut() {
        let encoded = letter(7, b"not a record at all");
        assert_eq!(encoded.key, b"acme");
        let told: DeadLetter = Codec::offline().unwrap().decode(&encoded.payload).unwrap();
        assert_eq!((told.topic.as_str(), told.partition, told.offset), ("usage", 1, 7));
        assert_eq!(told.payload.as_deref(), Some(b"not a reco".as_slice()));
        assert_eq!((told.payload_bytes, told.reason.as_str()), (19, "undecodable"));
        assert!(told.detail.contains("19 bytes"), "{}", told.detail);
    }
}
