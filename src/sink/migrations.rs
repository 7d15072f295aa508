//! The tables and views in ClickHouse: numbered files that are applied in order and never changed afterwards.
//!
//! Which ones a database has is in its table `schema_migrations`. ClickHouse has no transactions around them, so every
//! statement can be repeated: one that broke off half-way is applied again from its start.

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Error;
use super::writer::{bounded, client};
use crate::config::ClickHouse;

/// One step of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    pub number: u32,
    pub name: &'static str,
    /// Statements that end with a semicolon at the end of a line; `{database}` stands for the database's name.
    pub sql: &'static str,
}

macro_rules! migration {
    ($number:literal, $name:literal, $file:literal) => {
        Migration { number: $number, name: $name, sql: include_str!(concat!("../../schemas/clickhouse/", $file)) }
    };
}

const MIGRATIONS: [Migration; 7] = [
    migration!(1, "usage", "0001_usage.sql"),
    migration!(2, "views", "0002_views.sql"),
    migration!(3, "replay", "0003_replay.sql"),
    migration!(4, "events", "0004_events.sql"),
    migration!(5, "comments", "0005_comments.sql"),
    migration!(6, "cache", "0006_cache.sql"),
    migration!(7, "cache_events", "0007_cache_events.sql"),
];

/// Where the applied ones are written down, and the database itself. `Atomic` is said explicitly: a server that runs as a
/// library has another default, which is not kept.
const FOUNDATION: &str = "\
CREATE DATABASE IF NOT EXISTS {database} ENGINE = Atomic;
CREATE TABLE IF NOT EXISTS {database}.schema_migrations
(
    number UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY number;
";

/// All migrations that this version has, in order.
pub const fn migrations() -> &'static [Migration] {
    &MIGRATIONS
}

#[derive(Debug, Row, Serialize, Deserialize)]
struct Applied {
    number: u32,
    name: String,
    checksum: String,
}

impl Migration {
    fn checksum(&self) -> String {
        hex::encode(Sha256::digest(self.sql))
    }
}

/// Those that the database has not had yet; changes nothing.
///
/// # Errors
/// [`Error::ChangedMigration`] when one was changed after it had been applied; else ClickHouse did not answer.
pub async fn pending(config: &ClickHouse) -> Result<Vec<Migration>, Error> {
    let client = client(config)?;
    let exists = "SELECT count() FROM system.tables WHERE database = ? AND name = 'schema_migrations'";
    let exists = client.query(exists).bind(&config.database).fetch_one::<u64>();
    if bounded(config, "tell its tables", exists).await? == 0 {
        return Ok(MIGRATIONS.to_vec());
    }
    let sql = format!("SELECT number, name, checksum FROM {}.schema_migrations FINAL ORDER BY number", config.database);
    let applied = bounded(config, "tell its migrations", client.query(&sql).fetch_all::<Applied>()).await?;
    let is_pending = |migration: &Migration| match applied.iter().find(|a| a.number == migration.number) {
        None => Ok(true),
        Some(applied) if applied.checksum == migration.checksum() => Ok(false),
        Some(applied) => {
            let (number, name, database) = (applied.number, applied.name.clone(), config.database.clone());
            Err(Error::ChangedMigration { number, name, database })
        }
    };
    let mut pending = Vec::new();
    for migration in MIGRATIONS {
        if is_pending(&migration)? {
            pending.push(migration);
        }
    }
    Ok(pending)
}

/// Applies those that are pending and gives them back.
///
/// # Errors
/// As [`pending`]; the migrations before the failed one stay applied, and calling again goes on from there.
pub async fn apply(config: &ClickHouse) -> Result<Vec<Migration>, Error> {
    apply_up_to(config, u32::MAX).await
}

