//! `topology/seed/`: what `apply` puts on an empty control topic. Afterwards the topic is the truth.
//!
//! Prices are decimal strings, US dollars per million tokens, and become exact pico-dollars per token here.

mod catalogue;
mod prices;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Files, Problem};
use crate::domain::{ModelName, OrganizationId, PolicyName};
use crate::records::control::{Entity, Model, Organization, Policy, PolicyTier};

pub use catalogue::CAPABILITIES;

const MODELS: &str = "topology/seed/models.toml";
const ORGANIZATIONS: &str = "topology/seed/organizations.toml";
const POLICIES: &str = "topology/seed/policies";

/// The lowest and the highest tier.
pub const TIERS: std::ops::RangeInclusive<u8> = 1..=4;

/// The seeds as entities of `control`, by id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seeds {
    pub organizations: BTreeMap<OrganizationId, Organization>,
    pub models: BTreeMap<ModelName, Model>,
    pub policies: BTreeMap<PolicyName, Policy>,
}

impl Seeds {
    /// Parses and checks all seed files; adds what is wrong to `problems`.
    pub fn parse(files: &Files, problems: &mut Vec<Problem>) -> Self {
        let organizations = organizations(files, problems);
        let models = catalogue::models(files, MODELS, problems);
        let policies = policies(files, &models, problems);
        Self { organizations, models, policies }
    }

    /// All entities with their ids, organizations first, then models, then the policies that name them.
    pub fn entities(&self) -> impl Iterator<Item = (&str, Entity)> {
        let organizations = self.organizations.iter().map(|(id, e)| (id.as_str(), Entity::Organization(e.clone())));
        let models = self.models.iter().map(|(id, e)| (id.as_str(), Entity::Model(e.clone())));
        let policies = self.policies.iter().map(|(id, e)| (id.as_str(), Entity::Policy(e.clone())));
        organizations.chain(models).chain(policies)
    }

    /// The credential references of all deployments, each once.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        let all = self.models.values().flat_map(|model| &model.deployments).map(|d| d.credential.as_str());
        all.collect::<std::collections::BTreeSet<_>>().into_iter()
    }
}

