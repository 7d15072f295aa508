//! Thousands of histories of a partition: requests, repeats, cancels, provider calls that end well or badly, owners that
//! crash, stall and are replaced at any moment, appends that are lost or not acknowledged, clocks that jump. The owners
//! are real [`Tenure`]s over one journal, which is the only thing they share, and checkpoints, from any of which a new owner
//! may begin. At the end the log is checked against what the world outside saw, and its money against a ledger as simple as
//! it can be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sha2::{Digest as _, Sha256};

use super::cache::{Bodies, Directives, Wanted};
use super::checkpoint::{self, Cut, Parts};
use super::inference::{AttemptEnd, AttemptReport};
use super::ledger::{Ledger, Posted};
use super::tenure::{Circumstances, Tenure};
use super::tests::{BOUNDS, at, ended, failed, hello, reported, tables};
use super::*;
use crate::control::terms::Terms;
use crate::control::{Change, Tables};
use crate::domain::PicoUsd;
use crate::provider::{FailureClass, Summary};
use crate::random::Random;
use crate::records::UsageSource;
use crate::records::control::{
    Budget, Caching, ControlRecord, Entity, EntityKind, Key, Limits, ModelLimits, Organization, Plan, Spend, Stamp,
    WhenShort,
};
use crate::records::journal::{Account, Booking, Entry, OwnershipTaken, RequestRefused, Tenancy};
use crate::records::state::Marker;

/// Histories that the test plays.
const HISTORIES: u64 = 10_000;
/// Random steps of a history, before it is brought to its end.
const STEPS: u64 = 60;
const HOUR_MS: i64 = 3_600_000;

