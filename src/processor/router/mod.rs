//! Which deployments a request may be answered by, in which order, and why.
//!
//! Precedence: a model that the request names (or its alias) is answered by that model's deployments only. The name of a
//! policy leaves the choice to it: it finds the tier ([`tier`]), whose candidates come first; then its fallback chain, from
//! the tier down and then up; then, where a plan steps down when the money is short, the cheaper tiers. A model that the plan
//! does not allow, that lacks what the request needs or whose context is too small, and a deployment without a price in
//! force, is no candidate. Health decides later, when an attempt is made, but for the order of a model's deployments.

mod candidates;
pub mod draw;
pub mod tier;
pub mod window;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::Tables;
use crate::control::terms::Terms;
use crate::domain::{ModelName, PolicyName, RequestId, Timestamp};
use crate::records::control::WhenShort;
use crate::records::journal::{Features, RequestRouted, Standing, Tiering};
use crate::records::policy::Policy;

use super::health::Health;
use super::refusal::{self, Refusal};
use candidates::Selection;
pub(super) use candidates::keep;
pub use tier::MEASURES;

/// The policy that leaves the choice to the gateway.
pub const AUTO: &str = "auto";
/// Most calls of a request that names its model.
pub const EXPLICIT_ATTEMPTS_MAX: u32 = 3;

/// What is routed.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub model: &'a ModelName,
    pub request_id: &'a RequestId,
    pub features: &'a Features,
    pub user_tier: Option<&'a str>,
    pub tags: &'a BTreeMap<String, String>,
}

/// By which rules, when, and what is known of the deployments.
#[derive(Debug, Clone, Copy)]
pub struct Under<'a> {
    pub control: &'a Tables,
    pub terms: &'a Terms<'a>,
    pub at: Timestamp,
    pub health: Health<'a>,
}

/// A decision of the router.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Of the first candidate.
    pub tier: u8,
    pub policy: Option<(PolicyName, i64)>,
    pub routed: Arc<RequestRouted>,
    /// Of the deployments whose health changed the order.
    pub health: Vec<Standing>,
}

/// Chooses the candidates out of what the terms allow.
///
/// # Errors
/// Why there is none.
pub fn route(under: &Under<'_>, asked: &Asked<'_>) -> Result<Route, Box<Refusal>> {
    match under.control.policy(asked.model.as_str()) {
        Some((name, policy)) => {
            let mut reasons = vec![format!("policy:{name}")];
            let tiering = tier::find(&policy.value, under.terms, asked, under.at, &mut reasons);
            let names = names(under, asked, &policy.value, tiering.tier, &mut reasons);
            let policy_version = policy.version;
            let max_attempts = policy.value.max_attempts.max(1);
            choose(under, asked, &names, reasons, (max_attempts, Some(tiering)))
                .map(|route| Route { policy: Some((name.clone(), policy_version)), ..route })
        }
        None => {
            let found = under.control.model(asked.model);
            let (name, _) = found.ok_or_else(|| refusal::model_not_found(asked.model.as_str()))?;
            let reasons = vec![format!("explicit:{name}")];
            choose(under, asked, &[name], reasons, (EXPLICIT_ATTEMPTS_MAX, None))
        }
    }
}

/// The candidates of the next tier above one whose answer fell short, where the plan has any.
pub fn escalate(
    under: &Under<'_>,
    asked: &Asked<'_>,
    policy: &Policy,
    from: &Tiering,
    shortfall: &str,
) -> Option<Route> {
    let mut above: Vec<u8> = policy.tiers.iter().map(|of| of.tier).filter(|tier| *tier > from.tier).collect();
    above.sort_unstable();
    above.into_iter().find_map(|tier| {
        let reasons = vec![format!("escalated:{tier}:{shortfall}")];
        let names = draw::candidates(policy, tier, asked.request_id);
        let tiering = Tiering { tier, ..from.clone() };
        choose(under, asked, &names, reasons, (policy.max_attempts.max(1), Some(tiering))).ok()
    })
}

fn choose(
    under: &Under<'_>,
    asked: &Asked<'_>,
    names: &[&ModelName],
    mut reasons: Vec<String>,
    (max_attempts, tiering): (u32, Option<Tiering>),
) -> Result<Route, Box<Refusal>> {
    let mut selection = Selection::new(under, asked, tiering.is_some());
    let candidates = selection.of(names, &mut reasons);
    let Some(first) = candidates.first() else { return Err(selection.nobody(asked)) };
    let (tier, health) = (first.tier, std::mem::take(&mut selection.health));
    let routed = Arc::new(RequestRouted { candidates, max_attempts, reasons, tiering });
    Ok(Route { tier, policy: None, routed, health })
}

/// The models that a policy names for a request of a tier, in the order in which they are tried; some may be there twice.
fn names<'a>(
    under: &Under<'a>,
    asked: &Asked<'_>,
    policy: &'a Policy,
    tier: u8,
    reasons: &mut Vec<String>,
) -> Vec<&'a ModelName> {
    let mut names = draw::candidates(policy, tier, asked.request_id);
    if names.is_empty() {
        reasons.push(format!("no_tier:{tier}"));
    }
    names.extend(chain(under.control, &policy.fallback, tier));
    if under.terms.when_short() == WhenShort::StepDown {
        // Those that a budget that is short may step down to, the next tier first.
        let mut cheaper: Vec<_> = policy.tiers.iter().filter(|of| of.tier < tier).collect();
        cheaper.sort_by_key(|of| std::cmp::Reverse(of.tier));
        names.extend(cheaper.into_iter().flat_map(|of| &of.candidates));
    }
    names
}

/// The fallback chain as a request of a tier goes through it: down from the first model that is not above the tier, then up
/// from there, so that nobody pays for the best model where a smaller one would have done.
fn chain<'a>(control: &Tables, fallback: &'a [ModelName], tier: u8) -> impl Iterator<Item = &'a ModelName> {
    let is_at_most = |name: &&ModelName| control.model(name).is_none_or(|(_, model)| model.value.tier <= tier);
    let from = fallback.iter().position(|name| is_at_most(&name)).unwrap_or(fallback.len());
    let (above, below) = fallback.split_at(from);
    below.iter().chain(above.iter().rev())
}
