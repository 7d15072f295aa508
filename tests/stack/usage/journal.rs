//! A journal as its owners write it, former owners and repeats included, and what it says was spent.

use std::collections::BTreeMap;
use std::sync::Arc;

use tollstream::domain::ids::partition_of;
use tollstream::domain::{
    DeploymentId, Fingerprint, KeyId, ModelName, OrganizationId, PicoUsd, PolicyName, RequestId, Timestamp, TokenUsage,
    UserId,
};
use tollstream::records::journal::{
    Account, AttemptEnded, CacheEvicted, CacheInserted, CacheLookedUp, CacheOutcome, CachePurged, Candidate, Commit,
    Entry, Eviction, Fact, InputKind, IntentSource, JournalRecord, Overdrawn, OwnershipTaken, Period, RequestContext,
    RequestRefused, RequestRouted, RequestSettled, ThresholdCrossed, Tiering,
};
use tollstream::records::{Origin, Outcome, Topic, UsageSource};

use super::world::{PARTITIONS, World};

/// 2026-10-31T22:00:00Z: the months change two hours later.
const BEGIN: i64 = 1_793_484_000_000;
const MODELS: [&str; 3] = ["llama-3.2-3b-instruct", "claude-haiku-4-5", "claude-opus-4-6"];

/// What one posting must be in ClickHouse.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Posting {
    pub partition: i32,
    pub offset: i64,
    pub index: i32,
    pub organization: String,
    pub model: Option<String>,
    pub cost: Option<i128>,
    pub hour: i64,
}

#[derive(Clone, Copy)]
struct Tenure {
    id: i64,
    next_sequence: i64,
}

/// The owners of all partitions.
pub struct Owners {
    tenures: Vec<Tenure>,
    pub postings: Vec<Posting>,
    /// Facts that have a table of their own: the table, and the fact's place.
    pub events: Vec<Event>,
    requests: u64,
}

