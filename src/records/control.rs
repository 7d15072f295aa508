//! `control`: changes of organizations, plans, keys, models and policies. Key: kind + id; one partition, kept for ever.

use serde::{Deserialize, Serialize};

pub use super::policy::{Policy, PolicyTier};
use super::{EnvelopeError, Record, Topic};
use crate::domain::{DeploymentId, ModelName, OrganizationId, PicoUsd, PlanName, Price, Timestamp};

/// The credential of a deployment that wants none.
pub const NO_CREDENTIAL: &str = "none";

/// One change of one entity, as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlRecord {
    pub kind: String,
    pub id: String,
    /// Offset of the entity's last effective change; -1: it does not exist.
    pub expected_version: i64,
    /// By which the writer knows its own record.
    pub change_id: String,
    pub actor: String,
    pub at: Timestamp,
    #[serde(default)]
    pub deleted: bool,
    #[serde(default)]
    pub organization: Option<Organization>,
    #[serde(default)]
    pub key: Option<Key>,
    #[serde(default)]
    pub model: Option<Model>,
    #[serde(default)]
    pub policy: Option<Policy>,
    #[serde(default)]
    pub plan: Option<Plan>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    pub name: String,
    /// Requests of one that is not are refused.
    #[serde(default = "yes")]
    pub active: bool,
    /// `None`: everything is allowed, and nothing limited but by what is said here.
    #[serde(default)]
    pub plan: Option<PlanName>,
    /// Its requests count as high value, where the plan allows that tier.
    #[serde(default)]
    pub vip: bool,
    /// In place of the plan's, where one is set.
    #[serde(default)]
    pub limits: Limits,
    /// In place of the plan's amounts, where one is set.
    #[serde(default)]
    pub spend: Spend,
}

impl Organization {
    /// An active one without a plan.
    pub fn named(name: &str) -> Self {
        let (limits, spend) = (Limits::default(), Spend::default());
        Self { name: name.to_owned(), active: true, plan: None, vip: false, limits, spend }
    }
}

/// What an organization may use and spend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    #[serde(default)]
    pub description: String,
    /// Models that may be asked for and answer, by name; empty: all.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// Tiers that may be asked for and answer; empty: all.
    #[serde(default)]
    pub tiers: Vec<u8>,
    /// Of all requests of an organization.
    #[serde(default)]
    pub limits: Limits,
    /// Of an organization's calls of one model, in place of the model's own.
    #[serde(default)]
    pub model_limits: Vec<ModelLimits>,
    /// Tokens that an answer may have where the client names no cap.
    #[serde(default)]
    pub output_cap: Option<u64>,
    #[serde(default)]
    pub budget: Budget,
    /// `None`: its answers are not kept.
    #[serde(default)]
    pub cache: Option<Caching>,
}

/// Which answers are kept for those who ask the same, how long and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caching {
    pub ttl_seconds: u64,
    /// Of an organization; what was not asked for the longest goes first.
    pub entries_max: u64,
    pub bytes_max: u64,
    /// Also of requests that do not say `temperature: 0`.
    #[serde(default)]
    pub any_temperature: bool,
    /// Also of requests that name tools.
    #[serde(default)]
    pub tools: bool,
}

impl Default for Caching {
    fn default() -> Self {
        Self { ttl_seconds: 3_600, entries_max: 10_000, bytes_max: 64 << 20, any_temperature: false, tools: false }
    }
}

/// How much of something may be used. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    #[serde(default)]
    pub requests_per_minute: Option<u64>,
    /// Input and output together.
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    #[serde(default)]
    pub concurrent_requests: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelLimits {
    pub model: ModelName,
    pub limits: Limits,
}

/// How much may be spent in a period. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spend {
    #[serde(default)]
    pub day: Option<PicoUsd>,
    #[serde(default)]
    pub month: Option<PicoUsd>,
}

