//! `tollstream replay remove`: takes a run back, with all that it has written.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::super::output;
use super::RemoveArguments;
use crate::replay::calls;
use crate::replay::clickhouse::Table;
use crate::replay::directory::Directory;
use crate::replay::run::{Mode, Spec};
use crate::topology::cluster::Cluster;

/// The directory goes last, so that what is broken off can be done again.
pub(super) async fn run(arguments: &RemoveArguments) -> anyhow::Result<ExitCode> {
    let name = &arguments.run;
    let directory = Directory::open_alone(&arguments.dir, name)?;
    let (spec, config) = (directory.spec::<Spec>()?, arguments.connection.load()?);
    let has_rows = spec.with_clickhouse && !arguments.keep_clickhouse;
    if has_rows {
        let opened = Table::open(&config.clickhouse, name).await;
        let (table, is_there) = opened.context("ClickHouse cannot be asked; leave its rows with --keep-clickhouse")?;
        if is_there {
            table.delete().await?;
        }
    }
    let topics = match spec.mode {
        Mode::Decide => Vec::new(),
        Mode::Live | Mode::Shadow => {
            let cluster = Cluster::connect(&config.kafka).await?;
            cluster.delete(&calls::topics(&config.kafka, name)).await?
        }
    };
    directory.remove()?;
    match arguments.json {
        true => {
            output::line(&json!({ "removed": name.as_str(), "clickhouse": has_rows, "topics": topics }).to_string())
        }
        false => {
            let rows = if has_rows { ", its rows in ClickHouse" } else { "" };
            let of_kafka = if topics.is_empty() { String::new() } else { format!(", {}", topics.join(", ")) };
            output::line(&format!("removed run {}: its directory{rows}{of_kafka}", name.as_str()));
        }
    }
    Ok(ExitCode::SUCCESS)
}
