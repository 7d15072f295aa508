//! A model: who serves it, and what it costs.

use serde::{Deserialize, Serialize};

use super::TIERS;
use super::amounts::{self, Limits};
use super::place::Place;
use super::price;
use crate::domain::{DeploymentId, ModelName};
use crate::records::control::{Balance, Deployment, Entity, Model, NO_CREDENTIAL};

/// What a model may be said to be capable of.
pub const CAPABILITIES: [&str; 8] =
    ["chat", "streaming", "tools", "vision", "json_object", "json_schema", "reasoning", "prompt_caching"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    aliases: Vec<String>,
    tier: u8,
    owned_by: String,
    context_window: u64,
    max_output_tokens: u64,
    #[serde(default)]
    capabilities: Vec<String>,
    created: String,
    /// Of one organization's calls of it.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    limits: Limits,
    #[serde(default = "listed")]
    balance: String,
    deployments: Vec<DeploymentDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeploymentDocument {
    id: String,
    provider: String,
    upstream_model: String,
    base_url: String,
    region: String,
    credential: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u64>,
    prices: Vec<price::Document>,
}

/// In which order a model's deployments are tried.
const BALANCES: [(&str, Balance); 4] = [
    ("listed", Balance::Listed),
    ("weighted", Balance::Weighted),
    ("least_latency", Balance::LeastLatency),
    ("least_busy", Balance::LeastBusy),
];
/// Largest weight of a deployment.
const WEIGHT_MAX: u64 = 1_000_000;

fn listed() -> String {
    "listed".to_owned()
}

pub(super) fn parse(document: Document, place: &mut Place<'_>) -> Option<Entity> {
    if !TIERS.contains(&document.tier) {
        place.problem("tier", "tiers go from 1 to 4");
    }
    let window = amounts::count("context_window", Some(document.context_window), place);
    if document.max_output_tokens == 0 || document.max_output_tokens > document.context_window {
        place.problem("max_output_tokens", "must be from 1 to context_window");
    }
    for capability in document.capabilities.iter().filter(|c| !CAPABILITIES.contains(&c.as_str())) {
        let known = CAPABILITIES.join(", ");
        place.problem("capabilities", format!("{capability} is not known; known are {known}"));
    }
    if document.deployments.is_empty() {
        place.problem("deployments", "there is none; say who serves the model");
    }
    let balance = BALANCES.iter().find(|(name, _)| *name == document.balance).map(|(_, balance)| *balance);
    if balance.is_none() {
        let known = BALANCES.map(|(name, _)| name).join(", ");
        place.problem("balance", format!("{:?} is not known; known are {known}", document.balance));
    }
    if balance == Some(Balance::Weighted) && document.deployments.iter().all(|of| of.weight == Some(0)) {
        place.problem(
            "deployments",
            "their weights sum to nothing, so nobody would be drawn; give at least one above 0",
        );
    }
    let created_at = place.take("created", amounts::date(&document.created));
    let aliases = place.names::<ModelName>("aliases", &document.aliases);
    let limits = document.limits.parse(place);
    let mut deployments = Vec::with_capacity(document.deployments.len());
    for (index, item) in document.deployments.into_iter().enumerate() {
        deployments.push(deployment(item, &mut place.within(&format!("deployments[{index}]"))));
    }
    window?;
    Some(Entity::Model(Model {
        aliases: aliases?,
        tier: document.tier,
        owned_by: document.owned_by,
        created_at: created_at?,
        context_window: document.context_window,
        max_output_tokens: document.max_output_tokens,
        capabilities: document.capabilities,
        deployments: deployments.into_iter().collect::<Option<_>>()?,
        limits: limits?,
        balance: balance?,
    }))
}

fn deployment(document: DeploymentDocument, place: &mut Place<'_>) -> Option<Deployment> {
    if let Err(problem) = base_url(&document.base_url) {
        place.problem("base_url", problem);
    }
    if !is_reference(&document.credential) {
        // The value itself is not repeated: it may be a secret.
        place.problem("credential", "must be a reference such as env:NAME, or none; secrets do not belong in files");
    }
    for (key, value) in
        [("provider", &document.provider), ("upstream_model", &document.upstream_model), ("region", &document.region)]
    {
        if value.trim().is_empty() {
            place.problem(key, "is empty");
        }
    }
    if document.weight.is_some_and(|weight| weight > WEIGHT_MAX) {
        place.problem("weight", format!("must be at most {WEIGHT_MAX}"));
    }
    let id = place.take("id", DeploymentId::parse(&document.id));
    let prices = price::parse(document.prices, place);
    Some(Deployment {
        id: id?,
        provider: document.provider,
        upstream_model: document.upstream_model,
        base_url: document.base_url,
        region: document.region,
        credential: document.credential,
        prices: prices?,
        weight: document.weight,
    })
}

/// `env:NAME`, or `none` for a server that wants no credential.
fn is_reference(text: &str) -> bool {
    let name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text == NO_CREDENTIAL || text.strip_prefix("env:").is_some_and(|rest| !rest.is_empty() && rest.chars().all(name))
}

fn base_url(text: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("{text:?} is no URL: {e}"))?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match url.scheme() {
        "http" | "https" if url.has_host() && plain && url.password().is_none() && !text.ends_with('/') => Ok(()),
        // What stands before the host may be a secret.
        _ if !url.username().is_empty() => {
            Err("must have no user and no password; give the secret by reference".to_owned())
        }
        _ => Err(format!("{text:?} must be http(s)://host/path without user, query and final slash")),
    }
}

pub(super) fn show(model: &Model) -> Document {
    let deployments = model.deployments.iter().map(|of| DeploymentDocument {
        id: of.id.to_string(),
        provider: of.provider.clone(),
        upstream_model: of.upstream_model.clone(),
        base_url: of.base_url.clone(),
        region: of.region.clone(),
        credential: of.credential.clone(),
        weight: of.weight,
        prices: of.prices.iter().map(price::show).collect(),
    });
    Document {
        aliases: model.aliases.iter().map(ModelName::to_string).collect(),
        tier: model.tier,
        owned_by: model.owned_by.clone(),
        context_window: model.context_window,
        max_output_tokens: model.max_output_tokens,
        capabilities: model.capabilities.clone(),
        created: amounts::show_date(model.created_at),
        limits: Limits::show(&model.limits),
        balance: BALANCES
            .iter()
            .find(|(_, known)| *known == model.balance)
            .map_or_else(listed, |(name, _)| (*name).to_owned()),
        deployments: deployments.collect(),
    }
}
