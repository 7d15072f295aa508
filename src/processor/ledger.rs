//! The accounts of a partition's organizations: what is posted in the current day and month, what is reserved, and what is
//! taken of the limits. A pure fold of the journal; whether something fits is decided in [`budget`](super::budget) and
//! [`limits`](super::limits).
//!
//! An attempt's money goes in two phases, as TigerBeetle's pending transfers do: its worst case is reserved on all of its
//! accounts before the call, and when it ends the reservation is released and what it cost is posted. Reserved is what the
//! open attempts hold, whenever it was set aside; posted is what was posted in a period, by the time of the posting. So the
//! postings of the journal (and with it the rows of ClickHouse) between two moments are what an account posted between them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::Meter;
use crate::domain::{KeyId, ModelName, OrganizationId, Periods, PicoUsd, RequestKey, Timestamp};
use crate::records::journal::{Account, AttemptEnded, Booking, LimitCharge, LimitScope, Reservation};

/// How long after its last request an organization's meters are looked at, to be put away when they have run out.
const REST: Duration = Duration::from_secs(60);
/// Shortest day and month of a calendar, with room for clocks that are set: when a plan's calendar changes, a period that
/// begins sooner than that after another is still that one, so that nothing posted in it is forgotten.
const DAY_MIN: Duration = Duration::from_secs(20 * 3_600);
const MONTH_MIN: Duration = Duration::from_secs(27 * 24 * 3_600);
/// How long after the beginning of the month in which a key's last posting is what it posted is kept: longer than any month
/// of any calendar, and than one that a change of calendar makes longer, so that nothing of it counts any more.
pub const KEY_KEPT: Duration = Duration::from_secs(62 * 24 * 3_600);
/// Interrupted attempts whose estimated cost is remembered, so that a late end of one corrects it; the oldest are
/// forgotten first.
pub const ESTIMATES_MAX: usize = 10_000;

/// What an account posted in its current day and month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Posted {
    pub periods: Periods,
    #[serde(with = "wide")]
    pub day: PicoUsd,
    #[serde(with = "wide")]
    pub month: PicoUsd,
}

/// Amounts that may be larger than a record's.
mod wide {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::domain::PicoUsd;

    pub fn serialize<S: Serializer>(amount: &PicoUsd, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i128(amount.get())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PicoUsd, D::Error> {
        i128::deserialize(deserializer).map(PicoUsd::new)
    }
}

impl Posted {
    /// What counts in these periods. A period that begins anew begins with nothing; one that would begin earlier, or within
    /// the one that has begun (the plan's calendar was changed), goes on as it is.
    pub fn in_periods(self, periods: Periods) -> Self {
        let begun = self.periods;
        let (day, month) = (begins(begun.day, periods.day, DAY_MIN), begins(begun.month, periods.month, MONTH_MIN));
        Self {
            periods: Periods { day: day.unwrap_or(begun.day), month: month.unwrap_or(begun.month) },
            day: if day.is_some() { PicoUsd::ZERO } else { self.day },
            month: if month.is_some() { PicoUsd::ZERO } else { self.month },
        }
    }

    fn post(&mut self, periods: Periods, amount: PicoUsd) {
        *self = self.in_periods(periods);
        self.day = self.day.saturating_add(amount);
        self.month = self.month.saturating_add(amount);
    }
}

/// When the next period begins, if it is another one than that which has begun.
fn begins(begun: Timestamp, begin: Timestamp, shortest: Duration) -> Option<Timestamp> {
    (begin >= begun.plus(shortest)).then_some(begin)
}

/// An account: what is posted, and what the open attempts hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    pub posted: Posted,
    pub reserved: PicoUsd,
}

/// What is kept of a key with limits or a budget of its own, for one organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyBooks {
    pub meter: Meter,
    /// `None`: nothing was ever posted on it.
    pub posted: Option<Posted>,
    /// Derived from the open requests.
    #[serde(skip)]
    pub reserved: PicoUsd,
}

/// What is kept of an organization while it asks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Active {
    pub meter: Meter,
    /// Derived from the open requests.
    #[serde(skip)]
    pub reserved: PicoUsd,
    /// By id.
    keys: Vec<(KeyId, KeyBooks)>,
    /// By name.
    models: Vec<(ModelName, Meter)>,
    /// When it is looked at whether the meters have run out.
    rests_at: Option<Timestamp>,
}

