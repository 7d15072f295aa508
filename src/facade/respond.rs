//! What a response begins with: status and headers, decided when they are known.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;

use super::answer::Answer;
use super::error::{self, SHOULD_RETRY, X_REQUEST_ID, value};
use super::metrics::Outcome;
use super::rate_limits;
use super::routes::App;
use super::slot::Beginning;
use crate::domain::RequestId;
use crate::records::responses::{ApiError, Head, Terminal};

const MODEL_HEADER: HeaderName = HeaderName::from_static("x-tollstream-model");
const DEPLOYMENT_HEADER: HeaderName = HeaderName::from_static("x-tollstream-deployment");
const TIER_HEADER: HeaderName = HeaderName::from_static("x-tollstream-tier");
const COST_HEADER: HeaderName = HeaderName::from_static("x-tollstream-cost-usd");
/// What was found of the answer in the cache.
const CACHE_HEADER: HeaderName = HeaderName::from_static("x-tollstream-cache");
/// What the answer would have cost, had somebody been called for it.
const SAVED_HEADER: HeaderName = HeaderName::from_static("x-tollstream-saved-usd");
/// Set when the answer is the one to an earlier, equal request; named as others name it.
const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Status and headers, as soon as they are known.
pub async fn respond(app: &App, id: &RequestId, mut answer: Answer, stream: bool) -> Response {
    let beginning = answer.beginning(stream).await;
    if beginning.is_some() {
        app.hub.metrics().first_frame(answer.age());
    }
    match beginning {
        None => streamed(id, None, answer),
        Some(Beginning::Stream(head)) => streamed(id, head, answer),
        Some(Beginning::Whole(terminal)) => {
            let replayed = answer.is_replay();
            answer.ended(Outcome::Ok);
            whole(id, *terminal, replayed)
        }
        Some(Beginning::Failed(error)) => {
            let (replayed, is_final) = (answer.is_replay(), answer.is_final());
            let mut response = error::response(&error, id);
            answer.failed(&error, response.status());
            answer.ended(outcome_of(&error));
            if replayed {
                response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
            }
            if is_final {
                response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            response
        }
    }
}

pub fn outcome_of(error: &ApiError) -> Outcome {
    if (400..500).contains(&error.status) { Outcome::ClientError } else { Outcome::ServerError }
}

fn streamed(id: &RequestId, head: Option<Head>, answer: Answer) -> Response {
    let replayed = answer.is_replay();
    let mut response = Response::new(answer.into_body());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    who_answers(headers, id, head, replayed);
    response
}

fn whole(id: &RequestId, terminal: Terminal, replayed: bool) -> Response {
    let mut response = Response::new(Body::from(terminal.body.unwrap_or_default()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // An unknown cost is absent, never 0.
    if let Some(cost) = terminal.cost_pico_usd {
        headers.insert(COST_HEADER, value(&cost.to_string()));
    }
    if let Some(saved) = terminal.saved_pico_usd {
        headers.insert(SAVED_HEADER, value(&saved.to_string()));
    }
    who_answers(headers, id, terminal.head, replayed);
    response
}

fn who_answers(headers: &mut HeaderMap, id: &RequestId, head: Option<Head>, replayed: bool) {
    headers.insert(X_REQUEST_ID, value(id.as_str()));
    if replayed {
        headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    if let Some(head) = head {
        headers.insert(MODEL_HEADER, value(head.model.as_str()));
        headers.insert(DEPLOYMENT_HEADER, value(head.deployment.as_str()));
        headers.insert(TIER_HEADER, HeaderValue::from(u16::from(head.tier)));
        if let Some(cache) = head.cache {
            headers.insert(CACHE_HEADER, HeaderValue::from_static(cache.as_str()));
        }
        // What was left when an earlier request was admitted says nothing about now.
        if let Some(limits) = head.rate_limits.filter(|_| !replayed) {
            rate_limits::insert(headers, &limits);
        }
    }
}
