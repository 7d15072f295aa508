//! What follows the journal, for I5: reads `usage` and ClickHouse stretch by stretch, as the journal is read.
//!
//! What the projection's group has committed on a partition of the journal is on `usage`, on the partition of the same
//! number: it commits when that is acknowledged. What the sink's group has committed on `usage` is in ClickHouse likewise.
//! Both positions are asked for before the end of what they speak of, so whatever they vouch for is found; what is behind
//! them is lag. Records of `usage` may stand in another order than on the journal (Kafka did not take one at once) and
//! come again (a restart), so a stretch of the journal may have several on `usage`: see `Index`.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use rdkafka::Message as _;
use rdkafka::consumer::Consumer as _;
use serde::Deserialize;

use super::ahead::{Ahead, read_ahead};
use super::plan::{CALL_TIMEOUT, Extent};
use super::reader::{Error, Reader};
use super::rows::Rows;
use super::sums::{Lag, POSTINGS_MAX, Posting, Reach, Sums, UsagePosting};
use super::{Check, Findings, Place};
use crate::causes::causes;
use crate::domain::{ModelName, OrganizationId, PicoUsd, Timestamp, TokenUsage};
use crate::records::journal::Entry;
use crate::records::{Record, Topic};
use crate::runtime::kafka;

/// Records of `usage` that a posting can have overtaken: twice what a projection has in flight by default, since a
/// former one may still be sending.
const OVERTAKEN_MAX: usize = 20_000;
/// Offsets of the journal that are looked up together.
const BLOCK: i64 = 1 << 16;
/// Records of other blocks between two of one block that are read with them.
const NEAR: i64 = 1 << 16;
/// Stretches of `usage` that are told apart for one block; beyond it, what is between them is read, too.
const APART_MAX: usize = 16;

/// How far the stages behind a partition of the journal were.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Everything before it on the journal was on `usage`.
    pub projected: i64,
    /// Everything before it on `usage` was in ClickHouse.
    pub inserted: i64,
    /// The first record that `usage` had.
    pub low: i64,
    /// Where on `usage` the range's postings can be.
    pub usage: Range<i64>,
    /// Behind everything that had been written to the journal.
    pub journal_end: i64,
}

/// Where on `usage` the postings of a block of the journal are.
#[derive(Debug)]
enum Index {
    /// There are few records; each is read for each stretch.
    Whole(Range<i64>),
    Blocks(BTreeMap<i64, Vec<Range<i64>>>),
}

/// Follows one partition of the journal.
pub struct Following<'a> {
    reader: &'a Reader,
    stage: &'a Stage,
    rows: Option<&'a Rows>,
    sums: Sums,
    index: Index,
    /// Whether all of `usage` has been searched for what cannot be of the journal.
    is_searched: bool,
    /// Records of `usage` that cannot be understood.
    foreign: u64,
    /// Why it could not look somewhere, the first time of each place.
    usage_failed: Option<String>,
    rows_failed: Option<String>,
}

/// The place of a posting, as a record of `usage` begins.
#[derive(Deserialize)]
struct Id {
    journal_partition: i32,
    journal_offset: i64,
}

impl Record for Id {
    const TOPIC: Topic = Topic::Usage;
}

/// What counts of a record of `usage`.
#[derive(Deserialize)]
struct Told {
    journal_partition: i32,
    journal_offset: i64,
    journal_index: i32,
    at: Timestamp,
    organization: OrganizationId,
    #[serde(default)]
    model: Option<ModelName>,
    usage: TokenUsage,
    #[serde(default)]
    cost_pico_usd: Option<PicoUsd>,
}

impl Record for Told {
    const TOPIC: Topic = Topic::Usage;
}

impl<'a> Following<'a> {
    /// `rows` is `None` where ClickHouse is left out.
    pub fn begin(reader: &'a Reader, partition: i32, stage: &'a Stage, rows: Option<&'a Rows>) -> Result<Self, Error> {
        let mut following = Self {
            reader,
            stage,
            rows,
            sums: Sums::new(partition, Reach::default()),
            index: Index::Whole(stage.usage.clone()),
            is_searched: false,
            foreign: 0,
            usage_failed: None,
            rows_failed: None,
        };
        let complete = if stage.usage.start > stage.low { 0 } else { following.complete_from(stage.low)? };
        let reach = Reach {
            usage: complete.min(stage.projected)..stage.projected,
            rows: 0..if rows.is_some() { following.inserted()? } else { 0 },
            projected: stage.projected,
            inserted: if rows.is_some() { stage.inserted } else { i64::MAX },
        };
        following.sums = Sums::new(partition, reach);
        if stage.usage.end - stage.usage.start > POSTINGS_MAX as i64 {
            following.index()?;
        }
        Ok(following)
    }

