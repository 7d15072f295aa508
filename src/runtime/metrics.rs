//! What the processor counts, and what it measures of the providers.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::domain::{DeploymentId, ModelName, PicoUsd, TokenUsage};
use crate::processor::inference::AttemptEnd;
use crate::records::Outcome;
use crate::records::journal::{AttemptEnded, CacheOutcome};
use crate::telemetry::Metrics;
use crate::telemetry::labels::{Bounded, Closed, LABEL_VALUES_MAX, Label};
use crate::telemetry::metrics::{ANSWER_SECONDS, STEP_SECONDS, Series, WORK_SECONDS};
use crate::telemetry::values::Dollars;

impl Label for Outcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [Self] =
        &[Self::Completed, Self::Failed, Self::Refused, Self::Cancelled, Self::Interrupted, Self::Unknown];

    fn value(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Classes of tokens that are counted apart, so that their sum is all tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenClass {
    Input,
    CachedInput,
    CacheWrite,
    /// Without the reasoning.
    Output,
    Reasoning,
}

impl Label for TokenClass {
    const NAME: &'static str = "class";
    const VALUES: &'static [Self] = &[Self::Input, Self::CachedInput, Self::CacheWrite, Self::Output, Self::Reasoning];

    fn value(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CachedInput => "cached_input",
            Self::CacheWrite => "cache_write",
            Self::Output => "output",
            Self::Reasoning => "reasoning",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl TokenClass {
    fn of(self, usage: &TokenUsage) -> u64 {
        let reasoning = usage.reasoning.unwrap_or(0).min(usage.output.unwrap_or(0));
        match self {
            Self::Input => usage.input.unwrap_or(0),
            Self::CachedInput => usage.cached_input.unwrap_or(0),
            Self::CacheWrite => usage.cache_write.unwrap_or(0),
            Self::Output => usage.output.unwrap_or(0) - reasoning,
            Self::Reasoning => reasoning,
        }
    }
}

impl Label for CacheOutcome {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [Self] = &Self::ALL;

    fn value(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|of| *of == self).unwrap_or(0)
    }
}

/// What one model used.
struct OfModel {
    tokens: Closed<TokenClass, Counter>,
    cost: Dollars,
    saved: Dollars,
    unpriced: Counter,
}

/// What the processor counts.
#[derive(Clone)]
pub struct ProcessorMetrics {
    pub admitted: Counter,
    pub dead: Counter,
    pub misplaced: Counter,
    pub tenures_lost: Counter,
    pub orphans: Counter,
    pub checkpoints: Counter,
    pub checkpoint_failures: Counter,
    pub checkpoint_distance: Gauge,
    pub restored: Counter,
    pub restore_failures: Counter,
    pub restore_remaining: Gauge,
    pub restores: Histogram,
    pub restoring: Gauge,
    pub closed: Gauge,
    pub partitions: Gauge,
    pub paused: Gauge,
    pub open: Gauge,
    pub bodies: Gauge,
    pub shelf: Gauge,
    pub cached: Counter,
    pub evicted: Counter,
    looked_up: Closed<CacheOutcome, Counter>,
    queue: Histogram,
    overhead: Histogram,
    refused: Bounded<Counter>,
    settled: Closed<Outcome, Counter>,
    models: Bounded<Arc<OfModel>>,
}

impl ProcessorMetrics {
    pub fn register(metrics: &Metrics) -> Self {
        let of = metrics.scope("tollstream_processor");
        let refused = "Requests refused before a provider call, by the code of the error";
        let refused = of.family("requests_refused", &["code"], refused, Counter::default);
        let distance = "Entries of the journal that a takeover would read of the partition with the most";
        let remaining = "Entries of the journal that takeovers under way have still to read";
        let restores = "From the assignment of a partition until its owner decides";
        let queue = "From a request's record to its decision, by the record's time";
        let overhead = "What an admitted request spent here: from its record to the acknowledgement of \
                        its settlement, without the providers' calls and the waits before retries";
        Self {
            admitted: of.counter("requests_admitted", "Requests admitted"),
            dead: of.counter("records_dead", "Records put into dead-letters"),
            misplaced: of.counter("records_misplaced", "Records moved to their partition"),
            tenures_lost: of.counter("tenures_lost", "Tenures that ended in their middle"),
            orphans: of.counter("orphans_posted", "Ends of calls of former owners, posted"),
            checkpoints: of.counter("checkpoints_kept", "Checkpoints written"),
            checkpoint_failures: of.counter("checkpoint_failures", "Checkpoints that could not be written"),
            checkpoint_distance: of.gauge("checkpoint_distance_entries", distance),
            restored: of.counter("entries_restored", "Entries of the journal read by takeovers"),
            restore_failures: of.counter("restore_failures", "Takeovers that failed; most are tried again"),
            restore_remaining: of.gauge("restore_remaining_entries", remaining),
            restores: of.histogram("restore_seconds", restores, &WORK_SECONDS),
            restoring: of.gauge("partitions_restoring", "Partitions that are being taken over"),
            closed: of.gauge("partitions_closed", "Partitions that stay closed: their journal cannot be understood"),
            partitions: of.gauge("partitions_owned", "Partitions owned by this process"),
            paused: of.gauge("partitions_paused", "Partitions held back by what waits"),
            open: of.gauge("requests_open", "Requests admitted and not settled"),
            bodies: of.gauge("bodies_bytes", "Bytes of the bodies of open requests"),
            shelf: of.gauge("cache_bytes", "Bytes of the answers that are at hand to be given again"),
            cached: of.counter("cache_inserted", "Answers that were kept for those who ask the same"),
            evicted: of.counter("cache_evicted", "Answers that are kept no longer"),
            looked_up: of.counters("cache_lookups", "Looks into the cache, by what was found"),
            queue: of.histogram("queue_seconds", queue, &STEP_SECONDS),
            overhead: of.histogram("overhead_seconds", overhead, &STEP_SECONDS),
            refused: Bounded::new(LABEL_VALUES_MAX, move |code| {
                refused.get_or_create(&vec![("code", code.to_owned())]).clone()
            }),
            settled: of.counters("requests_settled", "Admitted requests that ended, by their outcome"),
            models: by_model(metrics),
        }
    }

    /// A request was decided, so long after its record was written.
    pub fn decided(&self, waited: Duration) {
        self.queue.observe(waited.as_secs_f64());
    }

    /// A request that a provider was called for ended, and took so long without it.
    pub fn added(&self, ours: Duration) {
        self.overhead.observe(ours.as_secs_f64());
    }

    pub fn refused(&self, code: &str) {
        self.refused.with(code, Counter::inc);
    }

    pub fn looked_up(&self, outcome: CacheOutcome) {
        self.looked_up.of(outcome).inc();
    }

    pub fn settled(&self, outcome: Outcome) {
        self.settled.of(outcome).inc();
    }

    /// A posting was decided.
    pub fn posted(&self, posting: &AttemptEnded) {
        self.models.with(posting.model.as_str(), |model| {
            for class in TokenClass::VALUES {
                model.tokens.of(*class).inc_by(class.of(&posting.usage));
            }
            match posting.cost_pico_usd {
                Some(cost) if cost > PicoUsd::ZERO => model.cost.add(cost),
                Some(_) => {}
                None => _ = model.unpriced.inc(),
            }
            if let Some(saved) = posting.saved.and_then(|saved| saved.cost_pico_usd) {
                model.saved.add(saved);
            }
        });
    }
}

impl Default for ProcessorMetrics {
    /// That nobody reads.
    fn default() -> Self {
        Self::register(&Metrics::default())
    }
}

fn by_model(metrics: &Metrics) -> Bounded<Arc<OfModel>> {
    let of = metrics.scope("tollstream");
    let tokens = "Tokens of the postings, in disjoint classes; some are estimates";
    let tokens = of.family("tokens", &["model", "class"], tokens, Counter::default);
    let cost = "Dollars of the postings; what corrections give back is not taken off";
    let cost = of.family("cost_usd", &["model"], cost, Dollars::default);
    let saved = "Dollars that answers given without a call would have cost";
    let saved = of.family("saved_usd", &["model"], saved, Dollars::default);
    let unpriced = of.family("cost_unknown_postings", &["model"], "Postings whose cost is not known", Counter::default);
    Bounded::new(LABEL_VALUES_MAX, move |model| {
        let label = vec![("model", model.to_owned())];
        Arc::new(OfModel {
            tokens: Closed::beside(&tokens, &[("model", model)]),
            cost: cost.get_or_create(&label).clone(),
            saved: saved.get_or_create(&label).clone(),
            unpriced: unpriced.get_or_create(&label).clone(),
        })
    })
}

/// What is measured of the calls of providers.
#[derive(Clone)]
pub struct ProviderMetrics {
    deployments: Bounded<Arc<OfDeployment>>,
    first_token: Bounded<Histogram>,
}

struct OfDeployment {
    calls: Closed<CallEnd, Counter>,
    duration: Histogram,
    label: String,
    failures: Series<Counter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallEnd {
    Completed,
    Failed,
    Cancelled,
}

impl Label for CallEnd {
    const NAME: &'static str = "outcome";
    const VALUES: &'static [Self] = &[Self::Completed, Self::Failed, Self::Cancelled];

    fn value(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl ProviderMetrics {
    pub fn register(metrics: &Metrics) -> Self {
        let of = metrics.scope("tollstream_provider");
        let calls = of.family("calls", &["deployment", "outcome"], "Calls of providers that ended", Counter::default);
        let failures = of.family(
            "failures",
            &["deployment", "code"],
            "Calls of providers that failed, by the code of the failure",
            Counter::default,
        );
        let answer = || Histogram::new(ANSWER_SECONDS);
        let duration =
            of.family("call_seconds", &["deployment"], "From the call of a provider to the end of its answer", answer);
        let first_token =
            of.family("first_token_seconds", &["model"], "From the call of a provider to its first token", answer);
        Self {
            deployments: Bounded::new(LABEL_VALUES_MAX, move |deployment| {
                let label = deployment.to_owned();
                Arc::new(OfDeployment {
                    calls: Closed::beside(&calls, &[("deployment", deployment)]),
                    duration: duration.get_or_create(&vec![("deployment", label.clone())]).clone(),
                    label,
                    failures: failures.clone(),
                })
            }),
            first_token: Bounded::new(LABEL_VALUES_MAX, move |model| {
                first_token.get_or_create(&vec![("model", model.to_owned())]).clone()
            }),
        }
    }

    /// A call ended, so long after it was made.
    pub fn ended(&self, deployment: &DeploymentId, end: &AttemptEnd, after: Duration) {
        self.deployments.with(deployment.as_str(), |of| {
            of.duration.observe(after.as_secs_f64());
            match end {
                AttemptEnd::Completed => _ = of.calls.of(CallEnd::Completed).inc(),
                AttemptEnd::Cancelled => _ = of.calls.of(CallEnd::Cancelled).inc(),
                AttemptEnd::Failed(failure) => {
                    of.calls.of(CallEnd::Failed).inc();
                    let labels = vec![("deployment", of.label.clone()), ("code", failure.class.code().to_owned())];
                    of.failures.get_or_create(&labels).inc();
                }
            }
        });
    }

    /// The first token of an answer came, so long after the call.
    pub fn first_token(&self, model: &ModelName, after: Duration) {
        self.first_token.with(model.as_str(), |of| of.observe(after.as_secs_f64()));
    }
}

impl Default for ProviderMetrics {
    /// That nobody reads.
    fn default() -> Self {
        Self::register(&Metrics::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_of_tokens_are_disjoint() {
        let usage = TokenUsage {
            input: Some(100),
            cached_input: Some(20),
            cache_write: None,
            output: Some(50),
            reasoning: Some(30),
        };
        let told: Vec<_> = TokenClass::VALUES.iter().map(|class| class.of(&usage)).collect();
        assert_eq!(told, [100, 20, 0, 20, 30]);
        let strange = TokenUsage { output: Some(5), reasoning: Some(9), ..TokenUsage::default() };
        assert_eq!((TokenClass::Output.of(&strange), TokenClass::Reasoning.of(&strange)), (0, 5));
    }
}
