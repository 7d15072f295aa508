//! The transport against the simulator, and against a server that answers with any bytes.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::config::Secret;
use crate::domain::{ModelName, RequestId};
use crate::provider::{CapName, Upstream};
use crate::simulate::{Behavior, Options, Server};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

async fn simulator() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Server::start(Options { seed: 7, behavior: Behavior::instant(), prompt_caching: false }, listener).unwrap()
}

fn transport(change: impl FnOnce(&mut Providers)) -> Transport {
    let mut config = Providers::default();
    change(&mut config);
    Transport::new(&config).unwrap()
}

fn call(base_url: &str, stream: bool, rest: &str) -> Call {
    let body = format!(
        r#"{{"model":"auto","stream":{stream},"messages":[{{"role":"user","content":"Hello there"}}],"metadata":{{"user_tier":"vip"}}{rest}}}"#
    );
    Call {
        request_id: RequestId::parse("r1").unwrap(),
        model: ModelName::parse("gpt-4o").unwrap(),
        upstream: Upstream {
            base_url: base_url.to_owned(),
            model: "up/model".into(),
            cap_name: CapName::MaxTokens,
            credential: None,
        },
        body: body.into(),
        stream,
        include_usage: true,
        output_cap: None,
        timeout: PATIENCE,
        traceparent: None,
    }
}

fn json(bytes: &Bytes) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// All chunks of a stream and how it ended.
async fn collected(answer: Answer) -> (Vec<Bytes>, Result<(), Failure>, Summary) {
    let Answer::Stream(mut stream) = answer else { panic!("a stream was asked for") };
    let mut chunks = Vec::new();
    loop {
        match stream.next().await {
            Ok(Some(chunk)) => chunks.push(chunk),
            Ok(None) => return (chunks, Ok(()), stream.summary()),
            Err(failure) => return (chunks, Err(failure), stream.summary()),
        }
    }
}

