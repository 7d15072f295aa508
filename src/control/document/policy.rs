//! A policy: how the tier of a request is found, which models answer in it, and what follows a failure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::TIERS;
use super::place::Place;
use super::window;
use crate::domain::{ModelName, PlanName};
use crate::processor::fallback::ends_always;
use crate::processor::router::MEASURES;
use crate::processor::router::window::overlap;
use crate::provider::FailureClass;
use crate::records::control::Entity;
use crate::records::policy::{
    FailureRule, IntentTier, MeasureWeight, Policy, PolicyTier, Rule, SHORTFALLS, Then, Threshold, When,
};

/// Most rules of a policy.
const RULES_MAX: usize = 100;
/// Most intents of a policy.
const INTENTS_MAX: usize = 100;
/// Most bytes of the name of an intent or a rule.
const NAME_BYTES_MAX: usize = 64;
/// Most retries of one deployment, and the longest wait before one.
const RETRIES_MAX: u32 = 10;
const BACKOFF_MS_MAX: u64 = 60_000;
/// Largest weight, and most points of complexity for one of something.
const WEIGHT_MAX: u64 = 1_000_000;
const POINTS_MAX: i64 = 1_000_000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    description: String,
    default_tier: u8,
    max_attempts: u32,
    #[serde(default)]
    fallback: Vec<String>,
    #[serde(default = "doubt_percent")]
    doubt_percent: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vip_tier: Option<u8>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    escalation: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    intents: BTreeMap<String, u8>,
    #[serde(default, skip_serializing_if = "Complexity::is_empty")]
    complexity: Complexity,
    tiers: Vec<Tier>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleDocument>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    failures: BTreeMap<String, FailureDocument>,
}

