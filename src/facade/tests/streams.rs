//! Answers: frames in, bytes out.

use std::collections::BTreeMap;

use super::*;
use crate::domain::ids::partition_of;
use crate::records::responses::{FrameBody, Head, RateLimit, RateLimits};
use fixtures::{completed, content, failed, whole};
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn a_request_goes_on_byte_for_byte_with_what_the_facade_knows() {
    let mut facade = Facade::start().await;
    let body = r#" {"model":"gpt-4o-mini", "messages":[1],"future":{"x":1.0e0},"user":"u1",
        "metadata":{"organization_id":"acme","user_tier":"vip","team":"search"}} "#;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = facade
        .client
        .post(facade.url("/ai/chat/completions"))
        .header("api-key", fixtures::KEY)
        .header("x-request-id", "r-1")
        .header("x-tollstream-tags", "env=prod")
        .header("x-tollstream-conversation", "c-1")
        .header("x-tollstream-timeout-ms", "1234")
        .header("traceparent", trace)
        .body(body);
    let (_response, asked) = facade.ask_with(request).await;
    assert_eq!(asked.sent.partition, partition_of("acme", PARTITIONS));
    assert_eq!(asked.sent.key, b"acme");
    let chat = *asked.chat;
    let tags = [("env", "prod"), ("team", "search")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let expected = Chat {
        request_id: "r-1".parse().unwrap(),
        organization: "acme".parse().unwrap(),
        lane: 0,
        key_id: Some("key_acme".parse().unwrap()),
        user: Some("u1".parse().unwrap()),
        user_tier: Some("vip".into()),
        tags: BTreeMap::from(tags),
        conversation_id: Some("c-1".parse().unwrap()),
        model: Some("gpt-4o-mini".parse().unwrap()),
        timeout_ms: Some(1_234),
        reply_partition: Some(3),
        reply_nonce: chat.reply_nonce.clone(),
        origin: crate::records::Origin::Live,
        traceparent: Some(trace.into()),
        content_type: "application/json".into(),
        encryption_key_id: None,
        content_ref: None,
        body: body.into(),
        cache_control: None,
    };
    assert!(chat.reply_nonce.as_deref().unwrap().starts_with("ours-"));
    assert_eq!(chat, expected);
}

