//! journal -> ClickHouse: one row per fact of an effective commit that has a table, as `tables` says.
//!
//! Which commits are effective depends on what came before, so the committed offset carries the tenancy, as the
//! projection's does. A record that this version does not understand stops its partition: rows that are missing
//! without a word would be worse than rows that are late.

mod tables;

use std::collections::HashMap;
use std::sync::Arc;

use clickhouse::Client;

pub use tables::TABLES;
use tables::{Rows, has_table};

use super::batch::Place;
use super::metrics::Counters;
use super::reader::{self, Moment, Read, Source};
use super::{Error, Options};
use crate::codec::{self, Codec};
use crate::failpoint::{Failpoint, reached};
use crate::projection::checkpoint::Checkpoint;
use crate::records::Topic;
use crate::records::journal::{Commit, Entry, JournalRecord, Tenancy};
use crate::runtime::member::{Position, Received};

/// Name of the component and of its consumer group.
pub(crate) const NAME: &str = "events";

/// Writes the partitions of `journal` that the consumer group gives this process until `cancel`; then writes what it
/// holds, commits and leaves the group.
///
/// # Errors
/// As [`super::run`].
pub async fn run(options: Options) -> Result<(), Error> {
    let counters = Counters::register(&options.metrics, "tollstream_events");
    let source = Events { codec: options.codec.clone(), partitions: HashMap::new() };
    reader::run(options, source, counters).await
}

struct Events {
    codec: Arc<Codec>,
    partitions: HashMap<i32, Partition>,
}

/// One partition of the journal.
struct Partition {
    /// Of the next record; `None`: whatever is first.
    next_offset: Option<i64>,
    tenancy: Tenancy,
    stopped: bool,
}

/// An effective commit with facts that have tables.
struct Event {
    partition: i32,
    offset: i64,
    commit: Commit,
}

impl Partition {
    fn from(committed: &Position) -> Self {
        let checkpoint = Checkpoint::of(committed);
        if checkpoint.is_none() && committed.offset.is_some() {
            tracing::warn!(
                partition = committed.partition,
                note = committed.note,
                "the committed offset says nothing of the tenancy; the partition is read from its beginning"
            );
        }
        Self {
            next_offset: checkpoint.map(|checkpoint| checkpoint.offset),
            tenancy: checkpoint.map_or(Tenancy::VACANT, |checkpoint| checkpoint.tenancy),
            stopped: false,
        }
    }

    fn take(&mut self, number: i32, offset: i64, entry: Entry) -> Read<Event> {
        match self.next_offset {
            Some(next) if offset < next => return Read::Passed,
            Some(next) if offset > next => {
                // Without the missing records, effective commits would not be known as such.
                return self.stop(format!("the journal has no records from offset {next} on; was it cut?"));
            }
            Some(_) | None => {}
        }
        let effective = self.tenancy.accept(offset, &entry);
        self.next_offset = Some(offset + 1);
        let end = Place { offset: offset + 1, tenancy: Some(self.tenancy) };
        match entry {
            Entry::Commit(commit) if effective => match commit.facts.iter().filter(|fact| has_table(fact)).count() {
                rows if rows > 0 && commit.organization.is_some() => {
                    Read::Rows { item: Event { partition: number, offset, commit }, rows, end }
                }
                _ => Read::Nothing { end },
            },
            Entry::Commit(_) | Entry::OwnershipTaken(_) => Read::Nothing { end },
        }
    }

    fn stop(&mut self, why: String) -> Read<Event> {
        self.stopped = true;
        Read::Stop(why)
    }
}

impl Source for Events {
    const NAME: &'static str = NAME;
    const TOPIC: Topic = Topic::Journal;
    type Item = Event;

    fn begin(&mut self, committed: &Position) -> Option<i64> {
        let partition = Partition::from(committed);
        let next_offset = partition.next_offset;
        self.partitions.insert(committed.partition, partition);
        next_offset
    }

