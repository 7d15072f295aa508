//! `topology/seed/`: what `apply` puts on an empty control topic. Afterwards the topic is the truth.
//!
//! The files are documents as people write them for control at any time (`control::document`).

use std::collections::BTreeMap;

use super::{Files, Problem};
use crate::control::document::{self, Object};
use crate::control::{Tables, check};
use crate::domain::{ModelName, OrganizationId, PlanName, PolicyName, Timestamp};
use crate::records::control::{ControlRecord, Entity, EntityKind, Model, Organization, Plan, Policy, Stamp};

const MODELS: &str = "topology/seed/models.toml";
const ORGANIZATIONS: &str = "topology/seed/organizations.toml";
const PLANS: &str = "topology/seed/plans.toml";
const POLICIES: &str = "topology/seed/policies";

/// The seeds as entities of `control`, by id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seeds {
    pub plans: BTreeMap<PlanName, Plan>,
    pub organizations: BTreeMap<OrganizationId, Organization>,
    pub models: BTreeMap<ModelName, Model>,
    pub policies: BTreeMap<PolicyName, Policy>,
}

impl Seeds {
    /// Parses and checks all seed files; adds what is wrong to `problems`.
    pub fn parse(files: &Files, problems: &mut Vec<Problem>) -> Self {
        let (mut seeds, mut policy_files) = (Self::default(), BTreeMap::new());
        if files.get(MODELS).is_none() {
            problems.push(Problem::new(MODELS, "", "the file is missing"));
        }
        // A topology without plans and demonstration organizations is fine.
        for path in [MODELS, PLANS, ORGANIZATIONS] {
            let mut found = Vec::new();
            let entities = files.get(path).map(|text| document::file(text, &mut found)).unwrap_or_default();
            problems.extend(found.into_iter().map(|problem| Problem::new(path, problem.at, problem.problem)));
            for (id, entity) in entities {
                seeds.take(path, &id, entity, problems);
            }
        }
        for (path, text) in files.below(POLICIES) {
            let mut found = Vec::new();
            let parsed = document::table(text)
                .map_err(|problem| vec![problem])
                .and_then(|table: Object| document::parse(EntityKind::Policy, table, None));
            match parsed {
                Ok((id, entity)) => {
                    policy_files.insert(id.clone(), path);
                    seeds.take(path, &id, entity, problems);
                }
                Err(wrong) => found.extend(wrong),
            }
            problems.extend(found.into_iter().map(|problem| Problem::new(path, problem.at, problem.problem)));
        }
        for violation in check::violations(&seeds.tables()) {
            let path = match violation.kind {
                EntityKind::Organization => ORGANIZATIONS,
                EntityKind::Plan => PLANS,
                EntityKind::Model => MODELS,
                EntityKind::Policy | EntityKind::Key => policy_files.get(&violation.id).copied().unwrap_or(POLICIES),
            };
            let item = format!("{}.{}.{}", violation.kind.plural(), violation.id, violation.at);
            problems.push(Problem::new(path, item, violation.problem));
        }
        seeds
    }

    fn take(&mut self, path: &str, id: &str, entity: Entity, problems: &mut Vec<Problem>) {
        let kind = entity.kind();
        // The document's id was checked by its kind.
        let there = match entity {
            Entity::Plan(value) => id.parse().is_ok_and(|id| self.plans.insert(id, value).is_some()),
            Entity::Organization(value) => id.parse().is_ok_and(|id| self.organizations.insert(id, value).is_some()),
            Entity::Model(value) => id.parse().is_ok_and(|id| self.models.insert(id, value).is_some()),
            Entity::Policy(value) => id.parse().is_ok_and(|id| self.policies.insert(id, value).is_some()),
            Entity::Key(_) => false,
        };
        if there {
            problems.push(Problem::new(path, format!("{}.{id}", kind.plural()), "another file has it, too"));
        }
    }

    /// All entities with their ids, so that what is named comes before what names it.
    pub fn entities(&self) -> impl Iterator<Item = (&str, Entity)> {
        let models = self.models.iter().map(|(id, e)| (id.as_str(), Entity::Model(e.clone())));
        let plans = self.plans.iter().map(|(id, e)| (id.as_str(), Entity::Plan(e.clone())));
        let organizations = self.organizations.iter().map(|(id, e)| (id.as_str(), Entity::Organization(e.clone())));
        let policies = self.policies.iter().map(|(id, e)| (id.as_str(), Entity::Policy(e.clone())));
        models.chain(plans).chain(organizations).chain(policies)
    }

    /// The seeds as control would have them.
    pub fn tables(&self) -> Tables {
        let mut tables = Tables::default();
        for (offset, (id, entity)) in (0..).zip(self.entities()) {
            let stamp = Stamp { change_id: String::new(), actor: String::new(), at: Timestamp::default() };
            // Documents were parsed, so nothing is refused here.
            if tables.apply(offset, &ControlRecord::put(id, entity, -1, stamp)).is_err() {
                tables.pass(offset);
            }
        }
        tables
    }

    /// The credential references of all deployments, each once.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        let all = self.models.values().flat_map(|model| &model.deployments).map(|d| d.credential.as_str());
        all.collect::<std::collections::BTreeSet<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PicoUsd;

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
            ("topology/seed/policies/auto.toml", "]]\ntier = 4", "]]\ntier = 3", "more than once"),
            ("topology/seed/policies/auto.toml", "greeting = 1", "greeting = 7", "7 has no [[tiers]]"),
            ("topology/seed/policies/auto.toml", "code_lines = 20", "code_lies = 20", "is not measured"),
            ("topology/seed/policies/auto.toml", "\"empty\"", "\"short\"", "short is not known"),
            ("topology/seed/policies/auto.toml", "upstream_rate_limited", "rate_limited", "is no cause"),
            ("topology/seed/policies/auto.toml", "then = \"next\"", "then = \"retry\"", "retries"),
        ];
        for (path, from, to, expected) in cases {
            let problems = changed(path, from, to);
            assert!(problems.starts_with(path) && problems.contains(expected), "{from} -> {to}: {problems}");
        }
    }
}
