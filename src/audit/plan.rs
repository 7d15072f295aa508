//! What of the logs is read: the partitions, and where each begins and ends.
//!
//! The ends are taken in the order that makes them comparable while the gateway runs: the groups' offsets, `usage` and
//! `responses` first, then the journal, which holds the reason of everything on them, and `requests` last.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range, RangeInclusive};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::Place;
use super::frames::{Begins, CLOCK_SLACK, REPUBLISHED_AFTER_MAX, Retained};
use super::journal::Settings;
use super::reader::{Error, Reader};
use super::stages::Stage;
use crate::domain::ids::partition_of;
use crate::domain::{OrganizationId, Timestamp};
use crate::records::Topic;
use crate::records::journal::Entry;
use crate::runtime::kafka;
use crate::{config, projection, sink};

/// Most requests that are remembered for their frames at once.
pub const REMEMBERED_MAX: u64 = 1_000_000;
/// How long one question to the broker may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The consumer group of the processor, whose members are not disturbed by a look at its offsets.
const GROUP: &str = "processor";

/// What is audited.
#[derive(Debug, Clone)]
pub struct Scope {
    /// From the tenure on that was in force then.
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Of the journal; empty: all.
    pub partitions: Vec<RangeInclusive<i32>>,
    pub settings: Settings,
    /// `None`: it is left out on purpose.
    pub clickhouse: Option<config::ClickHouse>,
    /// The time at the end of the range.
    pub now: Timestamp,
}

/// A part of a partition.
#[derive(Debug, Clone)]
pub struct Extent {
    pub topic: Topic,
    pub partition: i32,
    pub offsets: Range<i64>,
}

/// A partition of the journal, and that of `requests` which it decides.
#[derive(Debug)]
pub struct Source {
    pub journal: Extent,
    pub begins: Begins,
    /// Whether the journal lacks what this would have to begin with.
    pub cut: bool,
    pub requests: Range<i64>,
    /// Of the consumer group; not in a range that has ended.
    pub committed: Option<i64>,
    /// Of what follows the journal; `None` when that could not be asked.
    pub stage: Option<Stage>,
}

/// A partition of `responses`.
#[derive(Debug)]
pub struct Answers {
    pub extent: Extent,
    pub retained: Retained,
}

#[derive(Debug)]
pub struct Plan {
    /// That each topic has.
    pub partitions: u32,
    pub sources: Vec<Source>,
    pub answers: Vec<Answers>,
    /// All of control: what was decided on.
    pub control: Extent,
    /// Requests that were settled before have no frames in the range.
    pub since: Timestamp,
    /// Why it is not known how far what follows the journal is.
    pub unstaged: Option<Error>,
    /// So many parts of the requests are looked at one after the other.
    pub parts: u64,
}

/// First and next offset of partitions.
pub type Offsets = BTreeMap<i32, Range<i64>>;

