//! Thousands of histories with crashes, stalls, refusals and fallbacks, replayed: by the recorded rules nothing differs, by
//! others what has to.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::course::{At, Counts, Course, Past};
use super::partition::{Candidate, Filter, Partition, Span};
use super::report::{Latency, Report};
use super::row::{Change, Row};
use crate::control::Tables;
use crate::control::rules::Rules;
use crate::domain::{PicoUsd, RequestKey};
use crate::processor::histories::{asked_again, journal};
use crate::processor::{State, fold, key_of};
use crate::records::Outcome;
use crate::records::control::{Caching, ControlRecord, Entity, EntityKind, Plan, Stamp, WhenShort};
use crate::records::journal::{Account, CacheOutcome, Commit, Entry, Fact, Features, Tenancy};

const HISTORIES: u64 = 1_500;

/// The whole of a journal under these rules.
fn course(entries: &[Entry], tables: &Tables, is_recorded: bool) -> (State, Counts, Vec<Row>) {
    let mut course = Course::new("c".into(), 0, is_recorded, Past::default());
    let mut tenancy = Tenancy::VACANT;
    for (offset, entry) in (0..).zip(entries) {
        match entry {
            Entry::Commit(commit) if tenancy.accept(offset, entry) => {
                course.take(At { offset, commit, in_range: true, features: None }, tables);
            }
            entry => {
                tenancy.accept(offset, entry);
                course.pass(offset, entry);
            }
        }
    }
    let state = course.state().clone();
    let (counts, rows) = course.finish();
    (state, counts, rows)
}

fn folded(entries: &[Entry]) -> State {
    let (mut state, mut tenancy) = (State::default(), Tenancy::VACANT);
    for (offset, entry) in (0..).zip(entries) {
        let effective = tenancy.accept(offset, entry);
        fold(&mut state, offset, entry, effective);
    }
    state
}

fn with(tables: &Tables, entity: Entity, id: &str) -> Tables {
    let mut tables = tables.clone();
    let offset = tables.offset();
    let version = tables.version_of(entity.kind(), id);
    let stamp = Stamp { change_id: String::new(), actor: String::new(), at: Default::default() };
    // At the offset that the journal was decided by, so that only the entity differs.
    tables.apply(offset, &ControlRecord::put(id, entity, version, stamp)).unwrap();
    tables
}

/// The requests that the journal has; an id that was forgotten may come again.
fn requests(entries: &[Entry]) -> Vec<RequestKey> {
    let mut tenancy = Tenancy::VACANT;
    let effective = (0..).zip(entries).filter(|(offset, entry)| tenancy.accept(*offset, entry));
    let commits = effective.filter_map(|(_, entry)| match entry {
        Entry::Commit(commit) => Some(commit),
        Entry::OwnershipTaken(_) => None,
    });
    let is_new =
        |commit: &&Commit| matches!(commit.facts.first(), Some(Fact::RequestAdmitted(_) | Fact::RequestRefused(_)));
    let key = |commit: &Commit| Some(key_of(commit.organization.as_ref()?, &commit.request.as_ref()?.request_id));
    let mut keys: Vec<RequestKey> = commits.filter(is_new).filter_map(key).collect();
    keys.sort();
    keys
}

fn keys(rows: &[Row]) -> Vec<RequestKey> {
    let mut keys: Vec<RequestKey> = rows.iter().map(|row| key_of(&row.organization, &row.request_id)).collect();
    keys.sort();
    keys
}

#[test]
fn by_the_recorded_rules_every_decision_comes_out_as_it_is_recorded() {
    let (mut commits, mut outcomes) = (0, BTreeMap::<&str, u64>::new());
    for seed in 1..=HISTORIES {
        let (entries, tables) = journal(seed);
        let (state, counts, rows) = course(&entries, &tables, true);
        assert_eq!(counts.unlike, [], "seed {seed}");
        assert_eq!(counts.identical, counts.commits, "seed {seed}");
        assert!(state == folded(&entries), "seed {seed}: another state");
        let changed: Vec<&Row> = rows.iter().filter(|row| !row.changes.is_empty() || row.estimated).collect();
        assert!(changed.is_empty(), "seed {seed}: {changed:?}");
        assert_eq!(keys(&rows), requests(&entries), "seed {seed}");
        commits += counts.commits;
        for row in &rows {
            assert_eq!(row.recorded, row.candidate, "seed {seed}");
            assert_eq!((row.cost_low, row.cost_high), (row.candidate.cost, row.candidate.cost), "seed {seed}");
            *outcomes.entry(row.recorded.outcome.map_or("open", Outcome::as_str)).or_default() += 1;
        }
    }
    assert!(commits > 20_000, "{commits} commits");
    for outcome in ["completed", "failed", "refused", "cancelled", "interrupted"] {
        assert!(outcomes.get(outcome).is_some_and(|count| *count > 50), "{outcomes:?}");
    }
}

