//! The prices of a deployment: by token class, from a moment on, for a range of input sizes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::amounts;
use super::place::Place;
use crate::domain::{DeploymentId, PicoUsd, Timestamp};
use crate::records::control::{Deployment, PriceEntry};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    effective_from: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_input_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_input_tokens: Option<u64>,
    input: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cached_input: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_write: Option<String>,
    output: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_read: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    simulated: bool,
}

/// Parses the prices of one deployment and checks that every request has exactly one.
pub(super) fn parse(documents: Vec<Document>, place: &mut Place<'_>) -> Option<Vec<PriceEntry>> {
    let mut entries = Vec::with_capacity(documents.len());
    for (index, document) in documents.into_iter().enumerate() {
        entries.push(entry(document, &mut place.within(&format!("prices[{index}]"))));
    }
    let entries: Vec<PriceEntry> = entries.into_iter().collect::<Option<_>>()?;
    if entries.is_empty() {
        place.problem("prices", "there is none; say what it costs, or mark an assumption with simulated = true");
        return None;
    }
    check_ranges(&entries, place);
    Some(entries)
}

fn entry(document: Document, place: &mut Place<'_>) -> Option<PriceEntry> {
    let mut price = |key: &str, text: &str| amounts::price(key, text, place);
    let input = price("input", &document.input);
    let output = price("output", &document.output);
    let cached_input = document.cached_input.map(|text| price("cached_input", &text));
    let cache_write = document.cache_write.map(|text| price("cache_write", &text));
    let reasoning = document.reasoning.map(|text| price("reasoning", &text));
    let effective_from = place.take("effective_from", amounts::moment(&document.effective_from));
    let min_input_tokens = amounts::count("min_input_tokens", document.min_input_tokens, place);
    let max_input_tokens = amounts::count("max_input_tokens", document.max_input_tokens, place);
    if let (Some(min), Some(max)) = (document.min_input_tokens, document.max_input_tokens)
        && min > max
    {
        place.problem("min_input_tokens", "is more than max_input_tokens");
    }
    match (&document.source, document.simulated) {
        (None, false) => place.problem("source", "is missing; name the page it was read on, or say simulated = true"),
        (Some(_), true) => place.problem("simulated", "give a source or simulated = true, not both"),
        _ => {}
    }
    Some(PriceEntry {
        effective_from: effective_from?,
        min_input_tokens: min_input_tokens?,
        max_input_tokens: max_input_tokens?,
        input: input?,
        // The outer `None` is a class without a price, the inner one a price that is wrong.
        cached_input: cached_input.map_or(Some(None), |price| price.map(Some))?,
        cache_write: cache_write.map_or(Some(None), |price| price.map(Some))?,
        output: output?,
        reasoning: reasoning.map_or(Some(None), |price| price.map(Some))?,
        source: document.source,
        source_read: document.source_read,
    })
}

pub(super) fn show(entry: &PriceEntry) -> Document {
    let usd = |price: PicoUsd| PicoUsd::new(price.get().saturating_mul(1_000_000)).to_string();
    Document {
        effective_from: entry.effective_from.to_string(),
        min_input_tokens: entry.min_input_tokens,
        max_input_tokens: entry.max_input_tokens,
        input: usd(entry.input),
        cached_input: entry.cached_input.map(usd),
        cache_write: entry.cache_write.map(usd),
        output: usd(entry.output),
        reasoning: entry.reasoning.map(usd),
        source: entry.source.clone(),
        source_read: entry.source_read.clone(),
        simulated: entry.source.is_none(),
    }
}

/// From the first moment on, every size of input must have a price, and at one moment not two.
fn check_ranges(entries: &[PriceEntry], place: &mut Place<'_>) {
    let range = |entry: &PriceEntry| (entry.min_input_tokens.unwrap_or(0), entry.max_input_tokens.unwrap_or(u64::MAX));
    for (index, entry) in entries.iter().enumerate() {
        let (min, max) = range(entry);
        let overlaps = |other: &&PriceEntry| {
            let (other_min, other_max) = range(other);
            other.effective_from == entry.effective_from && min <= other_max && other_min <= max
        };
        if let Some(other) = entries[..index].iter().find(overlaps) {
            let shown = range(other);
            place.problem("prices", format!("the ranges {shown:?} and {:?} overlap at one moment", (min, max)));
        }
    }
    let edges: BTreeSet<u64> = entries
        .iter()
        .map(range)
        .flat_map(|(min, max)| [0, min, max, min.saturating_sub(1), max.saturating_add(1)])
        .collect();
    let moments: BTreeSet<Timestamp> = entries.iter().map(|entry| entry.effective_from).collect();
    let Ok(id) = DeploymentId::parse("unnamed") else { return };
    let probe = Deployment {
        id,
        provider: String::new(),
        upstream_model: String::new(),
        base_url: String::new(),
        region: String::new(),
        credential: String::new(),
        prices: entries.to_vec(),
        weight: None,
    };
    for moment in moments {
        if let Some(tokens) = edges.iter().find(|tokens| probe.price_at(moment, Some(**tokens)).is_none()) {
            place.problem("prices", format!("a request of {tokens} input tokens has no price at {moment}"));
        }
    }
}
