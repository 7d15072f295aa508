//! What is written to ClickHouse at one go, and how far each partition is read then.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::codec::{self, Codec};
use crate::config;
use crate::domain::Timestamp;
use crate::records::dead_letters::{DeadLetter, Source};
use crate::records::usage::UsageRecord;
use crate::runtime::member::Received;

/// Rows, dead letters, and the offsets that may be committed when both are acknowledged.
#[derive(Default)]
pub struct Batch {
    rows: Vec<UsageRecord>,
    letters: Vec<Encoded>,
    /// Of the records and dead letters, as they are on their topics.
    bytes: usize,
    ends: BTreeMap<i32, i64>,
    /// Of its records.
    oldest: Option<Timestamp>,
    begun: Option<Instant>,
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

impl Batch {
    /// A record, and what it says.
    pub fn add(&mut self, record: Received<'_>, row: UsageRecord) {
        self.reach(record.partition, record.offset);
        self.bytes += record.payload.len();
        self.oldest = Some(self.oldest.map_or(record.at, |oldest| oldest.min(record.at)));
        self.rows.push(row);
    }

    pub fn add_letter(&mut self, partition: i32, offset: i64, letter: Encoded) {
        self.reach(partition, offset);
        self.bytes += letter.payload.len();
        self.letters.push(letter);
    }

    fn reach(&mut self, partition: i32, offset: i64) {
        self.begun.get_or_insert_with(Instant::now);
        let end = self.ends.entry(partition).or_default();
        *end = (*end).max(offset + 1);
    }

    pub fn is_full(&self, sink: &config::Sink) -> bool {
        self.rows.len() + self.letters.len() >= sink.batch_rows || self.bytes >= sink.batch_bytes
    }

    /// When the batch is to be written at the latest; `None` when it is empty.
    pub fn due_at(&self, after: Duration) -> Option<Instant> {
        self.begun.map(|begun| begun + after)
    }

    pub fn rows(&self) -> &[UsageRecord] {
        &self.rows
    }

    /// When its oldest record was written.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.oldest
    }

    pub fn letters(&self) -> &[Encoded] {
        &self.letters
    }

    /// Of each partition, the offset of the first record after this batch.
    pub fn ends(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.ends.iter().map(|(partition, end)| (*partition, *end))
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

    #[test]
    fn an_empty_batch_is_never_due() {
        let batch = Batch::default();
        assert_eq!(batch.due_at(Duration::ZERO), None);
        assert!(!batch.is_full(&settings(1)));
    }

    #[test]
    fn a_batch_ends_after_its_last_record_whatever_that_was() {
        let mut batch = Batch::default();
        for (partition, offset) in [(1, 7), (1, 6), (0, 3)] {
            batch.add_letter(partition, offset, Encoded { key: vec![], payload: vec![0; 10] });
        }
        assert_eq!(batch.ends().collect::<Vec<_>>(), [(0, 4), (1, 8)]);
        assert!(batch.is_full(&settings(3)) && !batch.is_full(&settings(4)));
        assert!(batch.due_at(Duration::ZERO).is_some());
    }

    #[test]
    fn large_records_fill_a_batch() {
        let mut batch = Batch::default();
        batch.add_letter(0, 0, Encoded { key: vec![], payload: vec![0; 999] });
        assert!(!batch.is_full(&settings(1_000)));
        batch.add_letter(0, 1, Encoded { key: vec![], payload: vec![0; 1] });
        assert!(batch.is_full(&settings(1_000)));
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
