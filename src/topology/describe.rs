//! `tollstream topology describe`: topics, schemas, models and policies as tables, or as one JSON object.

use serde::Serialize;

use super::topics::{Profile, readable};
use super::{Files, Topology, schemas};
use crate::domain::PicoUsd;
use crate::records::Topic;
use crate::records::control::{Plan, PriceEntry};

/// A table for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub title: &'static str,
    pub headers: &'static [&'static str],
    pub rows: Vec<Vec<String>>,
}

/// Everything that `describe` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    pub profile: &'static str,
    pub replication_factor: u16,
    pub min_insync_replicas: u16,
    pub topics: Vec<TopicRow>,
    pub schemas: Vec<SchemaRow>,
    pub models: Vec<ModelRow>,
    pub plans: Vec<PlanRow>,
    pub policies: Vec<PolicyRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicRow {
    pub topic: &'static str,
    pub partitions: u32,
    pub key: String,
    /// Whether prompts and answers are on it.
    pub content: bool,
    pub cleanup: String,
    pub retention: String,
    pub max_message_bytes: u64,
    pub holds: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchemaRow {
    pub topic: &'static str,
    /// Number of the last release, 0 when there is none.
    pub release: u32,
    /// Whether the current schema is that release.
    pub released: bool,
    /// The kinds of an envelope, or the record's name.
    pub records: Vec<String>,
    pub fields: usize,
}

/// One price of one deployment; amounts are US dollars per million tokens, as exact decimals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelRow {
    pub model: String,
    pub tier: u8,
    pub deployment: String,
    pub provider: String,
    pub context_window: u64,
    pub effective_from: String,
    pub input_tokens: String,
    pub input: String,
    pub cached_input: Option<String>,
    pub cache_write: Option<String>,
    pub output: String,
    pub simulated: bool,
}

/// A plan; amounts are US dollars, and what is not limited is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanRow {
    pub plan: String,
    pub tiers: Vec<u8>,
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub concurrent_requests: Option<u64>,
    pub spend_per_day: Option<String>,
    pub spend_per_month: Option<String>,
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyRow {
    pub policy: String,
    /// The tier, or `fallback`.
    pub tier: String,
    pub default: bool,
    pub candidates: Vec<String>,
}

/// Describes the files for a profile.
pub fn describe(files: &Files, topology: &Topology, profile: Profile) -> Description {
    let scale = topology.topics.scale(profile);
    let topics = topology.topics.specs.iter().map(|spec| TopicRow {
        topic: spec.topic.name(),
        partitions: spec.partitions(scale),
        key: spec.key.clone(),
        content: spec.content,
        cleanup: spec.configs(scale).remove("cleanup.policy").unwrap_or_default(),
        retention: readable(spec.retention.millis()),
        max_message_bytes: spec.max_message_bytes,
        holds: spec.holds.clone(),
    });
    Description {
        profile: profile.name(),
        replication_factor: scale.replication_factor,
        min_insync_replicas: scale.min_insync_replicas,
        topics: topics.collect(),
        schemas: Topic::ALL.iter().map(|topic| schema(files, *topic)).collect(),
        models: models(topology),
        plans: topology.seeds.plans.iter().map(|(name, plan)| plan_row(name.as_str(), plan)).collect(),
        policies: policies(topology),
    }
}

fn schema(files: &Files, topic: Topic) -> SchemaRow {
    let text = files.get(&schemas::current_file(topic)).unwrap_or_default();
    let history = schemas::history(files, topic);
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let fields: Vec<&serde_json::Value> = json["fields"].as_array().into_iter().flatten().collect();
    let name = |field: &serde_json::Value| field["name"].as_str().unwrap_or_default().to_owned();
    let nested = |field: &&&serde_json::Value| field["type"][1]["type"] == "record";
    let envelope = fields.iter().any(|field| name(field) == "kind" && field["type"] == "string");
    let records = match envelope {
        true => fields.iter().filter(nested).map(|field| name(field)).collect(),
        false => vec![name(&json)],
    };
    let last = history.last_key_value();
    SchemaRow {
        topic: topic.name(),
        release: last.map_or(0, |(number, _)| *number),
        released: last.is_some_and(|(_, released)| schemas::same(released, text)),
        records,
        fields: fields.len(),
    }
}

/// A price per token as dollars per million tokens.
fn per_million(price: PicoUsd) -> String {
    PicoUsd::new(price.get().saturating_mul(1_000_000)).to_string()
}

fn sizes(price: &PriceEntry) -> String {
    match (price.min_input_tokens, price.max_input_tokens) {
        (None | Some(0), None) => "any".to_owned(),
        (None | Some(0), Some(max)) => format!("to {max}"),
        (Some(min), None) => format!("from {min}"),
        (Some(min), Some(max)) => format!("{min} to {max}"),
    }
}

fn models(topology: &Topology) -> Vec<ModelRow> {
    let mut rows = Vec::new();
    for (name, model) in &topology.seeds.models {
        for deployment in &model.deployments {
            for price in &deployment.prices {
                rows.push(ModelRow {
                    model: name.to_string(),
                    tier: model.tier,
                    deployment: deployment.id.to_string(),
                    provider: deployment.provider.clone(),
                    context_window: model.context_window,
                    effective_from: price.effective_from.to_string().chars().take(10).collect(),
                    input_tokens: sizes(price),
                    input: per_million(price.input),
                    cached_input: price.cached_input.map(per_million),
                    cache_write: price.cache_write.map(per_million),
                    output: per_million(price.output),
                    simulated: price.source.is_none(),
                });
            }
        }
    }
    rows.sort_by(|a, b| (a.tier, &a.model).cmp(&(b.tier, &b.model)));
    rows
}

