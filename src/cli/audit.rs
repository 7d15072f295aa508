//! `tollstream audit`: whether the invariants hold on the logs.

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::connection::Connection;
use super::output;
use crate::audit::journal::Settings;
use crate::audit::plan::Scope;
use crate::audit::reader::{Compared, Reader, Report};
use crate::audit::{Check, Finding, Seen, Verdict};
use crate::causes::causes;
use crate::codec::{Codec, Registry};
use crate::config::Config;
use crate::domain::Moment;
use crate::runtime::clock;

/// The exit code when it could not look: neither 0 (holds) nor 1 (violated).
pub(super) const COULD_NOT_LOOK: u8 = 2;

#[derive(Debug, Clone, Args)]
pub struct Audit {
    #[command(flatten)]
    pub connection: Connection,
    /// From the tenure on that was in force then: 2026-11-23T10:00:00Z, or 30s, 15m, 2h, 7d ago
    #[arg(long, value_name = "TIME")]
    pub from: Option<Moment>,
    /// Up to then
    #[arg(long, value_name = "TIME")]
    pub to: Option<Moment>,
    /// Only these partitions of the journal, such as 0-3,7
    #[arg(long, value_name = "RANGES", value_delimiter = ',')]
    pub partition: Vec<Partitions>,
    /// How long after its deadline a request may be without a terminal, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub grace_s: u64,
    /// Nothing failed in the range: every request must have exactly one attempt
    #[arg(long)]
    pub no_faults: bool,
    /// Decide every commit again and compare the facts
    #[arg(long)]
    pub redecide: bool,
    /// Leave ClickHouse out: hold the journal against usage only
    #[arg(long)]
    pub no_clickhouse: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Partitions from one to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions(RangeInclusive<i32>);

impl FromStr for Partitions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<i32>().ok().filter(|number| *number >= 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err(format!("{text:?} is neither a partition nor a range of them such as 0-3")),
        }
    }
}

/// Runs the command. Whatever keeps it from looking is told, and is an exit code of its own.
pub async fn run(arguments: Audit) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let audited = match audit(&arguments).await {
        Ok(report) => report,
        Err(error) => {
            match arguments.json {
                true => output::line(
                    &json!({ "verdict": Verdict::CouldNotLook, "error": causes(error.as_ref()) }).to_string(),
                ),
                false => output::note(&format!("could not look: {}", causes(error.as_ref()))),
            }
            return Ok(ExitCode::from(COULD_NOT_LOOK));
        }
    };
    match arguments.json {
        true => output::line(&describe(&audited, started.elapsed()).to_string()),
        false => show(&audited, started.elapsed()),
    }
    Ok(match audited.findings.verdict() {
        Verdict::Holds => ExitCode::SUCCESS,
        Verdict::Violated => ExitCode::FAILURE,
        Verdict::CouldNotLook => ExitCode::from(COULD_NOT_LOOK),
    })
}

async fn audit(arguments: &Audit) -> anyhow::Result<Report> {
    let config = arguments.connection.load()?;
    let now = clock::now();
    let (from, to) = (arguments.from.map(|from| from.before(now)), arguments.to.map(|to| to.before(now)));
    ensure!(from.zip(to).is_none_or(|(from, to)| from < to), "--from must be before --to");
    let scope = Scope {
        from,
        to,
        partitions: arguments.partition.iter().map(|partitions| partitions.0.clone()).collect(),
        settings: Settings {
            grace: Duration::from_secs(arguments.grace_s),
            no_faults: arguments.no_faults,
            redecides: arguments.redecide,
        },
        clickhouse: (!arguments.no_clickhouse).then(|| config.clickhouse.clone()),
        now: to.map_or(now, |to| to.min(now)),
    };
    let reader = reader(config)?;
    let audit = move || {
        let audited = reader.audit(&scope);
        reader.progress.finish_and_clear();
        audited
    };
    Ok(tokio::task::spawn_blocking(audit).await.context("the audit broke off")??)
}

/// A reader of the logs with a progress bar.
pub(super) fn reader(config: Config) -> anyhow::Result<Reader> {
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    let codec = Arc::new(Codec::reader(registry));
    Ok(Reader { kafka: config.kafka, codec, handle: Handle::current(), progress: bar() })
}