/// The policy names the other model first, with one attempt fewer, and the plan refuses where it stepped down.
fn other(tables: &Tables) -> Tables {
    let (_, policy) = tables.policy("auto").unwrap();
    let mut policy = (*policy.value).clone();
    policy.tiers[0].candidates = vec!["one".parse().unwrap(), "two".parse().unwrap()];
    policy.max_attempts = 2;
    let Some(Entity::Plan(mut plan)) = tables.entity(EntityKind::Plan, "tight") else { panic!("no plan") };
    plan.budget.when_short = WhenShort::Refuse;
    with(&with(tables, Entity::Policy(policy), "auto"), Entity::Plan(plan), "tight")
}

#[test]
fn by_other_rules_every_request_still_ends_once_and_its_money_is_on_the_books() {
    let mut changes = BTreeMap::<Change, u64>::new();
    for seed in 1..=HISTORIES {
        let (entries, tables) = journal(seed);
        let other = other(&tables);
        let (state, _, rows) = course(&entries, &other, false);
        assert_eq!(keys(&rows), requests(&entries), "seed {seed}");
        let open: Vec<&Row> = rows.iter().filter(|row| row.candidate.outcome.is_none()).collect();
        assert_eq!(state.open_requests().count(), open.len(), "seed {seed}: {open:?}");
        for row in &rows {
            for change in &row.changes {
                *changes.entry(*change).or_default() += 1;
            }
            let (Some(cost), Some(low), Some(high)) = (row.candidate.cost, row.cost_low, row.cost_high) else {
                panic!("seed {seed}: every cost is known or estimated: {row:?}");
            };
            assert!(low <= cost && cost <= high, "seed {seed}: {low} {cost} {high} of {row:?}");
            assert!(row.estimated || low == high, "seed {seed}: {row:?}");
            // Who names a model is not concerned by the policy, but for what is left of the budget.
            if row.requested_model.as_ref().is_some_and(|model| model.as_str() == "two") && !row.candidate.is_refused()
            {
                assert!(row.candidate.model.as_ref().is_some_and(|model| model.as_str() == "two"), "seed {seed}");
            }
        }
        // Nothing stays reserved for requests that are over.
        let books = state.ledger.books(&"acme".parse().unwrap());
        let open: i128 = state
            .open_requests()
            .filter(|(key, _)| key.organization.as_str() == "acme")
            .filter_map(|(_, open)| open.started.reservation.as_ref())
            .filter(|reservation| reservation.accounts.contains(&Account::Organization))
            .map(|reservation| reservation.amount_pico_usd.get())
            .sum();
        assert_eq!(books.balance().reserved, PicoUsd::new(open), "seed {seed}");
        // The same again.
        assert_eq!(course(&entries, &other, false).2, rows, "seed {seed}");
    }
    for change in [Change::Model, Change::Admitted, Change::Refused, Change::Attempts, Change::Outcome, Change::Cost] {
        assert!(changes.get(&change).is_some_and(|count| *count > 50), "{changes:?}");
    }
}

#[test]
fn dearer_prices_change_costs_and_what_budgets_allow_and_nothing_else() {
    let mut changes = BTreeMap::<Change, u64>::new();
    for seed in 1..=300 {
        let (entries, tables) = journal(seed);
        let Some(Entity::Model(mut model)) = tables.entity(EntityKind::Model, "one") else { panic!("no model") };
        for price in &mut model.deployments[0].prices {
            price.output = PicoUsd::new(price.output.get() * 2);
        }
        let (_, _, rows) = course(&entries, &with(&tables, Entity::Model(model), "one"), false);
        for row in rows {
            let is_concerned = row.recorded.model.as_ref().is_some_and(|model| model.as_str() == "one");
            let is_alike = row.recorded.attempts == 1 && row.candidate.attempts == 1 && !row.candidate.is_refused();
            if is_concerned && is_alike && row.recorded.output_tokens.is_some_and(|tokens| tokens > 0) {
                assert!(row.candidate.cost > row.recorded.cost, "seed {seed}: {row:?}");
            }
            row.changes.iter().for_each(|change| *changes.entry(*change).or_default() += 1);
        }
    }
    assert!(changes[&Change::Cost] > 20, "{changes:?}");
}

