//! `/admin/v1`: control over HTTP, for operators, on the admin listener. The verbs are those of the command line
//! (`control::edit`), the shape of errors is OpenAI's. No key, no hash and no body is ever logged here.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, patch, post};
use serde_json::{Value, json};

use super::admin::Shared;
use super::authenticate;
use super::error::{self, Refusal, X_REQUEST_ID, value};
use super::guard::Guard;
use super::purges::{self, Purges};
use super::request;
use super::routes::Route;
use super::server::ClientAddress;
use super::statements::Statements;
use super::usage::{self, Usage};
use crate::config::AdminKey;
use crate::control::Tables;
use crate::control::document::{self, ADMIN_SCOPE, Object};
use crate::control::edit::{self, Edit, VERSION};
use crate::domain::{OrganizationId, Timestamp};
use crate::processor::health::Deployments;
use crate::processor::ledger::Balance;
use crate::records::control::{Entity, EntityKind};
use crate::records::responses::ApiError;
use crate::runtime::clock;
use crate::runtime::control::Control;
use crate::runtime::control_writer::{self, ControlWriter, Written};
use crate::topology::keys;

/// Largest body: a model with many deployments is a few tens of KiB.
const BODY_BYTES_MAX: usize = 256 << 10;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Entities on a page: without a word about it, and at the most.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;
/// How long an answer waits until this process itself sees the change.
const SEEN_TIMEOUT: Duration = Duration::from_secs(1);
/// Who changes control with the key of the environment, as its records say.
const BOOTSTRAP: &str = "bootstrap admin key";

const OPENAPI: &str = include_str!("openapi-admin.json");

/// What operators work with.
pub struct Operators {
    pub control: Control,
    pub writer: ControlWriter,
    pub statements: Statements,
    pub purges: Purges,
    pub usage: Arc<Usage>,
    /// How the deployments do, as this process knows from its own calls.
    pub deployments: Deployments,
    /// The key of the environment.
    pub key: Option<AdminKey>,
    pub guard: Guard,
}

pub const ROUTES: [Route<Arc<Shared>>; 12] = [
    Route::new("get", "/admin/v1/openapi.json", || get(openapi)),
    Route::new("get", "/admin/v1/providers", || get(providers)),
    Route::new("get", "/admin/v1/usage", || get(usage::of_operator)),
    Route::new("post", "/admin/v1/cache/purge", || post(purge)),
    Route::new("get", "/admin/v1/{kind}", || get(list)),
    Route::new("post", "/admin/v1/{kind}", || post(create)),
    Route::new("get", "/admin/v1/{kind}/{id}", || get(one)),
    Route::new("patch", "/admin/v1/{kind}/{id}", || patch(update)),
    Route::new("delete", "/admin/v1/{kind}/{id}", || delete(remove)),
    Route::new("get", "/admin/v1/{kind}/{id}/history", || get(history)),
    Route::new("get", "/admin/v1/{kind}/{id}/balance", || get(balance)),
    Route::new("post", "/admin/v1/{kind}/{id}/revoke", || post(revoke)),
];

/// What is answered: a status, a body, and the version of what it shows.
type Answer = Result<(StatusCode, Value, Option<i64>), Refusal>;

impl Operators {
    /// Whether the request comes from an operator, and who that is.
    pub(super) fn operator(&self, parts: &Parts) -> Result<String, Refusal> {
        let from = parts.extensions.get::<ClientAddress>().copied();
        self.guard.admit(from)?;
        self.guard.judge(from, self.known(parts))
    }

    fn known(&self, parts: &Parts) -> Result<String, Refusal> {
        let query = parts.uri.query();
        if query.is_some_and(authenticate::has_key) {
            return Err(Refusal::KeyInQuery);
        }
        if !self.control.is_current() {
            return Err(Refusal::NotReady { missing: "it has not read control yet" });
        }
        let secret = authenticate::secret(&parts.headers).ok_or(Refusal::NoKey)?;
        if self.key.as_ref().is_some_and(|key| key.is(secret)) {
            return Ok(BOOTSTRAP.to_owned());
        }
        let tables = self.control.tables();
        let found = authenticate::caller(&tables, &parts.headers, query, ADMIN_SCOPE, clock::now());
        match found {
            Ok(caller) => Ok(format!("key {}", caller.key_id)),
            Err(Refusal::UnknownKey | Refusal::HashAsKey) if self.key.is_none() && !has_admin(&tables) => {
                Err(Refusal::NoAdminKey)
            }
            Err(refusal) => Err(refusal),
        }
    }

