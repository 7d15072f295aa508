//! The simulator's HTTP: routes, pace, and streams that go wrong on purpose.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::vec::IntoIter;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

use super::answer::{Answer, answer};
use super::behavior::{Behavior, Break, Fault, Pace};
use super::errors::Documented;
use super::request::Request;
use super::text::Random;
use super::wire::{Breaking, Frame, SERVER_ERROR, Step, broken, error_body};
use super::{App, Stats};
use crate::runtime::clock;

/// Largest request: a context window of a million tokens has room.
const BODY_BYTES_MAX: usize = 64 << 20;
/// The models that `GET /v1/models` lists; any other name is answered too.
const CATALOGUE: &str = include_str!("../../topology/seed/models.toml");
/// When models that the catalogue does not know were made.
const CREATED: i64 = 1_700_000_000;

pub async fn serve(app: Arc<App>, listener: TcpListener) {
    let counting = Arc::clone(&app);
    let listener = listener.tap_io(move |tcp| {
        counting.counters.connections.fetch_add(1, Ordering::SeqCst);
        // A connection that cannot be tuned is served all the same.
        let _ = tcp.set_nodelay(true);
    });
    let stop = app.stop.clone();
    // It ends only by the signal: accept errors are waited out.
    let _ = axum::serve(listener, router(app)).with_graceful_shutdown(stop.cancelled_owned()).await;
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(|| async { "ok" }))
        .route("/admin/behavior", get(behavior).put(change_behavior))
        .route("/admin/stats", get(stats))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "Invalid URL", None, None) })
        .method_not_allowed_fallback(|| async {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "Not allowed to use this method on this URL", None, None)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let number = app.counters.requests.fetch_add(1, Ordering::SeqCst);
    let mut guard = Guard { app: Arc::clone(&app), outcome: Outcome::Cancelled };
    let request = match Request::parse(&body) {
        Ok(request) => request,
        Err(error) => {
            guard.outcome = Outcome::Completed;
            return refusal(StatusCode::BAD_REQUEST, &error.message, error.param, None);
        }
    };
    let behavior = app.behavior.load_full();
    let fault = match wanted_fault(&request, &headers, &behavior, (app.seed, number)) {
        Ok(fault) => fault,
        Err(error) => {
            guard.outcome = Outcome::Completed;
            return refusal(StatusCode::BAD_REQUEST, &error.to_string(), Some("x_simulate_fault"), None);
        }
    };
    let refused = match fault {
        Some(Fault::Status { status, retry_after_s }) => Some(on_purpose(status, retry_after_s)),
        Some(Fault::Documented { error, retry_after_s, after_tokens: None }) => Some(documented(error, retry_after_s)),
        Some(Fault::Documented { .. } | Fault::Breaks { .. }) | None => None,
    };
    if let Some(refused) = refused {
        guard.outcome = Outcome::Faulted;
        return refused;
    }
    let answer = answer(&request, app.seed, behavior.output_tokens);
    let frame = Frame {
        answer: &answer,
        model: &request.model,
        created: clock::now().as_millis() / 1_000,
        prompt_tokens: request.prompt_tokens,
        cached_tokens: app.cached_tokens(&request.prefixes),
    };
    let pace = Timing::new(behavior.pace(&request.model), Random::new(app.seed ^ number));
    let broken = match fault {
        Some(Fault::Breaks { how, after_tokens }) => Some(Breaking { how, after_tokens, error: None }),
        Some(Fault::Documented { error, after_tokens, .. }) => {
            Some(Breaking { how: Break::Error, after_tokens, error: Some(error) })
        }
        Some(Fault::Status { .. }) | None => None,
    };
    match request.is_stream {
        true => streamed(&frame, request.include_usage, broken, pace, guard),
        false => whole(frame.whole(), &answer, broken, pace, guard).await,
    }
}

fn wanted_fault(
    request: &Request,
    headers: &HeaderMap,
    behavior: &Behavior,
    (seed, number): (u64, u64),
) -> Result<Option<Fault>, super::behavior::Error> {
    let header = headers.get("x-simulate-fault").map(|value| String::from_utf8_lossy(value.as_bytes()));
    match header.as_deref().or(request.fault.as_deref()) {
        Some("none") => Ok(None),
        Some(fault) => fault.parse().map(Some),
        None => Ok(behavior.fault(seed, number, &request.model)),
    }
}

