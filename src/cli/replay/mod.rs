//! `tollstream replay`: yesterday's traffic through tomorrow's rules.

mod diff;
mod live;
mod remove;
mod shadow;
mod show;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::json;
use tokio::runtime::Handle;

use super::audit::{COULD_NOT_LOOK, bar, reader};
use super::connection::Connection;
use super::output;
use super::up::running;
use crate::archive::Place;
use crate::archive::read::Archive;
use crate::audit::reader::Reader;
use crate::causes::causes;
use crate::config::{ClickHouse, Config, Environment};
use crate::control::rules::Rules;
use crate::domain::{ModelName, Moment, OrganizationId, PicoUsd, PolicyName, RequestId};
use crate::replay::candidate::{Asked, Document, RECORDED};
use crate::replay::clickhouse::Table;
use crate::replay::directory::{Directory, RunName};
use crate::replay::log::Log;
use crate::replay::page;
use crate::replay::partition::Candidate;
use crate::replay::report::Report;
use crate::replay::run::{self, Destination, FilterSpec, LAST_MAX, Nowhere, Run, Spec};
use crate::runtime::clock;

/// Largest file of a candidate, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Replay {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub arguments: Arguments,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// What a run has shown, again
    Report(ReportArguments),
    /// One request: as it was, and as each candidate would have had it
    Diff(DiffArguments),
    /// Take a run back: its directory, its rows in ClickHouse, and its topics
    Remove(RemoveArguments),
}

