//! The money of one partition of the journal, held against control and against itself: I6 (what is taken of a budget and of
//! the requests at a time), I7 (reservations), I9 (deadlines), and decisions made again.
//!
//! The books that are kept here know nothing of `processor::ledger`: the fold is compared with them at the end.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Check;
use crate::control::rules::Rules;
use crate::control::terms::Terms;
use crate::domain::{KeyId, OrganizationId, Periods, PicoUsd, RequestKey, Timestamp};
use crate::processor::State;
use crate::processor::ledger::{ESTIMATES_MAX, KEY_KEPT};
use crate::processor::redecide::{Again, redecide};
use crate::records::journal::{
    Account, AttemptEnded, AttemptStarted, Booking, Commit, Fact, OrphanPosted, Reservation,
};
use crate::records::{Outcome, UsageSource};

/// What was found: which check, and what is wrong.
pub type Found = (Check, String);

/// An account of an organization, or of a key for it.
type Holder = (OrganizationId, Option<KeyId>);

/// When a period began, and what is posted in it.
type Since = (Timestamp, PicoUsd);

/// An interrupted attempt that is posted with an estimate.
#[derive(Debug)]
struct Estimated {
    key: RequestKey,
    attempt: u32,
    cost: PicoUsd,
    reservation: Reservation,
}

/// Shortest day and month of a calendar: a period that begins sooner after another is still that one.
const DAY_MIN: Duration = Duration::from_secs(20 * 3_600);
const MONTH_MIN: Duration = Duration::from_secs(27 * 24 * 3_600);

/// What an account has taken.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    reserved: PicoUsd,
    day: Since,
    month: Since,
}

impl Taken {
    /// Posted in the day or month that begins then, or in the one that has begun already and is not over.
    fn since((begun, posted): Since, begin: Timestamp, shortest: Duration) -> Since {
        if begin.since(begun) >= shortest { (begin, PicoUsd::ZERO) } else { (begun, posted) }
    }

    fn post(&mut self, booking: &Booking, cost: PicoUsd) {
        let Periods { day, month } = booking.periods;
        for (period, begin, shortest) in [(&mut self.day, day, DAY_MIN), (&mut self.month, month, MONTH_MIN)] {
            *period = Self::since(*period, begin, shortest);
            period.1 = period.1.saturating_add(cost);
        }
    }
}

/// The books.
#[derive(Debug, Default)]
pub struct Money {
    rules: Rules,
    redecides: bool,
    taken: HashMap<Holder, Taken>,
    open: HashMap<OrganizationId, u64>,
    reserved: HashMap<RequestKey, (u32, Reservation)>,
    deadlines: HashMap<RequestKey, Timestamp>,
    estimates: Estimates,
    /// Commits that cannot be decided again, since their reason is in content.
    pub not_on_the_journal: u64,
}

/// What is looked at, and what is found.
#[derive(Debug, Default)]
pub struct Look {
    pub looked_at: Vec<Check>,
    pub found: Vec<Found>,
}

impl Look {
    fn at(&mut self, check: Check, problem: Option<String>) {
        self.looked_at.push(check);
        self.found.extend(problem.map(|problem| (check, problem)));
    }
}

impl Money {
    pub fn new(rules: Rules, redecides: bool) -> Self {
        Self { rules, redecides, ..Self::default() }
    }