async fn whole(body: Bytes, answer: &Answer, broken: Option<Breaking>, mut pace: Timing, mut guard: Guard) -> Response {
    let Some(breaking) = broken else {
        let tokens = answer.choices.iter().map(|choice| choice.tokens.len()).max().unwrap_or(0);
        (0..tokens).for_each(|_| pace.advance());
        if !guard.wait(pace.due).await {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "The server is shutting down", None, None);
        }
        guard.outcome = Outcome::Completed;
        return json_response(StatusCode::OK, Body::from(body));
    };
    let how = breaking.how;
    match how {
        Break::Garbage => {
            guard.outcome = Outcome::Faulted;
            json_response(StatusCode::OK, Body::from("{\"id\":\"chatcmpl-<html>"))
        }
        Break::Error => {
            guard.outcome = Outcome::Faulted;
            json_response(StatusCode::OK, Body::from(breaking.error_body()))
        }
        Break::Stall | Break::Cut | Break::Truncate => {
            let last = if how == Break::Stall { Step::Stall } else { Step::Cut };
            let half = body.slice(..body.len() / 2);
            let steps = if how == Break::Stall { vec![last] } else { vec![Step::Send(half), last] };
            let mut response = json_response(StatusCode::OK, run(steps, pace, guard, Outcome::Faulted));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            response
        }
    }
}

fn streamed(frame: &Frame<'_>, include_usage: bool, fault: Option<Breaking>, pace: Timing, guard: Guard) -> Response {
    let steps = frame.steps(include_usage);
    let (steps, outcome) = match fault {
        Some(breaking) => (broken(steps, breaking), Outcome::Faulted),
        None => (steps, Outcome::Completed),
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    (headers, run(steps, pace, guard, outcome)).into_response()
}

/// A stream under way.
struct Run {
    steps: IntoIter<Step>,
    pace: Timing,
    guard: Guard,
    /// What it is when its steps are done.
    outcome: Outcome,
    is_first: bool,
}

fn run(steps: Vec<Step>, pace: Timing, guard: Guard, outcome: Outcome) -> Body {
    let run = Run { steps: steps.into_iter(), pace, guard, outcome, is_first: true };
    Body::from_stream(stream::unfold(run, |mut run| async move { run.step().await.map(|step| (step, run)) }))
}

impl Run {
    async fn step(&mut self) -> Option<io::Result<Bytes>> {
        let ended = |reason| Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason)));
        let Some(step) = self.steps.next() else {
            self.guard.outcome = self.outcome;
            return None;
        };
        // The role comes with the first token, not before it.
        if (std::mem::take(&mut self.is_first) || matches!(step, Step::Token(_)))
            && !self.guard.wait(self.pace.due).await
        {
            return ended("the simulator stops");
        }
        match step {
            Step::Send(bytes) => Some(Ok(bytes)),
            Step::Token(bytes) => {
                self.pace.advance();
                Some(Ok(bytes))
            }
            Step::Cut => {
                // Lets the server flush what it has, which an error would throw away.
                tokio::task::yield_now().await;
                self.guard.outcome = self.outcome;
                ended("cut on purpose")
            }
            Step::Stall => {
                self.guard.outcome = self.outcome;
                self.guard.app.stop.cancelled().await;
                ended("the simulator stops")
            }
        }
    }
}

/// When the next token is due.
struct Timing {
    pace: Pace,
    due: Instant,
    random: Random,
}

impl Timing {
    fn new(pace: Pace, random: Random) -> Self {
        Self { pace, due: Instant::now() + pace.ttft, random }
    }

    fn advance(&mut self) {
        if self.pace.between_tokens.is_zero() {
            return;
        }
        let percent = u64::from(self.pace.jitter_percent);
        let factor = (100 - percent) + self.random.below(2 * percent + 1);
        self.due += Duration::from_nanos((self.pace.between_tokens.as_nanos() as u64).saturating_mul(factor) / 100);
    }
}

