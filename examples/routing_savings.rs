//! What the default policy costs on the three traffic mixes of tests/routing, beside everything to the best model of a tier.
//!
//! Utterances are the held-out ones. Before each goes a system prompt of the mix's size, and an answer has as many tokens as
//! its intent has there, whichever model gives it. Prices are those of the catalogue; nothing is called.

use std::collections::BTreeMap;
use std::io::Write as _;

use tollstream::domain::{ModelName, OrganizationId, RequestId, Timestamp, TokenUsage};
use tollstream::processor::content;
use tollstream::processor::health::Health;
use tollstream::processor::intent::Builtin;
use tollstream::processor::router::{Asked, Under, route};
use tollstream::records::control::{ControlRecord, Entity, Organization, Stamp};
use tollstream::topology::{Files, Seeds};

const INTENTS: [(&str, u8); 6] = [
    ("greeting", 1),
    ("faq", 1),
    ("basic_support", 2),
    ("complex_question", 3),
    ("sales_negotiation", 4),
    ("high_value", 4),
];
const BEST: [(&str, &str); 2] = [("all T4", "claude-opus-4-6"), ("all T3", "claude-sonnet-4-6")];

#[derive(serde::Deserialize)]
struct Mixes {
    answer_tokens: BTreeMap<String, u64>,
    mixes: Vec<Mix>,
}

#[derive(serde::Deserialize)]
struct Mix {
    name: String,
    system_prompt_tokens: u64,
    percents: BTreeMap<String, u64>,
}

#[derive(serde::Deserialize)]
struct Utterance {
    intent: String,
    messages: serde_json::Value,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = Seeds::parse(&Files::embedded(), &mut Vec::new());
    let mut tables = seeds.tables();
    let (now, acme) = (Timestamp::from_millis(1_795_000_000_000), OrganizationId::parse("acme")?);
    let stamp = Stamp { change_id: String::new(), actor: String::new(), at: now };
    let entity = Entity::Organization(Organization::named("Acme"));
    tables.apply(tables.offset() + 1, &ControlRecord::put("acme", entity, -1, stamp))?;
    let terms = tables.terms(&acme, None).ok_or("no terms")?;
    let mixes: Mixes = toml::from_str(include_str!("../tests/routing/mixes.toml"))?;
    let lines = [include_str!("../tests/routing/heldout-pt.jsonl"), include_str!("../tests/routing/heldout-en.jsonl")];
    let utterances: Vec<Utterance> =
        lines.iter().flat_map(|file| file.lines()).map(serde_json::from_str).collect::<Result<_, _>>()?;
    // Pico-dollars that a model takes for so many tokens.
    let cost = |model: &ModelName, input: u64, output: u64| -> Option<i128> {
        let deployment = tables.model(model)?.1.value.deployments.first()?;
        let usage = TokenUsage { input: Some(input), output: Some(output), ..TokenUsage::default() };
        Some(deployment.price_at(now, Some(input))?.price().cost(&usage)?.get())
    };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:14} {:10} {:>12} {:>8}  {:>22} {:>8}",
        "mix", "policy", "USD/1,000", "saved", "tiers 1 2 3 4, %", "below, %"
    )?;
    for mix in &mixes.mixes {
        let mut totals: BTreeMap<&str, f64> = BTreeMap::new();
        let (mut shares, mut below) = ([0f64; 4], 0f64);
        for (intent, tier) in INTENTS {
            let of: Vec<&Utterance> = utterances.iter().filter(|utterance| utterance.intent == intent).collect();
            let weight = mix.percents[intent] as f64 / 100.0 / of.len() as f64;
            for utterance in of {
                let body = serde_json::json!({ "messages": utterance.messages }).to_string();
                let mut content = content::read(body.as_bytes())?;
                content.classify(&Builtin::new());
                let under = Under { control: &tables, terms: &terms, at: now, health: Health::Unknown };
                let asked = Asked {
                    model: &ModelName::parse("auto")?,
                    request_id: &RequestId::parse("r")?,
                    features: &content.features,
                    user_tier: None,
                    tags: &BTreeMap::new(),
                };
                let found = route(&under, &asked).map_err(|refusal| refusal.error.message)?;
                let input = content.features.input_tokens.unwrap_or(0) + mix.system_prompt_tokens;
                let output = mixes.answer_tokens[intent];
                let chosen = &found.routed.candidates[0].model;
                for (policy, model) in BEST
                    .map(|(policy, model)| (policy, model.to_owned()))
                    .into_iter()
                    .chain([("default", chosen.to_string())])
                {
                    let pico = cost(&ModelName::parse(&model)?, input, output).ok_or("no price")?;
                    *totals.entry(policy).or_default() += weight * pico as f64;
                }
                shares[usize::from(found.tier - 1)] += weight * 100.0;
                below += if found.tier < tier { weight * 100.0 } else { 0.0 };
            }
        }
        for (policy, total) in &totals {
            let saved = 100.0 * (1.0 - total / totals["all T4"]);
            let (shares, below) = match *policy {
                "default" => (shares.map(|share| format!("{share:.0}")).join(" "), format!("{below:.1}")),
                _ => ("-".to_owned(), "-".to_owned()),
            };
            let usd = total * 1_000.0 / 1e12;
            writeln!(out, "{:14} {policy:10} {usd:>12.3} {saved:>7.0}%  {shares:>22} {below:>8}", mix.name)?;
        }
    }
    Ok(())
}
