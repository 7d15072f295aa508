//! The fold of the control log into versioned tables.
//!
//! Order decides: a change carries the version of the entity that it saw, and the fold ignores one whose expectation does
//! not hold, so the log itself is the compare-and-set. The offset of the last record that was folded is the version of
//! everything. Nothing here touches Kafka.

pub mod check;
pub mod declared;
pub mod document;
pub mod edit;
pub mod history;
pub mod rules;
pub mod terms;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::domain::{
    Calendar, DeploymentId, KeyId, ModelName, OrganizationId, PlanName, PolicyName, Timestamp, calendar,
};
use crate::records::EnvelopeError;
use crate::records::control::{
    Budget, ControlRecord, Deployment, Entity, EntityKind, Key, Model, Organization, Plan, Policy, PriceEntry,
};

/// An entity and the control offset of its last effective change.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    pub version: i64,
    pub value: Arc<T>,
}

/// Everything that control says, as of [`offset`](Self::offset).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tables {
    /// Offset of the last record folded; `None`: control is empty.
    offset: Option<i64>,
    versions: BTreeMap<(EntityKind, String), i64>,
    organizations: HashMap<OrganizationId, Versioned<Organization>>,
    plans: BTreeMap<PlanName, Versioned<PlanTerms>>,
    keys: HashMap<KeyId, Versioned<Key>>,
    keys_by_hash: HashMap<String, KeyId>,
    models: BTreeMap<ModelName, Versioned<Model>>,
    aliases: HashMap<ModelName, ModelName>,
    policies: BTreeMap<PolicyName, Versioned<Policy>>,
}

/// A plan, and the days and months of its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanTerms {
    pub plan: Plan,
    pub calendar: Calendar,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Effective,
    /// The entity was not at the version that the change expected; it had this one (-1: it did not exist).
    Conflict {
        version: i64,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("{kind} {id:?}: {source}")]
    Id { kind: &'static str, id: String, source: crate::domain::ids::Error },
    #[error("plan {id:?}: {source}")]
    Calendar { id: String, source: calendar::Error },
}

impl Tables {
    /// The version of everything: the offset of the last record, -1 when control is empty.
    pub fn offset(&self) -> i64 {
        self.offset.unwrap_or(-1)
    }

    /// The version of one entity, -1 when it does not exist.
    pub fn version_of(&self, kind: EntityKind, id: &str) -> i64 {
        self.versions.get(&(kind, id.to_owned())).copied().unwrap_or(-1)
    }

    /// Passes over a record that cannot be read; its offset counts as seen.
    pub fn pass(&mut self, offset: i64) {
        self.offset = Some(offset);
    }

    /// Takes the record at `offset`. An error leaves the tables as they were, the offset apart.
    pub fn apply(&mut self, offset: i64, record: &ControlRecord) -> Result<Change, Error> {
        self.offset = Some(offset);
        let (kind, entity) = record.change()?;
        let version = self.version_of(kind, &record.id);
        if version != record.expected_version {
            return Ok(Change::Conflict { version });
        }
        match entity {
            Some(entity) => self.put(offset, &record.id, entity)?,
            None => self.remove(kind, &record.id)?,
        }
        Ok(Change::Effective)
    }

