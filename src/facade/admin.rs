//! The admin listener, on an address of its own: health and metrics, and control for operators (`operators`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::operators::{self, Operators};
use super::routes::{Route, router};
use super::{Error, server};
use crate::telemetry::Metrics;
use crate::telemetry::health::{self, Health};

/// Scrapers and probes keep few connections.
const LIMITS: server::Limits = server::Limits { connections_max: 256, stalled_max: Duration::from_secs(60) };
/// How long answers under way may take when the listener ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Options {
    pub listener: TcpListener,
    pub health: Health,
    pub metrics: Metrics,
    pub operators: Operators,
}

/// The running admin listener; dropping it ends it.
pub struct Admin {
    address: SocketAddr,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

pub struct Shared {
    health: Health,
    metrics: Metrics,
    pub(super) operators: Operators,
}

pub const ROUTES: [Route<Arc<Shared>>; 3] = [
    Route::new("get", "/health/live", || get(live)),
    Route::new("get", "/health/ready", || get(ready)),
    Route::new("get", "/metrics", || get(metrics)),
];

impl Admin {
    pub fn start(options: Options) -> Result<Self, Error> {
        let address = options.listener.local_addr().map_err(Error::Listener)?;
        let Options { listener, health, metrics, operators } = options;
        let routes = ROUTES.iter().chain(&operators::ROUTES);
        let router = router(routes, Arc::new(Shared { health, metrics, operators }));
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(server::serve(listener, router, LIMITS, stop.clone()));
        tracing::info!(%address, "admin listens");
        Ok(Self { address, tasks, stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it; to be called last, so that a process can be watched while it stops.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.tasks.join_next()).await;
    }
}

#[derive(Serialize)]
struct Readiness<'a> {
    status: &'static str,
    /// What is missing, by name, and why.
    missing: BTreeMap<&'static str, &'a str>,
    /// What is behind without anybody's answer suffering, by name, and why.
    degraded: BTreeMap<&'static str, &'a str>,
}

/// `/health/live`: the process answers.
pub async fn live() -> Response {
    json(StatusCode::OK, br#"{"status":"live"}"#.to_vec())
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    readiness(&shared.health)
}

/// `/health/ready`: 503 while something is missing that requests need.
pub fn readiness(health: &Health) -> Response {
    let components = health.components();
    let (mut missing, mut degraded) = (BTreeMap::new(), BTreeMap::new());
    for (name, state) in &components {
        match state {
            health::State::Ready => {}
            health::State::Degraded(why) => {
                degraded.insert(*name, why.as_str());
            }
            health::State::Missing(why) => {
                missing.insert(*name, why.as_str());
            }
        }
    }
    let (code, status) = match (missing.is_empty(), degraded.is_empty()) {
        (true, true) => (StatusCode::OK, "ready"),
        (true, false) => (StatusCode::OK, "degraded"),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    json(code, serde_json::to_vec(&Readiness { status, missing, degraded }).unwrap_or_default())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