#[tokio::test]
async fn a_whole_answer_is_the_terminals_body_with_its_cost() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(WHOLE).await;
    facade.frame(&asked, whole(r#"{"id": "chatcmpl-1"}"#));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("x-request-id"), asked.chat.request_id.as_str());
    assert_eq!(header("x-tollstream-model"), "gpt-4o-mini");
    assert_eq!(header("x-tollstream-deployment"), "openai-gpt-4o-mini");
    assert_eq!(header("x-tollstream-tier"), "2");
    assert_eq!(header("x-tollstream-cost-usd"), "0.0012345");
    assert_eq!(response.text().await.unwrap(), r#"{"id": "chatcmpl-1"}"#);
}

#[tokio::test]
async fn a_streamed_answer_is_these_headers_and_bytes() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.frame(&asked, content(1, 0, &["{\"a\":1}"]));
    let mut response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-cache");
    assert_eq!(header("x-request-id"), asked.chat.request_id.as_str());
    assert_eq!(header("x-tollstream-model"), "gpt-4o-mini");
    assert_eq!(header("x-tollstream-tier"), "2");
    assert!(!response.headers().contains_key("x-tollstream-cost-usd"));
    // The first event is with the client before the next frame exists.
    assert_eq!(response.chunk().await.unwrap().unwrap(), "id: 3-100-0\ndata: {\"a\":1}\n\n");
    facade.frame(&asked, content(1, 1, &["{\"b\":2}", "{\"c\":3}"]));
    assert_eq!(
        response.chunk().await.unwrap().unwrap(),
        "id: 3-101-0\ndata: {\"b\":2}\n\nid: 3-101-1\ndata: {\"c\":3}\n\n"
    );
    facade.frame(&asked, completed(1, 2));
    assert_eq!(response.text().await.unwrap(), "data: [DONE]\n\n");
    assert!(facade.sent.try_recv().is_err(), "an answer that is whole cancels nothing");
}

#[tokio::test]
async fn streamed_whole_and_refused_answers_say_what_is_left_of_the_limits() {
    let limits = RateLimits {
        requests: Some(RateLimit { limit: 60, remaining: 59, reset_ms: 1_000 }),
        tokens: Some(RateLimit { limit: 150_000, remaining: 149_984, reset_ms: 360_000 }),
    };
    let limited = || Some(Box::new(limits));
    let streamed = |mut frame: Frame| {
        if let FrameBody::Content(content) = &mut frame.body {
            content.head = Some(Head { rate_limits: limited(), ..fixtures::head() });
        }
        frame
    };
    let ended = |mut frame: Frame| {
        if let FrameBody::Terminal(terminal) = &mut frame.body {
            match &mut terminal.error {
                Some(error) => error.rate_limits = limited(),
                None => terminal.head = Some(Head { rate_limits: limited(), ..fixtures::head() }),
            }
        }
        frame
    };
    let table = [
        (STREAMED, streamed(content(1, 0, &["{}"]))),
        (WHOLE, ended(whole("{}"))),
        (STREAMED, ended(failed(0, 0, 429, "rate_limit_exceeded"))),
        (WHOLE, ended(failed(0, 0, 429, "rate_limit_exceeded"))),
    ];
    let mut facade = Facade::start().await;
    for (body, frame) in table {
        let (response, asked) = facade.ask(body).await;
        facade.frame(&asked, frame);
        let response = response.await.unwrap();
        let header = |name: &str| response.headers()[&format!("x-ratelimit-{name}")].to_str().unwrap().to_owned();
        assert_eq!(["limit-requests", "remaining-requests", "reset-requests"].map(header), ["60", "59", "1s"]);
        assert_eq!(["limit-tokens", "remaining-tokens", "reset-tokens"].map(header), ["150000", "149984", "6m0s"]);
        // A stream that is left before its end would be cancelled.
        facade.frame(&asked, completed(1, 1));
        response.text().await.unwrap();
    }
}

#[tokio::test]
async fn an_error_before_content_is_a_plain_response() {
    let mut facade = Facade::start().await;
    for body in [STREAMED, WHOLE] {
        let (response, asked) = facade.ask(body).await;
        facade.frame(&asked, failed(0, 0, 429, "rate_limited"));
        let response = response.await.unwrap();
        assert_eq!(response.headers()["retry-after"], "3");
        assert_eq!(response.headers()["retry-after-ms"], "2500");
        assert_eq!(error_of(response).await, (429, "rate_limited".into(), "server_error".into()));
    }
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn an_error_after_content_is_an_event_and_no_done() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    facade.frame(&asked, failed(1, 1, 502, "upstream_cut"));
    assert_eq!(
        response.await.unwrap().text().await.unwrap(),
        "id: 3-100-0\ndata: {}\n\ndata: {\"error\":{\"message\":\"as the processor says\",\"type\":\"server_error\",\"param\":null,\"code\":\"upstream_cut\"}}\n\n"
    );
}

#[tokio::test]
async fn a_gap_ends_the_stream_with_an_error_and_cancels_once() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    facade.frame(&asked, content(1, 2, &["{}"]));
    facade.frame(&asked, content(1, 3, &["{}"]));
    let text = response.await.unwrap().text().await.unwrap();
    assert!(text.contains("frame 1 was expected, 2 came") && text.contains("answer_incomplete"), "{text}");
    assert_eq!(text.matches("data: ").count(), 2, "{text}");
    let cancel = facade.cancelled().await;
    assert_eq!((cancel.request_id, cancel.organization), (asked.chat.request_id, asked.chat.organization));
    assert_eq!(cancel.reason, "answer_broken");
    assert!(facade.sent.try_recv().is_err());
}

