//! Nobody reads another's rows: `schemas/clickhouse/readers/` on a server of its own.

use std::time::Duration;

use jiff::civil::date;
use tollstream::config::{ClickHouse, Secret};
use tollstream::queries::{self, ask};
use tollstream::sink::migrations;

use crate::stack::fixture::OwnEngines;

const USERS: &str = include_str!("../../../schemas/clickhouse/readers/organization.xml");
const SQL: &str = include_str!("../../../schemas/clickhouse/readers/organization.sql");
const PASSWORD: &str = "put a password here";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Texts of theirs begin with their name.
pub const ROWS: [&str; 7] = [
    "INSERT INTO usage (journal_offset, at, received_at, organization, request_id, kind, attempt, origin, key_id, user, model, deployment, \
     policy, conversation_id, tags, cost_usd, input_tokens, output_tokens, outcome, request_outcome, status, error_code, \
     time_to_first_token_ms, duration_ms) SELECT number, toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), \
     toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', concat('ORG-r', toString(number)), 'attempt', 1, 'live', 'ORG-k', \
     'ORG-u', 'model', 'ORG-d', 'auto', 'ORG-c', map('team', 'ORG-t'), AMOUNT, AMOUNT, AMOUNT, \
     ['completed', 'failed'][1 + number % 2], ['completed', 'failed'][1 + number % 2], 200, 'ORG-e', AMOUNT, AMOUNT \
     FROM numbers(4)",
    "INSERT INTO routing_decisions (at, organization, request_id, origin, intent, tier, candidate_models, input_tokens) \
     VALUES (toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', 'ORG-r', 'live', 'ORG-i', 1, ['ORG-m'], AMOUNT)",
    "INSERT INTO refusals (at, organization, request_id, origin, code, `limit`, input_tokens) \
     VALUES (toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', 'ORG-r', 'live', 'ORG-code', 'ORG-limit.month', AMOUNT)",
    "INSERT INTO budget_events (at, organization, request_id, origin, event, account, period, percent, budget_usd) \
     VALUES (toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', 'ORG-r', 'live', 'threshold_crossed', 'organization', \
     'month', 80, AMOUNT)",
    "INSERT INTO cache_lookups (at, organization, request_id, origin, model, fingerprint, outcome) \
     VALUES (toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', 'ORG-r', 'live', 'ORG-m', 'ORG-f', 'miss')",
    "INSERT INTO cache_changes (at, organization, request_id, origin, event, fingerprints, entries) \
     VALUES (toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', 'ORG-r', 'live', 'inserted', ['ORG-f'], AMOUNT)",
    "INSERT INTO replay_decisions (run, at, organization, request_id) \
     VALUES ('ORG-run', toDateTime64('2026-11-22 08:00:00', 3, 'UTC'), 'ORG', 'ORG-r')",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_one_organization_sees_nothing_of_another_through_any_view_or_query() {
    let engines = OwnEngines::start_with_users(USERS).await;
    let owner = ClickHouse { url: engines.addresses().clickhouse, ..ClickHouse::default() };
    let reader =
        ClickHouse { user: "acme_reader".into(), password: Some(Secret::new(PASSWORD.into())), ..owner.clone() };
    migrations::apply(&owner).await.unwrap();
    let as_owner = clickhouse::Client::default().with_url(&owner.url).with_database(&owner.database);
    let as_reader = as_owner.clone().with_user(&reader.user).with_password(PASSWORD);
    for insert in ROWS {
        for (organization, amount) in [("acme", "1"), ("zeta", "1000")] {
            let insert = insert.replace("ORG", organization).replace("AMOUNT", amount);
            as_owner.query_raw(&insert).execute().await.unwrap();
        }
    }
    let all = async |client: &clickhouse::Client, name: &str| {
        let mut rows = client.query_raw(&format!("SELECT * FROM {name}")).fetch_bytes("JSONEachRow").unwrap();
        String::from_utf8(rows.collect().await.unwrap().to_vec()).unwrap()
    };

    let tables =
        "SELECT name FROM system.tables WHERE database = 'tollstream' AND name != 'schema_migrations' ORDER BY name";
    let tables: Vec<String> = as_owner.query_raw(tables).fetch_all().await.unwrap();
    assert!(tables.len() >= 20, "{tables:?}");
    for table in &tables {
        let (own, theirs) = (all(&as_reader, table).await, all(&as_owner, table).await);
        assert!(theirs.contains("zeta") && theirs.contains("acme"), "{table} is no test: {theirs}");
        assert!(own.contains("acme") && !own.contains("zeta"), "{table}: {own}");
        // Both ways in name every table and view.
        assert!(SQL.contains(&format!("GRANT SELECT ON tollstream.{table} TO acme_reader;")), "{table}");
    }
    let merged = "SELECT DISTINCT organization FROM merge('tollstream', '^(usage|refusals|routing_decisions)$')";
    assert_eq!(as_reader.query_raw(merged).fetch_all::<String>().await.unwrap(), ["acme"]);

    for query in queries::all() {
        let answer = async |config: &ClickHouse, organization: &str| {
            let given = query.parameters.iter().filter_map(|parameter| {
                let value = match parameter.name {
                    "organization" => organization,
                    "from_day" | "day" | "month" => "2026-11-22",
                    "until_day" => "2026-11-23",
                    "model" => "model",
                    name if name.ends_with("_usd") && parameter.default.is_none() => "1",
                    _ => return None,
                };
                Some((parameter.name.to_owned(), value.to_owned()))
            });
            let values = query.values(&given.collect(), date(2026, 11, 28)).unwrap();
            String::from_utf8(ask::csv(config, query.with(&values), TIMEOUT).await.unwrap()).unwrap()
        };
        let acme = answer(&reader, "acme").await;
        assert!(acme.lines().count() > 1 && !acme.contains("zeta"), "{}: {acme}", query.name);
        assert_eq!(answer(&owner, "acme").await, acme, "{}", query.name);
        assert_eq!(answer(&reader, "zeta").await.lines().count(), 1, "{}", query.name);
        assert!(answer(&owner, "zeta").await.lines().count() > 1, "{}", query.name);
        if query.parameters.iter().any(|parameter| parameter.default == Some("")) {
            assert_eq!(answer(&reader, "").await, acme, "{}: all that the reader may see", query.name);
        }
    }

    // Nothing else is open to the reader.
    let refused = [
        "SELECT * FROM schema_migrations",
        "SELECT * FROM system.parts",
        "SELECT query FROM system.processes",
        "INSERT INTO refusals (organization) VALUES ('acme')",
        "ALTER TABLE usage DELETE WHERE 1",
        "SELECT 1 SETTINGS max_execution_time = 100",
    ];
    for sql in refused {
        assert!(as_reader.query_raw(sql).execute().await.is_err(), "{sql}");
    }
    let wrong = as_owner.clone().with_user(&reader.user).with_password("another");
    assert!(wrong.query_raw("SELECT 1").execute().await.is_err());

    // The same for servers that take it as SQL.
    for statement in SQL.split(";\n").filter(|statement| !statement.trim().is_empty()) {
        let parsed = format!("EXPLAIN AST {statement}");
        let parsed = as_owner.query_raw(&parsed).fetch_bytes("TSV").unwrap().collect().await;
        assert!(parsed.is_ok(), "{statement}: {parsed:?}");
    }
    for table in tables.iter().filter(|table| USERS.contains(&format!("<{table}>"))) {
        let policy = format!("ON tollstream.{table} FOR SELECT USING organization = 'acme' TO acme_reader;");
        assert!(SQL.contains(&policy), "{policy}");
    }
    engines.stop().await;
}