    /// Takes an effective commit; `state` is the fold of everything before it.
    pub fn take(&mut self, state: &State, commit: &Commit) -> Look {
        let mut look = Look::default();
        let tables = self.rules.at(commit.control_offset);
        if self.redecides {
            match redecide(state, commit, tables) {
                Again::Same => look.at(Check::Redecided, None),
                Again::NotOnTheJournal => self.not_on_the_journal += 1,
                Again::Differs(how) => look.at(Check::Redecided, Some(how)),
            }
        }
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return look };
        let key = RequestKey { organization: organization.clone(), request: request.request_id.clone() };
        let terms = tables.terms(organization, request.key_id.as_ref());
        let overdrawn = commit.facts.iter().find_map(|fact| match fact {
            Fact::Overdrawn(overdrawn) => Some(overdrawn.amount_pico_usd),
            _ => None,
        });
        let of = Of { key: &key, key_id: request.key_id.as_ref(), at: commit.at, terms: terms.as_ref() };
        for fact in &commit.facts {
            match fact {
                Fact::RequestAdmitted(admitted) => {
                    self.deadlines.insert(key.clone(), admitted.deadline_at);
                    let open = self.open.entry(organization.clone()).or_default();
                    *open += 1;
                    let most = terms.as_ref().and_then(|terms| terms.limits.concurrent_requests);
                    if let Some(most) = most {
                        look.at(Check::I6, (*open > most).then(|| format!("{open} requests are open; {most} may be")));
                    }
                }
                Fact::AttemptStarted(started) => {
                    started_at(&mut self.taken, &mut self.reserved, &of, started, &mut look)
                }
                Fact::AttemptEnded(posting) => {
                    let reservation = self.reserved.remove(&key);
                    if let Some(booking) = &posting.booking {
                        self.estimates.keep(&key, posting, reservation.as_ref());
                        look.at(Check::I7, release(&mut self.taken, &of, posting, reservation, overdrawn));
                        post(&mut self.taken, &of, booking, posting);
                        look.at(Check::I6, periods(&of, booking));
                    }
                }
                Fact::OrphanPosted(orphan) => {
                    if let Some(booking) = &orphan.posting.booking {
                        let open = self.reserved.get(&key);
                        look.at(Check::I7, self.estimates.corrected(&key, orphan, open, overdrawn));
                        post(&mut self.taken, &of, booking, &orphan.posting);
                        look.at(Check::I6, periods(&of, booking));
                    }
                }
                Fact::RequestSettled(_) => {
                    if let Some((attempt, _)) = self.reserved.remove(&key) {
                        look.at(
                            Check::I7,
                            Some(format!("settled; the reservation of attempt {attempt} is not released")),
                        );
                    }
                    self.deadlines.remove(&key);
                    if let Some(open) = self.open.get_mut(organization) {
                        *open = open.saturating_sub(1);
                    }
                }
                _ => {}
            }
            if let (Fact::AttemptStarted(started), Some(deadline)) = (fact, self.deadlines.get(&key)) {
                let late = (commit.at >= *deadline).then(|| {
                    format!("attempt {} begins at {}; the deadline was {deadline}", started.attempt, commit.at)
                });
                look.at(Check::I9, late);
            }
        }
        look
    }

    /// Compares the fold with the books: its accounts, what is reserved, what is open.
    pub fn differences(&self, state: &State) -> Vec<Found> {
        let mut found = Vec::new();
        for ((organization, key), taken) in &self.taken {
            let books = state.ledger.books(organization);
            let balance = key.as_ref().map_or_else(|| books.balance(), |key| books.key(key).balance());
            let folded = (balance.reserved, balance.posted.day, balance.posted.month);
            // What a key posted long ago counts in no period; the fold forgets it.
            let is_forgotten = key.is_some() && taken.month.0.plus(KEY_KEPT) <= state.clock;
            let expected = match is_forgotten && folded.2 == PicoUsd::ZERO {
                true => (taken.reserved, PicoUsd::ZERO, PicoUsd::ZERO),
                false => (taken.reserved, taken.day.1, taken.month.1),
            };
            if folded != expected {
                let who =
                    key.as_ref().map_or_else(|| organization.to_string(), |key| format!("{organization}, key {key}"));
                found.push((Check::I12, format!("the accounts of {who} have {expected:?}; the fold has {folded:?}")));
            }
        }
        let outstanding: PicoUsd = self.reserved.values().map(|(_, reservation)| reservation.amount_pico_usd).sum();
        let folded: PicoUsd = state.ledger.organizations().map(|(_, books)| books.balance().reserved).sum();
        if outstanding != folded {
            found.push((Check::I7, format!("{outstanding} USD are reserved by open attempts; the fold has {folded}")));
        }
        found
    }
}

