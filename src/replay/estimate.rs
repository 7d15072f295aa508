//! What a call would have used that nobody made, and how sure that is.
//!
//! Tokens are those of the answer that was recorded. Its input is scaled by how the two makers' tokenizers compare
//! ([`input_percent`]), and lies between OpenAI's count of the text and the most that the other tokenizer makes of it. Its
//! output is taken as it was; another model may well say the same in half or in twice the words, so the interval has both,
//! within the cap of the call. The same model at another deployment uses the same. Where nothing was recorded (the request
//! was refused, or nobody answered), the output is the mean of the model's recorded answers before it, or of all, and the
//! interval goes from nothing to the cap.
//!
//! Latency is the deployment's own, from its recorded answers before it: the mean time to the first token, and the mean time
//! for each token after that.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::control::Tables;
use crate::domain::{DeploymentId, Fingerprint, ModelName, PicoUsd, TokenUsage};
use crate::processor::OpenRequest;
use crate::processor::inference::{counted_input, estimated_input, input_percent};
use crate::records::journal::AttemptEnded;
use crate::records::{Outcome, UsageSource};

/// Tokens of an answer as long as nothing is known of any.
const OUTPUT_SUPPOSED: u64 = 256;
/// How long a call takes as long as nothing is known of any, in milliseconds.
const DURATION_SUPPOSED_MS: u64 = 2_000;
/// By how much another model may be shorter or longer than the one that answered.
const OUTPUT_FACTOR: u64 = 2;
/// Models and deployments of which answers are remembered at the most; control has far fewer.
const KNOWN_MAX: usize = 10_000;
/// Answers that are kept of which the size is remembered at the most.
const KEPT_MAX: usize = 100_000;

/// A mean of whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Mean {
    sum: u64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: u64) {
        self.sum = self.sum.saturating_add(value);
        self.count += 1;
    }

    fn get(self) -> Option<u64> {
        self.sum.checked_div(self.count)
    }
}

/// How a deployment answers.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    first_token_ms: Mean,
    /// Of the milliseconds that follow the first token, and of the tokens that come in them.
    after_first_ms: u64,
    output_tokens: u64,
}

/// What the answers so far have shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    outputs: HashMap<ModelName, Mean>,
    all_outputs: Mean,
    paces: HashMap<DeploymentId, Pace>,
    /// Bytes of the answers that were kept: whoever is called in their place would give as much.
    kept: HashMap<Fingerprint, u64>,
}

/// An estimate of what a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Estimate {
    pub usage: TokenUsage,
    pub low: TokenUsage,
    pub high: TokenUsage,
    /// `None`: the deployment has answered nobody so far.
    pub first_token_ms: Option<u64>,
    pub duration_ms: Option<u64>,
}

impl Known {
    /// Takes a recorded posting.
    pub fn learn(&mut self, posting: &AttemptEnded) {
        let (Outcome::Completed, Some(output)) = (posting.outcome, posting.usage.output) else { return };
        // It says nothing about its deployment.
        if posting.source.is_served() {
            return;
        }
        let has_room = |there: bool, len: usize| there || len < KNOWN_MAX;
        if has_room(self.outputs.contains_key(&posting.model), self.outputs.len()) {
            self.outputs.entry(posting.model.clone()).or_default().add(output);
        }
        self.all_outputs.add(output);
        let Some(duration) = posting.duration_ms else { return };
        if has_room(self.paces.contains_key(&posting.deployment), self.paces.len()) {
            let pace = self.paces.entry(posting.deployment.clone()).or_default();
            let first = posting.time_to_first_token_ms.unwrap_or(duration).min(duration);
            pace.first_token_ms.add(first);
            pace.after_first_ms = pace.after_first_ms.saturating_add(duration - first);
            pace.output_tokens = pace.output_tokens.saturating_add(output);
        }
    }

    /// An answer of so many bytes was kept.
    pub fn kept(&mut self, fingerprint: Fingerprint, bytes: u64) {
        if self.kept.len() < KEPT_MAX || self.kept.contains_key(&fingerprint) {
            self.kept.insert(fingerprint, bytes);
        }
    }

    /// How large the answer is that was kept for those who ask this.
    pub fn kept_bytes(&self, fingerprint: Fingerprint) -> Option<u64> {
        self.kept.get(&fingerprint).copied()
    }

