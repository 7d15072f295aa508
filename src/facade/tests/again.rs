//! Clients that ask again, go on elsewhere, or end what they asked.

use super::super::error::Refusal;
use super::*;
use fixtures::{KEY, SERVICE_KEY, completed, content, failed, whole};
use tokio::time::Instant;

use crate::domain::Timestamp;
use crate::records::Outcome;
use crate::records::responses::{ApiError, FrameBody, Original, Terminal};

const SERVER: &str = "server_error";
const INVALID: &str = "invalid_request_error";

/// What an owner says to a request that was asked before.
fn duplicate(open: bool) -> Frame {
    let error = ApiError { status: 409, code: "duplicate_request_id".into(), ..ApiError::from(Refusal::Internal) };
    let original = Some(Original { partition: REPLY_PARTITION, since: Timestamp::from_millis(0), open });
    let terminal = Terminal { error: Some(error), original, ..Terminal::of(Outcome::Refused) };
    Frame { body: FrameBody::Terminal(Box::new(terminal)), ..failed(0, 0, 409, "") }
}

impl Facade {
    fn post_with_key(&self, body: &'static str) -> reqwest::RequestBuilder {
        self.post(body).header("Idempotency-Key", "order 1").header("x-request-id", "mine")
    }

    fn events(&self, id: &str, last: &str) -> reqwest::RequestBuilder {
        self.client.get(self.url(&format!("/v1/requests/{id}/events"))).bearer_auth(KEY).header("last-event-id", last)
    }

    fn cancel(&self, id: &str) -> reqwest::RequestBuilder {
        self.client.post(self.url(&format!("/v1/requests/{id}/cancel"))).bearer_auth(KEY)
    }
}

