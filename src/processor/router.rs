//! Which deployments a request may be answered by, in which order, and why.
//!
//! Precedence: a model that the request names (or its alias) is answered by that model's deployments only; `auto` is
//! answered by the candidates of the policy's tier in order, then by its fallback. A model that the plan does not allow, and a
//! deployment without a price in force, is no candidate.

use std::sync::Arc;

use crate::control::Tables;
use crate::control::terms::Terms;
use crate::domain::{ModelName, PolicyName, Timestamp};
use crate::records::control::WhenShort;
use crate::records::journal::{Candidate, RequestRouted};
use crate::records::responses::ApiError;

use super::refusal::{self, Refusal};

/// The model name that leaves the choice to a policy.
pub const AUTO: &str = "auto";
/// Most calls of a request that names its model.
pub const EXPLICIT_ATTEMPTS_MAX: u32 = 3;

/// What the reasons for passing somebody over begin with.
const NOT_IN_PLAN: &str = "not_in_plan:";
const NO_PRICE: &str = "no_price:";

/// A decision of the router.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub tier: u8,
    pub policy: Option<(PolicyName, i64)>,
    pub routed: Arc<RequestRouted>,
}

/// Chooses the candidates for `model` at `at` out of what the terms allow.
pub fn route(control: &Tables, terms: &Terms<'_>, model: &ModelName, at: Timestamp) -> Result<Route, Box<Refusal>> {
    match control.policy(model.as_str()) {
        Some((name, policy)) if model.as_str() == AUTO => {
            let tier = policy.value.default_tier;
            let mut names: Vec<&ModelName> =
                policy.value.tiers.iter().filter(|t| t.tier == tier).flat_map(|t| &t.candidates).collect();
            let mut reasons = vec![format!("policy:{name}"), format!("tier:{tier}:default")];
            names.extend(&policy.value.fallback);
            if terms.when_short() == WhenShort::StepDown {
                // Those that a budget that is short may step down to, the next tier first.
                let mut cheaper: Vec<_> = policy.value.tiers.iter().filter(|t| t.tier < tier).collect();
                cheaper.sort_by_key(|of| std::cmp::Reverse(of.tier));
                names.extend(cheaper.into_iter().flat_map(|t| &t.candidates));
            }
            let candidates = candidates(control, terms, &names, at, &mut reasons);
            let routed = RequestRouted { candidates, max_attempts: policy.value.max_attempts.max(1), reasons };
            let first = routed.candidates.first().map(|c| c.tier);
            let tier = first.ok_or_else(|| nobody(&routed.reasons, AUTO))?;
            Ok(Route { tier, policy: Some((name.clone(), policy.version)), routed: Arc::new(routed) })
        }
        _ => {
            let (name, _) = control.model(model).ok_or_else(|| refusal::model_not_found(model.as_str()))?;
            let mut reasons = vec![format!("explicit:{name}")];
            let candidates = candidates(control, terms, &[name], at, &mut reasons);
            let tier = candidates.first().map(|c| c.tier).ok_or_else(|| nobody(&reasons, model.as_str()))?;
            let routed = RequestRouted { candidates, max_attempts: EXPLICIT_ATTEMPTS_MAX, reasons };
            Ok(Route { tier, policy: None, routed: Arc::new(routed) })
        }
    }
}

/// Why there is no candidate.
fn nobody(reasons: &[String], model: &str) -> ApiError {
    let is_barred = |reason: &String| reason.starts_with(NOT_IN_PLAN);
    match reasons.iter().any(is_barred) && !reasons.iter().any(|reason| reason.starts_with(NO_PRICE)) {
        true => refusal::model_not_allowed(model),
        false => refusal::no_price(model),
    }
}

fn candidates(
    control: &Tables,
    terms: &Terms<'_>,
    names: &[&ModelName],
    at: Timestamp,
    reasons: &mut Vec<String>,
) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::with_capacity(names.len());
    let mut known: Vec<&ModelName> = Vec::with_capacity(names.len());
    for name in names {
        let Some((model, entity)) = control.model(name) else {
            reasons.push(format!("unknown_model:{name}"));
            continue;
        };
        // A tier's candidate may be one of the fallback, too.
        if known.iter().any(|known| std::ptr::eq(*known, model)) {
            continue;
        }
        known.push(model);
        if !terms.allow(model, &entity.value) {
            reasons.push(format!("{NOT_IN_PLAN}{model}"));
            continue;
        }
        for deployment in &entity.value.deployments {
            if deployment.price_at(at, None).is_none() {
                reasons.push(format!("{NO_PRICE}{}", deployment.id));
                continue;
            }
            candidates.push(Candidate {
                model: model.clone(),
                deployment: deployment.id.clone(),
                tier: entity.value.tier,
            });
        }
    }
    candidates
}
