//! `tollstream policy check | explain | diff`: what a routing policy says, without anything running.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output;
use crate::control::document::{self, Problem, difference, locate};
use crate::control::{Tables, check};
use crate::domain::{ModelName, OrganizationId, RequestId, Timestamp};
use crate::facade::route::shown;
use crate::processor::content;
use crate::processor::health::Health;
use crate::processor::intent::{Builtin, Classifier as _};
use crate::processor::router::{self, Asked, Route, Under};
use crate::records::control::{ControlRecord, Entity, EntityKind, Organization, Stamp};
use crate::records::journal::Features;
use crate::records::policy::Policy;
use crate::runtime::clock;
use crate::topology::{Files, Seeds};

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// What was given is not right.
const INVALID: u8 = 5;
/// Moved utterances that are shown.
const MOVED_SHOWN_MAX: usize = 20;
/// Who asks, where nobody is named.
const ANYBODY: &str = "anybody";

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Check policy files against themselves and the model catalogue; needs nothing running
    Check(Check),
    /// What a policy makes of a text: intent, tier, candidates, and why
    Explain(Explain),
    /// What two policies make of the same utterances, and in which members they differ
    Diff(Diff),
}

#[derive(Debug, Clone, Args)]
pub struct Check {
    /// Policies, one to a file, as topology/seed/policies has them
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub catalogue: Catalogue,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which models there are.
#[derive(Debug, Clone, Args)]
pub struct Catalogue {
    /// Models in the form of topology/seed/models.toml [default: those that the program carries]
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Explain {
    /// The policy [default: the auto that the program carries]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub catalogue: Catalogue,
    /// What the user says
    #[arg(value_name = "TEXT", required_unless_present = "body")]
    pub text: Option<String>,
    /// A whole chat completion request instead; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub body: Option<PathBuf>,
    /// The user's tier, such as vip
    #[arg(long, value_name = "TIER")]
    pub user_tier: Option<String>,
    /// A tag as NAME=VALUE; intent=NAME gives the intent
    #[arg(long = "tag", value_name = "NAME=VALUE")]
    pub tags: Vec<String>,
    /// Decide as at this moment, such as 2026-11-27T22:00:00Z [default: now]
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
    /// Print one JSON object, as POST /v1/route answers
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Diff {
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
    /// Utterances to route by both, a line of JSON each: {"id", "messages"}, and a "user_tier" and "tags" if need be
    #[arg(long, value_name = "FILE")]
    pub utterances: Vec<PathBuf>,
    #[command(flatten)]
    pub catalogue: Catalogue,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(arguments) => check_files(&arguments),
        Command::Explain(arguments) => explain(&arguments),
        Command::Diff(arguments) => diff(&arguments),
    }
}

/// Something wrong in a file.
struct Wrong {
    file: String,
    at: Option<(usize, usize)>,
    problem: Problem,
}

impl Wrong {
    fn text(&self) -> String {
        let (line, column) = self.at.unwrap_or((1, 1));
        format!("{}:{line}:{column}: {}", self.file, self.problem)
    }