/// The plan keeps answers like this, or none.
fn caching(tables: &Tables, cache: Option<Caching>) -> Tables {
    let Some(Entity::Plan(plan)) = tables.entity(EntityKind::Plan, "tight") else { panic!("no plan") };
    with(tables, Entity::Plan(Plan { cache, ..plan }), "tight")
}

/// The requests that were answered by what was kept: what that saved, by the offset of their commit.
fn hits(entries: &[Entry]) -> BTreeMap<i64, Option<PicoUsd>> {
    let (mut tenancy, mut open, mut hits) = (Tenancy::VACANT, BTreeMap::new(), BTreeMap::new());
    for (offset, entry) in (0..).zip(entries) {
        let Entry::Commit(commit) = entry else {
            tenancy.accept(offset, entry);
            continue;
        };
        let (true, Some(organization), Some(request)) =
            (tenancy.accept(offset, entry), &commit.organization, &commit.request)
        else {
            continue;
        };
        let key = key_of(organization, &request.request_id);
        for fact in &commit.facts {
            match fact {
                Fact::CacheLookedUp(looked_up) if looked_up.outcome == CacheOutcome::Hit => {
                    open.insert(key.clone(), offset);
                }
                Fact::AttemptEnded(posting) => {
                    let began = open.remove(&key).filter(|_| posting.outcome == Outcome::Completed);
                    if let Some((offset, saved)) = began.zip(posting.saved) {
                        hits.insert(offset, saved.cost_pico_usd);
                    }
                }
                _ => {}
            }
        }
    }
    hits
}

#[test]
fn without_a_cache_what_it_gave_is_called_for_and_costs_what_was_saved() {
    let (mut called, mut elsewhere) = (0, 0);
    for seed in 1..=HISTORIES {
        let (entries, tables) = journal(seed);
        let hits = hits(&entries);
        let (state, _, rows) = course(&entries, &caching(&tables, None), false);
        for row in &rows {
            let Some(saved) = hits.get(&row.journal_offset) else { continue };
            assert_eq!(row.recorded.cost, Some(PicoUsd::ZERO), "seed {seed}: {row:?}");
            if row.candidate.outcome != Some(Outcome::Completed) || row.candidate.attempts != 1 {
                // The budget or a limit had no room for it, or it was cancelled.
                continue;
            }
            assert!(row.estimated && row.candidate.cost > Some(PicoUsd::ZERO), "seed {seed}: {row:?}");
            match row.candidate.model == row.recorded.model && row.candidate.deployment == row.recorded.deployment {
                true => {
                    let costs = [row.candidate.cost, row.cost_low, row.cost_high];
                    assert_eq!(costs, [*saved; 3], "seed {seed}: {row:?}");
                    called += 1;
                }
                false => elsewhere += 1,
            }
        }
        assert_eq!(state.cache.organizations().map(|(_, entries)| entries.len()).sum::<usize>(), 0, "seed {seed}");
    }
    assert!(called > 50 && elsewhere > 10, "{called} called, {elsewhere} elsewhere");
}

#[test]
fn a_longer_cache_gives_what_was_called_for_and_a_shorter_one_calls_and_keeps_it_again() {
    let brief = Caching { ttl_seconds: 60, any_temperature: true, ..Caching::default() };
    let (entries, tables) = asked_again(&[0, 30, 35, 100], brief);
    let costs =
        |rows: &[Row]| -> Vec<bool> { rows.iter().map(|row| row.candidate.cost > Some(PicoUsd::ZERO)).collect() };
    let replayed = |ttl_seconds: Option<u64>| {
        let cache = ttl_seconds.map(|ttl_seconds| Caching { ttl_seconds, ..brief });
        let (_, _, mut rows) = course(&entries, &caching(&tables, cache), false);
        rows.sort_by_key(|row| row.journal_offset);
        rows
    };
    let recorded: Vec<Option<PicoUsd>> = replayed(Some(60)).iter().map(|row| row.recorded.cost).collect();
    let (free, paid) = (Some(PicoUsd::ZERO), recorded[0]);
    assert_eq!(recorded, [paid, free, free, paid]);
    assert!(paid > free);

    let none = replayed(None);
    assert_eq!(none.iter().map(|row| row.candidate.cost).collect::<Vec<_>>(), [paid; 4]);
    assert_eq!(none.iter().map(|row| row.estimated).collect::<Vec<_>>(), [false, true, true, false]);
    // The third one gets what the second one's call gave.
    assert_eq!(costs(&replayed(Some(20))), [true, true, false, true]);
    assert_eq!(costs(&replayed(Some(1))), [true; 4]);
    let longer = replayed(Some(3_600));
    assert_eq!(costs(&longer), [true, false, false, false]);
    let last = &longer[3];
    assert_eq!((last.recorded.duration_ms, last.candidate.duration_ms, last.estimated), (Some(1_000), Some(0), false));
    assert_eq!((last.cost_low, last.cost_high, &last.changes[..]), (free, free, &[Change::Cost][..]));
}

