//! I5: a stretch of a partition of the journal, and what `usage` and ClickHouse have of it, summed up per organization,
//! model and hour.
//!
//! Which facts are postings, and what they cost, is said here once more: nothing of `projection::usage` is used, so that a
//! mistake there is found. A posting stands for one whatever comes again with the same id and the same values.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;

use super::{Check, Finding, Findings, Place};
use crate::domain::{ModelName, OrganizationId, PicoUsd, Timestamp, TokenUsage};
use crate::records::Topic;
use crate::records::journal::{Commit, Entry, Fact, Tenancy};

/// A stretch ends with so many postings, or so many sums.
pub const POSTINGS_MAX: usize = 1 << 18;
pub const SUMS_MAX: usize = 100_000;
/// What places other than the journal may have beyond that, as a multiple, before it is no longer told apart.
const STRANGE_MAX: usize = 2;

const HOUR_MS: i64 = 3_600_000;
/// The classes of tokens.
const CLASSES: [&str; 5] = ["input", "cached input", "cache write", "output", "reasoning"];

/// What is summed up together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub organization: OrganizationId,
    pub model: Option<ModelName>,
    /// Hours since 1970 (UTC).
    pub hour: i64,
}

/// Of some postings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub postings: u64,
    /// In pico-dollars, of those whose cost is known.
    pub cost: i128,
    pub unknown_cost: u64,
    /// By class, of those where it is known; and how many those are where it is not.
    pub tokens: [u64; CLASSES.len()],
    pub unknown_tokens: [u64; CLASSES.len()],
}

/// What a posting says, wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    pub organization: OrganizationId,
    pub model: Option<ModelName>,
    pub at: Timestamp,
    pub cost: Option<PicoUsd>,
    pub tokens: TokenUsage,
}

/// A record of `usage`.
#[derive(Debug, Clone)]
pub struct UsagePosting {
    /// On `usage`.
    pub offset: i64,
    /// Of its commit on the journal, and of its fact there.
    pub journal_offset: i64,
    pub journal_index: i32,
    pub posting: Posting,
}

/// What must be where, of a partition of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Postings at these offsets are on `usage`.
    pub usage: Range<i64>,
    /// And at these in ClickHouse.
    pub rows: Range<i64>,
    /// Behind it nothing is on `usage` as far as is known.
    pub projected: i64,
    /// Records of `usage` before it are in ClickHouse.
    pub inserted: i64,
}

/// What is not compared: what need not be there yet, and what nobody can understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Postings of the journal.
    pub not_projected: u64,
    /// Postings on `usage`.
    pub not_inserted: u64,
    /// Records on `usage` that are none of ours. The sink sets them aside, too; a posting among them is missing.
    pub foreign: u64,
}

/// What is compared: what the journal says must be on `usage` with what is there, and the same for ClickHouse.
#[derive(Debug, Clone, Copy)]
enum Side {
    OnUsage,
    Usage,
    InRows,
    Rows,
}

#[derive(Debug, Default)]
struct Sides {
    /// The first posting's offset on the journal.
    first: i64,
    sums: [Sum; 4],
}

/// The sums of the stretch that is being read.
#[derive(Debug)]
pub struct Sums {
    partition: i32,
    reach: Reach,
    tenancy: Tenancy,
    /// Of the stretch; `None` before the first tenure that was read.
    begin: Option<i64>,
    next: i64,
    postings: usize,
    sums: HashMap<Key, Sides>,
    /// The records of `usage`, by the ids of their postings.
    seen: HashMap<(i64, i32), u64>,
    hasher: RandomState,
    lag: Lag,
    findings: Findings,
}

impl Sums {
    pub fn new(partition: i32, reach: Reach) -> Self {
        Self {
            partition,
            reach,
            tenancy: Tenancy::VACANT,
            begin: None,
            next: 0,
            postings: 0,
            sums: HashMap::new(),
            seen: HashMap::new(),
            hasher: RandomState::new(),
            lag: Lag::default(),
            findings: Findings::default(),
        }
    }

    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Takes the next entry of the journal.
    pub fn take(&mut self, offset: i64, entry: &Entry) {
        let effective = self.tenancy.accept(offset, entry);
        // What was effective before the first tenure that was read is not known.
        if self.begin.is_none() && (offset == 0 || matches!(entry, Entry::OwnershipTaken(_))) {
            self.begin = Some(offset);
        }
        self.next = offset + 1;
        if let Entry::Commit(commit) = entry
            && effective
        {
            self.commit(offset, commit);
        }
    }