#[tokio::test]
async fn frames_of_others_reach_nobody() {
    let mut facade = Facade::start().await;
    let (response, asked) = facade.ask(STREAMED).await;
    let own = || Frame {
        request_id: asked.chat.request_id.clone(),
        nonce: asked.chat.reply_nonce.clone(),
        ..content(1, 0, &["{\"wrong\":1}"])
    };
    for nonce in [None, Some("theirs-1".into()), Some("ours-ffff".into()), Some("ours".into()), Some("ours-x".into())] {
        facade.raw_frame(Frame { nonce, ..own() });
    }
    facade.raw_frame(Frame { organization: "globex".parse().unwrap(), ..own() });
    facade.raw_frame(Frame { request_id: "other".parse().unwrap(), ..own() });
    facade.frame(&asked, content(1, 0, &["{}"]));
    facade.frame(&asked, completed(1, 1));
    assert_eq!(response.await.unwrap().text().await.unwrap(), "id: 3-107-0\ndata: {}\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn a_waiting_stream_is_kept_alive_before_and_between_frames() {
    let mut facade = Facade::with(config::Facade { keep_alive_ms: 20, ..config() }).await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.acknowledge(&asked);
    // Nobody knows yet who answers, but that the request is under way is promised.
    let mut response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-request-id"], asked.chat.request_id.as_str());
    assert!(!response.headers().contains_key("x-tollstream-model"));
    assert_eq!(response.chunk().await.unwrap().unwrap(), ": keep-alive\n\n");
    facade.frame(&asked, content(1, 0, &["{}"]));
    let mut text = String::new();
    while !text.ends_with("data: {}\n\n: keep-alive\n\n") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    facade.frame(&asked, failed(1, 1, 502, "upstream_cut"));
    let rest = response.text().await.unwrap();
    assert!(rest.contains("upstream_cut") && !rest.contains("[DONE]"), "{rest}");
}

#[tokio::test]
async fn an_error_after_the_first_comment_is_an_event() {
    let mut facade = Facade::with(config::Facade { keep_alive_ms: 20, ..config() }).await;
    let (response, asked) = facade.ask(STREAMED).await;
    facade.acknowledge(&asked);
    let response = response.await.unwrap();
    facade.frame(&asked, failed(0, 0, 404, "model_not_found"));
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    assert!(text.starts_with(": keep-alive\n\n") && text.contains("model_not_found"), "{text}");
}

#[tokio::test]
async fn a_request_that_is_not_acknowledged_promises_nothing() {
    let mut facade = Facade::with(config::Facade { keep_alive_ms: 5, ..config() }).await;
    let (response, asked) = facade.ask(STREAMED).await;
    // Many keep-alive times later the response has still not begun.
    tokio::time::sleep(Duration::from_millis(60)).await;
    facade.refuse(&asked);
    assert_eq!(error_of(response.await.unwrap()).await.0, 503);
}

#[tokio::test]
async fn a_whole_answer_is_waited_for_in_silence_until_the_deadline() {
    let mut facade = Facade::with(config::Facade { keep_alive_ms: 5, ..config() }).await;
    let request = facade.post(WHOLE).header("x-tollstream-timeout-ms", "50");
    let (response, asked) = facade.ask_with(request).await;
    facade.acknowledge(&asked);
    let error = error_of(response.await.unwrap()).await;
    assert_eq!(error, (504, "deadline_exceeded".into(), "server_error".into()));
    assert_eq!(facade.cancelled().await.reason, "deadline_exceeded");
}

#[tokio::test]
async fn a_stream_past_its_deadline_ends_with_an_error() {
    let mut facade = Facade::start().await;
    let request = facade.post(STREAMED).header("x-tollstream-timeout-ms", "50");
    let (response, asked) = facade.ask_with(request).await;
    facade.frame(&asked, content(1, 0, &["{}"]));
    let text = response.await.unwrap().text().await.unwrap();
    assert!(
        text.starts_with("id: 3-100-0\ndata: {}\n\ndata: {\"error\"") && text.contains("deadline_exceeded"),
        "{text}"
    );
    assert_eq!(facade.cancelled().await.reason, "deadline_exceeded");
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_nobody_up_and_gets_the_whole_answer() {
    let mut facade = Facade::with(config::Facade { slot_bytes_max: 100_000, ..config() }).await;
    let (mut slow, asked) = facade.raw().await;
    let event = format!("{{\"text\":\"{}\"}}", "x".repeat(20_000));
    let mut sequence = 0;
    // Whatever the sockets between hold, at some time the slot is full and the client a laggard.
    while facade.hub.readers().len() == 0 {
        facade.frame(&asked, content(1, sequence, &[&event]));
        assert!(facade.hub.metrics().bytes_waiting() <= 100_000 + 20_100);
        sequence += 1;
        tokio::task::yield_now().await;
    }
    for _ in 0..50 {
        facade.frame(&asked, content(1, sequence, &[&event]));
        sequence += 1;
    }
    assert!(facade.hub.metrics().bytes_waiting() <= 100_000, "a laggard is given no more than a portion");
    // Another client is served all the while.
    let (other, asked_by_other) = facade.ask(WHOLE).await;
    facade.frame(&asked_by_other, whole("{}"));
    assert_eq!(other.await.unwrap().text().await.unwrap(), "{}");

    facade.frame(&asked, completed(1, sequence));
    let text = rest(&mut slow).await;
    assert!(text.ends_with("data: [DONE]\n\n"));
    assert_eq!(text.matches("id: 3-").count(), sequence as usize);
    assert_eq!(text.matches("x".repeat(20_000).as_str()).count(), sequence as usize);
    assert_eq!((facade.hub.metrics().bytes_waiting(), facade.hub.readers().len()), (0, 0));
    assert!(facade.sent.try_recv().is_err(), "nothing is cancelled");
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_too_long_is_left() {
    let mut facade = Facade::with(config::Facade { stalled_client_ms: 50, ..config() }).await;
    let (mut slow, asked) = facade.raw().await;
    let event = format!("{{\"text\":\"{}\"}}", "x".repeat(20_000));
    let mut sequence = 0;
    while facade.sent.is_empty() {
        facade.frame(&asked, content(1, sequence, &[&event]));
        sequence += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(facade.cancelled().await.reason, "client_disconnected");
    // What it may still read does not look like an end.
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, slow.read_to_end(&mut bytes)).await.unwrap();
    assert!(!bytes.is_empty() && !bytes.ends_with(b"0\r\n\r\n"));
    assert_eq!((facade.hub.metrics().bytes_waiting(), facade.hub.readers().len()), (0, 0));
}

/// The body of the response, its head left out and its chunks put together.
async fn rest(stream: &mut TcpStream) -> String {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    while !bytes.ends_with(b"\r\n0\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "the stream has an end");
        bytes.extend_from_slice(&piece[..read]);
    }
    let text = String::from_utf8(bytes).unwrap();
    let (mut chunks, mut body) = (text.split_once("\r\n\r\n").unwrap().1, String::new());
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let (chunk, rest) = rest.split_at(usize::from_str_radix(size, 16).unwrap());
        body.push_str(chunk);
        chunks = rest.strip_prefix("\r\n").unwrap();
    }
    body
}