    /// How long such a call is supposed to take, in milliseconds.
    pub fn duration_ms(&self, open: &OpenRequest) -> u64 {
        let output = self.output_of(&open.started.model);
        self.latency(&open.started.deployment, output).map_or(DURATION_SUPPOSED_MS, |(_, duration)| duration)
    }

    fn output_of(&self, model: &ModelName) -> u64 {
        let of_model = self.outputs.get(model).and_then(|mean| mean.get());
        of_model.or_else(|| self.all_outputs.get()).unwrap_or(OUTPUT_SUPPOSED)
    }

    fn latency(&self, deployment: &DeploymentId, output: u64) -> Option<(u64, u64)> {
        let pace = self.paces.get(deployment)?;
        let first = pace.first_token_ms.get()?;
        let after = u128::from(pace.after_first_ms) * u128::from(output) / u128::from(pace.output_tokens.max(1));
        Some((first, first.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))))
    }

    /// The call that is open here, as `story` tells of the one that was made instead.
    pub fn estimate(&self, control: &Tables, open: &OpenRequest, story: Option<&AttemptEnded>) -> Estimate {
        let features = &open.admitted.features;
        let owner = |model: &ModelName| control.model(model).map_or("", |(_, model)| model.value.owned_by.as_str());
        let ours = owner(&open.started.model);
        let most = estimated_input(features, ours);
        // Of a request that was cancelled, what there was of it until then.
        let told = story.filter(|posting| match posting.outcome {
            // What was given without a call says what the call for it had used.
            Outcome::Completed => posting.usage_source == UsageSource::Reported || posting.source.is_served(),
            Outcome::Cancelled => posting.usage_source != UsageSource::None,
            _ => false,
        });
        let is_same = told.is_some_and(|posting| posting.model == open.started.model);
        let usage =
            |input: u64, output: u64| TokenUsage { input: Some(input), output: Some(output), ..TokenUsage::default() };
        let cap = open.started.reservation.as_ref().map_or(u64::MAX, |reservation| {
            reservation.output_tokens.saturating_mul(u64::from(features.choices.max(1)))
        });
        let told_counts = told.and_then(|posting| {
            let usage = posting.told_usage();
            Some((usage, usage.total_input()?, usage.output?, owner(&posting.model)))
        });
        let (middle, low, high) = match told_counts {
            Some((told, _, output, _)) if is_same => {
                let same = TokenUsage { output: Some(output.min(cap)), ..told };
                (same, same, same)
            }
            Some((_, input, output, theirs)) => {
                let scaled = input.saturating_mul(input_percent(ours)) / input_percent(theirs).max(1);
                let inputs = match input_percent(ours) == input_percent(theirs) {
                    true => (input, input),
                    false => (scaled.min(counted_input(features)), scaled.max(most)),
                };
                let outputs = (output / OUTPUT_FACTOR, output.saturating_mul(OUTPUT_FACTOR).min(cap));
                let middle = output.min(cap);
                (usage(scaled, middle), usage(inputs.0, outputs.0.min(middle)), usage(inputs.1, outputs.1))
            }
            None => {
                let counted = counted_input(features);
                let output = self.output_of(&open.started.model).min(cap);
                (usage(counted, output), usage(counted, 0), usage(most, cap.max(output)))
            }
        };
        let latency = self.latency(&open.started.deployment, middle.output.unwrap_or(0));
        let (first_token_ms, duration_ms) = latency.unzip();
        Estimate { usage: middle, low, high, first_token_ms, duration_ms }
    }
}

impl Estimate {
    /// What the least and the most cost, at the price of the open call; no more than was set aside for it.
    pub fn costs(&self, control: &Tables, open: &OpenRequest) -> (Option<PicoUsd>, Option<PicoUsd>) {
        let model = control.model(&open.started.model);
        let deployment = model.and_then(|(_, model)| model.value.deployment(&open.started.deployment));
        let cost = |usage: &TokenUsage| {
            let price = deployment?.price_at(open.started_at, usage.total_input())?;
            price.price().cost(usage).filter(|cost| cost.to_long().is_some())
        };
        let reserved = open.started.reservation.as_ref().map(|reservation| reservation.amount_pico_usd);
        let middle = cost(&self.usage).unwrap_or(PicoUsd::ZERO);
        let high = match (cost(&self.high), reserved) {
            (Some(high), Some(reserved)) if self.high != self.usage => Some(high.min(reserved.max(middle))),
            (high, _) => high,
        };
        (cost(&self.low), high)
    }
}
