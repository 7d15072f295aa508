//! `tollstream replay diff`: one request, as it was and as each candidate would have had it.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::super::output;
use super::{DiffArguments, show};
use crate::domain::PicoUsd;
use crate::explain::tell::usd;
use crate::replay::directory::Directory;
use crate::replay::row::{Half, Row};

pub(super) fn run(arguments: &DiffArguments) -> anyhow::Result<ExitCode> {
    let directory = Directory::open(&arguments.dir, &arguments.run)?;
    let mut found = Vec::new();
    for partition in directory.partitions()? {
        directory.each_row(partition, |row| {
            if row.request_id == arguments.request_id {
                found.push(row);
            }
            Ok(())
        })?;
    }
    let requests: Vec<Value> = found.iter().map(show::row).collect();
    match arguments.json {
        true => output::line(&json!({ "found": !found.is_empty(), "requests": requests }).to_string()),
        false if found.is_empty() => output::note(&format!(
            "run {} has no request {}; it may be outside of its range, or left out by its filter",
            arguments.run.as_str(),
            arguments.request_id
        )),
        false => found.iter().for_each(tell),
    }
    Ok(if found.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(row: &Row) {
    output::line(&format!(
        "{} {} at {} (journal/{} offset {}), candidate {}",
        row.organization, row.request_id, row.at, row.partition, row.journal_offset, row.candidate_name
    ));
    let changes: Vec<&str> = row.changes.iter().map(|change| change.name()).collect();
    let in_what = if changes.is_empty() { "in nothing".to_owned() } else { changes.join(", ") };
    output::line(&format!("differs: {in_what}\n"));
    let (was, is) = (&row.recorded, &row.candidate);
    let mut rows = Vec::new();
    for (name, of) in FIELDS {
        let (was, is) = (of(was), of(is));
        let mark = if was == is { "" } else { "*" };
        rows.push(vec![name.to_owned(), was, is, mark.to_owned()]);
    }
    output::table(&["", "recorded", "candidate", ""], &rows);
    if row.estimated {
        let amount = |cost: Option<PicoUsd>| cost.map_or("not known".to_owned(), usd);
        output::line(&format!(
            "\nestimated, since nobody made that call: its cost lies between {} and {}",
            amount(row.cost_low),
            amount(row.cost_high)
        ));
    }
    output::line("");
}

fn optional(of: Option<&impl ToString>) -> String {
    of.map_or_else(|| "-".to_owned(), ToString::to_string)
}

type Field = (&'static str, fn(&Half) -> String);

const FIELDS: [Field; 13] = [
    ("outcome", |half| half.outcome.map_or("open", |outcome| outcome.as_str()).to_owned()),
    ("status", |half| optional(half.status.as_ref())),
    ("error", |half| optional(half.error_code.as_ref())),
    ("intent", |half| optional(half.intent.as_ref())),
    ("tier", |half| optional(half.tier.as_ref())),
    ("model", |half| optional(half.model.as_ref())),
    ("deployment", |half| optional(half.deployment.as_ref())),
    ("attempts", |half| half.attempts.to_string()),
    ("input tokens", |half| optional(half.input_tokens.as_ref())),
    ("output tokens", |half| optional(half.output_tokens.as_ref())),
    ("cost", |half| half.cost.map_or("not known".to_owned(), usd)),
    ("duration ms", |half| optional(half.duration_ms.as_ref())),
    ("reasons", |half| half.reasons.join(" ")),
];
