//! One partition of the journal, held against itself: I1 (terminals), I3 (postings), I4 (attempts), I11 (records), I12 (the
//! fold), I13 (origins). Its requests are remembered for their frames.
//!
//! The books that are kept here know nothing of `processor::evolve`: I12 compares the two.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Duration;

use super::frames::{Begins, Life, Requests, Settled, Window};
use super::money::Money;
use super::{Check, Finding, Findings, Place};
use crate::domain::{RequestKey, Timestamp};
use crate::processor::checkpoint::{Cut, FOLD_VERSION};
use crate::processor::{State, evolve, fold, key_of};
use crate::records::journal::{
    AttemptEnded, AttemptStarted, Commit, Entry, Fact, InputKind, RequestAdmitted, RequestSettled, Tenancy,
};
use crate::records::state::Marker;
use crate::records::{Origin, Topic};

/// Most requests of one partition that may be open at once.
pub const OPEN_MAX: usize = 100_000;
/// Most stretches of undecided records of one partition that are looked up on `requests`.
pub const GAPS_MAX: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("more than {OPEN_MAX} requests are open at offset {offset}; audit a range that ends earlier")]
    TooManyOpen { offset: i64 },
    #[error("more than {GAPS_MAX} stretches of records are not decided before offset {offset}")]
    TooManyGaps { offset: i64 },
}

/// What holds beside the invariants.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long after its deadline a request may be open.
    pub grace: Duration,
    /// Nothing failed in the range: every request has exactly one attempt.
    pub no_faults: bool,
    /// Every commit is decided again.
    pub redecides: bool,
}

/// How many of what there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    pub tenures: u64,
    pub commits: u64,
    /// Of a tenure that was over, or behind a gap.
    pub ineffective: u64,
    pub admitted: u64,
    pub refused: u64,
    pub settled: u64,
    pub cancels: u64,
    pub duplicates: u64,
    /// Dead letters, and records that were moved to their partition.
    pub set_aside: u64,
    /// Records that purged a cache.
    pub purges: u64,
    pub open: u64,
    /// Refusals that cannot be decided again, since their reason is in content.
    pub not_redecided: u64,
}

/// A partition of the journal that is being read.
#[derive(Debug)]
pub struct Journal {
    partition: i32,
    settings: Settings,
    tenancy: Tenancy,
    next_offset: Option<i64>,
    state: State,
    /// Only where the journal is read from its beginning.
    money: Option<Money>,
    open: HashMap<RequestKey, Open>,
    sources: Sources,
    /// Where the latest tenure wrote past a gap of its own.
    past_gap: Option<i64>,
    /// The latest tenure is done with what the former ones left, and decides on its own.
    is_at_work: bool,
    requests: Requests,
    /// Checkpoints that are still to be compared, by the offset that they hold.
    checkpoints: BTreeMap<i64, Vec<Marker>>,
    counts: Counts,
    findings: Findings,
}

/// A partition of the journal that has been read.
#[derive(Debug)]
pub struct Read {
    pub partition: i32,
    pub begins: Begins,
    pub counts: Counts,
    pub findings: Findings,
    pub sources: Sources,
}

/// Which records of `requests` the effective commits decide.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    pub first: Option<i64>,
    pub last: Option<i64>,
    /// Offsets that no commit decides although later ones are decided; there need not be records.
    pub gaps: Vec<Range<i64>>,
}

/// A request that was admitted and is not settled.
#[derive(Debug)]
struct Open {
    offset: i64,
    /// `None` when the admission is older than what was read.
    deadline_at: Option<Timestamp>,
    reply_partition: Option<i32>,
    max_attempts: Option<u32>,
    attempts: u32,
    started_at: Timestamp,
    /// Of the commit that started the latest attempt.
    started_offset: i64,
}

/// Where a fact stands.
struct At<'a> {
    offset: i64,
    key: &'a RequestKey,
    commit: &'a Commit,
}

impl Journal {
    pub fn new(partition: i32, begins: Begins, settings: Settings, window: Window) -> Self {
        Self {
            partition,
            settings,
            tenancy: Tenancy::VACANT,
            next_offset: None,
            state: State::default(),
            money: None,
            open: HashMap::new(),
            sources: Sources::default(),
            past_gap: None,
            is_at_work: false,
            requests: Requests::new(window, begins),
            checkpoints: BTreeMap::new(),
            counts: Counts::default(),
            findings: Findings::default(),
        }
    }