    fn end(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    fn read(&mut self, record: Received<'_>) -> Read<Event> {
        let Some(partition) = self.partitions.get_mut(&record.partition) else { return Read::Passed };
        if partition.stopped {
            return Read::Passed;
        }
        let entry = match self.codec.decode::<JournalRecord>(record.payload) {
            Ok(envelope) => Entry::try_from(envelope).map_err(|error| error.to_string()),
            Err(codec::Error::UnknownSchema { id }) => return Read::Unknown(id),
            Err(error) => Err(error.to_string()),
        };
        match entry {
            Ok(entry) => partition.take(record.partition, record.offset, entry),
            Err(why) => partition.stop(why),
        }
    }

    fn unreadable(&mut self, record: Received<'_>, error: &codec::Error) -> Read<Event> {
        match self.partitions.get_mut(&record.partition) {
            Some(partition) => partition.stop(error.to_string()),
            None => Read::Passed,
        }
    }

    async fn insert(client: &Client, items: &[Event]) -> clickhouse::error::Result<()> {
        let mut rows = Rows::default();
        for event in items {
            rows.add(event.partition, event.offset, &event.commit);
        }
        rows.insert(client).await
    }

    fn pass(moment: Moment) {
        match moment {
            Moment::BeforeInsert => reached(Failpoint::BeforeEvents),
            Moment::AfterInsert => reached(Failpoint::AfterEvents),
            Moment::BeforeOffsets => reached(Failpoint::BeforeEventOffsets),
            Moment::AfterOffsets => reached(Failpoint::AfterEventOffsets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use crate::records::journal::{Fact, InputKind, OwnershipTaken, RecordSkipped};

    fn taken() -> Entry {
        Entry::OwnershipTaken(OwnershipTaken { owner: "a".into(), at: Timestamp::from_millis(0), version: "0".into() })
    }

    fn commit(tenure: i64, sequence: i64, facts: Vec<Fact>) -> Entry {
        Entry::Commit(tables::tests::commit(tenure, sequence, facts))
    }

    fn partition() -> Partition {
        Partition { next_offset: None, tenancy: Tenancy::VACANT, stopped: false }
    }

    fn rows(read: &Read<Event>) -> Option<(usize, i64)> {
        match read {
            Read::Rows { rows, end, .. } => Some((*rows, end.offset)),
            Read::Nothing { end } => Some((0, end.offset)),
            _ => None,
        }
    }

    #[test]
    fn effective_commits_with_facts_that_have_tables_are_rows() {
        let mut partition = partition();
        let refused = || vec![tables::tests::refused(), tables::tests::refused()];
        let nothing = vec![Fact::RecordSkipped(RecordSkipped { reason: "duplicate".into(), told: None })];
        let log = [
            (taken(), 0),
            (commit(5, 0, refused()), 2),
            (commit(5, 0, refused()), 0), // a repeat
            (commit(5, 1, nothing), 0),
            (taken(), 0),
            (commit(5, 2, refused()), 0), // the former owner, too late
            (commit(9, 0, refused()), 2),
        ];
        for (offset, (entry, expected)) in (5..).zip(log) {
            assert_eq!(rows(&partition.take(0, offset, entry)), Some((expected, offset + 1)), "offset {offset}");
        }
    }

    #[test]
    fn a_commit_about_no_request_is_no_row() {
        let mut partition = partition();
        partition.take(0, 0, taken());
        let mut about_nobody = tables::tests::commit(0, 0, vec![tables::tests::refused()]);
        about_nobody.input = InputKind::Record;
        about_nobody.organization = None;
        assert_eq!(rows(&partition.take(0, 1, Entry::Commit(about_nobody))), Some((0, 2)));
    }

    #[test]
    fn a_gap_stops_the_partition_and_a_repeat_is_passed_over() {
        let committed = Checkpoint { offset: 7, tenancy: Tenancy { tenure: Some(2), next_sequence: 3 } }.position(0);
        let mut partition = Partition::from(&committed);
        assert!(matches!(partition.take(0, 6, taken()), Read::Passed));
        assert_eq!(rows(&partition.take(0, 7, commit(2, 3, vec![tables::tests::refused()]))), Some((1, 8)));
        let Read::Stop(why) = partition.take(0, 9, taken()) else { panic!("a gap") };
        assert!(why.contains("no records from offset 8"), "{why}");
        assert!(partition.stopped);
    }
}
