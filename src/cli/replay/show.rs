//! What a replay has shown, in the terminal.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::output;
use super::{ReportArguments, seconds, verdict};
use crate::domain::PicoUsd;
use crate::explain::tell::usd;
use crate::replay::directory::{Directory, RunName};
use crate::replay::report::{Group, Latency, Report};
use crate::replay::row::{Half, Row};
use crate::replay::run::{Mode, Spec};

/// Organizations that are shown at the most, the dearest ones.
const ORGANIZATIONS_SHOWN: usize = 20;

/// Shows the report of a run that was made before.
pub(super) fn again(arguments: &ReportArguments) -> anyhow::Result<ExitCode> {
    let directory = Directory::open(&arguments.dir, &arguments.run)?;
    let Some(reports) = directory.report::<Vec<Report>>()? else {
        let name = arguments.run.as_str();
        if directory.spec::<Spec>()?.mode == Mode::Shadow {
            anyhow::bail!(
                "shadow run {name} has not come to its end; a shadow run is not gone on with, begin another one"
            );
        }
        anyhow::bail!("run {name} was broken off; go on with it by the same command, with --resume");
    };
    anyhow::ensure!(
        !reports.is_empty(),
        "{} has no report; begin the run again under another name",
        directory.path().display()
    );
    match arguments.json {
        true => output::line(&describe(arguments.run.as_str(), &reports).to_string()),
        false => reports.iter().for_each(of_candidate),
    }
    Ok(verdict(&reports))
}

/// A row for machines: amounts are pico-dollars in strings.
pub(super) fn row(row: &Row) -> Value {
    let mut told = json!(row);
    told["recorded"] = half(&row.recorded);
    told["candidate"] = half(&row.candidate);
    for (name, amount) in [("cost_low", row.cost_low), ("cost_high", row.cost_high)] {
        put_amount(&mut told, name, amount);
    }
    told
}

pub(super) fn half(half: &Half) -> Value {
    let mut told = json!(half);
    put_amount(&mut told, "cost", half.cost);
    told
}

fn put_amount(told: &mut Value, name: &str, amount: Option<PicoUsd>) {
    if let Value::Object(members) = told {
        members.shift_remove(name);
        members.insert(format!("{name}_pico_usd"), amount.map(|amount| amount.get().to_string()).into());
    }
}

pub(super) fn describe(run: &str, reports: &[Report]) -> Value {
    json!({ "run": run, "candidates": reports })
}

pub(super) fn show(reports: &[Report], name: &RunName, page: &Path, elapsed: Duration) {
    reports.iter().for_each(of_candidate);
    let requests = reports.first().map_or(0, |report| report.all.recorded.requests);
    let rate = requests as f64 / seconds(elapsed);
    output::line(&format!(
        "run {}: {requests} requests in {:.1} s, {rate:.0} requests/s; as a page: {}",
        name.as_str(),
        elapsed.as_secs_f64(),
        page.display()
    ));
}