/// What may be spent, when it begins anew, and what happens when it does not suffice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    #[serde(default)]
    pub spend: Spend,
    /// In which days and months begin, by its name in the IANA database.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// Day of the month on which a month begins, from 1 to 31; in a shorter month its last day.
    #[serde(default = "first")]
    pub reset_day: u8,
    /// Percents of an amount at which it is told that so much is spent.
    #[serde(default)]
    pub soft_percents: Vec<u8>,
    #[serde(default)]
    pub when_short: WhenShort,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            spend: Spend::default(),
            time_zone: utc(),
            reset_day: first(),
            soft_percents: Vec::new(),
            when_short: WhenShort::default(),
        }
    }
}

/// What happens to a request whose worst case does not fit into what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WhenShort {
    /// Its answer may only be as long as can be paid.
    LowerOutputCap,
    /// A candidate of a cheaper tier answers, if one fits.
    StepDown,
    /// It is refused. Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Refuse,
}

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub organizations: Vec<OrganizationId>,
    /// Of the secret, in hex.
    pub sha256: String,
    /// Of the secret, to recognise it by.
    pub prefix: String,
    /// `false`: revoked.
    #[serde(default = "yes")]
    pub active: bool,
    #[serde(default)]
    pub description: String,
    /// What it may be used for; empty: everything that a client may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// Of its own, beside those of the organization; a service key has them for each of its organizations.
    #[serde(default)]
    pub limits: Limits,
    /// Of its own, beside that of the organization, in whose periods it counts.
    #[serde(default)]
    pub spend: Spend,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    #[serde(default)]
    pub aliases: Vec<ModelName>,
    pub tier: u8,
    pub owned_by: String,
    pub created_at: Timestamp,
    pub context_window: u64,
    pub max_output_tokens: u64,
    #[serde(default)]
    pub capabilities: Vec<String>,
    pub deployments: Vec<Deployment>,
    /// Of one organization's calls of it.
    #[serde(default)]
    pub limits: Limits,
    /// Which of its deployments is called first.
    #[serde(default)]
    pub balance: Balance,
}

/// In which order a model's deployments are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Balance {
    /// Drawn by their weights, the same for the same request.
    Weighted,
    /// The one with the shortest time to the first token; one that nobody knows yet goes first.
    LeastLatency,
    /// The one with the fewest calls under way.
    LeastBusy,
    /// As they are listed. Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Listed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub id: DeploymentId,
    pub provider: String,
    pub upstream_model: String,
    pub base_url: String,
    pub region: String,
    /// A reference such as `env:NAME`, never a secret; or [`NO_CREDENTIAL`].
    pub credential: String,
    pub prices: Vec<PriceEntry>,
    /// Its share, where calls are spread by weights; `None`: 1.
    #[serde(default)]
    pub weight: Option<u64>,
}

/// Pico-dollars per token by class, from a moment on, under a condition on all input tokens of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceEntry {
    pub effective_from: Timestamp,
    #[serde(default)]
    pub min_input_tokens: Option<u64>,
    #[serde(default)]
    pub max_input_tokens: Option<u64>,
    pub input: PicoUsd,
    #[serde(default)]
    pub cached_input: Option<PicoUsd>,
    #[serde(default)]
    pub cache_write: Option<PicoUsd>,
    pub output: PicoUsd,
    /// `None`: as output.
    #[serde(default)]
    pub reasoning: Option<PicoUsd>,
    /// `None`: the price is simulated.
    #[serde(default)]
    pub source: Option<String>,
    #[serde(default)]
    pub source_read: Option<String>,
}

impl Key {
    /// An active one for these organizations that may do everything and never expires.
    pub fn of(organizations: Vec<OrganizationId>, sha256: String, prefix: String) -> Self {
        Self {
            organizations,
            sha256,
            prefix,
            active: true,
            description: String::new(),
            scopes: Vec::new(),
            expires_at: None,
            created_at: None,
            limits: Limits::default(),
            spend: Spend::default(),
        }
    }
}

