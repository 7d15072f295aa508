//! Clients that go away, and a facade that stops.

use std::sync::atomic::Ordering;

use super::*;
use fixtures::{completed, content};
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn a_client_that_goes_away_before_its_answer_cancels_and_frees_its_place() {
    let mut facade = Facade::with(config::Facade { requests_max: 1, ..config() }).await;
    let (stream, asked) = facade.raw().await;
    drop(stream);
    let cancel = facade.cancelled().await;
    assert_eq!((cancel.request_id, cancel.organization), (asked.chat.request_id, asked.chat.organization));
    assert_eq!(cancel.reason, "client_disconnected");
    let (_stream, _) = facade.raw().await;
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_cancels() {
    let mut facade = Facade::start().await;
    let (mut stream, asked) = facade.raw().await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    drop(stream);
    assert_eq!(facade.cancelled().await.reason, "client_disconnected");
    // What still comes is nobody's.
    facade.frame(&asked, content(1, 1, &["{}"]));
    facade.frame(&asked, completed(1, 2));
    assert_eq!(facade.hub.metrics().bytes_waiting(), 0);
}

#[tokio::test]
async fn a_cancel_that_finds_the_producer_full_is_sent_later() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.full.store(true, Ordering::SeqCst);
    facade.frame(&asked, content(1, 9, &["{}"]));
    assert_eq!(error_of(response.await.unwrap()).await.0, 502);
    facade.hub.look(tokio::time::Instant::now());
    assert!(facade.sent.try_recv().is_err());
    facade.full.store(false, Ordering::SeqCst);
    facade.hub.look(tokio::time::Instant::now());
    assert_eq!(facade.cancelled().await.reason, "answer_broken");
    facade.hub.look(tokio::time::Instant::now());
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn a_facade_that_stops_lets_streams_finish() {
    let mut facade = Facade::start().await;
    let (mut stream, asked) = facade.raw().await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    facade.hub.stop_admitting();
    let response = facade.post(WHOLE).send().await.unwrap();
    assert_eq!(error_of(response).await, (503, "shutting_down".into(), "server_error".into()));
    facade.stop.cancel();
    facade.frame(&asked, completed(1, 1));
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("data: {}") && text.contains("[DONE]"), "{text}");
    // With its last connection the server ends.
    tokio::time::timeout(PATIENCE, facade.server.join_next()).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(facade.address).await.is_err());
}

#[tokio::test]
async fn streams_that_do_not_finish_are_told_so_and_cancelled() {
    let mut facade = Facade::start().await;
    let (mut stream, asked) = facade.raw().await;
    let (waiting, _) = facade.ask(WHOLE).await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    facade.stop.cancel();
    facade.hub.end_all();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("data: {}") && text.contains("shutting_down") && !text.contains("[DONE]"), "{text}");
    assert_eq!(error_of(waiting.await.unwrap()).await.1, "shutting_down");
    for _ in 0..2 {
        assert_eq!(facade.cancelled().await.reason, "shutting_down");
    }
    tokio::time::timeout(PATIENCE, facade.server.join_next()).await.unwrap().unwrap().unwrap();
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let facade = Facade::start().await;
    let ready = async || {
        let response = facade.client.get(facade.url("/health/ready")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    facade.health.ready("control");
    assert_eq!(ready().await, (200, r#"{"status":"ready","missing":{},"degraded":{}}"#.to_owned()));
    facade.health.degraded("sink", "slow");
    let degraded = r#"{"status":"degraded","missing":{},"degraded":{"sink":"slow"}}"#;
    assert_eq!(ready().await, (200, degraded.to_owned()));
    facade.health.missing("control", "behind");
    let not_ready = r#"{"status":"not_ready","missing":{"control":"behind"},"degraded":{"sink":"slow"}}"#;
    assert_eq!(ready().await, (503, not_ready.to_owned()));
}

#[tokio::test]
async fn models_are_listed_and_found_by_alias() {
    let facade = Facade::start().await;
    let get = async |path: &str| {
        let request = facade.client.get(facade.url(path)).bearer_auth(fixtures::KEY);
        let bytes = request.send().await.unwrap().bytes().await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    };
    let list = get("/v1/models").await;
    assert_eq!(get("/api/models").await, list);
    assert_eq!((&list["object"], &list["organization"]), (&serde_json::json!("list"), &serde_json::json!("acme")));
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["auto", "gpt-4o-mini"]);
    let model = serde_json::json!({
        "id": "gpt-4o-mini", "object": "model", "created": 1_721_260_800, "owned_by": "openai", "tier": 2,
        "context_window": 128_000, "max_output_tokens": 16_384, "capabilities": ["chat", "streaming"],
        "prices": [], "limits": { "requests_per_minute": null, "tokens_per_minute": null, "concurrent_requests": null },
    });
    for path in ["gpt-4o-mini", "openai/gpt-4o-mini", "openai%2Fgpt-4o-mini"] {
        assert_eq!(get(&format!("/v1/models/{path}")).await, model, "{path}");
    }
    assert_eq!(get("/v1/models/auto").await["owned_by"], "tollstream");
}
