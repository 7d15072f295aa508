//! What requests and plans say of the cache, over HTTP.

use serde_json::{Value, json};
use tollstream::records::control::Caching;

use super::*;

/// Asks with further members in the body: the answer, and what was found.
async fn ask_with(
    place: &Place,
    key: &str,
    members: Value,
    headers: &[(&'static str, &str)],
) -> (Option<String>, Value) {
    let (status, found, answer) = said_to(place, key, members, headers).await;
    assert_eq!(status, 200, "{answer}");
    (found, answer)
}

async fn said_to(
    place: &Place,
    key: &str,
    members: Value,
    headers: &[(&'static str, &str)],
) -> (u16, Option<String>, Value) {
    let mut body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "numbered"}]});
    body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let request =
        place.client.post(format!("{}/v1/chat/completions", place.gateway.facade)).bearer_auth(key).json(&body);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.expect("the facade answers");
    let (status, found) = (response.status().as_u16(), header(&response, CACHE_HEADER));
    (status, found, response.json().await.expect("JSON"))
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("a text")
}

fn asking(question: &str, cache: Value) -> Value {
    json!({"temperature": 0, "messages": [{"role": "user", "content": question}], "cache": cache})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_says_what_it_wants_of_the_cache_and_the_stricter_of_two_words_holds() {
    let mut place = Place::on("wishes", &Engines::shared(), |_| {}).await;
    let producer = Producer::new(&place.config).await;
    let key = member(&place, &producer, "org_wishes", Caching::default()).await;
    let found = async |cache: Value, headers: &[(&'static str, &str)]| {
        ask_with(&place, &key, asking("numbered", cache), headers).await
    };
    // Without a word about temperature it is not looked for.
    assert_eq!(ask_with(&place, &key, json!({}), &[]).await.0, None);
    assert_eq!(found(json!({"no-store": true}), &[]).await.0.as_deref(), Some("miss"));
    let (outcome, first) = found(json!({}), &[]).await;
    assert_eq!(outcome.as_deref(), Some("miss"), "what was not to be kept is not");
    for (cache, headers) in [
        (json!(null), vec![]),
        (json!({"s-maxage": 600, "no-cache": false, "namespace": "x"}), vec![]),
        (json!({}), vec![("cache-control", "max-age=600"), ("cache-control", "private")]),
    ] {
        let (outcome, again) = found(cache.clone(), &headers).await;
        assert_eq!((outcome.as_deref(), text(&again)), (Some("hit"), text(&first)), "{cache}");
    }
    // A new one is wanted, and takes the place of the one that is kept.
    let (outcome, second) = found(json!({"no-cache": true}), &[("cache-control", "max-age=600")]).await;
    assert_eq!(outcome.as_deref(), Some("bypassed"));
    assert_ne!(text(&first), text(&second));
    let (outcome, again) = found(json!({}), &[]).await;
    assert_eq!((outcome.as_deref(), text(&again)), (Some("hit"), text(&second)));
    // A header may come in several parts, and says more than we know.
    let long = format!("{}, no-cache", "x".repeat(300));
    assert_eq!(found(json!({}), &[("cache-control", long.as_str())]).await.0.as_deref(), Some("bypassed"));
    let parts = [("cache-control", "max-age=600"), ("cache-control", "no-store, no-cache")];
    assert_eq!(found(json!({}), &parts).await.0, None);
    // It is kept no longer than its asker wants, by the time of the partition.
    let short = asking("numbered, for a second", json!({"ttl": 1}));
    assert_eq!(ask_with(&place, &key, short.clone(), &[]).await.0.as_deref(), Some("miss"));
    eventually("its time is over", async || {
        let (outcome, _) = ask_with(&place, &key, short.clone(), &[("cache-control", "no-store")]).await;
        (outcome.as_deref() != Some("hit")).then_some(())
    })
    .await;

    let calls = place.upstream.calls();
    for (cache, param, problem) in [
        (json!("no-store"), "cache", "an object is expected"),
        (json!([true]), "cache", "an object is expected"),
        (json!({"no-cache": "yes"}), "cache.no-cache", "a boolean is expected"),
        (json!({"no-store": 1}), "cache.no-store", "a boolean is expected"),
        (json!({"ttl": -1}), "cache.ttl", "a whole number of seconds is expected"),
        (json!({"ttl": "60"}), "cache.ttl", "a whole number of seconds is expected"),
        (json!({"s-maxage": 1.5}), "cache.s-maxage", "a whole number of seconds is expected"),
    ] {
        let (status, _, said) = said_to(&place, &key, asking("numbered", cache.clone()), &[]).await;
        let error = &said["error"];
        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!("invalid_value")), "{cache}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(problem)), "{cache}: {error}");
    }
    for wrong in ["max-age", "max-age=soon", "no-store, max-age=-1"] {
        let headers = [("cache-control", "private"), ("cache-control", wrong)];
        let (status, _, said) = said_to(&place, &key, asking("numbered", json!({})), &headers).await;
        assert_eq!((status, &said["error"]["param"]), (400, &json!("cache-control")), "{wrong}: {said}");
    }
    assert_eq!(place.upstream.calls(), calls, "nobody is called for what is wrong");
    place.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_is_kept_and_how_much_of_it() {
    let mut place = Place::on("plans", &Engines::shared(), |_| {}).await;
    let producer = Producer::new(&place.config).await;
    let tools = json!([{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]);
    let with_tools = json!({"temperature": 0, "tools": tools, "messages": [{"role": "user", "content": "tool"}]});
    let warm = json!({"temperature": 0.7});
    let plain = |question: &str| asking(question, json!({}));
    let (one, two) = (plain("numbered one"), plain("numbered two"));
    let all = Caching { any_temperature: true, tools: true, ..Caching::default() };
    let single = Caching { entries_max: 1, ..Caching::default() };
    let small = Caching { bytes_max: 10, ..Caching::default() };
    let (hit, miss) = (Some("hit"), Some("miss"));
    let table = [
        ("plain", Caching::default(), vec![(&warm, None), (&warm, None), (&with_tools, None), (&with_tools, None)]),
        ("all", all, vec![(&warm, miss), (&warm, hit), (&with_tools, miss), (&with_tools, hit)]),
        ("single", single, vec![(&one, miss), (&one, hit), (&two, miss), (&two, hit), (&one, miss)]),
        ("small", small, vec![(&one, miss), (&one, miss)]),
    ];
    for (name, caching, asks) in table {
        let key = member(&place, &producer, &format!("org_{name}"), caching).await;
        for (number, (body, expected)) in asks.into_iter().enumerate() {
            let (found, _) = ask_with(&place, &key, body.clone(), &[]).await;
            assert_eq!(found.as_deref(), expected, "{name} {number}");
        }
    }
    place.holds().await;
}