    fn put(&mut self, version: i64, id: &str, entity: Entity) -> Result<(), Error> {
        let kind = entity.kind();
        let invalid = |source| Error::Id { kind: kind.name(), id: id.to_owned(), source };
        match entity {
            Entity::Organization(value) => {
                let id = OrganizationId::parse(id).map_err(invalid)?;
                self.organizations.insert(id, Versioned { version, value: Arc::new(value) });
            }
            Entity::Plan(plan) => {
                let name = PlanName::parse(id).map_err(invalid)?;
                let Budget { time_zone, reset_day, .. } = &plan.budget;
                let calendar = Calendar::new(time_zone, *reset_day)
                    .map_err(|source| Error::Calendar { id: id.to_owned(), source })?;
                self.plans.insert(name, Versioned { version, value: Arc::new(PlanTerms { plan, calendar }) });
            }
            Entity::Key(value) => {
                let id = KeyId::parse(id).map_err(invalid)?;
                self.forget_hash(id.as_str());
                self.keys_by_hash.insert(value.sha256.clone(), id.clone());
                self.keys.insert(id, Versioned { version, value: Arc::new(value) });
            }
            Entity::Model(value) => {
                let id = ModelName::parse(id).map_err(invalid)?;
                self.aliases.retain(|_, model| *model != id);
                self.aliases.extend(value.aliases.iter().map(|alias| (alias.clone(), id.clone())));
                self.models.insert(id, Versioned { version, value: Arc::new(value) });
            }
            Entity::Policy(value) => {
                let id = PolicyName::parse(id).map_err(invalid)?;
                self.policies.insert(id, Versioned { version, value: Arc::new(value) });
            }
        }
        self.versions.insert((kind, id.to_owned()), version);
        Ok(())
    }

    fn remove(&mut self, kind: EntityKind, id: &str) -> Result<(), Error> {
        match kind {
            EntityKind::Organization => {
                self.organizations.remove(id);
            }
            EntityKind::Plan => {
                self.plans.remove(id);
            }
            EntityKind::Key => {
                self.forget_hash(id);
                self.keys.remove(id);
            }
            EntityKind::Model => {
                self.models.remove(id);
                self.aliases.retain(|_, model| model.as_str() != id);
            }
            EntityKind::Policy => {
                self.policies.remove(id);
            }
        }
        self.versions.remove(&(kind, id.to_owned()));
        Ok(())
    }

    /// A key is no longer found by the hash that it has.
    fn forget_hash(&mut self, id: &str) {
        let Some(sha256) = self.keys.get(id).map(|key| key.value.sha256.as_str()) else { return };
        if self.keys_by_hash.get(sha256).is_some_and(|owner| owner.as_str() == id) {
            self.keys_by_hash.remove(sha256);
        }
    }

    /// The ids and versions of all entities of a kind, in the order of their ids.
    pub fn ids(&self, kind: EntityKind) -> impl Iterator<Item = (&str, i64)> {
        let of_kind = self.versions.range((kind, String::new())..).take_while(move |((of, _), _)| *of == kind);
        of_kind.map(|((_, id), version)| (id.as_str(), *version))
    }

    /// The value of an entity.
    pub fn entity(&self, kind: EntityKind, id: &str) -> Option<Entity> {
        match kind {
            EntityKind::Organization => {
                self.organizations.get(id).map(|e| Entity::Organization(Organization::clone(&e.value)))
            }
            EntityKind::Plan => self.plans.get(id).map(|e| Entity::Plan(e.value.plan.clone())),
            EntityKind::Key => self.keys.get(id).map(|e| Entity::Key(Key::clone(&e.value))),
            // Not `Tables::model`, which resolves aliases.
            EntityKind::Model => self.models.get(id).map(|e| Entity::Model(Model::clone(&e.value))),
            EntityKind::Policy => self.policies.get(id).map(|e| Entity::Policy(Policy::clone(&e.value))),
        }
    }

    pub fn organization(&self, id: &OrganizationId) -> Option<&Versioned<Organization>> {
        self.organizations.get(id)
    }

    /// In the order of their ids.
    pub fn organizations(&self) -> impl Iterator<Item = (&OrganizationId, &Versioned<Organization>)> {
        self.ids(EntityKind::Organization).filter_map(|(id, _)| self.organizations.get_key_value(id))
    }

    pub fn plan(&self, name: &str) -> Option<&Versioned<PlanTerms>> {
        self.plans.get(name)
    }

    pub fn plans(&self) -> impl Iterator<Item = (&PlanName, &Versioned<PlanTerms>)> {
        self.plans.iter()
    }