#[derive(Debug, Clone, Args)]
pub struct RemoveArguments {
    /// Name of the run
    pub run: RunName,
    /// Where the runs are kept
    #[arg(long, value_name = "DIRECTORY", default_value = "replays")]
    pub dir: PathBuf,
    /// Leave its rows in ClickHouse
    #[arg(long)]
    pub keep_clickhouse: bool,
    #[command(flatten)]
    pub connection: Connection,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ReportArguments {
    /// Name of the run
    pub run: RunName,
    /// Where the runs are kept
    #[arg(long, value_name = "DIRECTORY", default_value = "replays")]
    pub dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct DiffArguments {
    /// The request's id: the `x-request-id` of its answer
    pub request_id: RequestId,
    /// Name of the run
    #[arg(long)]
    pub run: RunName,
    /// Where the runs are kept
    #[arg(long, value_name = "DIRECTORY", default_value = "replays")]
    pub dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Try a policy in the place of the one of its name: a candidate of its own; repeat it for several
    #[arg(long, value_name = "FILE")]
    pub policy: Vec<PathBuf>,
    /// Try other models and prices, in the form of topology/seed/models.toml: a candidate of its own
    #[arg(long, value_name = "FILE")]
    pub prices: Vec<PathBuf>,
    /// Try other plans, in the form of topology/seed/plans.toml: a candidate of its own
    #[arg(long, value_name = "FILE")]
    pub plans: Vec<PathBuf>,
    /// Try several files together, as one candidate
    #[arg(long, value_name = "NAME=FILE,FILE")]
    pub candidate: Vec<NamedFiles>,
    /// Decide by the recorded rules, too, and say whether every decision comes out as it is recorded; alone, if nothing is tried
    #[arg(long)]
    pub verify: bool,
    /// Read the content again and classify it with this version, for each candidate
    #[arg(long)]
    pub reclassify: bool,
    /// Requests decided from then on: 2026-11-23T10:00:00Z, or 30s, 15m, 2h, 7d ago; default: all
    #[arg(long, value_name = "TIME")]
    pub from: Option<Moment>,
    /// Requests decided before then; default: up to now
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Only this part of a partition of the journal; repeat it for several
    #[arg(long, value_name = "PARTITION:FROM-TO")]
    pub offsets: Vec<Offsets>,
    /// The last so many requests
    #[arg(long, value_name = "N", value_parser = last)]
    pub last: Option<usize>,
    /// Only those of an organization; repeat it for several. Only their partitions are read
    #[arg(long, value_name = "ID")]
    pub organization: Vec<OrganizationId>,
    /// Only those that were so: tier=3, model=auto (as asked for), policy=auto, user_tier=vip, tag.NAME=VALUE. All are
    /// decided all the same, since each changes what is left for the next
    #[arg(long = "where", value_name = "NAME=VALUE")]
    pub wheres: Vec<Where>,
    /// Name of the run: its directory, and its rows in ClickHouse; default: the time
    #[arg(long, value_name = "NAME")]
    pub run: Option<RunName>,
    /// Go on with a run that was broken off
    #[arg(long, requires = "run")]
    pub resume: bool,
    /// Where the runs are kept
    #[arg(long, value_name = "DIRECTORY", default_value = "replays")]
    pub dir: PathBuf,
    /// Leave ClickHouse out
    #[arg(long)]
    pub no_clickhouse: bool,
    /// Read an archive instead of the topics: a directory, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
    /// Decide alone, really call the providers for a sample afterwards, or follow the running system
    #[arg(long, value_enum, default_value_t = Mode::Decide)]
    pub mode: Mode,
    #[command(flatten)]
    pub spending: Spending,
    #[command(flatten)]
    pub connection: Connection,
    /// Print one JSON object; amounts are pico-dollars in strings
    #[arg(long)]
    pub json: bool,
    /// Where this process ends itself, for the fault tests: partition-replayed=kill@1
    #[cfg(feature = "failpoints")]
    #[arg(long, env = "TOLLSTREAM_FAILPOINT", hide = true)]
    pub failpoint: Option<crate::failpoint::Armed>,
}

/// What is done beside deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Decide again from the journal
    Decide,
    /// Really call the providers for a sample
    Live,
    /// Decide new requests of the running system, too, and really call the providers for a share of them
    Shadow,
}

/// How much is really called.
#[derive(Debug, Clone, Args)]
pub struct Spending {
    /// live, shadow: what the run may spend in all, in dollars
    #[arg(long, value_name = "USD", default_value = "1.00")]
    pub budget: PicoUsd,
    /// live, shadow: calls in a second at the most
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// live, shadow: calls under way at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub concurrency: usize,
    /// live: requests that are called for, chosen by a hash of their ids
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub sample: usize,
    /// live: also of those that would be called where they were
    #[arg(long)]
    pub all: bool,
    /// live: spend without asking
    #[arg(long)]
    pub yes: bool,
    /// shadow: percent of the requests that are called for, chosen by a hash of their ids
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub share: u64,
    /// shadow: for how long, such as 10m; default: until it is interrupted
    #[arg(long = "for", value_name = "DURATION")]
    pub lasts: Option<Moment>,
    /// live, shadow: call every model at this OpenAI-compatible base URL; default: the providers, or the simulator of the gateway
    /// that runs from .tollstream
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
}

/// A candidate of several files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFiles {
    name: String,
    files: Vec<PathBuf>,
}

impl FromStr for NamedFiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, files) = text.split_once('=').unwrap_or(("", ""));
        if name.is_empty() || files.is_empty() || files.split(',').any(str::is_empty) {
            return Err(format!("{text:?} is not NAME=FILE or NAME=FILE,FILE"));
        }
        Ok(Self { name: name.to_owned(), files: files.split(',').map(PathBuf::from).collect() })
    }
}

/// A part of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsets(i32, Range<i64>);

impl FromStr for Offsets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (partition, range) = text.split_once(':')?;
            let (from, to) = range.split_once('-')?;
            let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
            let (partition, from, to) = (partition.parse::<i32>().ok()?, number(from)?, number(to)?);
            (partition >= 0 && from <= to).then_some(Self(partition, from..to.saturating_add(1)))
        };
        parsed().ok_or_else(|| format!("{text:?} is no part of a partition such as 3:100-2000, both ends included"))
    }
}

/// What the requests that are told of have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    Tier(u8),
    Model(ModelName),
    Policy(PolicyName),
    UserTier(String),
    Tag(String, String),
}

