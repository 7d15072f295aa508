//! Traces, as a receiver of OTLP gets them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as Ended;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tollstream::config::Config;
use tollstream::records::Topic;
use tollstream::runtime::kafka;
use tollstream::stack::free_port;

use super::fixture::{PATIENCE, eventually, key, stack};
use super::process::{Launch, Process};

const QUESTION: &str = "a question that nobody else may read";
const ANSWER: &str = "an answer that nobody else may read";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// A receiver, and a provider that answers, or fails.
struct Outside {
    receiver: SocketAddr,
    provider: SocketAddr,
    seen: Arc<Seen>,
    _servers: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    spans: Mutex<Vec<Span>>,
    bodies: Mutex<Vec<Bytes>>,
    services: Mutex<BTreeSet<String>>,
    /// What the provider was told.
    traceparents: Mutex<Vec<String>>,
    fails: Mutex<bool>,
}

async fn receive(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("the official type");
    seen.bodies.lock().unwrap().push(body);
    for of in request.resource_spans {
        let resource = of.resource.expect("a resource");
        let service = resource.attributes.iter().find(|attribute| attribute.key == "service.name").expect("a name");
        seen.services.lock().unwrap().insert(shown(service.value.as_ref().and_then(|of| of.value.as_ref())));
        seen.spans.lock().unwrap().extend(of.scope_spans.into_iter().flat_map(|scope| scope.spans));
    }
    ExportTraceServiceResponse::default().encode_to_vec()
}

async fn answer(State(seen): State<Arc<Seen>>, headers: HeaderMap) -> impl IntoResponse {
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
    seen.traceparents.lock().unwrap().push(traceparent.to_owned());
    if *seen.fails.lock().unwrap() {
        let error = json!({"error": {"message": "no", "type": "server_error", "code": null, "param": null}});
        return (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(error));
    }
    let completion = json!({
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
    });
    (StatusCode::OK, axum::Json(completion))
}

fn shown(value: Option<&any_value::Value>) -> String {
    match value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(is)) => is.to_string(),
        Some(any_value::Value::ArrayValue(all)) => {
            all.values.iter().map(|of| shown(of.value.as_ref())).collect::<Vec<_>>().join(",")
        }
        other => format!("{other:?}"),
    }
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    Some(shown(found.value.as_ref()?.value.as_ref()))
}

impl Outside {
    async fn start() -> Self {
        let (seen, mut servers) = (Arc::new(Seen::default()), JoinSet::new());
        let mut serve = async |router: Router<Arc<Seen>>| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, router) = (listener.local_addr().unwrap(), router.with_state(seen.clone()));
            servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
            address
        };
        let receiver = serve(Router::new().route("/v1/traces", post(receive))).await;
        let provider = serve(Router::new().route("/v1/chat/completions", post(answer))).await;
        Self { receiver, provider, seen, _servers: servers }
    }

    async fn gateway(&self, config: &Config) -> Process {
        let mut config = config.clone();
        config.providers.upstream_override = Some(format!("http://{}/v1", self.provider));
        let mut gateway = Process::start(&config, Launch { instance: "gateway", ..Launch::default() });
        gateway.ready().await;
        gateway
    }

    /// The spans of a trace, once there is one of each name.
    async fn spans(&self, names: &[&str]) -> Vec<Span> {
        eventually("the spans", async || {
            let spans = self.seen.spans.lock().unwrap().clone();
            let all = names.iter().all(|name| spans.iter().any(|span| span.name == *name));
            all.then_some(spans)
        })
        .await
    }
}

async fn ask(gateway: &Process, key: &str) -> (u16, String) {
    ask_at(gateway, key, None).await
}

