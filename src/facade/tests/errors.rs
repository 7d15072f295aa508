//! Every refusal of the facade itself.

use std::sync::atomic::Ordering;

use super::*;
use fixtures::{KEY, MODELS_KEY, PAUSED_KEY, SERVICE_KEY};
use tokio::io::AsyncReadExt as _;

const INVALID: &str = "invalid_request_error";
const PERMISSION: &str = "permission_error";
const SERVER: &str = "server_error";

#[tokio::test]
async fn what_is_not_well_formed_or_not_allowed_is_refused_and_sends_nothing() {
    let mut facade = Facade::start().await;
    let of_globex = r#"{"model":"m","messages":[1],"metadata":{"organization_id":"globex"}}"#;
    let of_dormant = r#"{"model":"m","messages":[1],"metadata":{"organization_id":"dormant"}}"#;
    let large = "x".repeat(10_001);
    let chat = |path: &str| facade.client.post(facade.url(path));
    let with = |key: &str, body: &str| chat("/v1/chat/completions").bearer_auth(key).body(body.to_owned());
    let table = [
        (chat("/v1/chat/completions").body(WHOLE), 401, "invalid_api_key", INVALID),
        (with("wrong", WHOLE), 401, "invalid_api_key", INVALID),
        (with(PAUSED_KEY, WHOLE), 401, "key_revoked", INVALID),
        (chat(&format!("/v1/chat/completions?api_key={KEY}")).body(WHOLE), 401, "invalid_api_key", INVALID),
        (with(KEY, of_globex), 403, "organization_not_covered", PERMISSION),
        (with(KEY, WHOLE).header("x-tollstream-organization", "globex"), 403, "organization_not_covered", PERMISSION),
        (with(SERVICE_KEY, of_dormant), 403, "organization_inactive", PERMISSION),
        (with(SERVICE_KEY, WHOLE), 400, "organization_required", INVALID),
        (
            with(SERVICE_KEY, of_globex).header("x-tollstream-organization", "acme"),
            400,
            "organization_conflict",
            INVALID,
        ),
        (with(KEY, ""), 400, "invalid_json", INVALID),
        (with(KEY, "{\"model\":"), 400, "invalid_json", INVALID),
        (with(KEY, "{}"), 400, "missing_required_parameter", INVALID),
        (with(KEY, r#"{"model":"m","messages":[]}"#), 400, "invalid_value", INVALID),
        (with(KEY, r#"{"model":"no such","messages":[1]}"#), 404, "model_not_found", INVALID),
        (with(KEY, WHOLE).header("x-tollstream-tags", "nonsense"), 400, "invalid_header", INVALID),
        (with(KEY, WHOLE).header("x-tollstream-timeout-ms", "0"), 400, "invalid_header", INVALID),
        (with(KEY, &large), 413, "request_too_large", INVALID),
        (chat("/v1/completions").bearer_auth(KEY), 404, "unknown_url", INVALID),
        (chat("/v1/models").bearer_auth(KEY), 405, "method_not_allowed", INVALID),
        (facade.client.get(facade.url("/ai/chat/completions")), 405, "method_not_allowed", INVALID),
        (facade.client.get(facade.url("/v1/models")), 401, "invalid_api_key", INVALID),
        (facade.client.get(facade.url("/v1/models/unknown")).bearer_auth(KEY), 404, "model_not_found", INVALID),
        (facade.client.get(facade.url("/v1/models/%ff")).bearer_auth(KEY), 404, "model_not_found", INVALID),
        (facade.client.get(facade.url("/v1/requests/%ff/events")).bearer_auth(KEY), 400, "invalid_value", INVALID),
        (facade.client.post(facade.url("/v1/requests/%ff/cancel")).bearer_auth(KEY), 400, "invalid_value", INVALID),
        (facade.client.post(facade.url("/v1/requests/%ff/cancel")), 401, "invalid_api_key", INVALID),
        (facade.client.get(facade.url("/v1/usage")), 401, "invalid_api_key", INVALID),
        (facade.client.get(facade.url("/v1/usage")).bearer_auth(MODELS_KEY), 403, "insufficient_scope", PERMISSION),
        (facade.client.get(facade.url("/v1/usage?group_by=team")).bearer_auth(KEY), 400, "invalid_value", INVALID),
        (
            facade.client.get(facade.url("/v1/usage")).bearer_auth(KEY).header("x-tollstream-organization", "globex"),
            403,
            "organization_not_covered",
            PERMISSION,
        ),
        (facade.client.get(facade.url("/v1/usage")).bearer_auth(SERVICE_KEY), 400, "organization_required", INVALID),
        (facade.client.get(facade.url("/ai/usage")).bearer_auth(KEY), 503, "usage_unavailable", SERVER),
    ];
    for (line, (request, status, code, r#type)) in table.into_iter().enumerate() {
        let error = error_of(request.send().await.unwrap()).await;
        assert_eq!(error, (status, code.to_owned(), r#type.to_owned()), "line {line}");
    }
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn a_body_of_unknown_length_is_bounded_too() {
    let facade = Facade::start().await;
    let pieces = futures_util::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1_000])));
    let response = facade.post(reqwest::Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(error_of(response).await.0, 413);
}

#[tokio::test]
async fn a_body_in_pieces_is_the_same_body() {
    let mut facade = Facade::start().await;
    let pieces = WHOLE.as_bytes().chunks(7).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let pieces = futures_util::stream::iter(pieces.collect::<Vec<_>>());
    let request = facade.post(reqwest::Body::wrap_stream(pieces));
    let (_response, asked) = facade.ask_with(request).await;
    assert_eq!(asked.chat.body, WHOLE);
}

#[tokio::test]
async fn the_clients_request_id_comes_back_also_with_errors() {
    let facade = Facade::start().await;
    for request in [facade.post("{}"), facade.client.get(facade.url("/v1/models")), facade.client.get(facade.url("/x"))]
    {
        let response = request.header("x-request-id", "mine-1").send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine-1");
    }
}

#[tokio::test]
async fn before_answers_can_be_heard_nothing_is_asked() {
    let facade = Facade::not_listening(config()).await;
    let response = facade.post(WHOLE).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(error_of(response).await, (503, "not_ready".into(), SERVER.into()));
}

#[tokio::test]
async fn too_many_requests_under_way_are_503() {
    let mut facade = Facade::with(config::Facade { requests_max: 1, ..config() }).await;
    let (first, asked) = facade.ask(WHOLE).await;
    let response = facade.post(WHOLE).send().await.unwrap();
    assert_eq!(error_of(response).await, (503, "overloaded".into(), SERVER.into()));
    facade.frame(&asked, fixtures::whole("{}"));
    assert_eq!(first.await.unwrap().text().await.unwrap(), "{}");
    // The place is free again.
    let (_second, _) = facade.ask(WHOLE).await;
}

#[tokio::test]
async fn a_full_producer_is_503_and_leaves_nothing_behind() {
    let mut facade = Facade::start().await;
    facade.full.store(true, Ordering::SeqCst);
    let request = || facade.post(WHOLE).header("x-request-id", "r-1");
    let response = request().send().await.unwrap();
    assert_eq!(response.headers()["retry-after-ms"], "1000");
    assert_eq!(error_of(response).await, (503, "overloaded".into(), SERVER.into()));
    facade.full.store(false, Ordering::SeqCst);
    let request = request();
    let (_response, asked) = facade.ask_with(request).await;
    assert_eq!(asked.chat.request_id.as_str(), "r-1");
}

/// The status that a connection is answered with.
async fn status_of(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
    String::from_utf8_lossy(&head[9..]).into_owned()
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_few_places_and_those_for_a_short_time() {
    let mut facade = Facade::with(config::Facade { requests_max: 8, ..config() }).await;
    let mut idle = Vec::new();
    for _ in 0..7 {
        idle.push(facade.promised("{").await);
    }
    // A quarter of the eight places waits on; the others are free after a moment, for those who send their bodies.
    let mut statuses = Vec::new();
    for stream in &mut idle {
        statuses.push(status_of(stream).await);
    }
    statuses.sort();
    assert_eq!(statuses, ["408", "408", "503", "503", "503", "503", "503"]);
    for _ in 0..8 {
        let (_response, _) = facade.ask(WHOLE).await;
    }
}

#[tokio::test]
async fn a_body_that_drips_is_slow_too() {
    let facade = Facade::with(config::Facade { requests_max: 4, ..config() }).await;
    let (mut first, mut first_out) = facade.promised("{").await.into_split();
    let (mut second, mut second_out) = facade.promised("{").await.into_split();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let dripping = async {
        loop {
            pace.tick().await;
            // A refused one is closed.
            let _ = (first_out.write_all(b" ").await, second_out.write_all(b" ").await);
        }
    };
    // There is one place for slow bodies.
    tokio::select! {
        () = dripping => {}
        status = status_of(&mut first) => assert_eq!(status, "503"),
        status = status_of(&mut second) => assert_eq!(status, "503"),
    }
}

#[tokio::test]
async fn while_kafka_does_not_acknowledge_a_request_is_refused_at_once_and_not_sent() {
    let mut facade = Facade::start().await;
    facade.stalled.store(true, Ordering::SeqCst);
    let response = facade.post(WHOLE).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(error_of(response).await, (503, "not_ready".into(), SERVER.into()));
    assert!(facade.sent.try_recv().is_err());
    facade.stalled.store(false, Ordering::SeqCst);
    let (_response, _) = facade.ask(WHOLE).await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_hears_why_it_is_refused() {
    let facade = Facade::with(config::Facade { body_bytes_max: 4 << 20, ..config() }).await;
    facade.stalled.store(true, Ordering::SeqCst);
    let body = format!(r#"{{"model":"m","messages":["{}"]}}"#, "x".repeat(3 << 20));
    for _ in 0..20 {
        assert_eq!(error_of(facade.post(body.clone()).send().await.unwrap()).await.0, 503);
        let unknown = facade.client.post(facade.url("/v1/chat/completions")).body(body.clone());
        assert_eq!(error_of(unknown.send().await.unwrap()).await.0, 401);
    }
}

#[tokio::test]
async fn a_request_without_acknowledgement_is_503_and_cancelled_since_it_may_be_there() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.refuse(&asked);
    assert_eq!(error_of(response.await.unwrap()).await, (503, "not_acknowledged".into(), SERVER.into()));
    let cancel = facade.cancelled().await;
    assert_eq!((cancel.request_id, cancel.reason.as_str()), (asked.chat.request_id, "not_acknowledged"));
}

#[tokio::test]
async fn the_id_of_a_request_under_way_cannot_be_used_again_by_its_organization() {
    let mut facade = Facade::start().await;
    let request = |key| {
        let body = r#"{"model":"m","messages":[1],"metadata":{"organization_id":"globex"}}"#;
        let body = if key == KEY { WHOLE } else { body };
        facade.client.post(facade.url("/v1/chat/completions")).bearer_auth(key).body(body).header("x-request-id", "r-1")
    };
    let (first, second, third) = (request(KEY), request(KEY), request(SERVICE_KEY));
    let (_first, _) = facade.ask_with(first).await;
    let error = error_of(second.send().await.unwrap()).await;
    assert_eq!(error, (409, "duplicate_request_id".into(), INVALID.into()));
    let (_third, asked) = facade.ask_with(third).await;
    assert_eq!(asked.chat.organization.as_str(), "globex");
}
