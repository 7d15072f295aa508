//! `models.toml`: who serves which model, and what it costs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::super::{Files, Problem};
use super::{TIERS, prices, read};
use crate::domain::{DeploymentId, ModelName, Timestamp};
use crate::records::control::{Deployment, Limits, Model, NO_CREDENTIAL};

/// What a model may be said to be capable of.
pub const CAPABILITIES: [&str; 8] =
    ["chat", "streaming", "tools", "vision", "json_object", "json_schema", "reasoning", "prompt_caching"];

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelsFile {
    models: Vec<ModelItem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelItem {
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
    tier: u8,
    owned_by: String,
    context_window: u64,
    max_output_tokens: u64,
    #[serde(default)]
    capabilities: Vec<String>,
    created: String,
    deployments: Vec<DeploymentItem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeploymentItem {
    id: String,
    provider: String,
    upstream_model: String,
    base_url: String,
    region: String,
    credential: String,
    prices: Vec<prices::Item>,
}

/// Where in the file something is, and where what is wrong goes.
pub(super) struct Place<'a> {
    pub file: &'a str,
    pub item: String,
    pub problems: &'a mut Vec<Problem>,
}

impl Place<'_> {
    /// Notes what is wrong with `key` of this item.
    pub fn problem(&mut self, key: &str, problem: impl Into<String>) {
        self.problems.push(Problem::new(self.file, format!("{}.{key}", self.item), problem));
    }

    /// Takes a value, or notes why there is none.
    pub fn take<T, E: std::fmt::Display>(&mut self, key: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.problem(key, e.to_string())).ok()
    }
}

/// Parses the catalogue.
pub(super) fn models(files: &Files, path: &str, problems: &mut Vec<Problem>) -> BTreeMap<ModelName, Model> {
    let mut all = BTreeMap::new();
    let Some(file) = read::<ModelsFile>(files, path, problems) else { return all };
    let (mut names, mut deployments) = (BTreeSet::new(), BTreeSet::new());
    for item in file.models {
        let mut place = Place { file: path, item: format!("models.{}", item.name), problems };
        for name in std::iter::once(&item.name).chain(&item.aliases) {
            if !names.insert(name.clone()) {
                place.problem("aliases", format!("{name} is the name or an alias of another model, or twice here"));
            }
        }
        for deployment in &item.deployments {
            if !deployments.insert(deployment.id.clone()) {
                place.problem("deployments", format!("{} is the id of another deployment, too", deployment.id));
            }
        }
        let Some(name) = place.take("name", ModelName::parse(&item.name)) else { continue };
        if let Some(model) = model(item, &mut place) {
            all.insert(name, model);
        }
    }
    all
}

fn model(item: ModelItem, place: &mut Place<'_>) -> Option<Model> {
    if !TIERS.contains(&item.tier) {
        place.problem("tier", "tiers go from 1 to 4");
    }
    if item.context_window == 0 || item.max_output_tokens == 0 || item.max_output_tokens > item.context_window {
        place.problem("max_output_tokens", "must be from 1 to context_window");
    }
    for capability in item.capabilities.iter().filter(|c| !CAPABILITIES.contains(&c.as_str())) {
        let known = CAPABILITIES.join(", ");
        place.problem("capabilities", format!("{capability} is not known; known are {known}"));
    }
    if item.deployments.is_empty() {
        place.problem("deployments", "there is none; say who serves the model");
    }
    let date = time::Date::parse(&item.created, DATE);
    let date = date.map_err(|_| format!("{:?} is no date; write it like 2024-09-25", item.created));
    let created_at = place.take("created", date)?;
    let aliases: Vec<Option<ModelName>> =
        item.aliases.iter().map(|alias| place.take("aliases", ModelName::parse(alias))).collect();
    let model = place.item.clone();
    let deployments: Vec<Option<Deployment>> = item
        .deployments
        .into_iter()
        .map(|d| {
            place.item = format!("{model}.deployments.{}", d.id);
            deployment(d, place)
        })
        .collect();
    place.item = model;
    Some(Model {
        aliases: aliases.into_iter().collect::<Option<_>>()?,
        tier: item.tier,
        owned_by: item.owned_by,
        created_at: Timestamp::from_millis(created_at.midnight().assume_utc().unix_timestamp() * 1_000),
        context_window: item.context_window,
        max_output_tokens: item.max_output_tokens,
        capabilities: item.capabilities,
        deployments: deployments.into_iter().collect::<Option<_>>()?,
        limits: Limits::default(),
    })
}

fn deployment(item: DeploymentItem, place: &mut Place<'_>) -> Option<Deployment> {
    if let Err(problem) = base_url(&item.base_url) {
        place.problem("base_url", problem);
    }
    if !is_reference(&item.credential) {
        // The value itself is not repeated: it may be a secret.
        place.problem("credential", "must be a reference such as env:NAME, or none; secrets do not belong in files");
    }
    for (key, value) in
        [("provider", &item.provider), ("upstream_model", &item.upstream_model), ("region", &item.region)]
    {
        if value.trim().is_empty() {
            place.problem(key, "is empty");
        }
    }
    let id = place.take("id", DeploymentId::parse(&item.id));
    let prices = prices::parse(item.prices, place);
    Some(Deployment {
        id: id?,
        provider: item.provider,
        upstream_model: item.upstream_model,
        base_url: item.base_url,
        region: item.region,
        credential: item.credential,
        prices: prices?,
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
        _ => Err(format!("{text:?} must be http(s)://host/path without user, query and final slash")),
    }
}
