//! A policy: which models answer in which tier.

use serde::{Deserialize, Serialize};

use super::TIERS;
use super::place::Place;
use crate::domain::ModelName;
use crate::records::control::{Entity, Policy, PolicyTier};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    description: String,
    default_tier: u8,
    max_attempts: u32,
    #[serde(default)]
    fallback: Vec<String>,
    tiers: Vec<Tier>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tier {
    tier: u8,
    candidates: Vec<String>,
}

pub(super) fn parse(document: Document, place: &mut Place<'_>) -> Option<Entity> {
    let mut tiers: Vec<PolicyTier> = Vec::with_capacity(document.tiers.len());
    let mut whole = true;
    for (index, item) in document.tiers.iter().enumerate() {
        let mut place = place.within(&format!("tiers[{index}]"));
        if !TIERS.contains(&item.tier) {
            place.problem("tier", "tiers go from 1 to 4");
        }
        if document.tiers[..index].iter().any(|other| other.tier == item.tier) {
            place.problem("tier", format!("{} is there more than once", item.tier));
        }
        if item.candidates.is_empty() {
            place.problem("candidates", "has no candidates; name at least one model");
        }
        match place.names::<ModelName>("candidates", &item.candidates) {
            Some(candidates) => tiers.push(PolicyTier { tier: item.tier, candidates }),
            None => whole = false,
        }
    }
    if !document.tiers.iter().any(|tier| tier.tier == document.default_tier) {
        place.problem("default_tier", format!("{} has no [[tiers]]", document.default_tier));
    }
    if !(1..=100).contains(&document.max_attempts) {
        place.problem("max_attempts", "must be from 1 to 100");
    }
    let fallback = place.names::<ModelName>("fallback", &document.fallback);
    Some(Entity::Policy(Policy {
        description: document.description,
        default_tier: document.default_tier,
        max_attempts: document.max_attempts,
        tiers: whole.then_some(tiers)?,
        fallback: fallback?,
    }))
}

pub(super) fn show(policy: &Policy) -> Document {
    let names = |models: &[ModelName]| models.iter().map(ModelName::to_string).collect::<Vec<_>>();
    Document {
        description: policy.description.clone(),
        default_tier: policy.default_tier,
        max_attempts: policy.max_attempts,
        fallback: names(&policy.fallback),
        tiers: policy.tiers.iter().map(|of| Tier { tier: of.tier, candidates: names(&of.candidates) }).collect(),
    }
}