    /// Holds the money against these rules, which needs all of the journal.
    pub fn reckon(&mut self, money: Money) {
        self.money = (self.requests.begins == Begins::AtTheBeginning).then_some(money);
    }

    /// Notes that the journal, which is kept for ever, begins only there.
    pub fn begins_late(&mut self, offset: i64) {
        self.violated(Check::I12, offset, None, || "the journal has no records before it".to_owned());
    }

    /// Compares the fold with these checkpoints when it comes to them; only a fold from the beginning can be compared.
    pub fn compare(&mut self, markers: impl IntoIterator<Item = Marker>) {
        if self.requests.begins == Begins::AtTheBeginning {
            for marker in markers.into_iter().filter(|marker| marker.fold_version == FOLD_VERSION) {
                self.checkpoints.entry(marker.journal_offset).or_default().push(marker);
            }
        }
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// A bound is reached: of this partition nothing can be said.
    pub fn take(&mut self, offset: i64, entry: &Entry) -> Result<(), Error> {
        if let Some(next) = self.next_offset.filter(|next| *next != offset) {
            self.violated(Check::I12, offset, None, || format!("the journal has no records from offset {next} on"));
        }
        self.next_offset = Some(offset + 1);
        let effective = self.tenancy.accept(offset, entry);
        self.entry(offset, entry, effective)?;
        for marker in self.checkpoints.remove(&offset).unwrap_or_default() {
            self.checkpoint(offset, &marker);
        }
        Ok(())
    }

    /// I12: a checkpoint vouches for what the fold gives.
    fn checkpoint(&mut self, offset: i64, marker: &Marker) {
        self.findings.looked_at(Check::I12);
        let cut = Cut {
            tenure: self.tenancy.tenure.unwrap_or(-1),
            journal_offset: offset,
            next_sequence: self.tenancy.next_sequence,
            state: self.state.clone(),
        };
        let same = cut.parts().is_ok_and(|parts| cut.marker(marker.slot, &parts) == *marker);
        if !same {
            let (tenure, slot) = (marker.tenure, marker.slot);
            let what = || format!("the checkpoint of tenure {tenure} in slot {slot} has another state");
            self.violated(Check::I12, offset, None, what);
        }
    }

    fn entry(&mut self, offset: i64, entry: &Entry, effective: bool) -> Result<(), Error> {
        match entry {
            Entry::OwnershipTaken(taken) => {
                self.counts.tenures += 1;
                (self.past_gap, self.is_at_work) = (None, false);
                if let Begins::AtTenure(first) = &mut self.requests.begins {
                    first.get_or_insert((offset, taken.at));
                }
                Ok(())
            }
            Entry::Commit(commit) if effective => self.commit(offset, commit),
            Entry::Commit(commit) => {
                fold(&mut self.state, offset, entry, false);
                self.counts.ineffective += 1;
                // An owner whose commit was lost stops, and begins a new tenure.
                let own = self.tenancy.tenure == Some(commit.tenure) && commit.sequence > self.tenancy.next_sequence;
                self.past_gap = self.past_gap.or(own.then_some(offset));
                Ok(())
            }
        }
    }

    fn commit(&mut self, offset: i64, commit: &Commit) -> Result<(), Error> {
        self.counts.commits += 1;
        self.findings.looked_at(Check::I12);
        self.money(offset, commit);
        self.orphans(offset, commit);
        self.is_at_work |= commit.input != InputKind::Takeover;
        evolve(&mut self.state, commit);
        if self.state.clock != commit.at {
            let clock = self.state.clock;
            self.violated(Check::I12, offset, None, || format!("time goes back from {clock} to {}", commit.at));
        }
        self.source(offset, commit)?;
        if let (Some(organization), Some(request)) = (&commit.organization, &commit.request) {
            let key = key_of(organization, &request.request_id);
            self.findings.looked_at(Check::I13);
            if matches!(request.origin, Origin::Replay | Origin::Shadow) {
                let what = || format!("its origin is {:?}; replays write on topics of their own", request.origin);
                self.violated(Check::I13, offset, Some(&key), what);
            }
            self.facts(&At { offset, key: &key, commit });
        }
        if self.open.len() > OPEN_MAX { Err(Error::TooManyOpen { offset }) } else { Ok(()) }
    }

    /// I7: what is posted of a former owner's spending is an end of a call that nobody has posted before.
    fn orphans(&mut self, offset: i64, commit: &Commit) {
        if self.requests.begins != Begins::AtTheBeginning {
            return;
        }
        for fact in &commit.facts {
            if let Fact::OrphanPosted(orphan) = fact
                && self.state.orphan(orphan.journal_offset).is_none()
            {
                let of = orphan.journal_offset;
                let what = || format!("offset {of} has no orphan that is still to be posted");
                self.violated(Check::I7, offset, None, what);
            }
        }
    }

    fn money(&mut self, offset: i64, commit: &Commit) {
        let Some(money) = &mut self.money else { return };
        let look = money.take(&self.state, commit);
        look.looked_at.into_iter().for_each(|check| self.findings.looked_at(check));
        let request = commit.organization.as_ref().zip(commit.request.as_ref());
        let key = request.map(|(organization, request)| key_of(organization, &request.request_id));
        for (check, what) in look.found {
            self.violated(check, offset, key.as_ref(), || what);
        }
    }

    /// I11: each record once and in order, with one verdict.
    fn source(&mut self, offset: i64, commit: &Commit) -> Result<(), Error> {
        let (mut verdicts, counts) = (0, &mut self.counts);
        for fact in &commit.facts {
            let counter = match fact {
                Fact::RequestAdmitted(_) => &mut counts.admitted,
                Fact::RequestRefused(_) => &mut counts.refused,
                Fact::CancelRequested(_) => &mut counts.cancels,
                Fact::RecordSkipped(skipped) if skipped.reason == "duplicate" => &mut counts.duplicates,
                Fact::RecordSkipped(_) => &mut counts.set_aside,
                Fact::CachePurged(_) => &mut counts.purges,
                Fact::RequestRouted(_)
                | Fact::AttemptStarted(_)
                | Fact::AttemptProgressed(_)
                | Fact::AttemptEnded(_)
                | Fact::OrphanPosted(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::RequestSettled(_) => continue,
            };
            *counter += 1;
            verdicts += 1;
        }
        if verdicts != u32::from(commit.source_offset.is_some()) {
            let source = commit.source_offset.map_or("no record".to_owned(), |source| format!("record {source}"));
            self.violated(Check::I11, offset, None, || format!("{verdicts} verdicts on {source}"));
        }
        let Some(source) = commit.source_offset else { return Ok(()) };
        self.findings.looked_at(Check::I11);
        match self.sources.last {
            Some(last) if source <= last => {
                self.violated(Check::I11, offset, None, || format!("record {source} is decided after record {last}"));
                return Ok(());
            }
            Some(last) if source > last + 1 => self.sources.gaps.push(last + 1..source),
            Some(_) => {}
            None => self.sources.first = Some(source),
        }
        self.sources.last = Some(source);
        if self.sources.gaps.len() > GAPS_MAX { Err(Error::TooManyGaps { offset }) } else { Ok(()) }
    }

    fn facts(&mut self, at: &At<'_>) {
        for fact in &at.commit.facts {
            match fact {
                Fact::RequestAdmitted(admitted) => self.admitted(at, admitted),
                Fact::RequestRefused(_) => {
                    self.findings.looked_at(Check::I1);
                    if self.open.contains_key(at.key) {
                        self.against(Check::I1, at, || "refused although it is open".to_owned());
                    }
                    self.requests.refused(at.key, at.commit.at);
                }
                Fact::RequestRouted(routed) => {
                    if let Some(open) = self.open.get_mut(at.key) {
                        open.max_attempts = Some(routed.max_attempts);
                    }
                }
                Fact::AttemptStarted(started) => self.started(at, started),
                Fact::AttemptEnded(posting) => self.posted(at, posting),
                Fact::RequestSettled(settled) => self.settled(at, settled),
                // The duplicate's own asker is told so.
                Fact::RecordSkipped(_) => self.requests.refused(at.key, at.commit.at),
                Fact::OrphanPosted(orphan) => {
                    self.findings.looked_at(Check::I3);
                    if orphan.journal_offset >= at.offset {
                        self.against(Check::I3, at, || {
                            format!("an orphan of offset {} is posted before it", orphan.journal_offset)
                        });
                    }
                }
                Fact::AttemptProgressed(_)
                | Fact::CancelRequested(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::CachePurged(_) => {}
            }
        }
    }

    fn admitted(&mut self, at: &At<'_>, admitted: &RequestAdmitted) {
        self.findings.looked_at(Check::I1);
        let open = Open {
            offset: at.offset,
            deadline_at: Some(admitted.deadline_at),
            reply_partition: Some(admitted.reply_partition),
            max_attempts: None,
            attempts: 0,
            started_at: at.commit.at,
            started_offset: at.offset,
        };
        if let Some(former) = self.open.insert(at.key.clone(), open) {
            self.against(Check::I1, at, || format!("admitted again; the admission at {} is open", former.offset));
        }
    }

    /// The open request. One whose admission is older than what was read becomes known when it is taken over, as the first
    /// tenure that is read does with all of them.
    fn open(&mut self, at: &At<'_>, attempts: u32) -> Option<&mut Open> {
        let older = self.requests.begins != Begins::AtTheBeginning && at.commit.input == InputKind::Takeover;
        if older && !self.open.contains_key(at.key) {
            let open = Open {
                offset: at.offset,
                deadline_at: None,
                reply_partition: None,
                max_attempts: None,
                attempts,
                started_at: Timestamp::default(),
                started_offset: -1,
            };
            self.open.insert(at.key.clone(), open);
        }
        self.open.get_mut(at.key)
    }

    fn started(&mut self, at: &At<'_>, started: &AttemptStarted) {
        self.findings.looked_at(Check::I4);
        let attempt = started.attempt;
        let Some(open) = self.open(at, attempt.saturating_sub(1)) else {
            return self.against(Check::I4, at, || format!("attempt {attempt} of a request that is not open"));
        };
        let (before, most) = (open.attempts, open.max_attempts);
        open.attempts = attempt;
        open.started_at = at.commit.at;
        open.started_offset = at.offset;
        if attempt != before.saturating_add(1) {
            self.against(Check::I4, at, || format!("attempt {attempt} follows attempt {before}"));
        } else if most.is_some_and(|most| attempt > most) {
            self.against(Check::I4, at, || format!("attempt {attempt}; the policy allows {}", most.unwrap_or(0)));
        }
    }

    fn posted(&mut self, at: &At<'_>, posting: &AttemptEnded) {
        self.findings.looked_at(Check::I3);
        let attempt = posting.attempt;
        let durable = self.open(at, attempt).is_some_and(|open| {
            // A fallback posts the attempt before in the commit that starts the next.
            attempt <= open.attempts && (attempt < open.attempts || open.started_offset < at.offset)
        });
        if !durable {
            self.against(Check::I3, at, || format!("posting of attempt {attempt}, which no earlier commit started"));
        }
    }

    fn settled(&mut self, at: &At<'_>, settled: &RequestSettled) {
        let Some(open) = self.open(at, settled.attempts).map(|open| open.life(Some((at.commit, settled)))) else {
            return self.against(Check::I1, at, || "settled although it is not open".to_owned());
        };
        self.counts.settled += 1;
        self.open.remove(at.key);
        if open.attempts != settled.attempts {
            let started = open.attempts;
            self.against(Check::I4, at, || format!("settled with {} attempts; {started} started", settled.attempts));
        } else if self.settings.no_faults && settled.attempts != 1 {
            self.against(Check::I4, at, || format!("{} attempts in a run without faults", settled.attempts));
        }
        self.requests.lived(at.key, open, at.commit.at);
    }

    /// Everything up to the end of the range has been taken; `now` is the time there.
    pub fn finish(mut self, now: Timestamp) -> (Read, Requests) {
        if let Some(offset) = self.past_gap {
            self.violated(Check::I12, offset, None, || {
                "the owner goes on although a commit of its own is missing; nothing after it counts".to_owned()
            });
        }
        let (end, mut unknown) = (self.next_offset.unwrap_or(0), Vec::new());
        unknown
            .extend(self.state.open_requests().map(|(key, _)| key).filter(|key| !self.open.contains_key(key)).cloned());
        for key in &unknown {
            self.violated(Check::I12, end, Some(key), || "open in the fold, and nowhere else".to_owned());
        }
        let tenure = self.tenancy.tenure.filter(|_| self.is_at_work && self.requests.begins == Begins::AtTheBeginning);
        let left = self.state.orphans().map(|(orphan, _)| orphan).filter(|orphan| Some(*orphan) < tenure);
        for orphan in left.collect::<Vec<i64>>() {
            self.violated(Check::I7, orphan, None, || "its owner was over; the next one has not posted it".to_owned());
        }
        let differences = self.money.as_ref().map_or_else(Vec::new, |money| money.differences(&self.state));
        for (check, what) in differences {
            self.violated(check, end, None, || what);
        }
        if self.state.last_source_offset != self.sources.last {
            let (folded, last) = (self.state.last_source_offset, self.sources.last);
            let what = || format!("the last record decided is {last:?}; the fold has {folded:?}");
            self.violated(Check::I12, end, None, what);
        }
        self.counts.open = self.open.len() as u64;
        self.counts.not_redecided = self.money.as_ref().map_or(0, |money| money.not_on_the_journal);
        let mut open: Vec<(RequestKey, Open)> = std::mem::take(&mut self.open).into_iter().collect();
        open.sort_by_key(|(_, open)| open.offset);
        for (key, open) in &open {
            if let Some(deadline) = open.deadline_at.filter(|deadline| deadline.plus(self.settings.grace) < now) {
                let what = || format!("no terminal; its deadline was {deadline}");
                self.violated(Check::I1, open.offset, Some(key), what);
            }
            let folded = self.state.open(key).map(|folded| folded.attempt);
            if open.deadline_at.is_some() && folded != Some(open.attempts) {
                let what = || format!("open with attempt {}; the fold has {folded:?}", open.attempts);
                self.violated(Check::I12, open.offset, Some(key), what);
            }
            self.requests.lived(key, open.life(None), now);
        }
        let Self { partition, counts, findings, requests, sources, .. } = self;
        (Read { partition, begins: requests.begins, counts, findings, sources }, requests)
    }

    fn against(&mut self, check: Check, at: &At<'_>, what: impl FnOnce() -> String) {
        self.violated(check, at.offset, Some(at.key), what);
    }

    fn violated(&mut self, check: Check, offset: i64, request: Option<&RequestKey>, what: impl FnOnce() -> String) {
        let place = Place { topic: Topic::Journal, partition: self.partition, offset };
        self.findings.violated(check, || Finding { place, request: request.cloned(), what: what() });
    }
}

impl Counts {
    /// The sum, where `other` is of another partition.
    pub fn add(&mut self, other: &Self) {
        self.tenures += other.tenures;
        self.commits += other.commits;
        self.ineffective += other.ineffective;
        self.admitted += other.admitted;
        self.refused += other.refused;
        self.settled += other.settled;
        self.cancels += other.cancels;
        self.duplicates += other.duplicates;
        self.set_aside += other.set_aside;
        self.purges += other.purges;
        self.open += other.open;
        self.not_redecided += other.not_redecided;
    }
}

impl Open {
    fn life(&self, settled: Option<(&Commit, &RequestSettled)>) -> Life {
        Life {
            reply_partition: self.reply_partition,
            started_at: self.started_at,
            attempts: self.attempts,
            settled: settled.map(|(commit, settled)| Settled {
                tenure: commit.tenure,
                is_counted: commit.input == InputKind::Provider,
                outcome: settled.outcome,
                content_frames: settled.content_frames,
            }),
        }
    }
}

impl Read {
    /// I10: what the consumer group has committed passes no undecided record. `first` is the first record that
    /// `requests` holds.
    pub fn committed(&mut self, committed: i64, first: i64) {
        self.findings.looked_at(Check::I10);
        let most = match (self.sources.last, self.begins) {
            (Some(last), _) => last + 1,
            (None, Begins::AtTheBeginning) => first,
            // What is decided is older than the range.
            (None, Begins::AtTenure(_)) => return,
        };
        if committed > most {
            let place = Place { topic: Topic::Requests, partition: self.partition, offset: committed };
            let what = format!("the group has committed {committed}; records are decided up to {most}");
            self.findings.violated(Check::I10, || Finding { place, request: None, what });
        }
    }

    /// The stretches of `requests` in which a record would be undecided, as far as `requests` goes back (to `first`).
    pub fn undecided(&self, first: i64) -> Vec<Range<i64>> {
        let begin = match (self.begins, self.sources.first) {
            (Begins::AtTheBeginning, Some(decided)) => Some(first..decided),
            _ => None,
        };
        let held = self.sources.gaps.iter().map(|gap| gap.start.max(first)..gap.end);
        begin.into_iter().chain(held).filter(|gap| !gap.is_empty()).collect()
    }

    /// I11: a record stands in such a stretch.
    pub fn found_undecided(&mut self, offset: i64) {
        let place = Place { topic: Topic::Requests, partition: self.partition, offset };
        let what = "no effective commit decides it, though later records are decided".to_owned();
        self.findings.violated(Check::I11, || Finding { place, request: None, what });
    }
}