/// How a call ends, at whatever moment: the chunks before, and the failure's class.
async fn ending(transport: &Transport, call: &Call) -> (usize, Result<(), FailureClass>) {
    match transport.call(call).await {
        Ok(Answer::Whole(_)) => (0, Ok(())),
        Ok(answer) => {
            let (chunks, end, _) = collected(answer).await;
            (chunks.len(), end.map_err(|failure| failure.class))
        }
        Err(failure) => (0, Err(failure.class)),
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test]
async fn a_whole_answer_comes_with_its_usage() {
    let server = simulator().await;
    let call = call(&server.base_url(), false, r#","max_tokens":6"#);
    let Answer::Whole(whole) = transport(|_| {}).call(&call).await.unwrap() else { panic!("a whole answer") };
    let answer = json(&whole.body);
    assert_eq!((&answer["id"], &answer["model"]), (&"chatcmpl-r1".into(), &"gpt-4o".into()));
    let usage = whole.summary.usage.unwrap();
    assert_eq!((usage.total_input(), usage.output, usage.cached_input), (Some(9), Some(6), Some(0)));
    assert_eq!(whole.summary.finish_reason.as_deref(), Some("length"));
    assert_eq!(whole.summary.text_bytes, answer["choices"][0]["message"]["content"].as_str().unwrap().len() as u64);
}

#[tokio::test]
async fn a_provider_stops_at_the_cap_that_the_gateway_sets() {
    let server = simulator().await;
    let table = [
        (CapName::MaxTokens, "", 4, 4),
        (CapName::MaxCompletionTokens, "", 4, 4),
        (CapName::MaxTokens, r#","max_tokens":3"#, 4, 3),
        (CapName::MaxTokens, r#","max_tokens":9000"#, 4, 4),
        (CapName::MaxTokens, r#","max_completion_tokens":9000"#, 4, 4),
        (CapName::MaxCompletionTokens, r#","max_tokens":9000,"max_completion_tokens":9000"#, 4, 4),
    ];
    for (cap_name, rest, cap, tokens) in table {
        for stream in [false, true] {
            let mut call = call(&server.base_url(), stream, rest);
            (call.upstream.cap_name, call.output_cap) = (cap_name, Some(cap));
            let summary = match transport(|_| {}).call(&call).await.unwrap() {
                Answer::Whole(whole) => whole.summary,
                stream => collected(stream).await.2,
            };
            assert_eq!(summary.finish_reason.as_deref(), Some("length"), "{cap_name:?} {rest} {stream}");
            assert_eq!(summary.usage.unwrap().output, Some(tokens), "{cap_name:?} {rest} {stream}");
        }
    }
}

#[tokio::test]
async fn an_answer_without_room_fails_and_gives_back_what_it_took() {
    let server = simulator().await;
    let transport = transport(|config| config.answers_bytes_max = 10_000);
    let mut others = transport.answers().hold();
    assert!(others.take(10_000));
    for stream in [false, true] {
        let (_, end) = ending(&transport, &call(&server.base_url(), stream, "")).await;
        assert_eq!(end, Err(FailureClass::NoRoom));
        assert_eq!(transport.answers().taken(), 10_000);
    }
    drop(others);
    let Answer::Whole(whole) = transport.call(&call(&server.base_url(), false, "")).await.unwrap() else {
        panic!("a whole answer")
    };
    let copy = whole.body.clone();
    drop(whole);
    assert_eq!(transport.answers().taken(), copy.len());
    drop(copy);
    assert_eq!(transport.answers().taken(), 0);
}

#[tokio::test]
async fn a_stream_says_the_same_as_the_whole_answer() {
    let server = simulator().await;
    let transport = transport(|_| {});
    let Answer::Whole(whole) = transport.call(&call(&server.base_url(), false, "")).await.unwrap() else {
        panic!("a whole answer")
    };
    let answer = transport.call(&call(&server.base_url(), true, "")).await.unwrap();
    let (chunks, end, summary) = collected(answer).await;
    assert_eq!((end, &summary), (Ok(()), &whole.summary));
    let chunks: Vec<Value> = chunks.iter().map(json).collect();
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, json(&whole.body)["choices"][0]["message"]["content"]);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["usage"], json(&whole.body)["usage"]);
}

#[tokio::test]
async fn connections_are_used_again_after_whole_answers_streams_and_refusals() {
    let server = simulator().await;
    let transport = transport(|_| {});
    for n in 0..40 {
        let fault = if n % 4 == 3 { r#","x_simulate_fault":"status=400""# } else { "" };
        let (_, end) = ending(&transport, &call(&server.base_url(), n % 2 == 0, fault)).await;
        assert_eq!(end.is_err(), n % 4 == 3);
    }
    // A call may begin before the pool has the last one's connection back, so one is not certain.
    let stats = server.stats();
    assert!(stats.requests == 40 && stats.connections <= 4, "{stats:?}");
}

#[tokio::test]
async fn a_status_is_a_failure_of_its_class() {
    let server = simulator().await;
    let transport = transport(|_| {});
    let table = [
        (429, FailureClass::RateLimited, Some(Duration::from_secs(1))),
        (400, FailureClass::BadRequest, None),
        (401, FailureClass::Authentication, None),
        (404, FailureClass::Configuration, None),
        (500, FailureClass::Upstream, None),
        (503, FailureClass::Overloaded, Some(Duration::from_secs(1))),
    ];
    for (status, class, retry_after) in table {
        for stream in [false, true] {
            let fault = format!(r#","x_simulate_fault":"status={status}""#);
            let failure = transport.call(&call(&server.base_url(), stream, &fault)).await.unwrap_err();
            assert_eq!((failure.class, failure.upstream_status), (class, Some(status)));
            assert_eq!(failure.retry_after, retry_after, "{status}");
            assert!(failure.upstream_type.is_some());
        }
    }
    assert_eq!(server.stats().faulted, 12);
}

#[tokio::test]
async fn a_providers_own_error_is_a_failure_of_its_class() {
    let server = simulator().await;
    let transport = transport(|_| {});
    let ms = |ms| Some(Duration::from_millis(ms));
    let table = [
        ("openai/rate_limit", FailureClass::RateLimited, ms(1_500)),
        ("openai/rate_limit;retry-after=9", FailureClass::RateLimited, ms(9_000)),
        ("openai/quota", FailureClass::QuotaExhausted, None),
        ("openai/context_too_long", FailureClass::ContextTooLong, None),
        ("anthropic/overloaded", FailureClass::Overloaded, None),
        ("anthropic/rate_limit", FailureClass::RateLimited, ms(30_000)),
        ("anthropic/content_filter", FailureClass::ContentFilter, None),
        ("google/rate_limit", FailureClass::RateLimited, ms(34_500)),
        ("google/authentication", FailureClass::Authentication, None),
        ("google/credit_balance", FailureClass::QuotaExhausted, None),
        ("google/content_filter", FailureClass::ContentFilter, None),
        ("ollama/model_not_found", FailureClass::Configuration, None),
        ("status=429;retry-after=30", FailureClass::RateLimited, ms(30_000)),
    ];
    for (fault, class, retry_after) in table {
        for stream in [false, true] {
            let rest = format!(r#","x_simulate_fault":"{fault}""#);
            let failure = transport.call(&call(&server.base_url(), stream, &rest)).await.unwrap_err();
            assert_eq!((failure.class, failure.retry_after), (class, retry_after), "{fault}, {stream}");
        }
    }
    assert_eq!(server.stats().faulted, 26);
}

#[tokio::test]
async fn a_providers_own_error_inside_an_answer_has_the_same_class() {
    let server = simulator().await;
    let transport = transport(|_| {});
    let table = [
        ("anthropic/overloaded", FailureClass::Overloaded),
        ("google/overloaded", FailureClass::Overloaded),
        ("google/rate_limit", FailureClass::RateLimited),
        ("openai/server_is_overloaded", FailureClass::Overloaded),
        ("openai/server_error", FailureClass::Upstream),
        ("ollama/context_too_long", FailureClass::ContextTooLong),
    ];
    for (fault, class) in table {
        // Before content nothing was handed out, so that another deployment can be called.
        for (after, stream, chunks) in [(0, true, 0), (3, true, 4), (0, false, 0)] {
            let rest = format!(r#","max_tokens":8,"x_simulate_fault":"{fault}-after={after}""#);
            let end = ending(&transport, &call(&server.base_url(), stream, &rest)).await;
            assert_eq!(end, (chunks, Err(class)), "{fault} after {after}, {stream}");
        }
    }
}

#[tokio::test]
async fn resets_are_waits_where_nothing_else_is_said() {
    let head = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n";
    let used_up = "x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 6m0s\r\n";
    let table = [
        (used_up.to_owned(), Some(Duration::from_secs(360))),
        (used_up.replace(": 0", ": 7"), None),
        (format!("{used_up}retry-after: 2\r\n"), Some(Duration::from_secs(2))),
    ];
    for (headers, wait) in table {
        let server = Canned::new(&[format!("{head}{headers}\r\n").as_bytes()]).await;
        let failure = transport(|_| {}).call(&call(&server.base_url, false, "")).await.unwrap_err();
        assert_eq!((failure.class, failure.retry_after), (FailureClass::RateLimited, wait), "{headers}");
    }
}

#[tokio::test]
async fn the_decision_table_of_faults() {
    let server = simulator().await;
    let transport = transport(|config| {
        config.first_token_timeout_ms = 150;
        config.between_tokens_timeout_ms = 100;
    });
    let table = [
        ("none", true, 11, Ok(())),
        ("cut-after=0", true, 0, Err(FailureClass::Cut)),
        ("cut-after=3", true, 4, Err(FailureClass::Cut)),
        ("truncate", true, 5, Err(FailureClass::Cut)),
        ("stall-after=0", true, 0, Err(FailureClass::FirstTokenTimeout)),
        ("stall-after=2", true, 3, Err(FailureClass::BetweenTokensTimeout)),
        ("garbage", true, 5, Err(FailureClass::Garbage)),
        ("garbage-after=0", true, 0, Err(FailureClass::Garbage)),
        ("error", true, 5, Err(FailureClass::Upstream)),
        ("error-after=0", true, 0, Err(FailureClass::Upstream)),
        ("none", false, 0, Ok(())),
        ("cut", false, 0, Err(FailureClass::Cut)),
        ("garbage", false, 0, Err(FailureClass::Garbage)),
        ("error", false, 0, Err(FailureClass::Upstream)),
    ];
    for (fault, stream, chunks, end) in table {
        let rest = format!(r#","max_tokens":8,"x_simulate_fault":"{fault}""#);
        assert_eq!(
            ending(&transport, &call(&server.base_url(), stream, &rest)).await,
            (chunks, end),
            "{fault}, {stream}"
        );
    }
    assert_eq!(server.stats().faulted, 12);
}

#[tokio::test]
async fn what_was_used_is_known_after_a_failure() {
    let server = simulator().await;
    let call = call(&server.base_url(), true, r#","x_simulate_fault":"cut-after=3""#);
    let (chunks, end, summary) = collected(transport(|_| {}).call(&call).await.unwrap()).await;
    let text = chunks.iter().map(json).filter_map(|c| c["choices"][0]["delta"]["content"].as_str().map(str::len));
    assert_eq!(summary.text_bytes, text.sum::<usize>() as u64);
    assert!(summary.text_bytes > 0 && summary.usage.is_none() && end.is_err());
}

#[tokio::test]
async fn the_deadline_ends_a_call_at_any_stage() {
    let server = simulator().await;
    let transport = transport(|_| {});
    let soon = Duration::from_millis(80);
    server.set_behavior(Behavior { ttft_ms: Some(60_000), ..Behavior::instant() });
    for stream in [false, true] {
        let call = Call { timeout: soon, ..call(&server.base_url(), stream, "") };
        assert_eq!(ending(&transport, &call).await, (0, Err(FailureClass::Deadline)));
    }
    let call = Call { timeout: soon, ..call(&server.base_url(), true, r#","x_simulate_fault":"stall-after=2""#) };
    server.set_behavior(Behavior::instant());
    assert_eq!(ending(&transport, &call).await, (3, Err(FailureClass::Deadline)));
    until(|| server.stats().in_flight == 0).await;

    let late = Call { timeout: Duration::ZERO, ..call };
    assert_eq!(ending(&transport, &late).await, (0, Err(FailureClass::Deadline)));
    assert_eq!(server.stats().requests, 3);
}

#[tokio::test]
async fn a_slow_caller_is_not_the_providers_fault() {
    let server = simulator().await;
    let transport = transport(|config| config.between_tokens_timeout_ms = 30);
    let Answer::Stream(mut stream) = transport.call(&call(&server.base_url(), true, "")).await.unwrap() else {
        panic!("a stream was asked for")
    };
    assert!(stream.next().await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(90)).await;
    while stream.next().await.unwrap().is_some() {}
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_call() {
    let server = simulator().await;
    let transport = transport(|_| {});
    let slow = Behavior { tokens_per_second: Some(2), ..Behavior::instant() };
    server.set_behavior(slow);
    let mut calls = JoinSet::new();
    let whole = call(&server.base_url(), false, "");
    let caller = transport.clone();
    calls.spawn(async move { caller.call(&whole).await.map(drop) });
    let Answer::Stream(mut stream) = transport.call(&call(&server.base_url(), true, "")).await.unwrap() else {
        panic!("a stream was asked for")
    };
    assert!(stream.next().await.unwrap().is_some());
    until(|| server.stats().in_flight == 2).await;
    drop(stream);
    calls.shutdown().await;
    until(|| server.stats().cancelled == 2).await;
    assert_eq!(server.stats().in_flight, 0);
}

#[tokio::test]
async fn chunks_that_came_together_are_ready_together() {
    let chunk =
        |content: &str| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n");
    let body = format!("{}{}{}", chunk("a"), chunk("b"), chunk("c"));
    let server = Canned::new(&sse_answer(&body)).await;
    let Answer::Stream(mut stream) = transport(|_| {}).call(&call(&server.base_url, true, "")).await.unwrap() else {
        panic!("a stream was asked for")
    };
    assert!(stream.next().await.unwrap().is_some());
    assert_eq!(std::iter::from_fn(|| stream.try_next_ready()).count(), 2);
    for _ in 0..2 {
        assert_eq!(stream.next().await.unwrap_err().class, FailureClass::Cut);
    }
}

#[tokio::test]
async fn answers_beyond_the_bound_are_refused() {
    let server = simulator().await;
    let whole = transport(|config| config.answer_bytes_max = 300);
    assert_eq!(ending(&whole, &call(&server.base_url(), false, "")).await, (0, Err(FailureClass::TooLarge)));
    let stream = transport(|config| config.event_bytes_max = 100);
    assert_eq!(ending(&stream, &call(&server.base_url(), true, "")).await, (0, Err(FailureClass::TooLarge)));
}

#[tokio::test]
async fn a_provider_that_is_not_there_got_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let transport = transport(|_| {});
    assert_eq!(ending(&transport, &call(&base_url, true, "")).await, (0, Err(FailureClass::Connect)));
    assert_eq!(ending(&transport, &call("no url", true, "")).await, (0, Err(FailureClass::Configuration)));
}

/// A server that gives every connection one answer, byte for byte, and keeps what it was asked.
struct Canned {
    base_url: String,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
    _tasks: JoinSet<()>,
}

impl Canned {
    async fn new(pieces: &[&[u8]]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (mut request, mut buffer) = (Vec::new(), [0; 4_096]);
                while !request.ends_with(b"}") {
                    let n = tcp.read(&mut buffer).await.unwrap();
                    request.extend_from_slice(&buffer[..n]);
                }
                ask.send(String::from_utf8(request).unwrap()).unwrap();
                for piece in &pieces {
                    tcp.write_all(piece).await.unwrap();
                    tcp.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        Self { base_url, asked, _tasks: tasks }
    }
}

fn sse_answer(body: &str) -> [&[u8]; 2] {
    [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n", body.as_bytes()]
}

#[tokio::test]
async fn the_provider_gets_the_request_spliced_and_the_credential() {
    let mut server = Canned::new(&sse_answer("")).await;
    let mut call = call(&server.base_url, true, r#","odd": 1e400"#);
    call.upstream.credential = Some(Secret::new("sk-1".into()));
    assert_eq!(ending(&transport(|_| {}), &call).await, (0, Err(FailureClass::Cut)));
    let asked = server.asked.recv().await.unwrap();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer sk-1\r\n"), "{head}");
    let expected = r#"{"model":"up/model","stream":true,"messages":[{"role":"user","content":"Hello there"}],"odd": 1e400,"stream_options":{"include_usage":true}}"#;
    assert_eq!(body, expected);
}

#[tokio::test]
async fn the_decision_table_of_odd_answers() {
    const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n";
    let event =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"é\"},\"finish_reason\":\"stop\"}]}\n\n".as_bytes();
    let middle = event.iter().position(|byte| *byte == 0xc3).unwrap() + 1;
    let text = |text: &str| text.as_bytes().to_vec();
    type Row = (&'static str, bool, Vec<Vec<u8>>, usize, Result<(), FailureClass>);
    let table: Vec<Row> = vec![
        (
            "split UTF-8",
            true,
            vec![text(OK), text("\r\n"), event[..middle].to_vec(), event[middle..].to_vec()],
            1,
            Ok(()),
        ),
        (
            "an error as JSON with status 200",
            true,
            vec![text(OK), text("content-type: application/json\r\n\r\n{\"error\":{\"message\":\"m\"}}")],
            0,
            Err(FailureClass::Upstream),
        ),
        (
            "a whole answer to a streamed request",
            true,
            vec![text(OK), text("content-type: application/json\r\n\r\n{\"choices\":[{}]}")],
            0,
            Err(FailureClass::Garbage),
        ),
        (
            "a stream to a whole request",
            false,
            vec![text(OK), text("content-type: text/event-stream\r\n\r\n"), event.to_vec()],
            0,
            Err(FailureClass::Garbage),
        ),
        ("a page", true, vec![text(OK), text("content-type: text/html\r\n\r\n<html>")], 0, Err(FailureClass::Garbage)),
        ("nothing at all", true, vec![], 0, Err(FailureClass::Cut)),
        ("no HTTP", true, vec![text("hello\r\n\r\n")], 0, Err(FailureClass::Cut)),
        (
            "a redirect is not followed",
            true,
            vec![text("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")],
            0,
            Err(FailureClass::Configuration),
        ),
        (
            "a refusal whose body is cut",
            false,
            vec![text("HTTP/1.1 400 Bad Request\r\ncontent-length: 99\r\n\r\n{\"err")],
            0,
            Err(FailureClass::BadRequest),
        ),
        (
            "a whole answer that is cut",
            false,
            vec![text("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"choi")],
            0,
            Err(FailureClass::Cut),
        ),
        (
            "a stream cut after its finish reason",
            true,
            vec![
                text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
                format!("{:x}\r\n", event.len()).into_bytes(),
                event.to_vec(),
            ],
            1,
            Ok(()),
        ),
    ];
    let transport = transport(|_| {});
    for (rule, stream, pieces, chunks, end) in table {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let server = Canned::new(&pieces).await;
        assert_eq!(ending(&transport, &call(&server.base_url, stream, "")).await, (chunks, end), "{rule}");
    }
}