/// On standard error, and only if that is a terminal.
pub fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{spinner} {human_pos}/{human_len} records [{bar:30}] {per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn show(report: &Report, elapsed: Duration) {
    let checks = shown(report);
    let row = |(check, seen): &(Check, &Seen)| {
        let first = seen.first.first().map_or_else(String::new, |finding| finding.place.to_string());
        let looked_at = format!("{} {}", seen.looked_at, check.counts());
        vec![
            check.name().into(),
            states(report, *check).into(),
            verdict(seen.verdict()).into(),
            looked_at,
            seen.violations.to_string(),
            first,
        ]
    };
    let rows: Vec<Vec<String>> = checks.iter().map(row).collect();
    output::table(&["check", "what must hold", "verdict", "looked at", "violations", "first"], &rows);
    for (check, seen) in checks {
        if seen.violations == 0 && seen.blind.is_empty() {
            continue;
        }
        output::line("");
        output::line(&format!("{} {}", check.name(), states(report, check)));
        for finding in &seen.first {
            output::line(&format!("  {}: {}{}", finding.place, of(finding), finding.what));
        }
        let more = seen.violations.saturating_sub(seen.first.len() as u64);
        if more > 0 {
            output::line(&format!("  and {more} more"));
        }
        for why in &seen.blind {
            output::line(&format!("  could not look: {why}"));
        }
    }
    output::line("");
    output::line(&summary(report, elapsed));
}

/// The checks that were made: deciding again has to be asked for.
fn shown(report: &Report) -> Vec<(Check, &Seen)> {
    let checks = Check::ALL.into_iter().map(|check| (check, report.findings.of(check)));
    checks.filter(|(check, seen)| *check != Check::Redecided || seen.looked_at > 0).collect()
}

/// What must hold, of that which was looked at.
fn states(report: &Report, check: Check) -> &'static str {
    match (check, report.clickhouse) {
        (Check::I5, Compared::LeftOut) => "journal and usage have the same sums; ClickHouse left out",
        _ => check.states(),
    }
}

fn summary(report: &Report, elapsed: Duration) -> String {
    let counts = &report.counts;
    let aside = match counts.not_redecided {
        0 => String::new(),
        some => format!("\n{some} refusals were not decided again: their reason is in content"),
    };
    let foreign = match report.lag.foreign {
        0 => String::new(),
        some => format!(", {some} records of usage are none of ours"),
    };
    let rows = match report.clickhouse {
        Compared::Compared => format!("{} not inserted yet", report.lag.not_inserted),
        Compared::LeftOut => "ClickHouse left out".to_owned(),
        Compared::Unreachable => "ClickHouse out of reach".to_owned(),
    };
    let decided =
        counts.admitted + counts.refused + counts.cancels + counts.duplicates + counts.set_aside + counts.purges;
    format!(
        "{} partitions: {} commits of {} tenures ({} ineffective), {} frames\n\
         {decided} records decided: {} admitted ({} settled, {} open), {} refused, {} cancels, {} duplicates, {} set aside, \
         {} purges of caches; \
         {} waiting{aside}\n\
         {} postings not projected yet, {rows}{foreign}\n{} in {:.1} s, {:.0} commits/s",
        report.partitions,
        counts.commits,
        counts.tenures,
        counts.ineffective,
        report.frames,
        counts.admitted,
        counts.settled,
        counts.open,
        counts.refused,
        counts.cancels,
        counts.duplicates,
        counts.set_aside,
        counts.purges,
        report.waiting,
        report.lag.not_projected,
        verdict(report.findings.verdict()),
        elapsed.as_secs_f64(),
        per_second(report, elapsed),
    )
}

fn describe(report: &Report, elapsed: Duration) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "topic": finding.place.topic.name(),
            "partition": finding.place.partition,
            "offset": finding.place.offset,
            "organization": finding.request.as_ref().map(|key| key.organization.as_str()),
            "request_id": finding.request.as_ref().map(|key| key.request.as_str()),
            "what": finding.what,
        })
    };
    let checks = shown(report).into_iter().map(|(check, seen)| {
        json!({
            "check": check.name(),
            "states": states(report, check),
            "verdict": seen.verdict(),
            "looked_at": seen.looked_at,
            "counts": check.counts(),
            "violations": seen.violations,
            "first": seen.first.iter().map(finding).collect::<Vec<_>>(),
            "could_not_look": seen.blind,
        })
    });
    json!({
        "verdict": report.findings.verdict(),
        "checks": checks.collect::<Vec<_>>(),
        "partitions": report.partitions,
        "counts": report.counts,
        "frames": report.frames,
        "waiting": report.waiting,
        "clickhouse": report.clickhouse,
        "not_projected": report.lag.not_projected,
        "not_inserted": report.lag.not_inserted,
        "foreign_usage": report.lag.foreign,
        "seconds": elapsed.as_secs_f64(),
        "commits_per_second": per_second(report, elapsed).round(),
    })
}

fn per_second(report: &Report, elapsed: Duration) -> f64 {
    report.counts.commits as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Holds => "holds",
        Verdict::Violated => "VIOLATED",
        Verdict::CouldNotLook => "could not look",
    }
}

/// Whose it is, if that is known.
fn of(finding: &Finding) -> String {
    finding.request.as_ref().map_or_else(String::new, |key| format!("{key}: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_numbers_or_ranges() {
        assert_eq!("7".parse::<Partitions>().unwrap(), Partitions(7..=7));
        assert_eq!("0-3".parse::<Partitions>().unwrap(), Partitions(0..=3));
        for text in ["", "-", "3-0", "-1", "a", "1-b"] {
            assert!(text.parse::<Partitions>().is_err(), "{text}");
        }
    }
}
