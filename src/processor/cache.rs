//! Answers that are kept for those who ask the same: which ones an organization has, and what becomes of a request that
//! asks for one of them.
//!
//! What is here is the fold of the journal: the bodies are elsewhere (`runtime::shelf`), and whoever decides is told
//! whether one is at hand. An organization's answers are found by its own fingerprints alone, so nothing crosses from one
//! to another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::router::Route;
use crate::control::Tables;
use crate::control::terms::Terms;
use crate::domain::{DeploymentId, Fingerprint, ModelName, OrganizationId, PolicyName, RequestId, Timestamp};
use crate::records::control::Caching;
use crate::records::journal::{AttemptSource, CacheInserted, CacheLookedUp, CacheOutcome};

/// Most answers that one commit says are kept no longer.
pub const EVICTED_MAX: usize = 256;
/// Longest time for which an answer is kept, in seconds: 30 days.
pub const TTL_SECONDS_MAX: u64 = 30 * 24 * 3_600;
/// How many times as long as the first one has left who shares its call may have: whoever has more time than that is not
/// made to end with the first one's deadline.
pub const SHARED_TIME_FACTOR_MAX: u32 = 2;

/// What a request says about the cache, as `cache-control` or in its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Directives {
    /// A new answer is wanted.
    pub no_cache: bool,
    /// The answer is not to be kept.
    pub no_store: bool,
    /// An older answer than that is not wanted.
    pub max_age_seconds: Option<u64>,
    /// The answer is to be kept no longer than that.
    pub ttl_seconds: Option<u64>,
}

impl Directives {
    /// Reads `no-cache`, `no-store` and `max-age=SECONDS`, separated by commas; what else there may be is passed over, as
    /// RFC 9111 (5.2) wants it.
    ///
    /// # Errors
    /// What is wrong with one of the three.
    pub fn parse(header: &str) -> Result<Self, String> {
        let mut directives = Self::default();
        for directive in header.split(',') {
            let (name, value) =
                directive.split_once('=').map_or((directive, None), |(name, value)| (name, Some(value)));
            match (name.trim().to_ascii_lowercase().as_str(), value) {
                ("no-cache", _) => directives.no_cache = true,
                ("no-store", _) => directives.no_store = true,
                ("max-age", value) => {
                    let seconds = value.map(|value| value.trim().trim_matches('"')).unwrap_or_default();
                    let parsed = seconds.parse::<u64>();
                    let wrong = |_| format!("max-age wants a number of seconds, and has {seconds:?}");
                    let seconds = parsed.map_err(wrong)?;
                    directives.max_age_seconds = directives.max_age_seconds.into_iter().chain([seconds]).min();
                }
                _ => {}
            }
        }
        Ok(directives)
    }

    /// Reads the member `cache` of a body, in the words of LiteLLM's proxy (docs.litellm.ai/docs/proxy/caching); what else
    /// there may be in it is passed over.
    ///
    /// # Errors
    /// The member that is wrong, and what is expected of it.
    pub fn of_member(member: &RawValue) -> Result<Self, (&'static str, &'static str)> {
        #[derive(Deserialize)]
        struct Member<'a> {
            #[serde(borrow, default, rename = "no-cache")]
            no_cache: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "no-store")]
            no_store: Option<&'a RawValue>,
            #[serde(borrow, default)]
            ttl: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "s-maxage")]
            max_age: Option<&'a RawValue>,
        }
        fn value<'a, T: Deserialize<'a>>(
            raw: Option<&'a RawValue>,
            wrong: (&'static str, &'static str),
        ) -> Result<Option<T>, (&'static str, &'static str)> {
            let read = raw.map(|raw| serde_json::from_str::<Option<T>>(raw.get()));
            read.transpose().map(Option::flatten).map_err(|_| wrong)
        }
        let (flag, seconds) = ("a boolean is expected", "a whole number of seconds is expected");
        let object = ("cache", "an object is expected");
        if member.get() == "null" {
            return Ok(Self::default());
        }
        // A list would be taken for its members in their order.
        if !member.get().starts_with('{') {
            return Err(object);
        }
        let Member { no_cache, no_store, ttl, max_age } = serde_json::from_str(member.get()).map_err(|_| object)?;
        Ok(Self {
            no_cache: value(no_cache, ("cache.no-cache", flag))?.unwrap_or(false),
            no_store: value(no_store, ("cache.no-store", flag))?.unwrap_or(false),
            max_age_seconds: value(max_age, ("cache.s-maxage", seconds))?,
            ttl_seconds: value(ttl, ("cache.ttl", seconds))?,
        })
    }

    /// As a header says it, if it says anything: what [`parse`](Self::parse) reads, and nothing else.
    pub fn header(&self) -> Option<String> {
        let Self { no_cache, no_store, max_age_seconds, ttl_seconds: _ } = self;
        let said = [
            no_cache.then(|| "no-cache".to_owned()),
            no_store.then(|| "no-store".to_owned()),
            max_age_seconds.map(|seconds| format!("max-age={seconds}")),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        (!said.is_empty()).then(|| said.join(", "))
    }

    /// Both, the stricter where they differ.
    pub fn and(self, other: Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            no_cache: self.no_cache || other.no_cache,
            no_store: self.no_store || other.no_store,
            max_age_seconds: least(self.max_age_seconds, other.max_age_seconds),
            ttl_seconds: least(self.ttl_seconds, other.ttl_seconds),
        }
    }
}

