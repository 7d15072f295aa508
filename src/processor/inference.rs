//! Provider calls: what one used and cost. What follows when it ended is `fallback`'s.

use bytes::Bytes;

use super::state::OpenRequest;
use crate::control::Tables;
use crate::domain::{PicoUsd, RequestKey, Timestamp, TokenUsage};
use crate::provider::{Failure, FailureClass, Summary};
use crate::records::control::PriceEntry;
use crate::records::journal::{AttemptEnded, Features, RequestSettled, Saved};
use crate::records::{Outcome, UsageSource};

/// Bytes of text per token, where a count has to be estimated: OpenAI's rule of thumb for English
/// ("What are tokens and how to count them?"), which is high enough for Portuguese.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens that the chat format adds to each message (OpenAI's cookbook, "How to count tokens with tiktoken").
const TOKENS_PER_MESSAGE: u64 = 3;

/// Output tokens that a provider makes in a second at the most, for one choice: the fastest services tell of up to 3,000
/// (Cerebras, Groq). What nobody saw is estimated by it, so it is rather too high than too low.
const OUTPUT_TOKENS_PER_SECOND_MAX: u64 = 3_000;

/// Most characters of a finish reason that are kept: it is a word, whatever a provider may write there.
const FINISH_REASON_CHARS_MAX: usize = 64;

fn bounded(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

/// What became of a provider call, as the shell saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptReport {
    pub key: RequestKey,
    pub attempt: u32,
    /// Whether the provider was called at all: the deadline may pass, or a cancel come, before.
    pub called: bool,
    pub end: AttemptEnd,
    pub summary: Summary,
    pub content_frames: u32,
    /// A simulator answered instead of the provider.
    pub simulated: bool,
    pub time_to_first_token_ms: Option<u64>,
    pub duration_ms: u64,
    /// The answer, when it is not streamed.
    pub body: Option<Bytes>,
    /// What a whole answer lacks, where the policy asks for that.
    pub shortfall: Option<String>,
    /// The answer that fell short, after which this attempt was made.
    pub earlier: Option<Bytes>,
    /// Bytes of the answer, when it is at hand as a whole to be kept.
    pub kept_bytes: Option<u64>,
}

/// How a provider call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum AttemptEnd {
    Completed,
    Failed(Failure),
    /// Aborted because the request was cancelled.
    Cancelled,
}

/// The posting of an attempt that ended: what it used, at the prices of `control`.
pub fn posting(control: &Tables, open: &OpenRequest, report: &AttemptReport) -> AttemptEnded {
    let (outcome, failure) = match &report.end {
        AttemptEnd::Completed => (Outcome::Completed, None),
        AttemptEnd::Cancelled => (Outcome::Cancelled, None),
        AttemptEnd::Failed(failure) => (Outcome::Failed, Some(failure)),
    };
    let (usage, usage_source) = usage_of(open, report);
    let saved = report.summary.usage.filter(|_| open.started.source.is_served() && report.end == AttemptEnd::Completed);
    AttemptEnded {
        saved: saved.map(|usage| Saved { usage, cost_pico_usd: price_of(control, open, &usage) }),
        simulated: report.simulated,
        error_code: failure.map(|f| f.class.code().to_owned()),
        upstream_status: failure.and_then(|f| f.upstream_status),
        finish_reason: report.summary.finish_reason.as_deref().map(|reason| bounded(reason, FINISH_REASON_CHARS_MAX)),
        content_frames: report.content_frames,
        time_to_first_token_ms: report.time_to_first_token_ms,
        duration_ms: Some(report.duration_ms),
        retry_after_ms: failure
            .and_then(|f| f.retry_after)
            .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        shortfall: report.shortfall.clone(),
        ..priced(control, open, outcome, usage, usage_source)
    }
}

/// The posting of an attempt whose owner went away: an estimate of what is known to have been put out. How long the call
/// went on, nobody knows; that our own fault should use up a budget, nobody wants. If the former owner learns what it came
/// to, that becomes an orphan's posting; where it has been posted already, nothing is left.
pub fn interrupted_posting(control: &Tables, open: &OpenRequest) -> AttemptEnded {
    unreported(control, open, (Outcome::Interrupted, "interrupted"), seen_output(open))
}

