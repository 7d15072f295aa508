//! What ClickHouse has, for I5: sums over the rows as people read them, a row that was inserted twice counting once.

use std::ops::Range;

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::sums::{Key, Sum};
use crate::config;
use crate::domain::{ModelName, OrganizationId};
use crate::sink::{Error, bounded, client};

/// How long the first sum of a query may take, which comes when all rows were read; and any after it.
const SUMS_TIMEOUT_MS: u64 = 300_000;
/// Partitions of the journal whose extremes are asked for, the lowest ones.
const PARTITIONS_MAX: u64 = 10_000;

/// Filtered before rows are merged: the columns of the filter are in the sorting key, so repeats pass it alike.
const SUMS: &str = "\
SELECT organization, model, intDiv(toUnixTimestamp64Milli(at), 3600000) AS hour, min(journal_offset) AS first, \
count() AS postings, sum(cost_usd) AS cost, countIf(cost_usd IS NULL) AS unknown_cost, \
sum(input_tokens) AS input, countIf(input_tokens IS NULL) AS unknown_input, \
sum(cached_input_tokens) AS cached_input, countIf(cached_input_tokens IS NULL) AS unknown_cached_input, \
sum(cache_write_tokens) AS cache_write, countIf(cache_write_tokens IS NULL) AS unknown_cache_write, \
sum(output_tokens) AS output, countIf(output_tokens IS NULL) AS unknown_output, \
sum(reasoning_tokens) AS reasoning, countIf(reasoning_tokens IS NULL) AS unknown_reasoning \
FROM usage FINAL \
PREWHERE journal_partition = ? AND journal_offset >= ? AND journal_offset < ? \
GROUP BY organization, model, hour";

const EXTREMES: &str = "\
SELECT greatest(journal_partition, -1) AS partition, min(journal_offset) AS first, max(journal_offset) AS last \
FROM usage GROUP BY partition ORDER BY partition LIMIT ?";

/// The table `usage`.
pub struct Rows {
    client: Client,
    config: config::ClickHouse,
}

/// The first and the last offset that rows name of a partition of the journal; all partitions below 0 are -1.
#[derive(Debug, Row, Deserialize)]
pub struct Extremes {
    pub partition: i32,
    pub first: i64,
    pub last: i64,
}

#[derive(Row, Deserialize)]
struct Summed {
    organization: String,
    model: Option<String>,
    hour: i64,
    first: i64,
    postings: u64,
    cost: Option<i128>,
    unknown_cost: u64,
    input: Option<u64>,
    unknown_input: u64,
    cached_input: Option<u64>,
    unknown_cached_input: u64,
    cache_write: Option<u64>,
    unknown_cache_write: u64,
    output: Option<u64>,
    unknown_output: u64,
    reasoning: Option<u64>,
    unknown_reasoning: u64,
}

impl Rows {
    /// # Errors
    /// When the configuration cannot be used.
    pub fn new(config: &config::ClickHouse) -> Result<Self, Error> {
        let client = client(config)?.with_database(&config.database);
        Ok(Self { client, config: config.clone() })
    }

    /// # Errors
    /// When ClickHouse does not answer in time.
    pub async fn extremes(&self) -> Result<Vec<Extremes>, Error> {
        let extremes = self.client.query(EXTREMES).bind(PARTITIONS_MAX).fetch_all();
        bounded(&self.config, "tell which rows it has", extremes).await
    }

    /// Gives the sums of the rows of these offsets of the journal, each with its first offset; or what cannot be one.
    ///
    /// # Errors
    /// When ClickHouse does not answer in time; some sums may have been given then.
    pub async fn sums(
        &self,
        partition: i32,
        offsets: &Range<i64>,
        mut take: impl FnMut(i64, Result<(Key, Sum), String>),
    ) -> Result<(), Error> {
        let timeout_ms = self.config.timeout_ms.max(SUMS_TIMEOUT_MS);
        let config = config::ClickHouse { timeout_ms, ..self.config.clone() };
        let query = self.client.query(SUMS).bind(partition).bind(offsets.start).bind(offsets.end);
        let mut sums = bounded(&config, "sum up rows", async { query.fetch::<Summed>() }).await?;
        while let Some(summed) = bounded(&config, "sum up rows", sums.next()).await? {
            take(summed.first, summed.read());
        }
        Ok(())
    }
}

impl Summed {
    fn read(self) -> Result<(Key, Sum), String> {
        let organization = OrganizationId::parse(&self.organization).map_err(|e| e.to_string())?;
        let model = self.model.as_deref().map(ModelName::parse).transpose().map_err(|e| e.to_string())?;
        let tokens = [self.input, self.cached_input, self.cache_write, self.output, self.reasoning];
        let sum = Sum {
            postings: self.postings,
            // Nothing is known of any.
            cost: self.cost.unwrap_or(0),
            unknown_cost: self.unknown_cost,
            tokens: tokens.map(|tokens| tokens.unwrap_or(0)),
            unknown_tokens: [
                self.unknown_input,
                self.unknown_cached_input,
                self.unknown_cache_write,
                self.unknown_output,
                self.unknown_reasoning,
            ],
        };
        Ok((Key { organization, model, hour: self.hour }, sum))
    }
}
