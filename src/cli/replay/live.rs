//! `--mode live`: really calls the providers for a sample of what a replay has decided.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::super::audit::bar;
use super::super::output;
use super::show::half;
use super::{Arguments, Decided};
use crate::codec::{Codec, Registry};
use crate::config::Config;
use crate::control::Tables;
use crate::domain::PicoUsd;
use crate::explain::tell::usd;
use crate::processor::content;
use crate::records::Origin;
use crate::records::journal::{Candidate, RequestContext};
use crate::replay::calls::{Caller, Came, Made, Wanted, bodies, sample};
use crate::replay::directory::ANSWERS;
use crate::replay::row::Row;
use crate::runtime::clock;

/// What came of the calls.
pub(super) struct Called {
    pub told: Value,
    /// Or none was wanted.
    pub any_answered: bool,
}

/// Whether somebody can be asked, before anything is decided.
///
/// # Errors
/// Nobody can, and nobody has said yes.
pub(super) fn can_ask(is_agreed: bool) -> anyhow::Result<()> {
    let can = is_agreed || std::io::stdin().is_terminal();
    ensure!(
        can,
        "nobody can be asked whether to spend what the calls cost; say --yes, and how much at the most with --budget"
    );
    Ok(())
}

/// Calls for the sample, once it is known what that can cost and somebody wants it.
pub(super) async fn run(config: Config, arguments: &Arguments, decided: Decided) -> anyhow::Result<Called> {
    let spending = arguments.spending.clone();
    let look = move || {
        let rows = sample(&decided.directory, spending.sample, !spending.all)?;
        let bodies = bodies(&*decided.log, &rows)?;
        anyhow::Ok((decided, rows, bodies))
    };
    let (mut decided, rows, bodies) = tokio::task::spawn_blocking(look).await.context("looking broke off")??;
    let tables: BTreeMap<String, Arc<Tables>> = decided
        .candidates
        .iter()
        .map(|candidate| {
            let mut rules = decided.rules.overridden(candidate.overrides.clone());
            (candidate.name.clone(), Arc::new(rules.at(decided.control - 1).clone()))
        })
        .collect();
    let recorded = Arc::new(decided.rules.at(decided.control - 1).clone());
    let (mut wanted, mut gone, mut most) = (Vec::new(), 0_u64, PicoUsd::ZERO);
    for row in rows {
        let body = row.source_offset.and_then(|offset| bodies.get(&(row.partition, offset)));
        let Some(call) = body.and_then(|body| wanted_of(&row, body.clone(), &tables, &recorded)) else {
            gone += 1;
            continue;
        };
        most = most.saturating_add(call.worst(clock::now()).map_or(PicoUsd::ZERO, |worst| worst.amount));
        wanted.push((row, call));
    }
    if wanted.is_empty() {
        output::note(&format!(
            "there is nothing to call: no request would be called elsewhere ({gone} without their content)"
        ));
        return Ok(Called { told: json!({ "calls": 0, "without_content": gone }), any_answered: true });
    }
    confirm(arguments, wanted.len(), gone, most)?;
    let codec = Arc::new(Codec::connect(Registry::new(&config.registry, &config.kafka.topic_prefix)?).await?);
    let (budget, resumes) = (arguments.spending.budget, arguments.resume);
    let caller = Caller::open(&config, codec, &decided.name, Origin::Replay, budget, resumes).await?;
    let told = Told { most, ..call_all(&caller, arguments, wanted, &mut decided).await? };
    let any_answered = told.calls == 0 || told.failed < told.calls;
    Ok(Called { told: tell(arguments, &caller, told).await, any_answered })
}

fn wanted_of(
    row: &Row,
    body: bytes::Bytes,
    tables: &BTreeMap<String, Arc<Tables>>,
    recorded: &Arc<Tables>,
) -> Option<Wanted> {
    let (model, deployment) = (row.candidate.model.clone()?, row.candidate.deployment.clone()?);
    let features = content::read(&body).ok()?.features;
    let context = RequestContext {
        key_id: row.key_id.clone(),
        user_tier: row.user_tier.clone(),
        requested_model: row.requested_model.clone(),
        policy: row.policy.clone(),
        ..RequestContext::of_request(row.request_id.clone(), row.at)
    };
    Some(Wanted {
        organization: row.organization.clone(),
        context,
        candidate: row.candidate_name.clone(),
        source_offset: row.source_offset?,
        called: Candidate { model, deployment, tier: row.candidate.tier.unwrap_or(0) },
        features,
        body,
        tables: tables.get(&*row.candidate_name)?.clone(),
        recorded: recorded.clone(),
    })
}

/// Says what it can cost, and asks.
fn confirm(arguments: &Arguments, calls: usize, gone: u64, most: PicoUsd) -> anyhow::Result<()> {
    let budget = arguments.spending.budget;
    let without = if gone == 0 { String::new() } else { format!(" ({gone} more are without their content)") };
    output::note(&format!(
        "{calls} calls{without} can cost {} at the most; the run's budget is {}, and no call is made that could exceed it",
        usd(most),
        usd(budget)
    ));
    if arguments.spending.yes {
        return Ok(());
    }
    let mut terminal = std::io::stderr().lock();
    write!(terminal, "Make these calls? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("no call was made");
    }
    Ok(())
}