const fn doubt_percent() -> u32 {
    20
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tier {
    tier: u8,
    candidates: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    weights: Vec<u64>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Complexity {
    #[serde(default)]
    weights: BTreeMap<String, i64>,
    #[serde(default)]
    thresholds: Vec<ThresholdDocument>,
}

impl Complexity {
    fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.thresholds.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdDocument {
    points: i64,
    tier: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleDocument {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tier: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_tier: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_tier: Option<u8>,
    #[serde(default)]
    when: WhenDocument,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WhenDocument {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    intents: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    user_tiers: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    plans: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<window::Document>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FailureDocument {
    then: String,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    backoff_ms: u64,
}

/// What a policy's `then` may say.
const THENS: [(&str, Then); 3] = [("next", Then::Next), ("retry", Then::Retry), ("end", Then::End)];

pub(super) fn parse(document: Document, place: &mut Place<'_>) -> Option<Entity> {
    let tiers = tiers(&document.tiers, place);
    let known: BTreeSet<u8> = document.tiers.iter().map(|of| of.tier).collect();
    let has = |tier: u8| known.contains(&tier);
    let missing = |tier: u8| format!("{tier} has no [[tiers]]");
    for (key, tier) in [("default_tier", Some(document.default_tier)), ("vip_tier", document.vip_tier)] {
        if let Some(tier) = tier.filter(|tier| !has(*tier)) {
            place.problem(key, missing(tier));
        }
    }
    if !(1..=100).contains(&document.max_attempts) {
        place.problem("max_attempts", "must be from 1 to 100");
    }
    if document.doubt_percent > 100 {
        place.problem("doubt_percent", "must be from 0 to 100");
    }
    if document.intents.len() > INTENTS_MAX {
        place.problem("intents", format!("has {} entries; {INTENTS_MAX} are the most", document.intents.len()));
    }
    for (intent, tier) in &document.intents {
        name(intent, &format!("intents.{intent}"), place);
        if !has(*tier) {
            place.problem(&format!("intents.{intent}"), missing(*tier));
        }
    }
    for (index, shortfall) in document.escalation.iter().enumerate() {
        if !SHORTFALLS.contains(&shortfall.as_str()) || document.escalation[..index].contains(shortfall) {
            let known = SHORTFALLS.join(", ");
            place.problem("escalation", format!("{shortfall} is not known, or there twice; known are {known}"));
        }
    }
    let (weights, thresholds) = complexity(&document.complexity, has, &mut place.within("complexity"));
    let rules = rules(document.rules, &document.intents, has, place);
    let failures = failures(document.failures, &mut place.within("failures"));
    let fallback = place.names::<ModelName>("fallback", &document.fallback);
    let intents = document.intents.into_iter().map(|(intent, tier)| IntentTier { intent, tier }).collect();
    Some(Entity::Policy(Policy {
        description: document.description,
        default_tier: document.default_tier,
        max_attempts: document.max_attempts,
        tiers: tiers?,
        fallback: fallback?,
        intents,
        doubt_permille: document.doubt_percent.saturating_mul(10),
        vip_tier: document.vip_tier,
        weights,
        thresholds,
        rules: rules?,
        escalation: document.escalation,
        failures,
    }))
}

fn tiers(documents: &[Tier], place: &mut Place<'_>) -> Option<Vec<PolicyTier>> {
    let mut tiers: Vec<PolicyTier> = Vec::with_capacity(documents.len());
    for (index, item) in documents.iter().enumerate() {
        let mut place = place.within(&format!("tiers[{index}]"));
        if !TIERS.contains(&item.tier) {
            place.problem("tier", "tiers go from 1 to 4");
        }
        if documents[..index].iter().any(|other| other.tier == item.tier) {
            place.problem("tier", format!("{} is there more than once", item.tier));
        }
        if item.candidates.is_empty() {
            place.problem("candidates", "has no candidates; name at least one model");
        }
        let (weights, candidates) = (item.weights.len(), item.candidates.len());
        if weights > 0 && weights != candidates {
            place.problem("weights", format!("has {weights} weights for {candidates} candidates; give one for each"));
        } else if weights > 0 && item.weights.iter().all(|weight| *weight == 0) {
            place.problem("weights", "sum to nothing, so nobody would be drawn; give at least one above 0");
        }
        if item.weights.iter().any(|weight| *weight > WEIGHT_MAX) {
            place.problem("weights", format!("must be at most {WEIGHT_MAX}"));
        }
        if let Some(candidates) = place.names::<ModelName>("candidates", &item.candidates) {
            tiers.push(PolicyTier { tier: item.tier, candidates, weights: item.weights.clone() });
        }
    }
    (tiers.len() == documents.len()).then_some(tiers)
}

fn complexity(
    document: &Complexity,
    has: impl Fn(u8) -> bool,
    place: &mut Place<'_>,
) -> (Vec<MeasureWeight>, Vec<Threshold>) {
    for (measure, points) in &document.weights {
        if !MEASURES.iter().any(|(known, _)| known == measure) {
            let known = MEASURES.map(|(name, _)| name).join(", ");
            place.problem(&format!("weights.{measure}"), format!("is not measured; known are {known}"));
        }
        if points.abs() > POINTS_MAX {
            place.problem(&format!("weights.{measure}"), format!("must be from -{POINTS_MAX} to {POINTS_MAX}"));
        }
    }
    for (index, threshold) in document.thresholds.iter().enumerate() {
        if !has(threshold.tier) {
            place.problem(&format!("thresholds[{index}].tier"), format!("{} has no [[tiers]]", threshold.tier));
        }
    }
    if document.weights.is_empty() != document.thresholds.is_empty() {
        place.problem("", "weights do nothing without thresholds, nor thresholds without weights; give both or none");
    }
    let weights = document.weights.iter();
    let weights = weights.map(|(measure, points)| MeasureWeight { measure: measure.clone(), points: *points });
    let thresholds = document.thresholds.iter().map(|of| Threshold { points: of.points, tier: of.tier });
    (weights.collect(), thresholds.collect())
}

fn rules(
    documents: Vec<RuleDocument>,
    intents: &BTreeMap<String, u8>,
    has: impl Fn(u8) -> bool,
    place: &mut Place<'_>,
) -> Option<Vec<Rule>> {
    let count = documents.len();
    if count > RULES_MAX {
        place.problem("rules", format!("has {count} rules; {RULES_MAX} are the most"));
    }
    let mut rules: Vec<Rule> = Vec::with_capacity(count);
    for (index, document) in documents.into_iter().enumerate() {
        let mut place = place.within(&format!("rules[{index}]"));
        name(&document.name, "name", &mut place);
        if rules.iter().any(|rule| rule.name == document.name) {
            place.problem("name", format!("{} is there more than once", document.name));
        }
        let tiers = [("tier", document.tier), ("min_tier", document.min_tier), ("max_tier", document.max_tier)];
        for (key, tier) in tiers {
            if let Some(tier) = tier.filter(|tier| !has(*tier)) {
                place.problem(key, format!("{tier} has no [[tiers]]"));
            }
        }
        if tiers.iter().all(|(_, tier)| tier.is_none()) {
            place.problem("", "does nothing; give tier, min_tier or max_tier");
        }
        if let (Some(min), Some(max)) = (document.min_tier, document.max_tier)
            && min > max
        {
            place.problem("min_tier", format!("{min} is above max_tier, {max}"));
        }
        let RuleDocument { name, tier, min_tier, max_tier, when } = document;
        let Some(when) = self::when(when, intents, &mut place.within("when")) else { continue };
        let rule = Rule { name, when, tier, min_tier, max_tier };
        if let Some(other) = rules.iter().find(|other| contradicts(other, &rule)) {
            let problem = format!("overlaps the window of rule {}, which sets another tier for the same", other.name);
            place.problem("when.window", problem);
        }
        rules.push(rule);
    }
    (rules.len() == count).then_some(rules)
}

/// Whether two rules set different tiers for the same requests at the same time.
fn contradicts(a: &Rule, b: &Rule) -> bool {
    let (Some(a_window), Some(b_window)) = (&a.when.window, &b.when.window) else { return false };
    let (Some(a_tier), Some(b_tier)) = (a.tier, b.tier) else { return false };
    let without = |when: &When| When { window: None, ..when.clone() };
    a_tier != b_tier && without(&a.when) == without(&b.when) && overlap(a_window, b_window)
}

fn when(document: WhenDocument, intents: &BTreeMap<String, u8>, place: &mut Place<'_>) -> Option<When> {
    for intent in document.intents.iter().filter(|intent| !intents.contains_key(*intent)) {
        let known = intents.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        place.problem("intents", format!("{intent} is no intent of this policy; its [intents] are: {known}"));
    }
    if let (Some(min), Some(max)) = (document.min_input_tokens, document.max_input_tokens)
        && min > max
    {
        place.problem("min_input_tokens", format!("{min} is above max_input_tokens, {max}"));
    }
    let plans = place.names::<PlanName>("plans", &document.plans);
    let window = match document.window {
        None => None,
        Some(window) => Some(window.parse(&mut place.within("window"))?),
    };
    Some(When {
        intents: document.intents,
        user_tiers: document.user_tiers,
        plans: plans?,
        tags: document.tags,
        min_input_tokens: document.min_input_tokens,
        max_input_tokens: document.max_input_tokens,
        window,
    })
}

fn failures(documents: BTreeMap<String, FailureDocument>, place: &mut Place<'_>) -> Vec<FailureRule> {
    let mut rules = Vec::with_capacity(documents.len());
    for (cause, document) in documents {
        let mut place = place.within(&cause);
        match FailureClass::from_code(&cause) {
            None => {
                let causes = FailureClass::ALL.iter().filter(|class| !ends_always(**class)).map(|class| class.code());
                place.problem("", format!("is no cause; known are {}", causes.collect::<Vec<_>>().join(", ")));
            }
            Some(class) if ends_always(class) => place.problem("", "ends the request always; leave it out"),
            Some(_) => {}
        }
        let then = THENS.iter().find(|(name, _)| *name == document.then).map(|(_, then)| *then);
        if then.is_none() {
            place.problem("then", format!("{:?} is not known; known are next, retry and end", document.then));
        }
        if then == Some(Then::Retry) && document.retries == 0 {
            place.problem("retries", format!("must be from 1 to {RETRIES_MAX} where then is \"retry\""));
        }
        if document.retries > RETRIES_MAX {
            place.problem("retries", format!("must be at most {RETRIES_MAX}"));
        }
        if document.backoff_ms > BACKOFF_MS_MAX {
            place.problem("backoff_ms", format!("must be at most {BACKOFF_MS_MAX}"));
        }
        let FailureDocument { retries, backoff_ms, .. } = document;
        rules.push(FailureRule { cause, then: then.unwrap_or_default(), retries, backoff_ms });
    }
    rules
}

fn name(name: &str, key: &str, place: &mut Place<'_>) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
        place.problem(key, format!("must have 1 to {NAME_BYTES_MAX} letters, digits and _ - ."));
    }
}

pub(super) fn show(policy: &Policy) -> Document {
    let names = |models: &[ModelName]| models.iter().map(ModelName::to_string).collect::<Vec<_>>();
    let tier = |of: &PolicyTier| Tier { tier: of.tier, candidates: names(&of.candidates), weights: of.weights.clone() };
    let rule = |rule: &Rule| RuleDocument {
        name: rule.name.clone(),
        tier: rule.tier,
        min_tier: rule.min_tier,
        max_tier: rule.max_tier,
        when: WhenDocument {
            intents: rule.when.intents.clone(),
            user_tiers: rule.when.user_tiers.clone(),
            plans: rule.when.plans.iter().map(PlanName::to_string).collect(),
            tags: rule.when.tags.clone(),
            min_input_tokens: rule.when.min_input_tokens,
            max_input_tokens: rule.when.max_input_tokens,
            window: rule.when.window.as_ref().map(window::show),
        },
    };
    let failure = |rule: &FailureRule| {
        let then = THENS.iter().find(|(_, then)| *then == rule.then).map_or("next", |(name, _)| name);
        let document = FailureDocument { then: then.to_owned(), retries: rule.retries, backoff_ms: rule.backoff_ms };
        (rule.cause.clone(), document)
    };
    let threshold = |of: &Threshold| ThresholdDocument { points: of.points, tier: of.tier };
    Document {
        description: policy.description.clone(),
        default_tier: policy.default_tier,
        max_attempts: policy.max_attempts,
        fallback: names(&policy.fallback),
        doubt_percent: policy.doubt_permille / 10,
        vip_tier: policy.vip_tier,
        escalation: policy.escalation.clone(),
        intents: policy.intents.iter().map(|of| (of.intent.clone(), of.tier)).collect(),
        complexity: Complexity {
            weights: policy.weights.iter().map(|of| (of.measure.clone(), of.points)).collect(),
            thresholds: policy.thresholds.iter().map(threshold).collect(),
        },
        tiers: policy.tiers.iter().map(tier).collect(),
        rules: policy.rules.iter().map(rule).collect(),
        failures: policy.failures.iter().map(failure).collect(),
    }
}
