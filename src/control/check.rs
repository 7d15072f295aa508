//! What must hold between entities: whoever is named exists, and no name means two things.
//!
//! The log compares and sets one entity at a time, so two changes that are each right can together be wrong (a plan is
//! deleted while an organization takes it). Whoever writes checks before, and again afterwards ([`broken`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::Tables;
use super::document::Problem;
use super::edit::Wanted;
use crate::domain::ModelName;
use crate::records::control::{ControlRecord, EntityKind, Stamp};

/// Users of an entity that are named when it is not deleted.
const NAMED_MAX: usize = 5;

/// Something that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub kind: EntityKind,
    pub id: String,
    /// The member that says so.
    pub at: String,
    pub problem: String,
    /// What it names that is not there.
    pub missing: Option<(EntityKind, String)>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}: {}", self.kind.name(), self.id, self.at, self.problem)
    }
}

impl From<Violation> for Problem {
    fn from(violation: Violation) -> Self {
        Self { at: violation.at, problem: violation.problem }
    }
}

/// What changes would break that holds now.
pub fn check(tables: &Tables, changes: &[Wanted]) -> Vec<Violation> {
    let known: BTreeSet<Violation> = violations(tables).into_iter().collect();
    let mut broken = violations(&with(tables, changes));
    broken.retain(|violation| !known.contains(violation));
    broken
}

/// What does not hold of these entities as they are on control: after a write, what somebody else's broke meanwhile.
pub fn broken(tables: &Tables, changes: &[Wanted]) -> Vec<Violation> {
    let concerned = |violation: &Violation| {
        let of = |kind: EntityKind, id: &str| changes.iter().any(|wanted| wanted.kind == kind && wanted.id == id);
        of(violation.kind, &violation.id) || violation.missing.as_ref().is_some_and(|(kind, id)| of(*kind, id))
    };
    let mut found = violations(tables);
    found.retain(concerned);
    found
}

/// Who names something that would be deleted, as one sentence.
pub fn users(violations: &[Violation], kind: EntityKind, id: &str) -> Option<String> {
    let missing = |v: &&Violation| v.missing.as_ref().is_some_and(|(k, i)| *k == kind && i == id);
    let users: Vec<String> = violations.iter().filter(missing).map(|v| format!("{} {}", v.kind.name(), v.id)).collect();
    let (named, more) =
        (users.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>(), users.len().saturating_sub(NAMED_MAX));
    match (users.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(named.join(", ")),
        (false, more) => Some(format!("{} and {more} more", named.join(", "))),
    }
}

/// The tables as they would be.
fn with(tables: &Tables, changes: &[Wanted]) -> Tables {
    let mut after = tables.clone();
    for wanted in changes {
        let stamp = Stamp { change_id: String::new(), actor: String::new(), at: crate::domain::Timestamp::default() };
        let version = after.version_of(wanted.kind, &wanted.id);
        let record = match &wanted.entity {
            Some(entity) => ControlRecord::put(&wanted.id, entity.clone(), version, stamp),
            None => ControlRecord::delete(wanted.kind, &wanted.id, version, stamp),
        };
        let offset = after.offset() + 1;
        // Documents were parsed, so nothing is refused here; if it were, it would not be on the log either.
        if after.apply(offset, &record).is_err() {
            after.pass(offset);
        }
    }
    after
}

