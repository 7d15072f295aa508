//! What metrics and traces cost a request: everything that is counted and measured of one, and its spans.

#![expect(clippy::expect_used, reason = "it ends when something that it makes up is wrong")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tollstream::config::Telemetry;
use tollstream::domain::{PicoUsd, TokenUsage};
use tollstream::processor::inference::AttemptEnd;
use tollstream::records::journal::AttemptEnded;
use tollstream::records::{Outcome, UsageSource};
use tollstream::runtime::metrics::{ProcessorMetrics, ProviderMetrics};
use tollstream::telemetry::trace::{Kind, Traces};
use tollstream::telemetry::{Metrics, attribute};

fn posting() -> AttemptEnded {
    AttemptEnded {
        attempt: 1,
        model: "gpt-4o-mini".parse().expect("a name"),
        deployment: "openai-gpt-4o-mini".parse().expect("a name"),
        provider: "openai".into(),
        tier: 2,
        simulated: false,
        outcome: Outcome::Completed,
        error_code: None,
        upstream_status: None,
        finish_reason: Some("stop".into()),
        content_frames: 3,
        time_to_first_token_ms: Some(200),
        duration_ms: Some(900),
        usage: TokenUsage { input: Some(100), output: Some(50), ..TokenUsage::default() },
        usage_source: UsageSource::Reported,
        price_version: 1,
        price_simulated: false,
        cost_pico_usd: Some(PicoUsd::new(45_000_000)),
        booking: None,
        retry_after_ms: None,
        shortfall: None,
        saved: None,
        source: tollstream::records::journal::AttemptSource::Provider,
    }
}

/// An owner's part; the facade's and the producer's are a few counters and histograms more.
fn metrics(c: &mut Criterion) {
    let metrics = Metrics::default();
    let (processor, provider, posting) =
        (ProcessorMetrics::register(&metrics), ProviderMetrics::register(&metrics), posting());
    c.bench_function("telemetry/metrics of a request", |b| {
        b.iter(|| {
            processor.admitted.inc();
            processor.decided(Duration::from_micros(900));
            provider.ended(&posting.deployment, &AttemptEnd::Completed, Duration::from_millis(900));
            provider.first_token(&posting.model, Duration::from_millis(200));
            processor.posted(black_box(&posting));
            processor.settled(Outcome::Completed);
            processor.added(Duration::from_micros(1_700));
        });
    });
}

fn spans_of(traces: &Traces) -> Option<String> {
    let request = traces.span(Kind::Server, "POST /v1/chat/completions", None);
    let sent = request.child(Kind::Producer, "send requests").told(|of| of.kafka("send", "requests", 1));
    let processed = traces.span(Kind::Consumer, "process requests", sent.traceparent().as_deref());
    let processed = processed.told(|of| of.kafka("process", "requests", 1));
    drop(processed.child(Kind::Producer, "send journal").told(|of| of.kafka("send", "journal", 1)));
    let call = processed.child(Kind::Client, "chat gpt-4o-mini").told(|of| {
        of.set(attribute::GEN_AI_OPERATION_NAME, "chat");
        of.set(attribute::GEN_AI_REQUEST_MODEL, "gpt-4o-mini");
        of.set(attribute::GEN_AI_USAGE_INPUT_TOKENS, 100_i64);
        of.set(attribute::GEN_AI_USAGE_OUTPUT_TOKENS, 50_i64);
        of.set(attribute::DEPLOYMENT, "openai-gpt-4o-mini");
    });
    drop(processed.child(Kind::Producer, "send journal").told(|of| of.kafka("send", "journal", 1)));
    call.traceparent()
}

fn spans(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let off = Traces::default();
    c.bench_function("telemetry/spans of a request, off", |b| b.iter(|| black_box(spans_of(&off))));
    for (name, sampled_percent) in [("not sampled", 0), ("sampled", 100)] {
        // Nobody listens there: what is measured is a request's own part.
        let otlp_endpoint = Some("http://127.0.0.1:9".to_owned());
        let config = Telemetry { otlp_endpoint, sampled_percent, ..Telemetry::default() };
        let traces = Traces::start(&config, "bench", &Metrics::default()).expect("traces");
        c.bench_function(&format!("telemetry/spans of a request, {name}"), |b| b.iter(|| black_box(spans_of(&traces))));
        runtime.block_on(traces.stop());
    }
}

criterion_group!(benches, metrics, spans);
criterion_main!(benches);
