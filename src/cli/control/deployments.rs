//! `tollstream deployments`: who serves the models, all of them in one list. They are members of their models, and are
//! changed with those.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::super::connection::Connection;
use super::super::output;
use super::session;
use super::view::cell;
use crate::control::Tables;
use crate::control::document::{self, Object};
use crate::control::edit::VERSION;
use crate::records::control::EntityKind;

/// Members of a model that are lists, and of a deployment.
pub(super) const DEPLOYMENTS: &str = "deployments";
pub(super) const PRICES: &str = "prices";

const MODEL: &str = "model";
const DEPLOYMENT: &str = "deployment";

const COLUMNS: [&str; 6] = [MODEL, DEPLOYMENT, "provider", "upstream_model", "region", "credential"];

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List all, in the order in which a model tries them
    List(List),
}

#[derive(Debug, Clone, Args)]
pub struct List {
    #[command(flatten)]
    pub connection: Connection,
    /// Of this model only
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(arguments) => {
            let without_prices = |mut deployment: Object| {
                deployment.shift_remove(PRICES);
                vec![deployment]
            };
            list(&arguments, &COLUMNS, without_prices).await
        }
    }
}

/// Lists what each deployment is, or has.
pub(super) async fn list(
    arguments: &List,
    columns: &[&str],
    rows: impl Fn(Object) -> Vec<Object>,
) -> anyhow::Result<ExitCode> {
    let log = session::reader(&arguments.connection).await?;
    if let Some(model) =
        arguments.model.as_deref().filter(|model| log.tables().version_of(EntityKind::Model, model) < 0)
    {
        return Ok(session::not_found(EntityKind::Model, model));
    }
    let all: Vec<Object> = all(log.tables(), arguments.model.as_deref()).into_iter().flat_map(rows).collect();
    if arguments.json {
        all.into_iter().for_each(|row| output::line(&Value::Object(row).to_string()));
    } else {
        let cells = |row: &Object| columns.iter().map(|name| row.get(*name).map(cell).unwrap_or_default()).collect();
        output::table(columns, &all.iter().map(cells).collect::<Vec<_>>());
    }
    Ok(ExitCode::SUCCESS)
}

/// The deployments of all models, or of one: each as its document has it, with its model and that one's version.
fn all(tables: &Tables, model: Option<&str>) -> Vec<Object> {
    let mut all = Vec::new();
    for (name, version) in tables.ids(EntityKind::Model).filter(|(name, _)| model.is_none_or(|model| model == *name)) {
        let document = tables.entity(EntityKind::Model, name).map(|entity| document::show(name, &entity));
        let Some(Value::Array(deployments)) = document.and_then(|mut document| document.remove(DEPLOYMENTS)) else {
            continue;
        };
        for deployment in deployments {
            let mut row = Object::new();
            row.insert(MODEL.to_owned(), Value::from(name));
            row.insert(VERSION.to_owned(), Value::from(version));
            if let Value::Object(members) = deployment {
                let renamed = |name: String| if name == "id" { DEPLOYMENT.to_owned() } else { name };
                row.extend(members.into_iter().map(|(name, value)| (renamed(name), value)));
            }
            all.push(row);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_deployment_is_a_row_with_its_model() {
        let tables = crate::processor::tests::tables();
        let ids = |model| -> Vec<Value> { all(&tables, model).iter().map(|row| row[DEPLOYMENT].clone()).collect() };
        assert_eq!(ids(Some("two")), [json!("two-a"), json!("two-b")]);
        assert_eq!(ids(None).len(), 4);
        let row = &all(&tables, Some("one"))[0];
        assert_eq!(
            (&row[MODEL], &row["upstream_model"], &row[VERSION]),
            (&json!("one"), &json!("up-one-a"), &json!(3))
        );
        assert!(COLUMNS.iter().all(|column| row.contains_key(*column)), "{row:?}");
    }
}
