//! Control over HTTP, as far as it needs no Kafka: who is let in, what is shown, and what is refused before it is written.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::config::AdminKey;
use crate::control::Tables;
use crate::facade::admin::{self, Admin};
use crate::facade::{Guard, Operators, Purges, Statements, operators};
use crate::runtime::control::Control;
use crate::runtime::control_writer::ControlWriter;
use crate::telemetry;

const ADMIN: &str = "tsa_0123456789abcdef0123456789abcdef";

/// Operators of these tables, whose writer has no Kafka.
pub fn of(tables: Tables, key: Option<&str>) -> Operators {
    let kafka = config::Kafka::default();
    let publisher = publisher::Publisher::new(&kafka).unwrap();
    let codec = Arc::new(Codec::offline().unwrap());
    Operators {
        control: Control::fixed(tables),
        writer: ControlWriter::new(kafka.clone(), codec.clone(), publisher.clone()),
        purges: Purges::new(kafka.clone(), codec.clone(), publisher),
        deployments: Default::default(),
        statements: Statements::new(kafka, codec),
        usage: fixtures::no_usage(),
        key: key.map(|key| AdminKey::of_secret(key).unwrap()),
        guard: Guard::register(&telemetry::Metrics::default(), "tollstream_admin"),
    }
}

struct Listening {
    admin: Admin,
    client: reqwest::Client,
}

impl Listening {
    async fn start(key: Option<&str>) -> Self {
        Self::with(of(fixtures::tables(), key)).await
    }