/// What interrupted attempts are posted with, when that is an estimate; the oldest are forgotten first, as the fold does.
#[derive(Debug, Default)]
struct Estimates(VecDeque<Estimated>);

impl Estimates {
    fn keep(&mut self, key: &RequestKey, posting: &AttemptEnded, held: Option<&(u32, Reservation)>) {
        if let (Outcome::Interrupted, UsageSource::Estimated, Some(cost), Some((attempt, reservation))) =
            (posting.outcome, posting.usage_source, posting.cost_pico_usd, held)
        {
            let (key, attempt, reservation) = (key.clone(), *attempt, reservation.clone());
            self.0.push_back(Estimated { key, attempt, cost, reservation });
            if self.0.len() > ESTIMATES_MAX {
                self.0.pop_front();
            }
        }
    }

    /// I7: the late end of a call makes of its estimate what it came to, on the same accounts, and says what goes beyond its
    /// reservation; `open` is that of the request's open attempt.
    fn corrected(
        &mut self,
        key: &RequestKey,
        orphan: &OrphanPosted,
        open: Option<&(u32, Reservation)>,
        overdrawn: Option<PicoUsd>,
    ) -> Option<String> {
        let attempt = orphan.posting.attempt;
        let known = self.0.iter().position(|of| of.attempt == attempt && of.key == *key);
        let known = known.and_then(|index| self.0.remove(index));
        let estimate = known.as_ref().map(|known| known.cost);
        if orphan.corrects_pico_usd != estimate {
            let corrects = orphan.corrects_pico_usd;
            return Some(format!("attempt {attempt} is estimated at {estimate:?}; its late end corrects {corrects:?}"));
        }
        let open = open.filter(|(open, _)| *open == attempt).map(|(_, reservation)| reservation);
        let reservation = known.as_ref().map(|known| &known.reservation).or(open)?;
        if orphan.posting.booking.as_ref().is_some_and(|booking| booking.accounts != reservation.accounts) {
            return Some(format!(
                "the late end of attempt {attempt} is posted on other accounts than it was reserved on"
            ));
        }
        let posted = estimate.unwrap_or(PicoUsd::ZERO);
        let all = posted.saturating_add(orphan.posting.cost_pico_usd?);
        let beyond = |posted: PicoUsd| posted.saturating_sub(reservation.amount_pico_usd).max(PicoUsd::ZERO);
        let expected = beyond(all).saturating_sub(beyond(posted));
        let expected = (expected > PicoUsd::ZERO).then_some(expected);
        (expected != overdrawn)
            .then(|| format!("attempt {attempt} is overdrawn by {expected:?}; the fact says {overdrawn:?}"))
    }
}

/// Of whose commit something is.
struct Of<'a> {
    key: &'a RequestKey,
    key_id: Option<&'a KeyId>,
    at: Timestamp,
    terms: Option<&'a Terms<'a>>,
}

impl Of<'_> {
    fn holder(&self, account: Account) -> Option<Holder> {
        match account {
            Account::Organization => Some((self.key.organization.clone(), None)),
            Account::Key => Some((self.key.organization.clone(), Some(self.key_id?.clone()))),
            Account::Unknown => None,
        }
    }
}

