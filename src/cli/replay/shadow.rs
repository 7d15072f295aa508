//! `--mode shadow`: follows the running system.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, stream};
use indicatif::ProgressBar;
use serde_json::json;
use tokio::sync::mpsc;

use super::super::audit::reader;
use super::super::{output, signals};
use super::{Arguments, Spending, configuration, run_name, show, spec};
use crate::audit::reader::Reader;
use crate::codec::{Codec, Registry};
use crate::domain::{Moment, PicoUsd};
use crate::explain::tell::usd;
use crate::records::Origin;
use crate::replay::calls::{Caller, Came, Wanted};
use crate::replay::directory::Directory;
use crate::replay::page;
use crate::replay::report::Report;
use crate::replay::run::{Destination as _, Run, Spec};
use crate::replay::shadow::{Counters, Follower, WAITING_MAX};

/// How often what is going on is told.
const TELL_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let lasts = match arguments.spending.lasts {
        None => None,
        Some(Moment::Ago(lasts)) => Some(lasts),
        Some(Moment::At(_)) => anyhow::bail!("--for is a duration such as 10m"),
    };
    ensure!(
        arguments.from.is_none()
            && arguments.until.is_none()
            && arguments.last.is_none()
            && arguments.offsets.is_empty(),
        "--mode shadow follows what comes from now on; --from, --until, --last and --offsets are for the other modes"
    );
    ensure!(arguments.archive.is_none(), "--mode shadow follows the running system; an archive cannot be followed");
    ensure!(
        !arguments.reclassify,
        "--mode shadow goes by what the owners have classified; --reclassify is for the other modes"
    );
    ensure!(!arguments.resume, "a shadow run is not gone on with; begin another one");
    let spec = spec(&arguments)?;
    let name = match &arguments.run {
        Some(name) => name.clone(),
        None => run_name().map_err(anyhow::Error::msg)?,
    };
    let config = configuration(&arguments)?;
    let reader = Arc::new(Reader { progress: ProgressBar::hidden(), ..reader(config.clone())? });
    let log = reader.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let run = Run::prepare(&*log, spec, None, ProgressBar::hidden())?;
        let followed = run.partitions();
        let Run { mut spec, candidates, .. } = run;
        spec.journal.retain(|partition, _| followed.contains(partition));
        anyhow::Ok((spec, candidates))
    });
    let (spec, candidates) = prepared.await.context("looking broke off")??;
    Directory::check(&arguments.dir, &name, false)?;
    let table = match arguments.no_clickhouse {
        true => None,
        false => Some(super::open_table(&config.clickhouse, &name, false).await?),
    };
    let codec = Arc::new(Codec::connect(Registry::new(&config.registry, &config.kafka.topic_prefix)?).await?);
    let (directory, _) = Directory::begin(&arguments.dir, &name, &spec, false, Spec::differs)?;
    let caller = Caller::open(&config, codec, &name, Origin::Shadow, arguments.spending.budget, false).await?;
    let (sender, wanted) = mpsc::channel::<Wanted>(WAITING_MAX);
    let (counters, ends) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
    let followers = follow(&reader, &spec, candidates, &directory, sender, &arguments, &counters, &ends);
    let partitions = spec.journal.len() as u64;
    let watched = async {
        watch(&followers, lasts, &counters, partitions, &ends).await;
        ends.store(true, Ordering::Relaxed);
        followers.await.context("following broke off")
    };
    let called = async {
        let told = tokio::select! {
            told = call(&caller, wanted, &arguments.spending, &directory, &ends) => told,
            () = interrupted_again(&ends) => Err(anyhow::anyhow!("interrupted twice, with calls under way")),
        };
        // Without calls there is nothing to follow for.
        ends.store(true, Ordering::Relaxed);
        told
    };
    let (followed, told) = tokio::join!(watched, called);
    let (reports, failed) = followed?;
    directory.write_report(&reports)?;
    let page = directory.write_page(&page::page(name.as_str(), &spec, &reports))?;
    if let Some(table) = table {
        let rows = directory.clone();
        let insert = move || rows.partitions()?.into_iter().try_for_each(|partition| table.take(&rows, partition));
        tokio::task::spawn_blocking(insert).await.context("writing rows broke off")??;
    }
    if let Some(error) = failed {
        return Err(
            error.context("a partition could not be followed to the end; what the others have shown is written")
        );
    }
    let told = told.context("calling broke off; what was decided is written")?;
    let passed_over = counters.passed_over.load(Ordering::Relaxed);
    if arguments.json {
        let mut shown = show::describe(name.as_str(), &reports);
        shown["shadow"] = json!({
            "calls": told.calls,
            "failed": told.failed,
            "over_budget": told.over_budget,
            "unpriced": told.unpriced,
            "passed_over": passed_over,
            "spent_pico_usd": told.spent.get().to_string(),
        });
        output::line(&shown.to_string());
    } else {
        show::show(&reports, &name, &page, told.elapsed);
        output::line(&format!(
            "{} calls, {} failed, {} left out, since the budget is used up, {} without a price, {passed_over} passed over, since too many waited; \
             the run has spent {} of {}",
            told.calls,
            told.failed,
            told.over_budget,
            told.unpriced,
            usd(told.spent),
            usd(arguments.spending.budget)
        ));
    }
    Ok(super::verdict(&reports))
}

