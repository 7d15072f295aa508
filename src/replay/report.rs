//! What a replay has shown: sums over its rows, which can be added in any order and are the same.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::course::{Counts, Unlike};
use super::row::{Change, Half, Row};
use crate::domain::{ModelName, PicoUsd};
use crate::records::Outcome;

/// Most organizations that are told apart; the rest are one group.
const ORGANIZATIONS_MAX: usize = 10_000;
/// As which the rest are told of.
pub const OTHERS: &str = "(others)";
/// As which requests without a call are told of.
pub const NO_CALL: &str = "(no call)";
/// Most decisions that are told although they should not differ.
const UNLIKE_MAX: usize = 20;

/// An amount that may be larger than a record's: a decimal number of pico-dollars, as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(pub PicoUsd);

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.get())
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(|pico| Self(PicoUsd::new(pico))).map_err(serde::de::Error::custom)
    }
}

impl Sum {
    fn add(&mut self, amount: PicoUsd) {
        self.0 = self.0.saturating_add(amount);
    }

    fn merge(&mut self, other: Self) {
        self.add(other.0);
    }
}

/// One side of a group of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Side {
    pub requests: u64,
    pub refused: u64,
    pub failed: u64,
    /// Of those whose cost is known.
    pub cost_pico_usd: Sum,
    pub cost_unknown: u64,
}

impl Side {
    fn add(&mut self, half: &Half) {
        self.requests += 1;
        self.refused += u64::from(half.is_refused());
        self.failed += u64::from(matches!(half.outcome, Some(Outcome::Failed | Outcome::Interrupted)));
        match half.cost {
            Some(cost) => self.cost_pico_usd.add(cost),
            None => self.cost_unknown += 1,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.failed += other.failed;
        self.cost_pico_usd.merge(other.cost_pico_usd);
        self.cost_unknown += other.cost_unknown;
    }
}

/// A group of requests: a tier's, a model's, an organization's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Group {
    /// As it was, and as the candidate would have it. A request may be in one group before and in another one after.
    pub recorded: Side,
    pub candidate: Side,
    /// What the candidate would cost at the least and at the most.
    pub cost_low_pico_usd: Sum,
    pub cost_high_pico_usd: Sum,
    /// Requests that came into the group, and that left it.
    pub came: u64,
    pub left: u64,
}

impl Group {
    fn merge(&mut self, other: &Self) {
        self.recorded.merge(&other.recorded);
        self.candidate.merge(&other.candidate);
        self.cost_low_pico_usd.merge(other.cost_low_pico_usd);
        self.cost_high_pico_usd.merge(other.cost_high_pico_usd);
        self.came += other.came;
        self.left += other.left;
    }

    fn add_candidate(&mut self, row: &Row) {
        self.candidate.add(&row.candidate);
        for (sum, cost) in [(&mut self.cost_low_pico_usd, row.cost_low), (&mut self.cost_high_pico_usd, row.cost_high)]
        {
            sum.add(cost.unwrap_or(PicoUsd::ZERO));
        }
    }
}

/// Milliseconds, to two significant digits, and how many had them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Latency(BTreeMap<u64, u64>);

impl Latency {
    fn add(&mut self, ms: u64) {
        let mut unit = 1;
        while ms / unit >= 100 {
            unit *= 10;
        }
        *self.0.entry(ms / unit * unit).or_default() += 1;
    }

    fn merge(&mut self, other: &Self) {
        for (ms, count) in &other.0 {
            *self.0.entry(*ms).or_default() += count;
        }
    }

    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// What so many percent of them do not exceed.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        self.0.iter().find_map(|(ms, count)| {
            seen += count;
            (seen >= rank).then_some(*ms)
        })
    }
}

/// What became of the requests of a replay under one candidate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    pub candidate: String,
    pub counts: Counts,
    pub all: Group,
    /// Requests that differ in anything, and in what.
    pub differing: u64,
    pub changes: BTreeMap<String, u64>,
    /// Requests with an estimated outcome.
    pub estimated: u64,
    /// Requests that had not ended where the log ends.
    pub open: u64,
    pub tiers: BTreeMap<String, Group>,
    pub models: BTreeMap<String, Group>,
    pub organizations: BTreeMap<String, Group>,
    /// From one tier to another, `from > to`.
    pub moves: BTreeMap<String, u64>,
    pub first_token_recorded: Latency,
    pub first_token_candidate: Latency,
    pub duration_recorded: Latency,
    pub duration_candidate: Latency,
}

impl Report {
    pub fn of(candidate: &str) -> Self {
        Self { candidate: candidate.to_owned(), ..Self::default() }
    }

