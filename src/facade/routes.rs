//! What the facade's listener answers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};

use super::admin;
use super::error::{self, Refusal};
use super::guard::Guard;
use super::hub::Hub;
use super::{Control, Usage, chat, models, request, requests, route, trace, usage};
use crate::config;
use crate::records::responses::ApiError;
use crate::telemetry::health::Health;

/// The document that `/openapi.json` is.
const OPENAPI: &str = include_str!("openapi.json");

/// What the handlers share.
pub struct App {
    pub hub: Arc<Hub>,
    pub control: Control,
    pub config: config::Facade,
    /// How long after a deadline the owner's own terminal may still come.
    pub deadline_grace: Duration,
    pub body_times: chat::BodyTimes,
    pub health: Health,
    pub guard: Guard,
    pub traces: trace::Facade,
    pub usage: Arc<Usage>,
}

/// One method of one path, as `openapi.json` names them.
pub struct Route<S> {
    pub method: &'static str,
    pub path: &'static str,
    /// The path as the router matches it.
    matches: &'static str,
    handler: fn() -> MethodRouter<S>,
}

impl<S> Route<S> {
    pub const fn new(method: &'static str, path: &'static str, handler: fn() -> MethodRouter<S>) -> Self {
        Self { method, path, matches: path, handler }
    }
}

pub const ROUTES: [Route<Arc<App>>; 14] = [
    Route::new("post", "/v1/chat/completions", || post(chat::complete)),
    Route::new("post", "/ai/chat/completions", || post(chat::complete)),
    Route::new("get", "/v1/requests/{id}/events", || get(requests::events)),
    Route::new("post", "/v1/requests/{id}/cancel", || post(requests::cancel)),
    Route::new("post", "/v1/route", || post(route::route)),
    Route::new("get", "/v1/models", || get(models::list)),
    Route::new("get", "/api/models", || get(models::list)),
    // Names of models have slashes, which not all clients encode.
    Route { matches: "/v1/models/{*id}", ..Route::new("get", "/v1/models/{id}", || get(models::one)) },
    Route::new("get", "/v1/usage", || get(usage::of_client)),
    Route::new("get", "/ai/usage", || get(usage::of_client)),
    Route::new("get", "/api/conversations/analytics/models", || get(usage::of_conversations)),
    Route::new("get", "/health/live", || get(admin::live)),
    Route::new("get", "/health/ready", || get(ready)),
    Route::new("get", "/openapi.json", || get(openapi)),
];

/// What of the path stands for a name.
pub type PathId = Result<Path<String>, PathRejection>;

/// The name; one that is no text becomes one that nothing has.
pub fn named(id: PathId) -> String {
    id.map_or_else(|_| char::REPLACEMENT_CHARACTER.to_string(), |Path(id)| id)
}

/// The router of these routes; what else is asked gets 404 and 405 in OpenAI's shape.
pub fn router<'a, S: Clone + Send + Sync + 'static>(
    routes: impl IntoIterator<Item = &'a Route<S>>,
    state: S,
) -> Router {
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.matches, (route.handler)());
    }
    router.fallback(unknown).method_not_allowed_fallback(method).with_state(state)
}

async fn ready(axum::extract::State(app): axum::extract::State<Arc<App>>) -> Response {
    admin::readiness(&app.health)
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

async fn unknown(headers: HeaderMap) -> Response {
    error::response(&ApiError::from(Refusal::UnknownUrl), &request::request_id(&headers))
}

async fn method(headers: HeaderMap) -> Response {
    error::response(&ApiError::from(Refusal::Method), &request::request_id(&headers))
}
