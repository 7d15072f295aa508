//! An organization: who it is, its plan, and what it has in place of it.

use serde::{Deserialize, Serialize};

use super::amounts::{self, Limits};
use super::place::Place;
use super::yes;
use crate::domain::PlanName;
use crate::records::control::{Entity, Organization};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    name: String,
    #[serde(default = "yes")]
    active: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
    #[serde(default)]
    vip: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spend_per_day: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spend_per_month: Option<String>,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    limits: Limits,
}

pub(super) fn parse(document: Document, place: &mut Place<'_>) -> Option<Entity> {
    let plan = document.plan.map(|name| place.take("plan", PlanName::parse(&name)));
    let limits = document.limits.parse(place);
    let spend = amounts::spend(document.spend_per_day.as_deref(), document.spend_per_month.as_deref(), place);
    if document.name.trim().is_empty() {
        place.problem("name", "is empty; give the name that people know it by");
    }
    Some(Entity::Organization(Organization {
        name: document.name,
        active: document.active,
        plan: plan.map_or(Some(None), |plan| plan.map(Some))?,
        vip: document.vip,
        limits: limits?,
        spend: spend?,
    }))
}

pub(super) fn show(organization: &Organization) -> Document {
    Document {
        name: organization.name.clone(),
        active: organization.active,
        plan: organization.plan.as_ref().map(PlanName::to_string),
        vip: organization.vip,
        spend_per_day: organization.spend.day.map(|amount| amount.to_string()),
        spend_per_month: organization.spend.month.map(|amount| amount.to_string()),
        limits: Limits::show(&organization.limits),
    }
}
