//! `tollstream topology check | describe | apply | release`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;

use super::connection::Connection;
use super::output;
use crate::topology::apply::{self, Options};
use crate::topology::plan::{Action, Plan};
use crate::topology::topics::Profile;
use crate::topology::{Files, Problem, Topology, check, describe, schemas};

/// Topics, schemas, models and policies
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Check the files against each other and against the released schemas; needs nothing running
    Check(Check),
    /// Show topics, schemas, models with their prices, and policies
    Describe(Describe),
    /// Make Kafka, the registry, control and ClickHouse what the files say; shows the difference first
    Apply(Apply),
    /// Add changed schemas to the history that every later one must be compatible with
    Release(Release),
}

#[derive(Debug, Clone, Args)]
pub struct Source {
    /// Folder with a topology/ (and schemas/avro/) of your own, in place of the built-in files
    #[arg(long, value_name = "FOLDER")]
    pub files: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Check {
    #[command(flatten)]
    pub source: Source,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Describe {
    #[command(flatten)]
    pub source: Source,
    #[arg(long, value_enum, default_value_t = Profile::Laptop)]
    pub profile: Profile,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Apply {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub source: Source,
    /// How large and how safe
    #[arg(long, value_enum, default_value_t = Profile::Laptop)]
    pub profile: Profile,
    /// Partitions, in place of the profile's number; cannot change later
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub partitions: Option<u32>,
    /// Give entities of control that differ from their seed the seed's value
    #[arg(long)]
    pub update_seeds: bool,
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

#[derive(Debug, Clone, Args)]
pub struct Release {
    /// The repository: the folder with schemas/avro/
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub files: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Source {
    fn load(&self) -> anyhow::Result<Files> {
        Ok(match &self.files {
            Some(folder) => Files::folder(folder)?,
            None => Files::embedded(),
        })
    }
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(arguments) => run_check(&arguments),
        Command::Describe(arguments) => run_describe(&arguments),
        Command::Apply(arguments) => run_apply(arguments).await,
        Command::Release(arguments) => run_release(&arguments),
    }
}

fn run_check(arguments: &Check) -> anyhow::Result<ExitCode> {
    let problems = check::check(&arguments.source.load()?);
    if arguments.json {
        output::line(&json!({ "ok": problems.is_empty(), "problems": problems }).to_string());
    } else if problems.is_empty() {
        output::line("topology, schemas and seeds hold");
    } else {
        show_problems(&problems);
    }
    Ok(exit(problems.is_empty()))
}

fn show_problems(problems: &[Problem]) {
    let rows: Vec<Vec<String>> =
        problems.iter().map(|p| vec![p.file.clone(), p.item.clone(), p.problem.clone()]).collect();
    output::table(&["file", "item", "problem"], &rows);
}

fn run_describe(arguments: &Describe) -> anyhow::Result<ExitCode> {
    let files = arguments.source.load()?;
    let topology = Topology::parse(&files)?;
    let description = describe::describe(&files, &topology, arguments.profile);
    if arguments.json {
        output::line(&serde_json::to_string(&description)?);
        return Ok(ExitCode::SUCCESS);
    }
    for table in description.tables() {
        output::line(table.title);
        output::table(table.headers, &table.rows);
        output::line("");
    }
    let (copies, needed) = (description.replication_factor, description.min_insync_replicas);
    output::line(&format!("Profile {}: {copies} replicas, {needed} in sync to write", description.profile));
    Ok(ExitCode::SUCCESS)
}

async fn run_apply(arguments: Apply) -> anyhow::Result<ExitCode> {
    let config = arguments.connection.load()?;
    let topology = Topology::parse(&arguments.source.load()?)?;
    let Apply { profile, partitions, update_seeds, .. } = arguments;
    let options = Options { topology, profile, partitions, update_seeds };
    let plan = apply::difference(&config, &options).await?;
    if !arguments.json {
        show_plan(&plan);
    }
    if !plan.refusals.is_empty() {
        if arguments.json {
            output::line(&json!({ "applied": false, "items": plan.items, "refusals": plan.refusals }).to_string());
        }
        output::note("nothing was applied");
        return Ok(ExitCode::FAILURE);
    }
    if plan.nothing_to_do() || arguments.dry_run {
        if arguments.json {
            output::line(&json!({ "applied": false, "items": plan.items, "refusals": [] }).to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.yes && !confirmed()? {
        output::note("nothing was applied");
        return Ok(ExitCode::FAILURE);
    }
    let report = apply::apply(&config, plan).await?;
    if arguments.json {
        let (items, overtaken) = (&report.plan.items, &report.overtaken);
        output::line(&json!({ "applied": true, "items": items, "refusals": [], "overtaken": overtaken }).to_string());
    } else {
        for name in &report.overtaken {
            output::line(&format!("{name}: somebody else changed it at the same time; theirs stands"));
        }
        output::line("applied");
    }
    Ok(ExitCode::SUCCESS)
}

fn show_plan(plan: &Plan) {
    let shown = plan.items.iter().filter(|item| item.action != Action::Unchanged);
    let rows: Vec<Vec<String>> = shown
        .map(|item| vec![item.action.name().into(), item.kind.into(), item.name.clone(), item.detail.clone()])
        .chain(plan.refusals.iter().map(|r| vec!["REFUSE".into(), r.kind.into(), r.name.clone(), r.why.clone()]))
        .collect();
    if !rows.is_empty() {
        output::table(&["action", "what", "name", "detail"], &rows);
    }
    let unchanged = plan.count(Action::Unchanged);
    match plan.nothing_to_do() {
        true => output::line(&format!("nothing to do: {unchanged} things are as they should be")),
        false => output::line(&format!("{unchanged} more are as they should be")),
    }
}

/// Asks a person.
pub fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        anyhow::bail!("nobody is there to ask; give --yes to apply this, or --dry-run to only see it");
    }
    output::note("apply this? [y/N]");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn run_release(arguments: &Release) -> anyhow::Result<ExitCode> {
    let mut files = Files::folder(&arguments.files)?;
    let unreleased = schemas::unreleased(&files);
    let mut problems = Vec::new();
    for (_, file, text) in &unreleased {
        files.set(file, text);
    }
    // What is released once has to be readable for ever, so nothing is released that does not hold.
    schemas::check(&files, &mut problems);
    let released: Vec<&str> = unreleased.iter().map(|(_, file, _)| file.as_str()).collect();
    if problems.is_empty() {
        for (_, file, text) in &unreleased {
            let path = arguments.files.join(file);
            let folder = path.parent().unwrap_or(&arguments.files);
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    match (arguments.json, problems.is_empty()) {
        (true, true) => output::line(&json!({ "released": released, "problems": [] }).to_string()),
        (true, false) => output::line(&json!({ "released": [], "problems": problems }).to_string()),
        (false, false) => show_problems(&problems),
        (false, true) if released.is_empty() => output::line("every schema is released already"),
        (false, true) => released.iter().for_each(|file| output::line(file)),
    }
    Ok(exit(problems.is_empty()))
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