impl Plan {
    /// Asks the broker.
    pub fn make(reader: &Reader, scope: &Scope) -> Result<Self, Error> {
        let asker = Asker { reader, consumer: reader.consumer(GROUP)? };
        let partitions = asker.partitions(Topic::Requests)?;
        let all: Vec<i32> = (0..partitions as i32).collect();
        let wanted = |partition: &i32| {
            scope.partitions.is_empty() || scope.partitions.iter().any(|range| range.contains(partition))
        };
        let audited: Vec<i32> = all.iter().copied().filter(wanted).collect();
        let is_beyond = |range: &RangeInclusive<i32>| i64::from(*range.end()) >= i64::from(partitions);
        if audited.is_empty() || scope.partitions.iter().any(is_beyond) {
            return Err(Error::NoPartition { partitions });
        }
        let mut committed =
            if scope.to.is_none() { asker.committed(GROUP, Topic::Requests, &audited)? } else { BTreeMap::new() };
        let stages = asker.stages(&audited);
        let responses = asker.watermarks(Topic::Responses, &all)?;
        let responses = asker.within(Topic::Responses, responses, scope.from, scope.to)?;
        let kept = asker.watermarks(Topic::Journal, &audited)?;
        let journal = asker.within(Topic::Journal, kept.clone(), scope.from, scope.to)?;
        // After the journal: what its commits used is there.
        let control = asker.watermarks(Topic::Control, &[0])?.remove(&0).unwrap_or(0..0);
        let control = Extent { topic: Topic::Control, partition: 0, offsets: control };
        let mut requests = asker.watermarks(Topic::Requests, &audited)?;
        let (answers, since) = asker.answers(responses)?;
        let parts = match since {
            Some(since) => asker.settled_after(since, &journal)?.div_ceil(REMEMBERED_MAX).max(1),
            None => 1,
        };
        let (mut stages, mut unstaged) = match stages {
            Ok(stages) => (stages, None),
            Err(error) => (BTreeMap::new(), Some(error)),
        };
        let mut sources = Vec::with_capacity(journal.len());
        for (partition, offsets) in journal {
            let low = kept.get(&partition).map_or(0, |kept| kept.start);
            let start = asker.tenure_at(partition, &offsets)?.clamp(low, offsets.start);
            let stage = stages.remove(&partition);
            let end = kept.get(&partition).map_or(0, |kept| kept.end);
            let stage = stage.map(|stage| asker.staged(stage, partition, start..end)).transpose();
            let stage = stage.unwrap_or_else(|error| {
                unstaged.get_or_insert(error);
                None
            });
            sources.push(Source {
                journal: Extent { topic: Topic::Journal, partition, offsets: start..offsets.end },
                begins: if start == 0 { Begins::AtTheBeginning } else { Begins::AtTenure(None) },
                cut: start == low && low > 0,
                requests: requests.remove(&partition).unwrap_or(0..0),
                committed: committed.remove(&partition),
                stage,
            });
        }
        let is_range = scope.from.is_some() || scope.to.is_some();
        if is_range && sources.iter().all(|source| source.journal.offsets.is_empty()) {
            return Err(Error::NothingInRange);
        }
        Ok(Self {
            partitions,
            sources,
            answers,
            control,
            since: since.unwrap_or(Timestamp::from_millis(i64::MAX)),
            unstaged,
            parts,
        })
    }

    /// Records to be read, for the progress.
    pub fn records(&self) -> u64 {
        let extents = self.sources.iter().map(|s| &s.journal).chain(self.answers.iter().map(|a| &a.extent));
        let records: i64 = extents.map(|extent| extent.offsets.end - extent.offsets.start).sum();
        let usage = self.sources.iter().filter_map(|s| s.stage.as_ref()).map(|s| s.usage.end - s.usage.start);
        records.unsigned_abs() * self.parts + usage.sum::<i64>().unsigned_abs()
    }
}

/// The whole journal of an organization's partition, and all of control, as they end now.
pub fn of_organization(reader: &Reader, organization: &OrganizationId) -> Result<(Extent, Extent), Error> {
    let asker = Asker { reader, consumer: reader.consumer(GROUP)? };
    let partition = partition_of(organization.as_str(), asker.partitions(Topic::Journal)?);
    let whole = |topic, partition: i32| {
        let offsets = asker.watermarks(topic, &[partition])?.remove(&partition).unwrap_or(0..0);
        Ok(Extent { topic, partition, offsets })
    };
    Ok((whole(Topic::Journal, partition)?, whole(Topic::Control, 0)?))
}

/// What is kept of the journal, of `requests` and of control, as they end now: the journal first, so that control and
/// `requests` have what it was decided on.
///
/// # Errors
/// When the broker cannot be asked, or there is no journal.
pub fn kept(reader: &Reader) -> Result<Kept, Error> {
    let asker = Asker { reader, consumer: reader.consumer(GROUP)? };
    let partitions: Vec<i32> = (0..asker.partitions(Topic::Journal)? as i32).collect();
    let journal = asker.watermarks(Topic::Journal, &partitions)?;
    let control = asker.watermarks(Topic::Control, &[0])?.remove(&0).unwrap_or(0..0);
    let requests = asker.watermarks(Topic::Requests, &partitions)?;
    Ok(Kept { journal, requests, control })
}

/// First and next offset of the topics' partitions.
#[derive(Debug, Clone)]
pub struct Kept {
    pub journal: Offsets,
    pub requests: Offsets,
    pub control: Range<i64>,
}

