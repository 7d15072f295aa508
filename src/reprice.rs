//! `tollstream reprice`: what the postings of the journal would have cost at other prices. Reads; writes nothing.
//!
//! A posting is priced from the usage that it recorded, at the price that the other catalogue has for the moment at which its
//! attempt began: the function that priced it in the first place, with other prices. Whatever is not known stays unknown and
//! is counted apart, never taken for zero.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::domain::{ModelName, OrganizationId, PicoUsd, RequestKey, Timestamp};
use crate::processor::key_of;
use crate::records::control::Model;
use crate::records::journal::{AttemptEnded, Commit, Entry, Fact};
use crate::topology::{Files, Problem, Seeds};

/// Most attempts of one partition that are remembered, for the moment at which they began and for corrections of their
/// postings. Beyond it the oldest are forgotten.
const ATTEMPTS_MAX: usize = 100_000;

/// Other prices, by model.
pub type Catalogue = BTreeMap<ModelName, Model>;

/// Reads a catalogue in the form of `topology/seed/models.toml`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn catalogue(text: &str) -> Result<Catalogue, Vec<Problem>> {
    const PATH: &str = "topology/seed/models.toml";
    let (mut files, mut problems) = (Files::default(), Vec::new());
    files.set(PATH, text);
    let models = Seeds::parse(&files, &mut problems).models;
    if models.is_empty() && problems.is_empty() {
        problems.push(Problem::new(PATH, "models", "there is none"));
    }
    if problems.is_empty() { Ok(models) } else { Err(problems) }
}

/// Which postings are priced anew: those of commits at or after `since` and before `until`.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub organization: Option<OrganizationId>,
}

/// Postings of one model of one organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub postings: u64,
    /// Postings with a recorded and a new cost; the two sums are of these alone.
    pub compared: u64,
    pub recorded: PicoUsd,
    pub repriced: PicoUsd,
    /// Postings whose input or output is not known.
    pub usage_unknown: u64,
    /// Postings for which the catalogue has no price: it lacks the deployment, or a price for that moment and size.
    pub without_price: u64,
    /// Corrections of a posting that was not read.
    pub without_corrected: u64,
    /// Postings that were priced anew, but had no cost.
    pub without_recorded: u64,
    /// The recorded cost of those that are not compared.
    pub recorded_not_compared: PicoUsd,
    /// Sums that do not fit.
    pub overflows: u64,
}

/// By organization and model.
pub type Report = BTreeMap<(OrganizationId, ModelName), Totals>;

/// Why a posting has no new cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unpriced {
    UsageUnknown,
    WithoutPrice,
    WithoutCorrected,
}

impl Totals {
    fn add(&mut self, recorded: Option<PicoUsd>, repriced: Result<PicoUsd, Unpriced>) {
        self.postings += 1;
        match (recorded, repriced) {
            (Some(recorded), Ok(repriced)) => {
                self.compared += 1;
                add(&mut self.recorded, recorded, &mut self.overflows);
                add(&mut self.repriced, repriced, &mut self.overflows);
            }
            (None, Ok(_)) => self.without_recorded += 1,
            (recorded, Err(why)) => {
                match why {
                    Unpriced::UsageUnknown => self.usage_unknown += 1,
                    Unpriced::WithoutPrice => self.without_price += 1,
                    Unpriced::WithoutCorrected => self.without_corrected += 1,
                }
                if let Some(recorded) = recorded {
                    add(&mut self.recorded_not_compared, recorded, &mut self.overflows);
                }
            }
        }
    }

    /// Adds those of another partition.
    pub fn merge(&mut self, other: &Self) {
        self.postings += other.postings;
        self.compared += other.compared;
        self.usage_unknown += other.usage_unknown;
        self.without_price += other.without_price;
        self.without_corrected += other.without_corrected;
        self.without_recorded += other.without_recorded;
        self.overflows += other.overflows;
        add(&mut self.recorded, other.recorded, &mut self.overflows);
        add(&mut self.repriced, other.repriced, &mut self.overflows);
        add(&mut self.recorded_not_compared, other.recorded_not_compared, &mut self.overflows);
    }