    async fn write(&self, edit: Edit, actor: &str) -> Result<Written, Refusal> {
        let named = match &edit {
            Edit::Update { version, .. } | Edit::Revoke { version, .. } | Edit::Delete { version, .. } => {
                version.is_some()
            }
            Edit::Create { .. } => false,
        };
        let written = self.writer.write(edit, actor).await.map_err(|error| match error {
            control_writer::Error::Refused(refusal @ edit::Refusal::Conflict { .. }) if named => {
                Refusal::VersionMismatch(refusal)
            }
            control_writer::Error::Refused(refusal) => Refusal::Edit(refusal),
            error => unavailable(&error),
        })?;
        // Who looks at once sees it. Elsewhere it holds within a second.
        let _ = tokio::time::timeout(SEEN_TIMEOUT, self.control.reached(written.version)).await;
        Ok(written)
    }
}

fn unavailable(error: &control_writer::Error) -> Refusal {
    tracing::warn!(%error, "control could not be changed or read");
    Refusal::ControlUnavailable { detail: error.to_string() }
}

fn has_admin(tables: &Tables) -> bool {
    tables.keys().any(|(_, key)| key.value.active && key.value.scopes.iter().any(|scope| scope == ADMIN_SCOPE))
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

async fn providers(State(shared): State<Arc<Shared>>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        shared.operators.operator(&parts)?;
        let board = shared.operators.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((StatusCode::OK, json!({ "object": "list", "data": board.reports(clock::now()) }), None))
    };
    respond(&parts.headers, answer.await)
}

async fn list(State(shared): State<Arc<Shared>>, Path(kind): Path<String>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        shared.operators.operator(&parts)?;
        page(&shared.operators.control.tables(), kind_of(&kind)?, parts.uri.query().unwrap_or_default())
    };
    respond(&parts.headers, answer.await)
}

fn page(tables: &Tables, kind: EntityKind, query: &str) -> Answer {
    let (mut limit, mut after) = (PAGE_DEFAULT, None);
    for (name, text) in form_urlencoded(query) {
        match name.as_str() {
            "limit" => {
                let number = text.parse::<usize>().ok().filter(|number| (1..=PAGE_MAX).contains(number));
                limit = number.ok_or_else(|| Refusal::InvalidField {
                    param: "limit",
                    problem: format!("give 1 to {PAGE_MAX}"),
                })?;
            }
            "after" => after = Some(text),
            _ => {
                return Err(Refusal::InvalidField {
                    param: "query",
                    problem: format!("{name:?} is not known; known are limit and after"),
                });
            }
        }
    }
    let behind = tables.ids(kind).filter(|(id, _)| after.as_deref().is_none_or(|after| *id > after));
    let mut shown: Vec<Value> = behind
        .take(limit + 1)
        .filter_map(|(id, version)| Some(shown(id, &tables.entity(kind, id)?, version)))
        .collect();
    let has_more = shown.len() > limit;
    shown.truncate(limit);
    Ok((StatusCode::OK, json!({ "object": "list", "data": shown, "has_more": has_more }), None))
}

/// The pairs of a query, decoded.
pub(super) fn form_urlencoded(query: &str) -> Vec<(String, String)> {
    reqwest::Url::parse(&format!("http://query/?{query}"))
        .map(|url| url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
        .unwrap_or_default()
}

async fn one(State(shared): State<Arc<Shared>>, Path(path): Path<(String, String)>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        shared.operators.operator(&parts)?;
        let (kind, id) = (kind_of(&path.0)?, path.1);
        let tables = shared.operators.control.tables();
        let entity = tables.entity(kind, &id).ok_or_else(|| not_found(kind, &id))?;
        let version = tables.version_of(kind, &id);
        Ok((StatusCode::OK, shown(&id, &entity, version), Some(version)))
    };
    respond(&parts.headers, answer.await)
}