/// What a request that may be answered from the cache asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Of what determines the answer, but for who answers.
    pub content: Fingerprint,
    pub directives: Directives,
    pub bodies: Bodies<'a>,
}

/// Whether the body of an answer is at hand.
#[derive(Debug, Clone, Copy)]
pub enum Bodies<'a> {
    Live(&'a dyn Shelf),
    /// As it was when it was decided.
    Recorded {
        is_lost: bool,
        /// The call of another one was shared, whatever time its asker had: what was refused in the end does not say.
        is_shared: bool,
    },
}

impl Bodies<'_> {
    fn has(self, organization: &OrganizationId, fingerprint: Fingerprint) -> bool {
        match self {
            Self::Live(shelf) => shelf.has(organization, fingerprint),
            Self::Recorded { is_lost, .. } => !is_lost,
        }
    }
}

/// Where the bodies are.
pub trait Shelf: fmt::Debug {
    fn has(&self, organization: &OrganizationId, fingerprint: Fingerprint) -> bool;
}

/// How an answer is found among those of an organization: by what was asked, and by who would answer it.
pub trait Finder {
    /// The fingerprint under which the answer to this request is kept, or would be.
    fn find(&self, entries: Option<&Entries>, content: Fingerprint, route: &str) -> Fingerprint;
}

/// Answers to exactly the same.
pub struct Exact;

impl Finder for Exact {
    fn find(&self, _: Option<&Entries>, content: Fingerprint, route: &str) -> Fingerprint {
        content.with(route)
    }
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub fingerprint: Fingerprint,
    pub bytes: u64,
    pub kept_at: Timestamp,
    pub expires_at: Timestamp,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    pub tier: u8,
    pub hits: u64,
    /// The number of its last use among all uses of the partition.
    pub used: u64,
}

/// The answers of one organization.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entries {
    by_fingerprint: HashMap<Fingerprint, Entry>,
    by_use: BTreeMap<u64, Fingerprint>,
    bytes: u64,
    /// The requests for which somebody is called, by what they ask.
    flights: HashMap<Fingerprint, RequestId>,
    /// How many requests wait for the call of another one.
    followers: HashMap<RequestId, u32>,
}

impl Entries {
    pub fn get(&self, fingerprint: Fingerprint) -> Option<&Entry> {
        self.by_fingerprint.get(&fingerprint)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_fingerprint.values()
    }

    pub fn len(&self) -> usize {
        self.by_fingerprint.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_fingerprint.is_empty()
    }