    /// New less recorded cost.
    pub fn difference(&self) -> PicoUsd {
        PicoUsd::new(self.repriced.get().saturating_sub(self.recorded.get()))
    }
}

fn add(sum: &mut PicoUsd, amount: PicoUsd, overflows: &mut u64) {
    match sum.checked_add(amount) {
        Some(all) => *sum = all,
        None => *overflows += 1,
    }
}

/// An attempt as it was begun, and what it was posted with.
#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Timestamp,
    /// The new cost of its first posting.
    posted: Option<Result<PicoUsd, Unpriced>>,
}

/// Prices the postings of one partition anew.
#[derive(Debug)]
pub struct Repricing<'a> {
    catalogue: &'a Catalogue,
    scope: &'a Scope,
    attempts: HashMap<(RequestKey, u32), Begun>,
    /// In the order in which they began.
    oldest: VecDeque<(RequestKey, u32)>,
    report: Report,
}

impl<'a> Repricing<'a> {
    pub fn new(catalogue: &'a Catalogue, scope: &'a Scope) -> Self {
        let (attempts, oldest, report) = (HashMap::new(), VecDeque::new(), Report::new());
        Self { catalogue, scope, attempts, oldest, report }
    }

    /// Takes the next entry, and whether it counts.
    pub fn take(&mut self, entry: &Entry, counts: bool) {
        let Entry::Commit(commit) = entry else { return };
        let (true, Some(organization), Some(request)) = (counts, &commit.organization, &commit.request) else { return };
        if self.scope.organization.as_ref().is_some_and(|wanted| wanted != organization) {
            return;
        }
        let key = key_of(organization, &request.request_id);
        for fact in &commit.facts {
            match fact {
                Fact::AttemptStarted(started) => self.begun((key.clone(), started.attempt), commit.at),
                Fact::AttemptEnded(ended) => {
                    let attempt = (key.clone(), ended.attempt);
                    let repriced = self.price(&attempt, commit, ended);
                    if let Some(begun) = self.attempts.get_mut(&attempt) {
                        begun.posted = Some(repriced);
                    }
                    self.post(commit, organization, ended, repriced);
                }
                Fact::OrphanPosted(orphan) => {
                    let posting = &orphan.posting;
                    let attempt = (key.clone(), posting.attempt);
                    let whole = self.price(&attempt, commit, posting);
                    // A correction has what goes beyond the posting before it, at the new prices as at the old ones.
                    let repriced = match orphan.corrects_pico_usd {
                        None => whole,
                        Some(_) => self.beyond(&attempt, whole),
                    };
                    self.post(commit, organization, posting, repriced);
                }
                Fact::RequestAdmitted(_)
                | Fact::RequestRefused(_)
                | Fact::RequestRouted(_)
                | Fact::RequestSettled(_)
                | Fact::CancelRequested(_)
                | Fact::RecordSkipped(_)
                | Fact::AttemptProgressed(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::CachePurged(_) => {}
            }
        }
    }

    pub fn finish(self) -> Report {
        self.report
    }

    fn begun(&mut self, attempt: (RequestKey, u32), at: Timestamp) {
        if self.attempts.insert(attempt.clone(), Begun { at, posted: None }).is_none() {
            self.oldest.push_back(attempt);
        }
        while self.oldest.len() > ATTEMPTS_MAX {
            if let Some(oldest) = self.oldest.pop_front() {
                self.attempts.remove(&oldest);
            }
        }
    }

    /// The new cost of what a posting used. An attempt whose beginning was not read began as long before its posting as it
    /// is said to have taken.
    fn price(&self, attempt: &(RequestKey, u32), commit: &Commit, posting: &AttemptEnded) -> Result<PicoUsd, Unpriced> {
        let took = Duration::from_millis(posting.duration_ms.unwrap_or(0));
        let before = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
        let supposed = || Timestamp::from_millis(commit.at.as_millis().saturating_sub(before));
        let began = self.attempts.get(attempt).map_or_else(supposed, |begun| begun.at);
        if posting.usage.input.is_none() || posting.usage.output.is_none() {
            return Err(Unpriced::UsageUnknown);
        }
        let model = self.catalogue.get(&posting.model);
        let deployment = model.and_then(|model| model.deployment(&posting.deployment));
        let price = deployment.and_then(|d| d.price_at(began, posting.usage.total_input()));
        price.and_then(|entry| entry.price().cost(&posting.usage)).ok_or(Unpriced::WithoutPrice)
    }

    fn beyond(&self, attempt: &(RequestKey, u32), whole: Result<PicoUsd, Unpriced>) -> Result<PicoUsd, Unpriced> {
        let before = self.attempts.get(attempt).and_then(|begun| begun.posted).ok_or(Unpriced::WithoutCorrected)??;
        Ok(PicoUsd::new(whole?.get().saturating_sub(before.get())))
    }

    fn post(
        &mut self,
        commit: &Commit,
        organization: &OrganizationId,
        posting: &AttemptEnded,
        repriced: Result<PicoUsd, Unpriced>,
    ) {
        let Scope { since, until, .. } = *self.scope;
        if since.is_some_and(|since| commit.at < since) || until.is_some_and(|until| commit.at >= until) {
            return;
        }
        let totals = self.report.entry((organization.clone(), posting.model.clone())).or_default();
        totals.add(posting.cost_pico_usd, repriced);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::TokenUsage;
    use crate::records::journal::{AttemptStarted, InputKind, OrphanPosted, RequestContext};
    use crate::records::{Outcome, UsageSource};

    /// One dollar for a million input tokens and two for output until 2026, then ten times as much; and a deployment with a
    /// price from 2026 on alone.
    const PRICES: &str = r#"
        [[models]]
        name = "m"
        tier = 2
        owned_by = "o"
        context_window = 100
        max_output_tokens = 100
        created = "2024-01-01"
        [[models.deployments]]
        id = "d"
        provider = "p"
        upstream_model = "m"
        base_url = "https://example.com/v1"
        region = "r"
        credential = "none"
        [[models.deployments.prices]]
        effective_from = "2024-01-01T00:00:00Z"
        input = "1"
        output = "2"
        simulated = true
        [[models.deployments.prices]]
        effective_from = "2026-01-01T00:00:00Z"
        input = "10"
        output = "20"
        simulated = true
        [[models.deployments]]
        id = "late"
        provider = "p"
        upstream_model = "m"
        base_url = "https://example.com/v1"
        region = "r"
        credential = "none"
        [[models.deployments.prices]]
        effective_from = "2026-01-01T00:00:00Z"
        input = "1"
        output = "1"
        simulated = true
    "#;

    const YEAR_2026_MS: i64 = 1_767_225_600_000;

    fn commit(at: i64, id: &str, fact: Fact) -> Entry {
        let at = Timestamp::from_millis(at);
        Entry::Commit(Commit {
            tenure: 0,
            sequence: 0,
            input: InputKind::Provider,
            source_offset: None,
            at,
            control_offset: 0,
            organization: Some("acme".parse().unwrap()),
            request: Some(Arc::new(RequestContext::of_request(id.parse().unwrap(), at))),
            facts: vec![fact],
            health: Vec::new(),
        })
    }

    fn started(at: i64, id: &str, deployment: &str) -> Entry {
        commit(
            at,
            id,
            Fact::AttemptStarted(AttemptStarted {
                attempt: 1,
                model: "m".parse().unwrap(),
                deployment: deployment.parse().unwrap(),
                provider: "p".into(),
                price_version: 0,
                reservation: None,
                limits: None,
                delay_ms: 0,
                shared_with: None,
                source: crate::records::journal::AttemptSource::Provider,
            }),
        )
    }

    /// A posting of an attempt with 1,000 input tokens, so many output tokens, and this recorded cost.
    fn posting(deployment: &str, output: Option<u64>, cost: Option<i128>) -> AttemptEnded {
        AttemptEnded {
            attempt: 1,
            model: "m".parse().unwrap(),
            deployment: deployment.parse().unwrap(),
            provider: "p".into(),
            tier: 2,
            simulated: false,
            outcome: Outcome::Completed,
            error_code: None,
            upstream_status: None,
            finish_reason: None,
            content_frames: 0,
            time_to_first_token_ms: None,
            duration_ms: Some(1_000),
            usage: TokenUsage { input: Some(1_000), output, ..TokenUsage::default() },
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

    fn ended(at: i64, id: &str, posting: AttemptEnded) -> Entry {
        commit(at, id, Fact::AttemptEnded(Box::new(posting)))
    }

    fn orphan(at: i64, id: &str, posting: AttemptEnded, corrects: Option<i128>) -> Entry {
        let corrects_pico_usd = corrects.map(PicoUsd::new);
        commit(
            at,
            id,
            Fact::OrphanPosted(OrphanPosted { journal_offset: 0, posting: Box::new(posting), corrects_pico_usd }),
        )
    }

    fn repriced(scope: &Scope, log: &[(Entry, bool)]) -> Totals {
        let catalogue = catalogue(PRICES).unwrap();
        let mut repricing = Repricing::new(&catalogue, scope);
        log.iter().for_each(|(entry, counts)| repricing.take(entry, *counts));
        let report = repricing.finish();
        assert!(report.len() <= 1, "{report:?}");
        report.into_values().next().unwrap_or_default()
    }

    const MICRO: i128 = 1_000_000;

    #[test]
    fn postings_are_priced_anew_at_the_price_of_the_moment_at_which_they_began() {
        let (before, after) = (YEAR_2026_MS - 500, YEAR_2026_MS + 500);
        let recorded = Some(7 * MICRO);
        let whole = |cost: i128| Totals {
            postings: 1,
            compared: 1,
            recorded: PicoUsd::new(7 * MICRO),
            repriced: PicoUsd::new(cost),
            ..Totals::default()
        };
        let one = |began: Option<i64>, at: i64, entry: &dyn Fn(i64) -> Entry| {
            let began = began.map(|began| (started(began, "r", "d"), true));
            repriced(&Scope::default(), &began.into_iter().chain([(entry(at), true)]).collect::<Vec<_>>())
        };
        let ends = |at: i64| ended(at, "r", posting("d", Some(100), recorded));
        assert_eq!(one(Some(before), after, &ends), whole(1_200 * MICRO), "at the old price");
        assert_eq!(one(Some(after), after, &ends), whole(12_000 * MICRO), "at the new one");
        assert_eq!(one(None, after, &ends), whole(1_200 * MICRO), "began a second before its end");
        let orphaned = |at: i64| orphan(at, "r", posting("d", Some(100), recorded), None);
        assert_eq!(one(Some(before), after, &orphaned), whole(1_200 * MICRO), "an orphan is a posting");
    }

    #[test]
    fn a_correction_has_what_goes_beyond_the_posting_before_it() {
        let at = YEAR_2026_MS - 500;
        let log = [
            (started(at, "r", "d"), true),
            (ended(at, "r", posting("d", Some(50), Some(5 * MICRO))), true),
            (orphan(at, "r", posting("d", Some(100), Some(2 * MICRO)), Some(5 * MICRO)), true),
        ];
        let all = repriced(&Scope::default(), &log);
        assert_eq!((all.postings, all.compared), (2, 2));
        assert_eq!(all.recorded, PicoUsd::new(7 * MICRO));
        assert_eq!(all.repriced, PicoUsd::new(1_200 * MICRO), "both together are the whole attempt");
        let alone = repriced(&Scope::default(), &log[2..]);
        assert_eq!((alone.without_corrected, alone.compared), (1, 0));
    }

    #[test]
    fn what_is_not_known_is_counted_apart_and_never_zero() {
        let at = YEAR_2026_MS - 500;
        let one = |posting: AttemptEnded| {
            let deployment = posting.deployment.to_string();
            repriced(&Scope::default(), &[(started(at, "r", &deployment), true), (ended(at, "r", posting), true)])
        };
        let apart = Totals { postings: 1, recorded_not_compared: PicoUsd::new(MICRO), ..Totals::default() };
        let table = [
            (posting("d", None, Some(MICRO)), Totals { usage_unknown: 1, ..apart }),
            (posting("gone", Some(1), Some(MICRO)), Totals { without_price: 1, ..apart }),
            (posting("late", Some(1), Some(MICRO)), Totals { without_price: 1, ..apart }),
            (posting("d", Some(1), None), Totals { postings: 1, without_recorded: 1, ..Totals::default() }),
            (posting("d", None, None), Totals { postings: 1, usage_unknown: 1, ..Totals::default() }),
        ];
        for (posting, expected) in table {
            assert_eq!(one(posting.clone()), expected, "{posting:?}");
        }
        let unknown_model = AttemptEnded { model: "x".parse().unwrap(), ..posting("d", Some(1), Some(MICRO)) };
        assert_eq!(one(unknown_model).without_price, 1);
    }

    #[test]
    fn only_what_counts_and_is_in_the_scope_is_added() {
        let at = YEAR_2026_MS;
        let log = [
            (ended(at, "r1", posting("d", Some(1), Some(1))), true),
            (ended(at, "r2", posting("d", Some(1), Some(1))), false),
            (ended(at + 10, "r3", posting("d", Some(1), Some(1))), true),
        ];
        let postings = |scope: Scope| repriced(&scope, &log).postings;
        let moment = |ms| Some(Timestamp::from_millis(ms));
        assert_eq!(postings(Scope::default()), 2);
        assert_eq!(postings(Scope { since: moment(at + 1), ..Scope::default() }), 1);
        assert_eq!(postings(Scope { until: moment(at + 10), ..Scope::default() }), 1);
        assert_eq!(postings(Scope { organization: Some("globex".parse().unwrap()), ..Scope::default() }), 0);
    }

    #[test]
    fn sums_beyond_a_long_are_exact_and_what_does_not_fit_is_counted() {
        let mut totals = Totals::default();
        (0..3).for_each(|_| totals.add(Some(PicoUsd::new(i64::MAX.into())), Ok(PicoUsd::ZERO)));
        assert_eq!(totals.recorded, PicoUsd::new(3 * i128::from(i64::MAX)));
        assert_eq!(totals.difference(), PicoUsd::new(-3 * i128::from(i64::MAX)));
        totals.add(Some(PicoUsd::new(i128::MAX)), Ok(PicoUsd::ZERO));
        assert_eq!(totals.overflows, 1);
    }

    #[test]
    fn the_attempts_that_are_remembered_are_bounded() {
        let catalogue = Catalogue::new();
        let scope = Scope::default();
        let mut repricing = Repricing::new(&catalogue, &scope);
        let key = |number: usize| (key_of(&"acme".parse().unwrap(), &format!("r{number}").parse().unwrap()), 1);
        (0..ATTEMPTS_MAX + 2).for_each(|number| repricing.begun(key(number), Timestamp::default()));
        assert_eq!((repricing.attempts.len(), repricing.oldest.len()), (ATTEMPTS_MAX, ATTEMPTS_MAX));
        assert!(!repricing.attempts.contains_key(&key(1)) && repricing.attempts.contains_key(&key(2)));
    }

    #[test]
    fn prices_that_are_wrong_say_where() {
        let wrong = PRICES.replacen("input = \"1\"", "input = \"one\"", 1);
        let problems = catalogue(&wrong).unwrap_err();
        assert!(problems.iter().any(|problem| problem.item.contains("models.m")), "{problems:?}");
        assert!(!catalogue("").unwrap_err().is_empty());
    }
}
