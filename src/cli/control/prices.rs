//! `tollstream prices`: what the deployments cost, all of them in one list, and a new price of one of them. Prices are
//! members of models, so setting one compares and sets its model.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::connection::Connection;
use super::deployments::{self, DEPLOYMENTS, List, PRICES};
use super::fields::{given, some};
use super::session::{self, Session, written};
use super::{Seen, actor};
use crate::control::document::{self, Object, Problem};
use crate::control::edit::{Edit, Refusal};
use crate::records::control::EntityKind;
use crate::runtime::clock;
use crate::runtime::control_writer::Error;

const EFFECTIVE_FROM: &str = "effective_from";
const MIN_INPUT: &str = "min_input_tokens";
const MAX_INPUT: &str = "max_input_tokens";
/// What says of which requests a price is.
const CONDITION: &str = "condition";

const COLUMNS: [&str; 10] = [
    "model",
    "deployment",
    EFFECTIVE_FROM,
    CONDITION,
    "input",
    "cached_input",
    "cache_write",
    "output",
    "reasoning",
    "source",
];

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List all, in dollars per million tokens
    List(List),
    /// Give a deployment a price from a moment on; one of that moment and the same range of input is replaced
    Set(Box<Set>),
}

#[derive(Debug, Clone, Args)]
pub struct Set {
    #[command(flatten)]
    pub connection: Connection,
    #[arg(value_name = "MODEL")]
    pub model: String,
    #[arg(value_name = "DEPLOYMENT")]
    pub deployment: String,
    #[command(flatten)]
    pub price: Price,
    #[command(flatten)]
    pub seen: Seen,
    /// Print the model as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Price {
    /// Dollars per million input tokens, for example 2.50
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub input: String,
    /// Dollars per million output tokens
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub output: String,
    /// Dollars per million input tokens that the provider had in its cache
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub cached_input: Option<String>,
    /// Dollars per million input tokens that the provider put into its cache
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub cache_write: Option<String>,
    /// Dollars per million tokens of reasoning; left out, as output
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub reasoning: Option<String>,
    /// For requests of at least so many input tokens in all
    #[arg(long, value_name = "TOKENS")]
    pub min_input_tokens: Option<u64>,
    /// For requests of at most so many input tokens in all
    #[arg(long, value_name = "TOKENS")]
    pub max_input_tokens: Option<u64>,
    /// From when on it holds, for example 2027-01-01T00:00:00Z; left out, from now on
    #[arg(long, value_name = "TIME")]
    pub effective_from: Option<String>,
    /// The page or the contract where it was read; left out, the price is an assumption and its postings are marked as simulated
    #[arg(long, value_name = "TEXT")]
    pub source: Option<String>,
}

impl Price {
    fn document(&self) -> Object {
        let from = self.effective_from.clone().unwrap_or_else(|| clock::now().to_string());
        given([
            (EFFECTIVE_FROM, Some(Value::from(from))),
            (MIN_INPUT, some(&self.min_input_tokens)),
            (MAX_INPUT, some(&self.max_input_tokens)),
            ("input", Some(Value::from(self.input.as_str()))),
            ("cached_input", some(&self.cached_input)),
            ("cache_write", some(&self.cache_write)),
            ("output", Some(Value::from(self.output.as_str()))),
            ("reasoning", some(&self.reasoning)),
            ("source", some(&self.source)),
            ("simulated", self.source.is_none().then_some(Value::Bool(true))),
        ])
    }
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(arguments) => deployments::list(&arguments, &COLUMNS, rows).await,
        Command::Set(arguments) => set(*arguments).await,
    }
}

/// The prices of a deployment, each with the deployment's name.
fn rows(mut deployment: Object) -> Vec<Object> {
    let Some(Value::Array(prices)) = deployment.remove(PRICES) else { return Vec::new() };
    let of = |name: &&str| Some(((*name).to_owned(), deployment.get(*name)?.clone()));
    let names: Object = ["model", "version", "deployment", "provider"].iter().filter_map(of).collect();
    let row = |price: Value| {
        let mut row = names.clone();
        if let Value::Object(price) = price {
            row.insert(CONDITION.to_owned(), condition(&price));
            row.extend(price);
        }
        row
    };
    prices.into_iter().map(row).collect()
}

fn condition(price: &Object) -> Value {
    let tokens = |name: &str| price.get(name).and_then(Value::as_u64);
    Value::from(match (tokens(MIN_INPUT), tokens(MAX_INPUT)) {
        (None, None) => return Value::Null,
        (Some(min), None) => format!("input >= {min}"),
        (None, Some(max)) => format!("input <= {max}"),
        (Some(min), Some(max)) => format!("input {min}..{max}"),
    })
}

async fn set(arguments: Set) -> anyhow::Result<ExitCode> {
    let (kind, id) = (EntityKind::Model, arguments.model);
    let mut session = Session::open(&arguments.connection).await?;
    let tables = session.log.tables();
    let Some(model) = tables.entity(kind, &id) else { return Ok(session::not_found(kind, &id)) };
    // The other deployments and prices are written as they are now; should somebody change one meanwhile, theirs stands.
    let version = arguments.seen.version.unwrap_or_else(|| tables.version_of(kind, &id));
    let Some(patch) = patch(document::show(&id, &model), &arguments.deployment, arguments.price.document()) else {
        let problems = vec![Problem::new(DEPLOYMENTS, format!("there is no {}", arguments.deployment))];
        return Ok(session::failed(&Error::Refused(Refusal::Invalid { kind, id, problems })));
    };
    let edit = Edit::Update { kind, id, patch, version: Some(version) };
    let done = session.write(edit, &actor("prices", "set")).await;
    Ok(written(done, arguments.json, "updated"))
}

