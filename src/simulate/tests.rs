//! The simulator over HTTP.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;

struct Fixture {
    server: Server,
    client: reqwest::Client,
}

async fn started(options: Options) -> Fixture {
    crate::tls::install_provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    Fixture { server: Server::start(options, listener).unwrap(), client }
}

async fn instant() -> Fixture {
    started(Options { behavior: Behavior::instant(), ..Options::default() }).await
}

impl Fixture {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.addr())
    }

    async fn ask(&self, body: &Value) -> (u16, Value) {
        let response = self.client.post(self.url("/v1/chat/completions")).json(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(self.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

fn hello() -> Value {
    json!({ "model": "gpt-4o", "messages": [{ "role": "user", "content": "Olá, qual é o prazo?" }] })
}

fn with(key: &str, value: Value) -> Value {
    let mut body = hello();
    body[key] = value;
    body
}

#[tokio::test]
async fn the_same_question_has_the_same_answer_for_ever() {
    let (first, second) = (instant().await, instant().await);
    let content = |answer: Value| answer["choices"].clone();
    let answer = content(first.ask(&hello()).await.1);
    assert_eq!(answer, content(first.ask(&hello()).await.1));
    assert_eq!(answer, content(second.ask(&hello()).await.1));
    let other = started(Options { seed: 9, behavior: Behavior::instant(), ..Options::default() }).await;
    assert_ne!(answer, content(other.ask(&hello()).await.1));
}

#[tokio::test]
async fn models_are_listed_and_any_name_is_one() {
    let fixture = instant().await;
    let (_, list) = fixture.get("/v1/models").await;
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    for name in ["llama-3.2-3b-instruct", "gpt-4o-mini", "claude-opus-4-6"] {
        assert!(ids.contains(&name), "{ids:?}");
    }
    let (status, model) = fixture.get("/v1/models/meta-llama/anything").await;
    assert_eq!((status, &model["id"]), (200, &json!("meta-llama/anything")));
}

#[tokio::test]
async fn what_is_wrong_is_refused_in_openais_shape() {
    let fixture = instant().await;
    let (status, error) = fixture.ask(&json!({ "model": "m" })).await;
    assert_eq!((status, &error["error"]["type"]), (400, &json!("invalid_request_error")));
    assert_eq!(error["error"]["param"], "messages");
    assert_eq!(fixture.ask(&with("x_simulate_fault", json!("fire"))).await.0, 400);
    let (status, error) = fixture.get("/v1/engines").await;
    assert_eq!((status, error["error"]["message"].is_string()), (404, true));
}

#[tokio::test]
async fn the_behavior_changes_while_it_runs() {
    let fixture = instant().await;
    let url = fixture.url("/admin/behavior");
    let changes = json!({ "faults": ["status=429:100%"], "output_tokens": 3 });
    let now: Value = fixture.client.put(&url).json(&changes).send().await.unwrap().json().await.unwrap();
    assert_eq!((&now["faults"], &now["ttft_ms"]), (&json!(["status=429:100%"]), &json!(0)));
    assert_eq!(fixture.ask(&hello()).await.0, 429);
    // A request may except itself.
    let (status, answer) = fixture.ask(&with("x_simulate_fault", json!("none"))).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(3)));
    fixture.client.put(&url).json(&json!({})).send().await.unwrap();
    assert_eq!(fixture.ask(&hello()).await.0, 200);
    let refused = fixture.client.put(&url).json(&json!({ "colour": 1 })).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 400);
    assert_eq!((fixture.server.stats().faulted, fixture.server.stats().completed), (1, 2));
}

#[tokio::test]
async fn a_header_asks_for_a_fault() {
    let fixture = instant().await;
    let request = fixture.client.post(fixture.url("/v1/chat/completions")).header("x-simulate-fault", "status=503");
    let response = request.json(&hello()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "1"));
}

