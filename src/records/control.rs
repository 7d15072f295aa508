//! `control`: changes of organizations, keys, models and policies. Key: kind + id; one partition, kept for ever.

use serde::{Deserialize, Serialize};

use super::{EnvelopeError, Record, Topic};
use crate::domain::{DeploymentId, ModelName, OrganizationId, Price, Timestamp};

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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    pub name: String,
    #[serde(default = "yes")]
    pub active: bool,
}

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub organizations: Vec<OrganizationId>,
    /// Of the secret, in hex.
    pub sha256: String,
    /// Of the secret, to recognise it by.
    pub prefix: String,
    #[serde(default = "yes")]
    pub active: bool,
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
}

/// Pico-dollars per token by class, from a moment on, under a condition on all input tokens of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceEntry {
    pub effective_from: Timestamp,
    #[serde(default)]
    pub min_input_tokens: Option<u64>,
    #[serde(default)]
    pub max_input_tokens: Option<u64>,
    pub input: crate::domain::PicoUsd,
    #[serde(default)]
    pub cached_input: Option<crate::domain::PicoUsd>,
    #[serde(default)]
    pub cache_write: Option<crate::domain::PicoUsd>,
    pub output: crate::domain::PicoUsd,
    /// `None`: the price is simulated.
    #[serde(default)]
    pub source: Option<String>,
    #[serde(default)]
    pub source_read: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    #[serde(default)]
    pub description: String,
    pub default_tier: u8,
    pub max_attempts: u32,
    pub tiers: Vec<PolicyTier>,
    #[serde(default)]
    pub fallback: Vec<ModelName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTier {
    pub tier: u8,
    /// In the order in which they are tried.
    pub candidates: Vec<ModelName>,
}

fn yes() -> bool {
    true
}

/// The new value of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entity {
    Organization(Organization),
    Key(Key),
    Model(Model),
    Policy(Policy),
}

/// The kinds of entity, by their names on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntityKind {
    Organization,
    Key,
    Model,
    Policy,
}

impl EntityKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Organization => "organization",
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
            Self::Key(_) => EntityKind::Key,
            Self::Model(_) => EntityKind::Model,
            Self::Policy(_) => EntityKind::Policy,
        }
    }
}

impl PriceEntry {
    pub fn price(&self) -> Price {
        Price { input: self.input, cached_input: self.cached_input, cache_write: self.cache_write, output: self.output }
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
        let Stamp { change_id, actor, at } = stamp;
        let kind = entity.kind().name().to_owned();
        let id = id.to_owned();
        let (mut organization, mut key, mut model, mut policy) = (None, None, None, None);
        match entity {
            Entity::Organization(value) => organization = Some(value),
            Entity::Key(value) => key = Some(value),
            Entity::Model(value) => model = Some(value),
            Entity::Policy(value) => policy = Some(value),
        }
        let deleted = false;
        Self { kind, id, expected_version, change_id, actor, at, deleted, organization, key, model, policy }
    }

    /// The record's key on the topic: kind and id.
    pub fn topic_key(&self) -> String {
        format!("{}/{}", self.kind, self.id)
    }

    /// The kind, and the new value (`None`: the entity is deleted).
    pub fn change(&self) -> Result<(EntityKind, Option<Entity>), EnvelopeError> {
        let (kind, entity) = match self.kind.as_str() {
            "organization" => (EntityKind::Organization, self.organization.clone().map(Entity::Organization)),
            "key" => (EntityKind::Key, self.key.clone().map(Entity::Key)),
            "model" => (EntityKind::Model, self.model.clone().map(Entity::Model)),
            "policy" => (EntityKind::Policy, self.policy.clone().map(Entity::Policy)),
            _ => {
                let known = "organization, key, model, policy";
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