    pub fn key(&self, id: &str) -> Option<&Versioned<Key>> {
        self.keys.get(id)
    }

    /// The key whose secret has this SHA-256, in hex.
    pub fn key_by_hash(&self, sha256: &str) -> Option<(&KeyId, &Versioned<Key>)> {
        self.keys_by_hash.get(sha256).and_then(|id| self.keys.get_key_value(id))
    }

    /// In the order of their ids.
    pub fn keys(&self) -> impl Iterator<Item = (&KeyId, &Versioned<Key>)> {
        self.ids(EntityKind::Key).filter_map(|(id, _)| self.keys.get_key_value(id))
    }

    /// The model of this name or alias.
    pub fn model(&self, name: &ModelName) -> Option<(&ModelName, &Versioned<Model>)> {
        let name = self.aliases.get(name).unwrap_or(name);
        self.models.get_key_value(name)
    }

    pub fn models(&self) -> impl Iterator<Item = (&ModelName, &Versioned<Model>)> {
        self.models.iter()
    }

    pub fn policies(&self) -> impl Iterator<Item = (&PolicyName, &Versioned<Policy>)> {
        self.policies.iter()
    }

    pub fn policy(&self, name: &str) -> Option<(&PolicyName, &Versioned<Policy>)> {
        self.policies.get_key_value(name)
    }
}

impl Model {
    pub fn deployment(&self, id: &DeploymentId) -> Option<&Deployment> {
        self.deployments.iter().find(|deployment| deployment.id == *id)
    }
}

impl Deployment {
    /// The price at a moment for a request of so many input tokens in all: of the entries whose condition holds, the
    /// latest that is in force. Input of unknown size takes the dearest of those.
    pub fn price_at(&self, at: Timestamp, input_tokens: Option<u64>) -> Option<&PriceEntry> {
        let in_force = self.prices.iter().filter(|entry| entry.effective_from <= at);
        match input_tokens {
            Some(tokens) => in_force
                .filter(|e| e.min_input_tokens.is_none_or(|min| tokens >= min))
                .filter(|e| e.max_input_tokens.is_none_or(|max| tokens <= max))
                .max_by_key(|entry| entry.effective_from),
            None => {
                let latest = in_force.clone().map(|entry| entry.effective_from).max()?;
                in_force.filter(|entry| entry.effective_from == latest).max_by_key(|entry| entry.input)
            }
        }
    }