/// Counts how a request ended, whatever ended it.
struct Guard {
    app: Arc<App>,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Completed,
    Faulted,
    Cancelled,
}

impl Guard {
    /// Waits until `due`; false when the simulator stops before.
    async fn wait(&self, due: Instant) -> bool {
        if due <= Instant::now() {
            return true;
        }
        tokio::select! {
            () = sleep_until(due) => true,
            () = self.app.stop.cancelled() => false,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let counters = &self.app.counters;
        let counter: &AtomicU64 = match self.outcome {
            Outcome::Completed => &counters.completed,
            Outcome::Faulted => &counters.faulted,
            Outcome::Cancelled => &counters.cancelled,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

fn json_response(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

fn refusal(status: StatusCode, message: &str, param: Option<&str>, code: Option<&str>) -> Response {
    json_response(status, error_body(message, "invalid_request_error", param, code))
}

/// The error answer of a fault, as OpenAI words it.
fn on_purpose(status: u16, retry_after_s: Option<u32>) -> Response {
    let (message, kind, code) = match status {
        401 => ("Incorrect API key provided.", "invalid_request_error", Some("invalid_api_key")),
        404 => (
            "The model does not exist or you do not have access to it.",
            "invalid_request_error",
            Some("model_not_found"),
        ),
        429 => ("Rate limit reached for requests.", "requests", Some("rate_limit_exceeded")),
        400..=499 => ("The request was refused on purpose.", "invalid_request_error", None),
        _ => (SERVER_ERROR, "server_error", None),
    };
    let status_code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status_code, error_body(message, kind, None, code));
    let by_default = (status == 429 || status == 503).then_some(1);
    if let Some(seconds) = retry_after_s.or(by_default) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The error answer of a provider, with another wait than it documents where one is given.
fn documented(error: &Documented, retry_after_s: Option<u32>) -> Response {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, error.body);
    for (name, value) in error.headers {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Some(seconds) = retry_after_s {
        response.headers_mut().remove("retry-after-ms");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Names of the catalogue's models, with who made them.
fn catalogue() -> Vec<(String, String)> {
    let text = |model: &toml::Value, key: &str| model.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let catalogue: Option<toml::Value> = toml::from_str(CATALOGUE).ok();
    let models = catalogue.as_ref().and_then(|catalogue| catalogue.get("models")?.as_array()).map_or(&[][..], |m| m);
    models.iter().filter_map(|model| Some((text(model, "name")?, text(model, "owned_by")?))).collect()
}

fn model_object(id: &str, owned_by: &str) -> Value {
    json!({ "id": id, "object": "model", "created": CREATED, "owned_by": owned_by })
}

async fn models() -> Response {
    let models: Vec<_> = catalogue().iter().map(|(id, owned_by)| model_object(id, owned_by)).collect();
    json_response(StatusCode::OK, json!({ "object": "list", "data": models }).to_string())
}

async fn model(Path(id): Path<String>) -> Response {
    let owned_by = catalogue().into_iter().find(|(known, _)| *known == id).map(|(_, owned_by)| owned_by);
    json_response(StatusCode::OK, model_object(&id, owned_by.as_deref().unwrap_or("simulator")).to_string())
}

async fn behavior(State(app): State<Arc<App>>) -> axum::Json<Behavior> {
    axum::Json(app.behavior.load().as_ref().clone())
}

/// Changes the behavior; what is left out goes back to what the simulator was started with.
async fn change_behavior(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let changed = (|| {
        let changes: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        let changes = changes.as_object().ok_or("expected a JSON object")?;
        let mut all = serde_json::to_value(&app.initial).map_err(|e| e.to_string())?;
        if let Some(members) = all.as_object_mut() {
            members.extend(changes.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        serde_json::from_value::<Behavior>(all).map_err(|e| e.to_string())
    })();
    match changed {
        Ok(behavior) => {
            app.behavior.store(Arc::new(behavior.clone()));
            axum::Json(behavior).into_response()
        }
        Err(problem) => refusal(StatusCode::BAD_REQUEST, &problem, None, None),
    }
}

async fn stats(State(app): State<Arc<App>>) -> axum::Json<Stats> {
    axum::Json(app.counters.read())
}
