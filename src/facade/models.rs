//! `GET /v1/models` and `/v1/models/{id}`: what clients may ask for, from the control log.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

use super::error::{self, Refusal, X_REQUEST_ID, value};
use super::request;
use super::routes::{App, PathId, named};
use crate::control::Tables;
use crate::control::document::MODELS_SCOPE;
use crate::domain::ModelName;
use crate::records::control;
use crate::records::responses::ApiError;

/// The model that stands for a choice of the gateway, and the policy that makes it.
const AUTO: &str = "auto";

/// OpenAI's model object, and what else the catalogue knows.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    owned_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_window: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<&'a [String]>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

impl<'a> Model<'a> {
    fn of(name: &'a ModelName, model: &'a control::Model) -> Self {
        Self {
            id: name.as_str(),
            object: "model",
            created: model.created_at.as_millis() / 1_000,
            owned_by: &model.owned_by,
            tier: Some(model.tier),
            context_window: Some(model.context_window),
            max_output_tokens: Some(model.max_output_tokens),
            capabilities: Some(&model.capabilities),
        }
    }

    fn auto(tables: &Tables) -> Option<Self> {
        tables.policy(AUTO).map(|_| Self {
            id: AUTO,
            object: "model",
            created: 0,
            owned_by: "tollstream",
            tier: None,
            context_window: None,
            max_output_tokens: None,
            capabilities: None,
        })
    }
}

pub async fn list(State(app): State<Arc<App>>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let tables = (app.control)();
    let listed = app.caller(&tables, &parts, MODELS_SCOPE).map(|_| {
        let models = tables.models().map(|(name, model)| Model::of(name, &model.value));
        List { object: "list", data: Model::auto(&tables).into_iter().chain(models).collect() }
    });
    respond(&parts.headers, listed)
}

pub async fn one(State(app): State<Arc<App>>, id: PathId, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let id = named(id);
    let tables = (app.control)();
    let found = app.caller(&tables, &parts, MODELS_SCOPE).and_then(|_| find(&tables, &id));
    respond(&parts.headers, found)
}

/// The model of this name or alias.
fn find<'a>(tables: &'a Tables, id: &str) -> Result<Model<'a>, Refusal> {
    if id == AUTO {
        return Model::auto(tables).ok_or_else(|| error::unknown_model(id));
    }
    let name = ModelName::parse(id).map_err(|_| error::unknown_model(id))?;
    let (name, model) = tables.model(&name).ok_or_else(|| error::unknown_model(id))?;
    Ok(Model::of(name, &model.value))
}

fn respond<T: Serialize>(headers: &HeaderMap, result: Result<T, Refusal>) -> Response {
    let id = request::request_id(headers);
    let written = result.and_then(|object| serde_json::to_vec(&object).map_err(|_| Refusal::Internal));
    match written {
        Ok(json) => {
            let mut response = Response::new(Body::from(json));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(X_REQUEST_ID, value(id.as_str()));
            response
        }
        Err(refusal) => error::response(&ApiError::from(refusal), &id),
    }
}
