//! Follows the running system: each new request is decided by the candidates, too, on states of their own, and those of a
//! share are really called for. Users never see it, and nobody but the run's account pays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::Message as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::calls::{Wanted, is_in_share};
use super::course::{At, Course, Past};
use super::directory::Directory;
use super::log::{Log, Requests};
use super::partition::{Candidate, Filter};
use super::report::Report;
use super::run::Error;
use crate::audit::Place;
use crate::audit::reader::Reader;
use crate::control::Tables;
use crate::control::rules::Rules;
use crate::records::Topic;
use crate::records::journal::{Entry, Tenancy};
use crate::records::requests::Request;
use crate::runtime::kafka;

/// Calls that wait for their turn at the most; beyond it a request is passed over, and counted.
pub const WAITING_MAX: usize = 1_000;
const POLL: Duration = Duration::from_millis(50);

/// What following has come to so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that were decided by the candidates, too.
    pub decided: AtomicU64,
    /// Requests that were passed over, since too many calls were waiting.
    pub passed_over: AtomicU64,
    /// Partitions that have caught up.
    pub current: AtomicU64,
}

/// A partition that is followed.
pub struct Follower<'a> {
    pub reader: &'a Reader,
    pub partition: i32,
    /// The journal's end when the run began: what comes behind it is shadowed.
    pub begins: i64,
    pub candidates: &'a [Candidate],
    pub filter: &'a Filter,
    pub share_permille: u64,
    pub wanted: mpsc::Sender<Wanted>,
    pub counters: &'a Counters,
    pub ends: &'a AtomicBool,
}

/// The candidates' courses and rules.
struct Under {
    rules: Rules,
    course: Course,
    /// Of the offset of control that was used last, for who makes the calls.
    tables: Option<(i64, Arc<Tables>)>,
}

impl Follower<'_> {
    /// Follows until it is told to end; then what is still open stays so. Blocks.
    ///
    /// # Errors
    /// The logs cannot be read, or the rows not be written.
    pub fn follow(self, directory: &Directory) -> Result<Vec<Report>, Error> {
        let (consumer, mut list) = (self.reader.consumer("replay")?, TopicPartitionList::new());
        let name = kafka::topic_name(&self.reader.kafka, Topic::Journal);
        list.add_partition_offset(&name, self.partition, Offset::Beginning).map_err(|e| self.reader.failed(e))?;
        consumer.assign(&list).map_err(|e| self.reader.failed(e))?;
        let mut reports: Vec<Report> = self.candidates.iter().map(|candidate| Report::of(&candidate.name)).collect();
        let mut rows = directory.rows_of(self.partition)?;
        let (mut before, mut tenancy, mut under) = (Past::default(), Tenancy::VACANT, Vec::<Under>::new());
        let (mut rules_end, mut rules) = (0, Rules::default());
        let mut requests: Option<Box<dyn Requests + '_>> = None;
        // Several candidates ask for the same record.
        let mut last = None::<(i64, Bytes)>;
        let mut recorded = None::<(i64, Arc<Tables>)>;
        let mut is_current = false;
        while !self.ends.load(Ordering::Relaxed) {
            let message = match consumer.poll(POLL) {
                Some(Ok(message)) => message,
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    return Err(self.reader.failed(error).into());
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    if !is_current {
                        is_current = true;
                        self.counters.current.fetch_add(1, Ordering::Relaxed);
                    }
                    continue;
                }
                Some(Err(_)) | None => continue,
            };
            let offset = message.offset();
            let place = Place { topic: Topic::Journal, partition: self.partition, offset };
            let entry = self.reader.entry(place, message.payload().unwrap_or_default())?;
            let counts = tenancy.accept(offset, &entry);
            if offset < self.begins {
                before.take(offset, &entry, counts);
                continue;
            }
            let Entry::Commit(commit) = &entry else { continue };
            if commit.control_offset >= rules_end {
                // Control has gone on: the rules of every moment, up to this one.
                rules_end = Log::kept(self.reader)?.control.end.max(commit.control_offset + 1);
                rules = Log::rules(self.reader, rules_end)?;
                for (under, candidate) in under.iter_mut().zip(self.candidates) {
                    under.rules = rules.overridden(candidate.overrides.clone());
                }
            }
            if under.is_empty() {
                under = self.candidates.iter().map(|candidate| self.begin(candidate, &rules, &before)).collect();
                before = Past::default();
            }
            if !counts {
                under.iter_mut().for_each(|under| under.course.pass(offset, &entry));
                continue;
            }
            let in_range = self.filter.has_commit(commit);
            for (number, under) in under.iter_mut().enumerate() {
                let tables = under.rules.at(commit.control_offset);
                under.course.take(At { offset, commit, in_range, features: None }, tables);
                let begun = under.course.take_begun();
                self.counters.decided.fetch_add(begun.len() as u64, Ordering::Relaxed);
                for begun in begun.into_iter().filter(|of| is_in_share(&of.context.request_id, self.share_permille)) {
                    let requests = match &mut requests {
                        Some(requests) => requests,
                        none => none.insert(self.reader.requests(self.partition, begun.source_offset)?),
                    };
                    let body = match &last {
                        Some((offset, body)) if *offset == begun.source_offset => body.clone(),
                        _ => match requests.at(begun.source_offset)? {
                            Some(Request::Chat(chat)) => chat.body,
                            _ => continue,
                        },
                    };
                    last = Some((begun.source_offset, body.clone()));
                    let tables = under.tables(commit.control_offset);
                    let recorded = match &recorded {
                        Some((at, tables)) if *at == commit.control_offset => tables.clone(),
                        _ => {
                            let tables = Arc::new(rules.at(commit.control_offset).clone());
                            recorded.insert((commit.control_offset, tables)).1.clone()
                        }
                    };
                    let wanted = Wanted {
                        organization: begun.organization,
                        context: (*begun.context).clone(),
                        candidate: begun.candidate,
                        source_offset: begun.source_offset,
                        called: begun.called,
                        features: begun.features,
                        body,
                        tables,
                        recorded,
                    };
                    match self.wanted.try_send(wanted) {
                        Ok(()) => {}
                        Err(mpsc::error::TrySendError::Full(_)) => {
                            self.counters.passed_over.fetch_add(1, Ordering::Relaxed);
                        }
                        // Nobody calls any more, and says why.
                        Err(mpsc::error::TrySendError::Closed(_)) => self.ends.store(true, Ordering::Relaxed),
                    }
                }
                for row in under.course.take_rows() {
                    if let Some(report) = reports.get_mut(number) {
                        report.add(&row);
                    }
                    rows.add(&row)?;
                }
            }
        }
        for (under, report) in under.into_iter().zip(&mut reports) {
            let (counts, open) = under.course.finish();
            for row in open {
                report.add(&row);
                rows.add(&row)?;
            }
            report.count(counts);
        }
        rows.finish()?;
        Ok(reports)
    }

    fn begin(&self, candidate: &Candidate, rules: &Rules, before: &Past) -> Under {
        let name = Arc::from(candidate.name.as_str());
        let mut course = Course::new(name, self.partition, candidate.is_recorded(), before.clone());
        course.watch();
        Under { rules: rules.overridden(candidate.overrides.clone()), course, tables: None }
    }
}

impl Under {
    fn tables(&mut self, offset: i64) -> Arc<Tables> {
        match &self.tables {
            Some((at, tables)) if *at == offset => tables.clone(),
            _ => {
                let tables = Arc::new(self.rules.at(offset).clone());
                self.tables = Some((offset, tables.clone()));
                tables
            }
        }
    }
}