/// Tells how it goes, until it has gone on for so long, is interrupted, or broke off.
async fn watch(
    followers: &tokio::task::JoinHandle<(Vec<Report>, Option<anyhow::Error>)>,
    lasts: Option<Duration>,
    counters: &Counters,
    partitions: u64,
    ends: &AtomicBool,
) {
    let until = lasts.map(|lasts| Instant::now() + lasts);
    let mut told = Instant::now();
    let mut ended = std::pin::pin!(signals::terminated());
    loop {
        tokio::select! {
            _ = &mut ended => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let is_over = followers.is_finished() || ends.load(Ordering::Relaxed);
        if is_over || until.is_some_and(|until| Instant::now() >= until) {
            return;
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let (current, decided) =
                (counters.current.load(Ordering::Relaxed), counters.decided.load(Ordering::Relaxed));
            output::note(&format!("{current} of {partitions} partitions are current; {decided} requests decided"));
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "it hands them on to every partition")]
fn follow(
    reader: &Arc<Reader>,
    spec: &Spec,
    candidates: Vec<crate::replay::partition::Candidate>,
    directory: &Directory,
    sender: mpsc::Sender<Wanted>,
    arguments: &Arguments,
    counters: &Arc<Counters>,
    ends: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<(Vec<Report>, Option<anyhow::Error>)> {
    let (reader, spec, directory) = (reader.clone(), spec.clone(), directory.clone());
    let (share, counters, ends) = (arguments.spending.share * 10, counters.clone(), ends.clone());
    tokio::task::spawn_blocking(move || {
        let filter = spec.filter();
        let followed = std::thread::scope(|scope| {
            let threads: Vec<_> = spec
                .journal
                .iter()
                .map(|(partition, begins)| {
                    let follower = Follower {
                        reader: &reader,
                        partition: *partition,
                        begins: *begins,
                        candidates: &candidates,
                        filter: &filter,
                        share_permille: share,
                        wanted: sender.clone(),
                        counters: &counters,
                        ends: &ends,
                    };
                    let directory = &directory;
                    let ends = &ends;
                    scope.spawn(move || {
                        let followed = follower.follow(directory);
                        if followed.is_err() {
                            // A run with a partition missing shows nothing.
                            ends.store(true, Ordering::Relaxed);
                        }
                        followed
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let mut reports: Vec<Report> = candidates.iter().map(|candidate| Report::of(&candidate.name)).collect();
        let mut failed = None;
        for of_partition in followed {
            match of_partition.map_err(|_| anyhow::anyhow!("a partition broke off")).and_then(|of| Ok(of?)) {
                Ok(of_partition) => reports.iter_mut().zip(of_partition).for_each(|(all, of)| all.merge(of)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        (reports, failed)
    })
}

/// A second signal, once the run ends.
async fn interrupted_again(ends: &AtomicBool) {
    while !ends.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    signals::terminated().await;
}

/// What the calls came to.
#[derive(Debug, Default)]
struct Told {
    calls: u64,
    failed: u64,
    over_budget: u64,
    unpriced: u64,
    spent: PicoUsd,
    elapsed: Duration,
}

/// Makes the calls that are wanted, until the run ends.
async fn call(
    caller: &Caller,
    wanted: mpsc::Receiver<Wanted>,
    spending: &Spending,
    directory: &Directory,
    ends: &AtomicBool,
) -> anyhow::Result<Told> {
    let begun = Instant::now();
    let path = directory.path().join("answers.jsonl");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / spending.rate);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let paced = stream::unfold((wanted, ticks), |(mut wanted, mut ticks)| async move {
        let next = wanted.recv().await?;
        ticks.tick().await;
        // At the end of the run only what is under way is finished.
        (!ends.load(Ordering::Relaxed)).then_some((next, (wanted, ticks)))
    });
    let calls = paced.map(|wanted| async move { caller.call(&wanted).await });
    let mut calls = std::pin::pin!(calls.buffer_unordered(spending.concurrency));
    let mut told = Told::default();
    while let Some(came) = calls.next().await {
        match came? {
            Came::Made(made) => {
                told.calls += 1;
                told.failed += u64::from(made.error_code.is_some());
                writeln!(file, "{}", json!({ "call": made }))?;
            }
            Came::OverBudget => told.over_budget += 1,
            Came::Unpriced => told.unpriced += 1,
            Came::Before => {}
        }
    }
    told.spent = caller.account().await.spent();
    told.elapsed = begun.elapsed();
    Ok(told)
}