    fn json(&self) -> Value {
        let (line, column) = self.at.unzip();
        json!({ "file": self.file, "line": line, "column": column, "at": self.problem.at, "problem": self.problem.problem })
    }
}

fn check_files(arguments: &Check) -> anyhow::Result<ExitCode> {
    let tables = arguments.catalogue.tables()?;
    let mut wrong = Vec::new();
    for file in &arguments.files {
        if let Err(found) = policy(&tables, file)? {
            wrong.extend(found);
        }
    }
    match arguments.json {
        true => output::line(&json!({ "problems": wrong.iter().map(Wrong::json).collect::<Vec<_>>() }).to_string()),
        false => wrong.iter().for_each(|wrong| output::line(&wrong.text())),
    }
    if wrong.is_empty() && !arguments.json {
        output::note(&format!("{} of {} files hold", arguments.files.len(), arguments.files.len()));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(INVALID) })
}

/// The tables with a file's policy in them, and its name; or what is wrong with it.
fn policy(tables: &Tables, file: &Path) -> anyhow::Result<Result<(Tables, String), Vec<Wrong>>> {
    let text = read(file)?;
    let name = file.display().to_string();
    let located = |problems: Vec<Problem>| -> Vec<Wrong> {
        let of = |problem: Problem| Wrong { file: name.clone(), at: locate(&text, &problem.at), problem };
        problems.into_iter().map(of).collect()
    };
    let table = match document::table(&text) {
        Ok(table) => table,
        // The parser's own words have line and column in them already.
        Err(problem) => {
            let at = toml::from_str::<toml::Table>(&text).err().and_then(|error| error.span());
            let at = at.map(|span| document::position(&text, span.start));
            return Ok(Err(vec![Wrong { file: name, at, problem }]));
        }
    };
    let (id, entity) = match document::parse(EntityKind::Policy, table, None) {
        Ok(parsed) => parsed,
        Err(problems) => return Ok(Err(located(problems))),
    };
    let with = put(tables, &id, entity);
    let violations = check::violations(&with).into_iter();
    let problems: Vec<Problem> =
        violations.filter(|of| of.kind == EntityKind::Policy && of.id == id).map(Problem::from).collect();
    Ok(if problems.is_empty() { Ok((with, id)) } else { Err(located(problems)) })
}

fn put(tables: &Tables, id: &str, entity: Entity) -> Tables {
    let mut tables = tables.clone();
    let stamp = Stamp { change_id: String::new(), actor: String::new(), at: Timestamp::default() };
    let (offset, version) = (tables.offset() + 1, tables.version_of(entity.kind(), id));
    // Documents were parsed, so nothing is refused here.
    if tables.apply(offset, &ControlRecord::put(id, entity, version, stamp)).is_err() {
        tables.pass(offset);
    }
    tables
}

impl Catalogue {
    /// The seeds that the program carries, with other models if some are named, and somebody who may use all of them.
    fn tables(&self) -> anyhow::Result<Tables> {
        let mut files = Files::embedded();
        if let Some(path) = &self.models {
            files.set("topology/seed/models.toml", &read(path)?);
        }
        let mut problems = Vec::new();
        let seeds = Seeds::parse(&files, &mut problems);
        let of_models: Vec<String> = problems
            .iter()
            .filter(|problem| self.models.is_some() && problem.to_string().contains("models"))
            .map(ToString::to_string)
            .collect();
        ensure!(of_models.is_empty(), "the models do not hold: {}", of_models.join("; "));
        Ok(put(&seeds.tables(), ANYBODY, Entity::Organization(Organization::named(ANYBODY))))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let reading = || format!("cannot read {}", path.display());
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin().lock()).with_context(reading);
    }
    let size = std::fs::metadata(path).with_context(reading)?.len();
    ensure!(size <= FILE_BYTES_MAX, "{} is larger than {FILE_BYTES_MAX} bytes", path.display());
    std::fs::read_to_string(path).with_context(reading)
}

/// The policy of a file, or a failure that says what is wrong with it.
fn loaded(tables: &Tables, file: &Path) -> anyhow::Result<(Tables, String)> {
    match policy(tables, file)? {
        Ok(found) => Ok(found),
        Err(wrong) => bail!("{}", wrong.iter().map(Wrong::text).collect::<Vec<_>>().join("\n")),
    }
}

/// What is routed.
struct Said {
    id: String,
    body: Vec<u8>,
    user_tier: Option<String>,
    tags: BTreeMap<String, String>,
}

fn route(
    tables: &Tables,
    policy: &str,
    said: &Said,
    at: Timestamp,
) -> anyhow::Result<(Result<Route, String>, Features)> {
    let mut content = content::read(&said.body).with_context(|| format!("{} is no chat request", said.id))?;
    content.classify(&Builtin::new());
    let organization = OrganizationId::parse(ANYBODY)?;
    let terms = tables.terms(&organization, None).context("nobody may ask")?;
    let under = Under { control: tables, terms: &terms, at, health: Health::Unknown };
    let asked = Asked {
        model: &ModelName::parse(policy)?,
        request_id: &RequestId::parse("explain")?,
        features: &content.features,
        user_tier: said.user_tier.as_deref(),
        tags: &said.tags,
    };
    let route = router::route(&under, &asked).map_err(|refusal| refusal.error.message);
    Ok((route, content.features))
}

