//! Who of the models that are named may answer: what the plan allows, what can do what the request needs, what it fits into,
//! what has a price. Then the deployments of each, in the order that its balance gives.

use super::draw::Draw;
use super::{Asked, Under};
use crate::control::Versioned;
use crate::domain::{DeploymentId, ModelName};
use crate::processor::health::sound;
use crate::processor::inference::{counted_input, estimated_input};
use crate::processor::refusal::{self, Refusal};
use crate::records::control::{Balance, Deployment, Model};
use crate::records::journal::{Candidate, Features, ResponseFormat, Standing};

/// What a request needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Tools,
    Vision,
    JsonObject,
    JsonSchema,
}

impl Need {
    const fn name(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Vision => "vision",
            Self::JsonObject => "json_object",
            Self::JsonSchema => "json_schema",
        }
    }

    fn is_met_by(self, model: &Model) -> bool {
        let can = |capability: &str| model.capabilities.iter().any(|has| has == capability);
        // Who keeps to a schema puts out JSON.
        can(self.name()) || (self == Self::JsonObject && can(Self::JsonSchema.name()))
    }
}

fn needs(features: &Features) -> impl Iterator<Item = Need> {
    let format = match features.response_format {
        ResponseFormat::JsonObject => Some(Need::JsonObject),
        ResponseFormat::JsonSchema => Some(Need::JsonSchema),
        ResponseFormat::Text | ResponseFormat::Unknown => None,
    };
    let tools = (features.tools > 0).then_some(Need::Tools);
    let vision = (features.images > 0).then_some(Need::Vision);
    [tools, vision, format].into_iter().flatten()
}

/// How far the models got that are no candidates: the furthest says what is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Unknown,
    NotInPlan,
    /// What it lacks first.
    Lacks(&'static str),
    Context {
        window: u64,
        tokens: u64,
    },
    NoPrice,
}

pub(super) struct Selection<'a> {
    under: &'a Under<'a>,
    asked: &'a Asked<'a>,
    /// A policy chooses, so that what does not fit is passed over; who names a model gets it, and what its provider says.
    is_chosen: bool,
    furthest: Stage,
    /// Of the deployments whose health changed the order.
    pub health: Vec<Standing>,
}

impl<'a> Selection<'a> {
    pub fn new(under: &'a Under<'a>, asked: &'a Asked<'a>, is_chosen: bool) -> Self {
        Self { under, asked, is_chosen, furthest: Stage::Unknown, health: Vec::new() }
    }

    /// The candidates among these models, each once; adds why others are none to `reasons`.
    pub fn of(&mut self, names: &[&ModelName], reasons: &mut Vec<String>) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::with_capacity(names.len());
        let mut known: Vec<&ModelName> = Vec::with_capacity(names.len());
        for name in names {
            let Some((model, entity)) = self.under.control.model(name) else {
                reasons.push(format!("unknown_model:{name}"));
                continue;
            };
            // A tier's candidate may be one of the fallback, too.
            if known.iter().any(|known| std::ptr::eq(*known, model)) {
                continue;
            }
            known.push(model);
            if let Err((stage, reason)) = self.fits(model, &entity.value) {
                self.furthest = self.furthest.max(stage);
                reasons.push(reason);
                continue;
            }
            for deployment in self.deployments(entity) {
                if deployment.price_at(self.under.at, None).is_none() {
                    self.furthest = self.furthest.max(Stage::NoPrice);
                    reasons.push(format!("no_price:{}", deployment.id));
                    continue;
                }
                let (model, deployment) = (model.clone(), deployment.id.clone());
                candidates.push(Candidate { model, deployment, tier: entity.value.tier });
            }
        }
        candidates
    }

    fn fits(&self, name: &ModelName, model: &Model) -> Result<(), (Stage, String)> {
        let features = self.asked.features;
        if !self.under.terms.allow(name, model) {
            return Err((Stage::NotInPlan, format!("not_in_plan:{name}")));
        }
        if let Some(need) = needs(features).find(|need| self.is_chosen && !need.is_met_by(model)) {
            let need = need.name();
            return Err((Stage::Lacks(need), format!("lacks_{need}:{name}")));
        }
        // By its maker's count when there is a choice; when there is none, only what cannot fit by any count.
        let tokens = match self.is_chosen {
            true => estimated_input(features, &model.owned_by),
            false => counted_input(features),
        };
        let window = model.context_window;
        if tokens >= window {
            return Err((Stage::Context { window, tokens }, format!("context:{name}:{tokens}>={window}")));
        }
        Ok(())
    }

    /// The deployments of a model in the order in which they are tried.
    fn deployments<'m>(&mut self, entity: &'m Versioned<Model>) -> Vec<&'m Deployment> {
        let listed = || entity.value.deployments.iter();
        let health = self.under.health;
        let key: fn(&Standing) -> u64 = match entity.value.balance {
            _ if entity.value.deployments.len() < 2 => return listed().collect(),
            Balance::Listed => return listed().collect(),
            Balance::Weighted => {
                let weighted = listed().map(|of| (of, of.weight.unwrap_or(1))).collect();
                return Draw::of(self.asked.request_id.as_str(), "deployment").order(weighted);
            }
            Balance::LeastLatency => |standing| standing.latency_ms.unwrap_or(0),
            Balance::LeastBusy => |standing| u64::from(standing.in_flight),
        };
        let mut standings: Vec<(&Deployment, Standing)> = listed().map(|of| (of, health.of(&of.id))).collect();
        standings.sort_by_key(|(_, standing)| key(standing));
        let is_moved = standings.iter().zip(listed()).any(|((of, _), listed)| of.id != listed.id);
        let mut ordered = Vec::with_capacity(standings.len());
        for (deployment, standing) in standings {
            if is_moved && standing != sound(&deployment.id) {
                keep(&mut self.health, standing);
            }
            ordered.push(deployment);
        }
        ordered
    }

    /// Why there is no candidate.
    pub fn nobody(&self, asked: &Asked<'_>) -> Box<Refusal> {
        let model = asked.model.as_str();
        match self.furthest {
            Stage::NotInPlan => refusal::model_not_allowed(model),
            Stage::Lacks(need) => refusal::not_capable(model, need),
            Stage::Context { window, tokens } => refusal::context_length(tokens, window),
            Stage::Unknown | Stage::NoPrice => refusal::no_price(model),
        }
        .into()
    }
}

/// Adds a standing, each deployment's once.
pub fn keep(health: &mut Vec<Standing>, standing: Standing) {
    let is_known = |id: &DeploymentId| health.iter().any(|of| of.deployment == *id);
    if !is_known(&standing.deployment) {
        health.push(standing);
    }
}
