//! Ids and texts that break what is not bound and quoted: every saved query in every form, and usage over HTTP.

use std::process::{Command, Output};

use reqwest::Url;
use serde_json::Value;
use tollstream::domain::OrganizationId;
use tollstream::domain::ids::ID_BYTES_MAX;
use tollstream::queries::{self, Query};
use tollstream::records::control::Organization;

use super::readers::ROWS;
use super::world::World;
use crate::stack::fixture::{Engines, key, stack};
use crate::stack::process::{Launch, Process};

const ADMIN_KEY: &str = "tsa_test_0123456789abcdef0123456789abcdef";
/// Somebody else, whose rows must never appear.
const OTHER: &str = "zeta";
/// Whose answers are those of the others, but for the name.
const PLAIN: &str = "acme";

/// The longest id that there can be, of every sign that one may have.
fn longest() -> String {
    let id: String = "@../~:+_-//Az09".chars().cycle().take(ID_BYTES_MAX).collect();
    assert!(OrganizationId::parse(&id).is_ok() && OrganizationId::parse(&format!("{id}x")).is_err());
    id
}

/// What no id may be, and ClickHouse takes: 200 characters, most of which mean something to somebody.
fn strange() -> String {
    let signs = "o'r\"g` OR 1=1 --;\\' \\N \\\\ {organization:String} %27 %s $1 &param_x=\t\n\r\u{1b}[31m\u{202e}\u{1f600}\u{1f3f4}\u{200d}\u{2620}\u{fe0f}zażółć,";
    let text: String = signs.chars().cycle().take(200).collect();
    assert!(OrganizationId::parse(&text).is_err() && text.chars().count() == 200);
    text
}

/// A text within the quotes of SQL.
fn literal(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

/// Rows of these organizations in every table; those of [`OTHER`] have other amounts.
async fn insert(client: &clickhouse::Client, organizations: &[&str]) {
    for insert in ROWS {
        for organization in organizations {
            let amount = if *organization == OTHER { "1000" } else { "1" };
            let insert = insert.replace("ORG", &literal(organization)).replace("AMOUNT", amount);
            client.query_raw(&insert).execute().await.unwrap();
        }
    }
}

/// The query as it is asked about an organization.
fn ask(world: &World, query: &Query, organization: &str, form: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
    command.args([
        "query",
        query.name,
        "--clickhouse",
        &world.clickhouse.url,
        "--database",
        &world.clickhouse.database,
    ]);
    for parameter in &query.parameters {
        let value = match parameter.name {
            "organization" => organization,
            "from_day" | "day" | "month" => "2026-11-22",
            "until_day" => "2026-11-23",
            "model" => "model",
            // Names of tags, users and the like have the same signs.
            "by" => "user",
            name if name.ends_with("_usd") && parameter.default.is_none() => "1",
            _ => continue,
        };
        command.args(["--param", &format!("{}={value}", parameter.name)]);
    }
    command.args(form).output().expect("tollstream runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Puts a name in the place of the plain one in every text.
fn renamed(value: &Value, name: &str) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(PLAIN, name)),
        Value::Array(values) => values.iter().map(|value| renamed(value, name)).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(key, value)| (key.replace(PLAIN, name), renamed(value, name))).collect())
        }
        other => other.clone(),
    }
}

