//! `tollstream balance`: what an organization has posted, reserved and left, now or at any moment of the journal.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::audit::{COULD_NOT_LOOK, reader};
use super::connection::Connection;
use super::output;
use crate::audit::statement::Statement;
use crate::causes::causes;
use crate::domain::{Moment, OrganizationId};
use crate::runtime::clock;

#[derive(Debug, Clone, Args)]
pub struct Balance {
    #[command(flatten)]
    pub connection: Connection,
    /// Whose balance
    #[arg(value_name = "ORGANIZATION")]
    pub organization: OrganizationId,
    /// As of then: 2026-11-23T10:00:00Z, or 30s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME")]
    pub at: Option<Moment>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub async fn run(arguments: Balance) -> anyhow::Result<ExitCode> {
    match state(&arguments).await {
        Ok(statement) => {
            let described = statement.describe(&arguments.organization);
            let is_known = statement.tables.organization(&arguments.organization).is_some();
            match arguments.json {
                true => output::line(&described.to_string()),
                false => show(&described),
            }
            if !is_known {
                output::note(&format!("control has no organization {} at that moment", arguments.organization));
            }
            Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) => {
            match arguments.json {
                true => output::line(&json!({ "error": causes(error.as_ref()) }).to_string()),
                false => output::note(&format!("could not look: {}", causes(error.as_ref()))),
            }
            Ok(ExitCode::from(COULD_NOT_LOOK))
        }
    }
}

async fn state(arguments: &Balance) -> anyhow::Result<Statement> {
    let reader = reader(arguments.connection.load()?)?;
    let now = clock::now();
    let at = arguments.at.map(|at| at.before(now));
    ensure!(at.is_none_or(|at| at <= now), "--at must not be in the future");
    let organization = arguments.organization.clone();
    let read = move || {
        let statement = reader.statement(&organization, at, now, None);
        reader.progress.finish_and_clear();
        statement
    };
    Ok(tokio::task::spawn_blocking(read).await.context("reading broke off")??)
}

fn show(described: &Value) {
    let text = |value: &Value| value.as_str().map_or("-".to_owned(), str::to_owned);
    let mut rows = Vec::new();
    let mut account = |name: String, account: &Value| {
        for period in ["day", "month"] {
            let of = &account[period];
            rows.push(vec![
                name.clone(),
                period.to_owned(),
                text(&of["since"]),
                text(&of["posted_usd"]),
                text(&account["reserved_usd"]),
                text(&of["limit_usd"]),
                text(&of["left_usd"]),
            ]);
        }
    };
    account(text(&described["organization"]), &described["account"]);
    for (key, of) in described["keys"].as_object().into_iter().flatten() {
        account(format!("key {key}"), of);
    }
    output::table(&["account", "period", "since", "posted usd", "reserved usd", "limit usd", "left usd"], &rows);
    let as_of = &described["as_of"];
    output::line(&format!(
        "\n{} open requests; as of {}, journal/{} before offset {}",
        described["open_requests"],
        text(&described["at"]),
        as_of["journal_partition"],
        as_of["journal_offset"],
    ));
}
