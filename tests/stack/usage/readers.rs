//! Nobody reads another's rows: `schemas/clickhouse/readers/` on a server of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::date;
use tollstream::config::{ClickHouse, Secret};
use tollstream::queries::{self, ask};
use tollstream::sink::migrations;

use crate::stack::fixture::OwnEngines;

const USERS: &str = include_str!("../../../schemas/clickhouse/readers/organization.xml");
const SQL: &str = include_str!("../../../schemas/clickhouse/readers/organization.sql");
const PRODUCTION: &str = include_str!("../../../docs/production.md");
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

/// Of the laptop's server, with what the SQL for production says of `zeta` beside what the file says of `acme`.
async fn engines() -> OwnEngines {
    OwnEngines::start_with_users(&SqlUsers::of(&for_zeta()).beside(USERS)).await
}

/// The SQL as its first comment says: with the names put in.
fn for_zeta() -> String {
    let created = PRODUCTION.split("```sql\n").flat_map(|block| block.split("```").next());
    let created = created.filter(|block| block.contains("CREATE USER gateway")).collect::<String>();
    format!("{created}{}", SQL.replace("acme", "zeta"))
}

/// The statements without what is said about them, each in one line.
fn statements(sql: &str) -> Vec<String> {
    let code: Vec<&str> = sql.lines().filter(|line| !line.starts_with("--")).collect();
    let statements = code.join(" ");
    statements
        .split(';')
        .map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|s| !s.is_empty())
        .collect()
}

/// Users, policies and grants that came as SQL, as a users file says them: the laptop's server has no place to keep those that
/// come as SQL. Conditions and grants go over word by word.
#[derive(Default)]
struct SqlUsers(BTreeMap<String, SqlUser>);

#[derive(Default)]
struct SqlUser {
    password: String,
    settings: String,
    constraints: String,
    grants: String,
    filters: String,
}

impl SqlUsers {
    fn of(sql: &str) -> Self {
        let mut users = Self::default();
        for statement in statements(sql) {
            if let Some(created) = statement.strip_prefix("CREATE USER ") {
                let created = created.strip_prefix("IF NOT EXISTS ").unwrap_or(created);
                let (name, how) = created.split_once(" IDENTIFIED ").expect("a password");
                let (_, password) = how.split_once("BY '").expect("a password");
                let (password, settings) = password.split_once('\'').expect("its end");
                let user = users.0.entry(name.to_owned()).or_default();
                password.clone_into(&mut user.password);
                for setting in
                    settings.trim().trim_start_matches("SETTINGS ").split(", ").filter(|text| !text.is_empty())
                {
                    user.set(setting);
                }
            } else if let Some(policy) = statement.strip_prefix("CREATE ROW POLICY IF NOT EXISTS ") {
                let (_, policy) = policy.split_once(" ON tollstream.").expect("a table");
                let (table, policy) = policy.split_once(" FOR SELECT USING ").expect("a condition");
                let (condition, names) = policy.split_once(" TO ").expect("for whom");
                for name in names.split(", ") {
                    let user = users.0.get_mut(name).unwrap_or_else(|| panic!("{name} is nobody"));
                    user.filters += &format!("<{table}><filter>{condition}</filter></{table}>");
                }
            } else {
                let (grant, name) = statement.split_once(" TO ").unwrap_or_else(|| panic!("{statement}"));
                assert!(grant.starts_with("GRANT "), "{statement}");
                let user = users.0.get_mut(name).unwrap_or_else(|| panic!("{name} is nobody"));
                user.grants += &format!("<query>{grant}</query>");
            }
        }
        users
    }

    /// The users file with these in it, too, and with the right to make users.
    fn beside(&self, file: &str) -> String {
        let (mut profiles, mut users) =
            (String::new(), "<default><access_management>1</access_management></default>".to_owned());
        for (name, user) in &self.0 {
            let SqlUser { password, settings, constraints, grants, filters } = user;
            profiles += &format!("<of_{name}>{settings}<constraints>{constraints}</constraints></of_{name}>");
            users += &format!(
                "<{name}><password>{password}</password><networks><ip>::/0</ip></networks><profile>of_{name}</profile>\
                 <quota>default</quota><grants>{grants}</grants><databases><tollstream>{filters}</tollstream></databases></{name}>"
            );
        }
        let file = file.replace("</profiles>", &format!("{profiles}</profiles>"));
        file.replace("</users>", &format!("{users}</users>"))
    }
}

impl SqlUser {
    /// `name = value`, and ` MAX value` where it can be raised no further.
    fn set(&mut self, setting: &str) {
        let (name, value) = setting.split_once(" = ").unwrap_or_else(|| panic!("{setting}"));
        let (value, max) = value.split_once(" MAX ").map_or((value, None), |(value, max)| (value, Some(max)));
        self.settings += &format!("<{name}>{value}</{name}>");
        if let Some(max) = max {
            self.constraints += &format!("<{name}><max>{max}</max></{name}>");
        }
    }
}