impl FromStr for Where {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let wrong = |why: String| format!("{text:?}: {why}");
        match name {
            "tier" => value.parse().map(Self::Tier).map_err(|_| wrong("a tier is a number such as 3".to_owned())),
            "model" => value.parse().map(Self::Model).map_err(|e: crate::domain::ids::Error| wrong(e.to_string())),
            "policy" => value.parse().map(Self::Policy).map_err(|e: crate::domain::ids::Error| wrong(e.to_string())),
            "user_tier" if !value.is_empty() => Ok(Self::UserTier(value.to_owned())),
            _ => match name.strip_prefix("tag.") {
                Some(tag) if !tag.is_empty() => Ok(Self::Tag(tag.to_owned(), value.to_owned())),
                _ => Err(wrong("known are tier, model, policy, user_tier and tag.NAME, each with =VALUE".to_owned())),
            },
        }
    }
}

fn last(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|number| (1..=LAST_MAX).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a number from 1 to {LAST_MAX}"))
}

/// Runs the command. Whatever keeps it from looking is told, and is an exit code of its own.
pub async fn run(replay: Replay) -> anyhow::Result<ExitCode> {
    let (json, ran) = match replay.command {
        Some(Command::Report(arguments)) => (arguments.json, show::again(&arguments)),
        Some(Command::Diff(arguments)) => (arguments.json, diff::run(&arguments)),
        Some(Command::Remove(arguments)) => (arguments.json, Box::pin(remove::run(&arguments)).await),
        None => (replay.arguments.json, Box::pin(decide(replay.arguments)).await),
    };
    ran.or_else(|error| {
        match json {
            true => output::line(&json!({ "error": causes(error.as_ref()) }).to_string()),
            false => output::note(&format!("error: {}", causes(error.as_ref()))),
        }
        Ok(ExitCode::from(COULD_NOT_LOOK))
    })
}

