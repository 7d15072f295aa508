//! What a trace has of an owner: a request's record processed, its commits, and the calls of providers. The owner decides
//! without it; spans are made here from what the shell saw.

use std::time::Duration;

use crate::domain::OrganizationId;
use crate::processor::inference::{AttemptEnd, AttemptReport};
use crate::processor::{ProviderCall, ServedFrom, Serving};
use crate::provider::Upstream;
use crate::records::Outcome;
use crate::records::journal::{AttemptSource, RequestContext, RequestSettled};
use crate::records::requests::Chat;
use crate::telemetry::trace::{Kind, Span, Value};
use crate::telemetry::{Traces, attribute};

/// Where a record of `requests` stands.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub group: &'static str,
}

/// A request is decided and answered, until its last commit is acknowledged.
pub fn process(traces: &Traces, at: Place<'_>, chat: &Chat) -> Span {
    traces.span(Kind::Consumer, "process requests", chat.traceparent.as_deref()).told(|of| {
        of.kafka("process", at.topic, at.partition);
        of.set(attribute::MESSAGING_KAFKA_OFFSET, at.offset);
        of.set(attribute::MESSAGING_CONSUMER_GROUP_NAME, at.group);
        of.set(attribute::REQUEST_ID, chat.request_id.to_string());
        of.set(attribute::ORGANIZATION_ID, chat.organization.to_string());
    })
}

/// A request that a former owner left open goes on.
pub fn take_over(traces: &Traces, organization: &OrganizationId, request: &RequestContext) -> Span {
    traces.span(Kind::Internal, "take over request", request.traceparent.as_deref()).told(|of| {
        of.set(attribute::TAKEN_OVER, true);
        of.set(attribute::REQUEST_ID, request.request_id.to_string());
        of.set(attribute::ORGANIZATION_ID, organization.to_string());
    })
}

/// A commit, until it is acknowledged.
pub fn commit(request: &Span, topic: &str, partition: i32) -> Span {
    request.child(Kind::Producer, "send journal").told(|of| of.kafka("send", topic, partition))
}

/// A request is over.
pub fn settled(request: &mut Span, settled: &RequestSettled) {
    request.tell(|of| match (settled.outcome, &settled.error_code) {
        (Outcome::Completed, _) => {}
        (_, Some(code)) => of.failed(code),
        (outcome, None) => of.failed(outcome.as_str()),
    });
}

/// A call of a provider, which gets its `traceparent`.
pub fn call(request: &Span, call: &ProviderCall, provider: &str) -> Span {
    if !request.is_on() {
        return Span::default();
    }
    request.child(Kind::Client, format!("chat {}", call.upstream_model)).told(|of| {
        of.set(attribute::GEN_AI_OPERATION_NAME, "chat");
        of.set(attribute::GEN_AI_PROVIDER_NAME, provider.to_owned());
        of.set(attribute::GEN_AI_REQUEST_MODEL, call.upstream_model.clone());
        if let Some(cap) = call.output_cap {
            of.set(attribute::GEN_AI_REQUEST_MAX_TOKENS, signed(cap));
        }
        of.set(attribute::DEPLOYMENT, call.head.deployment.to_string());
        of.set(attribute::ATTEMPT, i64::from(call.attempt));
    })
}

/// An answer is given that nobody is called for.
pub fn serve(request: &Span, serving: &Serving) -> Span {
    request.child(Kind::Internal, "serve answer").told(|of| {
        let source = match &serving.from {
            ServedFrom::Cache(_) => AttemptSource::Cache,
            ServedFrom::Call(_) => AttemptSource::Shared,
        };
        of.set(attribute::SOURCE, source.as_str());
        of.set(attribute::DEPLOYMENT, serving.head.deployment.to_string());
        of.set(attribute::ATTEMPT, i64::from(serving.attempt));
    })
}

/// It is made there.
pub fn called(span: &mut Span, upstream: &Upstream) {
    span.tell(|of| {
        let Ok(url) = reqwest::Url::parse(&upstream.base_url) else { return };
        if let Some(host) = url.host_str() {
            of.set(attribute::SERVER_ADDRESS, host.to_owned());
        }
        if let Some(port) = url.port_or_known_default() {
            of.set(attribute::SERVER_PORT, i64::from(port));
        }
    });
}

/// It is over.
pub fn answered(span: &mut Span, report: &AttemptReport, first_token: Option<Duration>) {
    span.tell(|of| {
        if let Some(usage) = &report.summary.usage {
            let counts = [
                (attribute::GEN_AI_USAGE_INPUT_TOKENS, usage.total_input()),
                (attribute::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached_input),
                (attribute::GEN_AI_USAGE_OUTPUT_TOKENS, usage.output),
                (attribute::GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning),
            ];
            for (name, count) in counts {
                count.into_iter().for_each(|count| of.set(name, signed(count)));
            }
        }
        if let Some(reason) = &report.summary.finish_reason {
            let reasons = vec![opentelemetry::StringValue::from(reason.clone())];
            of.set(attribute::GEN_AI_RESPONSE_FINISH_REASONS, Value::Array(reasons.into()));
        }
        if let Some(first) = first_token {
            of.set(attribute::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first.as_secs_f64());
        }
        of.set(attribute::SIMULATED, report.simulated);
        match &report.end {
            AttemptEnd::Completed => {}
            AttemptEnd::Cancelled => of.set(attribute::ERROR_TYPE, "cancelled"),
            AttemptEnd::Failed(failure) => {
                if let Some(status) = failure.upstream_status {
                    of.set(attribute::HTTP_RESPONSE_STATUS_CODE, i64::from(status));
                }
                of.failed(failure.class.code());
            }
        }
    });
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