/// Holds the reader to what is its organization's, in every table, view and saved query.
async fn assert_sees_only(own: &str, other: &str, owner: &ClickHouse, tables: &[String]) {
    let reader =
        ClickHouse { user: format!("{own}_reader"), password: Some(Secret::new(PASSWORD.into())), ..owner.clone() };
    let as_owner = clickhouse::Client::default().with_url(&owner.url).with_database(&owner.database);
    let as_reader = as_owner.clone().with_user(&reader.user).with_password(PASSWORD);
    let all = async |client: &clickhouse::Client, name: &str| {
        let mut rows = client.query_raw(&format!("SELECT * FROM {name}")).fetch_bytes("JSONEachRow").unwrap();
        String::from_utf8(rows.collect().await.unwrap().to_vec()).unwrap()
    };
    for table in tables {
        let (seen, there) = (all(&as_reader, table).await, all(&as_owner, table).await);
        assert!(there.contains(own) && there.contains(other), "{table} is no test: {there}");
        assert!(seen.contains(own) && !seen.contains(other), "{table}: {seen}");
    }
    let merged =
        "SELECT DISTINCT organization FROM merge('tollstream', '^(usage|refusals|routing_decisions|cache_lookups)$')";
    assert_eq!(as_reader.query_raw(merged).fetch_all::<String>().await.unwrap(), [own]);

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
        let seen = answer(&reader, own).await;
        assert!(seen.lines().count() > 1 && !seen.contains(other), "{}: {seen}", query.name);
        assert_eq!(answer(owner, own).await, seen, "{}", query.name);
        assert_eq!(answer(&reader, other).await.lines().count(), 1, "{}", query.name);
        assert!(answer(owner, other).await.lines().count() > 1, "{}", query.name);
        if query.parameters.iter().any(|parameter| parameter.default == Some("")) {
            assert_eq!(answer(&reader, "").await, seen, "{}: all that the reader may see", query.name);
        }
    }

    // Nothing else is open to the reader.
    let refused = [
        "SELECT * FROM schema_migrations".to_owned(),
        "SELECT * FROM system.parts".to_owned(),
        "SELECT query FROM system.processes".to_owned(),
        format!("INSERT INTO refusals (organization) VALUES ('{own}')"),
        "ALTER TABLE usage DELETE WHERE 1".to_owned(),
        format!("CREATE ROW POLICY everything ON usage FOR SELECT USING 1 TO {own}_reader"),
        "SELECT 1 SETTINGS max_execution_time = 100".to_owned(),
    ];
    for sql in refused {
        assert!(as_reader.query_raw(&sql).execute().await.is_err(), "{sql}");
    }
    let wrong = as_owner.clone().with_user(&reader.user).with_password("another");
    assert!(wrong.query_raw("SELECT 1").execute().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_one_organization_sees_nothing_of_another_through_any_table_view_or_query() {
    let engines = engines().await;
    let owner = ClickHouse { url: engines.addresses().clickhouse, ..ClickHouse::default() };
    migrations::apply(&owner).await.unwrap();
    let as_owner = clickhouse::Client::default().with_url(&owner.url).with_database(&owner.database);
    for insert in ROWS {
        for (organization, amount) in [("acme", "1"), ("zeta", "1000")] {
            let insert = insert.replace("ORG", organization).replace("AMOUNT", amount);
            as_owner.query_raw(&insert).execute().await.unwrap();
        }
    }
    let tables =
        "SELECT name FROM system.tables WHERE database = 'tollstream' AND name != 'schema_migrations' ORDER BY name";
    let tables: Vec<String> = as_owner.query_raw(tables).fetch_all().await.unwrap();
    assert!(tables.len() >= 20, "{tables:?}");
    assert_sees_only("acme", "zeta", &owner, &tables).await;
    assert_sees_only("zeta", "acme", &owner, &tables).await;

    // Those who write and audit see everything, and who writes can.
    let known_as = |name: &str| as_owner.clone().with_user(name).with_password("...");
    for (name, table) in ["gateway", "deployer"].iter().flat_map(|name| tables.iter().map(move |table| (name, table))) {
        // One view is about deployments, across organizations.
        let column = if table == "latency" { "deployment" } else { "organization" };
        let both = format!("SELECT uniqExact({column}) FROM {table}");
        let seen = known_as(name).query_raw(&both).fetch_one::<u64>().await.unwrap();
        assert_eq!(seen, 2, "{table} as {name}");
    }
    let late = "INSERT INTO refusals (at, organization) VALUES (now64(3), 'late')";
    known_as("gateway").query_raw(late).execute().await.unwrap();

    // Every statement as it stands is understood, allowed, and about somebody who is there; what this server lacks is a place
    // where it could write users and policies down.
    for statement in statements(&SQL.replace("acme", "zeta")) {
        let told = as_owner.query_raw(&statement).execute().await.expect_err(&statement).to_string();
        let refused = match statement.starts_with("CREATE ROW POLICY ") {
            true => "ACCESS_STORAGE_FOR_INSERTION_NOT_FOUND",
            false => "ACCESS_STORAGE_READONLY",
        };
        assert!(told.contains(refused), "{statement}: {told}");
    }
    // Both ways in name every table and view.
    for table in &tables {
        assert!(SQL.contains(&format!("GRANT SELECT ON tollstream.{table} TO acme_reader;")), "{table}");
        assert!(USERS.contains(&format!("<query>GRANT SELECT ON tollstream.{table}</query>")), "{table}");
        let policy = format!("ON tollstream.{table} FOR SELECT USING organization = 'acme' TO acme_reader;");
        assert_eq!(SQL.contains(&policy), USERS.contains(&format!("<{table}>")), "{table}");
    }
    engines.stop().await;
}