    /// Of all bodies.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What has to go, the least recently used first, so that an answer of so many bytes fits. `None`: it never does, or
    /// too many would have to go.
    fn to_evict(&self, fingerprint: Fingerprint, bytes: u64, caching: &Caching) -> Option<Vec<Fingerprint>> {
        let before = self.get(fingerprint).map(|entry| entry.bytes);
        let mut all = self.bytes - before.unwrap_or(0) + bytes;
        let mut count = self.len() as u64 + u64::from(before.is_none());
        let mut out = Vec::new();
        let mut by_use = self.by_use.values().filter(|other| **other != fingerprint);
        while all > caching.bytes_max || count > caching.entries_max {
            let next = by_use.next().filter(|_| out.len() < EVICTED_MAX)?;
            all -= self.get(*next).map_or(0, |entry| entry.bytes);
            count -= 1;
            out.push(*next);
        }
        Some(out)
    }

    fn is_idle(&self) -> bool {
        self.by_fingerprint.is_empty() && self.flights.is_empty() && self.followers.is_empty()
    }
}

/// The answers of a partition's organizations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Index {
    organizations: HashMap<OrganizationId, Entries>,
    expiries: BTreeSet<(Timestamp, OrganizationId, Fingerprint)>,
    uses: u64,
}

impl Index {
    pub fn restore(uses: u64, entries: impl IntoIterator<Item = (OrganizationId, Vec<Entry>)>) -> Self {
        let mut index = Self { uses, ..Self::default() };
        for (organization, entries) in entries {
            for entry in entries {
                index.put(&organization, entry);
            }
        }
        index
    }

    /// Of the last one.
    pub const fn uses(&self) -> u64 {
        self.uses
    }

    pub fn organizations(&self) -> impl Iterator<Item = (&OrganizationId, &Entries)> {
        self.organizations.iter()
    }

    pub fn of(&self, organization: &OrganizationId) -> Option<&Entries> {
        self.organizations.get(organization)
    }

    pub fn get(&self, organization: &OrganizationId, fingerprint: Fingerprint) -> Option<&Entry> {
        self.of(organization)?.get(fingerprint)
    }

    /// The request for which somebody is called that asks for this.
    pub fn flight(&self, organization: &OrganizationId, fingerprint: Fingerprint) -> Option<&RequestId> {
        self.of(organization)?.flights.get(&fingerprint)
    }

    /// How many requests wait for the call of this one.
    pub fn followers(&self, organization: &OrganizationId, request: &RequestId) -> u32 {
        self.of(organization).and_then(|entries| entries.followers.get(request)).copied().unwrap_or(0)
    }

    /// Answers of one organization whose time is over at `now`, and whose it is.
    pub fn expired(&self, now: Timestamp) -> Option<(&OrganizationId, Vec<Fingerprint>)> {
        let (first, organization, _) = self.expiries.first()?;
        let over = || self.expiries.iter().take_while(|(at, ..)| *at <= now);
        let of_it = || over().filter(|(_, of, _)| of == organization).take(EVICTED_MAX).map(|(.., one)| *one);
        (*first <= now).then(|| (organization, of_it().collect()))
    }

    /// What of an organization's answers would be purged.
    pub fn to_purge(
        &self,
        organization: &OrganizationId,
        model: Option<&ModelName>,
        before: Option<Timestamp>,
    ) -> Vec<Fingerprint> {
        let is_meant = |entry: &&Entry| {
            model.is_none_or(|model| entry.model == *model) && before.is_none_or(|before| entry.kept_at < before)
        };
        let entries = self.of(organization).into_iter().flat_map(Entries::iter).filter(is_meant);
        let mut meant: Vec<Fingerprint> = entries.map(|entry| entry.fingerprint).collect();
        meant.sort_unstable();
        meant
    }

    pub(super) fn inserted(&mut self, organization: &OrganizationId, fact: &CacheInserted, at: Timestamp) {
        self.uses += 1;
        let entry = Entry {
            fingerprint: fact.fingerprint,
            bytes: fact.bytes,
            kept_at: at,
            expires_at: fact.expires_at,
            model: fact.model.clone(),
            deployment: fact.deployment.clone(),
            provider: fact.provider.clone(),
            tier: fact.tier,
            hits: 0,
            used: self.uses,
        };
        self.put(organization, entry);
    }