    fn commit(&mut self, offset: i64, commit: &Commit) {
        let Some(organization) = &commit.organization else { return };
        for fact in &commit.facts {
            let (model, cost, tokens) = match fact {
                Fact::AttemptEnded(posting) => (Some(&posting.model), posting.cost_pico_usd, posting.usage),
                Fact::OrphanPosted(orphan) => {
                    (Some(&orphan.posting.model), orphan.posting.cost_pico_usd, orphan.posting.usage)
                }
                // Nobody was called.
                Fact::RequestRefused(_) => (None, Some(PicoUsd::ZERO), TokenUsage::NOTHING),
                Fact::RequestAdmitted(_)
                | Fact::RequestRouted(_)
                | Fact::AttemptStarted(_)
                | Fact::AttemptProgressed(_)
                | Fact::RequestSettled(_)
                | Fact::CancelRequested(_)
                | Fact::RecordSkipped(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::CachePurged(_) => continue,
            };
            if offset >= self.reach.projected {
                self.lag.not_projected += 1;
                continue;
            }
            self.postings += 1;
            let key = Key { organization: organization.clone(), model: model.cloned(), hour: hour(commit.at) };
            let sides = self.sums.entry(key).or_insert_with(|| Sides { first: offset, ..Sides::default() });
            if self.reach.usage.contains(&offset) {
                sides.sums[Side::OnUsage as usize].add(cost, &tokens);
            }
            if self.reach.rows.contains(&offset) {
                sides.sums[Side::InRows as usize].add(cost, &tokens);
            }
        }
    }

    /// Whether the stretch is to be compared now.
    pub fn is_full(&self) -> bool {
        self.postings >= POSTINGS_MAX || self.sums.len() >= SUMS_MAX
    }

    /// The offsets of the journal that the stretch has.
    pub fn stretch(&self) -> Range<i64> {
        self.begin.unwrap_or(self.next)..self.next
    }

    /// Which of them must be on `usage`.
    pub fn of_usage(&self) -> Range<i64> {
        within(&self.stretch(), &self.reach.usage)
    }

    /// Which of them must be in ClickHouse.
    pub fn of_rows(&self) -> Range<i64> {
        within(&self.stretch(), &self.reach.rows)
    }

    /// Takes a record of `usage`; those of the stretch are to be given in the order of their offsets, others are left aside.
    pub fn usage(&mut self, record: &UsagePosting) {
        let UsagePosting { offset, journal_offset, journal_index, posting } = record;
        if !self.of_usage().contains(journal_offset) {
            return;
        }
        let tokens = classes(&posting.tokens);
        let key =
            Key { organization: posting.organization.clone(), model: posting.model.clone(), hour: hour(posting.at) };
        let digest = self.hasher.hash_one((&key, posting.at, posting.cost, tokens));
        let id = (*journal_offset, *journal_index);
        match self.seen.get(&id) {
            Some(seen) if *seen == digest => return,
            Some(_) => {
                let what = || {
                    format!("{}: posting {journal_offset}.{journal_index} comes again with other values", name(&key))
                };
                return self.violated(Topic::Usage, *offset, what);
            }
            None => {}
        }
        self.lag.not_inserted += u64::from(*offset >= self.reach.inserted);
        let is_strange = self.seen.len() >= STRANGE_MAX * POSTINGS_MAX
            || self.sums.len() >= STRANGE_MAX * SUMS_MAX && !self.sums.contains_key(&key);
        if is_strange {
            let what = || format!("{}: posting {journal_offset}.{journal_index} is not on the journal", name(&key));
            return self.violated(Topic::Usage, *offset, what);
        }
        self.seen.insert(id, digest);
        let sides = self.sums.entry(key).or_insert_with(|| Sides { first: *journal_offset, ..Sides::default() });
        sides.sums[Side::Usage as usize].add(posting.cost, &posting.tokens);
    }

    /// Takes a sum of ClickHouse over the rows of [`of_rows`](Self::of_rows), each once. `first` is its first row's offset on
    /// the journal.
    pub fn rows(&mut self, key: &Key, first: i64, sum: Sum) {
        match self.sums.get_mut(key) {
            Some(sides) => sides.sums[Side::Rows as usize] = sum,
            None => {
                self.findings.looked_at(Check::I5);
                let what =
                    || format!("{}: {}", name(key), different(["the journal", "ClickHouse"], &Sum::default(), &sum));
                self.violated(Topic::Journal, first, what);
            }
        }
    }

    /// Compares the sums of the stretch and begins the next one. What could not be read is left out.
    pub fn compare(&mut self, usage_was_read: bool, rows_were_read: bool) {
        let pairs = [
            (usage_was_read, [Side::OnUsage, Side::Usage], ["the journal", "usage"]),
            (rows_were_read, [Side::InRows, Side::Rows], ["the journal", "ClickHouse"]),
        ];
        let mut differing = Vec::new();
        for (key, sides) in std::mem::take(&mut self.sums) {
            let mut looked_at = false;
            for (_, [one, other], places) in pairs.iter().filter(|(was_read, ..)| *was_read) {
                let (one, other) = (sides.sums[*one as usize], sides.sums[*other as usize]);
                looked_at |= one.postings > 0 || other.postings > 0;
                if one != other {
                    differing.push((key.clone(), sides.first, different(*places, &one, &other)));
                }
            }
            if looked_at {
                self.findings.looked_at(Check::I5);
            }
        }
        differing.sort();
        for (key, first, how) in differing {
            self.violated(Topic::Journal, first, || format!("{}: {how}", name(&key)));
        }
        self.seen.clear();
        self.postings = 0;
        self.begin = self.begin.map(|_| self.next);
    }

    /// Notes something that is in a place and cannot be of the journal.
    pub fn stray(&mut self, topic: Topic, offset: i64, what: impl FnOnce() -> String) {
        self.violated(topic, offset, what);
    }

    pub fn finish(self) -> (Findings, Lag) {
        (self.findings, self.lag)
    }

    fn violated(&mut self, topic: Topic, offset: i64, what: impl FnOnce() -> String) {
        let place = Place { topic, partition: self.partition, offset };
        self.findings.violated(Check::I5, || Finding { place, request: None, what: what() });
    }
}

impl Sum {
    fn add(&mut self, cost: Option<PicoUsd>, tokens: &TokenUsage) {
        self.postings += 1;
        match cost {
            Some(cost) => self.cost = self.cost.saturating_add(cost.get()),
            None => self.unknown_cost += 1,
        }
        for ((sum, unknown), tokens) in self.tokens.iter_mut().zip(&mut self.unknown_tokens).zip(classes(tokens)) {
            match tokens {
                // As ClickHouse adds them up.
                Some(tokens) => *sum = sum.wrapping_add(tokens),
                None => *unknown += 1,
            }
        }
    }
}

impl Lag {
    /// The sum, where `other` is of another partition.
    pub fn add(&mut self, other: Self) {
        self.not_projected += other.not_projected;
        self.not_inserted += other.not_inserted;
        self.foreign += other.foreign;
    }
}

fn within(one: &Range<i64>, other: &Range<i64>) -> Range<i64> {
    one.start.max(other.start)..one.end.min(other.end)
}

fn hour(at: Timestamp) -> i64 {
    at.as_millis().div_euclid(HOUR_MS)
}

fn classes(tokens: &TokenUsage) -> [Option<u64>; CLASSES.len()] {
    let TokenUsage { input, cached_input, cache_write, output, reasoning } = *tokens;
    [input, cached_input, cache_write, output, reasoning]
}

fn name(key: &Key) -> String {
    let model = key.model.as_ref().map_or("no model", |model| model.as_str());
    let hour = Timestamp::from_millis(key.hour.saturating_mul(HOUR_MS));
    format!("{}, {model}, hour of {hour}", key.organization)
}

/// In what two places differ, and by what each has.
fn different(places: [&str; 2], one: &Sum, other: &Sum) -> String {
    let [first, second] = places;
    let mut text = format!("{first} and {second} differ: {} and {} postings", one.postings, other.postings);
    if one.cost != other.cost {
        // Infallible, as for each that follows: it is a string.
        let _ = write!(text, ", {} and {} USD", PicoUsd::new(one.cost), PicoUsd::new(other.cost));
    }
    if one.unknown_cost != other.unknown_cost {
        let _ = write!(text, ", {} and {} of unknown cost", one.unknown_cost, other.unknown_cost);
    }
    for (number, class) in CLASSES.iter().enumerate() {
        let (tokens, unknown) =
            ([one, other].map(|s| s.tokens[number]), [one, other].map(|s| s.unknown_tokens[number]));
        if tokens[0] != tokens[1] {
            let _ = write!(text, ", {} and {} {class} tokens", tokens[0], tokens[1]);
        }
        if unknown[0] != unknown[1] {
            let _ = write!(text, ", {} and {} without a count of {class} tokens", unknown[0], unknown[1]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::domain::{DeploymentId, RequestId};
    use crate::projection::usage::usage_of;
    use crate::records::journal::{
        AttemptEnded, InputKind, OrphanPosted, OwnershipTaken, RequestContext, RequestRefused,
    };
    use crate::records::{Outcome, UsageSource};

    const PARTITION: i32 = 3;
    const TOKENS: TokenUsage =
        TokenUsage { input: Some(10), cached_input: Some(4), cache_write: None, output: Some(20), reasoning: Some(0) };

    fn attempt(model: &str, cost: Option<i128>) -> AttemptEnded {
        AttemptEnded {
            attempt: 1,
            model: ModelName::parse(model).unwrap(),
            deployment: DeploymentId::parse("d").unwrap(),
            provider: "p".into(),
            tier: 1,
            simulated: false,
            outcome: Outcome::Completed,
            error_code: None,
            upstream_status: None,
            finish_reason: None,
            content_frames: 1,
            time_to_first_token_ms: None,
            duration_ms: None,
            usage: TOKENS,
            usage_source: UsageSource::Reported,
            price_version: 0,
            price_simulated: false,
            cost_pico_usd: cost.map(PicoUsd::new),
            booking: None,
            retry_after_ms: None,
            shortfall: None,
            saved: None,
            source: crate::records::journal::AttemptSource::Provider,
        }
    }

    fn ended(model: &str, cost: Option<i128>) -> Fact {
        Fact::AttemptEnded(Box::new(attempt(model, cost)))
    }

    fn refused() -> Fact {
        let (code, status) = ("model_not_found".into(), 404);
        Fact::RequestRefused(RequestRefused { code, status, told: None, features: None, limit: None })
    }

    fn taken() -> Entry {
        Entry::OwnershipTaken(OwnershipTaken { owner: "a".into(), at: Timestamp::default(), version: "0".into() })
    }

    fn commit(organization: &str, place: (i64, i64), hour: i64, facts: Vec<Fact>) -> Entry {
        let request = RequestContext::of_request(RequestId::parse("r").unwrap(), Timestamp::default());
        Entry::Commit(Commit {
            tenure: place.0,
            sequence: place.1,
            input: InputKind::Provider,
            source_offset: None,
            at: Timestamp::from_millis(hour * HOUR_MS + 5),
            control_offset: 0,
            organization: Some(OrganizationId::parse(organization).unwrap()),
            request: Some(Arc::new(request)),
            facts,
            health: Vec::new(),
        })
    }

    /// What stands in the three places.
    struct Places {
        journal: Vec<Entry>,
        usage: Vec<UsagePosting>,
        /// The rows as ClickHouse has them after merging, by the ids of their postings.
        rows: BTreeMap<(i64, i32), Posting>,
        reach: Reach,
    }

    impl Places {
        /// Two tenures, a commit that does not count, and every kind of posting, as the projection tells them.
        fn sound() -> Self {
            let orphan = OrphanPosted {
                journal_offset: 4,
                posting: Box::new(attempt("m", Some(7))),
                corrects_pico_usd: Some(PicoUsd::new(3)),
            };
            let journal = vec![
                taken(),
                commit("acme", (0, 0), 1, vec![ended("m", Some(10)), ended("n", Some(1))]),
                commit("acme", (0, 1), 1, vec![ended("m", None)]),
                taken(),
                commit("acme", (0, 2), 1, vec![ended("m", Some(7))]),
                commit("acme", (3, 0), 2, vec![Fact::OrphanPosted(orphan)]),
                commit("globex", (3, 1), 2, vec![refused()]),
                commit("globex", (3, 2), 3, vec![ended("m", Some(i128::from(i64::MAX)))]),
                commit("globex", (3, 3), 3, vec![ended("m", Some(i128::from(i64::MAX)))]),
            ];
            let (mut tenancy, mut usage) = (Tenancy::VACANT, Vec::new());
            for (offset, entry) in (0..).zip(&journal) {
                if let (true, Entry::Commit(commit)) = (tenancy.accept(offset, entry), entry) {
                    for record in usage_of(PARTITION, offset, commit) {
                        let posting = Posting {
                            organization: record.organization,
                            model: record.model,
                            at: record.at,
                            cost: record.cost_pico_usd,
                            tokens: record.usage,
                        };
                        let (journal_offset, journal_index) = (record.journal_offset, record.journal_index);
                        usage.push(UsagePosting { offset: usage.len() as i64, journal_offset, journal_index, posting });
                    }
                }
            }
            let rows = usage.iter().map(|u| ((u.journal_offset, u.journal_index), u.posting.clone())).collect();
            let end = journal.len() as i64;
            let reach = Reach { usage: 0..end, rows: 0..end, projected: end, inserted: end };
            Self { journal, usage, rows, reach }
        }

        /// Compared whenever so many entries were read.
        fn audit(&self, every: usize) -> (Findings, Lag) {
            let mut sums = Sums::new(PARTITION, self.reach.clone());
            for (offset, entry) in (0..).zip(&self.journal) {
                sums.take(offset, entry);
                if (offset as usize + 1).is_multiple_of(every) {
                    self.compare(&mut sums);
                }
            }
            self.compare(&mut sums);
            sums.finish()
        }

        fn compare(&self, sums: &mut Sums) {
            self.usage.iter().for_each(|record| sums.usage(record));
            let mut rows = BTreeMap::<Key, (i64, Sum)>::new();
            for ((offset, _), row) in self.rows.iter().filter(|((offset, _), _)| sums.of_rows().contains(offset)) {
                let hour = row.at.as_millis() / HOUR_MS;
                let key = Key { organization: row.organization.clone(), model: row.model.clone(), hour };
                rows.entry(key).or_insert((*offset, Sum::default())).1.add(row.cost, &row.tokens);
            }
            rows.iter().for_each(|(key, (first, sum))| sums.rows(key, *first, *sum));
            sums.compare(!sums.of_usage().is_empty(), !sums.of_rows().is_empty());
        }

        fn row(&mut self, offset: i64, index: i32) -> &mut Posting {
            self.rows.get_mut(&(offset, index)).unwrap()
        }
    }

    fn violations(findings: &Findings) -> Vec<String> {
        let seen = findings.of(Check::I5);
        assert_eq!(seen.first.len() as u64, seen.violations);
        seen.first.iter().map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
    }

    #[test]
    fn three_places_with_the_same_sums_hold_however_they_are_cut_into_stretches() {
        for every in 1..10 {
            let (findings, lag) = Places::sound().audit(every);
            assert_eq!(violations(&findings), Vec::<String>::new(), "{every}");
            assert!(findings.of(Check::I5).looked_at >= 5, "{every}");
            assert_eq!(lag, Lag::default(), "{every}");
        }
        assert_eq!(Places::sound().audit(100).0.of(Check::I5).looked_at, 5);
    }

    #[test]
    fn whatever_differs_in_one_place_is_found() {
        type Plant = (&'static str, fn(&mut Places), &'static [&'static str]);
        let plants: [Plant; 15] = [
            (
                "a lost usage record",
                |p| drop(p.usage.remove(0)),
                &["acme, m, hour of 1970-01-01T01:00:00Z: the journal and usage differ: 2 and 1 postings"],
            ),
            (
                "a cost that is a pico-dollar more on usage",
                |p| p.usage[0].posting.cost = Some(PicoUsd::new(11)),
                &["journal and usage differ: 2 and 2 postings, 0.00000000001 and 0.000000000011 USD"],
            ),
            (
                "an unknown cost that became zero",
                |p| p.usage[2].posting.cost = Some(PicoUsd::ZERO),
                &["journal and usage differ: 2 and 2 postings, 1 and 0 of unknown cost"],
            ),
            (
                "a posting that comes again with another cost",
                |p| {
                    let mut again = p.usage[0].clone();
                    again.posting.cost = None;
                    p.usage.push(again);
                },
                &["usage/3 offset 0: acme, m, hour of 1970-01-01T01:00:00Z: posting 1.0 comes again with other values"],
            ),
            (
                "a posting that comes again at another time",
                |p| {
                    let mut again = p.usage[0].clone();
                    again.posting.at = again.posting.at.plus(std::time::Duration::from_millis(1));
                    p.usage.push(again);
                },
                &["posting 1.0 comes again with other values"],
            ),
            (
                "a usage record too many",
                |p| {
                    let more = UsagePosting { journal_index: 9, ..p.usage[0].clone() };
                    p.usage.push(more);
                },
                &["journal and usage differ: 2 and 3 postings"],
            ),
            (
                "a usage record of a commit that does not count",
                |p| {
                    let more = UsagePosting { journal_offset: 4, journal_index: 0, ..p.usage[1].clone() };
                    p.usage.push(more);
                },
                &["acme, n, hour of 1970-01-01T01:00:00Z: the journal and usage differ: 1 and 2 postings"],
            ),
            (
                "a lost row",
                |p| drop(p.rows.remove(&(7, 0))),
                &["globex, m, hour of 1970-01-01T03:00:00Z: the journal and ClickHouse differ: 2 and 1 postings"],
            ),
            (
                "the only row of a sum is lost",
                |p| drop(p.rows.remove(&(6, 0))),
                &[
                    "globex, no model, hour of 1970-01-01T02:00:00Z: the journal and ClickHouse differ: 1 and 0 postings",
                ],
            ),
            (
                "a cost that is a pico-dollar less in ClickHouse",
                |p| p.row(7, 0).cost = Some(PicoUsd::new(i128::from(i64::MAX) - 1)),
                &["18446744.073709551614 and 18446744.073709551613 USD"],
            ),
            (
                "a row of another organization",
                |p| p.row(5, 0).organization = OrganizationId::parse("initech").unwrap(),
                &[
                    "journal/3 offset 5: initech, m, hour of 1970-01-01T02:00:00Z: the journal and ClickHouse differ: 0 and 1",
                    "acme, m, hour of 1970-01-01T02:00:00Z: the journal and ClickHouse differ: 1 and 0 postings",
                ],
            ),
            ("a row of another model", |p| p.row(5, 0).model = None, &["acme, no model", "acme, m"]),
            (
                "a row of another hour",
                |p| p.row(5, 0).at = Timestamp::from_millis(4 * HOUR_MS),
                &["hour of 1970-01-01T04:00:00Z", "hour of 1970-01-01T02:00:00Z"],
            ),
            (
                "tokens that were counted otherwise",
                |p| p.row(5, 0).tokens.reasoning = Some(1),
                &["1 and 1 postings, 0 and 1 reasoning tokens"],
            ),
            (
                "an unknown count that became zero",
                |p| p.row(5, 0).tokens.cache_write = Some(0),
                &["1 and 1 postings, 1 and 0 without a count of cache write tokens"],
            ),
        ];
        for (name, plant, says) in plants {
            for every in [1, 2, 100] {
                let mut places = Places::sound();
                plant(&mut places);
                let found = violations(&places.audit(every).0);
                assert_eq!(found.len(), says.len(), "{name}: {found:?}");
                let all_told = says.iter().all(|says| found.iter().any(|found| found.contains(says)));
                assert!(all_told || every < 100, "{name}: {found:?}");
            }
        }
    }

    #[test]
    fn what_may_be_is_no_violation() {
        type Allowed = (&'static str, fn(&mut Places), Lag);
        let none = Lag::default();
        let allowed: [Allowed; 6] = [
            (
                "records of usage that come again, and in another order",
                |p| {
                    let again = p.usage[2..].to_vec();
                    p.usage.splice(1..1, again);
                },
                none,
            ),
            (
                "what is not projected yet is nowhere",
                |p| {
                    p.reach = Reach { usage: 0..7, rows: 0..7, projected: 7, inserted: 9 };
                    p.usage.truncate(5);
                    p.rows.retain(|(offset, _), _| *offset < 7);
                },
                Lag { not_projected: 2, not_inserted: 0, foreign: 0 },
            ),
            (
                "a projection and a sink that are ahead of what they have committed",
                |p| p.reach = Reach { usage: 0..7, rows: 0..5, projected: 7, inserted: 3 },
                Lag { not_projected: 2, not_inserted: 2, foreign: 0 },
            ),
            (
                "what is not inserted yet is no row",
                |p| {
                    p.reach.rows = 0..5;
                    p.reach.inserted = 3;
                    p.rows.retain(|(offset, _), _| *offset < 5);
                },
                Lag { not_projected: 0, not_inserted: 4, foreign: 0 },
            ),
            (
                "usage whose beginning was cut",
                |p| {
                    p.reach.usage = 6..9;
                    p.usage.drain(..3);
                },
                none,
            ),
            (
                "nothing is projected",
                |p| {
                    p.reach = Reach::default();
                    p.usage.clear();
                    p.rows.clear();
                },
                Lag { not_projected: 7, not_inserted: 0, foreign: 0 },
            ),
        ];
        for (name, allow, expected) in allowed {
            for every in [1, 3, 100] {
                let mut places = Places::sound();
                allow(&mut places);
                let (findings, lag) = places.audit(every);
                assert_eq!((violations(&findings), lag), (Vec::new(), expected), "{name}");
            }
        }
    }

    #[test]
    fn a_place_that_could_not_be_read_is_not_compared() {
        for (usage, rows) in [(false, false), (true, false), (false, true)] {
            let places = Places { usage: Vec::new(), rows: BTreeMap::new(), ..Places::sound() };
            let mut sums = Sums::new(PARTITION, places.reach.clone());
            (0..).zip(&places.journal).for_each(|(offset, entry)| sums.take(offset, entry));
            sums.compare(usage, rows);
            let seen = sums.finish().0.of(Check::I5).clone();
            let expected = if usage || rows { 5 } else { 0 };
            assert_eq!((seen.looked_at, seen.violations), (expected, expected));
        }
    }

    #[test]
    fn a_range_begins_with_a_tenure() {
        let places = Places::sound();
        let mut sums = Sums::new(PARTITION, places.reach.clone());
        (2..).zip(&places.journal[2..]).for_each(|(offset, entry)| sums.take(offset, entry));
        assert_eq!(sums.stretch(), 3..9);
        places.compare(&mut sums);
        assert_eq!(violations(&sums.finish().0), Vec::<String>::new());
    }

    #[test]
    fn a_stretch_is_full_when_it_has_many_postings_or_sums() {
        let reach = Reach { usage: 0..i64::MAX, rows: 0..0, projected: i64::MAX, inserted: 0 };
        let mut sums = Sums::new(0, reach.clone());
        sums.take(0, &taken());
        let facts = vec![refused(); POSTINGS_MAX - 1];
        sums.take(1, &commit("acme", (0, 0), 1, facts));
        assert!(!sums.is_full());
        sums.take(2, &commit("acme", (0, 1), 1, vec![refused()]));
        assert!(sums.is_full());
        sums.compare(false, false);
        assert!(!sums.is_full() && sums.stretch().is_empty());
        for hour in 0..SUMS_MAX as i64 {
            assert!(!sums.is_full());
            sums.take(3 + hour, &commit("acme", (0, 2 + hour), hour, vec![refused()]));
        }
        assert!(sums.is_full());
    }
}