fn started_at(
    taken: &mut HashMap<Holder, Taken>,
    reserved: &mut HashMap<RequestKey, (u32, Reservation)>,
    of: &Of<'_>,
    started: &AttemptStarted,
    look: &mut Look,
) {
    let Some(reservation) = &started.reservation else { return };
    for account in &reservation.accounts {
        if let Some(holder) = of.holder(*account) {
            let taken = taken.entry(holder).or_default();
            taken.reserved = taken.reserved.saturating_add(reservation.amount_pico_usd);
        }
    }
    let former = reserved.insert(of.key.clone(), (started.attempt, reservation.clone()));
    let twice =
        former.map(|(former, _)| format!("attempt {} reserves; attempt {former} is not released", started.attempt));
    look.at(Check::I7, twice);
    let Some(terms) = of.terms else {
        return look.at(Check::I6, Some("control has no such organization at that offset".to_owned()));
    };
    let periods = terms.calendar.periods(of.at);
    for (account, spend) in [(Account::Organization, terms.spend), (Account::Key, terms.key_spend())] {
        let limits = [(spend.day, periods.day, DAY_MIN, "day"), (spend.month, periods.month, MONTH_MIN, "month")];
        for (limit, begin, shortest, period) in limits {
            let Some(limit) = limit else { continue };
            let problem = match of.holder(account).filter(|_| reservation.accounts.contains(&account)) {
                None => {
                    Some(format!("nothing is reserved on the {account:?} account, which has a budget of the {period}"))
                }
                Some(holder) => {
                    let taken = taken.get(&holder).copied().unwrap_or_default();
                    let posted = if period == "day" { taken.day } else { taken.month };
                    let sum = Taken::since(posted, begin, shortest).1.saturating_add(taken.reserved);
                    (sum > limit).then(|| format!("{sum} USD of the {period}'s {limit} are taken on {account:?}"))
                }
            };
            look.at(Check::I6, problem);
        }
    }
}

/// I7: the posting releases the reservation of its own attempt, on the same accounts, and says what goes beyond it.
fn release(
    taken: &mut HashMap<Holder, Taken>,
    of: &Of<'_>,
    posting: &AttemptEnded,
    reservation: Option<(u32, Reservation)>,
    overdrawn: Option<PicoUsd>,
) -> Option<String> {
    let attempt = posting.attempt;
    if posting.source.is_served() {
        let is_free = posting.cost_pico_usd == Some(PicoUsd::ZERO) && reservation.is_none();
        return (!is_free)
            .then(|| format!("attempt {attempt} called nobody, and something was reserved or posted for it"));
    }
    let Some((reserved, reservation)) = reservation else {
        return Some(format!("attempt {attempt} is posted, and nothing was reserved for it"));
    };
    for account in &reservation.accounts {
        if let Some(holder) = of.holder(*account) {
            let taken = taken.entry(holder).or_default();
            taken.reserved = taken.reserved.saturating_sub(reservation.amount_pico_usd);
        }
    }
    if reserved != attempt {
        return Some(format!("attempt {attempt} is posted; the reservation is of attempt {reserved}"));
    }
    if posting.booking.as_ref().is_some_and(|booking| booking.accounts != reservation.accounts) {
        return Some(format!("attempt {attempt} is posted on other accounts than it was reserved on"));
    }
    let Some(cost) = posting.cost_pico_usd else {
        return Some(format!("attempt {attempt} is posted without a cost"));
    };
    let beyond = cost.saturating_sub(reservation.amount_pico_usd);
    let expected = (beyond > PicoUsd::ZERO).then_some(beyond);
    (expected != overdrawn)
        .then(|| format!("attempt {attempt} is overdrawn by {expected:?}; the fact says {overdrawn:?}"))
}

fn post(taken: &mut HashMap<Holder, Taken>, of: &Of<'_>, booking: &Booking, posting: &AttemptEnded) {
    let Some(cost) = posting.cost_pico_usd else { return };
    for account in &booking.accounts {
        if let Some(holder) = of.holder(*account) {
            taken.entry(holder).or_default().post(booking, cost);
        }
    }
}