/// A part of the journal, as a partition under replay gives it.
fn part(entries: &[Entry], tables: &Tables, span: Span) -> Vec<Row> {
    let rules = Rules::fixed(tables.clone());
    let mut rows = Vec::new();
    let mut partition = Partition::new(0, span, Arc::new(Filter::default()), &rules, &[Candidate::recorded()]);
    for (offset, entry) in (0..).zip(entries) {
        if partition.take(offset, entry, None, |_, row| rows.push(row)) == ControlFlow::Break(()) {
            return rows;
        }
    }
    partition.finish(|_, row| rows.push(row));
    rows
}

#[test]
fn a_range_has_the_requests_that_were_decided_in_it_and_follows_them_to_their_end() {
    for seed in 1..=300 {
        let (entries, tables) = journal(seed);
        let mut whole = part(&entries, &tables, Span::default());
        let middle = entries.len() as i64 / 2;
        let end = entries.len() as i64;
        let mut halves = Vec::new();
        for offsets in [0..middle, middle..end] {
            halves.extend(part(&entries, &tables, Span { offsets: Some(offsets), ..Span::default() }));
        }
        for rows in [&mut whole, &mut halves] {
            rows.iter_mut().for_each(|row| row.candidate_name = "".into());
            rows.sort_by_key(|row| row.journal_offset);
        }
        assert_eq!(whole, halves, "seed {seed}");
    }
}

#[test]
fn reports_are_the_same_in_whatever_parts_they_are_made() {
    let rows: Vec<Row> = (1..=50)
        .flat_map(|seed| {
            let (entries, tables) = journal(seed);
            course(&entries, &other(&tables), false).2
        })
        .collect();
    let mut whole = Report::of("c");
    rows.iter().for_each(|row| whole.add(row));
    let mut merged = Report::of("c");
    for part in rows.chunks(7) {
        let mut report = Report::of("c");
        part.iter().for_each(|row| report.add(row));
        let text = serde_json::to_string(&report).unwrap();
        merged.merge(serde_json::from_str(&text).unwrap());
    }
    assert_eq!(merged, whole);
    let of_all = |side: fn(&super::report::Group) -> u64| {
        assert_eq!(whole.models.values().map(side).sum::<u64>(), rows.len() as u64);
        assert_eq!(whole.tiers.values().map(side).sum::<u64>(), rows.len() as u64);
        assert_eq!(whole.organizations.values().map(side).sum::<u64>(), rows.len() as u64);
    };
    of_all(|group| group.recorded.requests);
    of_all(|group| group.candidate.requests);
}

#[test]
fn latencies_keep_two_digits() {
    let mut latency: Latency = serde_json::from_str("{}").unwrap();
    assert_eq!(latency.percentile(50), None);
    let mut report = Report::of("c");
    let (entries, tables) = journal(1);
    let mut row = course(&entries, &tables, true).2.remove(0);
    for ms in [7, 99, 104, 1_999, 123_456] {
        row.recorded.duration_ms = Some(ms);
        report.add(&row);
    }
    std::mem::swap(&mut latency, &mut report.duration_recorded);
    assert_eq!(latency.count(), 5);
    let told: Vec<Option<u64>> = [1, 20, 40, 60, 80, 100].map(|p| latency.percentile(p)).into();
    assert_eq!(told, [Some(7), Some(7), Some(99), Some(100), Some(1_900), Some(120_000)]);
}

