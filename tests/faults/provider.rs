//! A provider that does as each request says, and remembers who called it for what.
//!
//! Each process is given a base URL of its own, so that a call tells who made it. What a request wants is in its member
//! `x_test`, which the gateway passes on as every member that it does not know.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Holds the calls of every process.
pub const EVERYBODY: &str = "everybody";

/// What a request wants of its answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wish {
    pub request: String,
    /// The answer's words, each one event of a stream.
    pub words: u32,
    /// Wait before each word of a stream.
    pub pace_ms: u64,
    /// The process whose calls get no answer before [`Provider::release`].
    pub hold: Option<String>,
    /// What is reported as used, as it stands; by the words by default.
    pub usage: Option<Value>,
    pub reported: Reported,
    pub failure: Option<Failure>,
}

/// Where in a stream it says what it used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reported {
    /// In a last chunk without choices.
    #[default]
    Apart,
    /// In the chunk with the finish reason.
    AtTheFinish,
    /// In the chunk with the last word, which has the finish reason, too.
    WithTheLastWord,
    /// In every chunk, the finish among them; before it with other figures.
    Everywhere,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// With this status.
    Status(u16),
    /// A stream that ends behind its words; an answer that is no JSON.
    Cut,
}

/// The text of an answer.
pub fn text(words: u32) -> String {
    (1..=words).map(|word| format!("{word} ")).collect()
}

/// A call that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub by: String,
    pub request: String,
}

struct Shared {
    calls: Mutex<Vec<Call>>,
    released: watch::Sender<bool>,
}

pub struct Provider {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Ends with this value.
    _serving: JoinSet<()>,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    stream: bool,
    x_test: Wish,
}

impl Provider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { calls: Mutex::default(), released: watch::Sender::new(false) });
        let router = Router::new()
            .route("/{by}/v1/chat/completions", post(answer))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { address, shared, _serving: serving }
    }

    /// The base URL for the process of this name.
    pub fn base_url(&self, by: &str) -> String {
        format!("http://{}/{by}/v1", self.address)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who called for a request, in order.
    pub fn callers(&self, request: &str) -> Vec<String> {
        self.calls().into_iter().filter(|call| call.request == request).map(|call| call.by).collect()
    }

    /// Lets the calls go on that are held.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }
}

async fn answer(State(shared): State<Arc<Shared>>, Path(by): Path<String>, Json(asked): Json<Asked>) -> Response {
    let wish = asked.x_test;
    let call = Call { by, request: wish.request.clone() };
    shared.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
    if wish.hold.as_ref().is_some_and(|held| *held == call.by || held == EVERYBODY) {
        let mut released = shared.released.subscribe();
        let _ = released.wait_for(|released| *released).await;
    }
    if let Some(Failure::Status(status)) = wish.failure {
        let status = StatusCode::from_u16(status).expect("a status");
        let error = json!({"error": {"message": "not now", "type": "server_error", "code": null}});
        return (status, Json(error)).into_response();
    }
    let by_words = json!({"prompt_tokens": 10, "completion_tokens": wish.words, "total_tokens": 10 + wish.words});
    let usage = wish.usage.clone().unwrap_or(by_words);
    if !asked.stream {
        let message = json!({"role": "assistant", "content": text(wish.words)});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        let body = json!({"id": "test", "object": "chat.completion", "created": 1, "model": "test",
            "choices": [choice], "usage": usage});
        return match wish.failure {
            Some(_) => "{".into_response(),
            None => Json(body).into_response(),
        };
    }
    let events = futures_util::stream::unfold(0, move |done| {
        let (wish, usage) = (wish.clone(), usage.clone());
        async move {
            if done > wish.words {
                return None;
            }
            if done == wish.words {
                return wish.failure.is_none().then(|| (Ok::<_, std::io::Error>(end(wish.reported, usage)), done + 1));
            }
            tokio::time::sleep(Duration::from_millis(wish.pace_ms)).await;
            let is_last = done + 1 == wish.words && wish.reported == Reported::WithTheLastWord;
            let delta = json!({"role": "assistant", "content": format!("{} ", done + 1)});
            let finish_reason = is_last.then_some("stop");
            let so_far = json!({"prompt_tokens": 1, "completion_tokens": done, "total_tokens": done + 1});
            let reported = match wish.reported {
                Reported::WithTheLastWord if is_last => usage,
                Reported::Everywhere => so_far,
                _ => Value::Null,
            };
            Some((Ok(chunk(json!([{"index": 0, "delta": delta, "finish_reason": finish_reason}]), reported)), done + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

/// What follows the words of a stream.
fn end(reported: Reported, usage: Value) -> String {
    let finish = |usage| chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), usage);
    let chunks = match reported {
        Reported::Apart => finish(Value::Null) + &chunk(json!([]), usage),
        Reported::AtTheFinish | Reported::Everywhere => finish(usage),
        Reported::WithTheLastWord => String::new(),
    };
    chunks + "data: [DONE]\n\n"
}

fn chunk(choices: Value, usage: Value) -> String {
    let chunk = json!({"id": "test", "object": "chat.completion.chunk", "created": 1, "model": "test",
        "choices": choices, "usage": usage});
    format!("data: {chunk}\n\n")
}