/// A fact that must be a row of a table: partition, offset and index.
pub type Event = (&'static str, i32, i64, i32);

impl Owners {
    /// Takes all partitions.
    pub async fn take(world: &World) -> Self {
        let mut owners = Self { tenures: Vec::new(), postings: Vec::new(), events: Vec::new(), requests: 0 };
        for partition in 0..PARTITIONS {
            let id = append(world, partition, taken()).await;
            owners.tenures.push(Tenure { id, next_sequence: 0 });
        }
        owners
    }

    /// Somebody else takes a partition; the former owner does not notice and writes on for a while, in vain.
    pub async fn take_over(&mut self, world: &World, partition: i32) {
        let former = self.tenures[partition as usize];
        let id = append(world, partition, taken()).await;
        self.tenures[partition as usize] = Tenure { id, next_sequence: 0 };
        let organization = organization_of(partition);
        for late in 0..3 {
            let facts = vec![routed(7), refused(), ended(1, 7, Outcome::Completed, Some(999_999)), crossed(7)];
            let sequence = former.next_sequence + late;
            append(world, partition, commit(&organization, "late", former.id, sequence, 0, facts)).await;
        }
    }

    /// The life of one request, somewhere; the kind of life follows from its number.
    pub async fn request(&mut self, world: &World) {
        let number = self.requests;
        self.requests += 1;
        let organization = format!("organization-{}", number % 7);
        // Costs that only fit exactly into 128 bits when they are added, and that no float could hold.
        let cost = 1_000_000_000_000_000_001 + (number as i128) * 333_333_333;
        match number % 5 {
            0 => {
                self.effective(world, &organization, vec![refused()]).await;
            }
            1 => {
                self.effective(world, &organization, vec![ended(1, number, Outcome::Failed, None)]).await;
                let facts = vec![ended(2, number + 1, Outcome::Completed, Some(cost)), settled(Outcome::Completed, 2)];
                self.effective(world, &organization, facts).await;
            }
            2 => {
                let facts = vec![
                    routed(number),
                    ended(1, number, Outcome::Failed, Some(0)),
                    ended(2, number + 1, Outcome::Failed, Some(cost)),
                    overdrawn(number),
                    settled(Outcome::Failed, 2),
                ];
                self.effective(world, &organization, facts).await;
            }
            _ => {
                let facts = vec![
                    routed(number),
                    looked_up(number),
                    ended(1, number, Outcome::Completed, Some(cost)),
                    settled(Outcome::Completed, 1),
                    crossed(number),
                    inserted(number),
                    evicted(number),
                ];
                self.effective(world, &organization, facts).await;
            }
        }
    }

    pub async fn requests(&mut self, world: &World, count: u64) {
        for _ in 0..count {
            self.request(world).await;
        }
    }

    pub const fn requests_made(&self) -> u64 {
        self.requests
    }

    /// Somebody has an organization's answers forgotten, which is no request.
    pub async fn purge(&mut self, world: &World, organization: &str) {
        let partition = partition_of(organization, PARTITIONS as u32);
        let tenure = &mut self.tenures[partition as usize];
        let fact = Fact::CachePurged(CachePurged { model: None, before: None, entries: 3 });
        let mut entry = commit(organization, "none", tenure.id, tenure.next_sequence, self.requests, vec![fact]);
        tenure.next_sequence += 1;
        let Entry::Commit(commit) = &mut entry else { panic!("a commit") };
        commit.request = None;
        let offset = append(world, partition, entry).await;
        self.events.push(("cache_changes", partition, offset, 0));
    }

    async fn effective(&mut self, world: &World, organization: &str, facts: Vec<Fact>) {
        let partition = partition_of(organization, PARTITIONS as u32);
        let tenure = &mut self.tenures[partition as usize];
        let (id, sequence, request) = (tenure.id, tenure.next_sequence, format!("request-{}", self.requests));
        tenure.next_sequence += 1;
        let entry = commit(organization, &request, id, sequence, self.requests, facts.clone());
        let Entry::Commit(Commit { at, .. }) = &entry else { panic!("a commit") };
        let hour = at.as_millis() / 3_600_000 * 3_600;
        let offset = append(world, partition, entry.clone()).await;
        if self.requests.is_multiple_of(10) {
            // The producer sent it twice: the same sequence does not count again.
            append(world, partition, entry).await;
        }
        for (index, fact) in (0..).zip(&facts) {
            let table = match fact {
                Fact::RequestRouted(_) => Some("routing_decisions"),
                Fact::RequestRefused(_) => Some("refusals"),
                Fact::Overdrawn(_) | Fact::ThresholdCrossed(_) => Some("budget_events"),
                Fact::CacheLookedUp(_) => Some("cache_lookups"),
                Fact::CacheInserted(_) | Fact::CacheEvicted(_) | Fact::CachePurged(_) => Some("cache_changes"),
                _ => None,
            };
            self.events.extend(table.map(|table| (table, partition, offset, index)));
            let (model, cost) = match fact {
                Fact::AttemptEnded(ended) => (Some(ended.model.to_string()), ended.cost_pico_usd.map(PicoUsd::get)),
                Fact::RequestRefused(_) => (None, Some(0)),
                _ => continue,
            };
            let organization = organization.to_owned();
            self.postings.push(Posting { partition, offset, index, organization, model, cost, hour });
        }
    }

    /// All postings, in the order of their ids.
    pub fn sorted(&self) -> Vec<Posting> {
        let mut postings = self.postings.clone();
        postings.sort();
        postings
    }

    /// What every organization spent on every model in every hour, as far as it is known.
    pub fn spent(&self) -> BTreeMap<(String, Option<String>, i64), Option<i128>> {
        let mut spent: BTreeMap<_, Option<i128>> = BTreeMap::new();
        for posting in &self.postings {
            let sum = spent.entry((posting.organization.clone(), posting.model.clone(), posting.hour)).or_default();
            if let Some(cost) = posting.cost {
                *sum = Some(sum.unwrap_or(0) + cost);
            }
        }
        spent
    }
}

async fn append(world: &World, partition: i32, entry: Entry) -> i64 {
    let mut payload = Vec::new();
    world.codec.encode(&JournalRecord::from(entry), &mut payload).unwrap();
    world.put(Topic::Journal, partition, "key", &payload).await
}

/// Some organization that lives on a partition.
pub fn organization_of(partition: i32) -> String {
    let names = (0..).map(|number| format!("organization-{number}"));
    names.into_iter().find(|name| partition_of(name, PARTITIONS as u32) == partition).unwrap()
}

pub fn taken() -> Entry {
    let at = Timestamp::from_millis(BEGIN);
    Entry::OwnershipTaken(OwnershipTaken { owner: "somebody".into(), at, version: "0".into() })
}

pub fn commit(organization: &str, request: &str, tenure: i64, sequence: i64, time: u64, facts: Vec<Fact>) -> Entry {
    let received_at = Timestamp::from_millis(BEGIN + (time as i64) * 17_000);
    Entry::Commit(Commit {
        tenure,
        sequence,
        input: InputKind::Provider,
        source_offset: None,
        at: Timestamp::from_millis(received_at.as_millis() + 321),
        control_offset: 12,
        organization: Some(OrganizationId::parse(organization).unwrap()),
        request: Some(Arc::new(RequestContext {
            request_id: RequestId::parse(request).unwrap(),
            lane: 0,
            key_id: Some(KeyId::parse("key-1").unwrap()),
            user: Some(UserId::parse("user-1").unwrap()),
            user_tier: Some("vip".into()),
            tags: [("team".to_owned(), "search".to_owned())].into(),
            conversation_id: None,
            requested_model: Some(ModelName::parse("auto").unwrap()),
            tier: Some(2),
            policy: Some(PolicyName::parse("auto").unwrap()),
            policy_version: Some(3),
            arm: None,
            origin: Origin::Live,
            traceparent: None,
            received_at,
            stream: true,
        })),
        facts,
        health: Vec::new(),
    })
}

pub fn ended(attempt: u32, model: u64, outcome: Outcome, cost: Option<i128>) -> Fact {
    let tier = (model % 3) as usize;
    let usage = TokenUsage { input: Some(10), cached_input: Some(4), output: Some(20), ..TokenUsage::default() };
    Fact::AttemptEnded(Box::new(AttemptEnded {
        attempt,
        model: ModelName::parse(MODELS[tier]).unwrap(),
        deployment: DeploymentId::parse(&format!("deployment-{tier}")).unwrap(),
        provider: "provider".into(),
        tier: tier as u8 + 1,
        simulated: false,
        outcome,
        error_code: (outcome == Outcome::Failed).then(|| "upstream_error".into()),
        upstream_status: (outcome == Outcome::Failed).then_some(500),
        finish_reason: None,
        content_frames: 2,
        time_to_first_token_ms: Some(100),
        duration_ms: Some(300),
        usage: if cost.is_some() { usage } else { TokenUsage::default() },
        usage_source: UsageSource::Reported,
        price_version: 9,
        price_simulated: false,
        cost_pico_usd: cost.map(PicoUsd::new),
        booking: None,
        retry_after_ms: None,
        shortfall: None,
        saved: None,
        source: tollstream::records::journal::AttemptSource::Provider,
    }))
}

fn refused() -> Fact {
    Fact::RequestRefused(RequestRefused {
        code: "rate_limit_exceeded".into(),
        status: 429,
        told: None,
        features: None,
        limit: Some("key.requests_per_minute".into()),
    })
}

fn routed(number: u64) -> Fact {
    let candidates = (0..3).map(|tier| Candidate {
        model: ModelName::parse(MODELS[tier]).unwrap(),
        deployment: DeploymentId::parse(&format!("deployment-{tier}")).unwrap(),
        tier: tier as u8 + 1,
    });
    Fact::RequestRouted(Arc::new(RequestRouted {
        candidates: candidates.collect(),
        max_attempts: 3,
        reasons: vec!["tier by intent".into()],
        tiering: Some(Tiering {
            intent: Some("faq".into()),
            intent_source: IntentSource::Classified,
            confidence_permille: Some((number % 1_000) as u16),
            score: None,
            tier: 1,
        }),
    }))
}

fn overdrawn(number: u64) -> Fact {
    Fact::Overdrawn(Overdrawn { attempt: 2, amount_pico_usd: PicoUsd::new(1 + i128::from(number)) })
}

fn crossed(number: u64) -> Fact {
    Fact::ThresholdCrossed(ThresholdCrossed {
        account: Account::Organization,
        period: Period::Month,
        percent: 80,
        limit_pico_usd: PicoUsd::new(5_000_000_000_000_000),
        posted_pico_usd: PicoUsd::new(4_000_000_000_000_001 + i128::from(number)),
    })
}

fn looked_up(number: u64) -> Fact {
    Fact::CacheLookedUp(CacheLookedUp {
        content: Fingerprint::new(7),
        fingerprint: Fingerprint::new(u128::from(number)),
        outcome: CacheOutcome::Miss,
        keeps: true,
        ttl_seconds: Some(60),
        max_age_seconds: None,
        age_ms: None,
    })
}

fn inserted(number: u64) -> Fact {
    Fact::CacheInserted(Box::new(CacheInserted {
        fingerprint: Fingerprint::new(u128::from(number)),
        bytes: 1_000 + number,
        expires_at: Timestamp::from_millis(BEGIN + 3_600_000),
        model: ModelName::parse(MODELS[0]).unwrap(),
        deployment: DeploymentId::parse("deployment-0").unwrap(),
        provider: "provider".into(),
        tier: 1,
    }))
}

fn evicted(number: u64) -> Fact {
    let fingerprints = vec![Fingerprint::new(u128::from(number)), Fingerprint::new(u128::MAX)];
    Fact::CacheEvicted(CacheEvicted { fingerprints, reason: Eviction::LeastRecentlyUsed })
}

fn settled(outcome: Outcome, attempts: u32) -> Fact {
    Fact::RequestSettled(RequestSettled {
        outcome,
        error_code: None,
        status: if outcome == Outcome::Completed { 200 } else { 502 },
        attempts,
        content_frames: 2,
        cost_pico_usd: None,
        time_to_first_token_ms: Some(100),
        duration_ms: 321,
    })
}