    async fn with(operators: Operators) -> Self {
        crate::tls::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (health, metrics) = (Health::default(), telemetry::Metrics::default());
        let admin = Admin::start(admin::Options { listener, health, metrics, operators }).unwrap();
        Self { admin, client: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn get(&self, path: &str, key: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.admin.address());
        let response = self.client.get(url).bearer_auth(key).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

#[tokio::test]
async fn only_an_operator_is_let_in() {
    let listening = Listening::start(Some(ADMIN)).await;
    let (status, body) = listening.get("/admin/v1/organizations?limit=2", ADMIN).await;
    assert_eq!((status, &body["has_more"]), (200, &json!(true)), "{body}");
    assert_eq!(body["data"][0]["id"], "acme");
    let (_, rest) = listening.get("/admin/v1/organizations?limit=2&after=dormant", ADMIN).await;
    assert_eq!((rest["data"][0]["id"].as_str(), &rest["has_more"]), (Some("globex"), &json!(false)), "{rest}");
    let table = [
        ("/admin/v1/keys", fixtures::KEY, 403, "insufficient_scope"),
        ("/admin/v1/keys", fixtures::PAUSED_KEY, 401, "key_revoked"),
        ("/admin/v1/keys", "wrong", 401, "invalid_api_key"),
        ("/admin/v1/keys?api_key=x", ADMIN, 401, "invalid_api_key"),
        ("/admin/v1/keys/nobody", ADMIN, 404, "not_found"),
        ("/admin/v1/doors", ADMIN, 404, "unknown_url"),
        ("/admin/v1/keys?limit=0", ADMIN, 400, "invalid_value"),
        ("/admin/v1/keys?colour=1", ADMIN, 400, "invalid_value"),
        ("/admin/v1/keys/key_acme/balance", ADMIN, 404, "unknown_url"),
        ("/admin/v1/organizations/acme/balance", fixtures::KEY, 403, "insufficient_scope"),
        ("/admin/v1/organizations/acme/balance?at=yesterday", ADMIN, 400, "invalid_value"),
        ("/admin/v1/organizations/acme/balance?at=2999-01-01T00:00:00Z", ADMIN, 400, "invalid_value"),
        ("/admin/v1/organizations/acme/balance?since=1", ADMIN, 400, "invalid_value"),
        ("/admin/v1/organizations/no%20id/balance", ADMIN, 404, "not_found"),
    ];
    for (path, key, status, code) in table {
        let (found, body) = listening.get(path, key).await;
        assert_eq!((found, body["error"]["code"].as_str()), (status, Some(code)), "{path} {key}: {body}");
    }
    let (_, keys) = listening.get("/admin/v1/keys", ADMIN).await;
    let hash = crate::topology::keys::hash(fixtures::KEY);
    assert!(!keys.to_string().contains(&hash) && !keys.to_string().contains("sha256"), "{keys}");
}

#[tokio::test]
async fn without_an_admin_key_it_says_how_to_get_one() {
    let listening = Listening::start(None).await;
    // A key of 64 hexadecimal digits looks like a hash.
    for key in [ADMIN, &"0123456789abcdef".repeat(4)] {
        let (status, body) = listening.get("/admin/v1/plans", key).await;
        assert_eq!((status, body["error"]["code"].as_str()), (401, Some("no_admin_key")), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("TOLLSTREAM_ADMIN_KEY_SHA256"), "{body}");
    }
}

#[tokio::test]
async fn how_the_deployments_do_is_told_to_operators_and_in_the_metrics() {
    use crate::processor::health::{Deployments, Ended};
    use crate::provider::FailureClass;
    let deployments = Deployments::default();
    let (id, now) = ("sick".parse().unwrap(), crate::runtime::clock::now());
    let failed = Ended::Failed { class: FailureClass::Upstream, retry_after: None };
    for _ in 0..5 {
        let mut board = deployments.lock().unwrap();
        board.started(&id, now);
        board.ended(&id, failed, now);
    }
    let metrics = telemetry::Metrics::default();
    crate::runtime::deployments::register(&metrics, &deployments);
    let text = metrics.encode().unwrap();
    for line in [
        "tollstream_deployment_sound{deployment=\"sick\"} 0",
        "tollstream_deployment_calls_in_flight{deployment=\"sick\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("tollstream_deployment_first_token_seconds{"), "unknown is no number: {text}");
    let listening = Listening::with(Operators { deployments, ..of(fixtures::tables(), Some(ADMIN)) }).await;
    let (status, body) = listening.get("/admin/v1/providers", ADMIN).await;
    let sick = &body["data"][0];
    assert_eq!((status, &sick["deployment"], &sick["state"]), (200, &json!("sick"), &json!("BROKEN")), "{body}");
    assert_eq!((&sick["window_failed"], &sick["last_failure"]), (&json!(5), &json!("upstream_error")), "{body}");
    assert_eq!(listening.get("/admin/v1/providers", fixtures::KEY).await.0, 403);
}

#[tokio::test]
async fn nobody_is_let_in_before_control_is_read_to_its_end() {
    let operators = Operators { control: Control::starting(), ..of(fixtures::tables(), Some(ADMIN)) };
    let listening = Listening::with(operators).await;
    for key in [ADMIN, fixtures::KEY, "wrong"] {
        let (status, body) = listening.get("/admin/v1/plans", key).await;
        assert_eq!((status, body["error"]["code"].as_str()), (503, Some("not_ready")), "{key}: {body}");
    }
}

#[tokio::test]
async fn who_tries_keys_has_to_wait_and_then_even_the_right_one_has_to() {
    let listening = Listening::start(Some(ADMIN)).await;
    for _ in 0..10 {
        assert_eq!(listening.get("/admin/v1/plans", "wrong").await.0, 401);
    }
    let (status, body) = listening.get("/admin/v1/plans", "wrong").await;
    assert_eq!((status, body["error"]["code"].as_str()), (429, Some("too_many_wrong_keys")), "{body}");
    assert_eq!(listening.get("/admin/v1/plans", ADMIN).await.0, 429);
}

#[tokio::test]
async fn the_facade_lets_a_valid_key_in_however_many_wrong_ones_came() {
    let facade = Facade::start().await;
    let get = async |key: &str| {
        let response = facade.client.get(facade.url("/v1/models")).bearer_auth(key).send().await.unwrap();
        (response.status().as_u16(), response.headers().get("retry-after").cloned())
    };
    for _ in 0..10 {
        assert_eq!(get("wrong").await, (401, None));
    }
    let (status, retry_after) = get("wrong").await;
    assert!(status == 429 && retry_after.is_some(), "{status}");
    assert_eq!(get(fixtures::KEY).await.0, 200);
}

#[tokio::test]
async fn the_document_lists_exactly_the_routes() {
    let listening = Listening::start(None).await;
    let (_, document) = listening.get("/admin/v1/openapi.json", "").await;
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            methods.map(move |method| (method.as_str(), path.as_str()))
        })
        .collect();
    assert_eq!(documented, operators::ROUTES.iter().map(|route| (route.method, route.path)).collect());
}
