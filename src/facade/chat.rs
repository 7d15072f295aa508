//! `POST /v1/chat/completions`, from the key to the first frame.

use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::answer::Answer;
use super::error::{self, Refusal};
use super::hub::{Asking, OnDisconnect};
use super::listener::Permit;
use super::respond::{outcome_of, respond};
use super::routes::App;
use super::{again, request, trace};
use crate::config::millis;
use crate::control::document::CHAT_SCOPE;
use crate::domain::RequestId;
use crate::records::Origin;
use crate::records::requests::Chat;
use crate::records::responses::ApiError;
use crate::telemetry::trace::Span;

/// How long a client may take to send its body.
#[derive(Debug, Clone, Copy)]
pub struct BodyTimes {
    /// Afterwards the request needs one of the places for slow bodies.
    pub prompt: Duration,
    /// Without a byte, once it is slow.
    pub idle: Duration,
    /// In all.
    pub whole: Duration,
}

impl BodyTimes {
    pub const DEFAULT: Self =
        Self { prompt: Duration::from_secs(1), idle: Duration::from_secs(10), whole: Duration::from_secs(60) };
}

pub async fn complete(State(app): State<Arc<App>>, http: Request) -> Response {
    let began = Instant::now();
    let mut id = request::request_id(http.headers());
    let mut span = app.traces.request("POST /v1/chat/completions", http.headers());
    let (parts, body) = http.into_parts();
    let mut body = body.into_data_stream();
    let (answer, stream) = match ask(&app, &mut id, &parts, &mut body, &span).await {
        Ok(asked) => asked,
        Err(refusal) => {
            drain(&parts.headers, &mut body, app.body_times.prompt).await;
            let error = ApiError::from(refusal);
            app.hub.metrics().failed(&error.code);
            app.hub.metrics().ended(outcome_of(&error), began.elapsed());
            let response = error::response(&error, &id);
            trace::failed(&mut span, &error);
            trace::ended(&mut span, outcome_of(&error), response.status());
            return response;
        }
    };
    respond(&app, &id, answer.of(began, span), stream).await
}

/// Lets the request in and sends it on its way. With an `Idempotency-Key` its id comes from that.
async fn ask(
    app: &App,
    id: &mut RequestId,
    parts: &Parts,
    body: &mut BodyDataStream,
    span: &Span,
) -> Result<(Answer, bool), Refusal> {
    let tables = (app.control)();
    let caller = app.caller(&tables, parts, CHAT_SCOPE)?;
    let headers = request::headers(&parts.headers)?;
    let key = again::idempotency_key(&parts.headers)?;
    let resume = again::resume(&parts.headers, millis(app.config.resume_max_ms))?;
    let mut permit = app.hub.admit()?;
    let body = read_body(app, &mut permit, &parts.headers, body).await?;
    let asked = request::read(&body)?;
    let organization = caller.organization(&tables, headers.organization, asked.organization)?;

    if let Some(key) = key {
        *id = again::request_id(&organization, key);
    }
    let timeout = headers.timeout.unwrap_or(millis(app.config.timeout_ms));
    let (stream, sending) = (asked.stream, app.traces.send(span, id, &organization));
    let chat = Chat {
        request_id: id.clone(),
        organization,
        lane: 0,
        key_id: Some(caller.key_id),
        user: asked.user,
        user_tier: asked.user_tier,
        tags: request::merge_tags(headers.tags, asked.tags),
        conversation_id: headers.conversation_id,
        model: Some(asked.model),
        timeout_ms: i64::try_from(timeout.as_millis()).ok(),
        reply_partition: None,
        reply_nonce: None,
        origin: Origin::Live,
        traceparent: sending.traceparent().or(headers.traceparent),
        content_type: "application/json".to_owned(),
        encryption_key_id: None,
        content_ref: None,
        cache_control: headers.cache_control,
        body: body.clone(),
    };
    let asking = Asking { stream, idempotent: key.is_some(), on_disconnect: on_disconnect(key.is_some(), resume) };
    let listener = app.hub.ask(permit, Box::new(chat), asking)?;
    drop(sending);
    let keep_alive = millis(app.config.keep_alive_ms);
    Ok((Answer::new(listener, app.hub.metrics().clone(), timeout + app.deadline_grace, keep_alive), stream))
}

/// Who asks with an `Idempotency-Key` means to ask again: without another word the request goes on to its end.
fn on_disconnect(idempotent: bool, resume: Option<Duration>) -> OnDisconnect {
    match resume {
        Some(Duration::ZERO) => OnDisconnect::Cancel,
        Some(time) => OnDisconnect::KeepFor(time),
        None if idempotent => OnDisconnect::Keep,
        None => OnDisconnect::Cancel,
    }
}

/// Reads the body, within the bounds of one request and of all together.
pub(super) async fn read_body(
    app: &App,
    permit: &mut Permit,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<Bytes, Refusal> {
    let (max, times) = (app.config.body_bytes_max, app.body_times);
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > max) {
        return Err(Refusal::BodyTooLarge { max });
    }
    let read = tokio::time::timeout(times.whole, collect(permit, body, (length, max), times));
    read.await.map_err(|_| Refusal::BodyTimeout { seconds: times.whole.as_secs() })?
}

async fn collect(
    permit: &mut Permit,
    pieces: &mut BodyDataStream,
    (length, max): (Option<usize>, usize),
    times: BodyTimes,
) -> Result<Bytes, Refusal> {
    let prompt_until = Instant::now() + times.prompt;
    let mut all = BytesMut::new();
    loop {
        let piece = match tokio::time::timeout_at(prompt_until, pieces.next()).await {
            Ok(piece) => piece,
            Err(_) => {
                permit.take_slow_place()?;
                let waited = tokio::time::timeout(times.idle, pieces.next()).await;
                waited.map_err(|_| Refusal::BodyTimeout { seconds: times.idle.as_secs() })?
            }
        };
        let Some(piece) = piece else { return Ok(all.freeze()) };
        let piece = piece.map_err(|_| Refusal::BodyUnreadable)?;
        // What is announced takes no room, what has come does: who announces much and sends nothing holds nobody up.
        permit.take_body(piece.len())?;
        // Most bodies come in one piece, which needs no copy.
        if all.is_empty() && length == Some(piece.len()) {
            return Ok(piece);
        }
        if all.len() + piece.len() > max {
            return Err(Refusal::BodyTooLarge { max });
        }
        all.extend_from_slice(&piece);
    }
}

/// Throws away what a refused client is still sending, for a moment: closing the connection under it would show it a
/// broken connection instead of the refusal.
pub(super) async fn drain(headers: &HeaderMap, body: &mut BodyDataStream, most: Duration) {
    // One that waits to be asked for its body is not asked.
    if !headers.contains_key(header::EXPECT) {
        let _ = tokio::time::timeout(most, async { while let Some(Ok(_)) = body.next().await {} }).await;
    }
}