/// Applies those that are pending, up to the one of this number, and gives them back.
///
/// # Errors
/// As [`apply`].
pub async fn apply_up_to(config: &ClickHouse, number: u32) -> Result<Vec<Migration>, Error> {
    let mut pending = pending(config).await?;
    pending.retain(|migration| migration.number <= number);
    let client = client(config)?;
    for statement in statements(FOUNDATION, &config.database) {
        bounded(config, "make the database", client.query_raw(&statement).execute()).await?;
    }
    for migration in &pending {
        let what = format!("apply migration {} ({})", migration.number, migration.name);
        for statement in statements(migration.sql, &config.database) {
            bounded(config, &what, client.query_raw(&statement).execute()).await?;
        }
        let noted = async {
            let table = format!("{}.schema_migrations", config.database);
            let mut insert = client.insert_unescaped::<Applied>(&table).await?;
            let (number, name, checksum) = (migration.number, migration.name.to_owned(), migration.checksum());
            insert.write(&Applied { number, name, checksum }).await?;
            insert.end().await
        };
        bounded(config, &what, noted).await?;
        tracing::info!(number = migration.number, name = migration.name, "clickhouse migration applied");
    }
    Ok(pending)
}

/// The statements of a file. One ends with a semicolon at the end of a line.
fn statements(sql: &str, database: &str) -> Vec<String> {
    let sql = sql.replace("{database}", database);
    let parts = sql.split(";\n").map(|part| part.trim().trim_end_matches(';').to_owned());
    parts.filter(|part| part.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with("--"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_from_one_without_gaps() {
        for (number, migration) in (1..).zip(migrations()) {
            assert_eq!(migration.number, number, "{}", migration.name);
        }
    }

    #[test]
    fn every_file_is_embedded_under_its_number_and_name() {
        let mut files: Vec<String> = std::fs::read_dir("schemas/clickhouse")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".sql"))
            .collect();
        files.sort();
        let embedded: Vec<String> = migrations().iter().map(|m| format!("{:04}_{}.sql", m.number, m.name)).collect();
        assert_eq!(files, embedded);
    }

    #[test]
    fn the_guide_shows_every_query_as_it_is() {
        let guide = std::fs::read_to_string("docs/analytics.md").unwrap();
        for entry in std::fs::read_dir("schemas/clickhouse/queries").unwrap() {
            let path = entry.unwrap().path();
            let sql = std::fs::read_to_string(&path).unwrap();
            assert!(guide.contains(&format!("```sql\n{sql}```")), "{}", path.display());
        }
    }

    #[test]
    fn every_statement_can_be_repeated_and_names_the_database() {
        for migration in migrations() {
            for statement in statements(migration.sql, "somewhere") {
                let code = statement.lines().find(|line| !line.starts_with("--") && !line.trim().is_empty()).unwrap();
                let repeatable = [
                    "CREATE TABLE IF NOT EXISTS somewhere.",
                    "CREATE OR REPLACE VIEW somewhere.",
                    "ALTER TABLE somewhere.",
                ];
                assert!(repeatable.iter().any(|start| code.starts_with(start)), "{code}");
                // What is said or set twice is the same.
                let says = |line: &str| {
                    ["MODIFY COMMENT", "COMMENT COLUMN", "MODIFY SETTING", "ADD COLUMN IF NOT EXISTS"]
                        .iter()
                        .any(|s| line.starts_with(s))
                };
                let altered =
                    code.starts_with("ALTER").then(|| statement.lines().skip_while(|line| *line != code).skip(1));
                assert!(altered.into_iter().flatten().all(|line| says(line.trim())), "{statement}");
            }
        }
    }

    #[test]
    fn no_comment_ends_like_a_statement() {
        for migration in migrations() {
            let comment = migration.sql.lines().find(|line| line.starts_with("--") && line.ends_with(';'));
            assert_eq!(comment, None, "{}", migration.name);
        }
    }

    #[test]
    fn a_file_is_split_at_semicolons_that_end_a_line() {
        let sql = "-- one; two\nCREATE A\n(\n  x -- {database}\n);\n\n-- only a comment\n;\nCREATE B;\n";
        assert_eq!(statements(sql, "d"), ["-- one; two\nCREATE A\n(\n  x -- d\n)", "CREATE B"]);
    }

    #[test]
    fn a_database_name_is_checked_before_it_gets_into_sql() {
        for name in ["", "a-b", "a.b", "1a", "a;DROP"] {
            let config = ClickHouse { database: name.to_owned(), ..ClickHouse::default() };
            assert!(matches!(client(&config), Err(Error::DatabaseName { .. })), "{name:?}");
        }
        assert!(client(&ClickHouse::default()).is_ok());
    }
}