    pub fn take(&mut self, offset: i64, entry: &Entry) {
        self.sums.take(offset, entry);
        if self.sums.is_full() {
            self.compare();
        }
    }

    pub fn finish(mut self) -> (Findings, Lag) {
        self.compare();
        let (mut findings, lag) = self.sums.finish();
        let lag = Lag { foreign: self.foreign, ..lag };
        for why in self.usage_failed.into_iter().chain(self.rows_failed) {
            findings.blind(&[Check::I5], &why);
        }
        (findings, lag)
    }

    fn extent(&self, offsets: Range<i64>) -> Extent {
        Extent { topic: Topic::Usage, partition: self.sums.partition(), offsets }
    }

    /// From which offset of the journal on `usage`, which begins at `low`, has every posting: one that is lower than the
    /// highest of so many records may have stood before them.
    fn complete_from(&self, low: i64) -> Result<i64, Error> {
        if low == 0 {
            return Ok(0);
        }
        let (mut left, mut last) = (OVERTAKEN_MAX, None);
        self.each_id(low.max(self.stage.usage.start)..self.stage.usage.end, |_, id| {
            last = last.max(Some(id.journal_offset));
            left = left.saturating_sub(1);
            if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        // Without a record nothing can be missed.
        Ok(last.map_or(i64::MAX, |last| last.saturating_add(1)))
    }

    /// Before which offset of the journal every posting is in ClickHouse.
    fn inserted(&self) -> Result<i64, Error> {
        let Stage { projected, inserted, usage, .. } = self.stage;
        let mut first = *projected;
        self.each_id((*inserted).max(usage.start)..usage.end, |_, id| {
            first = first.min(id.journal_offset.max(0));
            ControlFlow::Continue(())
        })?;
        Ok(first)
    }

    /// Looks up where on `usage` the postings of each block are.
    fn index(&mut self) -> Result<(), Error> {
        let (mut blocks, mut strays) = (BTreeMap::<i64, Vec<Range<i64>>>::new(), Vec::new());
        self.foreign = self.each_id(self.stage.usage.clone(), |offset, id| {
            if let Some(stray) = self.stray(&id) {
                strays.push((offset, stray));
            } else if id.journal_offset < self.stage.projected {
                note(blocks.entry(id.journal_offset / BLOCK).or_default(), offset);
            }
            strays.truncate(POSTINGS_MAX);
            ControlFlow::Continue(())
        })?;
        for (offset, stray) in strays {
            self.sums.stray(Topic::Usage, offset, || stray);
        }
        self.is_searched = true;
        self.index = Index::Blocks(blocks);
        Ok(())
    }

    /// Why a posting cannot be of this partition of the journal, if it cannot.
    fn stray(&self, id: &Id) -> Option<String> {
        stray(id, self.sums.partition(), self.stage.journal_end)
    }

    /// Gives the ids of records of `usage`; says how many cannot be understood.
    fn each_id(&self, offsets: Range<i64>, mut take: impl FnMut(i64, Id) -> ControlFlow<()>) -> Result<u64, Error> {
        let (extent, mut foreign) = (self.extent(offsets), 0);
        self.reader.each(&extent, |message| {
            let place = Place { topic: Topic::Usage, partition: extent.partition, offset: message.offset() };
            match self.reader.decode::<Id>(place, message.payload().unwrap_or_default()) {
                Ok(id) => Ok(take(message.offset(), id)),
                Err(Error::Unreadable { .. }) => {
                    foreign += 1;
                    Ok(ControlFlow::Continue(()))
                }
                Err(error) => Err(error),
            }
        })?;
        Ok(foreign)
    }

    /// Compares what has been read of the journal.
    fn compare(&mut self) {
        let (of_usage, of_rows) = (self.sums.of_usage(), self.sums.of_rows());
        let usage_was_read = !of_usage.is_empty() && self.usage(&of_usage);
        let rows_were_read = !of_rows.is_empty() && self.rows(&of_rows);
        self.sums.compare(usage_was_read, rows_were_read);
    }

    /// Reads what `usage` has of these offsets of the journal; says whether that is all.
    fn usage(&mut self, offsets: &Range<i64>) -> bool {
        let stretches = self.index.of(offsets);
        let begin = stretches.first().map_or(self.stage.usage.start, |stretch| stretch.start);
        for stretch in stretches {
            if let Err(error) = self.usage_stretch(stretch) {
                self.usage_failed.get_or_insert(error.to_string());
                return false;
            }
        }
        self.is_searched = true;
        match self.is_still_whole(begin, offsets.start) {
            Ok(whole) => whole,
            Err(error) => {
                self.usage_failed.get_or_insert(error.to_string());
                false
            }
        }
    }

    fn usage_stretch(&mut self, stretch: Range<i64>) -> Result<(), Error> {
        let (extent, reader, journal_end) = (self.extent(stretch), self.reader, self.stage.journal_end);
        let read = |ahead: &mut Ahead| reader.each_given(&extent, ahead);
        read_ahead(read, |offset, payload| {
            let place = Place { topic: Topic::Usage, partition: extent.partition, offset };
            let told = match reader.decode::<Told>(place, payload) {
                Ok(told) => told,
                Err(Error::Unreadable { .. }) => {
                    self.foreign += u64::from(!self.is_searched);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let id = Id { journal_partition: told.journal_partition, journal_offset: told.journal_offset };
            match stray(&id, extent.partition, journal_end) {
                Some(why) if !self.is_searched => self.sums.stray(Topic::Usage, offset, || why),
                Some(_) => {}
                None => self.sums.usage(&told.posting(offset)),
            }
            Ok(())
        })
    }

    /// Whether retention has taken nothing of what was read from `begin` on for the journal from `offset` on.
    fn is_still_whole(&self, begin: i64, offset: i64) -> Result<bool, Error> {
        let (consumer, name) = (self.reader.consumer("audit")?, kafka::topic_name(&self.reader.kafka, Topic::Usage));
        let (low, _) =
            consumer.fetch_watermarks(&name, self.sums.partition(), CALL_TIMEOUT).map_err(|e| self.reader.failed(e))?;
        Ok(low <= begin || self.complete_from(low)? <= offset)
    }

    /// Reads what ClickHouse has of these offsets of the journal.
    fn rows(&mut self, offsets: &Range<i64>) -> bool {
        let Some(rows) = self.rows.filter(|_| self.rows_failed.is_none()) else { return false };
        let (partition, sums) = (self.sums.partition(), &mut self.sums);
        let read = rows.sums(partition, offsets, |first, summed| match summed {
            Ok((key, sum)) => sums.rows(&key, first, sum),
            Err(why) => sums.stray(Topic::Journal, first, || format!("ClickHouse has rows of nobody: {why}")),
        });
        let read = self.reader.handle.block_on(read);
        self.rows_failed = read.err().map(|error| causes(&error));
        self.rows_failed.is_none()
    }
}

impl Told {
    fn posting(self, offset: i64) -> UsagePosting {
        let posting = Posting {
            organization: self.organization,
            model: self.model,
            at: self.at,
            cost: self.cost_pico_usd,
            tokens: self.usage,
        };
        let Self { journal_offset, journal_index, .. } = self;
        UsagePosting { offset, journal_offset, journal_index, posting }
    }
}

impl Index {
    /// Where on `usage` the postings of these offsets of the journal are; in order and apart.
    fn of(&self, offsets: &Range<i64>) -> Vec<Range<i64>> {
        let blocks = match self {
            Self::Whole(whole) => return vec![whole.clone()],
            Self::Blocks(blocks) => blocks.range(offsets.start / BLOCK..=offsets.end.saturating_sub(1) / BLOCK),
        };
        let mut stretches: Vec<Range<i64>> = blocks.flat_map(|(_, stretches)| stretches).cloned().collect();
        stretches.sort_by_key(|stretch| stretch.start);
        let mut apart = Vec::<Range<i64>>::with_capacity(stretches.len());
        for stretch in stretches {
            match apart.last_mut() {
                Some(last) if stretch.start <= last.end => last.end = last.end.max(stretch.end),
                _ => apart.push(stretch),
            }
        }
        apart
    }
}

/// Notes a record of a block; they come in the order of their offsets.
fn note(stretches: &mut Vec<Range<i64>>, offset: i64) {
    let full = stretches.len() >= APART_MAX;
    match stretches.last_mut() {
        Some(last) if full || offset - last.end < NEAR => last.end = offset + 1,
        _ => stretches.push(offset..offset + 1),
    }
}

fn stray(id: &Id, partition: i32, journal_end: i64) -> Option<String> {
    let Id { journal_partition, journal_offset } = *id;
    if journal_partition != partition {
        return Some(format!("a posting of journal/{journal_partition} on the partition {partition}"));
    }
    let is_there = (0..journal_end).contains(&journal_offset);
    (!is_there).then(|| format!("a posting of offset {journal_offset}; the journal ends at {journal_end}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::domain::RequestId;
    use crate::projection::usage::usage_of;
    use crate::records::journal::{Commit, Fact, InputKind, RequestContext, RequestRefused};

    fn indexed(journal_offsets: impl IntoIterator<Item = i64>) -> Index {
        let mut blocks = BTreeMap::<i64, Vec<Range<i64>>>::new();
        for (offset, journal_offset) in (0..).zip(journal_offsets) {
            note(blocks.entry(journal_offset / BLOCK).or_default(), offset);
        }
        Index::Blocks(blocks)
    }

    #[test]
    fn each_posting_of_a_stretch_is_in_what_is_read_for_it() {
        let end = 5 * BLOCK;
        // Another order, a repeat of some, a repeat of all.
        let order: Vec<i64> = (0..end).map(|offset| offset ^ 7).chain(3 * BLOCK - 9..end).chain(0..end).collect();
        let index = indexed(order.iter().copied());
        for offsets in [0..1, 0..BLOCK, BLOCK - 1..BLOCK + 1, 2 * BLOCK + 5..4 * BLOCK, 0..end, end - 1..end] {
            let stretches = index.of(&offsets);
            assert!(stretches.windows(2).all(|pair| pair[0].end < pair[1].start), "{stretches:?}");
            let read: i64 = stretches.iter().map(|stretch| stretch.end - stretch.start).sum();
            for (offset, _) in (0..).zip(&order).filter(|(_, posting)| offsets.contains(posting)) {
                assert!(stretches.iter().any(|stretch| stretch.contains(&offset)), "{offset} for {offsets:?}");
            }
            let blocks = (offsets.end - 1) / BLOCK + 1 - offsets.start / BLOCK;
            assert!(read <= 4 * (blocks + 1) * BLOCK, "{read} records for {offsets:?}");
        }
        assert_eq!(index.of(&(end..end + 5)), []);
    }

    #[test]
    fn stretches_of_a_block_are_bounded() {
        let mut stretches = Vec::new();
        for number in 0..3 * APART_MAX as i64 {
            note(&mut stretches, number * 2 * NEAR);
        }
        assert_eq!(stretches.len(), APART_MAX);
        assert_eq!(stretches.last().map(|stretch| stretch.end), Some((3 * APART_MAX as i64 - 1) * 2 * NEAR + 1));
    }

    #[test]
    fn a_record_of_usage_is_read_without_what_does_not_count() {
        let request = RequestContext::of_request(RequestId::parse("r").unwrap(), Timestamp::default());
        let refused = RequestRefused { code: "x".into(), status: 404, told: None, features: None, limit: None };
        let commit = Commit {
            tenure: 0,
            sequence: 0,
            input: InputKind::Record,
            source_offset: None,
            at: Timestamp::from_millis(77),
            control_offset: 0,
            organization: Some(OrganizationId::parse("acme").unwrap()),
            request: Some(std::sync::Arc::new(request)),
            facts: vec![Fact::RequestRefused(refused)],
            health: Vec::new(),
        };
        let (codec, mut payload) = (Codec::offline().unwrap(), Vec::new());
        codec.encode(&usage_of(3, 9, &commit)[0], &mut payload).unwrap();
        let id = codec.decode::<Id>(&payload).unwrap();
        assert_eq!((id.journal_partition, id.journal_offset), (3, 9));
        let told = codec.decode::<Told>(&payload).unwrap().posting(5);
        let expected = Posting {
            organization: OrganizationId::parse("acme").unwrap(),
            model: None,
            at: Timestamp::from_millis(77),
            cost: Some(PicoUsd::ZERO),
            tokens: TokenUsage::NOTHING,
        };
        assert_eq!((told.offset, told.journal_offset, told.journal_index, told.posting), (5, 9, 0, expected));
    }

    #[test]
    fn what_cannot_be_of_a_partition_of_the_journal_is_stray() {
        let of = |journal_partition, journal_offset| stray(&Id { journal_partition, journal_offset }, 3, 10);
        assert_eq!((of(3, 0), of(3, 9)), (None, None));
        for (partition, offset) in [(2, 5), (3, -1), (3, 10)] {
            assert!(of(partition, offset).is_some());
        }
    }
}