/// What of the journal is read for a range of time, in the partition of one organization or in all: from the tenure on that
/// was in force then, so that it is known which commits count.
///
/// # Errors
/// When the broker cannot be asked, or there is no journal.
pub fn journal(
    reader: &Reader,
    organization: Option<&OrganizationId>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
) -> Result<Vec<Extent>, Error> {
    let asker = Asker { reader, consumer: reader.consumer(GROUP)? };
    let partitions = asker.partitions(Topic::Journal)?;
    let wanted = match organization {
        Some(organization) => vec![partition_of(organization.as_str(), partitions)],
        None => (0..partitions as i32).collect(),
    };
    let kept = asker.watermarks(Topic::Journal, &wanted)?;
    let mut extents = Vec::with_capacity(kept.len());
    for (partition, offsets) in asker.within(Topic::Journal, kept.clone(), from, to)? {
        let low = kept.get(&partition).map_or(0, |kept| kept.start);
        let start = asker.tenure_at(partition, &offsets)?.clamp(low, offsets.start);
        extents.push(Extent { topic: Topic::Journal, partition, offsets: start..offsets.end });
    }
    Ok(extents)
}

struct Asker<'a> {
    reader: &'a Reader,
    consumer: BaseConsumer,
}

impl Asker<'_> {
    fn failed(&self, source: KafkaError) -> Error {
        self.reader.failed(source)
    }

    fn name(&self, topic: Topic) -> String {
        kafka::topic_name(&self.reader.kafka, topic)
    }

    fn partitions(&self, topic: Topic) -> Result<u32, Error> {
        // Of all topics: a question for one would create it where brokers do so.
        let metadata = self.consumer.fetch_metadata(None, CALL_TIMEOUT).map_err(|e| self.failed(e))?;
        let name = self.name(topic);
        let found = metadata.topics().iter().find(|found| found.name() == name);
        let partitions = found.map_or(0, |found| found.partitions().len());
        if partitions == 0 { Err(Error::NoTopic { topic: name }) } else { Ok(partitions as u32) }
    }

    fn list(&self, topic: Topic, partitions: &[i32], offset: Offset) -> Result<TopicPartitionList, Error> {
        let (mut list, name) = (TopicPartitionList::new(), self.name(topic));
        for partition in partitions {
            list.add_partition_offset(&name, *partition, offset).map_err(|e| self.failed(e))?;
        }
        Ok(list)
    }

    /// What a group has committed of a topic, where it has.
    fn committed(&self, group: &str, topic: Topic, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, Error> {
        let consumer = self.reader.consumer(group)?;
        let list = self.list(topic, partitions, Offset::Invalid)?;
        let committed = consumer.committed_offsets(list, CALL_TIMEOUT).map_err(|e| self.failed(e))?;
        let elements = committed.elements();
        // One that is not told must not look like one that was never made.
        elements.iter().try_for_each(|e| e.error()).map_err(|e| self.failed(e))?;
        Ok(elements
            .iter()
            .filter_map(|e| Some((e.partition(), e.offset().to_raw()?)))
            .filter(|(_, o)| *o >= 0)
            .collect())
    }

    /// How far what follows the journal is: the positions first, then the end of `usage`, which has all that they vouch for.
    fn stages(&self, partitions: &[i32]) -> Result<BTreeMap<i32, Stage>, Error> {
        self.partitions(Topic::Usage)?;
        let inserted = self.committed(sink::NAME, Topic::Usage, partitions)?;
        let projected = self.committed(projection::NAME, Topic::Journal, partitions)?;
        let usage = self.watermarks(Topic::Usage, partitions)?;
        let stage = |(partition, usage): (i32, Range<i64>)| {
            let of = |positions: &BTreeMap<i32, i64>| positions.get(&partition).copied().unwrap_or(0);
            let (projected, inserted) = (of(&projected), of(&inserted));
            (partition, Stage { projected, inserted, low: usage.start, usage, journal_end: 0 })
        };
        Ok(usage.into_iter().map(stage).collect())
    }

    /// The stage of a partition of the journal of which these offsets are kept and were asked for later; it is looked at from
    /// their start on. What was appended there or later was sent to `usage` afterwards.
    fn staged(&self, stage: Stage, partition: i32, journal: Range<i64>) -> Result<Stage, Error> {
        let mut stage = Stage { journal_end: journal.end, ..stage };
        let mut appended_at = None;
        if journal.start > 0 {
            let extent = Extent { topic: Topic::Journal, partition, offsets: journal };
            self.reader.each(&extent, |message| {
                appended_at = message.timestamp().to_millis();
                Ok(ControlFlow::Break(()))
            })?;
        }
        if let Some(appended_at) = appended_at {
            let slack = i64::try_from(CLOCK_SLACK.as_millis()).unwrap_or(i64::MAX);
            let since = Timestamp::from_millis(appended_at.saturating_sub(slack));
            let found = self.at(Topic::Usage, &[partition], since)?.remove(&partition).unwrap_or(stage.usage.end);
            stage.usage.start = found.clamp(stage.usage.start, stage.usage.end);
        }
        Ok(stage)
    }

    fn watermarks(&self, topic: Topic, partitions: &[i32]) -> Result<Offsets, Error> {
        let name = self.name(topic);
        let ask = |partition: &i32| {
            let (low, high) = self.consumer.fetch_watermarks(&name, *partition, CALL_TIMEOUT)?;
            Ok((*partition, low..high))
        };
        partitions.iter().map(ask).collect::<Result<_, KafkaError>>().map_err(|e| self.failed(e))
    }

    /// What of the topic is in the range of time.
    fn within(
        &self,
        topic: Topic,
        mut offsets: Offsets,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<Offsets, Error> {
        let partitions: Vec<i32> = offsets.keys().copied().collect();
        if let Some(to) = to {
            for (partition, offset) in self.at(topic, &partitions, to)? {
                offsets.entry(partition).and_modify(|range| range.end = offset.clamp(range.start, range.end));
            }
        }
        if let Some(from) = from {
            let found = self.at(topic, &partitions, from)?;
            for (partition, range) in &mut offsets {
                let start = found.get(partition).copied().unwrap_or(range.end);
                range.start = start.clamp(range.start, range.end);
            }
        }
        Ok(offsets)
    }

    /// The first offset at or after a time, in the partitions that have one.
    fn at(&self, topic: Topic, partitions: &[i32], at: Timestamp) -> Result<BTreeMap<i32, i64>, Error> {
        let list = self.list(topic, partitions, Offset::Offset(at.as_millis().max(0)))?;
        let found = self.consumer.offsets_for_times(list, CALL_TIMEOUT).map_err(|e| self.failed(e))?;
        let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
        Ok(found.elements().iter().filter_map(|e| Some((e.partition(), offset(e.offset())?))).collect())
    }

    /// The partitions of `responses`, and the time of the earliest settlement that their frames may tell of.
    fn answers(&self, offsets: Offsets) -> Result<(Vec<Answers>, Option<Timestamp>), Error> {
        let (mut answers, mut earliest) = (Vec::with_capacity(offsets.len()), None::<Timestamp>);
        for (partition, offsets) in offsets {
            let extent = Extent { topic: Topic::Responses, partition, offsets };
            let mut first = None;
            self.reader.each(&extent, |message| {
                first = Some((message.offset(), message.timestamp().to_millis().unwrap_or(0)));
                Ok(ControlFlow::Break(()))
            })?;
            let Some((offset, at)) = first.map(|(offset, at)| (offset, Timestamp::from_millis(at))) else { continue };
            let retained = if offset == 0 { Retained::All } else { Retained::Since(at) };
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
            answers.push(Answers { extent, retained });
        }
        let slack = i64::try_from(REPUBLISHED_AFTER_MAX.as_millis()).unwrap_or(i64::MAX);
        Ok((answers, earliest.map(|at| Timestamp::from_millis(at.as_millis().saturating_sub(slack)))))
    }

    /// At most so many requests were settled or refused since then, a commit each.
    fn settled_after(&self, since: Timestamp, journal: &Offsets) -> Result<u64, Error> {
        let partitions: Vec<i32> = journal.keys().copied().collect();
        let found = self.at(Topic::Journal, &partitions, since)?;
        let after = |(partition, offset): (&i32, &i64)| journal.get(partition).map_or(0, |range| range.end - offset);
        Ok(found.iter().map(after).filter(|commits| *commits > 0).sum::<i64>().unsigned_abs())
    }

    /// Where to begin so that the commits of the range are known as effective or not: a commit names the offset at which
    /// its tenure began.
    fn tenure_at(&self, partition: i32, range: &Range<i64>) -> Result<i64, Error> {
        let mut tenure = range.start;
        let extent = Extent { topic: Topic::Journal, partition, offsets: range.clone() };
        if range.start > 0 {
            self.reader.each(&extent, |message| {
                let place = Place { topic: Topic::Journal, partition, offset: message.offset() };
                if let Entry::Commit(commit) = self.reader.entry(place, message.payload().unwrap_or_default())? {
                    tenure = commit.tenure;
                }
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(tenure)
    }
}