#[test]
fn a_filter_leaves_out_rows_and_decides_all_the_same() {
    let (mut told, mut left_out) = (0, 0);
    for seed in 1..=100 {
        let (entries, tables) = journal(seed);
        let rules = Rules::fixed(other(&tables));
        let rows = |filter: Filter| {
            let candidate = Candidate { name: "c".into(), reclassifies: true, ..Candidate::recorded() };
            let mut rows = Vec::new();
            let mut partition = Partition::new(0, Span::default(), Arc::new(filter), &rules, &[candidate]);
            for (offset, entry) in (0..).zip(&entries) {
                _ = partition.take(offset, entry, None, |_, row| rows.push(row));
            }
            partition.finish(|_, row| rows.push(row));
            rows
        };
        let all = rows(Filter::default());
        let filters: [(Filter, fn(&Row) -> bool); 4] = [
            (Filter { organizations: ["acme".parse().unwrap()].into(), ..Filter::default() }, |row| {
                row.organization.as_str() == "acme"
            }),
            (Filter { requested_models: ["auto".parse().unwrap()].into(), ..Filter::default() }, |row| {
                row.requested_model.as_ref().is_some_and(|model| model.as_str() == "auto")
            }),
            (Filter { policies: ["auto".parse().unwrap()].into(), ..Filter::default() }, |row| row.policy.is_some()),
            (Filter { user_tiers: ["vip".into()].into(), ..Filter::default() }, |row| row.user_tier.is_some()),
        ];
        for (filter, is_told) in filters {
            let wanted: Vec<Row> = all.iter().filter(|row| is_told(row)).cloned().collect();
            left_out += all.len() - wanted.len();
            told += wanted.len();
            assert_eq!(rows(filter), wanted, "seed {seed}");
        }
    }
    assert!(told > 500 && left_out > 500, "{told} told, {left_out} left out");
}

#[test]
fn content_that_is_read_again_counts_for_whoever_asks_for_it_and_no_one_else() {
    let (mut changed, mut lost) = (0, 0);
    for seed in 1..=100 {
        let (entries, tables) = journal(seed);
        let candidates =
            [Candidate { name: "again".into(), reclassifies: true, ..Candidate::recorded() }, Candidate::recorded()];
        let rules = Rules::fixed(tables);
        let mut partition = Partition::new(0, Span::default(), Arc::default(), &rules, &candidates);
        // As if the texts were so long that no model took them.
        let long = Features { input_tokens: Some(u64::from(u32::MAX)), ..Features::default() };
        let mut rows = [Vec::new(), Vec::new()];
        for (offset, entry) in (0..).zip(&entries) {
            let features = partition.wants_content(entry, offset).then_some(&long).filter(|_| offset % 3 > 0);
            _ = partition.take(offset, entry, features, |candidate, row| rows[candidate].push(row));
        }
        let counts = partition.finish(|candidate, row| rows[candidate].push(row));
        changed += rows[0].iter().filter(|row| row.changes.contains(&Change::Refused)).count();
        lost += counts[0].without_content;
        assert!(rows[1].iter().all(|row| row.changes.is_empty()), "seed {seed}");
        assert_eq!((counts[1].without_content, &counts[1].unlike[..]), (0, &[][..]), "seed {seed}");
    }
    assert!(changed > 50 && lost > 50, "{changed} refused, {lost} without their content");
}

#[test]
fn a_page_has_the_figures_and_needs_nothing_else() {
    let mut report = Report::of("<b>cheap</b>");
    for seed in 1..=20 {
        let (entries, tables) = journal(seed);
        course(&entries, &other(&tables), false).2.iter().for_each(|row| report.add(row));
    }
    let spec = crate::replay::run::Spec { last: Some(7), ..Default::default() };
    let page = super::page::page("a-run", &spec, std::slice::from_ref(&report));
    let figures = [
        "<h1>Replay a-run</h1>".to_owned(),
        "the last 7 requests".to_owned(),
        "&lt;b&gt;cheap&lt;/b&gt;".to_owned(),
        format!("{} requests, {} of them would differ", report.all.recorded.requests, report.differing),
        crate::explain::tell::usd(report.all.candidate.cost_pico_usd.0),
        "acme".to_owned(),
    ];
    for figure in figures {
        assert!(page.contains(&figure), "{figure} is not in {page}");
    }
    for foreign in ["<b>cheap", "http://", "https://", "<script", "src=", "href="] {
        assert!(!page.contains(foreign), "{foreign} is in {page}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}
