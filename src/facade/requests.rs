//! `/v1/requests/{id}`: what can be done with a request that was asked, here or on another facade.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use tokio::time::Instant;

use super::answer::Answer;
use super::error::{self, Refusal, X_REQUEST_ID, value};
use super::respond::{outcome_of, respond};
use super::routes::{App, PathId, named};
use super::{again, request};
use crate::config::millis;
use crate::control::document::CHAT_SCOPE;
use crate::domain::{RequestId, RequestKey};
use crate::records::responses::ApiError;

/// `GET /v1/requests/{id}/events`: goes on with a stream behind an event.
pub async fn events(State(app): State<Arc<App>>, id: PathId, http: Request) -> Response {
    let id = named(id);
    let began = Instant::now();
    let span = app.traces.request("GET /v1/requests/{id}/events", http.headers());
    let (parts, _) = http.into_parts();
    match read(&app, &id, &parts) {
        Ok((id, answer)) => respond(&app, &id, answer.of(began, span), true).await,
        Err(refusal) => refused(&app, refusal, &id, &parts, began),
    }
}

fn read(app: &App, id: &str, parts: &Parts) -> Result<(RequestId, Answer), Refusal> {
    let key = key(app, id, parts)?;
    let id = key.request.clone();
    let after = again::last_event(&parts.headers, parts.uri.query())?;
    let permit = app.hub.admit()?;
    let listener = app.hub.read(permit, key, after)?;
    let patience = millis(app.config.timeout_ms) + app.deadline_grace;
    Ok((id, Answer::new(listener, app.hub.metrics().clone(), patience, millis(app.config.keep_alive_ms))))
}

#[derive(Serialize)]
struct Cancelling<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
}

/// `POST /v1/requests/{id}/cancel`: 202 once the cancel is durable; whether there is something to cancel, its owner knows.
pub async fn cancel(State(app): State<Arc<App>>, id: PathId, http: Request) -> Response {
    let (id, began) = (named(id), Instant::now());
    let (parts, _) = http.into_parts();
    match cancelled(&app, &id, &parts).await {
        Ok(id) => {
            let body = Cancelling { id: id.as_str(), object: "request", status: "cancelling" };
            // Writing strings into memory cannot fail; an empty body would still have its status.
            let mut response = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
            *response.status_mut() = StatusCode::ACCEPTED;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(X_REQUEST_ID, value(id.as_str()));
            response
        }
        Err(refusal) => refused(&app, refusal, &id, &parts, began),
    }
}

async fn cancelled(app: &App, id: &str, parts: &Parts) -> Result<RequestId, Refusal> {
    let key = key(app, id, parts)?;
    let id = key.request.clone();
    let _permit = app.hub.admit()?;
    app.hub.cancel_as_requested(key).await?;
    Ok(id)
}

/// The request of this id in the organization of the key.
fn key(app: &App, id: &str, parts: &Parts) -> Result<RequestKey, Refusal> {
    let tables = (app.control)();
    let caller = app.caller(&tables, parts, CHAT_SCOPE)?;
    let organization = request::headers(&parts.headers)?.organization;
    let organization = caller.organization(&tables, organization, None)?;
    let invalid = |error: crate::domain::ids::Error| Refusal::InvalidField { param: "id", problem: error.to_string() };
    Ok(RequestKey { organization, request: RequestId::parse(id).map_err(invalid)? })
}

/// An error names the request that was asked about, if it can be one.
fn refused(app: &App, refusal: Refusal, id: &str, parts: &Parts, began: Instant) -> Response {
    let error = ApiError::from(refusal);
    app.hub.metrics().failed(&error.code);
    app.hub.metrics().ended(outcome_of(&error), began.elapsed());
    let id = RequestId::parse(id).unwrap_or_else(|_| request::request_id(&parts.headers));
    error::response(&error, &id)
}
