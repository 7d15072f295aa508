//! The facts of a request in words, one line each.

use std::time::Duration;

use super::Story;
use crate::domain::{PicoUsd, Timestamp, TokenUsage};
use crate::records::UsageSource;
use crate::records::journal::{
    AttemptEnded, AttemptStarted, CacheLookedUp, Candidate, Fact, Features, LimitCharge, LimitScope, Period,
    RequestAdmitted, RequestRouted, RequestSettled,
};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: Timestamp,
    /// Since the request came.
    pub after: Duration,
    /// Since the commit before it.
    pub step: Duration,
    pub counts: bool,
    /// Where the commit stands on the journal.
    pub place: String,
    pub tenure: String,
    pub what: &'static str,
    pub details: String,
}

/// The story, fact by fact.
pub fn lines(story: &Story) -> Vec<Line> {
    let received = story.context().map(|context| context.received_at);
    let mut before = received;
    let mut lines = Vec::new();
    for step in &story.steps {
        let at = step.commit.at;
        for (number, fact) in step.commit.facts.iter().enumerate() {
            let (what, details) = told(fact, at);
            let owner = step.owner.as_deref().map_or_else(String::new, |owner| format!(" ({owner})"));
            lines.push(Line {
                at,
                after: received.map_or(Duration::ZERO, |received| at.since(received)),
                step: before.filter(|_| number == 0).map_or(Duration::ZERO, |before| at.since(before)),
                counts: step.counts,
                place: format!("{}/{}", step.partition, step.offset),
                tenure: format!("{}{owner}", step.commit.tenure),
                what,
                details,
            });
        }
        if step.counts {
            before = Some(at);
        }
    }
    lines
}

fn told(fact: &Fact, at: Timestamp) -> (&'static str, String) {
    match fact {
        Fact::RequestAdmitted(admitted) => ("admitted", admission(admitted, at)),
        Fact::RequestRefused(refused) => {
            let limit = refused.limit.as_ref().map(|limit| format!("by {limit}"));
            let features = refused.features.as_ref().map(asked);
            ("refused", joined([Some(format!("{} {}", refused.status, refused.code)), limit, features]))
        }
        Fact::RequestRouted(routed) => ("routed", route(routed)),
        Fact::AttemptStarted(started) => ("attempt started", start(started)),
        Fact::AttemptEnded(ended) => ("attempt ended", end(ended)),
        Fact::AttemptProgressed(progressed) => (
            "progressed",
            format!(
                "attempt {}: {} frames, {} bytes of text",
                progressed.attempt, progressed.content_frames, progressed.text_bytes
            ),
        ),
        Fact::RequestSettled(settled) => ("settled", settlement(settled)),
        Fact::CancelRequested(cancel) => {
            let open = if cancel.open { "the call is ended" } else { "there was nothing to cancel" };
            ("cancel", joined([Some(cancel.reason.clone()).filter(|reason| !reason.is_empty()), Some(open.to_owned())]))
        }
        Fact::RecordSkipped(skipped) => {
            let told = skipped.told.as_ref().map(|told| format!("told {} {}", told.status, told.code));
            ("skipped", joined([Some(skipped.reason.clone()), told]))
        }
        Fact::OrphanPosted(orphan) => {
            let of = format!("of the commit at offset {}, which does not count", orphan.journal_offset);
            let corrects = orphan.corrects_pico_usd.map(|cost| format!("corrects a posting of {}", usd(cost)));
            ("orphan posted", joined([Some(of), corrects, Some(end(&orphan.posting))]))
        }
        Fact::Overdrawn(overdrawn) => (
            "overdrawn",
            format!("attempt {}: {} beyond its reservation", overdrawn.attempt, usd(overdrawn.amount_pico_usd)),
        ),
        Fact::ThresholdCrossed(crossed) => (
            "threshold",
            format!(
                "{} % of the {} of its {}: {} of {}",
                crossed.percent,
                crossed.account.as_str(),
                period(crossed.period),
                usd(crossed.posted_pico_usd),
                usd(crossed.limit_pico_usd)
            ),
        ),
        Fact::CacheLookedUp(looked_up) => ("cache", looked_into(looked_up)),
        Fact::CacheInserted(inserted) => {
            let until = format!("for {}", duration(inserted.expires_at.since(at)));
            ("cached", joined([Some(format!("{} bytes", inserted.bytes)), Some(until)]))
        }
        Fact::CacheEvicted(evicted) => {
            ("evicted", format!("{} answers: {}", evicted.fingerprints.len(), evicted.reason.as_str()))
        }
        Fact::CachePurged(purged) => {
            let model = purged.model.as_ref().map(|model| format!("of {model}"));
            let before = purged.before.map(|before| format!("kept before {before}"));
            ("purged", joined([Some(format!("{} answers", purged.entries)), model, before]))
        }
    }
}

fn looked_into(looked_up: &CacheLookedUp) -> String {
    let seconds = |what: &str, seconds: Option<u64>| seconds.map(|seconds| format!("{what} {seconds} s"));
    joined([
        Some(looked_up.outcome.as_str().to_owned()),
        looked_up.age_ms.map(|age| format!("kept {} ago", duration(Duration::from_millis(age)))),
        seconds("wanted no older than", looked_up.max_age_seconds),
        seconds("to be kept for", looked_up.ttl_seconds),
        (!looked_up.keeps).then(|| "not to be kept".to_owned()),
    ])
}