/// The books of an organization. One that has not asked for a while keeps nothing but what it posted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Books {
    pub posted: Posted,
    active: Option<Box<Active>>,
}

/// An interrupted attempt that was posted with an estimate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    pub key: RequestKey,
    pub attempt: u32,
    pub cost: PicoUsd,
    /// On which accounts it is posted.
    pub accounts: Vec<Account>,
    /// What was set aside for it.
    pub reserved: PicoUsd,
}

/// The books of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    organizations: HashMap<OrganizationId, Books>,
    /// Organizations by when their meters may have run out.
    resting: BTreeSet<(Timestamp, OrganizationId)>,
    estimates: VecDeque<Estimate>,
}

static NO_BOOKS: Books = Books {
    posted: Posted {
        periods: Periods { day: Timestamp::from_millis(0), month: Timestamp::from_millis(0) },
        day: PicoUsd::ZERO,
        month: PicoUsd::ZERO,
    },
    active: None,
};

impl Books {
    /// The meter of all requests of the organization.
    pub fn meter(&self) -> Meter {
        self.active.as_ref().map_or(Meter::default(), |active| active.meter)
    }

    /// The meter of the organization's calls of a model.
    pub fn model(&self, model: &ModelName) -> Meter {
        self.active.as_ref().and_then(|active| found(&active.models, model)).map_or(Meter::default(), |meter| *meter)
    }

    pub fn key(&self, key: &KeyId) -> KeyBooks {
        self.active.as_ref().and_then(|active| found(&active.keys, key)).map_or(KeyBooks::default(), |books| *books)
    }

    pub fn keys(&self) -> impl Iterator<Item = (&KeyId, &KeyBooks)> {
        self.active.iter().flat_map(|active| &active.keys).map(|(id, books)| (id, books))
    }

    pub fn models(&self) -> impl Iterator<Item = (&ModelName, &Meter)> {
        self.active.iter().flat_map(|active| &active.models).map(|(name, meter)| (name, meter))
    }

    pub fn balance(&self) -> Balance {
        let reserved = self.active.as_ref().map_or(PicoUsd::ZERO, |active| active.reserved);
        Balance { posted: self.posted, reserved }
    }

    /// Accounts and meters.
    pub fn entries(&self) -> usize {
        1 + self.active.as_ref().map_or(0, |active| active.keys.len() + active.models.len())
    }

    /// How many requests are open.
    pub fn open(&self) -> u32 {
        self.active.as_ref().map_or(0, |active| active.meter.open)
    }

    fn active(&mut self) -> &mut Active {
        self.active.get_or_insert_default()
    }
}

impl KeyBooks {
    pub fn balance(&self) -> Balance {
        Balance { posted: self.posted.unwrap_or_default(), reserved: self.reserved }
    }

    /// When what it posted counts in no period any more.
    fn posted_until(&self) -> Option<Timestamp> {
        self.posted.map(|posted| posted.periods.month.plus(KEY_KEPT))
    }

    fn is_at_rest(&self, at: Timestamp) -> bool {
        self.posted_until().is_none_or(|until| until <= at)
            && self.reserved == PicoUsd::ZERO
            && self.meter.is_at_rest(at)
    }
}

impl Active {
    fn key(&mut self, key: &KeyId) -> &mut KeyBooks {
        entry(&mut self.keys, key)
    }

    fn model(&mut self, model: &ModelName) -> &mut Meter {
        entry(&mut self.models, model)
    }

    fn meter(&mut self, scope: LimitScope, key: Option<&KeyId>) -> Option<&mut Meter> {
        match (scope, key) {
            (LimitScope::Organization, _) => Some(&mut self.meter),
            (LimitScope::Key, Some(key)) => Some(&mut self.key(key).meter),
            _ => None,
        }
    }

    /// The meter of the key, when it has limits of its own: others are not kept, whatever ids records name.
    fn limited_key(&mut self, charges: &[LimitCharge], key: Option<&KeyId>) -> Option<&mut Meter> {
        let is_limited = charges.iter().any(|charge| charge.scope == LimitScope::Key);
        key.filter(|_| is_limited).map(|key| &mut self.key(key).meter)
    }

    fn reserved(&mut self, accounts: &[Account], key: Option<&KeyId>, change: impl Fn(PicoUsd) -> PicoUsd) {
        for account in accounts {
            let reserved = match (account, key) {
                (Account::Organization, _) => &mut self.reserved,
                (Account::Key, Some(key)) => &mut self.key(key).reserved,
                _ => continue,
            };
            *reserved = change(*reserved);
        }
    }
}