/// I6: what is posted counts in the periods of the plan's calendar.
fn periods(of: &Of<'_>, booking: &Booking) -> Option<String> {
    let expected = of.terms.map_or_else(Default::default, |terms| terms.calendar.periods(of.at));
    let is_known = of.terms.is_some();
    (is_known && expected != booking.periods).then(|| {
        let Booking { periods, .. } = booking;
        format!(
            "posted in the periods of {} and {}; those of {} and {} had begun",
            periods.day, periods.month, expected.day, expected.month
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::RandomState;
    use std::time::Duration;

    use super::*;
    use crate::audit::frames::{Begins, Window};
    use crate::audit::journal::{Journal, Settings};
    use crate::control::Tables;
    use crate::processor::histories::with_a_tight_plan;
    use crate::processor::inference::AttemptEnd;
    use crate::processor::tenure::{Circumstances, Tenure};
    use crate::processor::tests::{BOUNDS, at, ended as report_of, failed, hello, reported, tables};
    use crate::processor::{Capacity, Input, content};
    use crate::provider::{FailureClass, Summary};
    use crate::records::journal::{Entry, InputKind, Overdrawn, OwnershipTaken, RecordSkipped};
    use crate::records::requests::Chat;

    /// The first moment of a day of the plan.
    const BEGIN: i64 = 1_701_399_600_000;

    /// A fallback, an answer on the key's account, an overdraft, and a request that is still open.
    fn commits(tables: &Tables) -> Vec<Commit> {
        let (mut tenure, mut commits) = (Tenure::begin(0, State::default()), Vec::new());
        let mut decide = |input: &Input<'_>| {
            let with = Circumstances {
                at: at(BEGIN),
                control: tables,
                capacity: Capacity::Free,
                bounds: &BOUNDS,
                health: crate::processor::health::Health::Unknown,
            };
            commits.extend(tenure.decide(input, with));
        };
        let ask = |id: &str, model: &str, source_offset, decide: &mut dyn FnMut(&Input<'_>)| {
            let chat = Chat { request_id: id.parse().unwrap(), key_id: Some("k".parse().unwrap()), ..hello(model) };
            let (received_at, content) = (at(BEGIN), content::read(&chat.body));
            decide(&Input::Chat { source_offset, received_at, chat: &chat, content, fingerprint: None, cache: None });
        };
        let end = |id: &str, attempt, end, summary: Summary| {
            let key = RequestKey { organization: hello("two").organization, request: id.parse().unwrap() };
            Input::AttemptEnded(Box::new(report_of(key, attempt, end, summary)))
        };
        ask("fallback", "auto", 0, &mut decide);
        decide(&end("fallback", 1, failed(FailureClass::Connect), Summary::default()));
        decide(&end("fallback", 2, AttemptEnd::Completed, reported(2, 3)));
        ask("overdrawn", "one", 1, &mut decide);
        decide(&end("overdrawn", 1, AttemptEnd::Completed, reported(100, 500)));
        ask("open", "one", 2, &mut decide);
        commits
    }

    fn found(commits: Vec<Commit>, tables: &Tables) -> BTreeSet<(Check, String)> {
        found_with(commits, tables, true)
    }

    fn found_with(commits: Vec<Commit>, tables: &Tables, redecides: bool) -> BTreeSet<(Check, String)> {
        let window = Window { since: at(0), part: 0, parts: 1, hasher: RandomState::new() };
        let settings = Settings { grace: Duration::from_secs(60), no_faults: false, redecides };
        let mut journal = Journal::new(0, Begins::AtTheBeginning, settings, window);
        journal.reckon(Money::new(Rules::fixed(tables.clone()), redecides));
        let taken = OwnershipTaken { owner: "a".into(), at: at(0), version: "0".into() };
        journal.take(0, &Entry::OwnershipTaken(taken)).unwrap();
        for (offset, commit) in (1..).zip(commits) {
            journal.take(offset, &Entry::Commit(commit)).unwrap();
        }
        let (read, _) = journal.finish(at(BEGIN));
        let first = |check| read.findings.of(check).first.iter().map(move |finding| (check, finding.what.clone()));
        Check::ALL.into_iter().flat_map(first).collect()
    }

    #[test]
    fn sound_money_holds() {
        let tables = with_a_tight_plan(tables());
        let commits = commits(&tables);
        assert_eq!(commits.len(), 6, "{commits:?}");
        assert!(commits.iter().flat_map(|c| &c.facts).any(|fact| matches!(fact, Fact::Overdrawn(_))));
        assert_eq!(found(commits, &tables), BTreeSet::new());
    }

    #[test]
    fn what_a_quiet_key_posted_long_ago_may_be_forgotten() {
        let tables = with_a_tight_plan(tables());
        // Without the request that is still open.
        let mut commits = commits(&tables)[..5].to_vec();
        let skipped = Fact::RecordSkipped(RecordSkipped { reason: "undecodable".into(), told: None });
        for (source_offset, days) in (2..).zip([1, 62, 63, 64]) {
            commits.push(Commit {
                at: at(BEGIN + days * 86_400_000),
                sequence: commits.len() as i64,
                source_offset: Some(source_offset),
                input: InputKind::Record,
                organization: None,
                request: None,
                facts: vec![skipped.clone()],
                ..commits[0].clone()
            });
        }
        assert_eq!(found_with(commits, &tables, false), BTreeSet::new());
    }

    #[test]
    fn false_money_is_found() {
        type Plant = (&'static str, fn(&mut Vec<Commit>), Check, &'static str);
        fn started(commits: &mut [Commit], index: usize) -> &mut AttemptStarted {
            let mut facts = commits[index].facts.iter_mut();
            facts.find_map(|fact| if let Fact::AttemptStarted(started) = fact { Some(started) } else { None }).unwrap()
        }
        fn ended(commits: &mut [Commit], index: usize) -> &mut AttemptEnded {
            let mut facts = commits[index].facts.iter_mut();
            facts.find_map(|fact| if let Fact::AttemptEnded(ended) = fact { Some(ended) } else { None }).unwrap()
        }
        let plants: [Plant; 9] = [
            (
                "a reservation that no budget has",
                |c| started(c, 0).reservation.as_mut().unwrap().amount_pico_usd = PicoUsd::new(1_000_000),
                Check::I6,
                "are taken on Organization",
            ),
            (
                "a key's budget that is left out",
                |c| started(c, 0).reservation.as_mut().unwrap().accounts.truncate(1),
                Check::I6,
                "nothing is reserved on the Key account",
            ),
            (
                "a posting in yesterday's period",
                |c| ended(c, 2).booking.as_mut().unwrap().periods.day = at(BEGIN - 86_400_000),
                Check::I6,
                "posted in the periods of",
            ),
            ("a reservation that nobody releases", |c| drop(c[2].facts.remove(0)), Check::I7, "is not released"),
            (
                "a posting on other accounts",
                |c| ended(c, 2).booking.as_mut().unwrap().accounts.truncate(1),
                Check::I7,
                "other accounts",
            ),
            (
                "an overdraft that is not told",
                |c| c[4].facts.retain(|fact| !matches!(fact, Fact::Overdrawn(_))),
                Check::I7,
                "is overdrawn by",
            ),
            (
                "an overdraft of another amount",
                |c| c[4].facts[1] = Fact::Overdrawn(Overdrawn { attempt: 1, amount_pico_usd: PicoUsd::new(1) }),
                Check::I7,
                "is overdrawn by",
            ),
            (
                "a call after the deadline",
                |c| c[1..].iter_mut().for_each(|commit| commit.at = at(BEGIN + 60_000)),
                Check::I9,
                "the deadline was",
            ),
            (
                "a cost that the price does not give",
                |c| ended(c, 2).cost_pico_usd = Some(PicoUsd::new(1)),
                Check::Redecided,
                "recorded is",
            ),
        ];
        let tables = with_a_tight_plan(tables());
        for (name, plant, check, says) in plants {
            let mut commits = commits(&tables);
            plant(&mut commits);
            let found = found(commits, &tables);
            let hit = found.iter().any(|(of, what)| *of == check && what.contains(says));
            assert!(hit, "{name}: {found:?}");
        }
    }
}