fn yes() -> bool {
    true
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn first() -> u8 {
    1
}

/// The new value of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entity {
    Organization(Organization),
    Plan(Plan),
    Key(Key),
    Model(Model),
    Policy(Policy),
}

/// The kinds of entity, by their names on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntityKind {
    Organization,
    Plan,
    Key,
    Model,
    Policy,
}

impl EntityKind {
    pub const ALL: [Self; 5] = [Self::Plan, Self::Organization, Self::Key, Self::Model, Self::Policy];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Plan => "plan",
            Self::Key => "key",
            Self::Model => "model",
            Self::Policy => "policy",
        }
    }
}

impl Entity {
    pub const fn kind(&self) -> EntityKind {
        match self {
            Self::Organization(_) => EntityKind::Organization,
            Self::Plan(_) => EntityKind::Plan,
            Self::Key(_) => EntityKind::Key,
            Self::Model(_) => EntityKind::Model,
            Self::Policy(_) => EntityKind::Policy,
        }
    }
}

impl PriceEntry {
    pub fn price(&self) -> Price {
        Price {
            input: self.input,
            cached_input: self.cached_input,
            cache_write: self.cache_write,
            output: self.output,
            reasoning: self.reasoning,
        }
    }
}

/// Who changes an entity, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// By which the writer knows its own record.
    pub change_id: String,
    pub actor: String,
    pub at: Timestamp,
}

impl Record for ControlRecord {
    const TOPIC: Topic = Topic::Control;
}

impl ControlRecord {
    /// A record that gives an entity a new value.
    pub fn put(id: &str, entity: Entity, expected_version: i64, stamp: Stamp) -> Self {
        let kind = entity.kind();
        let mut record = Self::empty(kind, id, expected_version, stamp);
        match entity {
            Entity::Organization(value) => record.organization = Some(value),
            Entity::Plan(value) => record.plan = Some(value),
            Entity::Key(value) => record.key = Some(value),
            Entity::Model(value) => record.model = Some(value),
            Entity::Policy(value) => record.policy = Some(value),
        }
        record
    }

    /// A record that ends an entity.
    pub fn delete(kind: EntityKind, id: &str, expected_version: i64, stamp: Stamp) -> Self {
        Self { deleted: true, ..Self::empty(kind, id, expected_version, stamp) }
    }

    fn empty(kind: EntityKind, id: &str, expected_version: i64, stamp: Stamp) -> Self {
        let Stamp { change_id, actor, at } = stamp;
        Self {
            kind: kind.name().to_owned(),
            id: id.to_owned(),
            expected_version,
            change_id,
            actor,
            at,
            deleted: false,
            organization: None,
            key: None,
            model: None,
            policy: None,
            plan: None,
        }
    }

    /// The record's key on the topic: kind and id.
    pub fn topic_key(&self) -> String {
        format!("{}/{}", self.kind, self.id)
    }

    /// The kind, and the new value (`None`: the entity is deleted).
    pub fn change(&self) -> Result<(EntityKind, Option<Entity>), EnvelopeError> {
        let (kind, entity) = match self.kind.as_str() {
            "organization" => (EntityKind::Organization, self.organization.clone().map(Entity::Organization)),
            "plan" => (EntityKind::Plan, self.plan.clone().map(Entity::Plan)),
            "key" => (EntityKind::Key, self.key.clone().map(Entity::Key)),
            "model" => (EntityKind::Model, self.model.clone().map(Entity::Model)),
            "policy" => (EntityKind::Policy, self.policy.clone().map(Entity::Policy)),
            _ => {
                let known = "organization, plan, key, model, policy";
                return Err(EnvelopeError::UnknownKind { kind: self.kind.clone(), known });
            }
        };
        match (self.deleted, entity) {
            (true, _) => Ok((kind, None)),
            (false, Some(entity)) => Ok((kind, Some(entity))),
            (false, None) => Err(EnvelopeError::Missing { kind: self.kind.clone() }),
        }
    }
}
