//! `tollstream apply -f FILE`: control as files in git declare it; shows the difference first.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::connection::Connection;
use super::super::{output, topology};
use super::session::Session;
use super::text;
use crate::control::Change;
use crate::control::check;
use crate::control::declared::{Action, Item, difference};
use crate::control::document::{self, Problem};
use crate::control::edit::Wanted;

#[derive(Debug, Clone, Args)]
pub struct Apply {
    #[command(flatten)]
    pub connection: Connection,
    /// A file with any of `plans`, `organizations`, `models` or `policies` (lists of tables); - reads standard input
    #[arg(long, short, value_name = "FILE", required = true, num_args = 1..)]
    pub file: Vec<PathBuf>,
    /// Apply without asking
    #[arg(long, short)]
    pub yes: bool,
    /// Only show the difference
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub async fn run(arguments: Apply) -> anyhow::Result<ExitCode> {
    let (mut declared, mut problems) = (Vec::new(), Vec::new());
    for path in &arguments.file {
        let mut found = Vec::new();
        declared.extend(document::file(&text(path)?, &mut found));
        let named = |problem: &Problem| json!({ "file": path, "at": problem.at, "problem": problem.problem });
        problems.extend(found.iter().map(|problem| (format!("{}: {problem}", path.display()), named(problem))));
    }
    if !problems.is_empty() {
        return Ok(refused(&problems, arguments.json));
    }
    let mut session = Session::open(&arguments.connection).await?;
    let items = match difference(session.log.tables(), &declared) {
        Ok(items) => items,
        Err(found) => {
            let named = |problem: &Problem| json!({ "file": null, "at": problem.at, "problem": problem.problem });
            let problems: Vec<_> = found.iter().map(|problem| (problem.to_string(), named(problem))).collect();
            return Ok(refused(&problems, arguments.json));
        }
    };
    if !arguments.json {
        show(&items);
    }
    let wanted: Vec<Wanted> = items.iter().filter_map(|item| item.wanted.clone()).collect();
    if wanted.is_empty() || arguments.dry_run {
        if arguments.json {
            output::line(&json!({ "applied": false, "items": items, "overtaken": [], "broken": [] }).to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.yes && !topology::confirmed()? {
        output::note("nothing was applied");
        return Ok(ExitCode::FAILURE);
    }
    let actor = format!("tollstream apply (uid {})", rustix::process::getuid().as_raw());
    let outcomes = session.log.write(&session.publisher, wanted.clone(), &actor).await?;
    let conflicts = wanted.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Change::Conflict { .. }));
    let overtaken: Vec<String> = conflicts.map(|(wanted, _)| format!("{} {}", wanted.kind.name(), wanted.id)).collect();
    let broken: Vec<String> = check::broken(session.log.tables(), &wanted).iter().map(ToString::to_string).collect();
    if arguments.json {
        let shown = json!({ "applied": true, "items": items, "overtaken": overtaken, "broken": broken });
        output::line(&shown.to_string());
    } else {
        for name in &overtaken {
            output::note(&format!("{name}: somebody else changed it at the same time; theirs stands. Run this again"));
        }
        broken.iter().for_each(|what| output::note(&format!("warning: changes at the same time do not fit: {what}")));
        output::line("applied");
    }
    Ok(if overtaken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(super::session::CONFLICT) })
}

fn refused(problems: &[(String, Value)], json: bool) -> ExitCode {
    if json {
        let problems: Vec<&Value> = problems.iter().map(|(_, value)| value).collect();
        output::line(&json!({ "applied": false, "problems": problems }).to_string());
    }
    problems.iter().for_each(|(text, _)| output::note(&format!("error: {text}")));
    output::note("nothing was applied");
    ExitCode::from(super::session::INVALID)
}

fn show(items: &[Item]) {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for item in items.iter().filter(|item| item.action != Action::Unchanged) {
        let head = |detail: String| vec![item.action.as_str().into(), item.kind.into(), item.id.clone(), detail];
        match item.changes.is_empty() {
            true => rows.push(head(String::new())),
            false => rows.extend(item.changes.iter().map(|change| head(change.to_string()))),
        }
    }
    let unchanged = items.iter().filter(|item| item.action == Action::Unchanged).count();
    match rows.is_empty() {
        true => output::line(&format!("nothing to do: {unchanged} entities are as declared")),
        false => {
            output::table(&["action", "what", "name", "detail"], &rows);
            output::line(&format!("{unchanged} more are as declared"));
        }
    }
}
