//! Control by its commands and over HTTP, on a real Kafka.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tollstream::config::Config;

use super::fixture::{PATIENCE, eventually, stack};
use super::process::{Launch, Process};

const ADMIN_KEY: &str = "tsa_test_0123456789abcdef0123456789abcdef";
/// A change holds everywhere within this time.
const HOLDS_WITHIN: Duration = Duration::from_secs(1);

fn command(config: &Config, arguments: &[&str]) -> Output {
    with_input(config, arguments, "")
}

fn with_input(config: &Config, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollstream"))
        .args(arguments)
        .args(["--brokers", &config.kafka.brokers, "--registry", &config.registry.url])
        .args(["--topic-prefix", &config.kafka.topic_prefix])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // A command that refuses its flags does not wait for its input.
    let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
    child.wait_with_output().expect("an end")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(config: &Config, arguments: &[&str]) -> String {
    let output = command(config, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn object(config: &Config, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(config, arguments)).expect("JSON")
}

fn refused(config: &Config, arguments: &[&str], code: i32, says: &str) {
    let output = command(config, arguments);
    let error = text(&output.stderr);
    assert!(output.status.code() == Some(code) && error.contains(says), "{arguments:?}: {:?} {error}", output.status);
}

#[tokio::test]
async fn the_whole_life_by_commands() {
    let config = stack().isolated("control_cli").await;
    done(
        &config,
        &["plans", "create", "team", "--requests-per-minute", "60", "--spend-per-day", "25.00", "--tier", "1"],
    );
    let plan = object(&config, &["plans", "show", "team", "--json"]);
    assert_eq!(
        (&plan["limits"]["requests_per_minute"], &plan["budget"]["spend_per_day"]),
        (&json!(60), &json!("25.00"))
    );
    done(&config, &["organizations", "create", "acme", "--name", "Acme", "--plan", "team"]);

    // Bad input says what was wrong and changes nothing.
    let create = ["organizations", "create", "bad", "--name", "Bad"];
    refused(&config, &[create.as_slice(), &["--plan", "nowhere"]].concat(), 5, "plan: there is no plan nowhere");
    refused(&config, &[create.as_slice(), &["--spend-per-day=-1"]].concat(), 5, "spend_per_day: \"-1\" is negative");
    refused(&config, &[create.as_slice(), &["--spend-per-day", "99999999999"]].concat(), 5, "too large");
    refused(
        &config,
        &["plans", "update", "team", "--time-zone", "Mars/Base"],
        5,
        "there is no time zone \"Mars/Base\"",
    );
    refused(&config, &["plans", "create", "team"], 3, "exists already");
    refused(&config, &["plans", "delete", "team"], 5, "in use by organization acme");
    refused(&config, &["plans", "show", "nobody"], 4, "there is no plan nobody");
    refused(&config, &["organizations", "show", "bad"], 4, "there is no organization bad");

    // Two operators saw the same version; the second one is told.
    let version = plan["version"].to_string();
    done(&config, &["plans", "update", "team", "--requests-per-minute", "90", "--version", &version]);
    refused(
        &config,
        &["plans", "update", "team", "--requests-per-minute", "30", "--version", &version],
        3,
        "somebody changed it",
    );
    done(&config, &["plans", "update", "team", "--unset", "budget.spend_per_day", "--when-short", "step_down"]);
    let changed = object(&config, &["plans", "show", "team", "--json"]);
    assert_eq!(
        (&changed["limits"]["requests_per_minute"], &changed["budget"]["spend_per_day"]),
        (&json!(90), &Value::Null)
    );

    // What is shown can be edited and given back.
    let shown = done(&config, &["plans", "show", "team", "--toml"]);
    let edited = shown.replace("requests_per_minute = 90", "requests_per_minute = 91");
    assert_ne!(shown, edited);
    let unasked = with_input(&config, &["apply", "-f", "-"], &edited);
    assert!(
        !unasked.status.success() && text(&unasked.stdout).contains("limits.requests_per_minute 90 -> 91"),
        "{unasked:?}"
    );
    let applied = with_input(&config, &["apply", "-f", "-", "--yes"], &edited);
    assert!(applied.status.success(), "{applied:?}");
    let again = with_input(&config, &["apply", "-f", "-"], &edited);
    assert!(again.status.success() && text(&again.stdout).contains("nothing to do"), "{again:?}");
    let wrong =
        with_input(&config, &["apply", "-f", "-", "--yes"], &edited.replace("name = \"team\"", "nane = \"team\""));
    assert!(wrong.status.code() == Some(5) && text(&wrong.stderr).contains("nothing was applied"), "{wrong:?}");

    // A key of two organizations, for a while, for one thing.
    let made = object(
        &config,
        &[
            "keys",
            "create",
            "--organization",
            "acme",
            "--organization",
            "org_demo",
            "--expires-in",
            "90d",
            "--scope",
            "chat",
            "--name",
            "k1",
            "--json",
        ],
    );
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    refused(&config, &["keys", "create", "--organization", "nobody"], 5, "there is no organization nobody");
    refused(&config, &["organizations", "delete", "acme"], 5, "in use by key k1");
    done(&config, &["keys", "update", "k1", "--description", "for the build"]);
    done(&config, &["keys", "revoke", "k1"]);
    let key = done(&config, &["keys", "show", "k1", "--json"]);
    let hash = tollstream::topology::keys::hash(&secret);
    assert!(key.contains("\"active\":false") && key.contains("for the build"), "{key}");
    let history = done(&config, &["keys", "history", "k1", "--json"]);
    assert_eq!(history.lines().count(), 3);
    assert!(history.lines().last().is_some_and(|last| last.contains("\"field\":\"active\"")), "{history}");
    for shown in [&key, &history, &done(&config, &["keys", "list"])] {
        assert!(!shown.contains(&hash) && !shown.contains(&secret), "{shown}");
    }
    let history = done(&config, &["plans", "history", "team"]);
    assert!(history.contains("limits.requests_per_minute 60 -> 90") && history.contains("uid"), "{history}");

    done(&config, &["keys", "delete", "k1"]);
    done(&config, &["organizations", "delete", "acme"]);
    done(&config, &["plans", "delete", "team"]);
    refused(&config, &["plans", "show", "team"], 4, "there is no plan team");
}

/// Operators of one process.
struct Operator<'a> {
    process: &'a Process,
    client: Client,
    key: String,
}

impl Operator<'_> {
    async fn ask(&self, method: Method, path: &str, body: Value, version: Option<i64>) -> (StatusCode, Value) {
        let url = format!("{}/admin/v1/{path}", self.process.admin);
        let mut request = self.client.request(method, url).bearer_auth(&self.key);
        if let Some(version) = version {
            request = request.header("if-match", format!("\"{version}\""));
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.expect("an answer");
        (response.status(), response.json().await.expect("JSON"))
    }

    async fn well(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, body) = self.ask(method.clone(), path, body, None).await;
        assert!(status.is_success(), "{method} {path}: {status} {body}");
        body
    }
}