/// The posting of an attempt that should have ended long ago.
pub fn lost_posting(control: &Tables, open: &OpenRequest, at: Timestamp) -> AttemptEnded {
    let elapsed_ms = u64::try_from(at.since(open.started_at).as_millis()).unwrap_or(u64::MAX);
    let output = match seen_output(open) {
        0 => unseen_output(open, elapsed_ms),
        seen => seen,
    };
    unreported(control, open, (Outcome::Failed, "deadline_exceeded"), output)
}

fn seen_output(open: &OpenRequest) -> u64 {
    open.progress.text_bytes.div_ceil(BYTES_PER_TOKEN)
}

fn unreported(control: &Tables, open: &OpenRequest, (outcome, code): (Outcome, &str), output: u64) -> AttemptEnded {
    let input = Some(counted_input(&open.admitted.features));
    let usage = TokenUsage { input, output: Some(output), ..TokenUsage::default() };
    let (usage, source) = match open.is_posted_by_orphan || open.started.source.is_served() {
        true => (TokenUsage::NOTHING, UsageSource::None),
        false => (usage, UsageSource::Estimated),
    };
    AttemptEnded {
        error_code: Some(code.to_owned()),
        content_frames: open.progress.content_frames,
        ..priced(control, open, outcome, usage, source)
    }
}

fn priced(
    control: &Tables,
    open: &OpenRequest,
    outcome: Outcome,
    usage: TokenUsage,
    usage_source: UsageSource,
) -> AttemptEnded {
    let started = &open.started;
    let model = control.model(&started.model);
    let price = price_entry(control, open, &usage);
    let priced = price_of(control, open, &usage);
    let (cost, usage_source) = match (priced, &started.reservation) {
        (Some(cost), _) => (Some(cost), usage_source),
        _ if usage == TokenUsage::NOTHING => (Some(PicoUsd::ZERO), usage_source),
        // Its price went while it was under way: it costs what was set aside for it.
        (None, Some(reservation)) => (Some(reservation.amount_pico_usd), UsageSource::Estimated),
        (None, None) => (None, usage_source),
    };
    AttemptEnded {
        attempt: started.attempt,
        model: started.model.clone(),
        deployment: started.deployment.clone(),
        provider: started.provider.clone(),
        tier: open.routed.candidates.get(open.candidate).map_or(0, |c| c.tier),
        simulated: false,
        outcome,
        error_code: None,
        upstream_status: None,
        finish_reason: None,
        content_frames: 0,
        time_to_first_token_ms: None,
        duration_ms: None,
        usage,
        usage_source,
        price_version: model.map_or(started.price_version, |(_, model)| model.version),
        price_simulated: price.is_some_and(|entry| entry.source.is_none()),
        cost_pico_usd: cost,
        booking: None,
        retry_after_ms: None,
        shortfall: None,
        source: started.source,
        saved: None,
    }
}

/// The price of the current attempt for so many tokens.
fn price_entry<'a>(control: &'a Tables, open: &OpenRequest, usage: &TokenUsage) -> Option<&'a PriceEntry> {
    let (_, model) = control.model(&open.started.model)?;
    model.value.deployment(&open.started.deployment)?.price_at(open.started_at, usage.total_input())
}

fn price_of(control: &Tables, open: &OpenRequest, usage: &TokenUsage) -> Option<PicoUsd> {
    price_entry(control, open, usage)?.price().cost(usage).filter(|cost| cost.to_long().is_some())
}

/// The terminal fact of a request whose last posting is `last`.
pub fn settlement(
    open: &OpenRequest,
    last: &AttemptEnded,
    outcome: Outcome,
    status: u16,
    at: Timestamp,
) -> RequestSettled {
    let millis = |later: Timestamp, earlier: Timestamp| u64::try_from(later.since(earlier).as_millis()).unwrap_or(0);
    let before_attempt = millis(open.started_at, open.context.received_at);
    RequestSettled {
        outcome,
        error_code: last.error_code.clone().filter(|_| outcome != Outcome::Completed),
        status,
        attempts: open.attempt,
        content_frames: last.content_frames,
        cost_pico_usd: sum(open.posted, last.cost_pico_usd),
        time_to_first_token_ms: last.time_to_first_token_ms.map(|ms| ms.saturating_add(before_attempt)),
        duration_ms: millis(at, open.context.received_at),
    }
}

