//! The tier that a request needs. Precedence: a VIP's tier; a rule that sets one; the intent, given or classified, raised by
//! complexity; the policy's default. Then what rules bound it to, and at last what the plan has.

use super::{Asked, window};
use crate::control::terms::Terms;
use crate::domain::Timestamp;
use crate::processor::inference::counted_input;
use crate::processor::intent::INTENTS;
use crate::records::journal::{Features, IntentSource, Likelihoods, Tiering};
use crate::records::policy::{Policy, When};

/// The tag by which a request gives its intent.
pub const INTENT_TAG: &str = "intent";
/// The `user_tier` of a VIP.
pub const VIP: &str = "vip";

/// What is measured of a request, by the names that policies give weights to.
pub const MEASURES: [(&str, fn(&Features) -> u64); 11] = [
    ("words", |of| of.measures.map_or(0, |m| u64::from(m.words))),
    ("questions", |of| of.measures.map_or(0, |m| u64::from(m.questions))),
    ("code_lines", |of| of.measures.map_or(0, |m| u64::from(m.code_lines))),
    ("numbers", |of| of.measures.map_or(0, |m| u64::from(m.numbers))),
    ("list_items", |of| of.measures.map_or(0, |m| u64::from(m.list_items))),
    ("constraints", |of| of.measures.map_or(0, |m| u64::from(m.constraints))),
    ("turns", |of| of.measures.map_or(0, |m| u64::from(m.turns))),
    ("input_tokens", counted_input),
    ("tools", |of| u64::from(of.tools)),
    ("images", |of| u64::from(of.images)),
    ("output_cap", |of| of.output_cap.unwrap_or(0)),
];

/// An intent, and where it is from.
struct Intent<'a> {
    name: Option<&'a str>,
    source: IntentSource,
    confidence_permille: Option<u16>,
    /// The tier that it needs, where the policy knows it.
    tier: Option<u8>,
}

/// Finds the tier; adds how to `reasons`.
pub fn find(
    policy: &Policy,
    terms: &Terms<'_>,
    asked: &Asked<'_>,
    at: Timestamp,
    reasons: &mut Vec<String>,
) -> Tiering {
    let intent = intent_of(policy, asked, reasons);
    let score = score(policy, asked.features);
    let rules = || policy.rules.iter().filter(|rule| matches(&rule.when, terms, asked, intent.name, at));
    let is_vip = terms.organization.vip || asked.user_tier.is_some_and(|tier| tier.eq_ignore_ascii_case(VIP));
    let vip_tier = policy.vip_tier.filter(|_| is_vip);
    let mut tier = match (vip_tier, rules().find_map(|rule| Some((&rule.name, rule.tier?))), intent.tier) {
        (Some(tier), ..) if has(terms, tier) => {
            reasons.push(format!("tier:{tier}:vip"));
            tier
        }
        (_, Some((name, tier)), _) => {
            reasons.push(format!("tier:{tier}:rule:{name}"));
            tier
        }
        (_, None, Some(tier)) => {
            reasons.push(format!("tier:{tier}:intent"));
            raised(policy, tier, score, reasons)
        }
        (_, None, None) => {
            reasons.push(format!("tier:{}:default", policy.default_tier));
            raised(policy, policy.default_tier, score, reasons)
        }
    };
    for rule in rules() {
        let bounded = tier.max(rule.min_tier.unwrap_or(tier)).min(rule.max_tier.unwrap_or(u8::MAX));
        if bounded != tier {
            reasons.push(format!("bounded:{bounded}:rule:{}", rule.name));
            tier = bounded;
        }
    }
    let planned = planned(policy, terms, tier);
    if planned != tier {
        reasons.push(format!("bounded:{planned}:plan"));
        tier = planned;
    }
    let Intent { name, source: intent_source, confidence_permille, .. } = intent;
    Tiering { intent: name.map(str::to_owned), intent_source, confidence_permille, score, tier }
}