/// Everything that does not hold.
pub fn violations(tables: &Tables) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, organization) in tables.organizations() {
        if let Some(plan) = organization.value.plan.as_ref().filter(|plan| tables.plan(plan.as_str()).is_none()) {
            found.push(missing((EntityKind::Organization, id.as_str()), "plan", EntityKind::Plan, plan.as_str()));
        }
    }
    for (id, key) in tables.keys() {
        for organization in key.value.organizations.iter().filter(|id| tables.organization(id).is_none()) {
            let of = (EntityKind::Key, id.as_str());
            found.push(missing(of, "organizations", EntityKind::Organization, organization.as_str()));
        }
    }
    for (id, terms) in tables.plans() {
        let of = (EntityKind::Plan, id.as_str());
        let plan = &terms.value.plan;
        for model in &plan.models {
            found.extend(canonical(tables, of, "models".to_owned(), model));
        }
        for (index, limited) in plan.model_limits.iter().enumerate() {
            found.extend(canonical(tables, of, format!("model_limits[{index}].model"), &limited.model));
        }
    }
    for (id, policy) in tables.policies() {
        let of = (EntityKind::Policy, id.as_str());
        let tiers = policy.value.tiers.iter().enumerate();
        let candidates = tiers.flat_map(|(index, tier)| {
            tier.candidates.iter().map(move |model| (format!("tiers[{index}].candidates"), model))
        });
        let fallback = policy.value.fallback.iter().map(|model| ("fallback".to_owned(), model));
        let mut known: BTreeSet<(String, &str)> = BTreeSet::new();
        for (at, model) in candidates.chain(fallback) {
            let Some((name, entity)) = tables.model(model) else {
                found.push(missing(of, &at, EntityKind::Model, model.as_str()));
                continue;
            };
            let wrong =
                |problem: String| Violation { kind: of.0, id: of.1.to_owned(), at: at.clone(), problem, missing: None };
            if entity.value.deployments.iter().all(|deployment| deployment.prices.is_empty()) {
                found.push(wrong(format!("{model} cannot serve: none of its deployments has a price")));
            }
            // Under two names it would be tried twice, or a chain would come back to itself.
            if !known.insert((at.clone(), name.as_str())) {
                found.push(wrong(format!("{model} is {name}, which is there already; name each model once")));
            }
        }
        for (index, rule) in policy.value.rules.iter().enumerate() {
            for plan in rule.when.plans.iter().filter(|plan| tables.plan(plan.as_str()).is_none()) {
                let at = format!("rules[{index}].when.plans");
                found.push(missing(of, &at, EntityKind::Plan, plan.as_str()));
            }
        }
    }
    found.extend(names(tables));
    found.extend(deployments(tables));
    found
}

fn missing((kind, id): (EntityKind, &str), at: &str, named: EntityKind, name: &str) -> Violation {
    let problem = match named {
        EntityKind::Model => format!("{name} is no model or alias; create the model first, or name another"),
        _ => format!("there is no {} {name}; create it first, or name another", named.name()),
    };
    Violation { kind, id: id.to_owned(), at: at.to_owned(), problem, missing: Some((named, name.to_owned())) }
}

/// A plan names models by their names, which is what requests are held against.
fn canonical(tables: &Tables, of: (EntityKind, &str), at: String, model: &ModelName) -> Option<Violation> {
    match tables.model(model) {
        None => Some(missing(of, &at, EntityKind::Model, model.as_str())),
        Some((name, _)) if name == model => None,
        Some((name, _)) => {
            let problem = format!("{model} is an alias of {name}; write {name}");
            Some(Violation { kind: of.0, id: of.1.to_owned(), at, problem, missing: None })
        }
    }
}

/// Names and aliases of models, and names of policies, which clients ask for alike.
fn names(tables: &Tables) -> Vec<Violation> {
    let mut owners: BTreeMap<&str, Vec<(EntityKind, &str)>> = BTreeMap::new();
    for (id, model) in tables.models() {
        for name in std::iter::once(id).chain(&model.value.aliases) {
            owners.entry(name.as_str()).or_default().push((EntityKind::Model, id.as_str()));
        }
    }
    for (id, _) in tables.policies() {
        owners.entry(id.as_str()).or_default().push((EntityKind::Policy, id.as_str()));
    }
    shared(
        owners,
        |name, other| format!("{name} is also the name or an alias of {other}"),
        |kind, id, name| match (kind, id == name) {
            (EntityKind::Model, false) => "aliases",
            _ => "name",
        },
    )
}

fn deployments(tables: &Tables) -> Vec<Violation> {
    let mut owners: BTreeMap<&str, Vec<(EntityKind, &str)>> = BTreeMap::new();
    for (id, model) in tables.models() {
        for deployment in &model.value.deployments {
            owners.entry(deployment.id.as_str()).or_default().push((EntityKind::Model, id.as_str()));
        }
    }
    shared(
        owners,
        |name, other| format!("{name} is the id of another deployment, too, of {other}"),
        |_, _, _| "deployments",
    )
}

fn shared(
    owners: BTreeMap<&str, Vec<(EntityKind, &str)>>,
    problem: impl Fn(&str, &str) -> String,
    at: impl Fn(EntityKind, &str, &str) -> &'static str,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, owners) in owners.iter().filter(|(_, owners)| owners.len() > 1) {
        for (index, (kind, id)) in owners.iter().enumerate() {
            let other = owners.iter().enumerate().find(|(other, _)| *other != index).map(|(_, other)| *other);
            let (other_kind, other_id) = other.unwrap_or((*kind, id));
            found.push(Violation {
                kind: *kind,
                id: (*id).to_owned(),
                at: at(*kind, id, name).to_owned(),
                problem: problem(name, &format!("{} {other_id}", other_kind.name())),
                missing: None,
            });
        }
    }
    found
}