fn facade(config: &Config, instance: &str) -> Process {
    let launch = Launch { instance, roles: Some("facade"), ..Launch::default() };
    Process::start_with(config, launch, &[("TOLLSTREAM_ADMIN_KEY", ADMIN_KEY)])
}

/// What the facade says to a key: 200, or the error's code.
async fn said(client: &Client, process: &Process, key: &str) -> String {
    let response =
        client.get(format!("{}/v1/models", process.facade)).bearer_auth(key).send().await.expect("an answer");
    match response.status() {
        StatusCode::OK => "200".to_owned(),
        _ => response.json::<Value>().await.expect("JSON")["error"]["code"].as_str().unwrap_or_default().to_owned(),
    }
}

/// Asks until it says so, and how long that took.
async fn until(client: &Client, process: &Process, key: &str, expected: &str) -> Duration {
    let began = Instant::now();
    eventually(expected, async || (said(client, process, key).await == expected).then_some(())).await;
    began.elapsed()
}

#[tokio::test]
async fn the_whole_life_over_http_and_it_holds_on_another_process_within_a_second() {
    let config = stack().isolated("control_http").await;
    let (mut one, mut other) = (facade(&config, "one"), facade(&config, "other"));
    one.ready().await;
    other.ready().await;
    let client = Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let operator = Operator { process: &one, client: client.clone(), key: ADMIN_KEY.to_owned() };

    operator.well(Method::POST, "plans", json!({"name": "team", "budget": {"spend_per_day": "25.00"}})).await;
    operator.well(Method::POST, "organizations", json!({"id": "acme", "name": "Acme", "plan": "team"})).await;
    let made = operator.well(Method::POST, "keys", json!({"organizations": ["acme"]})).await;
    let (id, secret) = (made["id"].as_str().expect("an id"), made["secret"].as_str().expect("a secret"));
    assert!(until(&client, &other, secret, "200").await < HOLDS_WITHIN);

    // Whoever has the hash has no key; a client's key is no operator's.
    assert_eq!(said(&client, &other, &tollstream::topology::keys::hash(secret)).await, "invalid_api_key");
    let as_client = Operator { process: &one, client: client.clone(), key: secret.to_owned() };
    let (status, body) = as_client.ask(Method::GET, "keys", Value::Null, None).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::FORBIDDEN, Some("insufficient_scope")));

    // An operator's own key, made by the first one.
    let own = operator.well(Method::POST, "keys", json!({"id": "ops", "scopes": ["admin"]})).await;
    let colleague =
        Operator { process: &other, client: client.clone(), key: own["secret"].as_str().expect("a secret").to_owned() };
    eventually("the colleague is known", async || {
        let (status, _) = colleague.ask(Method::GET, "plans", Value::Null, None).await;
        status.is_success().then_some(())
    })
    .await;

    // Both saw the same version and write at once, on two processes.
    let seen = operator.well(Method::GET, "plans/team", Value::Null).await["version"].as_i64();
    let (first, second) = tokio::join!(
        operator.ask(Method::PATCH, "plans/team", json!({"output_cap": 100}), seen),
        colleague.ask(Method::PATCH, "plans/team", json!({"output_cap": 200}), seen),
    );
    let statuses = [first.0.as_u16(), second.0.as_u16()];
    assert!(statuses.contains(&200) && statuses.contains(&412), "{statuses:?} {} {}", first.1, second.1);

    // What is wrong is refused with its place, and nothing is changed.
    let table = [
        (
            Method::PATCH,
            "plans/team",
            json!({"budget": {"spend_per_day": "-1"}}),
            400,
            "invalid_value",
            "budget.spend_per_day",
        ),
        (
            Method::PATCH,
            "plans/team",
            json!({"budget": {"time_zone": "Mars"}}),
            400,
            "invalid_value",
            "budget.time_zone",
        ),
        (Method::POST, "organizations", json!({"id": "b", "name": "B", "plan": "none"}), 400, "invalid_value", "plan"),
        (Method::POST, "plans", json!({"name": "team"}), 409, "already_exists", ""),
        (Method::DELETE, "plans/team", Value::Null, 409, "in_use", ""),
        (Method::DELETE, "organizations/acme", Value::Null, 409, "in_use", ""),
        (Method::DELETE, "plans/none", Value::Null, 404, "not_found", ""),
        (Method::POST, "plans/team/revoke", Value::Null, 404, "unknown_url", ""),
        (Method::GET, "organizations/nobody/balance", Value::Null, 404, "not_found", ""),
    ];
    for (method, path, body, status, code, param) in table {
        let (found, said) = operator.ask(method, path, body.clone(), None).await;
        let error =
            (found.as_u16(), said["error"]["code"].as_str(), said["error"]["param"].as_str().unwrap_or_default());
        assert_eq!(error, (status, Some(code), param), "{path} {body}: {said}");
    }

    // Who has spent nothing has all of it.
    let balance = operator.well(Method::GET, "organizations/acme/balance", Value::Null).await;
    let day = &balance["account"]["day"];
    assert_eq!(
        (&day["posted_usd"], &day["limit_usd"], &day["left_usd"]),
        (&json!("0.00"), &json!("25.00"), &json!("25.00"))
    );
    assert_eq!((&balance["account"]["month"]["limit_usd"], &balance["open_requests"]), (&Value::Null, &json!(0)));

    // A revocation holds on the other process within a second, an expiry by itself.
    let revoked = operator.well(Method::POST, &format!("keys/{id}/revoke"), Value::Null).await;
    assert_eq!(revoked["active"], json!(false));
    let took = until(&client, &other, secret, "key_revoked").await;
    assert!(took < HOLDS_WITHIN, "{took:?}");
    let soon = tollstream::runtime::clock::now().plus(Duration::from_secs(2)).to_string();
    let short = operator.well(Method::POST, "keys", json!({"organizations": ["acme"], "expires_at": soon})).await;
    until(&client, &other, short["secret"].as_str().expect("a secret"), "key_expired").await;

    let history = operator.well(Method::GET, "plans/team/history", Value::Null).await;
    let told: Vec<&str> =
        history["data"].as_array().expect("a list").iter().filter_map(|e| e["actor"].as_str()).collect();
    assert_eq!(told[0], "bootstrap admin key");
    for key in [id, short["id"].as_str().expect("an id")] {
        operator.well(Method::DELETE, &format!("keys/{key}"), Value::Null).await;
    }
    operator.well(Method::DELETE, "organizations/acme", Value::Null).await;
    operator.well(Method::DELETE, "plans/team", Value::Null).await;

    let metrics =
        client.get(format!("{}/metrics", other.admin)).send().await.expect("metrics").text().await.expect("text");
    assert!(metrics.contains("tollstream_facade_authentication_failures_total{reason=\"revoked\"}"), "{metrics}");
    let logs = format!("{}{}{metrics}", one.log(), other.log());
    for secret in [secret, ADMIN_KEY, &colleague.key, short["secret"].as_str().expect("a secret")] {
        let hash = tollstream::topology::keys::hash(secret);
        assert!(!logs.contains(secret) && !logs.contains(&hash), "a secret is in a log");
    }
    assert!(
        logs.contains("control changed") && logs.contains("bootstrap admin key"),
        "changes are logged with who made them"
    );
}