/// The request's own intent, where it gives one that the policy knows; else the classifier's.
fn intent_of<'a>(policy: &Policy, asked: &Asked<'a>, reasons: &mut Vec<String>) -> Intent<'a> {
    let tier_of = |intent: &str| policy.intents.iter().find(|of| of.intent == intent).map(|of| of.tier);
    let none = Intent { name: None, source: IntentSource::None, confidence_permille: None, tier: None };
    if policy.intents.is_empty() {
        return none;
    }
    if let Some(given) = asked.tags.get(INTENT_TAG) {
        if let Some(tier) = tier_of(given) {
            reasons.push(format!("intent:{given}:given"));
            return Intent { name: Some(given), source: IntentSource::Given, tier: Some(tier), ..none };
        }
        reasons.push(format!("unknown_intent:{given}"));
    }
    let Some(likelihoods) = asked.features.likelihoods else {
        reasons.push("intent:not_understood".to_owned());
        return none;
    };
    let likelihoods = in_order(likelihoods);
    let tier_at = |index: usize| tier_of(INTENTS[index]).unwrap_or(policy.default_tier);
    let likeliest = (0..INTENTS.len()).max_by_key(|index| (likelihoods[*index], std::cmp::Reverse(*index)));
    let Some(likeliest) = likeliest else { return none };
    let (name, permille) = (INTENTS[likeliest], likelihoods[likeliest]);
    // The lowest tier for which it is unlikely enough that a higher one was needed.
    let above = |tier: u8| -> u32 {
        (0..INTENTS.len()).filter(|index| tier_at(*index) > tier).map(|index| u32::from(likelihoods[index])).sum()
    };
    let tiers = (0..INTENTS.len()).map(tier_at);
    let tier = tiers.filter(|tier| above(*tier) <= policy.doubt_permille).min();
    reasons.push(format!("intent:{name}:classified:{permille}"));
    Intent { name: Some(name), source: IntentSource::Classified, confidence_permille: Some(permille), tier }
}

/// The likelihoods in the order of [`INTENTS`].
pub const fn in_order(of: Likelihoods) -> [u16; INTENTS.len()] {
    [of.greeting, of.faq, of.basic_support, of.complex_question, of.sales_negotiation, of.high_value]
}

/// The points of complexity; `None`: the policy has no weights.
fn score(policy: &Policy, features: &Features) -> Option<i64> {
    if policy.weights.is_empty() {
        return None;
    }
    let points = policy.weights.iter().map(|weight| {
        let measure = MEASURES.iter().find(|(name, _)| *name == weight.measure);
        let count = measure.map_or(0, |(_, measure)| measure(features));
        weight.points.saturating_mul(i64::try_from(count).unwrap_or(i64::MAX))
    });
    Some(points.fold(0, i64::saturating_add))
}

/// The tier, or the higher one that so many points lead to.
fn raised(policy: &Policy, tier: u8, score: Option<i64>, reasons: &mut Vec<String>) -> u8 {
    let Some(score) = score else { return tier };
    let reached = policy.thresholds.iter().filter(|of| score >= of.points).map(|of| of.tier).max();
    match reached.filter(|reached| *reached > tier) {
        Some(reached) => {
            reasons.push(format!("raised:{reached}:complexity:{score}"));
            reached
        }
        None => tier,
    }
}

/// The tier that the policy has and the plan allows: this one, else the next above, else the next below.
fn planned(policy: &Policy, terms: &Terms<'_>, tier: u8) -> u8 {
    if has(terms, tier) {
        return tier;
    }
    let allowed = || policy.tiers.iter().map(|of| of.tier).filter(|tier| has(terms, *tier));
    allowed().filter(|of| *of > tier).min().or_else(|| allowed().filter(|of| *of < tier).max()).unwrap_or(tier)
}

fn has(terms: &Terms<'_>, tier: u8) -> bool {
    terms.plan.tiers.is_empty() || terms.plan.tiers.contains(&tier)
}

/// Whether all that a rule wants holds.
fn matches(when: &When, terms: &Terms<'_>, asked: &Asked<'_>, intent: Option<&str>, at: Timestamp) -> bool {
    let one_of = |wanted: &[String], found: Option<&str>| {
        wanted.is_empty() || found.is_some_and(|found| wanted.iter().any(|wanted| wanted == found))
    };
    let plan = terms.organization.plan.as_ref();
    let tokens = counted_input(asked.features);
    one_of(&when.intents, intent)
        && one_of(&when.user_tiers, asked.user_tier)
        && (when.plans.is_empty() || plan.is_some_and(|plan| when.plans.contains(plan)))
        && when.tags.iter().all(|(name, value)| asked.tags.get(name) == Some(value))
        && when.min_input_tokens.is_none_or(|min| tokens >= min)
        && when.max_input_tokens.is_none_or(|max| tokens <= max)
        && when.window.as_ref().is_none_or(|window| window::holds(window, at))
}