fn plan_row(name: &str, plan: &Plan) -> PlanRow {
    PlanRow {
        plan: name.to_owned(),
        tiers: plan.tiers.clone(),
        requests_per_minute: plan.limits.requests_per_minute,
        tokens_per_minute: plan.limits.tokens_per_minute,
        concurrent_requests: plan.limits.concurrent_requests,
        spend_per_day: plan.budget.spend.day.map(|amount| amount.to_string()),
        spend_per_month: plan.budget.spend.month.map(|amount| amount.to_string()),
        description: plan.description.clone(),
    }
}

fn policies(topology: &Topology) -> Vec<PolicyRow> {
    let mut rows = Vec::new();
    for (name, policy) in &topology.seeds.policies {
        let row = |tier: String, default: bool, candidates: &[crate::domain::ModelName]| PolicyRow {
            policy: name.to_string(),
            tier,
            default,
            candidates: candidates.iter().map(ToString::to_string).collect(),
        };
        for tier in &policy.tiers {
            rows.push(row(tier.tier.to_string(), tier.tier == policy.default_tier, &tier.candidates));
        }
        rows.push(row("fallback".to_owned(), false, &policy.fallback));
    }
    rows
}

impl Description {
    /// The same for people.
    pub fn tables(&self) -> Vec<Table> {
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let topics = self.topics.iter().map(|t| {
            let size = t.max_message_bytes.to_string();
            let partitions = t.partitions.to_string();
            vec![
                t.topic.to_owned(),
                partitions,
                t.retention.clone(),
                yes(t.content),
                size,
                t.key.clone(),
                t.holds.clone(),
            ]
        });
        let schemas = self.schemas.iter().map(|s| {
            let release = if s.released { format!("{:04}", s.release) } else { format!("{:04} + changes", s.release) };
            vec![s.topic.to_owned(), release, s.fields.to_string(), s.records.join(", ")]
        });
        let price = |price: &Option<String>| price.clone().unwrap_or_else(|| "-".to_owned());
        let models = self.models.iter().map(|m| {
            vec![
                m.tier.to_string(),
                m.model.clone(),
                m.deployment.clone(),
                m.context_window.to_string(),
                m.effective_from.clone(),
                m.input_tokens.clone(),
                m.input.clone(),
                price(&m.cached_input),
                price(&m.cache_write),
                m.output.clone(),
                if m.simulated { "simulated" } else { "published" }.to_owned(),
            ]
        });
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let plans = self.plans.iter().map(|p| {
            let tiers: Vec<String> = p.tiers.iter().map(u8::to_string).collect();
            vec![
                p.plan.clone(),
                if tiers.is_empty() { "all".to_owned() } else { tiers.join(", ") },
                number(p.requests_per_minute),
                number(p.tokens_per_minute),
                number(p.concurrent_requests),
                price(&p.spend_per_day),
                price(&p.spend_per_month),
                p.description.clone(),
            ]
        });
        let policies = self.policies.iter().map(|p| {
            let tier = if p.default { format!("{} (default)", p.tier) } else { p.tier.clone() };
            vec![p.policy.clone(), tier, p.candidates.join(", ")]
        });
        vec![
            Table {
                title: "Topics",
                headers: &["topic", "partitions", "kept", "content", "max bytes", "key", "holds"],
                rows: topics.collect(),
            },
            Table { title: "Schemas", headers: &["topic", "release", "fields", "records"], rows: schemas.collect() },
            Table {
                title: "Models (US dollars per million tokens)",
                headers: &[
                    "tier",
                    "model",
                    "deployment",
                    "context",
                    "from",
                    "input tokens",
                    "input",
                    "cached",
                    "cache write",
                    "output",
                    "price",
                ],
                rows: models.collect(),
            },
            Table {
                title: "Plans (US dollars)",
                headers: &["plan", "tiers", "requests/min", "tokens/min", "at once", "day", "month", "for"],
                rows: plans.collect(),
            },
            Table { title: "Policies", headers: &["policy", "tier", "candidates"], rows: policies.collect() },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_topology_reads_so() {
        let files = Files::embedded();
        let description = describe(&files, &Topology::parse(&files).unwrap(), Profile::Laptop);
        let mut shown = String::new();
        for table in description.tables() {
            // The models change with every price; their form is checked below.
            if table.title.starts_with("Models") {
                continue;
            }
            shown.push_str(&format!("{}\n{}\n", table.title, crate::cli::output::columns(table.headers, &table.rows)));
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn a_model_reads_as_its_price_list_does() {
        let files = Files::embedded();
        let description = describe(&files, &Topology::parse(&files).unwrap(), Profile::Production);
        let rows: Vec<&ModelRow> = description.models.iter().filter(|row| row.model == "gpt-6-astra").collect();
        insta::assert_json_snapshot!(rows);
        assert_eq!(description.topics[0].partitions, 64);
    }
}