/// The records of comma separated values, after RFC 4180.
fn records(csv: &str) -> Vec<Vec<String>> {
    let (mut records, mut record, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut signs = csv.chars().peekable();
    while let Some(sign) = signs.next() {
        match sign {
            '"' if quoted && signs.peek() == Some(&'"') => cell.extend(signs.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                record.push(std::mem::take(&mut cell));
                records.push(std::mem::take(&mut record));
            }
            sign => cell.push(sign),
        }
    }
    assert!(!quoted && record.is_empty() && cell.is_empty(), "it ends within a line: {csv}");
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_of_any_name_gets_its_own_rows_from_every_query_in_every_form() {
    let world = World::new().await;
    let names = [longest(), strange()];
    let json = |query: &Query, name: &str| -> Value {
        let output = ask(&world, query, name, Some("--json"));
        assert!(output.status.success(), "{} of {name}: {}", query.name, text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    // What is answered while there is nobody else.
    insert(&world.client(), &[PLAIN]).await;
    let alone: Vec<Value> = queries::all().iter().map(|query| json(query, PLAIN)["rows"].take()).collect();
    insert(&world.client(), &[OTHER, &names[0], &names[1]]).await;
    for (query, plain) in queries::all().iter().zip(&alone) {
        let rows = plain.as_array().expect("rows").len();
        assert!(rows > 0, "{}", query.name);
        assert_eq!(json(query, PLAIN)["rows"], *plain, "{}", query.name);
        for name in &names {
            let told = json(query, name);
            assert_eq!(told["rows"], renamed(plain, name), "{}", query.name);
            assert_eq!(told["parameters"]["organization"], name.as_str(), "{}", query.name);

            let csv = text(&ask(&world, query, name, Some("--csv")).stdout);
            let records = records(&csv);
            assert_eq!(records.len(), 1 + rows, "{}: {csv}", query.name);
            for (record, row) in records[1..].iter().zip(told["rows"].as_array().unwrap()) {
                for (column, cell) in records[0].iter().zip(record) {
                    if let Value::String(text) = &row[column] {
                        assert_eq!(cell, text, "{}: {column}", query.name);
                    }
                }
            }

            let table = text(&ask(&world, query, name, None).stdout);
            assert_eq!(table.lines().count(), 1 + rows, "{}: {table}", query.name);
            assert!(!table.contains('\u{1b}'), "{}: commands to the terminal", query.name);
            for shown in [&table, &csv, &told.to_string()] {
                assert!(!shown.contains(OTHER), "{}: {shown}", query.name);
            }
        }
    }
    // A name that is a part of another one, or a pattern of it, is nobody's.
    for name in ["%", "acm_", "' OR '1'='1", "acme' --", "\\", "acme\\", "ACME"] {
        for query in queries::all() {
            let output = ask(&world, query, name, Some("--json"));
            assert_eq!(output.status.code(), Some(1), "{} of {name}: {}", query.name, text(&output.stdout));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_over_http_takes_any_name_for_a_value() {
    let (long, strange) = (longest(), strange());
    let seed = |seeds: &mut tollstream::topology::Seeds| {
        seeds.organizations.insert(long.parse().unwrap(), Organization::named("the longest"));
    };
    let mut config = Engines::shared().isolated_with("poison", None, seed).await;
    let simulator = stack().description.simulator.as_ref().expect("a simulator");
    config.providers.upstream_override = Some(format!("{simulator}/v1"));
    let client = clickhouse::Client::default().with_url(&config.clickhouse.url);
    let client = client.with_database(&config.clickhouse.database);
    insert(&client, &[PLAIN, OTHER, &long, &strange]).await;
    let secret = key(&config, &long);
    let launch = Launch { instance: "poison", ..Launch::default() };
    let mut gateway = Process::start_with(&config, launch, &[("TOLLSTREAM_ADMIN_KEY", ADMIN_KEY)]);
    gateway.ready().await;

    let http = reqwest::Client::new();
    let get = async |base: &str, parameters: &[(&str, &str)], key: &str| {
        let days = [("start_date", "2026-11-22"), ("end_date", "2026-11-22")];
        let url = Url::parse_with_params(base, days.iter().chain(parameters)).unwrap();
        let answer = http.get(url).bearer_auth(key).send().await.expect("an answer");
        let (status, body) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{body}");
        body
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let usage = format!("{}/v1/usage", gateway.facade);
    for group in ["day", "model", "tier", "user", "key", "deployment", "policy", "conversation", "tag:team"] {
        let own = get(&usage, &[("group_by", group)], &secret).await;
        let told = json(&own);
        let data = told["data"].as_array().unwrap();
        assert_eq!((data.len(), &told["organization"]), (1, &Value::from(long.as_str())), "{own}");
        assert_eq!((&data[0]["attempts"], &data[0]["input_tokens"]), (&4.into(), &4.into()), "{own}");
        let ending = match group {
            "user" => "-u",
            "key" => "-k",
            "deployment" => "-d",
            "conversation" => "-c",
            "tag:team" => "-t",
            _ => continue,
        };
        let name = group.split(':').next().unwrap();
        assert_eq!(data[0][name], format!("{long}{ending}"), "{own}");
        let csv = get(&usage, &[("group_by", group), ("format", "csv")], &secret).await;
        assert_eq!(records(&csv)[1][0], format!("{long}{ending}"));
    }
    // A tag of any name is one that nobody has.
    let tag = strange.chars().take(40).collect::<String>().replace(',', "");
    let told = json(&get(&usage, &[("group_by", &format!("tag:{tag}"))], &secret).await);
    assert_eq!((&told["tag"], &told["data"][0]["tag"]), (&Value::from(tag), &Value::Null));
    let conversations = format!("{}/api/conversations/analytics/models", gateway.facade);
    let told = json(&get(&conversations, &[], &secret).await);
    assert_eq!((&told["data"][0]["attempts"], &told["data"][0]["cost_usd"]), (&4.into(), &"4".into()), "{told}");

    let usage = format!("{}/admin/v1/usage", gateway.admin);
    for name in [&long, &strange] {
        let asked = [("organization", name.as_str()), ("group_by", "organization,user,tag:team")];
        let all = get(&usage, &asked, ADMIN_KEY).await;
        let told = json(&all);
        let row = &told["data"][0];
        assert_eq!((told["data"].as_array().map(Vec::len), &told["organization"]), (Some(1), &name.as_str().into()));
        assert_eq!((&row["organization"], &row["user"]), (&name.as_str().into(), &format!("{name}-u").into()));
        assert_eq!((&row["tag"], &row["cost_usd"]), (&format!("{name}-t").into(), &"4".into()));
        assert!(!all.contains(OTHER), "{all}");
        let csv = get(&usage, &[&asked[..], &[("format", "csv")]].concat(), ADMIN_KEY).await;
        let records = records(&csv);
        let cells: Vec<&str> = records[1].iter().take(3).map(String::as_str).collect();
        assert_eq!(
            (records.len(), cells),
            (2, vec![name.as_str(), &*format!("{name}-u"), &*format!("{name}-t")]),
            "{csv}"
        );
    }
    let everybody = json(&get(&usage, &[("group_by", "organization")], ADMIN_KEY).await);
    assert_eq!(everybody["data"].as_array().map(Vec::len), Some(4), "{everybody}");

    // It is asked for, and no label of a metric.
    let body = serde_json::json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]});
    let url = format!("{}/v1/chat/completions", gateway.facade);
    let answer = http.post(url).bearer_auth(&secret).json(&body).send().await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text().await.expect("a body"));
    let metrics = http.get(format!("{}/metrics", gateway.admin)).send().await.expect("metrics");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("model=\"gpt-4o-mini\"") && !metrics.contains(&long), "{metrics}");
    gateway.stop().await;
}