fn admission(admitted: &RequestAdmitted, at: Timestamp) -> String {
    let deadline = format!("deadline in {}", duration(admitted.deadline_at.since(at)));
    let limits = admitted.limits.iter().map(|charge| Some(charged(charge)));
    joined([Some(asked(&admitted.features)), Some(deadline)].into_iter().chain(limits))
}

fn asked(features: &Features) -> String {
    let count = |count: u32, what: &str| (count > 0).then(|| format!("{count} {what}"));
    joined([
        Some(format!("{} messages", features.messages)),
        features.input_tokens.map(|tokens| format!("{tokens} input tokens")),
        count(features.tools, "tools"),
        count(features.images, "images"),
        count(if features.choices == 1 { 0 } else { features.choices }, "choices"),
        features.output_cap.map(|cap| format!("at most {cap} output tokens")),
    ])
}

fn charged(charge: &LimitCharge) -> String {
    let scope = match charge.scope {
        LimitScope::Organization => "organization",
        LimitScope::Key => "key",
        LimitScope::Model => "model",
        LimitScope::Unknown => "unknown",
    };
    let requests = charge.requests_per_minute.map(|limit| format!("1 of {limit} requests/min"));
    let tokens = charge.tokens_per_minute.map(|limit| format!("{} of {limit} tokens/min", charge.tokens));
    format!("limit of the {scope}: {}", joined([requests, tokens]))
}

fn route(routed: &RequestRouted) -> String {
    let candidate = |c: &Candidate| format!("{} at {} (tier {})", c.model, c.deployment, c.tier);
    let candidates = routed.candidates.iter().map(candidate).collect::<Vec<_>>().join(", then ");
    let because = (!routed.reasons.is_empty()).then(|| format!("because: {}", routed.reasons.join("; ")));
    joined([Some(candidates), Some(format!("{} attempts at the most", routed.max_attempts)), because])
}

fn start(started: &AttemptStarted) -> String {
    let reserved = started.reservation.as_ref().map(|reservation| {
        let accounts = reservation.accounts.iter().map(|account| account.as_str()).collect::<Vec<_>>().join(" and ");
        let cap = reservation.output_cap.map_or_else(String::new, |cap| format!(", told a cap of {cap}"));
        format!(
            "reserved {} of {accounts} ({} input and {} output tokens{cap})",
            usd(reservation.amount_pico_usd),
            reservation.input_tokens,
            reservation.output_tokens
        )
    });
    joined([
        Some(format!("{}: {} at {} ({})", started.attempt, started.model, started.deployment, started.provider)),
        Some(format!("prices of control offset {}", started.price_version)),
        reserved,
        started.source.is_served().then(|| format!("from the {}", source_name(started))),
        started.limits.as_ref().map(charged),
    ])
}

fn source_name(started: &AttemptStarted) -> String {
    match &started.shared_with {
        Some(leader) => format!("call of {leader}, which asks the same"),
        None => started.source.as_str().to_owned(),
    }
}

fn end(ended: &AttemptEnded) -> String {
    let status = ended.upstream_status.map(|status| format!("the provider's status {status}"));
    let ms = |ms: u64| duration(Duration::from_millis(ms));
    joined([
        Some(format!("{}: {}", ended.attempt, ended.outcome.as_str())),
        ended.error_code.clone(),
        status,
        ended.finish_reason.as_ref().map(|reason| format!("finish reason {reason}")),
        Some(format!("posted {}", cost(ended.cost_pico_usd))),
        ended.saved.map(|saved| format!("saved {} ({})", cost(saved.cost_pico_usd), tokens(&saved.usage))),
        Some(format!("{} ({})", tokens(&ended.usage), source(ended.usage_source))),
        ended.time_to_first_token_ms.map(|first| format!("first token after {}", ms(first))),
        ended.duration_ms.map(|all| format!("{} in all", ms(all))),
        ended.simulated.then(|| "by a simulator".to_owned()),
        ended.price_simulated.then(|| "at an assumed price".to_owned()),
    ])
}

fn settlement(settled: &RequestSettled) -> String {
    joined([
        Some(format!("{} {}", settled.status, settled.outcome.as_str())),
        settled.error_code.clone(),
        Some(format!("cost {}", cost(settled.cost_pico_usd))),
        Some(format!("{} attempts, {} frames", settled.attempts, settled.content_frames)),
    ])
}

/// Tokens by class; a class that is not known is left out.
pub fn tokens(usage: &TokenUsage) -> String {
    let classes = [
        (usage.input, "input"),
        (usage.cached_input, "cached"),
        (usage.cache_write, "cache write"),
        (usage.output, "output"),
        (usage.reasoning, "reasoning"),
    ];
    let known: Vec<String> =
        classes.into_iter().filter_map(|(count, class)| Some(format!("{} {class}", count?))).collect();
    if known.is_empty() { "tokens unknown".to_owned() } else { format!("{} tokens", known.join(" + ")) }
}

pub fn usd(amount: PicoUsd) -> String {
    format!("${amount}")
}

pub fn cost(amount: Option<PicoUsd>) -> String {
    amount.map_or_else(|| "unknown".to_owned(), usd)
}

/// Milliseconds below ten seconds, else seconds.
pub fn duration(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

const fn source(source: UsageSource) -> &'static str {
    match source {
        UsageSource::Reported => "reported",
        UsageSource::Estimated => "estimated",
        UsageSource::None => "nothing was used",
        UsageSource::Unknown => "of unknown source",
    }
}

const fn period(period: Period) -> &'static str {
    match period {
        Period::Day => "day",
        Period::Month => "month",
        Period::Unknown => "period",
    }
}

fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}