    /// The prices that hold at a moment for a request of some size.
    pub fn prices_at(&self, at: Timestamp) -> impl Iterator<Item = &PriceEntry> {
        // Where another one holds up to a size, this one can begin to hold behind it.
        let begins = move |entry: &PriceEntry| {
            let behind = self.prices.iter().filter_map(|other| other.max_input_tokens?.checked_add(1));
            let least = entry.min_input_tokens.unwrap_or(0);
            std::iter::once(least).chain(behind.filter(move |tokens| *tokens > least))
        };
        let holds = move |entry: &PriceEntry, tokens| {
            self.price_at(at, Some(tokens)).is_some_and(|price| std::ptr::eq(price, entry))
        };
        self.prices.iter().filter(move |entry| begins(entry).any(|tokens| holds(entry, tokens)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PicoUsd;

    fn organization(id: &str, expected_version: i64, name: &str) -> ControlRecord {
        ControlRecord {
            kind: "organization".into(),
            id: id.into(),
            expected_version,
            change_id: "c".into(),
            actor: "test".into(),
            at: Timestamp::from_millis(0),
            deleted: false,
            organization: Some(Organization::named(name)),
            key: None,
            model: None,
            policy: None,
            plan: None,
        }
    }

    #[test]
    fn a_change_with_another_expectation_is_ignored() {
        let mut tables = Tables::default();
        let id = OrganizationId::parse("acme").unwrap();
        assert_eq!(tables.apply(3, &organization("acme", -1, "A")).unwrap(), Change::Effective);
        assert_eq!(tables.apply(4, &organization("acme", -1, "B")).unwrap(), Change::Conflict { version: 3 });
        assert_eq!(tables.organization(&id).unwrap().value.name, "A");
        assert_eq!(tables.apply(5, &organization("acme", 3, "C")).unwrap(), Change::Effective);
        assert_eq!(tables.organization(&id).unwrap().value.name, "C");
        assert_eq!(tables.offset(), 5);
        let deletion = ControlRecord { deleted: true, organization: None, ..organization("acme", 5, "") };
        assert_eq!(tables.apply(6, &deletion).unwrap(), Change::Effective);
        assert!(tables.organization(&id).is_none());
        assert_eq!(tables.version_of(EntityKind::Organization, "acme"), -1);
    }

    #[test]
    fn an_unknown_kind_is_an_error_and_counts_as_read() {
        let mut tables = Tables::default();
        let strange = ControlRecord { kind: "quota".into(), ..organization("acme", -1, "A") };
        assert!(tables.apply(8, &strange).is_err());
        assert_eq!(tables.offset(), 8);
    }

    fn entry(from: i64, min: Option<u64>, max: Option<u64>, input: i128) -> PriceEntry {
        PriceEntry {
            effective_from: Timestamp::from_millis(from),
            min_input_tokens: min,
            max_input_tokens: max,
            input: PicoUsd::new(input),
            cached_input: None,
            cache_write: None,
            output: PicoUsd::new(input),
            reasoning: None,
            source: None,
            source_read: None,
        }
    }

    fn deployment(prices: Vec<PriceEntry>) -> Deployment {
        Deployment {
            id: DeploymentId::parse("d").unwrap(),
            provider: "p".into(),
            upstream_model: "m".into(),
            base_url: "u".into(),
            region: "r".into(),
            credential: "none".into(),
            prices,
            weight: None,
        }
    }

    #[test]
    fn the_price_follows_time_and_size() {
        let deployment = deployment(vec![
            entry(10, None, Some(100), 1),
            entry(10, Some(101), None, 2),
            entry(20, None, Some(100), 3),
            entry(20, Some(101), None, 4),
        ]);
        let input = |at, tokens| deployment.price_at(Timestamp::from_millis(at), tokens).map(|entry| entry.input.get());
        let table = [
            (9, Some(1), None),
            (10, Some(100), Some(1)),
            (19, Some(101), Some(2)),
            (20, Some(100), Some(3)),
            (99, Some(101), Some(4)),
            (99, None, Some(4)),
            (15, None, Some(2)),
        ];
        for (at, tokens, price) in table {
            assert_eq!(input(at, tokens), price, "at {at} with {tokens:?}");
        }
        let in_force = |at| {
            let entries = deployment.prices_at(Timestamp::from_millis(at));
            entries.map(|entry| entry.input.get()).collect::<Vec<_>>()
        };
        assert_eq!((in_force(9), in_force(19), in_force(20)), (vec![], vec![1, 2], vec![3, 4]));
    }

    #[test]
    fn a_price_is_in_force_where_newer_ones_leave_sizes_to_it() {
        let in_force = |prices| {
            let deployment = deployment(prices);
            let entries = deployment.prices_at(Timestamp::from_millis(50));
            entries.map(|entry| entry.input.get()).collect::<Vec<_>>()
        };
        let (small, large) = (entry(20, None, Some(100), 2), entry(30, Some(101), None, 3));
        assert_eq!(in_force(vec![entry(10, None, None, 1), small.clone()]), [1, 2]);
        assert_eq!(in_force(vec![entry(10, None, None, 1), small, large]), [2, 3]);
        assert_eq!(in_force(vec![entry(10, None, None, 1), entry(60, None, None, 2)]), [1]);
    }
}
