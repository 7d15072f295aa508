//! Asks ClickHouse, for so long and for so many rows at the most.

use std::collections::BTreeMap;
use std::time::Duration;

use clickhouse::Client;
use serde_json::Value;

use super::Query;
use crate::causes::causes;
use crate::config::ClickHouse;
use crate::sink;
use crate::sink::client;

/// Most rows of an answer, and most bytes of it.
pub const ROWS_MAX: u64 = 10_000;
const BYTES_MAX: u64 = 16 << 20;
/// How much longer than the query itself its answer is waited for.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// ClickHouse's codes of a query that took too long, and of one whose answer is too large.
const TIMEOUT_EXCEEDED: &str = "Code: 159.";
const TOO_SLOW: &str = "Code: 160.";
const TOO_MANY_ROWS_OR_BYTES: &str = "Code: 396.";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] sink::Error),
    #[error("clickhouse at {url} is away: {}; see that it runs and that clickhouse.url is right", causes(source))]
    Away { url: String, source: clickhouse::error::Error },
    #[error("{query} took longer than {seconds} s; ask for fewer days, or for one organization, or give it more time")]
    Timeout { query: &'static str, seconds: u64 },
    #[error("{query} has more than {ROWS_MAX} rows or {BYTES_MAX} bytes; ask for fewer")]
    TooLarge { query: &'static str },
    #[error("clickhouse at {url} did not answer {query}: {}", causes(source))]
    Refused { url: String, query: &'static str, source: clickhouse::error::Error },
    #[error("the answer to {query} cannot be read: {source}")]
    Unreadable { query: &'static str, source: serde_json::Error },
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// By which errors tell it.
    pub name: &'static str,
    pub sql: &'a str,
    /// Of the parameters in `sql`.
    pub values: &'a BTreeMap<&'static str, String>,
}

impl Query {
    /// With the values of [`Query::values`].
    pub const fn with<'a>(&'a self, values: &'a BTreeMap<&'static str, String>) -> Question<'a> {
        Question { name: self.name, sql: self.sql, values }
    }
}

/// The answer as a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub columns: Vec<String>,
    /// Numbers of tokens and requests are numbers, amounts are strings, unknown is null.
    pub rows: Vec<Vec<Value>>,
}

/// Asks.
///
/// # Errors
/// ClickHouse is away, refuses, takes too long or has too much to say.
pub async fn ask(config: &ClickHouse, question: Question<'_>, timeout: Duration) -> Result<Answer, Error> {
    let bytes = bytes(config, question, timeout, "JSONCompact").await?;
    let unreadable = |source| Error::Unreadable { query: question.name, source };
    let mut answer: Value = serde_json::from_slice(&bytes).map_err(unreadable)?;
    let columns = answer["meta"].as_array().into_iter().flatten();
    let columns = columns.map(|column| column["name"].as_str().unwrap_or_default().to_owned()).collect();
    let rows = serde_json::from_value(answer["data"].take()).map_err(unreadable)?;
    Ok(Answer { columns, rows })
}

/// The answer as comma separated values with a line of names.
///
/// # Errors
/// As [`ask`].
pub async fn csv(config: &ClickHouse, question: Question<'_>, timeout: Duration) -> Result<Vec<u8>, Error> {
    bytes(config, question, timeout, "CSVWithNames").await
}

async fn bytes(config: &ClickHouse, question: Question<'_>, timeout: Duration, format: &str) -> Result<Vec<u8>, Error> {
    let client = limited(client(config)?, timeout).with_database(&config.database);
    let mut asked = client.query_raw(question.sql);
    for (name, value) in question.values {
        asked = asked.param(name, value);
    }
    let answer = async { asked.fetch_bytes(format)?.collect().await };
    match tokio::time::timeout(timeout + ANSWER_GRACE, answer).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(source)) => Err(failed(config, question.name, timeout, source)),
        Err(_) => Err(Error::Timeout { query: question.name, seconds: timeout.as_secs() }),
    }
}

/// It stops by itself, too: nobody waits for it any more.
fn limited(client: Client, timeout: Duration) -> Client {
    client
        .with_setting("max_execution_time", timeout.as_secs().max(1).to_string())
        .with_setting("timeout_overflow_mode", "throw")
        .with_setting("max_result_rows", ROWS_MAX.to_string())
        .with_setting("max_result_bytes", BYTES_MAX.to_string())
        .with_setting("result_overflow_mode", "throw")
        .with_setting("output_format_json_quote_decimals", "1")
        .with_setting("output_format_json_quote_64bit_integers", "0")
        .with_setting("wait_end_of_query", "1")
}

fn failed(config: &ClickHouse, query: &'static str, timeout: Duration, source: clickhouse::error::Error) -> Error {
    let url = config.url.clone();
    match &source {
        clickhouse::error::Error::Network(_) => Error::Away { url, source },
        clickhouse::error::Error::TimedOut => Error::Timeout { query, seconds: timeout.as_secs() },
        clickhouse::error::Error::BadResponse(told) if told.contains(TIMEOUT_EXCEEDED) || told.contains(TOO_SLOW) => {
            Error::Timeout { query, seconds: timeout.as_secs() }
        }
        clickhouse::error::Error::BadResponse(told) if told.contains(TOO_MANY_ROWS_OR_BYTES) => {
            Error::TooLarge { query }
        }
        _ => Error::Refused { url, query, source },
    }
}