async fn decide(arguments: Arguments) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "failpoints")]
    arguments.failpoint.into_iter().for_each(crate::failpoint::arm);
    let begun = Instant::now();
    let spending = &arguments.spending;
    ensure!(spending.budget > PicoUsd::ZERO, "--budget must be more than nothing");
    ensure!(spending.concurrency > 0 && spending.sample > 0, "--concurrency and --sample must be at least 1");
    if arguments.mode == Mode::Shadow {
        return Box::pin(shadow::run(arguments)).await;
    }
    if arguments.mode == Mode::Live {
        live::can_ask(spending.yes)?;
    }
    let spec = spec(&arguments)?;
    if let Some(name) = &arguments.run {
        Directory::check(&arguments.dir, name, arguments.resume)?;
    }
    let name = match &arguments.run {
        Some(name) => name.clone(),
        None => run_name().map_err(anyhow::Error::msg)?,
    };
    let config = configuration(&arguments)?;
    let clickhouse = config.clickhouse.clone();
    let archived = config.archive.url.clone();
    let (dir, resumes, with_clickhouse) = (arguments.dir.clone(), arguments.resume, !arguments.no_clickhouse);
    // What was fixed when a run began holds for the rest of it.
    let spec = match resumes {
        true => {
            let begun: Spec = Directory::open(&dir, &name)?.spec()?;
            if let Some(what) = begun.differs(&spec) {
                bail!(crate::replay::directory::Error::Differs { name: name.as_str().to_owned(), what });
            }
            begun
        }
        false => spec,
    };
    let (handle, calls) = (Handle::current(), arguments.mode == Mode::Live);
    let source = Source::new(config.clone(), &arguments)?;
    let prepared = tokio::task::spawn_blocking(move || {
        let log = source.open(handle.clone())?;
        let progress = bar();
        let archive = archived.and_then(|url| Place::open(&url, false, handle).ok());
        if calls && !log.has_content() {
            bail!(crate::replay::run::Error::NoContent { url: spec.archive.unwrap_or_default() });
        }
        let Run { spec, rules, candidates, kept, archive, since, .. } =
            Run::prepare(&*log, spec, archive, progress.clone())?;
        anyhow::Ok((spec, rules, candidates, kept, archive, since, progress, log))
    });
    let prepared = prepared.await.context("looking broke off")??;
    let (spec, rules, candidates, kept, archive, since, progress, log) = prepared;
    // Everything that can be wrong is found before anything is written.
    let table = match with_clickhouse {
        true => Some(open_table(&clickhouse, &name, resumes).await?),
        false => None,
    };
    let (directory, _) = Directory::begin(&dir, &name, &spec, resumes, Spec::differs)?;
    let replayed = tokio::task::spawn_blocking(move || {
        let run = Run { log: &*log, spec, rules, candidates, kept, archive, since, progress };
        let destination: &dyn Destination = table.as_ref().map_or(&Nowhere as &dyn Destination, |table| table);
        let reports = run.run(&directory, destination);
        run.progress.finish_and_clear();
        let begun = name.as_str();
        let reports = reports.with_context(|| {
            format!("run {begun} broke off; what is done of it stays, and the same command goes on with --run {begun} --resume")
        })?;
        if reports.iter().all(|report| report.all.recorded.requests == 0) {
            directory.remove()?;
            bail!(crate::replay::run::Error::NothingInRange);
        }
        directory.write_report(&reports)?;
        let page = directory.write_page(&page::page(name.as_str(), &run.spec, &reports))?;
        let Run { rules, candidates, spec, .. } = run;
        anyhow::Ok((Decided { name, directory, rules, candidates, control: spec.control, log }, reports, page))
    });
    let (decided, reports, page) = replayed.await.context("the replay broke off")??;
    for organization in &arguments.organization {
        let has = |report: &Report| report.organizations.contains_key(organization.as_str());
        if !reports.iter().any(has) {
            output::note(&format!("organization {organization} has no request in that range"));
        }
    }
    let name = decided.name.clone();
    if arguments.mode == Mode::Live {
        if !arguments.json {
            show::show(&reports, &name, &page, begun.elapsed());
        }
        let called = Box::pin(live::run(config, &arguments, decided)).await;
        if arguments.json {
            let mut shown = show::describe(name.as_str(), &reports);
            shown["live"] = match &called {
                Ok(called) => called.told.clone(),
                Err(error) => json!({ "error": causes(error.as_ref()) }),
            };
            output::line(&shown.to_string());
        } else if let Err(error) = &called {
            output::note(&format!("the report is written; calling: {}", causes(error.as_ref())));
        }
        let is_good = called.is_ok_and(|called| called.any_answered);
        return Ok(if is_good { verdict(&reports) } else { ExitCode::from(COULD_NOT_LOOK) });
    }
    match arguments.json {
        true => output::line(&show::describe(name.as_str(), &reports).to_string()),
        false => show::show(&reports, &name, &page, begun.elapsed()),
    }
    Ok(verdict(&reports))
}

/// A replay that has decided.
struct Decided {
    name: RunName,
    directory: Directory,
    rules: Rules,
    candidates: Vec<Candidate>,
    /// Where control ended.
    control: i64,
    log: Box<dyn Log + Send>,
}

/// The configuration, with where the providers are called.
fn configuration(arguments: &Arguments) -> anyhow::Result<Config> {
    let mut config = arguments.connection.load()?;
    if arguments.mode == Mode::Decide {
        return Ok(config);
    }
    config.providers.environment = Environment::read();
    if let Some(url) = &arguments.spending.upstream {
        config.providers.upstream_override = Some(url.clone());
    } else if config.providers.simulator_url.is_none()
        && let Some(simulator) = running(Path::new(".tollstream")).and_then(|of| of.simulator)
    {
        config.providers.simulator_url = Some(format!("{}/v1", simulator.trim_end_matches('/')));
    }
    config.validate()?;
    Ok(config)
}

/// Where the logs are.
enum Source {
    Topics(Box<Reader>),
    Archive(String),
}

impl Source {
    fn new(config: Config, arguments: &Arguments) -> anyhow::Result<Self> {
        Ok(match &arguments.archive {
            Some(url) => Self::Archive(url.clone()),
            None => Self::Topics(Box::new(reader(config)?)),
        })
    }

    /// Blocks.
    fn open(self, handle: Handle) -> anyhow::Result<Box<dyn Log + Send>> {
        Ok(match self {
            Self::Topics(reader) => Box::new(Reader { progress: ProgressBar::hidden(), ..*reader }),
            Self::Archive(url) => Box::new(Archive::open(Place::open(&url, false, handle)?)?),
        })
    }
}