/// The value of a name in a list that is sorted by name.
fn found<'a, K: Ord, V>(list: &'a [(K, V)], name: &K) -> Option<&'a V> {
    list.binary_search_by(|(known, _)| known.cmp(name)).ok().map(|index| &list[index].1)
}

/// The same, added if it is not there. Most lists have one or two: there is never room for more than half as many again.
fn entry<'a, K: Clone + Ord, V: Default>(list: &'a mut Vec<(K, V)>, name: &K) -> &'a mut V {
    let index = list.binary_search_by(|(known, _)| known.cmp(name)).unwrap_or_else(|index| {
        if list.len() == list.capacity() {
            list.reserve_exact(1 + list.len() / 2);
        }
        list.insert(index, (name.clone(), V::default()));
        index
    });
    &mut list[index].1
}

/// Of whose request something is.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub organization: &'a OrganizationId,
    pub key: Option<&'a KeyId>,
}

impl Ledger {
    /// The books of an organization; of one that is not known, empty ones.
    pub fn books(&self, organization: &OrganizationId) -> &Books {
        self.organizations.get(organization).unwrap_or(&NO_BOOKS)
    }

    pub fn organizations(&self) -> impl Iterator<Item = (&OrganizationId, &Books)> {
        self.organizations.iter()
    }

    /// Interrupted attempts that were posted with an estimate, the oldest first.
    pub fn estimates(&self) -> impl Iterator<Item = &Estimate> {
        self.estimates.iter()
    }

    /// How an interrupted attempt is posted, when that is an estimate.
    pub fn estimate(&self, key: &RequestKey, attempt: u32) -> Option<&Estimate> {
        self.estimates.iter().rev().find(|estimate| estimate.attempt == attempt && estimate.key == *key)
    }

    /// Takes up what a checkpoint holds; the open requests come after it.
    pub fn restore(
        books: impl IntoIterator<Item = (OrganizationId, Books)>,
        estimates: impl IntoIterator<Item = Estimate>,
    ) -> Self {
        let organizations: HashMap<OrganizationId, Books> = books.into_iter().collect();
        let rests = |(id, books): (&OrganizationId, &Books)| Some((books.active.as_ref()?.rests_at?, id.clone()));
        let resting = organizations.iter().filter_map(rests).collect();
        Self { organizations, resting, estimates: estimates.into_iter().collect() }
    }

    /// A request is open, and so its attempt; of a checkpoint's, too.
    pub(super) fn opened(
        &mut self,
        asker: Asker<'_>,
        charges: &[LimitCharge],
        model: &ModelName,
        reservation: Option<&Reservation>,
    ) {
        let active = self.active(asker);
        active.meter.open += 1;
        if let Some(meter) = active.limited_key(charges, asker.key) {
            meter.open += 1;
        }
        started(active, asker, model, reservation);
    }

    /// What a request takes of its limits.
    pub(super) fn charged(&mut self, asker: Asker<'_>, charges: &[LimitCharge], at: Timestamp) {
        if charges.is_empty() {
            return;
        }
        let active = self.active(asker);
        for charge in charges {
            if let Some(meter) = active.meter(charge.scope, asker.key) {
                meter.take(charge, at);
            }
        }
    }

    /// What an attempt takes of its model's limits.
    pub(super) fn charged_for_model(
        &mut self,
        asker: Asker<'_>,
        model: &ModelName,
        charge: Option<&LimitCharge>,
        at: Timestamp,
    ) {
        if let Some(charge) = charge {
            self.active(asker).model(model).take(charge, at);
        }
    }

    /// Another attempt of an open request has begun.
    pub(super) fn started(&mut self, asker: Asker<'_>, model: &ModelName, reservation: Option<&Reservation>) {
        started(self.active(asker), asker, model, reservation);
    }

    /// The attempt of an open request has ended: its reservation is free, and what it used is known.
    pub(super) fn ended(
        &mut self,
        asker: Asker<'_>,
        model: &ModelName,
        (reservation, charge): (Option<&Reservation>, Option<&LimitCharge>),
        used_tokens: u64,
        at: Timestamp,
    ) {
        let active = self.active(asker);
        if let Some(Reservation { accounts, amount_pico_usd, .. }) = reservation {
            active.reserved(accounts, asker.key, |reserved| reserved.saturating_sub(*amount_pico_usd));
        }
        let meter = active.model(model);
        meter.open = meter.open.saturating_sub(1);
        if let Some(charge) = charge {
            meter.correct(charge, used_tokens, at);
        }
    }