#[tokio::test]
async fn providers_errors_are_served_as_they_document_them() {
    let fixture = instant().await;
    for error in errors::ALL {
        for stream in [false, true] {
            let name = format!("{}/{}", error.provider, error.name);
            let mut body = with("x_simulate_fault", json!(name));
            body["stream"] = json!(stream);
            let response = fixture.client.post(fixture.url("/v1/chat/completions")).json(&body).send().await.unwrap();
            assert_eq!(response.status().as_u16(), error.status, "{name}");
            assert_eq!(response.headers()["content-type"], "application/json", "{name}");
            for (header, value) in error.headers {
                assert_eq!(response.headers()[*header], *value, "{name}");
            }
            assert_eq!(response.text().await.unwrap(), error.body, "{name}");
        }
    }
    assert_eq!(fixture.server.stats().faulted, 2 * errors::ALL.len() as u64);
}

#[tokio::test]
async fn a_wait_can_be_another_than_the_documented_one() {
    let fixture = instant().await;
    for fault in
        ["status=429;retry-after=30", "openai/rate_limit;retry-after=30", "anthropic/overloaded;retry-after=30"]
    {
        let request = fixture.client.post(fixture.url("/v1/chat/completions")).header("x-simulate-fault", fault);
        let response = request.json(&hello()).send().await.unwrap();
        assert_eq!(response.headers()["retry-after"], "30", "{fault}");
        assert!(!response.headers().contains_key("retry-after-ms"), "{fault}");
    }
}

#[tokio::test]
async fn a_providers_error_comes_inside_a_stream_as_an_event() {
    let fixture = instant().await;
    let last = async |fault: &str| {
        let mut body = with("x_simulate_fault", json!(fault));
        body["stream"] = json!(true);
        let response = fixture.client.post(fixture.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        response.text().await.unwrap()
    };
    let text = last("anthropic/overloaded-after=0").await;
    assert!(text.starts_with("event: error\ndata: {\"type\":\"error\""), "{text}");
    let text = last("openai/overloaded-after=2").await;
    assert_eq!(text.matches("data: ").count(), 4, "a role, two tokens and the error: {text}");
    assert!(text.ends_with(&format!("data: {}\n\n", errors::named("openai/overloaded").unwrap().body)), "{text}");
}

#[tokio::test]
async fn one_simulator_is_a_sound_deployment_and_a_sick_one() {
    let fixture = instant().await;
    let faults = ["sick*@status=503", "out@openai/quota"].map(|rule| rule.parse().unwrap()).to_vec();
    fixture.server.set_behavior(Behavior { faults, ..Behavior::instant() });
    for (model, status) in [("sick-1", 503), ("sick-2", 503), ("out", 429), ("well", 200), ("out-not", 200)] {
        assert_eq!(fixture.ask(&with("model", json!(model))).await.0, status, "{model}");
    }
}

#[tokio::test]
async fn the_pace_is_kept() {
    let fixture = instant().await;
    let pace =
        Behavior { ttft_ms: Some(60), tokens_per_second: Some(100), output_tokens: Some(10), ..Behavior::instant() };
    fixture.server.set_behavior(pace);
    for body in [hello(), with("stream", json!(true))] {
        let begin = Instant::now();
        let response = fixture.client.post(fixture.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        response.bytes().await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(60 + 90), "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn a_long_prompt_that_was_seen_before_is_cached() {
    let caching = Options { behavior: Behavior::instant(), prompt_caching: true, ..Options::default() };
    let fixture = started(caching).await;
    let cached = |answer: Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let long = json!({ "role": "system", "content": "x".repeat(8_000) });
    let ask = |question: &str| json!({ "model": "m", "messages": [long, { "role": "user", "content": question }] });
    assert_eq!(cached(fixture.ask(&ask("one")).await.1), 0);
    assert_eq!(cached(fixture.ask(&ask("two")).await.1), 1_920);
    assert_eq!(cached(fixture.ask(&hello()).await.1), 0);
    assert_eq!(cached(fixture.ask(&hello()).await.1), 0);
}

#[tokio::test]
async fn stopping_ends_what_is_under_way() {
    let fixture = instant().await;
    let stalled = with("stream", json!(true));
    let request = fixture.client.post(fixture.url("/v1/chat/completions")).header("x-simulate-fault", "stall");
    let response = request.json(&stalled).send().await.unwrap();
    fixture.server.stop().await;
    assert!(response.bytes().await.is_err());
}

#[tokio::test]
async fn only_loopback_is_served() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    assert!(matches!(Server::start(Options::default(), listener), Err(Error::NotLoopback(_))));
}
