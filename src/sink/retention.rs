//! How long rows are kept: `clickhouse.*_ttl_days`, which ClickHouse holds to by itself once its tables say so.

use clickhouse::Row;
use serde::Deserialize;

use super::Error;
use super::writer::{bounded, client};
use crate::config::ClickHouse;

/// A table that does not keep its rows as long as the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub table: &'static str,
    /// `None`: for ever.
    pub days: Option<u32>,
}

#[derive(Debug, Row, Deserialize)]
struct Table {
    name: String,
    engine_full: String,
}

impl Change {
    fn statement(self, database: &str) -> String {
        match self.days {
            Some(days) => format!("ALTER TABLE {database}.{} MODIFY {}", self.table, clause(days)),
            None => format!("ALTER TABLE {database}.{} REMOVE TTL", self.table),
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.days {
            Some(days) => write!(f, "{} for {days} days", self.table),
            None => write!(f, "{} for ever", self.table),
        }
    }
}

/// The tables whose rows may be dropped by age, and for how many days the configuration keeps them.
const fn wanted(config: &ClickHouse) -> [Change; 7] {
    [
        Change { table: "usage", days: config.usage_ttl_days },
        Change { table: "routing_decisions", days: config.routing_decisions_ttl_days },
        Change { table: "refusals", days: config.refusals_ttl_days },
        Change { table: "budget_events", days: config.budget_events_ttl_days },
        Change { table: "cache_lookups", days: config.cache_lookups_ttl_days },
        Change { table: "cache_changes", days: config.cache_changes_ttl_days },
        Change { table: "replay_decisions", days: config.replay_decisions_ttl_days },
    ]
}

/// As ClickHouse writes it, too.
fn clause(days: u32) -> String {
    format!("TTL toDateTime(at) + toIntervalDay({days})")
}

/// What is to be changed, given how a table is defined now.
fn is_due(wanted: Change, engine_full: &str) -> bool {
    match wanted.days {
        Some(days) => !engine_full.contains(&format!(" {}", clause(days))),
        None => engine_full.contains(" TTL "),
    }
}

/// Those of the tables that exist which do not say what the configuration says; changes nothing.
///
/// # Errors
/// ClickHouse did not answer.
pub async fn pending(config: &ClickHouse) -> Result<Vec<Change>, Error> {
    let client = client(config)?;
    let sql = "SELECT name, engine_full FROM system.tables WHERE database = ? AND engine LIKE '%MergeTree'";
    let found = client.query(sql).bind(&config.database).fetch_all::<Table>();
    let found = bounded(config, "tell its tables", found).await?;
    let due = wanted(config).into_iter().filter(|wanted| {
        let table = found.iter().find(|table| table.name == wanted.table);
        table.is_some_and(|table| is_due(*wanted, &table.engine_full))
    });
    Ok(due.collect())
}

/// Makes the tables say what the configuration says, and gives back what was changed. ClickHouse drops what is too old
/// in its own time.
///
/// # Errors
/// ClickHouse did not answer; calling again goes on.
pub async fn apply(config: &ClickHouse) -> Result<Vec<Change>, Error> {
    let changes = pending(config).await?;
    let client = client(config)?;
    for change in &changes {
        let statement = change.statement(&config.database);
        let what = format!("keep {change}");
        bounded(config, &what, client.query_raw(&statement).execute()).await?;
        tracing::info!(table = change.table, days = change.days, "retention in clickhouse changed");
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_changed_when_it_says_something_else() {
        let engine = |ttl: &str| format!("ReplacingMergeTree ORDER BY (organization, at){ttl} SETTINGS x = 1");
        let kept = engine(" TTL toDateTime(at) + toIntervalDay(30)");
        let table = [
            (None, engine(""), false),
            (None, kept.clone(), true),
            (Some(30), engine(""), true),
            (Some(30), kept.clone(), false),
            (Some(3), kept, true),
        ];
        for (days, engine, due) in table {
            assert_eq!(is_due(Change { table: "usage", days }, &engine), due, "{days:?} {engine}");
        }
    }

    #[test]
    fn every_table_that_the_sinks_write_can_be_kept_for_a_time() {
        let tables: Vec<&str> = wanted(&ClickHouse::default()).iter().map(|change| change.table).collect();
        assert!(super::super::events::TABLES.iter().all(|table| tables.contains(table)), "{tables:?}");
        assert!(wanted(&ClickHouse::default()).iter().all(|change| change.days.is_none()), "for ever by default");
    }
}