    /// A posting is booked.
    pub(super) fn posted(&mut self, asker: Asker<'_>, posting: &AttemptEnded, at: Timestamp) {
        let (Some(Booking { accounts, periods }), Some(cost)) = (&posting.booking, posting.cost_pico_usd) else {
            return;
        };
        for account in accounts {
            match (account, asker.key) {
                (Account::Organization, _) => {
                    self.organizations.entry(asker.organization.clone()).or_default().posted.post(*periods, cost);
                }
                (Account::Key, Some(key)) => {
                    self.active(asker).key(key).posted.get_or_insert_default().post(*periods, cost);
                    // Of a call that ended after its request did, nothing follows.
                    self.let_rest(asker, at);
                }
                _ => {}
            }
        }
    }

    /// A request is over: it is not open any more, and what it used in all is known.
    pub(super) fn closed(&mut self, asker: Asker<'_>, charges: &[LimitCharge], used_tokens: u64, at: Timestamp) {
        let active = self.active(asker);
        active.meter.open = active.meter.open.saturating_sub(1);
        if let Some(meter) = active.limited_key(charges, asker.key) {
            meter.open = meter.open.saturating_sub(1);
        }
        for charge in charges {
            if let Some(meter) = active.meter(charge.scope, asker.key) {
                meter.correct(charge, used_tokens, at);
            }
        }
        self.let_rest(asker, at);
    }

    /// Nothing may follow any more: it is looked at after a while.
    fn let_rest(&mut self, asker: Asker<'_>, at: Timestamp) {
        let rests_at = at.plus(REST);
        let active = self.active(asker);
        if active.meter.open == 0 && active.rests_at.is_none_or(|later| later > rests_at) {
            let later = active.rests_at.replace(rests_at);
            if let Some(later) = later {
                self.resting.remove(&(later, asker.organization.clone()));
            }
            self.resting.insert((rests_at, asker.organization.clone()));
        }
    }

    /// An interrupted attempt is posted with an estimate.
    pub(super) fn estimated(&mut self, estimate: Estimate) {
        self.estimates.push_back(estimate);
        if self.estimates.len() > ESTIMATES_MAX {
            self.estimates.pop_front();
        }
    }

    /// What is estimated of this attempt is corrected.
    pub(super) fn corrected(&mut self, key: &RequestKey, attempt: u32) {
        self.estimates.retain(|estimate| estimate.attempt != attempt || estimate.key != *key);
    }

    /// Puts away the meters that have run out.
    pub(super) fn rest(&mut self, clock: Timestamp) {
        while self.resting.first().is_some_and(|(at, _)| *at <= clock) {
            let Some((_, organization)) = self.resting.pop_first() else { return };
            let Some(books) = self.organizations.get_mut(&organization) else { continue };
            let Some(active) = &mut books.active else { continue };
            active.rests_at = None;
            if active.meter.open > 0 {
                continue;
            }
            active.keys.retain(|(_, key)| !key.is_at_rest(clock));
            active.models.retain(|(_, meter)| !meter.is_at_rest(clock));
            active.keys.shrink_to_fit();
            active.models.shrink_to_fit();
            let is_overrun = !active.meter.is_at_rest(clock)
                || !active.models.is_empty()
                || active.keys.iter().any(|(_, key)| !key.meter.is_at_rest(clock));
            let again = match is_overrun {
                true => Some(clock.plus(REST)),
                false => active.keys.iter().filter_map(|(_, key)| key.posted_until()).min(),
            };
            match again {
                Some(again) => {
                    active.rests_at = Some(again);
                    self.resting.insert((again, organization));
                }
                None => books.active = None,
            }
        }
    }

    fn active(&mut self, asker: Asker<'_>) -> &mut Active {
        // The name is cloned for a new one only.
        if !self.organizations.contains_key(asker.organization) {
            self.organizations.insert(asker.organization.clone(), Books::default());
        }
        self.organizations.entry(asker.organization.clone()).or_default().active()
    }
}

fn started(active: &mut Active, asker: Asker<'_>, model: &ModelName, reservation: Option<&Reservation>) {
    active.model(model).open += 1;
    if let Some(Reservation { accounts, amount_pico_usd, .. }) = reservation {
        active.reserved(accounts, asker.key, |reserved| reserved.saturating_add(*amount_pico_usd));
    }
}
