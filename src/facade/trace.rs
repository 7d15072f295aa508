//! What a trace has of the facade: the request as HTTP has it, and its record on the way to Kafka.

use axum::http::HeaderMap;
use axum::http::StatusCode;

use super::metrics::Outcome;
use super::request;
use crate::domain::ids::partition_of;
use crate::domain::{OrganizationId, RequestId};
use crate::records::responses::ApiError;
use crate::telemetry::trace::{Kind, Span};
use crate::telemetry::{Traces, attribute};

/// What the spans of the facade are made with.
#[derive(Default)]
pub struct Facade {
    pub traces: Traces,
    /// The topic.
    pub requests: String,
    pub partitions: u32,
}

impl Facade {
    /// A request came; its client may have begun the trace.
    pub fn request(&self, route: &'static str, headers: &HeaderMap) -> Span {
        let parent = request::traceparent(headers);
        self.traces.span(Kind::Server, route, parent).told(|of| {
            let (method, path) = route.split_once(' ').unwrap_or_default();
            of.set(attribute::HTTP_REQUEST_METHOD, method);
            of.set(attribute::HTTP_ROUTE, path);
        })
    }

    /// Its record is sent.
    pub fn send(&self, request: &Span, id: &RequestId, organization: &OrganizationId) -> Span {
        request.child(Kind::Producer, "send requests").told(|of| {
            of.kafka("send", &self.requests, partition_of(organization.as_str(), self.partitions));
            of.set(attribute::REQUEST_ID, id.to_string());
            of.set(attribute::ORGANIZATION_ID, organization.to_string());
        })
    }
}

/// An error was answered. A client's own is no failure of ours.
pub fn failed(span: &mut Span, error: &ApiError) {
    span.tell(|of| match error.status {
        400..500 => of.set(attribute::ERROR_TYPE, error.code.clone()),
        _ => of.failed(&error.code),
    });
}

/// The response ended so.
pub fn ended(span: &mut Span, outcome: Outcome, status: StatusCode) {
    span.tell(|of| {
        of.set(attribute::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16()));
        if outcome == Outcome::Abandoned {
            of.set(attribute::ERROR_TYPE, "client_disconnected");
        }
    });
}