fn of_candidate(report: &Report) {
    let all = &report.all;
    output::line(&format!("candidate {}", report.candidate));
    if all.recorded.requests == 0 {
        output::line("  no request was decided in that range\n");
        return;
    }
    let (requests, differing) = (all.recorded.requests, report.differing);
    let changes: Vec<String> = report.changes().map(|(change, count)| format!("{} {count}", change.name())).collect();
    let in_what = if changes.is_empty() { String::new() } else { format!(" ({})", changes.join(", ")) };
    output::line(&format!("  {requests} requests, {differing} of them would differ{in_what}"));
    output::line(&format!("  cost {}", cost(all)));
    let latency = |name: &str, was: &Latency, is: &Latency| {
        let at = |of: &Latency, percent| of.percentile(percent).map_or("-".to_owned(), |ms| format!("{ms} ms"));
        let (p50, p95) = ((at(was, 50), at(is, 50)), (at(was, 95), at(is, 95)));
        format!("  {name}: p50 {} > {}, p95 {} > {}", p50.0, p50.1, p95.0, p95.1)
    };
    output::line(&latency("first token", &report.first_token_recorded, &report.first_token_candidate));
    output::line(&latency("duration", &report.duration_recorded, &report.duration_candidate));
    if report.estimated > 0 {
        output::line(&format!("  {} outcomes are estimated, since nobody made those calls", report.estimated));
    }
    if report.open > 0 {
        output::line(&format!("  {} requests had not ended where the log ends", report.open));
    }
    if report.counts.without_content > 0 {
        let count = report.counts.without_content;
        output::line(&format!("  of {count} requests the content is not there any more; they go by what is recorded"));
    }
    let aside = (report.counts.not_decided, report.counts.repeats);
    if aside != (0, 0) {
        output::line(&format!(
            "  {} refusals stay, since their reason is in content; {} records repeat a request",
            aside.0, aside.1
        ));
    }
    for unlike in report.unlike() {
        output::line(&format!(
            "  NOT AS RECORDED journal/{} offset {}: {}",
            unlike.partition, unlike.offset, unlike.what
        ));
    }
    output::line("");
    let tiers: Vec<(&String, &Group)> = report.tiers.iter().collect();
    groups("tier", &tiers);
    let models: Vec<(&String, &Group)> = report.models.iter().collect();
    groups("model", &models);
    let mut organizations: Vec<(&String, &Group)> = report.organizations.iter().collect();
    organizations.sort_by_key(|(name, group)| (std::cmp::Reverse(group.recorded.cost_pico_usd.0), (*name).clone()));
    let more = organizations.len().saturating_sub(ORGANIZATIONS_SHOWN);
    organizations.truncate(ORGANIZATIONS_SHOWN);
    groups("organization", &organizations);
    if more > 0 {
        output::line(&format!("and {more} more organizations; all are in the JSON and in ClickHouse\n"));
    }
}

fn groups(kind: &str, of: &[(&String, &Group)]) {
    let row = |(name, group): &(&String, &Group)| {
        let moved = match (group.came, group.left) {
            (0, 0) => String::new(),
            (came, left) => format!("+{came} -{left}"),
        };
        vec![
            (*name).clone(),
            group.recorded.requests.to_string(),
            group.candidate.requests.to_string(),
            moved,
            usd(group.recorded.cost_pico_usd.0),
            usd(group.candidate.cost_pico_usd.0),
            interval(group),
            format!("{} > {}", group.recorded.refused, group.candidate.refused),
            format!("{} > {}", group.recorded.failed, group.candidate.failed),
        ]
    };
    let rows: Vec<Vec<String>> = of.iter().map(row).collect();
    let headers = [kind, "was", "would be", "moved", "cost was", "would be", "between", "refused", "failed"];
    output::table(&headers, &rows);
    output::line("");
}

fn interval(group: &Group) -> String {
    match (group.cost_low_pico_usd.0, group.cost_high_pico_usd.0) {
        (low, high) if low == high => String::new(),
        (low, high) => format!("{} and {}", usd(low), usd(high)),
    }
}

/// `0.02 USD > 0.01 USD, -50.0 % (between ...)`.
fn cost(group: &Group) -> String {
    let (was, is) = (group.recorded.cost_pico_usd.0, group.candidate.cost_pico_usd.0);
    let between = match interval(group) {
        none if none.is_empty() => String::new(),
        interval => format!(", between {interval}"),
    };
    let unknown = match (group.recorded.cost_unknown, group.candidate.cost_unknown) {
        (0, 0) => String::new(),
        (was, is) => format!("; not known of {was} > {is} requests"),
    };
    format!("{} > {}{}{between}{unknown}", usd(was), usd(is), percent(was, is))
}

/// By how much it is more or less, in tenths of a percent.
fn percent(was: PicoUsd, is: PicoUsd) -> String {
    if was <= PicoUsd::ZERO || was == is {
        return String::new();
    }
    let permille = is.get().saturating_sub(was.get()).saturating_mul(1_000) / was.get();
    let sign = if permille < 0 { "-" } else { "+" };
    format!(" ({sign}{}.{} %)", permille.abs() / 10, permille.abs() % 10)
}
