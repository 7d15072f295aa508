//! The rows of a run in ClickHouse: table `replay_decisions`, by run.

use clickhouse::Row as ClickHouseRow;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::directory::{Directory, RunName};
use super::row::{Half, Row};
use super::run::{Destination, Error};
use crate::config::ClickHouse;
use crate::domain::PicoUsd;
use crate::records::Outcome;
use crate::sink::migrations;
use crate::sink::writer::{bounded, client};

const TABLE: &str = "replay_decisions";
/// Rows that are inserted at once: some 30 MB, so that ClickHouse makes few parts of them.
const ROWS_MAX: usize = 25_000;

/// A row as ClickHouse takes it. The fields are the columns of `schemas/clickhouse/0003_replay.sql`.
#[derive(Debug, ClickHouseRow, Serialize, Deserialize)]
struct Decision {
    run: String,
    candidate: String,
    journal_partition: i32,
    journal_offset: i64,
    at: i64,
    organization: String,
    request_id: String,
    key_id: Option<String>,
    user_tier: Option<String>,
    requested_model: Option<String>,
    policy: Option<String>,
    changes: Vec<String>,
    estimated: bool,
    recorded_outcome: Option<String>,
    recorded_status: Option<u16>,
    recorded_error_code: Option<String>,
    recorded_intent: Option<String>,
    recorded_tier: Option<u8>,
    recorded_model: Option<String>,
    recorded_deployment: Option<String>,
    recorded_attempts: u32,
    recorded_cost_usd: Option<i128>,
    recorded_input_tokens: Option<u64>,
    recorded_output_tokens: Option<u64>,
    recorded_time_to_first_token_ms: Option<u64>,
    recorded_duration_ms: Option<u64>,
    recorded_reasons: Vec<String>,
    candidate_outcome: Option<String>,
    candidate_status: Option<u16>,
    candidate_error_code: Option<String>,
    candidate_intent: Option<String>,
    candidate_tier: Option<u8>,
    candidate_model: Option<String>,
    candidate_deployment: Option<String>,
    candidate_attempts: u32,
    candidate_cost_usd: Option<i128>,
    candidate_cost_low_usd: Option<i128>,
    candidate_cost_high_usd: Option<i128>,
    candidate_input_tokens: Option<u64>,
    candidate_output_tokens: Option<u64>,
    candidate_time_to_first_token_ms: Option<u64>,
    candidate_duration_ms: Option<u64>,
    candidate_reasons: Vec<String>,
}

fn text(of: Option<&impl ToString>) -> Option<String> {
    of.map(ToString::to_string)
}

impl Decision {
    fn of(run: &RunName, row: Row) -> Self {
        let outcome = |half: &Half| half.outcome.map(Outcome::as_str).map(str::to_owned);
        let (was, is) = (row.recorded, row.candidate);
        let pico = |cost: Option<PicoUsd>| cost.map(PicoUsd::get);
        Self {
            run: run.as_str().to_owned(),
            candidate: row.candidate_name.to_string(),
            journal_partition: row.partition,
            journal_offset: row.journal_offset,
            at: row.at.as_millis(),
            organization: row.organization.to_string(),
            request_id: row.request_id.to_string(),
            key_id: text(row.key_id.as_ref()),
            user_tier: row.user_tier,
            requested_model: text(row.requested_model.as_ref()),
            policy: text(row.policy.as_ref()),
            changes: row.changes.iter().map(|change| change.name().to_owned()).collect(),
            estimated: row.estimated,
            recorded_outcome: outcome(&was),
            recorded_status: was.status,
            recorded_error_code: was.error_code,
            recorded_intent: was.intent,
            recorded_tier: was.tier,
            recorded_model: text(was.model.as_ref()),
            recorded_deployment: text(was.deployment.as_ref()),
            recorded_attempts: was.attempts,
            recorded_cost_usd: pico(was.cost),
            recorded_input_tokens: was.input_tokens,
            recorded_output_tokens: was.output_tokens,
            recorded_time_to_first_token_ms: was.time_to_first_token_ms,
            recorded_duration_ms: was.duration_ms,
            recorded_reasons: was.reasons,
            candidate_outcome: outcome(&is),
            candidate_status: is.status,
            candidate_error_code: is.error_code,
            candidate_intent: is.intent,
            candidate_tier: is.tier,
            candidate_model: text(is.model.as_ref()),
            candidate_deployment: text(is.deployment.as_ref()),
            candidate_attempts: is.attempts,
            candidate_cost_usd: pico(is.cost),
            candidate_cost_low_usd: pico(row.cost_low),
            candidate_cost_high_usd: pico(row.cost_high),
            candidate_input_tokens: is.input_tokens,
            candidate_output_tokens: is.output_tokens,
            candidate_time_to_first_token_ms: is.time_to_first_token_ms,
            candidate_duration_ms: is.duration_ms,
            candidate_reasons: is.reasons,
        }
    }
}

/// ClickHouse, under the run's name.
pub struct Table {
    config: ClickHouse,
    client: clickhouse::Client,
    run: RunName,
    handle: Handle,
}

impl Table {
    /// Asks whether the table is there, and whether another run of this name has rows in it.
    ///
    /// # Errors
    /// ClickHouse cannot be asked.
    pub async fn open(config: &ClickHouse, run: &RunName) -> Result<(Self, bool), crate::sink::Error> {
        migrations::apply(config).await?;
        let client = client(config)?.with_database(&config.database).with_setting("async_insert", "0");
        let sql = format!("SELECT count() FROM (SELECT 1 FROM {}.{TABLE} WHERE run = ? LIMIT 1)", config.database);
        let found = client.query(&sql).bind(run.as_str()).fetch_one::<u64>();
        let is_there = bounded(config, "tell its replays", found).await? > 0;
        let table = Self { config: config.clone(), client, run: run.clone(), handle: Handle::current() };
        Ok((table, is_there))
    }

    /// Deletes the run's rows.
    ///
    /// # Errors
    /// ClickHouse cannot do that.
    pub async fn delete(&self) -> Result<(), crate::sink::Error> {
        let sql = format!("DELETE FROM {}.{TABLE} WHERE run = ?", self.config.database);
        let deleted = self.client.query(&sql).bind(self.run.as_str()).execute();
        bounded(&self.config, "delete the rows of a replay", deleted).await
    }

    fn insert(&self, rows: &[Decision]) -> Result<(), Error> {
        let call = async {
            let mut insert = self.client.insert::<Decision>(TABLE).await?;
            for row in rows {
                insert.write(row).await?;
            }
            insert.end().await
        };
        Ok(self.handle.block_on(bounded(&self.config, "take rows of a replay", call))?)
    }
}

impl Destination for Table {
    fn take(&self, directory: &Directory, partition: i32) -> Result<(), Error> {
        let (mut rows, mut failed) = (Vec::new(), None);
        directory.each_row(partition, |row| {
            rows.push(Decision::of(&self.run, row));
            if rows.len() >= ROWS_MAX {
                failed = failed.take().or(self.insert(&rows).err());
                rows.clear();
            }
            Ok(())
        })?;
        if failed.is_none() && !rows.is_empty() {
            failed = self.insert(&rows).err();
        }
        failed.map_or(Ok(()), Err)
    }
}