/// The patch that gives a deployment of this model a price; `None` if it has no such deployment.
fn patch(mut model: Object, deployment: &str, price: Object) -> Option<Object> {
    let mut all = model.remove(DEPLOYMENTS)?;
    let of = all.as_array_mut()?.iter_mut().find(|of| of["id"] == deployment)?;
    let prices = of.get_mut(PRICES)?.as_array_mut()?;
    let is_same = |known: &&mut Value| {
        [EFFECTIVE_FROM, MIN_INPUT, MAX_INPUT].iter().all(|name| moment(known.get(*name)) == moment(price.get(*name)))
    };
    match prices.iter_mut().find(is_same) {
        Some(known) => *known = Value::Object(price),
        None => prices.push(Value::Object(price)),
    }
    Some(Object::from_iter([(DEPLOYMENTS.to_owned(), all)]))
}

/// A member as it is shown: a moment may be written in several ways.
fn moment(value: Option<&Value>) -> Option<Value> {
    let parsed = value.and_then(Value::as_str).and_then(|text| text.parse::<crate::domain::Timestamp>().ok());
    parsed.map(|moment| json!(moment.to_string())).or_else(|| value.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::edit;
    use crate::domain::Timestamp;
    use crate::processor::tests::tables;
    use crate::records::control::{Entity, PriceEntry};

    const NONE: Price = Price {
        input: String::new(),
        output: String::new(),
        cached_input: None,
        cache_write: None,
        reasoning: None,
        min_input_tokens: None,
        max_input_tokens: None,
        effective_from: None,
        source: None,
    };

    fn price(input: &str, from: &str) -> Price {
        let effective_from = Some(from.to_owned());
        Price { input: input.to_owned(), output: "8".to_owned(), effective_from, source: Some("page".into()), ..NONE }
    }

    /// The prices of `two-b` once this one is set, or what is wrong.
    fn once_set(price: &Price) -> Result<Vec<PriceEntry>, String> {
        let (tables, kind) = (tables(), EntityKind::Model);
        let shown = document::show("two", &tables.entity(kind, "two").unwrap());
        assert!(patch(shown.clone(), "one-a", price.document()).is_none());
        let patch = patch(shown, "two-b", price.document()).unwrap();
        let version = Some(tables.version_of(kind, "two"));
        let edit = Edit::Update { kind, id: "two".into(), patch, version };
        let wanted = edit::decide(&tables, edit, Timestamp::default()).map_err(|refusal| refusal.to_string())?;
        let Some(Entity::Model(changed)) = wanted.unwrap().entity else { panic!("no model") };
        let Some(Entity::Model(before)) = tables.entity(kind, "two") else { panic!("no model") };
        assert_eq!(changed.deployments[0], before.deployments[0]);
        Ok(changed.deployments[1].prices.clone())
    }

    #[test]
    fn a_price_is_added_or_replaces_the_one_of_the_same_moment_and_range() {
        let inputs = |price| once_set(&price).unwrap().iter().map(|entry| entry.input.get()).collect::<Vec<_>>();
        assert_eq!(inputs(price("2.5", "2027-01-01T00:00:00Z")), [3_000, 2_500_000]);
        // The first one holds from the beginning of 1970, however that is written.
        for from in ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"] {
            assert_eq!(inputs(price("2.5", from)), [2_500_000]);
        }
        let range = Price { min_input_tokens: Some(200_001), ..price("5", "2027-01-01T00:00:00Z") };
        assert_eq!(inputs(range), [3_000, 5_000_000]);
        let assumed = Price { source: None, ..price("0.1", "2027-01-01T00:00:00Z") };
        assert_eq!(once_set(&assumed).unwrap()[1].source, None);
    }

    #[test]
    fn a_price_that_is_wrong_says_where() {
        let table = [
            (price("-1", "2027-01-01T00:00:00Z"), "deployments[1].prices[1].input"),
            (price("1", "tomorrow"), "deployments[1].prices[1].effective_from"),
            (Price { min_input_tokens: Some(9), ..price("1", "1970-01-01T00:00:00Z") }, "overlap"),
        ];
        for (price, says) in table {
            let problem = once_set(&price).unwrap_err();
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn every_price_is_a_row_with_its_condition() {
        let deployment = json!({ "model": "m", "version": 4, "deployment": "d", "provider": "p", "region": "us", "prices": [
            { "effective_from": "2027-01-01T00:00:00Z", "max_input_tokens": 5, "input": "1", "output": "2" },
            { "effective_from": "2027-01-01T00:00:00Z", "min_input_tokens": 6, "input": "3", "output": "4" },
            { "effective_from": "2026-01-01T00:00:00Z", "input": "1", "output": "2", "source": "page" },
        ]});
        let Value::Object(deployment) = deployment else { panic!() };
        let rows = rows(deployment);
        let conditions: Vec<_> = rows.iter().map(|row| row[CONDITION].clone()).collect();
        assert_eq!(conditions, [json!("input <= 5"), json!("input >= 6"), Value::Null]);
        assert_eq!((&rows[2]["deployment"], &rows[2]["source"]), (&json!("d"), &json!("page")));
    }
}
