//! `tollstream balance`: what an organization has posted, reserved and left, now or at any moment of the journal.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::audit::{COULD_NOT_LOOK, Moment, reader};
use super::connection::Connection;
use super::output;
use crate::audit::reader::Statement;
use crate::causes::causes;
use crate::domain::{OrganizationId, PicoUsd, Timestamp};
use crate::processor::ledger::Balance as Account;
use crate::records::control::{Limits, Spend};
use crate::records::responses::RateLimit;
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
            let described = describe(&arguments.organization, &statement);
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
    let at = arguments.at.map_or(now, |at| at.before(now));
    ensure!(at <= now, "--at must not be in the future");
    let organization = arguments.organization.clone();
    let read = move || {
        let statement = reader.statement(&organization, at);
        reader.progress.finish_and_clear();
        statement
    };
    Ok(tokio::task::spawn_blocking(read).await.context("reading broke off")??)
}

/// The statement as JSON; amounts are dollars as decimal text.
pub fn describe(organization: &OrganizationId, statement: &Statement) -> Value {
    let Statement { at, partition, journal_offset, state, tables } = statement;
    let books = state.ledger.books(organization);
    let terms = tables.terms(organization, None);
    let (limits, spend) = terms.as_ref().map_or((Limits::NONE, Spend::NONE), |terms| (terms.limits, terms.spend));
    let calendar = terms.as_ref().map(|terms| terms.calendar.clone()).unwrap_or_default();
    let (periods, ends) = (calendar.periods(*at), calendar.ends(*at));
    let account = |account: Account, spend: Spend| {
        let posted = account.posted.in_periods(periods);
        let of = |limit: Option<PicoUsd>, posted: PicoUsd, begin: Timestamp, end: Option<Timestamp>| {
            let left = limit.map(|limit| limit.saturating_sub(posted).saturating_sub(account.reserved));
            json!({
                "since": begin.to_string(),
                "until": end.map(|end| end.to_string()),
                "posted_usd": posted.to_string(),
                "limit_usd": limit.map(|limit| limit.to_string()),
                "left_usd": left.map(|left| left.to_string()),
            })
        };
        json!({
            "reserved_usd": account.reserved.to_string(),
            "day": of(spend.day, posted.day, periods.day, ends.map(|ends| ends.day)),
            "month": of(spend.month, posted.month, periods.month, ends.map(|ends| ends.month)),
        })
    };
    let keys: serde_json::Map<String, Value> = books
        .keys()
        .map(|(id, books)| {
            let spend = tables.key(id.as_str()).map_or(Spend::NONE, |key| key.value.spend);
            let mut described = account(books.balance(), spend);
            described["open_requests"] = json!(books.meter.open);
            (id.to_string(), described)
        })
        .collect();
    let left = books.meter().left_after(limits, None, *at);
    let limit = |left: Option<RateLimit>| {
        left.map(|left| json!({"limit": left.limit, "remaining": left.remaining, "reset_ms": left.reset_ms}))
    };
    json!({
        "organization": organization.as_str(),
        "at": at.to_string(),
        "account": account(books.balance(), spend),
        "keys": keys,
        "open_requests": books.open(),
        "requests_per_minute": limit(left.requests),
        "tokens_per_minute": limit(left.tokens),
        "concurrent_requests": limits.concurrent_requests,
        "as_of": {
            "journal_partition": partition,
            "journal_offset": journal_offset,
            "control_offset": tables.offset(),
            "clock": state.clock.to_string(),
        },
    })
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