async fn create(State(shared): State<Arc<Shared>>, Path(kind): Path<String>, http: Request) -> Response {
    let (parts, body) = http.into_parts();
    let answer = async {
        let actor = shared.operators.operator(&parts)?;
        let (kind, document) = (kind_of(&kind)?, object(&parts.headers, body).await?);
        let (edit, secret) = match kind {
            EntityKind::Key => {
                let made = keys::creation(document, clock::now()).map_err(|_| Refusal::Internal)?;
                (made.0, Some(made.1))
            }
            kind => (Edit::Create { kind, document, key: None }, None),
        };
        let written = shared.operators.write(edit, &actor).await?;
        let (_, mut shown, version) = outcome(written);
        if let (Some(secret), Value::Object(shown)) = (secret, &mut shown) {
            shown.insert("secret".to_owned(), Value::from(secret.expose()));
        }
        Ok((StatusCode::CREATED, shown, version))
    };
    respond(&parts.headers, answer.await)
}

async fn update(State(shared): State<Arc<Shared>>, Path(path): Path<(String, String)>, http: Request) -> Response {
    let (parts, body) = http.into_parts();
    let answer = async {
        let actor = shared.operators.operator(&parts)?;
        let (kind, version) = (kind_of(&path.0)?, if_match(&parts.headers)?);
        let patch = object(&parts.headers, body).await?;
        let edit = Edit::Update { kind, id: path.1, patch, version };
        Ok(outcome(shared.operators.write(edit, &actor).await?))
    };
    respond(&parts.headers, answer.await)
}

async fn remove(State(shared): State<Arc<Shared>>, Path(path): Path<(String, String)>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        let actor = shared.operators.operator(&parts)?;
        let edit = Edit::Delete { kind: kind_of(&path.0)?, id: path.1, version: if_match(&parts.headers)? };
        Ok(outcome(shared.operators.write(edit, &actor).await?))
    };
    respond(&parts.headers, answer.await)
}

async fn revoke(State(shared): State<Arc<Shared>>, Path(path): Path<(String, String)>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        let actor = shared.operators.operator(&parts)?;
        if kind_of(&path.0)? != EntityKind::Key {
            return Err(Refusal::UnknownUrl);
        }
        let edit = Edit::Revoke { id: path.1, version: if_match(&parts.headers)? };
        Ok(outcome(shared.operators.write(edit, &actor).await?))
    };
    respond(&parts.headers, answer.await)
}

async fn history(State(shared): State<Arc<Shared>>, Path(path): Path<(String, String)>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        shared.operators.operator(&parts)?;
        let (kind, id) = (kind_of(&path.0)?, path.1);
        let entries = shared.operators.writer.history(kind, &id).await.map_err(|error| unavailable(&error))?;
        if entries.is_empty() {
            return Err(not_found(kind, &id));
        }
        Ok((StatusCode::OK, json!({ "object": "list", "data": entries, "has_more": false }), None))
    };
    respond(&parts.headers, answer.await)
}

async fn purge(State(shared): State<Arc<Shared>>, http: Request) -> Response {
    let (parts, body) = http.into_parts();
    let answer = async {
        let operators = &shared.operators;
        let actor = operators.operator(&parts)?;
        let wanted = purges::wanted(&object(&parts.headers, body).await?, clock::now())?;
        let organization = wanted.organization.clone();
        let purged = operators.purges.purge(wanted, &operators.statements, operators.control.tables()).await?;
        tracing::info!(organization.id = %organization, answers = purged.answers, actor, "answers are forgotten");
        let status = if purged.answers.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok((status, purges::shown(&organization, purged), None))
    };
    respond(&parts.headers, answer.await)
}