#[tokio::test]
async fn equal_requests_with_one_key_get_one_answer() {
    for open in [true, false] {
        let mut facade = Facade::start().await;
        let request = facade.post_with_key(WHOLE);
        let (first, asked) = facade.ask_with(request).await;
        assert!(asked.chat.request_id.as_str().starts_with("idem_"), "{}", asked.chat.request_id);
        if !open {
            facade.frame(&asked, whole(r#"{"id":1}"#));
        }
        let request = facade.post_with_key(WHOLE);
        let (second, again) = facade.ask_with(request).await;
        assert_eq!(asked.chat.request_id, again.chat.request_id);
        assert_ne!(asked.chat.reply_nonce, again.chat.reply_nonce);
        facade.frame(&again, duplicate(open));
        if open {
            facade.frame(&asked, whole(r#"{"id":1}"#));
        }
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert!(!first.headers().contains_key("idempotent-replayed"));
        assert_eq!(second.headers()["idempotent-replayed"], "true");
        for name in ["x-request-id", "x-tollstream-model", "x-tollstream-cost-usd", "content-type"] {
            assert_eq!(first.headers()[name], second.headers()[name], "{name}");
        }
        assert_eq!(first.headers()["x-request-id"], asked.chat.request_id.as_str());
        assert_eq!((first.status(), second.status()), (reqwest::StatusCode::OK, reqwest::StatusCode::OK));
        assert_eq!(first.text().await.unwrap(), second.text().await.unwrap());
        assert!(facade.sent.try_recv().is_err(), "nothing is cancelled");
    }
}

#[tokio::test]
async fn an_error_that_is_the_answer_of_a_key_says_that_a_repeat_is_of_no_use() {
    let mut facade = Facade::start().await;
    let unavailable = |attempt| {
        let error = ApiError { status: 503, retry_after_ms: Some(0), ..ApiError::from(Refusal::Stopping) };
        let terminal = Terminal { error: Some(error), ..Terminal::of(Outcome::Interrupted) };
        Frame { body: FrameBody::Terminal(Box::new(terminal)), ..failed(attempt, 0, 503, "") }
    };
    let request = facade.post_with_key(WHOLE);
    let (first, asked) = facade.ask_with(request).await;
    facade.frame(&asked, unavailable(1));
    let request = facade.post_with_key(WHOLE);
    let (second, again) = facade.ask_with(request).await;
    facade.frame(&again, duplicate(false));
    for (response, replayed) in [(first.await.unwrap(), false), (second.await.unwrap(), true)] {
        assert_eq!(response.status(), reqwest::StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key("retry-after"));
        assert_eq!(response.headers().contains_key("idempotent-replayed"), replayed);
        assert!(response.text().await.unwrap().contains("use another one"));
    }
    // Who was refused before any call is tried anew, and so is who gave no key.
    let request = facade.post(WHOLE).header("Idempotency-Key", "order 2");
    let (refused, asked) = facade.ask_with(request).await;
    facade.frame(&asked, unavailable(0));
    let (without, asked) = facade.ask(WHOLE).await;
    facade.frame(&asked, unavailable(1));
    for response in [refused.await.unwrap(), without.await.unwrap()] {
        assert!(!response.headers().contains_key("x-should-retry"));
        assert_eq!(response.headers()["retry-after"], "0");
    }
}

#[tokio::test]
async fn a_repeated_stream_is_streamed_again_and_followed_to_its_end() {
    let mut facade = Facade::start().await;
    let request = facade.post_with_key(STREAMED);
    let (first, asked) = facade.ask_with(request).await;
    facade.frame(&asked, content(1, 0, &["{\"a\":1}"]));
    let request = facade.post_with_key(STREAMED);
    let (second, again) = facade.ask_with(request).await;
    facade.frame(&again, duplicate(true));
    let second = second.await.unwrap();
    assert_eq!(second.headers()["x-tollstream-model"], "gpt-4o-mini");
    assert_eq!(second.headers()["content-type"], "text/event-stream");
    facade.frame(&asked, content(1, 1, &["{\"b\":2}", "{\"c\":3}"]));
    facade.frame(&asked, completed(1, 2));
    assert_eq!(first.await.unwrap().text().await.unwrap(), second.text().await.unwrap());
}

#[tokio::test]
async fn a_first_one_that_failed_fails_again() {
    let mut facade = Facade::start().await;
    let request = facade.post_with_key(WHOLE);
    let (first, asked) = facade.ask_with(request).await;
    facade.frame(&asked, failed(1, 0, 502, "upstream"));
    let request = facade.post_with_key(WHOLE);
    let (second, again) = facade.ask_with(request).await;
    facade.frame(&again, duplicate(false));
    assert_eq!(error_of(first.await.unwrap()).await, error_of(second.await.unwrap()).await);
}

#[tokio::test]
async fn a_request_with_a_key_that_may_be_on_the_topic_is_left_there_to_be_asked_again() {
    let mut facade = Facade::start().await;
    let request = facade.post_with_key(WHOLE);
    let (response, asked) = facade.ask_with(request).await;
    facade.refuse(&asked);
    assert_eq!(error_of(response.await.unwrap()).await, (503, "not_acknowledged".into(), SERVER.into()));
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn a_request_with_a_key_goes_on_without_its_client_unless_it_says_otherwise() {
    let table = [
        (Some("k"), None, None),
        (Some("k"), Some("0"), Some(0)),
        (None, Some("0"), Some(0)),
        (None, None, Some(0)),
        (None, Some("30"), Some(30)),
        (Some("k"), Some("30"), Some(30)),
    ];
    for (key, resume, cancelled_after) in table {
        let mut facade = Facade::with(config::Facade { requests_max: 1, ..config() }).await;
        let mut request = facade.post(STREAMED);
        for (name, value) in [("idempotency-key", key), ("x-tollstream-resume", resume)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let (response, asked) = facade.ask_with(request).await;
        facade.frame(&asked, content(1, 0, &["{}"]));
        drop(response.await.unwrap());
        if cancelled_after == Some(0) {
            assert_eq!(facade.cancelled().await.reason, "client_disconnected", "{key:?} {resume:?}");
            continue;
        }
        // The slot is given back; a request that is kept for a while has its place still.
        let places = usize::from(cancelled_after.is_none());
        wait_for(async || facade.hub.slots_open() == 0).await;
        assert_eq!(usize::from(facade.hub.admit().is_ok()), places, "{key:?} {resume:?}");
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        facade.hub.look(later(29));
        assert!(facade.sent.try_recv().is_err(), "{key:?} {resume:?}");
        facade.hub.look(later(31));
        match cancelled_after {
            Some(_) => assert_eq!(facade.cancelled().await.request_id, asked.chat.request_id),
            None => assert!(facade.sent.try_recv().is_err()),
        }
        assert!(facade.hub.admit().is_ok());
    }
}

#[tokio::test]
async fn a_request_that_ends_while_its_client_is_gone_is_not_cancelled() {
    let mut facade = Facade::with(config::Facade { requests_max: 1, ..config() }).await;
    let request = facade.post(STREAMED).header("x-tollstream-resume", "30");
    let (response, asked) = facade.ask_with(request).await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    drop(response.await.unwrap());
    wait_for(async || facade.hub.slots_open() == 0).await;
    facade.frame(&asked, content(1, 1, &["{}"]));
    assert!(facade.hub.admit().is_err());
    facade.frame(&asked, completed(1, 2));
    assert!(facade.hub.admit().is_ok(), "its place is free");
    facade.hub.look(Instant::now() + Duration::from_secs(31));
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event() {
    let mut facade = Facade::start().await;
    let request = facade.post(STREAMED).header("x-tollstream-resume", "30").header("x-request-id", "r/1");
    let (response, asked) = facade.ask_with(request).await;
    facade.frame(&asked, content(1, 0, &["{\"a\":1}", "{\"b\":2}"]));
    let mut response = response.await.unwrap();
    assert!(response.chunk().await.unwrap().unwrap().starts_with(b"id: 3-100-0\n"));
    drop(response);
    wait_for(async || facade.hub.slots_open() == 0).await;
    facade.frame(&asked, content(1, 1, &["{\"c\":3}"]));

    let mut response = facade.events("r%2F1", "3-100-0").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    assert_eq!(response.headers()["x-request-id"], "r/1");
    let mut text = String::new();
    while !text.ends_with("{\"c\":3}\n\n") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    // It is followed to its end, and can be gone on with any number of times, by the query too.
    let query = facade.client.get(facade.url("/v1/requests/r%2F1/events?last_event_id=3-100-1")).bearer_auth(KEY);
    let second = query.send().await.unwrap();
    facade.frame(&asked, content(1, 2, &["{\"d\":4}"]));
    facade.frame(&asked, completed(1, 3));
    text.push_str(&response.text().await.unwrap());
    let rest = "id: 3-101-0\ndata: {\"c\":3}\n\nid: 3-102-0\ndata: {\"d\":4}\n\ndata: [DONE]\n\n";
    assert_eq!(text, format!("id: 3-100-1\ndata: {{\"b\":2}}\n\n{rest}"));
    assert_eq!(second.text().await.unwrap(), rest);
    assert!(facade.sent.try_recv().is_err(), "nothing is cancelled");
}

#[tokio::test]
async fn a_position_that_is_nobodys_or_anothers_reveals_nothing() {
    let mut facade = Facade::start().await;
    let of_globex = r#"{"model":"m","stream":true,"messages":[1],"metadata":{"organization_id":"globex"}}"#;
    let chat = facade.client.post(facade.url("/v1/chat/completions")).bearer_auth(SERVICE_KEY).body(of_globex);
    let (_globex, theirs) = facade.ask_with(chat.header("x-request-id", "r1")).await;
    facade.frame(&theirs, content(1, 0, &["{}"]));
    let (_response, mine) = facade.ask(STREAMED).await;
    facade.frame(&mine, content(1, 0, &["{}"]));

    let id = mine.chat.request_id.to_string();
    let not_found = (404, "event_not_found", INVALID);
    let table = [
        ("r1", "3-100-0", not_found),
        (&id, "3-100-0", not_found),
        (&id, "3-101-1", not_found),
        (&id, "3-102-0", not_found),
        (&id, "4-101-0", not_found),
        (&id, "0-101-0", not_found),
        ("never-asked", "3-101-0", not_found),
        (&id, "3-99-0", (410, "answer_expired", INVALID)),
        (&id, "3-101", (400, "invalid_header", INVALID)),
        (&id, "", (400, "missing_last_event_id", INVALID)),
        ("not%20an%20id", "3-101-0", (400, "invalid_value", INVALID)),
    ];
    for (id, last, (status, code, r#type)) in table {
        let error = error_of(facade.events(id, last).send().await.unwrap()).await;
        assert_eq!(error, (status, code.to_owned(), r#type.to_owned()), "{id} {last}");
    }
    let stranger =
        facade.client.get(facade.url(&format!("/v1/requests/{id}/events"))).header("last-event-id", "3-101-0");
    assert_eq!(error_of(stranger.send().await.unwrap()).await.0, 401);
    assert_eq!(facade.hub.readers().len(), 0, "nobody is left behind");
}

#[tokio::test]
async fn a_cancel_is_accepted_when_it_is_durable_and_is_the_keys_own() {
    let mut facade = Facade::start().await;
    #[expect(clippy::disallowed_methods, reason = "the test awaits the task")]
    for (outcome, status) in
        [(Ok(7), 202), (Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)), 503)]
    {
        let request = facade.cancel("r%2F1");
        let response = tokio::spawn(async move { request.send().await.unwrap() });
        let sent = facade.sent().await;
        let Request::Cancel(cancel) = sent.request else { panic!("{:?}", sent.request) };
        assert_eq!((cancel.request_id.as_str(), cancel.organization.as_str()), ("r/1", "acme"));
        assert_eq!((cancel.reason.as_str(), sent.key.as_slice()), ("requested", b"acme".as_slice()));
        assert!(!response.is_finished(), "nothing is promised before Kafka has it");
        facade.hub.delivered(&Delivery { tag: sent.tag, outcome });
        let response = response.await.unwrap();
        assert_eq!(response.status(), status);
        if status == 202 {
            assert_eq!(response.headers()["x-request-id"], "r/1");
            assert_eq!(response.text().await.unwrap(), r#"{"id":"r/1","object":"request","status":"cancelling"}"#);
        } else {
            assert_eq!(error_of(response).await, (503, "not_acknowledged".into(), SERVER.into()));
        }
    }
    let post = |key: &str, path: &str| facade.client.post(facade.url(path)).bearer_auth(key.to_owned());
    let organization = "x-tollstream-organization";
    let table = [
        (post("wrong", "/v1/requests/r1/cancel"), (401, "invalid_api_key")),
        (post(SERVICE_KEY, "/v1/requests/r1/cancel"), (400, "organization_required")),
        (post(KEY, "/v1/requests/r1/cancel").header(organization, "globex"), (403, "organization_not_covered")),
        (post(KEY, "/v1/requests/a%20b/cancel"), (400, "invalid_value")),
    ];
    for (request, (status, code)) in table {
        let error = error_of(request.send().await.unwrap()).await;
        assert_eq!((error.0, error.1.as_str()), (status, code));
    }
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn what_is_wrong_about_asking_again_is_named() {
    let mut facade = Facade::start().await;
    let long = "k".repeat(256);
    for (name, value) in [
        ("idempotency-key", ""),
        ("idempotency-key", long.as_str()),
        ("x-tollstream-resume", "601"),
        ("x-tollstream-resume", "soon"),
    ] {
        let error = error_of(facade.post(WHOLE).header(name, value).send().await.unwrap()).await;
        assert_eq!(error, (400, "invalid_header".into(), INVALID.into()), "{name}: {value}");
    }
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn a_facade_that_stops_leaves_running_what_can_be_read_elsewhere() {
    let mut facade = Facade::start().await;
    let request = facade.post_with_key(STREAMED);
    let (kept, asked) = facade.ask_with(request).await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    let kept = kept.await.unwrap();
    let resumed = facade.events(asked.chat.request_id.as_str(), "3-100-0").send().await.unwrap();
    facade.hub.end_all();
    for response in [kept, resumed] {
        assert!(response.text().await.unwrap().contains("shutting_down"));
    }
    assert!(facade.sent.try_recv().is_err());
}

/// Looks again until it holds.
async fn wait_for(holds: impl AsyncFn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
