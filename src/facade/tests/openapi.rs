//! The document and the routers say the same.

use std::collections::BTreeSet;

use super::*;
use crate::facade::admin::{self, Admin};
use crate::telemetry;

async fn document(facade: &Facade) -> serde_json::Value {
    let response = facade.client.get(facade.url("/openapi.json")).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn the_document_lists_exactly_the_routes() {
    let document = document(&Facade::start().await).await;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "servers");
            methods.map(move |method| (method.as_str(), path.as_str()))
        })
        .collect();
    let facade = ROUTES.iter().map(|route| (route.method, route.path));
    let admin = admin::ROUTES.iter().map(|route| (route.method, route.path));
    assert_eq!(documented, facade.chain(admin).collect());
    let names: BTreeSet<_> = paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .collect::<Vec<_>>()
        .iter()
        .filter_map(|operation| operation["operationId"].as_str())
        .collect();
    assert_eq!(names.len(), documented.len(), "operation ids are unique");
}

#[tokio::test]
async fn every_route_answers() {
    let facade = Facade::start().await;
    // Without it a cancel would wait for an acknowledgement.
    facade.full.store(true, std::sync::atomic::Ordering::SeqCst);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (health, metrics) = (facade.health.clone(), telemetry::Metrics::default());
    super::super::metrics::Metrics::register(&metrics);
    let operators = super::operators::of(fixtures::tables(), None);
    let admin = Admin::start(admin::Options { listener, health, metrics, operators }).unwrap();
    let routes = ROUTES.iter().map(|route| (facade.address, route.method, route.path));
    let routes = routes.chain(admin::ROUTES.iter().map(|route| (admin.address(), route.method, route.path)));
    for (address, method, path) in routes {
        let url = format!("http://{address}{}", path.replace("{id}", "gpt-4o-mini"));
        let request = facade.client.request(method.to_uppercase().parse().unwrap(), url).bearer_auth(fixtures::KEY);
        let status = request.send().await.unwrap().status().as_u16();
        // A chat request without a body is a bad one, but it is one; so is a stream to be gone on with from nowhere.
        let expected = match (method, path) {
            (_, "/v1/requests/{id}/events") => 400,
            (_, "/v1/requests/{id}/cancel") => 503,
            // ClickHouse is away.
            (_, "/v1/usage" | "/ai/usage" | "/api/conversations/analytics/models") => 503,
            ("post", _) => 400,
            _ => 200,
        };
        assert_eq!(status, expected, "{method} {path}");
    }
    let elsewhere = facade.client.get(facade.url("/metrics")).send().await.unwrap();
    assert_eq!(error_of(elsewhere).await.0, 404, "metrics are on the admin address only");
    admin.stop().await;
}

#[tokio::test]
async fn metrics_have_their_names_and_no_label_of_a_request() {
    let metrics = telemetry::Metrics::default();
    let facade = super::super::metrics::Metrics::register(&metrics);
    facade.first_frame(Duration::from_micros(1_700));
    facade.waiting_bytes(5);
    let text = metrics.encode().unwrap();
    for line in [
        "tollstream_facade_requests_total{outcome=\"2xx\"} 0",
        "tollstream_facade_cancels_total{reason=\"client_disconnected\"} 0",
        "tollstream_facade_first_frame_seconds_bucket{le=\"0.002\"} 1",
        "tollstream_facade_slots_bytes 5",
        "tollstream_facade_requests_in_flight 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