async fn balance(State(shared): State<Arc<Shared>>, Path(path): Path<(String, String)>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let answer = async {
        shared.operators.operator(&parts)?;
        if kind_of(&path.0)? != EntityKind::Organization {
            return Err(Refusal::UnknownUrl);
        }
        let at = moment(parts.uri.query().unwrap_or_default())?;
        let missing = || not_found(EntityKind::Organization, &path.1);
        let organization = OrganizationId::parse(&path.1).map_err(|_| missing())?;
        let tables = shared.operators.control.tables();
        let statement = shared.operators.statements.of(&organization, at, tables).await?;
        let is_known = statement.tables.organization(&organization).is_some();
        if !is_known && statement.state.ledger.books(&organization).balance() == Balance::default() {
            return Err(missing());
        }
        Ok((StatusCode::OK, statement.describe(&organization), None))
    };
    respond(&parts.headers, answer.await)
}

/// The moment that a query names, if it does.
fn moment(query: &str) -> Result<Option<Timestamp>, Refusal> {
    let invalid = |param, problem: &str| Refusal::InvalidField { param, problem: problem.to_owned() };
    let mut at = None;
    for (name, text) in form_urlencoded(query) {
        match name.as_str() {
            "at" => {
                let parsed = text.parse::<Timestamp>().map_err(|error| invalid("at", &error.to_string()))?;
                if parsed > clock::now() {
                    return Err(invalid("at", "give a moment that is over"));
                }
                at = Some(parsed);
            }
            _ => return Err(invalid("query", &format!("{name:?} is not known; known is at"))),
        }
    }
    Ok(at)
}

fn kind_of(plural: &str) -> Result<EntityKind, Refusal> {
    EntityKind::of_plural(plural).ok_or(Refusal::UnknownUrl)
}

fn not_found(kind: EntityKind, id: &str) -> Refusal {
    let id = id.chars().take(crate::domain::ids::ID_BYTES_MAX).collect();
    Refusal::Edit(edit::Refusal::NotFound { kind, id })
}

/// There is no such organization.
pub(super) fn no_organization(id: &str) -> Refusal {
    not_found(EntityKind::Organization, id)
}

/// The document with its kind and version.
fn shown(id: &str, entity: &Entity, version: i64) -> Value {
    let mut whole = Object::new();
    whole.insert("object".to_owned(), Value::from(entity.kind().name()));
    whole.insert(VERSION.to_owned(), Value::from(version));
    whole.extend(document::show(id, entity));
    Value::Object(whole)
}

fn outcome(written: Written) -> (StatusCode, Value, Option<i64>) {
    let (id, version) = (written.id.as_str(), written.version);
    let mut value = match &written.entity {
        Some(entity) => shown(id, entity, version),
        None => json!({ "object": written.kind.name(), "id": id, "deleted": true, "version": version }),
    };
    if let (false, Value::Object(value)) = (written.broken.is_empty(), &mut value) {
        value.insert("warnings".to_owned(), written.broken.iter().map(ToString::to_string).collect());
    }
    (StatusCode::OK, value, written.entity.is_some().then_some(version))
}

/// The version that the operator saw.
fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Refusal> {
    let Some(given) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = given.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text).parse();
    let invalid = || Refusal::InvalidHeader {
        name: "If-Match",
        problem: "give the ETag of what you saw, for example \"12\"".to_owned(),
    };
    number.map(Some).map_err(|_| invalid())
}

async fn object(headers: &HeaderMap, body: Body) -> Result<Object, Refusal> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(Refusal::BodyTooLarge { max: BODY_BYTES_MAX });
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let read = read.map_err(|_| Refusal::BodyTimeout { seconds: BODY_TIMEOUT.as_secs() })?;
    // Whether it was too large or broken off, its length has not told.
    let bytes = read.map_err(|_| Refusal::BodyTooLarge { max: BODY_BYTES_MAX })?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::InvalidJson { detail: error.to_string() })
}

fn respond(headers: &HeaderMap, answer: Answer) -> Response {
    let id = request::request_id(headers);
    let (status, shown, version) = match answer {
        Ok(answer) => answer,
        Err(refusal) => return error::response(&ApiError::from(refusal), &id),
    };
    let mut response = Response::new(Body::from(shown.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, value(id.as_str()));
    if let Some(version) = version {
        headers.insert(header::ETAG, value(&format!("\"{version}\"")));
    }
    response
}
