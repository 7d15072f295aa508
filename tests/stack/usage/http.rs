//! Usage over HTTP, from a gateway to the answer of ClickHouse.

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tollstream::config::Config;
use tollstream::domain::PicoUsd;

use crate::stack::fixture::{eventually, key, stack};
use crate::stack::process::{Launch, Process};
use crate::stack::stream::ORGANIZATION;

const ADMIN_KEY: &str = "tsa_test_0123456789abcdef0123456789abcdef";

struct Place {
    gateway: Process,
    key: String,
    client: Client,
}

impl Place {
    async fn new(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = stack().isolated(name).await;
        let simulator = stack().description.simulator.as_ref().expect("a simulator");
        config.providers.upstream_override = Some(format!("{simulator}/v1"));
        let key = key(&config, ORGANIZATION);
        change(&mut config);
        let launch = Launch { instance: name, ..Launch::default() };
        let environment = [("TOLLSTREAM_ADMIN_KEY", ADMIN_KEY)];
        let mut gateway = Process::start_with(&config, launch, &environment);
        gateway.ready().await;
        Self { gateway, key, client: Client::new() }
    }

    async fn ask(&self, model: &str) {
        self.ask_in(model, None).await;
    }

    /// Asks within a conversation.
    async fn ask_in(&self, model: &str, conversation: Option<&str>) {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "metadata": {"team": "support"}});
        let url = format!("{}/v1/chat/completions", self.gateway.facade);
        let mut request = self.client.post(url).bearer_auth(&self.key).json(&body);
        if let Some(conversation) = conversation {
            request = request.header("x-tollstream-conversation", conversation);
        }
        assert_eq!(request.send().await.expect("an answer").status(), StatusCode::OK);
    }

    async fn get(&self, url: String, key: &str) -> (u16, reqwest::header::HeaderMap, String) {
        let answer = self.client.get(url).bearer_auth(key).send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, answer.text().await.expect("a body"))
    }

    async fn usage(&self, query: &str) -> Value {
        let (status, _, text) = self.get(format!("{}/v1/usage?{query}", self.gateway.facade), &self.key).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_the_keys_organizations_and_says_how_fresh_it_is() {
    let place = Place::new("usage_http", |_| {}).await;
    let nothing = place.usage("").await;
    assert_eq!((&nothing["as_of"], &nothing["data"][0]["requests"]), (&Value::Null, &json!(0)));
    for model in ["gpt-4o-mini", "gpt-4o-mini", "claude-haiku"] {
        place.ask(model).await;
    }
    let whole = eventually("all rows", async || {
        let usage = place.usage("").await;
        (usage["data"][0]["requests"] == 3).then_some(usage)
    })
    .await;
    assert_eq!((&whole["organization"], &whole["has_more"]), (&json!(ORGANIZATION), &json!(false)));
    assert!(whole["as_of"].as_str().is_some_and(|as_of| as_of.ends_with('Z')), "{whole}");
    let cost: PicoUsd = whole["data"][0]["cost_usd"].as_str().expect("dollars").parse().expect("dollars");

    let by_model = place.usage("group_by=model,tag:team").await;
    let rows = by_model["data"].as_array().expect("rows");
    let told: Vec<_> = rows.iter().map(|row| (row["tag"].as_str(), row["requests"].as_u64())).collect();
    assert_eq!(told, [(Some("support"), Some(1)), (Some("support"), Some(2))]);
    let sum = rows.iter().map(|row| row["cost_usd"].as_str().unwrap().parse::<PicoUsd>().unwrap());
    assert_eq!(sum.fold(PicoUsd::ZERO, PicoUsd::saturating_add), cost, "to the last pico-dollar");

    // Pages have every group once.
    let (first, second) =
        (place.usage("group_by=model&limit=1").await, place.usage("group_by=model&limit=1&offset=1").await);
    assert_eq!((&first["has_more"], &second["has_more"]), (&json!(true), &json!(false)));
    assert_eq!([&first["data"][0]["model"], &second["data"][0]["model"]], [&rows[0]["model"], &rows[1]["model"]]);

    let url = format!("{}/ai/usage?group_by=model&format=csv", place.gateway.facade);
    let (status, headers, csv) = place.get(url, &place.key).await;
    assert_eq!((status, &headers["content-type"]), (200, &"text/csv; charset=utf-8".parse().unwrap()));
    assert!(headers.contains_key("x-tollstream-as-of") && csv.starts_with("\"model\",\"requests\""), "{csv}");
    assert_eq!(csv.lines().count(), 3, "{csv}");

    let url = |query: &str| format!("{}/admin/v1/usage{query}", place.gateway.admin);
    let (status, _, text) = place.get(url("?group_by=organization"), ADMIN_KEY).await;
    assert_eq!(status, 200, "{text}");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(all["data"][0]["organization"], ORGANIZATION);
    let (_, _, text) = place.get(url("?organization=nobody"), ADMIN_KEY).await;
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["data"][0]["requests"], 0);
    assert_eq!(place.get(url(""), &place.key).await.0, 403, "a client's key is no operator's");
    place.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_are_told_by_model() {
    let place = Place::new("conversations_http", |_| {}).await;
    let url = |query: &str| format!("{}/api/conversations/analytics/models?{query}", place.gateway.facade);
    let get = async |query: &str| {
        let (status, _, text) = place.get(url(query), &place.key).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let nothing = get("").await;
    assert_eq!((&nothing["as_of"], &nothing["data"]), (&Value::Null, &json!([])));
    for (model, conversation) in [
        ("gpt-4o-mini", Some("first")),
        ("gpt-4o-mini", Some("first")),
        ("gpt-4o-mini", Some("second")),
        ("claude-haiku", Some("first")),
        ("gpt-4o-mini", None),
    ] {
        place.ask_in(model, conversation).await;
    }
    eventually("all rows", async || (place.usage("").await["data"][0]["requests"] == 5).then_some(())).await;
    let told = get("").await;
    assert_eq!((&told["organization"], &told["has_more"]), (&json!(ORGANIZATION), &json!(false)));
    assert!(told["as_of"].as_str().is_some_and(|as_of| as_of.ends_with('Z')), "{told}");
    assert!(told.get("group_by").is_none(), "{told}");
    let rows = told["data"].as_array().expect("rows");
    let counts: Vec<_> =
        rows.iter().map(|row| ["conversations", "requests", "attempts"].map(|of| row[of].as_u64())).collect();
    assert_eq!(counts, [[Some(1); 3], [Some(2), Some(3), Some(3)]], "{told}");
    assert_eq!((&rows[0]["model"], &rows[1]["model"]), (&json!("claude-haiku-4-5"), &json!("gpt-4o-mini")));

    // To the last pico-dollar what the same conversations are in the usage of the organization.
    let dollars = |value: &Value| value.as_str().expect("dollars").parse::<PicoUsd>().expect("dollars").get();
    let usage = place.usage("group_by=model,conversation").await;
    for row in rows {
        let same = usage["data"].as_array().expect("rows").iter();
        let same: Vec<&Value> =
            same.filter(|other| other["model"] == row["model"] && !other["conversation"].is_null()).collect();
        let cost: i128 = same.iter().map(|other| dollars(&other["cost_usd"])).sum();
        assert_eq!((dollars(&row["cost_usd"]), dollars(&row["mean_usd"])), (cost, cost / same.len() as i128), "{row}");
        let tokens: u64 = same.iter().map(|other| other["output_tokens"].as_u64().expect("tokens")).sum();
        assert_eq!(
            (&row["output_tokens"], &row["unknown_cost"], &row["left_out"]),
            (&json!(tokens), &json!(0), &json!(0))
        );
        assert!(row["first_token_p95_ms"].as_u64() >= row["first_token_p50_ms"].as_u64(), "{row}");
    }

    let (first, second) = (get("limit=1").await, get("limit=1&offset=1").await);
    assert_eq!((&first["has_more"], &second["has_more"]), (&json!(true), &json!(false)));
    assert_eq!([&first["data"][0], &second["data"][0]], [&rows[0], &rows[1]]);
    assert_eq!(get("end_date=2026-01-31").await["data"], json!([]), "before there was anything");
    let (status, headers, csv) = place.get(url("format=csv"), &place.key).await;
    assert_eq!((status, &headers["content-type"]), (200, &"text/csv; charset=utf-8".parse().unwrap()));
    assert!(headers.contains_key("x-tollstream-as-of") && csv.starts_with("\"model\",\"conversations\","), "{csv}");
    assert_eq!(csv.lines().count(), 3, "{csv}");
    for wrong in
        ["start_date=2026-11-02&end_date=2026-11-01", "end_date=2026-02-30", "start_date=2020-01-01", "group_by=day"]
    {
        let (status, _, text) = place.get(url(wrong), &place.key).await;
        assert!(status == 400 && text.contains("invalid_value"), "{wrong}: {status} {text}");
    }
    place.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_clickhouse_is_away_usage_says_so_and_requests_are_answered() {
    // Nothing listens on port 1.
    let place = Place::new("usage_away", |config| config.clickhouse.url = "http://127.0.0.1:1".into()).await;
    place.ask("gpt-4o-mini").await;
    for path in ["v1/usage", "api/conversations/analytics/models"] {
        let (status, headers, text) = place.get(format!("{}/{path}", place.gateway.facade), &place.key).await;
        assert_eq!(status, 503, "{text}");
        assert!(headers.contains_key("retry-after") && text.contains("usage_unavailable"), "{text}");
        assert!(text.contains("clickhouse is away") && !text.contains("127.0.0.1"), "{text}");
    }
    place.gateway.stop().await;
}
