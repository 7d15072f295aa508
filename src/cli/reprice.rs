//! `tollstream reprice`: what history would have cost at other prices.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::audit::{COULD_NOT_LOOK, reader};
use super::connection::Connection;
use super::output;
use crate::audit::plan;
use crate::causes::causes;
use crate::domain::{Moment, OrganizationId, PicoUsd};
use crate::explain::tell::usd;
use crate::reprice::{Report, Repricing, Scope, Totals, catalogue};
use crate::runtime::clock;

/// Largest file of prices that is read, in bytes.
const PRICES_BYTES_MAX: u64 = 16 << 20;

/// How long after its decision a commit may be appended, clocks that differ included.
const APPENDED_AFTER_MAX: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, Args)]
pub struct Reprice {
    /// The other prices, in the form of topology/seed/models.toml
    #[arg(long, value_name = "FILE")]
    pub prices: PathBuf,
    /// Postings from then on: 2026-11-23T10:00:00Z, or 30s, 15m, 2h, 7d ago; default: from the beginning
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Postings before then; default: up to now
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Those of one organization
    #[arg(long, value_name = "ID")]
    pub organization: Option<OrganizationId>,
    #[command(flatten)]
    pub connection: Connection,
    /// Print one JSON object; amounts are strings, since they may be larger than a JSON number holds exactly
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Whatever keeps it from looking is told, and is an exit code of its own.
pub async fn run(arguments: Reprice) -> anyhow::Result<ExitCode> {
    let report = match reprice(&arguments).await {
        Ok(report) => report,
        Err(error) => {
            match arguments.json {
                true => output::line(&json!({ "error": causes(error.as_ref()) }).to_string()),
                false => output::note(&format!("could not look: {}", causes(error.as_ref()))),
            }
            return Ok(ExitCode::from(COULD_NOT_LOOK));
        }
    };
    match arguments.json {
        true => output::line(&describe(&report).to_string()),
        false if report.is_empty() => output::note("the journal has no postings there"),
        false => show(&report),
    }
    Ok(if report.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn reprice(arguments: &Reprice) -> anyhow::Result<Report> {
    let path = &arguments.prices;
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(size <= PRICES_BYTES_MAX, "{} is larger than {PRICES_BYTES_MAX} bytes", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let catalogue = match catalogue(&text) {
        Ok(catalogue) => catalogue,
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.item, p.problem)).collect();
            bail!("{} has no valid prices: {}", path.display(), problems.join("; "));
        }
    };
    let now = clock::now();
    let (since, until) = (arguments.since.map(|at| at.before(now)), arguments.until.map(|at| at.before(now)));
    ensure!(since.zip(until).is_none_or(|(since, until)| since < until), "--since must be before --until");
    let scope = Scope { since, until, organization: arguments.organization.clone() };
    let reader = reader(arguments.connection.load()?)?;
    let look = move || {
        // A commit has the time of its decision, and its record that of the broker a little later.
        let to = scope.until.map(|until| until.plus(APPENDED_AFTER_MAX));
        let extents = plan::journal(&reader, scope.organization.as_ref(), scope.since, to)?;
        let read = reader.entries(
            &extents,
            |_| Repricing::new(&catalogue, &scope),
            |repricing, given| repricing.take(&given.entry, given.counts),
        );
        reader.progress.finish_and_clear();
        let mut all = Report::new();
        for repriced in read {
            for (of, totals) in repriced?.finish() {
                all.entry(of).or_default().merge(&totals);
            }
        }
        anyhow::Ok(all)
    };
    tokio::task::spawn_blocking(look).await.context("looking broke off")?
}

fn sum(report: &Report) -> Totals {
    let mut all = Totals::default();
    report.values().for_each(|totals| all.merge(totals));
    all
}

fn show(report: &Report) {
    let all = sum(report);
    let row = |organization: &str, model: &str, totals: &Totals| {
        vec![
            organization.to_owned(),
            model.to_owned(),
            totals.postings.to_string(),
            totals.compared.to_string(),
            usd(totals.recorded),
            usd(totals.repriced),
            difference(totals),
            totals.usage_unknown.to_string(),
            totals.without_price.to_string(),
            (totals.without_corrected + totals.without_recorded).to_string(),
        ]
    };
    let mut rows: Vec<Vec<String>> = report
        .iter()
        .map(|((organization, model), totals)| row(organization.as_str(), model.as_str(), totals))
        .collect();
    rows.push(row("all", "", &all));
    let headers = [
        "organization",
        "model",
        "postings",
        "compared",
        "recorded",
        "new",
        "difference",
        "usage unknown",
        "no new price",
        "no old cost",
    ];
    output::table(&headers, &rows);
    if all.compared < all.postings {
        let left = all.postings - all.compared;
        let recorded = usd(all.recorded_not_compared);
        output::line(&format!(
            "{left} postings are in no sum; {recorded} was recorded for those of them that had a cost"
        ));
    }
    if all.overflows > 0 {
        output::line(&format!("{} amounts were too large to be added", all.overflows));
    }
}

fn difference(totals: &Totals) -> String {
    let difference = totals.difference();
    let sign = if difference > PicoUsd::ZERO { "+" } else { "" };
    format!("{sign}{difference}")
}

fn describe(report: &Report) -> Value {
    let rows = report.iter().map(|((organization, model), totals)| {
        let mut row = described(totals);
        row["organization"] = organization.as_str().into();
        row["model"] = model.as_str().into();
        row
    });
    json!({ "rows": rows.collect::<Vec<_>>(), "all": described(&sum(report)) })
}

fn described(totals: &Totals) -> Value {
    let pico = |amount: PicoUsd| amount.get().to_string();
    json!({
        "postings": totals.postings,
        "compared": totals.compared,
        "recorded_pico_usd": pico(totals.recorded),
        "new_pico_usd": pico(totals.repriced),
        "difference_pico_usd": pico(totals.difference()),
        "usage_unknown": totals.usage_unknown,
        "without_new_price": totals.without_price,
        "without_corrected_posting": totals.without_corrected,
        "without_recorded_cost": totals.without_recorded,
        "recorded_not_compared_pico_usd": pico(totals.recorded_not_compared),
        "overflows": totals.overflows,
    })
}