    fn put(&mut self, organization: &OrganizationId, entry: Entry) {
        self.remove(organization, entry.fingerprint);
        self.expiries.insert((entry.expires_at, organization.clone(), entry.fingerprint));
        let entries = self.organizations.entry(organization.clone()).or_default();
        entries.bytes += entry.bytes;
        entries.by_use.insert(entry.used, entry.fingerprint);
        entries.by_fingerprint.insert(entry.fingerprint, entry);
    }

    /// An answer was given once more.
    pub(super) fn hit(&mut self, organization: &OrganizationId, fingerprint: Fingerprint) {
        let Some(entries) = self.organizations.get_mut(organization) else { return };
        let Some(entry) = entries.by_fingerprint.get_mut(&fingerprint) else { return };
        self.uses += 1;
        entries.by_use.remove(&entry.used);
        entries.by_use.insert(self.uses, fingerprint);
        entry.used = self.uses;
        entry.hits += 1;
    }

    pub(super) fn remove(&mut self, organization: &OrganizationId, fingerprint: Fingerprint) {
        self.change(organization, |entries, expiries| {
            let Some(entry) = entries.by_fingerprint.remove(&fingerprint) else { return };
            entries.by_use.remove(&entry.used);
            entries.bytes -= entry.bytes;
            expiries.remove(&(entry.expires_at, organization.clone(), fingerprint));
        });
    }

    /// Somebody is called for a request whose answer may be kept.
    /// `false`: somebody is called for another one that asks the same.
    pub(super) fn flight_began(
        &mut self,
        organization: &OrganizationId,
        fingerprint: Fingerprint,
        of: &RequestId,
    ) -> bool {
        let entries = self.organizations.entry(organization.clone()).or_default();
        *entries.flights.entry(fingerprint).or_insert_with(|| of.clone()) == *of
    }

    pub(super) fn flight_ended(&mut self, organization: &OrganizationId, fingerprint: Fingerprint, of: &RequestId) {
        self.change(organization, |entries, _| {
            if entries.flights.get(&fingerprint) == Some(of) {
                entries.flights.remove(&fingerprint);
            }
        });
    }

    pub(super) fn follower_came(&mut self, organization: &OrganizationId, of: &RequestId) {
        *self.organizations.entry(organization.clone()).or_default().followers.entry(of.clone()).or_default() += 1;
    }

    pub(super) fn follower_went(&mut self, organization: &OrganizationId, of: &RequestId) {
        self.change(organization, |entries, _| {
            if let Some(count) = entries.followers.get_mut(of) {
                *count -= 1;
                if *count == 0 {
                    entries.followers.remove(of);
                }
            }
        });
    }

    fn change(
        &mut self,
        organization: &OrganizationId,
        change: impl FnOnce(&mut Entries, &mut BTreeSet<(Timestamp, OrganizationId, Fingerprint)>),
    ) {
        let Some(entries) = self.organizations.get_mut(organization) else { return };
        change(entries, &mut self.expiries);
        if entries.is_idle() {
            self.organizations.remove(organization);
        }
    }
}

/// What was found, and who answers by it.
#[derive(Debug, Clone)]
pub(super) struct Found<'a> {
    pub fact: CacheLookedUp,
    pub answer: Option<Answer<'a>>,
}

