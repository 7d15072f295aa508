//! Which deployments a request may be answered by, in which order, and why.
//!
//! Precedence: a model that the request names (or its alias) is answered by that model's deployments only; `auto` is
//! answered by the candidates of the policy's tier in order, then by its fallback. A deployment without a price in force
//! is no candidate.

use std::sync::Arc;

use crate::control::Tables;
use crate::domain::{ModelName, PolicyName, Timestamp};
use crate::records::journal::{Candidate, RequestRouted};

use super::refusal::{self, Refusal};

/// The model name that leaves the choice to a policy.
pub const AUTO: &str = "auto";
/// Most calls of a request that names its model.
pub const EXPLICIT_ATTEMPTS_MAX: u32 = 3;

/// A decision of the router.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub tier: u8,
    pub policy: Option<(PolicyName, i64)>,
    pub routed: Arc<RequestRouted>,
}

/// Chooses the candidates for `model` at `at`.
pub fn route(control: &Tables, model: &ModelName, at: Timestamp) -> Result<Route, Box<Refusal>> {
    match control.policy(model.as_str()) {
        Some((name, policy)) if model.as_str() == AUTO => {
            let tier = policy.value.default_tier;
            let mut names: Vec<&ModelName> =
                policy.value.tiers.iter().filter(|t| t.tier == tier).flat_map(|t| &t.candidates).collect();
            let mut reasons = vec![format!("policy:{name}"), format!("tier:{tier}:default")];
            names.extend(&policy.value.fallback);
            let candidates = candidates(control, &names, at, &mut reasons);
            let routed = RequestRouted { candidates, max_attempts: policy.value.max_attempts.max(1), reasons };
            let tier = routed.candidates.first().map(|c| c.tier).ok_or_else(|| refusal::no_price(AUTO))?;
            Ok(Route { tier, policy: Some((name.clone(), policy.version)), routed: Arc::new(routed) })
        }
        _ => {
            let (name, _) = control.model(model).ok_or_else(|| refusal::model_not_found(model.as_str()))?;
            let mut reasons = vec![format!("explicit:{name}")];
            let candidates = candidates(control, &[name], at, &mut reasons);
            let tier = candidates.first().map(|c| c.tier).ok_or_else(|| refusal::no_price(model.as_str()))?;
            let routed = RequestRouted { candidates, max_attempts: EXPLICIT_ATTEMPTS_MAX, reasons };
            Ok(Route { tier, policy: None, routed: Arc::new(routed) })
        }
    }
}

fn candidates(control: &Tables, names: &[&ModelName], at: Timestamp, reasons: &mut Vec<String>) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for name in names {
        let Some((model, entity)) = control.model(name) else {
            reasons.push(format!("unknown_model:{name}"));
            continue;
        };
        for deployment in &entity.value.deployments {
            if candidates.iter().any(|c| c.deployment == deployment.id) {
                continue;
            }
            if deployment.price_at(at, None).is_none() {
                reasons.push(format!("no_price:{}", deployment.id));
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