impl Random {
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A record of `requests`.
#[derive(Clone)]
enum Asked {
    Chat(Box<Chat>),
    Cancel(Cancel),
    Purge(PurgeCache),
}

/// A provider call under way.
#[derive(Clone)]
struct Call {
    key: RequestKey,
    attempt: u32,
    /// Nobody is really called.
    is_served: bool,
}

/// A process that believes to own the partition.
struct Owner {
    tenure: Tenure,
    /// Next record to read.
    next: usize,
    /// Appended and not acknowledged: the offset at which it stands, or none when it was lost.
    in_flight: VecDeque<Option<i64>>,
    calls: Vec<Call>,
    /// A checkpoint that waits until what it holds is acknowledged.
    cut: Option<Cut>,
}

struct World {
    random: Random,
    control: Tables,
    now: Timestamp,
    epoch: u32,
    requests: Vec<(Timestamp, Asked)>,
    journal: Vec<Entry>,
    checkpoints: Vec<(Marker, Parts)>,
    owners: Vec<Owner>,
    /// What providers were really paid, by call.
    spent: BTreeMap<(RequestKey, u32), PicoUsd>,
    /// Every call that was really made, with the length of the journal then.
    made: Vec<(RequestKey, u32, usize)>,
    /// Every terminal that was published.
    terminals: Vec<(RequestKey, Outcome)>,
    crashes: u32,
    stalls: u32,
    fenced: u32,
    overdue: u32,
    shortened: u32,
}

/// The organization has a plan whose budget and limits are soon used up, and so has its key.
pub fn with_a_tight_plan(mut tables: Tables) -> Tables {
    let spend = |day, month| Spend { day: Some(PicoUsd::new(day)), month: Some(PicoUsd::new(month)) };
    let limits = |requests, tokens, concurrent| Limits {
        requests_per_minute: Some(requests),
        tokens_per_minute: Some(tokens),
        concurrent_requests: Some(concurrent),
    };
    let budget = Budget {
        spend: spend(430_000, 500_000),
        time_zone: "America/Sao_Paulo".into(),
        soft_percents: vec![10, 50],
        when_short: WhenShort::StepDown,
        ..Budget::default()
    };
    let model_limits = vec![ModelLimits { model: "two".parse().unwrap(), limits: limits(60, 400, 3) }];
    let cache = Some(Caching { ttl_seconds: 90, entries_max: 2, bytes_max: 25, any_temperature: true, tools: false });
    let plan = Plan { limits: limits(60, 500, 4), model_limits, budget, cache, ..Plan::default() };
    let acme = Organization { plan: Some("tight".parse().unwrap()), ..Organization::named("Acme") };
    let key =
        Key { limits: limits(30, 300, 3), spend: spend(215_000, 260_000), ..Key::of(vec![], "h".into(), "p".into()) };
    let version = tables.version_of(EntityKind::Organization, "acme");
    let changes =
        [("tight", Entity::Plan(plan), -1), ("acme", Entity::Organization(acme), version), ("k", Entity::Key(key), -1)];
    for (id, entity, expected) in changes {
        let stamp = Stamp { change_id: id.into(), actor: "test".into(), at: at(0) };
        let change = tables.apply(tables.offset() + 1, &ControlRecord::put(id, entity, expected, stamp)).unwrap();
        assert_eq!(change, Change::Effective);
    }
    tables
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            control: with_a_tight_plan(tables()),
            // Shortly before a day of the plan's begins, and with it a month.
            now: at(1_701_399_000_000),
            epoch: 0,
            requests: Vec::new(),
            journal: Vec::new(),
            checkpoints: Vec::new(),
            owners: Vec::new(),
            spent: BTreeMap::new(),
            made: Vec::new(),
            terminals: Vec::new(),
            crashes: 0,
            stalls: 0,
            fenced: 0,
            overdue: 0,
            shortened: 0,
        };
        world.take_over();
        world
    }

    fn folded(&self) -> State {
        self.folded_from(0, State::default(), Tenancy::VACANT)
    }

    fn folded_from(&self, begin: usize, mut state: State, mut tenancy: Tenancy) -> State {
        for (offset, entry) in self.journal.iter().enumerate().skip(begin) {
            let effective = tenancy.accept(offset as i64, entry);
            fold(&mut state, offset as i64, entry, effective);
        }
        state
    }

    /// The state by way of a checkpoint.
    fn shortened(&self, (marker, parts): &(Marker, Parts)) -> State {
        let offset = marker.journal_offset as usize;
        let tenancy = checkpoint::tenancy(marker, self.journal.get(offset)).expect("of this journal");
        self.folded_from(offset + 1, checkpoint::restore(marker, parts).expect("whole"), tenancy)
    }

    /// An owner keeps its state, as soon as what it holds is acknowledged.
    fn cut(&mut self, owner: usize) {
        self.owners[owner].cut = self.owners[owner].tenure.cut();
        self.keep(owner);
    }

    fn keep(&mut self, owner: usize) {
        let Owner { cut, tenure, .. } = &mut self.owners[owner];
        if let Some(cut) = cut.take_if(|cut| tenure.has_acknowledged(cut.journal_offset)) {
            let parts = cut.parts().expect("parts");
            self.checkpoints.push((cut.marker(0, &parts), parts));
        }
    }

    fn append(&mut self, entry: Entry) -> i64 {
        self.journal.push(entry);
        self.journal.len() as i64 - 1
    }

    /// A new owner begins, whatever the others believe.
    fn take_over(&mut self) {
        let taken = OwnershipTaken { owner: "o".into(), at: self.now, version: "0".into() };
        let id = self.append(Entry::OwnershipTaken(taken));
        let state = self.folded();
        if !self.checkpoints.is_empty() {
            // A stalled owner's checkpoint is as good as any other.
            let index = self.random.below(self.checkpoints.len() as u64) as usize;
            assert_eq!(self.shortened(&self.checkpoints[index]), state, "a checkpoint gives the same state");
            self.shortened += 1;
        }
        let next = state.last_source_offset.map_or(0, |offset| offset as usize + 1);
        let again: Vec<Command> = state.memory.ended().map(|e| terminal_again(e, id, state.clock)).collect();
        let orphans: Vec<i64> = state.orphans().map(|(offset, _)| offset).collect();
        let mut open: Vec<RequestKey> = state.open_requests().map(|(key, _)| key.clone()).collect();
        open.sort();
        let tenure = Tenure::begin(id, state);
        self.owners.push(Owner { tenure, next, in_flight: VecDeque::new(), calls: Vec::new(), cut: None });
        let owner = self.owners.len() - 1;
        for command in again {
            self.run(owner, command);
        }
        for offset in orphans {
            self.decide(owner, &Input::Orphaned(offset));
        }
        for key in open {
            let has_body = !self.random.one_in(5);
            self.decide(owner, &Input::TakenOver { key, has_body, simulated: true });
        }
    }

    fn decide(&mut self, owner: usize, input: &Input<'_>) {
        let at = match input {
            Input::Chat { received_at, .. } | Input::Cancel { received_at, .. } => *received_at,
            _ => self.now,
        };
        let with = Circumstances {
            at,
            control: &self.control,
            capacity: Capacity::Free,
            bounds: &BOUNDS,
            health: crate::processor::health::Health::Unknown,
        };
        let Some(commit) = self.owners[owner].tenure.decide(input, with) else { return };
        // An append may be lost on its way; those behind it may arrive all the same.
        let offset = (!self.random.one_in(40)).then(|| self.append(Entry::Commit(commit)));
        self.owners[owner].in_flight.push_back(offset);
    }

    /// The oldest append of an owner is acknowledged, or its loss is told.
    fn acknowledge(&mut self, owner: usize) {
        let Some(offset) = self.owners[owner].in_flight.pop_front() else { return };
        let acknowledged = match offset {
            Some(offset) => self.owners[owner].tenure.acknowledged(offset).ok(),
            None => None,
        };
        match acknowledged {
            Some(pending) => {
                pending.commands.into_iter().for_each(|command| self.run(owner, command));
                self.keep(owner);
            }
            None => {
                self.fenced += 1;
                self.owners.remove(owner);
            }
        }
    }

    fn run(&mut self, owner: usize, command: Command) {
        match command {
            Command::Call(call) => {
                self.owners[owner].calls.push(Call { key: call.key.clone(), attempt: call.attempt, is_served: false });
                self.made.push((call.key, call.attempt, self.journal.len()));
            }
            Command::Serve(serving) => {
                self.owners[owner].calls.push(Call {
                    key: serving.key.clone(),
                    attempt: serving.attempt,
                    is_served: true,
                });
                self.made.push((serving.key, serving.attempt, self.journal.len()));
            }
            // The end of an aborted call is told as any other's.
            Command::Abort(_) | Command::Keep { .. } | Command::Forget { .. } => {}
            Command::Answer { frame, .. } => {
                let FrameBody::Terminal(terminal) = &frame.body else { panic!("a decision publishes terminals only") };
                let key = key_of(&frame.organization, &frame.request_id);
                self.terminals.push((key, terminal.outcome));
            }
        }
    }

    /// A call of an owner ends, in some way.
    fn end_call(&mut self, owner: usize, well: bool) {
        let calls = self.owners[owner].calls.len() as u64;
        if calls == 0 {
            return;
        }
        let index = self.random.below(calls) as usize;
        let call = self.owners[owner].calls.remove(index);
        let (end, summary, frames) = match self.random.below(4) {
            _ if well => (AttemptEnd::Completed, reported(3, 5), 0),
            0 => (failed(FailureClass::Connect), Summary::default(), 0),
            1 => (failed(FailureClass::Cut), reported(2, 1), 1),
            _ => (AttemptEnd::Completed, reported(3, 5), 0),
        };
        let kept_bytes = (!call.is_served && end == AttemptEnd::Completed).then_some(10);
        let (called, ended) = (!call.is_served, ended(call.key.clone(), call.attempt, end, summary));
        let report = AttemptReport { content_frames: frames, kept_bytes, called, ..ended };
        let before = self.journal.len();
        self.decide(owner, &Input::AttemptEnded(Box::new(report)));
        // What reached the journal is money that must be found again; what did not, nobody can know.
        for entry in &self.journal[before..] {
            let Entry::Commit(commit) = entry else { continue };
            for fact in &commit.facts {
                if let Fact::AttemptEnded(posting) = fact
                    && let Some(cost) = posting.cost_pico_usd
                {
                    let earlier = self.spent.insert((call.key.clone(), call.attempt), cost);
                    assert_eq!(earlier, None, "{} attempt {} ended twice", call.key, call.attempt);
                }
            }
        }
    }

    /// The owner reads its next record.
    fn read(&mut self, owner: usize) {
        let offset = self.owners[owner].next;
        let Some((received_at, asked)) = self.requests.get(offset).cloned() else { return };
        self.owners[owner].next += 1;
        let source_offset = offset as i64;
        match asked {
            Asked::Chat(chat) => {
                let (content, fingerprint) = (content::read(&chat.body), None);
                let cache = (!self.random.one_in(4)).then(|| {
                    let directives = Directives {
                        no_cache: self.random.one_in(8),
                        no_store: self.random.one_in(8),
                        max_age_seconds: self.random.one_in(8).then_some(50),
                        ttl_seconds: self.random.one_in(8).then_some(1),
                    };
                    let bodies = Bodies::Recorded { is_lost: self.random.one_in(8), is_shared: false };
                    Wanted { content: Fingerprint::new(self.random.below(3).into()), directives, bodies }
                });
                let (chat, cache) = (&chat, cache.as_ref());
                self.decide(owner, &Input::Chat { source_offset, received_at, chat, content, fingerprint, cache });
            }
            Asked::Cancel(cancel) => {
                self.decide(owner, &Input::Cancel { source_offset, received_at, cancel: &cancel });
            }
            Asked::Purge(purge) => self.decide(owner, &Input::PurgeCache { source_offset, purge: &purge }),
        }
    }

    fn ask(&mut self) {
        let name = RequestId::parse(&format!("r{}-{}", self.epoch, self.random.below(8))).unwrap();
        let asked = match self.random.below(6) {
            _ if self.random.one_in(50) => {
                let before = self.random.one_in(2).then_some(self.now);
                Asked::Purge(PurgeCache { organization: hello("two").organization, model: None, before })
            }
            0 => {
                let organization = hello("two").organization;
                Asked::Cancel(Cancel { request_id: name, organization, reason: "gone".into() })
            }
            n => {
                let nonce = Some(format!("n{}", self.random.below(2)));
                let model = if n < 3 { "auto" } else { "two" };
                let timeout_ms = self.random.one_in(6).then_some(1);
                let key_id = self.random.one_in(2).then(|| "k".parse().unwrap());
                Asked::Chat(Box::new(Chat { request_id: name, reply_nonce: nonce, timeout_ms, key_id, ..hello(model) }))
            }
        };
        self.requests.push((self.now, asked));
    }

    fn step(&mut self) {
        let owners = self.owners.len() as u64;
        let chosen = if owners == 0 { None } else { Some(self.random.below(owners) as usize) };
        match (self.random.below(21), chosen) {
            (0..=3, _) => self.ask(),
            (4..=7, Some(owner)) => self.read(owner),
            (8..=12, Some(owner)) => self.acknowledge(owner),
            (13..=15, Some(owner)) => self.end_call(owner, false),
            (16, Some(owner)) => {
                self.crashes += 1;
                self.owners.remove(owner);
            }
            (17, _) => {
                // Whoever is there goes on as if nothing had happened.
                self.stalls += u32::from(owners > 0);
                self.take_over();
            }
            (18, _) => self.jump(),
            (19, Some(owner)) => self.cut(owner),
            (_, Some(owner)) => self.tick(owner),
            (_, None) => self.take_over(),
        }
    }

    /// Time passes, or the clock of the machine is set.
    fn jump(&mut self) {
        let by = match self.random.below(8) {
            0 => HOUR_MS,
            1 => -HOUR_MS,
            2 => 100_000,
            _ => 7,
        };
        // Ids are remembered for less than an hour.
        self.epoch += u32::from(by == HOUR_MS);
        self.now = at(self.now.as_millis() + by);
    }

    fn tick(&mut self, owner: usize) {
        let now = self.now.max(self.owners[owner].tenure.state().clock);
        if self.tenure_has_expired(owner, now) {
            self.decide(owner, &Input::CacheExpired);
        }
        if let Some(key) = self.owners[owner].tenure.state().overdue(now).cloned() {
            self.overdue += 1;
            self.decide(owner, &Input::Overdue { key, simulated: true });
        }
    }

    fn tenure_has_expired(&self, owner: usize, now: Timestamp) -> bool {
        self.owners[owner].tenure.state().cache.expired(now).is_some()
    }

    /// Everybody but a last owner is gone, and nothing is lost any more.
    fn settle(&mut self) {
        self.owners.clear();
        loop {
            if self.owners.is_empty() {
                self.take_over();
            }
            self.read(0);
            while self.owners.first().is_some_and(|owner| !owner.calls.is_empty()) {
                self.end_call(0, true);
            }
            while self.owners.first().is_some_and(|owner| !owner.in_flight.is_empty()) {
                self.acknowledge(0);
            }
            let Some(owner) = self.owners.first() else { continue };
            let quiet = owner.calls.is_empty() && owner.in_flight.is_empty();
            if quiet && owner.next == self.requests.len() && owner.tenure.state().orphans().count() == 0 {
                // A last one finds what the others appended in vain.
                if self.folded().orphans().count() == 0 {
                    return;
                }
                self.owners.clear();
            }
        }
    }

    fn check(&self) {
        let mut tenancy = Tenancy::VACANT;
        let mut sources = Vec::new();
        let mut clock = Timestamp::default();
        // By request and round: admissions, terminals, attempts.
        let mut open: BTreeMap<RequestKey, (u32, u32)> = BTreeMap::new();
        let mut started: BTreeSet<(RequestKey, u32)> = BTreeSet::new();
        let mut durable: BTreeMap<(RequestKey, u32), usize> = BTreeMap::new();
        let mut posted: BTreeMap<(RequestKey, u32), PicoUsd> = BTreeMap::new();
        let mut estimated: BTreeSet<(RequestKey, u32)> = BTreeSet::new();
        let mut naive = Naive::default();
        let mut settled: BTreeMap<RequestKey, Timestamp> = BTreeMap::new();
        let mut told: BTreeMap<RequestKey, Timestamp> = BTreeMap::new();
        let mut state = State::default();
        for (offset, entry) in self.journal.iter().enumerate() {
            let effective = tenancy.accept(offset as i64, entry);
            if let Entry::Commit(commit) = entry
                && effective
            {
                let again = redecide::redecide(&state, commit, &self.control);
                assert_eq!(again, redecide::Again::Same, "offset {offset} decided again");
            }
            fold(&mut state, offset as i64, entry, effective);
            let Entry::Commit(commit) = entry else { continue };
            if !effective {
                continue;
            }
            assert!(commit.at >= clock, "the clock went back at {offset}");
            clock = commit.at;
            sources.extend(commit.source_offset);
            let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { continue };
            let key = key_of(organization, &request.request_id);
            let mut post = |posting: &AttemptEnded| {
                let cost = posting.cost_pico_usd.expect("every cost is known, or estimated");
                let all = posted.entry((key.clone(), posting.attempt)).or_default();
                *all = all.saturating_add(cost);
                if posting.usage_source == UsageSource::Estimated {
                    estimated.insert((key.clone(), posting.attempt));
                }
            };
            naive.take(commit, &self.control);
            for fact in &commit.facts {
                match fact {
                    Fact::RequestAdmitted(_) => {
                        assert_eq!(open.insert(key.clone(), (0, 0)), None, "{key} was admitted while open");
                        assert!(!settled.contains_key(&key), "{key} was admitted again");
                    }
                    Fact::RequestRouted(routed) => open.get_mut(&key).unwrap().1 = routed.max_attempts,
                    Fact::AttemptStarted(attempt) => {
                        let (attempts, most) = open.get_mut(&key).unwrap();
                        *attempts += 1;
                        assert_eq!(attempt.attempt, *attempts, "{key}: attempts have no gap");
                        assert!(*attempts <= *most, "{key}: too many attempts");
                        started.insert((key.clone(), attempt.attempt));
                        durable.insert((key.clone(), attempt.attempt), offset);
                    }
                    Fact::AttemptEnded(posting) => {
                        assert!(started.remove(&(key.clone(), posting.attempt)), "{key}: an end without a beginning");
                        post(posting);
                    }
                    Fact::OrphanPosted(orphan) => post(&orphan.posting),
                    Fact::RequestSettled(_) => {
                        assert!(open.remove(&key).is_some(), "{key} was settled without being open");
                        settled.insert(key.clone(), commit.at);
                    }
                    Fact::RequestRefused(RequestRefused { told: somebody, .. })
                    | Fact::RecordSkipped(RecordSkipped { told: somebody, .. }) => {
                        if somebody.is_some() {
                            told.insert(key.clone(), commit.at);
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
        assert_eq!(open.len(), 0, "requests without a terminal");
        let all: Vec<i64> = (0..self.requests.len() as i64).collect();
        assert_eq!(sources, all, "every record is decided once, in order");
        for (call, cost) in &posted {
            match self.spent.get(call) {
                Some(spent) => assert_eq!(cost, spent, "what was spent is posted, once: {call:?}"),
                None => assert!(estimated.contains(call) || *cost == PicoUsd::ZERO, "{call:?} was never spent"),
            }
        }
        assert!(self.spent.keys().all(|call| posted.contains_key(call)), "what was spent is posted");
        naive.check(&self.folded().ledger);
        let mut calls = BTreeSet::new();
        for (key, attempt, journal) in &self.made {
            assert!(calls.insert((key, attempt)), "{key} attempt {attempt} was called twice");
            let committed = durable.get(&(key.clone(), *attempt));
            assert!(committed.is_some_and(|offset| offset < journal), "{key} was called before it was durable");
        }
        for (key, settled_at) in &settled {
            let outcomes: BTreeSet<&str> = self
                .terminals
                .iter()
                .filter(|(of, outcome)| of == key && *outcome != Outcome::Refused)
                .map(|(_, outcome)| outcome.as_str())
                .collect();
            // Nobody waits for long while no owner is there.
            let is_over = settled_at.plus(memory::TERMINAL_WINDOW) < clock;
            let published = outcomes.len() == 1 || (outcomes.is_empty() && is_over);
            assert!(published, "{key} has one outcome, and its terminal was published: {outcomes:?}");
        }
        for (key, at) in told {
            let is_told = self.terminals.iter().any(|(of, outcome)| *of == key && *outcome == Outcome::Refused);
            assert!(is_told || at.plus(memory::TERMINAL_WINDOW) < clock, "{key} was refused, and nobody was told");
        }
        assert_eq!(self.folded(), *self.owners[0].tenure.state(), "a rebuild is the live state");
    }
}

/// A ledger as simple as it can be: every posting with its time, every reservation that is open.
#[derive(Default)]
struct Naive {
    postings: Vec<(Account, Timestamp, PicoUsd)>,
    reserved: BTreeMap<(RequestKey, u32), (Vec<Account>, PicoUsd)>,
}

impl Naive {
    fn posted_since(&self, account: Account, since: Timestamp) -> PicoUsd {
        self.postings.iter().filter(|(of, at, _)| *of == account && *at >= since).map(|(_, _, cost)| *cost).sum()
    }

    fn reserved(&self, account: Account) -> PicoUsd {
        self.reserved.values().filter(|(accounts, _)| accounts.contains(&account)).map(|(_, amount)| *amount).sum()
    }

    fn post(&mut self, posting: &AttemptEnded, at: Timestamp, terms: &Terms<'_>) {
        let Booking { accounts, periods } = posting.booking.as_ref().expect("a booking");
        assert_eq!(*periods, terms.calendar.periods(at));
        for account in accounts {
            self.postings.push((*account, at, posting.cost_pico_usd.expect("a cost")));
        }
    }

    fn take(&mut self, commit: &Commit, control: &Tables) {
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return };
        let (key, key_id) = (key_of(organization, &request.request_id), request.key_id.as_ref());
        let terms = control.terms(organization, key_id).expect("terms");
        for fact in &commit.facts {
            match fact {
                Fact::AttemptEnded(posting) => {
                    self.post(posting, commit.at, &terms);
                    let released = self.reserved.remove(&(key.clone(), posting.attempt)).is_some();
                    assert_eq!(released, !posting.source.is_served(), "released once");
                }
                Fact::OrphanPosted(orphan) => self.post(&orphan.posting, commit.at, &terms),
                Fact::AttemptStarted(started) if started.source.is_served() => {
                    assert_eq!(started.reservation, None, "nobody is called");
                }
                Fact::AttemptStarted(started) => {
                    let reservation = started.reservation.as_ref().expect("a reservation");
                    let of = (reservation.accounts.clone(), reservation.amount_pico_usd);
                    assert!(self.reserved.insert((key.clone(), started.attempt), of).is_none(), "reserved once");
                    let periods = terms.calendar.periods(commit.at);
                    let accounts = [(Account::Organization, terms.spend), (Account::Key, terms.key_spend())];
                    for (account, spend) in accounts {
                        for (limit, since) in [(spend.day, periods.day), (spend.month, periods.month)] {
                            let Some(limit) = limit else { continue };
                            let taken = self.posted_since(account, since).saturating_add(self.reserved(account));
                            assert!(taken <= limit, "{account:?}: {taken} of {limit} are taken at {}", commit.at);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Nothing is open any more, and what is posted is the sum of the postings.
    fn check(&self, ledger: &Ledger) {
        assert!(self.reserved.is_empty(), "every reservation is released");
        for (organization, books) in ledger.organizations() {
            assert!(books.models().all(|(_, meter)| meter.open == 0), "calls of a model are open");
            let keys = books.keys().map(|(_, key)| (Account::Key, key.balance(), key.meter));
            for (account, balance, meter) in keys.chain([(Account::Organization, books.balance(), books.meter())]) {
                assert_eq!((balance.reserved, meter.open), (PicoUsd::ZERO, 0), "{organization} {account:?}");
                let Posted { periods, day, month } = balance.posted;
                if !self.postings.is_empty() {
                    assert_eq!(day, self.posted_since(account, periods.day), "{account:?} of the day");
                    assert_eq!(month, self.posted_since(account, periods.month), "{account:?} of the month");
                }
            }
        }
    }
}

/// The journal of a history, and the rules that it was decided by.
pub fn journal(seed: u64) -> (Vec<Entry>, Tables) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    (world.journal, world.control)
}

/// A journal of an owner that is asked the same at each of these seconds; whoever is called answers a second later.
pub fn asked_again(seconds: &[i64], caching: Caching) -> (Vec<Entry>, Tables) {
    let mut control = tables();
    let plan = Plan { cache: Some(caching), ..Plan::default() };
    let acme = Organization { plan: Some("tight".parse().unwrap()), ..Organization::named("Acme") };
    let version = control.version_of(EntityKind::Organization, "acme");
    for (id, entity, expected) in [("tight", Entity::Plan(plan), -1), ("acme", Entity::Organization(acme), version)] {
        let stamp = Stamp { change_id: id.into(), actor: "test".into(), at: at(0) };
        control.apply(control.offset() + 1, &ControlRecord::put(id, entity, expected, stamp)).unwrap();
    }
    let mut tenure = Tenure::begin(0, State::default());
    let taken = OwnershipTaken { owner: "one".into(), at: at(0), version: "1".into() };
    let mut journal = vec![Entry::OwnershipTaken(taken)];
    let mut decide = |input: &Input<'_>, at: Timestamp| {
        let health = crate::processor::health::Health::Unknown;
        let with = Circumstances { at, control: &control, capacity: Capacity::Free, bounds: &BOUNDS, health };
        let commit = tenure.decide(input, with).unwrap();
        tenure.acknowledged(journal.len() as i64).unwrap();
        journal.push(Entry::Commit(commit));
    };
    for (source_offset, seconds) in (0..).zip(seconds) {
        let request_id = RequestId::parse(&format!("r{source_offset}")).unwrap();
        let chat = Chat { request_id, ..hello("two") };
        let bodies = Bodies::Recorded { is_lost: false, is_shared: false };
        let wanted = Wanted { content: Fingerprint::new(7), directives: Directives::default(), bodies };
        let (received_at, content) = (at(seconds * 1_000), content::read(&chat.body));
        let (chat, cache) = (&chat, Some(&wanted));
        decide(&Input::Chat { source_offset, received_at, chat, content, fingerprint: None, cache }, received_at);
        let summary = Summary { finish_reason: Some("stop".into()), ..reported(10, 5) };
        let key = key_of(&chat.organization, &chat.request_id);
        let report = AttemptReport { kept_bytes: Some(9), ..ended(key, 1, AttemptEnd::Completed, summary) };
        decide(&Input::AttemptEnded(Box::new(report)), at((seconds + 1) * 1_000));
    }
    (journal, control)
}

#[test]
fn every_history_of_crashes_stalls_and_losses_ends_with_each_request_settled_once() {
    let (mut crashes, mut stalls, mut fenced, mut overdue, mut orphans, mut shortened) = (0, 0, 0, 0, 0, 0);
    let (mut short, mut corrected) = (0, 0);
    let (mut hits, mut shared, mut kept, mut evicted, mut purged) = (0, 0, 0, 0, 0);
    for seed in 1..=HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.check()));
        assert!(outcome.is_ok(), "seed {seed}");
        crashes += world.crashes;
        stalls += world.stalls;
        fenced += world.fenced;
        overdue += world.overdue;
        shortened += world.shortened;
        for entry in &world.journal {
            let Entry::Commit(commit) = entry else { continue };
            for fact in &commit.facts {
                match fact {
                    Fact::OrphanPosted(orphan) => {
                        orphans += 1;
                        corrected += u32::from(orphan.corrects_pico_usd.is_some());
                    }
                    Fact::RequestRefused(refused) => short += u32::from(refused.code == refusal::INSUFFICIENT_QUOTA),
                    Fact::AttemptStarted(started) => match started.source {
                        AttemptSource::Cache => hits += 1,
                        AttemptSource::Shared => shared += 1,
                        AttemptSource::Provider | AttemptSource::Unknown => {}
                    },
                    Fact::CacheInserted(_) => kept += 1,
                    Fact::CacheEvicted(_) => evicted += 1,
                    Fact::CachePurged(of) => purged += u32::from(of.entries > 0),
                    _ => {}
                }
            }
        }
    }
    // The faults did happen, and money was short.
    let happened = [crashes, stalls, fenced, overdue, orphans, shortened, short, corrected];
    assert!(happened.iter().all(|times| *times > 1_000), "{happened:?}");
    let cached = [hits, shared, kept, evicted, purged];
    assert!(cached.iter().all(|times| *times > 100), "{cached:?}");
}

#[test]
fn the_fold_is_of_its_version() {
    let mut hash = Sha256::new();
    for seed in 1..=50 {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        let cut = Cut { tenure: 0, journal_offset: 0, next_sequence: 0, state: world.folded() };
        hash.update(checkpoint::digest(&cut.parts().unwrap()));
    }
    // When the fold, or the form of what it keeps, has changed: raise FOLD_VERSION, so that no checkpoint of the old one is
    // taken. When these histories have: only put in the new digest.
    let expected = (6, "71560d2395eadc57");
    assert_eq!((checkpoint::FOLD_VERSION, hex::encode(&hash.finalize()[..8]).as_str()), expected);
}
