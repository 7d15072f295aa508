//! A plan: what an organization may use and spend.

use serde::{Deserialize, Serialize};

use super::TIERS;
use super::amounts::{self, Limits};
use super::place::Place;
use crate::domain::{Calendar, ModelName};
use crate::processor::cache::TTL_SECONDS_MAX;
use crate::records::control::{Budget, Caching, Entity, ModelLimits, Plan, WhenShort};

/// Most answers, and most bytes of them, that are kept for an organization.
const CACHE_ENTRIES_MAX: u64 = 1_000_000;
const CACHE_BYTES_MAX: u64 = 16 << 30;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    description: String,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    tiers: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_cap: Option<u64>,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    limits: Limits,
    #[serde(default)]
    budget: BudgetDocument,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    model_limits: Vec<ModelLimitsDocument>,
    /// Absent: answers are not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache: Option<CacheDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CacheDocument {
    ttl_seconds: u64,
    entries_max: u64,
    bytes_max: u64,
    any_temperature: bool,
    tools: bool,
}

impl Default for CacheDocument {
    fn default() -> Self {
        show_cache(&Caching::default())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelLimitsDocument {
    model: String,
    limits: Limits,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spend_per_day: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spend_per_month: Option<String>,
    #[serde(default = "utc")]
    time_zone: String,
    #[serde(default = "first")]
    reset_day: u8,
    #[serde(default)]
    soft_percents: Vec<u8>,
    #[serde(default)]
    when_short: WhenShortDocument,
}

#[derive(Default, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WhenShortDocument {
    #[default]
    Refuse,
    LowerOutputCap,
    StepDown,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn first() -> u8 {
    1
}

impl Default for BudgetDocument {
    fn default() -> Self {
        show_budget(&Budget::default())
    }
}

pub(super) fn parse(document: Document, place: &mut Place<'_>) -> Option<Entity> {
    let models = place.names::<ModelName>("models", &document.models);
    for (index, tier) in document.tiers.iter().enumerate() {
        if !TIERS.contains(tier) {
            place.problem("tiers", format!("{tier} is no tier; tiers go from 1 to 4"));
        }
        if document.tiers[..index].contains(tier) {
            place.problem("tiers", format!("{tier} is there more than once"));
        }
    }
    let output_cap = amounts::count("output_cap", document.output_cap, place);
    if document.output_cap == Some(0) {
        place.problem("output_cap", "is 0, so no answer could have a token; give 1 or more, or leave it out");
    }
    let limits = document.limits.parse(place);
    let budget = budget(document.budget, &mut place.within("budget"));
    let model_limits = model_limits(&document.model_limits, place);
    let cache = document.cache.map(|cache| self::cache(&cache, &mut place.within("cache")));
    Some(Entity::Plan(Plan {
        description: document.description,
        models: models?,
        tiers: document.tiers,
        limits: limits?,
        model_limits: model_limits?,
        output_cap: output_cap?,
        budget: budget?,
        cache,
    }))
}

fn cache(document: &CacheDocument, place: &mut Place<'_>) -> Caching {
    let CacheDocument { ttl_seconds, entries_max, bytes_max, any_temperature, tools } = *document;
    for (field, value, most) in [
        ("ttl_seconds", ttl_seconds, TTL_SECONDS_MAX),
        ("entries_max", entries_max, CACHE_ENTRIES_MAX),
        ("bytes_max", bytes_max, CACHE_BYTES_MAX),
    ] {
        if !(1..=most).contains(&value) {
            place.problem(
                field,
                format!("{value} is out of bounds; give 1 to {most}, or leave [cache] out to keep nothing"),
            );
        }
    }
    Caching { ttl_seconds, entries_max, bytes_max, any_temperature, tools }
}

const fn show_cache(caching: &Caching) -> CacheDocument {
    let Caching { ttl_seconds, entries_max, bytes_max, any_temperature, tools } = *caching;
    CacheDocument { ttl_seconds, entries_max, bytes_max, any_temperature, tools }
}

fn model_limits(documents: &[ModelLimitsDocument], place: &mut Place<'_>) -> Option<Vec<ModelLimits>> {
    let mut all: Vec<Option<ModelLimits>> = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let mut place = place.within(&format!("model_limits[{index}]"));
        let model = place.take("model", ModelName::parse(&document.model));
        if all.iter().flatten().any(|other| Some(&other.model) == model.as_ref()) {
            place.problem("model", format!("{} is there more than once", document.model));
        }
        let limits = document.limits.parse(&mut place);
        all.push(model.zip(limits).map(|(model, limits)| ModelLimits { model, limits }));
    }
    all.into_iter().collect()
}

fn budget(document: BudgetDocument, place: &mut Place<'_>) -> Option<Budget> {
    let spend = amounts::spend(document.spend_per_day.as_deref(), document.spend_per_month.as_deref(), place);
    let field = |error: &crate::domain::calendar::Error| match error {
        crate::domain::calendar::Error::TimeZone { .. } => "time_zone",
        crate::domain::calendar::Error::ResetDay { .. } => "reset_day",
    };
    if let Err(error) = Calendar::new(&document.time_zone, document.reset_day) {
        place.problem(field(&error), error.to_string());
    }
    for (index, percent) in document.soft_percents.iter().enumerate() {
        if !(1..=100).contains(percent) {
            place.problem("soft_percents", format!("{percent} is no percent of an amount; give 1 to 100"));
        }
        if document.soft_percents[..index].contains(percent) {
            place.problem("soft_percents", format!("{percent} is there more than once"));
        }
    }
    Some(Budget {
        spend: spend?,
        time_zone: document.time_zone,
        reset_day: document.reset_day,
        soft_percents: document.soft_percents,
        when_short: match document.when_short {
            WhenShortDocument::Refuse => WhenShort::Refuse,
            WhenShortDocument::LowerOutputCap => WhenShort::LowerOutputCap,
            WhenShortDocument::StepDown => WhenShort::StepDown,
        },
    })
}

pub(super) fn show(plan: &Plan) -> Document {
    let model_limits = plan
        .model_limits
        .iter()
        .map(|of| ModelLimitsDocument { model: of.model.to_string(), limits: Limits::show(&of.limits) });
    Document {
        description: plan.description.clone(),
        models: plan.models.iter().map(ModelName::to_string).collect(),
        tiers: plan.tiers.clone(),
        output_cap: plan.output_cap,
        limits: Limits::show(&plan.limits),
        budget: show_budget(&plan.budget),
        model_limits: model_limits.collect(),
        cache: plan.cache.as_ref().map(show_cache),
    }
}

fn show_budget(budget: &Budget) -> BudgetDocument {
    BudgetDocument {
        spend_per_day: budget.spend.day.map(|amount| amount.to_string()),
        spend_per_month: budget.spend.month.map(|amount| amount.to_string()),
        time_zone: budget.time_zone.clone(),
        reset_day: budget.reset_day,
        soft_percents: budget.soft_percents.clone(),
        when_short: match budget.when_short {
            WhenShort::Refuse => WhenShortDocument::Refuse,
            WhenShort::LowerOutputCap => WhenShortDocument::LowerOutputCap,
            WhenShort::StepDown => WhenShortDocument::StepDown,
        },
    }
}