async fn ask_at(gateway: &Process, key: &str, temperature: Option<u8>) -> (u16, String) {
    let mut body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": QUESTION}]});
    if let Some(temperature) = temperature {
        body["temperature"] = temperature.into();
    }
    let asked = reqwest::Client::new()
        .post(format!("{}/v1/chat/completions", gateway.facade))
        .bearer_auth(key)
        .header("traceparent", format!("00-{TRACE}-{CLIENT_SPAN}-01"))
        .json(&body)
        .send()
        .await
        .unwrap();
    (asked.status().as_u16(), asked.text().await.unwrap())
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

fn status(span: &Span) -> i32 {
    span.status.as_ref().map_or(0, |status| status.code)
}

/// The `traceparent` header of the one record of `requests`.
fn header_of_the_request(config: &Config) -> String {
    let topic = kafka::topic_name(&config.kafka, Topic::Requests);
    let consumer: BaseConsumer = kafka::hot_consumer(&config.kafka, "test").create().unwrap();
    let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
    let mut all = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        all.add_partition_offset(&topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let message = consumer.poll(PATIENCE).expect("a record").unwrap();
    let headers = message.headers().expect("headers");
    let found = headers.iter().find(|header| header.key == "traceparent").expect("a traceparent");
    String::from_utf8(found.value.expect("a value").to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_over_facade_kafka_owner_and_provider() {
    let (outside, mut config) = (Outside::start().await, stack().isolated("traces").await);
    config.telemetry.otlp_endpoint = Some(format!("http://{}", outside.receiver));
    let gateway = outside.gateway(&config).await;
    let key = key(&config, "org_demo");
    let (code, text) = ask(&gateway, &key).await;
    assert!(code == 200 && text.contains(ANSWER), "{code}: {text}");
    gateway.stop().await;

    let names = ["POST /v1/chat/completions", "send requests", "process requests", "send journal"];
    let spans = outside.spans(&names).await;
    let chat = spans.iter().find(|span| span.name.starts_with("chat ")).expect("a call");
    let [request, sent, processed] =
        ["POST /v1/chat/completions", "send requests", "process requests"].map(|n| one(&spans, n));
    for span in &spans {
        assert_eq!(hex::encode(&span.trace_id), TRACE, "{span:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert_eq!(status(span), Ended::Unset as i32, "{span:?}");
    }
    assert_eq!(hex::encode(&request.parent_span_id), CLIENT_SPAN);
    assert_eq!(sent.parent_span_id, request.span_id);
    assert_eq!(processed.parent_span_id, sent.span_id);
    assert_eq!(chat.parent_span_id, processed.span_id);
    let commits: Vec<_> = spans.iter().filter(|span| span.name == "send journal").collect();
    assert!(commits.len() == 2 && commits.iter().all(|of| of.parent_span_id == processed.span_id), "{commits:?}");
    let kinds = [request, sent, processed, chat].map(|span| span.kind);
    let expected = [SpanKind::Server, SpanKind::Producer, SpanKind::Consumer, SpanKind::Client].map(|kind| kind as i32);
    assert_eq!(kinds, expected);
    assert!(chat.start_time_unix_nano >= commits[0].end_time_unix_nano, "nothing runs before it is durable");

    let topic = kafka::topic_name(&config.kafka, Topic::Requests);
    let told = [
        (request, "http.request.method", "POST"),
        (request, "http.route", "/v1/chat/completions"),
        (request, "http.response.status_code", "200"),
        (sent, "messaging.system", "kafka"),
        (sent, "messaging.operation.type", "send"),
        (sent, "messaging.destination.name", &topic),
        (processed, "messaging.operation.type", "process"),
        (processed, "messaging.kafka.offset", "0"),
        (processed, "messaging.consumer.group.name", "processor"),
        (chat, "gen_ai.operation.name", "chat"),
        (chat, "gen_ai.provider.name", "openai"),
        (chat, "gen_ai.request.model", "gpt-4o-mini"),
        (chat, "gen_ai.usage.input_tokens", "12"),
        (chat, "gen_ai.usage.output_tokens", "7"),
        (chat, "gen_ai.response.finish_reasons", "stop"),
        (chat, "server.address", "127.0.0.1"),
    ];
    for (span, name, value) in told {
        assert_eq!(attribute(span, name).as_deref(), Some(value), "{name} of {span:#?}");
    }
    assert_eq!(
        attribute(sent, "messaging.destination.partition.id"),
        attribute(processed, "messaging.destination.partition.id")
    );

    let traceparent = |span: &Span| format!("00-{TRACE}-{}-01", hex::encode(&span.span_id));
    assert_eq!(*outside.seen.traceparents.lock().unwrap(), [traceparent(chat)], "the provider is told");
    assert_eq!(header_of_the_request(&config), traceparent(sent), "and so is whoever reads the topic");
    assert_eq!(*outside.seen.services.lock().unwrap(), BTreeSet::from(["tollstream".to_owned()]));
    for body in outside.seen.bodies.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(body);
        assert!([QUESTION, ANSWER, &key].iter().all(|secret| !text.contains(*secret)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_out_of_the_cache_is_a_span_and_no_call() {
    let (outside, mut config) = (Outside::start().await, stack().isolated("traces_cache").await);
    config.telemetry.otlp_endpoint = Some(format!("http://{}", outside.receiver));
    let gateway = outside.gateway(&config).await;
    let key = key(&config, "org_demo");
    for _ in 0..2 {
        let (code, text) = ask_at(&gateway, &key, Some(0)).await;
        assert!(code == 200 && text.contains(ANSWER), "{code}: {text}");
    }
    gateway.stop().await;
    let spans = outside.spans(&["serve answer"]).await;
    let calls: Vec<_> = spans.iter().filter(|span| span.name.starts_with("chat ")).collect();
    let processed: Vec<_> = spans.iter().filter(|span| span.name == "process requests").collect();
    let served = one(&spans, "serve answer");
    assert_eq!((calls.len(), processed.len()), (1, 2), "{spans:#?}");
    let of = processed.iter().find(|span| span.span_id == served.parent_span_id).expect("it is within its request");
    assert_ne!(of.span_id, calls[0].parent_span_id, "the second request made no call");
    assert_eq!(attribute(served, "tollstream.source").as_deref(), Some("cache"));
    assert_eq!(attribute(served, "gen_ai.response.finish_reasons").as_deref(), Some("stop"));
    assert_eq!((served.kind, status(served)), (SpanKind::Internal as i32, Ended::Unset as i32));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_an_error_of_each_span_that_it_went_through() {
    let (outside, mut config) = (Outside::start().await, stack().isolated("traces_failing").await);
    config.telemetry.otlp_endpoint = Some(format!("http://{}/v1/traces", outside.receiver));
    *outside.seen.fails.lock().unwrap() = true;
    let gateway = outside.gateway(&config).await;
    let (code, text) = ask(&gateway, &key(&config, "org_demo")).await;
    assert_eq!(code, 502, "{text}");
    gateway.stop().await;
    let spans = outside.spans(&["POST /v1/chat/completions", "process requests"]).await;
    let calls: Vec<_> = spans.iter().filter(|span| span.name.starts_with("chat ")).collect();
    assert_eq!(calls.len(), outside.seen.traceparents.lock().unwrap().len(), "a span for each call");
    let failed =
        calls.iter().copied().chain([one(&spans, "POST /v1/chat/completions"), one(&spans, "process requests")]);
    for span in failed {
        assert_eq!(status(span), Ended::Error as i32, "{span:#?}");
        assert_eq!(attribute(span, "error.type").as_deref(), Some("upstream_error"), "{span:#?}");
    }
    assert_eq!(attribute(calls[0], "http.response.status_code").as_deref(), Some("500"));
    assert_eq!(
        attribute(one(&spans, "POST /v1/chat/completions"), "http.response.status_code").as_deref(),
        Some("502")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_away_changes_nothing_for_requests() {
    let (outside, mut config) = (Outside::start().await, stack().isolated("traces_away").await);
    config.telemetry.otlp_endpoint = Some(format!("http://127.0.0.1:{}", free_port().unwrap()));
    // Fewer than the spans of the requests: what has no room is lost.
    config.telemetry.spans_max = 8;
    let gateway = outside.gateway(&config).await;
    let key = key(&config, "org_demo");
    for _ in 0..20 {
        assert_eq!(ask(&gateway, &key).await.0, 200);
    }
    eventually("an export fails", async || {
        (gateway.metric("tollstream_telemetry_export_failures_total").await > 0).then_some(())
    })
    .await;
    assert_eq!(ask(&gateway, &key).await.0, 200);
    let said = gateway.log().matches("does not take spans").count();
    assert_eq!(said, 1, "{}", gateway.log());
    assert!(outside.seen.spans.lock().unwrap().is_empty());
    gateway.stop().await;
}