/// Reads a file, or says that it is missing or wrong.
fn read<T: DeserializeOwned>(files: &Files, path: &str, problems: &mut Vec<Problem>) -> Option<T> {
    let Some(text) = files.get(path) else {
        problems.push(Problem::new(path, "", "the file is missing"));
        return None;
    };
    match toml::from_str(text) {
        Ok(file) => Some(file),
        Err(e) => {
            problems.push(Problem::new(path, "", e.to_string().trim_end()));
            None
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrganizationsFile {
    #[serde(default)]
    organizations: Vec<OrganizationItem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrganizationItem {
    id: String,
    name: String,
    #[serde(default = "yes")]
    active: bool,
}

fn yes() -> bool {
    true
}

fn organizations(files: &Files, problems: &mut Vec<Problem>) -> BTreeMap<OrganizationId, Organization> {
    // A topology without demonstration organizations is fine.
    if files.get(ORGANIZATIONS).is_none() {
        return BTreeMap::new();
    }
    let Some(file) = read::<OrganizationsFile>(files, ORGANIZATIONS, problems) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for item in file.organizations {
        let at = format!("organizations.{}", item.id);
        match OrganizationId::parse(&item.id) {
            Err(e) => problems.push(Problem::new(ORGANIZATIONS, format!("{at}.id"), e.to_string())),
            Ok(id) => {
                let organization = Organization { active: item.active, ..Organization::named(&item.name) };
                if all.insert(id, organization).is_some() {
                    problems.push(Problem::new(ORGANIZATIONS, at, "is there more than once"));
                }
            }
        }
    }
    all
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    name: String,
    #[serde(default)]
    description: String,
    default_tier: u8,
    max_attempts: u32,
    #[serde(default)]
    fallback: Vec<String>,
    tiers: Vec<TierItem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TierItem {
    tier: u8,
    candidates: Vec<String>,
}

fn policies(
    files: &Files,
    models: &BTreeMap<ModelName, Model>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<PolicyName, Policy> {
    let known = |name: &ModelName| models.contains_key(name) || models.values().any(|m| m.aliases.contains(name));
    let mut all = BTreeMap::new();
    let paths: Vec<&str> = files.below(POLICIES).map(|(path, _)| path).collect();
    for path in paths {
        let Some(file) = read::<PolicyFile>(files, path, problems) else { continue };
        let candidates = |names: Vec<String>, at: &str, problems: &mut Vec<Problem>| {
            let mut parsed = Vec::with_capacity(names.len());
            for name in names {
                match ModelName::parse(&name) {
                    Ok(model) if parsed.contains(&model) => {
                        problems.push(Problem::new(path, at, format!("{name} is there more than once")));
                    }
                    Ok(model) if known(&model) => parsed.push(model),
                    Ok(_) => problems.push(Problem::new(path, at, format!("{name} is no model or alias of {MODELS}"))),
                    Err(e) => problems.push(Problem::new(path, at, e.to_string())),
                }
            }
            parsed
        };
        let mut tiers: Vec<PolicyTier> = Vec::new();
        for item in file.tiers {
            let at = format!("tiers.{}", item.tier);
            if !TIERS.contains(&item.tier) {
                problems.push(Problem::new(path, &at, "tiers go from 1 to 4"));
            }
            if tiers.iter().any(|tier| tier.tier == item.tier) {
                problems.push(Problem::new(path, &at, "is there more than once"));
            }
            if item.candidates.is_empty() {
                problems.push(Problem::new(path, &at, "has no candidates; name at least one model"));
            }
            let candidates = candidates(item.candidates, &format!("{at}.candidates"), problems);
            tiers.push(PolicyTier { tier: item.tier, candidates });
        }
        if !tiers.iter().any(|tier| tier.tier == file.default_tier) {
            problems.push(Problem::new(path, "default_tier", format!("{} has no [[tiers]]", file.default_tier)));
        }
        if !(1..=100).contains(&file.max_attempts) {
            problems.push(Problem::new(path, "max_attempts", "must be from 1 to 100"));
        }
        let fallback = candidates(file.fallback, "fallback", problems);
        let policy = Policy {
            description: file.description,
            default_tier: file.default_tier,
            max_attempts: file.max_attempts,
            tiers,
            fallback,
        };
        match PolicyName::parse(&file.name) {
            Err(e) => problems.push(Problem::new(path, "name", e.to_string())),
            Ok(name) if known_as_model(models, name.as_str()) => {
                problems.push(Problem::new(path, "name", format!("{name} is also the name of a model")));
            }
            Ok(name) => {
                if all.insert(name, policy).is_some() {
                    problems.push(Problem::new(path, "name", "another file has the same policy"));
                }
            }
        }
    }
    all
}

fn known_as_model(models: &BTreeMap<ModelName, Model>, name: &str) -> bool {
    models.iter().any(|(model, m)| model.as_str() == name || m.aliases.iter().any(|alias| alias.as_str() == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{PicoUsd, Timestamp};

    fn seeds(files: &Files) -> (Seeds, Vec<String>) {
        let mut problems = Vec::new();
        let seeds = Seeds::parse(files, &mut problems);
        (seeds, problems.iter().map(Problem::to_string).collect())
    }

    fn changed(path: &str, from: &str, to: &str) -> String {
        let mut files = Files::embedded();
        let text = files.get(path).unwrap();
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        files.set(path, &text);
        seeds(&files).1.join("\n")
    }

    #[test]
    fn the_shipped_seeds_hold() {
        let (seeds, problems) = seeds(&Files::embedded());
        assert_eq!(problems, Vec::<String>::new());
        assert!(seeds.models.len() > 30 && seeds.organizations.len() == 2);
        let auto = &seeds.policies["auto"];
        assert_eq!(auto.tiers.iter().map(|tier| tier.tier).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(seeds.credentials().all(|reference| reference.starts_with("env:")));
    }

    #[test]
    fn prices_are_exact_and_follow_size() {
        let (seeds, _) = seeds(&Files::embedded());
        let at = Timestamp::from_millis(1_790_000_000_000);
        let deployment = &seeds.models["gpt-5.5"].deployments[0];
        let input = |tokens| deployment.price_at(at, Some(tokens)).unwrap().input;
        assert_eq!(input(272_000), PicoUsd::new(5_000_000));
        assert_eq!(input(272_001), PicoUsd::new(10_000_000));
        let turbo = &seeds.models["gpt-4-turbo"];
        assert_eq!(turbo.created_at.to_string(), "2024-04-09T00:00:00Z");
        assert_eq!(turbo.deployments[0].prices[0].cached_input, None, "a class without a price is not free");
    }

    #[test]
    fn a_price_without_a_source_must_say_that_it_is_simulated() {
        let from = "source = \"https://openrouter.ai/meta-llama/llama-3.2-1b-instruct/overview\"\n\
                    source_read = \"2026-11-23, stored copy, undated\"";
        assert_eq!(changed(MODELS, from, "simulated = true"), "");
        assert!(changed(MODELS, from, "").contains("simulated = true"));
        assert!(changed(MODELS, from, &format!("{from}\nsimulated = true")).contains("not both"));
        let mut files = Files::embedded();
        let text = files.get(MODELS).unwrap().replacen(from, "simulated = true", 1);
        files.set(MODELS, &text);
        assert_eq!(seeds(&files).0.models["llama-3.2-1b-instruct"].deployments[0].prices[0].source, None);
    }

    #[test]
    fn what_does_not_hold_says_where_and_what_to_do() {
        let cases = [
            (MODELS, "tier = 1", "tier = 9", "models.llama-3.2-1b-instruct.tier: tiers go from 1 to 4"),
            (MODELS, "tier = 1", "teir = 1", "teir"),
            (MODELS, "input = \"0.005\"", "input = \"0.0000001\"", "more than 6 decimal places"),
            (MODELS, "input = \"0.005\"", "input = 0.005", "string"),
            (MODELS, "\"env:OPENROUTER_API_KEY\"", "\"sk-or-v1-1234\"", "env:NAME"),
            (MODELS, "https://openrouter.ai/api/v1", "openrouter.ai/api/v1", "base_url"),
            (MODELS, "id = \"groq-llama-3.2-1b-preview\"", "id = \"openai-gpt-4\"", "openai-gpt-4"),
            (MODELS, "[\"chat\", \"streaming\"]", "[\"chat\", \"telepathy\"]", "telepathy"),
            (MODELS, "created = \"2024-09-25\"", "created = \"last year\"", "2024-09-25"),
            (MODELS, "\"llama-3.2-1b-preview\"", "\"gpt-4\"", "gpt-4"),
            (MODELS, "max_input_tokens = 200000", "max_input_tokens = 199000", "199001"),
            (MODELS, "max_input_tokens = 200000", "max_input_tokens = 200001", "overlap"),
            (ORGANIZATIONS, "\"org_123\"", "\"org 123\"", "organizations.org 123.id"),
            (ORGANIZATIONS, "\"org_123\"", "\"org_demo\"", "more than once"),
            ("topology/seed/policies/auto.toml", "\"gpt-4o\"]", "\"gpt-4-oh\"]", "gpt-4-oh is no model"),
            ("topology/seed/policies/auto.toml", "default_tier = 2", "default_tier = 5", "default_tier"),
            ("topology/seed/policies/auto.toml", "tier = 4", "tier = 3", "more than once"),
        ];
        for (path, from, to, expected) in cases {
            let problems = changed(path, from, to);
            assert!(problems.starts_with(path) && problems.contains(expected), "{from} -> {to}: {problems}");
        }
    }
}