/// What a request is answered with instead of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer<'a> {
    Kept(&'a Entry),
    /// The call of this request.
    Flight(&'a RequestId),
}

/// Looks for the answer to a request that `who` would answer. `None`: its plan keeps no answers, or there is nothing that it
/// would want of them.
pub(super) fn look_up<'a>(
    index: &'a Index,
    organization: &OrganizationId,
    wanted: &Wanted<'_>,
    who: &str,
    (control, terms, at): (&Tables, &Terms<'_>, Timestamp),
    may_share: impl Fn(&RequestId) -> bool,
) -> Option<Found<'a>> {
    terms.plan.cache.as_ref()?;
    let Directives { no_cache, no_store, max_age_seconds, ttl_seconds } = wanted.directives;
    if no_cache && no_store {
        return None;
    }
    let entries = index.of(organization);
    let fingerprint = Exact.find(entries, wanted.content, who);
    let keeps = !no_store;
    let said = |outcome, age_ms| CacheLookedUp {
        content: wanted.content,
        fingerprint,
        outcome,
        keeps,
        ttl_seconds,
        max_age_seconds,
        age_ms,
    };
    if no_cache {
        return Some(Found { fact: said(CacheOutcome::Bypassed, None), answer: None });
    }
    let entry = entries.and_then(|entries| entries.get(fingerprint));
    let mut missed = CacheOutcome::Miss;
    if let Some(entry) = entry {
        let age_ms = u64::try_from(at.since(entry.kept_at).as_millis()).unwrap_or(u64::MAX);
        let is_too_old =
            entry.expires_at <= at || max_age_seconds.is_some_and(|most| age_ms > most.saturating_mul(1_000));
        let is_allowed = control.model(&entry.model).is_some_and(|(name, model)| terms.allow(name, &model.value));
        if is_too_old {
            missed = CacheOutcome::Expired;
        } else if is_allowed && wanted.bodies.has(organization, fingerprint) {
            let fact = said(CacheOutcome::Hit, Some(age_ms));
            return Some(Found { fact, answer: Some(Answer::Kept(entry)) });
        } else if is_allowed {
            missed = CacheOutcome::Lost;
        }
    }
    let is_shared = matches!(wanted.bodies, Bodies::Recorded { is_shared: true, .. });
    let flight = entries.and_then(|entries| entries.flights.get(&fingerprint));
    match flight.filter(|leader| is_shared || may_share(leader)) {
        Some(leader) => Some(Found { fact: said(CacheOutcome::Shared, None), answer: Some(Answer::Flight(leader)) }),
        None => Some(Found { fact: said(missed, None), answer: None }),
    }
}

/// Who would answer: a model, or a tier of a policy.
pub(super) fn who_answers(policy: Option<&PolicyName>, route: &Route) -> String {
    match (policy, route.routed.candidates.first()) {
        (Some(policy), _) => format!("policy:{policy}:{}", route.tier),
        (None, Some(first)) => format!("model:{}", first.model),
        (None, None) => String::new(),
    }
}

/// An answer that may be kept, and what has to go for it. `None`: it is not kept.
pub(super) fn insert(
    index: &Index,
    organization: &OrganizationId,
    looked_up: &CacheLookedUp,
    answer: Kept<'_>,
    (caching, at): (&Caching, Timestamp),
) -> Option<(CacheInserted, Vec<Fingerprint>)> {
    let fingerprint = looked_up.fingerprint;
    let out = match index.of(organization) {
        Some(entries) => entries.to_evict(fingerprint, answer.bytes, caching)?,
        None => Entries::default().to_evict(fingerprint, answer.bytes, caching)?,
    };
    let ttl = looked_up.ttl_seconds.unwrap_or(u64::MAX).min(caching.ttl_seconds).min(TTL_SECONDS_MAX);
    let inserted = CacheInserted {
        fingerprint,
        bytes: answer.bytes,
        expires_at: at.plus(std::time::Duration::from_secs(ttl)),
        model: answer.model.clone(),
        deployment: answer.deployment.clone(),
        provider: answer.provider.to_owned(),
        tier: answer.tier,
    };
    (ttl > 0).then_some((inserted, out))
}

/// An answer that is to be kept.
pub(super) struct Kept<'a> {
    pub bytes: u64,
    pub model: &'a ModelName,
    pub deployment: &'a DeploymentId,
    pub provider: &'a str,
    pub tier: u8,
}

/// How a look into the cache is told to the client.
pub(super) const fn outcome_of(source: AttemptSource, looked_up: Option<&CacheLookedUp>) -> Option<CacheOutcome> {
    match (source, looked_up) {
        (AttemptSource::Cache, Some(_)) => Some(CacheOutcome::Hit),
        (AttemptSource::Shared, Some(_)) => Some(CacheOutcome::Shared),
        (_, Some(looked_up)) => Some(match looked_up.outcome {
            // It was not to be had in the end.
            CacheOutcome::Hit | CacheOutcome::Shared => CacheOutcome::Lost,
            outcome => outcome,
        }),
        (_, None) => None,
    }
}
