//! Which requests of a partition are replayed, by whose rules, and from which state on: pure.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::candidate::RECORDED;
use super::course::{At, Counts, Course, Past};
use super::row::Row;
use crate::control::rules::{Overrides, Rules};
use crate::domain::{ModelName, OrganizationId, PolicyName, Timestamp};
use crate::records::journal::{Commit, Entry, Fact, Features, InputKind, RequestContext, Tenancy};

/// Rules that a replay decides by.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub name: String,
    /// What is otherwise; empty: the recorded rules.
    pub overrides: Arc<Overrides>,
    /// Its content is classified again.
    pub reclassifies: bool,
}

impl Candidate {
    /// The rules that are recorded: whatever is decided otherwise cannot be trusted.
    pub fn recorded() -> Self {
        Self { name: RECORDED.to_owned(), overrides: Arc::default(), reclassifies: false }
    }

    pub fn is_recorded(&self) -> bool {
        self.overrides.is_empty() && !self.reclassifies
    }
}

/// Which part of the log is replayed. All that is given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Span {
    /// Decided at or after then, and before then.
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Offsets of the journal.
    pub offsets: Option<Range<i64>>,
    /// Not before this one: a time, a partition, an offset.
    pub since: Option<(Timestamp, i32, i64)>,
}

impl Span {
    pub(super) fn has(&self, partition: i32, offset: i64, at: Timestamp) -> bool {
        self.begins(partition, offset, at) && !self.is_past(offset, at)
    }

    fn begins(&self, partition: i32, offset: i64, at: Timestamp) -> bool {
        self.from.is_none_or(|from| at >= from)
            && self.offsets.as_ref().is_none_or(|offsets| offset >= offsets.start)
            && self.since.is_none_or(|since| (at, partition, offset) >= since)
    }

    /// The clock of a partition never goes back, so nothing of the range comes later.
    fn is_past(&self, offset: i64, at: Timestamp) -> bool {
        self.until.is_some_and(|until| at >= until)
            || self.offsets.as_ref().is_some_and(|offsets| offset >= offsets.end)
    }
}

/// Which of the requests are told of; all are decided, since each changes what is left for the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    pub organizations: BTreeSet<OrganizationId>,
    pub tiers: BTreeSet<u8>,
    pub requested_models: BTreeSet<ModelName>,
    pub policies: BTreeSet<PolicyName>,
    pub user_tiers: BTreeSet<String>,
    pub tags: Vec<(String, String)>,
}

impl Filter {
    pub(super) fn has_commit(&self, commit: &Commit) -> bool {
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return true };
        self.has(organization, request)
    }

    fn has(&self, organization: &OrganizationId, request: &RequestContext) -> bool {
        fn among<T: Ord>(wanted: &BTreeSet<T>, found: Option<&T>) -> bool {
            wanted.is_empty() || found.is_some_and(|found| wanted.contains(found))
        }
        among(&self.organizations, Some(organization))
            && among(&self.tiers, request.tier.as_ref())
            && among(&self.requested_models, request.requested_model.as_ref())
            && among(&self.policies, request.policy.as_ref())
            && among(&self.user_tiers, request.user_tier.as_ref())
            && self.tags.iter().all(|(name, value)| request.tags.get(name) == Some(value))
    }
}

/// A partition under replay.
#[derive(Debug)]
pub struct Partition {
    number: i32,
    span: Span,
    filter: Arc<Filter>,
    tenancy: Tenancy,
    before: Option<Past>,
    candidates: Vec<Under>,
}

/// A course, and the rules of every moment.
#[derive(Debug)]
struct Under {
    name: Arc<str>,
    rules: Rules,
    is_recorded: bool,
    reclassifies: bool,
    without_content: u64,
    course: Option<Course>,
}

impl Partition {
    /// From the beginning of the journal.
    pub fn new(number: i32, span: Span, filter: Arc<Filter>, rules: &Rules, candidates: &[Candidate]) -> Self {
        let under = |candidate: &Candidate| Under {
            name: Arc::from(candidate.name.as_str()),
            rules: rules.overridden(candidate.overrides.clone()),
            is_recorded: candidate.is_recorded(),
            reclassifies: candidate.reclassifies,
            without_content: 0,
            course: None,
        };
        Self {
            number,
            span,
            filter,
            tenancy: Tenancy::VACANT,
            before: Some(Past::default()),
            candidates: candidates.iter().map(under).collect(),
        }
    }

    /// Whether the content of this record is to be read and classified again.
    pub fn wants_content(&self, entry: &Entry, offset: i64) -> bool {
        let Entry::Commit(commit) = entry else { return false };
        self.candidates.iter().any(|under| under.reclassifies)
            && commit.input == InputKind::Record
            && self.span.has(self.number, offset, commit.at)
            && { self.tenancy }.accept(offset, entry)
    }

    /// Takes the next entry, and what of its content was read again; each row that is done goes to `give` with the number of
    /// its candidate. Breaks when nothing can follow.
    pub fn take(
        &mut self,
        offset: i64,
        entry: &Entry,
        features: Option<&Features>,
        mut give: impl FnMut(usize, Row),
    ) -> ControlFlow<()> {
        let counts = self.tenancy.accept(offset, entry);
        if let Some(before) = &mut self.before {
            match entry {
                Entry::Commit(commit) if counts && self.span.begins(self.number, offset, commit.at) => self.begin(),
                Entry::Commit(_) | Entry::OwnershipTaken(_) => before.take(offset, entry, counts),
            }
        }
        if self.before.is_some() {
            return ControlFlow::Continue(());
        }
        let Entry::Commit(commit) = entry else { return ControlFlow::Continue(()) };
        let in_span = self.span.has(self.number, offset, commit.at);
        let in_range = in_span && self.filter.has_commit(commit);
        for (number, under) in self.candidates.iter_mut().enumerate() {
            let Some(course) = &mut under.course else { continue };
            match counts {
                true => {
                    let features = features.filter(|_| under.reclassifies);
                    let is_lost = under.reclassifies && in_range && features.is_none() && has_features(commit);
                    under.without_content += u64::from(is_lost);
                    course.take(At { offset, commit, in_range, features }, under.rules.at(commit.control_offset));
                }
                false => course.pass(offset, entry),
            }
            course.take_rows().for_each(|row| give(number, row));
        }
        let is_waiting = |under: &Under| under.course.as_ref().is_some_and(Course::is_waiting);
        match self.span.is_past(offset, commit.at) && !self.candidates.iter().any(is_waiting) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn begin(&mut self) {
        let Some(past) = self.before.take() else { return };
        for under in &mut self.candidates {
            under.course = Some(Course::new(under.name.clone(), self.number, under.is_recorded, past.clone()));
        }
    }

    /// The end of the log.
    pub fn finish(self, mut give: impl FnMut(usize, Row)) -> Vec<Counts> {
        let ended = self.candidates.into_iter().enumerate().map(|(number, under)| match under.course {
            Some(course) => {
                let (mut counts, rows) = course.finish();
                counts.without_content = under.without_content;
                rows.into_iter().for_each(|row| give(number, row));
                counts
            }
            None => Counts::default(),
        });
        ended.collect()
    }
}

/// Whether a commit is of a chat whose content was read.
fn has_features(commit: &Commit) -> bool {
    match commit.facts.first() {
        Some(Fact::RequestAdmitted(_)) => true,
        Some(Fact::RequestRefused(refused)) => refused.features.is_some(),
        _ => false,
    }
}