async fn call_all(
    caller: &Caller,
    arguments: &Arguments,
    wanted: Vec<(Row, Wanted)>,
    decided: &mut Decided,
) -> anyhow::Result<Told> {
    let progress = bar();
    progress.set_length(wanted.len() as u64);
    let path = decided.directory.path().join(ANSWERS);
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    let interval = Duration::from_secs(1) / arguments.spending.rate;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let paced = stream::unfold((wanted.into_iter(), ticks), |(mut wanted, mut ticks)| async move {
        let next = wanted.next()?;
        ticks.tick().await;
        Some((next, (wanted, ticks)))
    });
    let mut calls = std::pin::pin!(
        paced
            .map(|(row, wanted)| async move { (caller.call(&wanted).await, row) })
            .buffer_unordered(arguments.spending.concurrency)
    );
    let mut told = Told { path: path.clone(), ..Told::default() };
    while let Some((came, row)) = calls.next().await {
        progress.inc(1);
        if let Some(made) = told.take(came?, &row) {
            writeln!(
                file,
                "{}",
                json!({ "call": made, "recorded": half(&row.recorded), "estimated": half(&row.candidate) })
            )?;
        }
    }
    progress.finish_and_clear();
    Ok(told)
}

/// What the calls came to.
#[derive(Debug, Default)]
struct Told {
    path: PathBuf,
    calls: u64,
    failed: u64,
    /// Code of the first that failed.
    failure: Option<String>,
    /// Answered by a simulator.
    simulated: u64,
    before: u64,
    over_budget: u64,
    unpriced: u64,
    /// Of the calls: as it was recorded, as it was estimated, and what it came to.
    recorded: PicoUsd,
    estimated: PicoUsd,
    cost: PicoUsd,
    within: u64,
    /// What they could have cost, together.
    most: PicoUsd,
}

impl Told {
    fn take(&mut self, came: Came, row: &Row) -> Option<Box<Made>> {
        match came {
            Came::Before => self.before += 1,
            Came::OverBudget => self.over_budget += 1,
            Came::Unpriced => self.unpriced += 1,
            Came::Made(made) => {
                self.calls += 1;
                self.failed += u64::from(made.error_code.is_some());
                self.simulated += u64::from(made.simulated && made.error_code.is_none());
                self.failure = self.failure.take().or_else(|| made.error_code.clone());
                let cost = made.cost_pico_usd.unwrap_or(PicoUsd::ZERO);
                self.cost = self.cost.saturating_add(cost);
                self.recorded = self.recorded.saturating_add(row.recorded.cost.unwrap_or(PicoUsd::ZERO));
                self.estimated = self.estimated.saturating_add(row.candidate.cost.unwrap_or(PicoUsd::ZERO));
                let is_within = row.cost_low.zip(row.cost_high).is_some_and(|(low, high)| low <= cost && cost <= high);
                self.within += u64::from(is_within);
                return Some(made);
            }
        }
        None
    }
}

async fn tell(arguments: &Arguments, caller: &Caller, told: Told) -> Value {
    let account = caller.account().await;
    if arguments.json {
        let pico = |amount: PicoUsd| amount.get().to_string();
        return json!({
            "calls": told.calls,
            "failed": told.failed,
            "first_failure": told.failure,
            "simulated": told.simulated,
            "made_before": told.before,
            "over_budget": told.over_budget,
            "unpriced": told.unpriced,
            "recorded_cost_pico_usd": pico(told.recorded),
            "estimated_cost_pico_usd": pico(told.estimated),
            "cost_pico_usd": pico(told.cost),
            "within_the_estimate": told.within,
            "most_pico_usd": pico(told.most),
            "spent_pico_usd": pico(account.spent()),
            "budget_pico_usd": pico(caller.budget()),
            "answers": told.path,
        });
    }
    output::line(&format!(
        "\n{} calls, {} failed, {} answered by a simulator; {} left out, since the budget is used up; {} without a price; {} made before",
        told.calls, told.failed, told.simulated, told.over_budget, told.unpriced, told.before
    ));
    output::line(&format!(
        "they cost {}; recorded was {}, estimated {}; {} of {} lie within their interval",
        usd(told.cost),
        usd(told.recorded),
        usd(told.estimated),
        told.within,
        told.calls
    ));
    if told.calls > 0 && told.failed == told.calls {
        output::note(&format!(
            "error: every call failed, the first with {}; look at the providers' keys and at --upstream",
            told.failure.as_deref().unwrap_or("no code")
        ));
    }
    output::line(&format!("the run has spent {} of {}", usd(account.spent()), usd(caller.budget())));
    output::line(&format!("answers, beside what was recorded: {} (it has content)", told.path.display()));
    Value::Null
}