/// Unknown when one of the two is.
pub fn sum(a: Option<PicoUsd>, b: Option<PicoUsd>) -> Option<PicoUsd> {
    a?.checked_add(b?).filter(|sum| sum.to_long().is_some())
}

/// What the provider reported; known zeros where it cannot have worked; else an estimate, marked as such.
fn usage_of(open: &OpenRequest, report: &AttemptReport) -> (TokenUsage, UsageSource) {
    if open.started.source.is_served() {
        return (TokenUsage::NOTHING, UsageSource::None);
    }
    let features = &open.admitted.features;
    let output = || match is_unseen(report) {
        true => unseen_output(open, report.duration_ms),
        false => report.summary.text_bytes.div_ceil(BYTES_PER_TOKEN),
    };
    if let Some(usage) = report.summary.usage {
        if usage.input.is_some() && usage.output.is_some() {
            return (usage, UsageSource::Reported);
        }
        // What it left out is estimated: what is not known may not be free.
        let input = usage.input.or_else(|| {
            let cached = usage.cached_input.unwrap_or(0).saturating_add(usage.cache_write.unwrap_or(0));
            Some(counted_input(features).saturating_sub(cached))
        });
        let output = usage.output.or_else(|| Some(output()));
        return (TokenUsage { input, output, ..usage }, UsageSource::Estimated);
    }
    // An error inside an answer that began well is no proof: the provider may have read the prompt by then.
    let refused = matches!(&report.end, AttemptEnd::Failed(failure)
        if failure.upstream_status != Some(200) && failure.class.is_refusal());
    let answered_with_an_error = matches!(&report.end, AttemptEnd::Failed(failure)
        if failure.upstream_status.is_some_and(|status| status >= 300));
    if !report.called || (report.content_frames == 0 && (refused || answered_with_an_error)) {
        return (TokenUsage::NOTHING, UsageSource::None);
    }
    let input = Some(counted_input(features));
    (TokenUsage { input, output: Some(output()), ..TokenUsage::default() }, UsageSource::Estimated)
}

/// Whether the provider may have put out what nobody saw: the call was ended, or broke off, before any text of it came.
fn is_unseen(report: &AttemptReport) -> bool {
    let breaks_off = match &report.end {
        AttemptEnd::Completed => false,
        AttemptEnd::Cancelled => true,
        // An error of its own is an end, not a break.
        AttemptEnd::Failed(failure) => !failure.class.is_refusal() && failure.class != FailureClass::Upstream,
    };
    breaks_off && report.summary.text_bytes == 0
}

/// The output tokens of a call of which no text was seen: what it can have put out in that time, and no more than was set
/// aside for it. Otherwise whoever breaks off calls would spend what no budget sees.
fn unseen_output(open: &OpenRequest, elapsed_ms: u64) -> u64 {
    let of_choice = elapsed_ms.saturating_mul(OUTPUT_TOKENS_PER_SECOND_MAX).div_ceil(1_000);
    let most = open.started.reservation.as_ref().map_or(u64::MAX, |reservation| reservation.output_tokens);
    let choices = u64::from(open.admitted.features.choices.max(1));
    of_choice.min(most).saturating_mul(choices)
}

/// The input tokens of a request as the provider of a model will count them: OpenAI's count, and for others as much more
/// as their tokenizers make of the same text at the most.
pub fn estimated_input(features: &Features, owned_by: &str) -> u64 {
    counted_input(features).saturating_mul(input_percent(owned_by)).div_ceil(100)
}

/// The tokens that a maker's tokenizer makes of a text at the most, in percent of OpenAI's.
pub fn input_percent(owned_by: &str) -> u64 {
    match owned_by {
        "openai" => 100,
        // Assumptions on the safe side: one that is too low only overdraws, and the posting is what the provider counts.
        "google" | "meta" => 120,
        "anthropic" => 150,
        _ => 130,
    }
}

/// The input tokens of a request by OpenAI's tokenizer; by a rule of thumb where they were not counted.
pub fn counted_input(features: &Features) -> u64 {
    features.input_tokens.unwrap_or_else(|| {
        features.text_bytes.div_ceil(BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * u64::from(features.messages)
    })
}
