//! A provider that does as each request says, and remembers who called it for what.
//!
//! Each process is given a base URL of its own, so that a call tells who made it. What a request wants is in its member
//! `x_test`, which the gateway passes on as every member that it does not know.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a request wants of its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wish {
    pub request: String,
    /// The answer's words, each one event of a stream.
    pub words: u32,
    /// Wait before each word of a stream.
    pub pace_ms: u64,
    /// The process whose calls get no answer before [`Provider::release`].
    pub hold: Option<String>,
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
        let router = Router::new().route("/{by}/v1/chat/completions", post(answer)).with_state(Arc::clone(&shared));
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
    if wish.hold.as_ref() == Some(&call.by) {
        let mut released = shared.released.subscribe();
        let _ = released.wait_for(|released| *released).await;
    }
    let usage = json!({"prompt_tokens": 10, "completion_tokens": wish.words, "total_tokens": 10 + wish.words});
    if !asked.stream {
        let message = json!({"role": "assistant", "content": text(wish.words)});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        let body = json!({"id": "test", "object": "chat.completion", "created": 1, "model": "test",
            "choices": [choice], "usage": usage});
        return Json(body).into_response();
    }
    let events = futures_util::stream::unfold(0, move |done| {
        let (wish, usage) = (wish.clone(), usage.clone());
        async move {
            if done > wish.words {
                return None;
            }
            if done == wish.words {
                let finish = chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), Value::Null);
                let last = format!("{finish}{}data: [DONE]\n\n", chunk(json!([]), usage));
                return Some((Ok::<_, std::io::Error>(last), done + 1));
            }
            tokio::time::sleep(Duration::from_millis(wish.pace_ms)).await;
            let delta = json!({"role": "assistant", "content": format!("{} ", done + 1)});
            let choices = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
            Some((Ok(chunk(choices, Value::Null)), done + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

fn chunk(choices: Value, usage: Value) -> String {
    let chunk = json!({"id": "test", "object": "chat.completion.chunk", "created": 1, "model": "test",
        "choices": choices, "usage": usage});
    format!("data: {chunk}\n\n")
}
