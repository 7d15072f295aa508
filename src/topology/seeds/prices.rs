//! The prices of a deployment: by token class, from a moment on, for a range of input sizes.

use std::collections::BTreeSet;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::catalogue::Place;
use crate::domain::{DeploymentId, PicoUsd, Timestamp};
use crate::records::control::{Deployment, PriceEntry};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    effective_from: String,
    #[serde(default)]
    min_input_tokens: Option<u64>,
    #[serde(default)]
    max_input_tokens: Option<u64>,
    input: String,
    #[serde(default)]
    cached_input: Option<String>,
    #[serde(default)]
    cache_write: Option<String>,
    output: String,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    source_read: Option<String>,
    #[serde(default)]
    simulated: bool,
}

/// Parses the prices of one deployment and checks that every request has exactly one.
pub(super) fn parse(items: Vec<Item>, place: &mut Place<'_>) -> Option<Vec<PriceEntry>> {
    let entries: Vec<Option<PriceEntry>> =
        items.into_iter().enumerate().map(|(index, item)| entry(index, item, place)).collect();
    let entries: Vec<PriceEntry> = entries.into_iter().collect::<Option<_>>()?;
    if entries.is_empty() {
        place.problem("prices", "there is none; say what it costs, or mark an assumption with simulated = true");
        return None;
    }
    check_ranges(&entries, place);
    Some(entries)
}

fn entry(index: usize, item: Item, place: &mut Place<'_>) -> Option<PriceEntry> {
    let key = |key: &str| format!("prices[{index}].{key}");
    let usd = |key: &str, text: &str, place: &mut Place<'_>| {
        let price = place.take(key, PicoUsd::per_token_from_usd_per_million(text))?;
        if price.to_long().is_none() || price < PicoUsd::ZERO {
            place.problem(key, format!("{text:?} is negative or too large"));
            return None;
        }
        Some(price)
    };
    let input = usd(&key("input"), &item.input, place);
    let output = usd(&key("output"), &item.output, place);
    let cached_input = item.cached_input.map(|text| usd(&key("cached_input"), &text, place));
    let cache_write = item.cache_write.map(|text| usd(&key("cache_write"), &text, place));
    let reasoning = item.reasoning.map(|text| usd(&key("reasoning"), &text, place));
    let moment = OffsetDateTime::parse(&item.effective_from, &Rfc3339)
        .map_err(|_| format!("{:?} is no moment; write it like 2024-09-25T00:00:00Z", item.effective_from));
    let moment = place.take(&key("effective_from"), moment);
    if let (Some(min), Some(max)) = (item.min_input_tokens, item.max_input_tokens)
        && min > max
    {
        place.problem(&key("min_input_tokens"), "is more than max_input_tokens");
    }
    match (&item.source, item.simulated) {
        (None, false) => {
            place.problem(&key("source"), "is missing; name the page it was read on, or say simulated = true");
        }
        (Some(_), true) => place.problem(&key("simulated"), "give a source or simulated = true, not both"),
        _ => {}
    }
    Some(PriceEntry {
        effective_from: Timestamp::from_millis(i64::try_from(moment?.unix_timestamp_nanos() / 1_000_000).ok()?),
        min_input_tokens: item.min_input_tokens,
        max_input_tokens: item.max_input_tokens,
        input: input?,
        // The outer `None` is a class without a price, the inner one a price that is wrong.
        cached_input: cached_input.map_or(Some(None), |price| price.map(Some))?,
        cache_write: cache_write.map_or(Some(None), |price| price.map(Some))?,
        output: output?,
        reasoning: reasoning.map_or(Some(None), |price| price.map(Some))?,
        source: item.source,
        source_read: item.source_read,
    })
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
    };
    for moment in moments {
        if let Some(tokens) = edges.iter().find(|tokens| probe.price_at(moment, Some(**tokens)).is_none()) {
            place.problem("prices", format!("a request of {tokens} input tokens has no price at {moment}"));
        }
    }
}
