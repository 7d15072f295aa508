//! A request from the question to the row, over HTTP.

use std::time::Duration;

use serde_json::{Value, json};
use tollstream::domain::PicoUsd;

use super::fixture::{eventually, rows, stack};

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The `data:` of each event.
    fn events(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }
}

async fn ask_with(key: &str, path: &str, body: Value) -> Answer {
    let answer = reqwest::Client::new()
        .post(format!("{}{path}", stack().description.facade))
        .bearer_auth(key)
        .timeout(Duration::from_secs(60))
        .json(&body)
        .send()
        .await
        .expect("the facade answers");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Answer { status, headers, text: answer.text().await.expect("a body") }
}

async fn ask(body: Value) -> Answer {
    ask_with(&stack().description.api_key, "/v1/chat/completions", body).await
}

fn question(model: &str, stream: bool) -> Value {
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "How do I reset my password?"}]})
}

async fn row(request_id: &str) -> Value {
    let description = &stack().description;
    let query = format!(
        "SELECT *, toString(cost_usd) AS cost FROM {}.usage_exact WHERE request_id = '{request_id}'",
        description.database
    );
    eventually("a row in ClickHouse", async || rows(description, &query).await.pop()).await
}

#[tokio::test]
async fn a_streamed_answer_has_the_shape_that_sdks_expect_and_leaves_a_row() {
    let mut body = question("gpt-4o-mini", true);
    body["stream_options"] = json!({"include_usage": true});
    let answer = ask(body).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    assert_eq!(answer.header("x-tollstream-model"), "gpt-4o-mini");
    let events = answer.events();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    let ids: std::collections::BTreeSet<&str> = chunks.iter().filter_map(|c| c["id"].as_str()).collect();
    assert_eq!(ids.len(), 1, "one id: {ids:?}");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let finish: Vec<&Value> =
        chunks.iter().map(|c| &c["choices"][0]["finish_reason"]).filter(|f| !f.is_null()).collect();
    assert_eq!(finish, [&json!("stop")]);
    let usage = &chunks[chunks.len() - 1]["usage"];
    assert!(usage["prompt_tokens"].as_u64() > Some(0) && usage["completion_tokens"].as_u64() > Some(0), "{usage}");
    assert_eq!(answer.text.lines().filter(|line| line.starts_with("id: ")).count(), chunks.len());

    let row = row(answer.header("x-request-id")).await;
    assert_eq!((row["outcome"].as_str(), row["request_outcome"].as_str()), (Some("completed"), Some("completed")));
    assert_eq!(row["organization"], "org_demo");
    // 0.15 and 0.60 dollars per million tokens are 150,000 and 600,000 pico-dollars per token.
    let cost =
        usage["prompt_tokens"].as_i64().unwrap() * 150_000 + usage["completion_tokens"].as_i64().unwrap() * 600_000;
    let posted: PicoUsd = row["cost"].as_str().expect("a cost").parse().expect("dollars");
    assert_eq!(posted, PicoUsd::new(i128::from(cost)));
    assert_nothing_of_the_key_is_in_clickhouse(row["key_id"].as_str().expect("the key's id")).await;
}

/// Every column of every table: the key's id is there, its secret and its hash are not.
async fn assert_nothing_of_the_key_is_in_clickhouse(key_id: &str) {
    let description = &stack().description;
    let tables = rows(description, &format!("SHOW TABLES FROM {}", description.database)).await;
    let hash = tollstream::topology::keys::hash(&description.api_key);
    let mut found = [0, 0, 0];
    for table in &tables {
        let (database, name) = (&description.database, table["name"].as_str().expect("a name"));
        for (text, found) in [key_id, &description.api_key, &hash].into_iter().zip(&mut found) {
            let query =
                format!("SELECT count() AS n FROM {database}.{name} WHERE position(toString(tuple(*)), '{text}') > 0");
            let count = &rows(description, &query).await[0]["n"];
            *found += count.as_u64().or_else(|| count.as_str()?.parse().ok()).expect("a number");
        }
    }
    assert!(found[0] > 0 && found[1..] == [0, 0], "{found:?} of {} tables", tables.len());
}

#[tokio::test]
async fn a_whole_answer_says_what_it_cost() {
    let answer = ask(question("claude-haiku", false)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let completion = answer.json();
    assert_eq!(completion["object"], "chat.completion");
    let id = format!("chatcmpl-{}", answer.header("x-request-id"));
    assert_eq!(completion["id"], json!(id));
    let told: PicoUsd = answer.header("x-tollstream-cost-usd").parse().expect("dollars");
    let row = row(answer.header("x-request-id")).await;
    let posted: PicoUsd = row["cost"].as_str().expect("a cost").parse().expect("dollars");
    assert!(told > PicoUsd::ZERO && told == posted, "{told} and {posted}");
    assert_eq!(answer.header("x-tollstream-tier"), "2");
}

#[tokio::test]
async fn auto_is_answered_by_the_policy_and_the_old_path_works() {
    let key = &stack().description.api_key;
    let answer = ask_with(key, "/ai/chat/completions", question("auto", false)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let row = row(answer.header("x-request-id")).await;
    assert_eq!((row["requested_model"].as_str(), row["policy"].as_str()), (Some("auto"), Some("auto")));
}

#[tokio::test]
async fn errors_are_plain_http_errors_in_openais_shape() {
    let key = &stack().description.api_key;
    let mut foreign = question("gpt-4o-mini", true);
    foreign["metadata"] = json!({"organization_id": "org_of_somebody_else"});
    let table = [
        (key.as_str(), question("no-such-model", true), 404, "model_not_found"),
        ("tsk_wrong", question("gpt-4o-mini", true), 401, "invalid_api_key"),
        (key.as_str(), foreign, 403, "organization_not_covered"),
        (key.as_str(), json!({"model": "gpt-4o-mini", "messages": []}), 400, "invalid_value"),
    ];
    for (key, body, status, code) in table {
        let answer = ask_with(key, "/v1/chat/completions", body).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()) && error["type"].is_string(), "{error}");
    }
}

#[tokio::test]
async fn the_missions_metadata_reaches_the_row() {
    let mut body = question("gpt-4o-mini", false);
    body["metadata"] = json!({"organization_id": "org_demo", "user_tier": "vip", "team": "support"});
    let answer = ask(body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let row = row(answer.header("x-request-id")).await;
    assert_eq!((row["user_tier"].as_str(), row["tags"]["team"].as_str()), (Some("vip"), Some("support")));
}