/// Where the rows go in ClickHouse.
async fn open_table(config: &ClickHouse, name: &RunName, resumes: bool) -> anyhow::Result<Table> {
    let opened = Table::open(config, name).await;
    let (table, is_there) = opened.context("ClickHouse cannot take the rows; leave it out with --no-clickhouse")?;
    ensure!(
        resumes || !is_there,
        "ClickHouse has rows of a run {} already; give another name with --run",
        name.as_str()
    );
    Ok(table)
}

/// Decisions by the recorded rules that came out otherwise are a violation.
fn verdict(reports: &[Report]) -> ExitCode {
    let holds = reports.iter().all(|report| report.unlike().is_empty());
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn spec(arguments: &Arguments) -> anyhow::Result<Spec> {
    let now = clock::now();
    let (from, until) = (arguments.from.map(|at| at.before(now)), arguments.until.map(|at| at.before(now)));
    // Of a run that is gone on with, the times of its beginning count.
    let is_range = arguments.resume || from.zip(until).is_none_or(|(from, until)| from < until);
    ensure!(is_range, "--from must be before --until");
    let mut offsets = BTreeMap::new();
    for Offsets(partition, range) in &arguments.offsets {
        let former = offsets.insert(*partition, range.clone());
        ensure!(former.is_none(), "--offsets names partition {partition} twice; one range of each is replayed");
    }
    let mut filter = FilterSpec::default();
    for of in arguments.wheres.iter().cloned() {
        match of {
            Where::Tier(tier) => filter.tiers.push(tier),
            Where::Model(model) => filter.requested_models.push(model),
            Where::Policy(policy) => filter.policies.push(policy),
            Where::UserTier(tier) => filter.user_tiers.push(tier),
            Where::Tag(name, value) => filter.tags.push((name, value)),
        }
    }
    Ok(Spec {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: match arguments.mode {
            Mode::Decide => run::Mode::Decide,
            Mode::Live => run::Mode::Live,
            Mode::Shadow => run::Mode::Shadow,
        },
        with_clickhouse: !arguments.no_clickhouse,
        archive: arguments.archive.clone(),
        asked: format!("{:?} {:?}", arguments.from, arguments.until),
        candidates: candidates(arguments)?,
        from,
        until,
        offsets,
        last: arguments.last,
        organizations: arguments.organization.clone(),
        filter,
        journal: BTreeMap::new(),
        control: 0,
    })
}

fn candidates(arguments: &Arguments) -> anyhow::Result<Vec<Asked>> {
    let mut asked = Vec::new();
    let reclassifies = arguments.reclassify;
    let alone = arguments.policy.iter().chain(&arguments.prices).chain(&arguments.plans);
    for path in alone {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("candidate").to_owned();
        asked.push(Asked { name, documents: vec![document(path)?], reclassifies });
    }
    for NamedFiles { name, files } in &arguments.candidate {
        let documents = files.iter().map(|path| document(path)).collect::<anyhow::Result<_>>()?;
        asked.push(Asked { name: name.clone(), documents, reclassifies });
    }
    if reclassifies && asked.is_empty() {
        asked.push(Asked { name: "reclassified".to_owned(), documents: Vec::new(), reclassifies });
    }
    if arguments.verify || asked.is_empty() {
        asked.push(Asked { name: RECORDED.to_owned(), documents: Vec::new(), reclassifies: false });
    }
    Ok(asked)
}

fn document(path: &Path) -> anyhow::Result<Document> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(about.is_file(), "{} is no file", path.display());
    ensure!(about.len() <= FILE_BYTES_MAX, "{} is larger than {FILE_BYTES_MAX} bytes", path.display());
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Document { file: path.display().to_string(), text })
}

/// A name for a run that was given none.
fn run_name() -> Result<RunName, String> {
    let now = clock::now().to_string();
    let digits: String = now.chars().filter(char::is_ascii_digit).take(17).collect();
    format!("replay-{digits}").parse()
}

fn seconds(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}