    pub fn add(&mut self, row: &Row) {
        self.all.recorded.add(&row.recorded);
        self.all.add_candidate(row);
        self.differing += u64::from(!row.changes.is_empty());
        for change in &row.changes {
            count_one(&mut self.changes, change.name());
        }
        self.estimated += u64::from(row.estimated);
        self.open += u64::from(row.recorded.outcome.is_none() || row.candidate.outcome.is_none());
        let (from, to) = (tier_name(row.recorded.tier), tier_name(row.candidate.tier));
        if from != to {
            count_one(&mut self.moves, &format!("{from} > {to}"));
        }
        group(&mut self.tiers, &from, &to, row);
        group(&mut self.models, model_name(&row.recorded), model_name(&row.candidate), row);
        let organization = row.organization.as_str();
        let is_told = self.organizations.contains_key(organization) || self.organizations.len() < ORGANIZATIONS_MAX;
        let organization = if is_told { organization } else { OTHERS };
        group(&mut self.organizations, organization, organization, row);
        let latencies = [
            (&mut self.first_token_recorded, row.recorded.time_to_first_token_ms),
            (&mut self.first_token_candidate, row.candidate.time_to_first_token_ms),
            (&mut self.duration_recorded, row.recorded.duration_ms),
            (&mut self.duration_candidate, row.candidate.duration_ms),
        ];
        for (latency, ms) in latencies {
            ms.into_iter().for_each(|ms| latency.add(ms));
        }
    }

    pub fn count(&mut self, counts: Counts) {
        self.counts.commits += counts.commits;
        self.counts.identical += counts.identical;
        self.counts.not_decided += counts.not_decided;
        self.counts.repeats += counts.repeats;
        self.counts.without_content += counts.without_content;
        let room = UNLIKE_MAX.saturating_sub(self.counts.unlike.len());
        self.counts.unlike.extend(counts.unlike.into_iter().take(room));
    }

    /// Adds that of another partition. The order of the partitions decides only which of many organizations are told apart.
    pub fn merge(&mut self, other: Self) {
        self.count(other.counts);
        self.all.merge(&other.all);
        self.differing += other.differing;
        self.estimated += other.estimated;
        self.open += other.open;
        for (mine, theirs) in [(&mut self.changes, other.changes), (&mut self.moves, other.moves)] {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
        for (mine, theirs) in [(&mut self.tiers, other.tiers), (&mut self.models, other.models)] {
            for (name, group) in theirs {
                mine.entry(name).or_default().merge(&group);
            }
        }
        for (name, group) in other.organizations {
            let is_told = self.organizations.contains_key(&name) || self.organizations.len() < ORGANIZATIONS_MAX;
            let name = if is_told { name } else { OTHERS.to_owned() };
            self.organizations.entry(name).or_default().merge(&group);
        }
        self.first_token_recorded.merge(&other.first_token_recorded);
        self.first_token_candidate.merge(&other.first_token_candidate);
        self.duration_recorded.merge(&other.duration_recorded);
        self.duration_candidate.merge(&other.duration_candidate);
    }

    /// Decisions that differ although nothing was changed.
    pub fn unlike(&self) -> &[Unlike] {
        &self.counts.unlike
    }

    /// How often each change is there, in their order.
    pub fn changes(&self) -> impl Iterator<Item = (Change, u64)> + '_ {
        Change::ALL.into_iter().filter_map(|change| Some((change, *self.changes.get(change.name())?)))
    }
}

fn group(groups: &mut BTreeMap<String, Group>, from: &str, to: &str, row: &Row) {
    let moved = from != to;
    change(groups, from, |before| {
        before.recorded.add(&row.recorded);
        before.left += u64::from(moved);
    });
    change(groups, to, |after| {
        after.add_candidate(row);
        after.came += u64::from(moved);
    });
}

/// Changes the entry of that name; the name is copied only for a new one.
fn change<T: Default>(entries: &mut BTreeMap<String, T>, name: &str, make: impl FnOnce(&mut T)) {
    match entries.get_mut(name) {
        Some(entry) => make(entry),
        None => make(entries.entry(name.to_owned()).or_default()),
    }
}

fn count_one(counts: &mut BTreeMap<String, u64>, name: &str) {
    change(counts, name, |count| *count += 1);
}

fn tier_name(tier: Option<u8>) -> Cow<'static, str> {
    match tier {
        None => NO_CALL.into(),
        Some(1) => "T1".into(),
        Some(2) => "T2".into(),
        Some(3) => "T3".into(),
        Some(4) => "T4".into(),
        Some(tier) => format!("T{tier}").into(),
    }
}

fn model_name(half: &Half) -> &str {
    half.model.as_ref().map_or(NO_CALL, ModelName::as_str)
}
