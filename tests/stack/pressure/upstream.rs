//! A provider whose answers the questions choose by their words: `stall` (headers and then nothing), `slow=N` (N words, one
//! every 100 ms), `pause` (a word and then nothing), `status=CODE`, `bytes=N` (an answer with so much text), `numbered…` (an
//! answer that no other call gives), `tool` (a call of a tool); else an answer at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::{Response, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream::{self, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub struct Upstream {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Upstream {
    pub async fn start() -> Self {
        Self::on(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let (mut tasks, calls) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        tasks.spawn(async move {
            let answer = move |request: Json<Value>| {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                answer(number, request)
            };
            let service = TowerToHyperService::new(
                Router::new().route("/v1/chat/completions", post(answer)).layer(DefaultBodyLimit::disable()),
            );
            // Owned, so that they end with it.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, calls, tasks }
    }

    /// How often it was asked.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Nothing listens there any more.
    pub async fn stop(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.address
    }
}

async fn answer(number: usize, Json(request): Json<Value>) -> Response<Body> {
    assert!(request.get("cache").is_none(), "what is said to the gateway alone: {request}");
    let question = request["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
    let of = |name: &str| question.strip_prefix(name).and_then(|number| number.trim().parse::<usize>().ok());
    if let Some(code) = of("status=") {
        let status = StatusCode::from_u16(code as u16).expect("a status");
        let body = json!({"error": {"message": "not now", "type": "server_error", "code": null}}).to_string();
        return response(status, "application/json", Body::from(body), Some("7"));
    }
    if request["stream"] != true {
        if question == "stall" {
            std::future::pending::<()>().await;
        }
        let text = match question.starts_with("numbered") {
            true => numbered(number),
            false => "x".repeat(of("bytes=").unwrap_or(5)),
        };
        let (message, reason) = match question.as_str() {
            "tool" => (json!({"role": "assistant", "content": null, "tool_calls": [tool_call()]}), "tool_calls"),
            _ => (json!({"role": "assistant", "content": text}), "stop"),
        };
        let body = json!({"id": "u", "object": "chat.completion", "created": 1, "model": "m", "usage": usage(),
            "choices": [{"index": 0, "message": message, "finish_reason": reason}]});
        return response(StatusCode::OK, "application/json", Body::from(body.to_string()), None);
    }
    let end = stream::iter([chunk(json!({}), Some("stop")), last(), "data: [DONE]\n\n".to_owned()]);
    let word = || chunk(json!({"role": "assistant", "content": "word "}), None);
    let events = match question.as_str() {
        "stall" => stream::pending().boxed(),
        "pause" => stream::iter([word()]).chain(stream::pending()).boxed(),
        _ if question.starts_with("slow=") => {
            let most = of("slow=").unwrap_or_default();
            let pace = tokio::time::interval(Duration::from_millis(100));
            stream::unfold((pace, 0), move |(mut pace, words)| async move {
                pace.tick().await;
                (words < most).then(|| (chunk(json!({"content": "word "}), None), (pace, words + 1)))
            })
            .chain(end)
            .boxed()
        }
        _ if question.starts_with("numbered") => {
            stream::iter([chunk(json!({"content": numbered(number)}), None)]).chain(end).boxed()
        }
        _ => stream::iter([word()]).chain(end).boxed(),
    };
    let events = events.map(Ok::<_, Infallible>);
    response(StatusCode::OK, "text/event-stream", Body::from_stream(events), None)
}

fn response(status: StatusCode, content_type: &str, body: Body, retry_after: Option<&str>) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", content_type);
    let response = match retry_after {
        Some(seconds) => response.header("retry-after", seconds),
        None => response,
    };
    response.body(body).expect("a response")
}

/// The text that this call alone gives.
fn numbered(number: usize) -> String {
    format!("ANSWER-CANARY-{number:04}-of-the-provider")
}

fn tool_call() -> Value {
    json!({"id": "t", "type": "function", "function": {"name": "look_up", "arguments": "{}"}})
}

fn usage() -> Value {
    json!({"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10})
}

fn chunk(delta: Value, finish_reason: Option<&str>) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    let chunk = json!({"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
    format!("data: {chunk}\n\n")
}

fn last() -> String {
    let chunk = json!({"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
        "usage": usage()});
    format!("data: {chunk}\n\n")
}
