//! `tollstream query`: the saved queries, what they need, and what ClickHouse answers.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};

use super::audit::COULD_NOT_LOOK;
use super::connection::Connection;
use super::output;
use crate::causes::causes;
use crate::queries::ask::{self, Answer};
use crate::queries::{self, Query as Saved};
use crate::runtime::clock;

/// Longest time that a query may be given.
const TIMEOUT_SECONDS_MAX: u64 = 600;

#[derive(Debug, Clone, Args)]
pub struct Query {
    /// Which one; without a name, those that there are
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// A parameter; days are 2026-11-22, today or today-7
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
    /// Print one JSON object; amounts are strings, since they may be finer than a JSON number is read
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print comma separated values
    #[arg(long)]
    pub csv: bool,
    /// Seconds that ClickHouse may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_SECONDS_MAX))]
    pub timeout: u64,
    /// ClickHouse's database
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    #[command(flatten)]
    pub connection: Connection,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs the command: exit code 0 if there are rows, 1 if there are none, 2 if it could not look.
pub async fn run(arguments: Query) -> anyhow::Result<ExitCode> {
    let Some(name) = &arguments.name else {
        list(arguments.json);
        return Ok(ExitCode::SUCCESS);
    };
    match answer(&arguments, name).await {
        Ok(has_rows) => Ok(if has_rows { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Err(error) => {
            match arguments.json {
                true => output::line(&json!({ "error": causes(error.as_ref()) }).to_string()),
                false => output::note(&format!("could not look: {}", causes(error.as_ref()))),
            }
            Ok(ExitCode::from(COULD_NOT_LOOK))
        }
    }
}

/// Prints the answer; says whether it has rows.
async fn answer(arguments: &Query, name: &str) -> anyhow::Result<bool> {
    let query = queries::find(name)?;
    let given: BTreeMap<String, String> = arguments.parameters.iter().cloned().collect();
    let today = jiff::Timestamp::from_millisecond(clock::now().as_millis()).context("the clock is wrong")?;
    let values = query.values(&given, jiff::tz::TimeZone::UTC.to_datetime(today).date())?;
    let mut config = arguments.connection.load()?.clickhouse;
    if let Some(database) = &arguments.database {
        config.database.clone_from(database);
    }
    let timeout = Duration::from_secs(arguments.timeout);
    if arguments.csv {
        let text = String::from_utf8(ask::csv(&config, query.with(&values), timeout).await?)?;
        output::line(text.trim_end());
        // The first line has the names.
        return Ok(text.lines().nth(1).is_some());
    }
    let answer = ask::ask(&config, query.with(&values), timeout).await?;
    match arguments.json {
        true => output::line(&described(query, &values, &answer).to_string()),
        false if answer.rows.is_empty() => output::note("there are no rows"),
        false => show(&answer),
    }
    Ok(!answer.rows.is_empty())
}

fn described(query: &Saved, values: &BTreeMap<&'static str, String>, answer: &Answer) -> Value {
    let rows = answer.rows.iter().map(|row| {
        let cells = answer.columns.iter().cloned().zip(row.iter().cloned());
        Value::Object(cells.collect::<Map<String, Value>>())
    });
    json!({ "query": query.name, "parameters": values, "rows": rows.collect::<Vec<_>>() })
}

fn show(answer: &Answer) {
    let headers: Vec<String> = answer.columns.iter().map(|column| column.replace('_', " ")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = answer.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    output::table(&headers, &rows);
}

/// What is unknown is a dash. Texts of clients are no commands to the terminal and begin no line.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(shown).collect(),
        other => other.to_string(),
    }
}

fn shown(character: char) -> String {
    match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    }
}

fn list(as_json: bool) {
    if as_json {
        let described = queries::all().iter().map(|query| {
            let parameters = query
                .parameters
                .iter()
                .map(|p| json!({ "name": p.name, "default": p.default, "choices": p.choices, "meaning": p.meaning }));
            json!({
                "name": query.name,
                "description": query.description,
                "parameters": parameters.collect::<Vec<_>>(),
            })
        });
        return output::line(&Value::from(described.collect::<Vec<_>>()).to_string());
    }
    for query in queries::all() {
        output::line(&format!("{}\n    {}", query.name, query.description));
        for parameter in &query.parameters {
            let default = match parameter.default {
                None => String::new(),
                Some("") => " = ''".to_owned(),
                Some(default) => format!(" = {default}"),
            };
            let choices = match parameter.choices.as_slice() {
                [] => String::new(),
                choices => format!(" ({})", choices.join(", ")),
            };
            output::line(&format!("    --param {}{default}: {}{choices}", parameter.name, parameter.meaning));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_a_name_and_a_value_which_may_have_an_equals_sign() {
        assert_eq!(parameter("by=model"), Ok(("by".into(), "model".into())));
        assert_eq!(parameter("tag=a=b"), Ok(("tag".into(), "a=b".into())));
        assert!(parameter("model").is_err());
    }

    #[test]
    fn cells_keep_amounts_as_they_are_and_show_what_is_unknown() {
        assert_eq!(cell(&json!(null)), "-");
        assert_eq!(cell(&json!("0.000000000001")), "0.000000000001");
        assert_eq!(cell(&json!(12)), "12");
        assert_eq!(cell(&json!("a\nb\u{1b}[2J'\u{1f600}\\")), "a\\nb\\u{1b}[2J'\u{1f600}\\");
    }
}
