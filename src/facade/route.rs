//! `POST /v1/route`: which models a chat request would be answered by, and why, without calling anyone. What an owner alone
//! knows is not in it: whether limits and money are left, and how the deployments do.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::error::{self, Refusal, X_REQUEST_ID, value};
use super::routes::App;
use super::{chat, request};
use crate::control::document::CHAT_SCOPE;
use crate::domain::RequestId;
use crate::processor::content::{self, Content};
use crate::processor::health::Health;
use crate::processor::intent::{Builtin, Classifier as _};
use crate::processor::refusal;
use crate::processor::router::{self, Asked, Under};
use crate::records::journal::Features;
use crate::records::responses::ApiError;
use crate::runtime::clock;

/// Answers with the route.
pub async fn route(State(app): State<Arc<App>>, http: Request) -> Response {
    let id = request::request_id(http.headers());
    let (parts, body) = http.into_parts();
    let mut body = body.into_data_stream();
    match decide(&app, &id, &parts, &mut body).await {
        Ok(route) => {
            let mut response = Response::new(Body::from(route.to_string()));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(X_REQUEST_ID, value(id.as_str()));
            response
        }
        Err(refusal) => {
            chat::drain(&parts.headers, &mut body, app.body_times.prompt).await;
            error::response(&refusal, &id)
        }
    }
}

async fn decide(
    app: &App,
    id: &RequestId,
    parts: &Parts,
    body: &mut axum::body::BodyDataStream,
) -> Result<Value, ApiError> {
    let tables = (app.control)();
    let caller = app.caller(&tables, parts, CHAT_SCOPE)?;
    let headers = request::headers(&parts.headers)?;
    let mut permit = app.hub.admit()?;
    let body = chat::read_body(app, &mut permit, &parts.headers, body).await?;
    let asked = request::read(&body)?;
    let organization = caller.organization(&tables, headers.organization, asked.organization)?;
    let (model, user_tier) = (asked.model, asked.user_tier);
    let tags = request::merge_tags(headers.tags, asked.tags);
    let reads = tables.policy(model.as_str()).is_some_and(|(_, policy)| policy.value.reads_content());
    // Its tokens are counted, which takes milliseconds for a long one.
    let read = tokio::task::spawn_blocking(move || {
        let mut content = content::read(&body)?;
        if reads {
            content.classify(&Builtin::new());
        }
        Ok::<Content, content::Error>(content)
    });
    let unread = |_| ApiError::from(Refusal::BodyUnreadable);
    let content = read.await.map_err(unread)?.map_err(|error| refusal::invalid_request(error.to_string()))?;
    let terms = tables.terms(&organization, Some(&caller.key_id));
    let terms = terms.ok_or_else(|| refusal::unknown_organization(organization.as_str()))?;
    let under = Under { control: &tables, terms: &terms, at: clock::now(), health: Health::Unknown };
    let features = &content.features;
    let asked = Asked { model: &model, request_id: id, features, user_tier: user_tier.as_deref(), tags: &tags };
    let route = router::route(&under, &asked).map_err(|refusal| refusal.error)?;
    Ok(shown(&route, features))
}

/// A route, for people and programs.
pub fn shown(route: &router::Route, features: &Features) -> Value {
    let candidates = route.routed.candidates.iter();
    let candidates: Vec<Value> =
        candidates.map(|of| json!({ "model": of.model, "deployment": of.deployment, "tier": of.tier })).collect();
    let first = route.routed.candidates.first();
    let (policy, version) = route.policy.as_ref().map(|(name, version)| (name, version)).unzip();
    json!({
        "object": "route",
        "model": first.map(|of| &of.model),
        "deployment": first.map(|of| &of.deployment),
        "tier": route.tier,
        "policy": policy,
        "policy_version": version,
        "tiering": route.routed.tiering,
        "likelihoods_permille": features.likelihoods,
        "measures": features.measures,
        "classifier": features.measures.map(|_| Builtin::new().version().to_owned()),
        "input_tokens": features.input_tokens,
        "max_attempts": route.routed.max_attempts,
        "candidates": candidates,
        "reasons": route.routed.reasons,
    })
}
