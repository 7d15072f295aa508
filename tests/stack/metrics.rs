//! What a whole gateway tells at `/metrics`.

use std::collections::BTreeMap;

use serde_json::json;
use tollstream::cli::metrics::registered;
use tollstream::domain::PicoUsd;
use tollstream::telemetry::metrics::Kind;

use super::fixture::{eventually, key, rows_at, stack};
use super::process::{Process, run};

/// The value of each series.
async fn scrape(gateway: &Process) -> BTreeMap<String, f64> {
    let text = reqwest::get(format!("{}/metrics", gateway.admin)).await.unwrap().text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    });
    series.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_tells_what_the_guide_says_and_counts_each_leg_of_a_request() {
    let mut config = stack().isolated("metrics").await;
    // Of all clients, the producer too: acknowledgements come in between.
    config.kafka.properties.0.insert("statistics.interval.ms".into(), "20".into());
    let mut gateway = run(&config, "gateway");
    gateway.ready().await;
    let key = key(&config, "org_demo");
    let ask = async |model: &str| {
        let body = json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "Hello"}]});
        let url = format!("{}/v1/chat/completions", gateway.facade);
        let answer = reqwest::Client::new().post(url).bearer_auth(&key).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, text)
    };
    assert_eq!(ask("gpt-4o-mini").await.0, 200);
    assert_eq!(ask("no-such-model").await.0, 404);
    let query = format!("SELECT toString(sum(cost_usd)) AS cost FROM {}.usage_exact", config.clickhouse.database);
    let cost: PicoUsd = eventually("the row", async || {
        let found = rows_at(&config.clickhouse.url, &query).await;
        found[0]["cost"].as_str()?.parse().ok().filter(|cost| *cost > PicoUsd::ZERO)
    })
    .await;
    // A refusal has a row, too.
    let lag_is_told = async || {
        let told = scrape(&gateway).await;
        let caught_up = |group: &str| {
            let of_group = |(series, _): &(&String, &f64)| {
                series.starts_with(&format!("tollstream_consumer_lag_records{{group=\"{group}\""))
            };
            let lags: Vec<f64> = told.iter().filter(of_group).map(|(_, lag)| *lag).collect();
            !lags.is_empty() && lags.iter().all(|lag| *lag == 0.0)
        };
        let is_done = ["processor", "projection", "sink", "facade", "control"].into_iter().all(caught_up)
            && told.get("tollstream_sink_rows_total") == Some(&2.0);
        is_done.then_some(told)
    };
    let told = eventually("every group has caught up", lag_is_told).await;

    let at = |series: &str| *told.get(series).unwrap_or_else(|| panic!("no {series} in {told:#?}"));
    let once = [
        "tollstream_facade_requests_total{outcome=\"2xx\"}",
        "tollstream_facade_request_duration_seconds_count{outcome=\"2xx\"}",
        "tollstream_facade_first_frame_seconds_count",
        "tollstream_facade_errors_total{code=\"model_not_found\"}",
        "tollstream_processor_requests_refused_total{code=\"model_not_found\"}",
        "tollstream_processor_requests_settled_total{outcome=\"completed\"}",
        "tollstream_processor_overhead_seconds_count",
        "tollstream_provider_calls_total{deployment=\"openai-gpt-4o-mini\",outcome=\"completed\"}",
        "tollstream_provider_call_seconds_count{deployment=\"openai-gpt-4o-mini\"}",
        "tollstream_provider_first_token_seconds_count{model=\"gpt-4o-mini\"}",
        "tollstream_kafka_acknowledgement_seconds_count{topic=\"usage\"}",
    ];
    for series in once {
        let observed = told.get(series).copied().unwrap_or_default();
        assert!(observed >= 1.0, "{series} is {observed} in {told:#?}");
    }
    assert!(at("tollstream_tokens_total{model=\"gpt-4o-mini\",class=\"output\"}") > 0.0);
    let dollars = at("tollstream_cost_usd_total{model=\"gpt-4o-mini\"}");
    assert_eq!(dollars, cost.get() as f64 / 1e12, "{cost}");
    assert!(at("tollstream_kafka_acknowledgement_seconds_count{topic=\"journal\"}") >= 2.0);
    let overhead = at("tollstream_processor_overhead_seconds_sum");
    assert!(overhead > 0.0 && overhead < at("tollstream_facade_request_duration_seconds_sum{outcome=\"2xx\"}") + 1.0);
    for series in
        ["tollstream_sink_behind_seconds", "tollstream_sink_waiting_rows", "tollstream_processor_requests_open"]
    {
        assert_eq!(at(series), 0.0, "{series}");
    }
    assert_eq!(at("tollstream_component_state{component=\"sink\",state=\"ready\"}"), 1.0);

    let known: BTreeMap<_, _> = registered().descriptions().into_iter().map(|of| (of.name.clone(), of)).collect();
    for series in told.keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let stem = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| name.strip_suffix(part));
        let of = stem.and_then(|stem| known.get(stem).filter(|of| of.kind == Kind::Histogram)).or(known.get(name));
        let of = of.unwrap_or_else(|| panic!("{name} is not in the guide"));
        for label in labels.split("\",").filter_map(|part| Some(part.split_once('=')?.0)) {
            assert!(of.labels.contains(&label) || label == "le", "{series} has {label}");
        }
    }
    let unseen: Vec<_> = known.keys().filter(|name| !told.keys().any(|series| series.starts_with(&***name))).collect();
    let may_be_unseen = |name: &&&String| {
        ["tollstream_deployment_", "tollstream_provider_failures_total", "tollstream_cost_unknown"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    assert!(unseen.iter().all(|name| may_be_unseen(&name)), "the guide tells of {unseen:?}");
    gateway.stop().await;
}