fn explain(arguments: &Explain) -> anyhow::Result<ExitCode> {
    let tables = arguments.catalogue.tables()?;
    let (tables, policy) = match &arguments.file {
        Some(file) => loaded(&tables, file)?,
        None => (tables, router::AUTO.to_owned()),
    };
    let body = match (&arguments.body, &arguments.text) {
        (Some(path), _) => read(path)?.into_bytes(),
        (None, text) => json!({ "messages": [{ "role": "user", "content": text }] }).to_string().into_bytes(),
    };
    let mut tags = BTreeMap::new();
    for tag in &arguments.tags {
        let (name, value) = tag.split_once('=').with_context(|| format!("{tag:?} is no NAME=VALUE"))?;
        tags.insert(name.to_owned(), value.to_owned());
    }
    let said = Said { id: "the request".to_owned(), body, user_tier: arguments.user_tier.clone(), tags };
    let (route, features) = route(&tables, &policy, &said, arguments.at.unwrap_or_else(clock::now))?;
    let route = match route {
        Ok(route) => route,
        Err(message) => bail!("nobody would answer: {message}"),
    };
    if arguments.json {
        output::line(&shown(&route, &features).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    tell(&route, &features);
    Ok(ExitCode::SUCCESS)
}

fn tell(route: &Route, features: &Features) {
    if let Some(tiering) = &route.routed.tiering {
        let intent = tiering.intent.as_deref().unwrap_or("-");
        let sure =
            tiering.confidence_permille.map(|of| format!(", {}.{} % sure", of / 10, of % 10)).unwrap_or_default();
        output::line(&format!("tier {}: {intent}{sure}", tiering.tier));
    }
    if let Some(likelihoods) = features.likelihoods {
        let all = crate::processor::intent::INTENTS.iter().zip(router::tier::in_order(likelihoods));
        let all: Vec<String> = all.map(|(intent, of)| format!("{intent} {}.{} %", of / 10, of % 10)).collect();
        output::line(&format!("likelihoods: {}", all.join(", ")));
    }
    output::line(&format!("because: {}", route.routed.reasons.join("; ")));
    let rows = route.routed.candidates.iter().enumerate();
    let rows: Vec<Vec<String>> = rows
        .map(|(index, of)| {
            vec![(index + 1).to_string(), of.model.to_string(), of.deployment.to_string(), of.tier.to_string()]
        })
        .collect();
    output::table(&["", "model", "deployment", "tier"], &rows);
    output::note(&format!("classifier {}; at most {} attempts", Builtin::new().version(), route.routed.max_attempts));
}

#[derive(serde::Deserialize)]
struct Utterance {
    #[serde(default)]
    id: Option<String>,
    messages: Value,
    #[serde(default)]
    user_tier: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

fn utterances(paths: &[PathBuf]) -> anyhow::Result<Vec<Said>> {
    let mut all = Vec::new();
    for path in paths {
        for (index, line) in read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("{}:{}", path.display(), index + 1);
            let of: Utterance = serde_json::from_str(line).with_context(|| format!("{} is no utterance", place()))?;
            let body = json!({ "messages": of.messages }).to_string().into_bytes();
            all.push(Said { id: of.id.unwrap_or_else(place), body, user_tier: of.user_tier, tags: of.tags });
        }
    }
    Ok(all)
}

fn diff(arguments: &Diff) -> anyhow::Result<ExitCode> {
    let tables = arguments.catalogue.tables()?;
    let (before, before_name) = loaded(&tables, &arguments.before)?;
    let (after, after_name) = loaded(&tables, &arguments.after)?;
    let shown = |tables: &Tables, name: &str| {
        let policy = tables.policy(name).map(|(_, policy)| Policy::clone(&policy.value)).unwrap_or_default();
        document::show(name, &Entity::Policy(policy))
    };
    let changes = difference(Some(&shown(&before, &before_name)), Some(&shown(&after, &after_name)));
    let (said, at) = (utterances(&arguments.utterances)?, clock::now());
    let mut moved = Vec::new();
    let mut tiers: BTreeMap<(String, String), usize> = BTreeMap::new();
    for said in &said {
        let of = |tables: &Tables, name: &str| -> anyhow::Result<(String, String)> {
            let (route, _) = route(tables, name, said, at)?;
            let first =
                |route: &Route| route.routed.candidates.first().map_or(String::new(), |of| of.model.to_string());
            Ok(route.map_or_else(
                |_| ("refused".to_owned(), "-".to_owned()),
                |route| (route.tier.to_string(), first(&route)),
            ))
        };
        let (was, is) = (of(&before, &before_name)?, of(&after, &after_name)?);
        *tiers.entry((was.0.clone(), is.0.clone())).or_default() += 1;
        if was != is {
            moved.push((said.id.clone(), was, is));
        }
    }
    if arguments.json {
        let moved: Vec<Value> = moved
            .iter()
            .map(|(id, was, is)| json!({ "id": id, "before": { "tier": was.0, "model": was.1 }, "after": { "tier": is.0, "model": is.1 } }))
            .collect();
        output::line(&json!({ "changes": changes, "utterances": said.len(), "moved": moved }).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    match changes.is_empty() {
        true => output::line("the policies are the same"),
        false => changes.iter().for_each(|change| output::line(&change.to_string())),
    }
    if !said.is_empty() {
        output::line(&format!("{} of {} utterances go elsewhere", moved.len(), said.len()));
        let rows: Vec<Vec<String>> =
            tiers.into_iter().map(|((was, is), count)| vec![was, is, count.to_string()]).collect();
        output::table(&["tier before", "tier after", "utterances"], &rows);
        let rows = moved.iter().take(MOVED_SHOWN_MAX);
        let rows: Vec<Vec<String>> = rows.map(|(id, was, is)| vec![id.clone(), was.1.clone(), is.1.clone()]).collect();
        if !rows.is_empty() {
            output::table(&["utterance", "before", "after"], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}
