//! A replay's report as one page that needs nothing else: no script, no other file.

use std::fmt::Write as _;

use super::report::{Group, Latency, Report};
use super::run::Spec;
use crate::domain::PicoUsd;

/// Bars of one chart at the most, the longest ones.
const BARS_MAX: usize = 12;
const BAR_WIDTH: i128 = 420;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem}h3{font-size:1rem;margin-bottom:.3rem}\
table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #dde2ea}\
td:first-child,th:first-child{text-align:left}.was{fill:#9aa7b8}.is{fill:#2f6fde}.span{fill:#2f6fde55}\
.note{color:#5b6675}text{font:12px system-ui,sans-serif;fill:#1c2430}.bad{color:#b3261e}";

/// The page.
pub fn page(run: &str, spec: &Spec, reports: &[Report]) -> String {
    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Replay {run}</title><style>{STYLE}</style></head><body>\
         <h1>Replay {run}</h1><p class=\"note\">{}</p>",
        escape(&range(spec))
    );
    for report in reports {
        of_candidate(&mut html, report);
    }
    html.push_str("</body></html>\n");
    html
}

fn range(spec: &Spec) -> String {
    let mut parts = Vec::new();
    parts.extend(spec.from.map(|from| format!("from {from}")));
    parts.extend(spec.until.map(|until| format!("until {until}")));
    parts.extend(spec.last.map(|last| format!("the last {last} requests")));
    parts.extend(spec.offsets.iter().map(|(partition, range)| format!("journal/{partition} {range:?}")));
    parts.extend(spec.organizations.iter().map(|id| format!("of {id}")));
    if parts.is_empty() { "The whole journal".to_owned() } else { parts.join(", ") }
}

fn of_candidate(html: &mut String, report: &Report) {
    let all = &report.all;
    let _ = write!(
        html,
        "<h2>{}</h2><p>{} requests, {} of them would differ. Cost {} &rarr; <b>{}</b>{}.</p>",
        escape(&report.candidate),
        all.recorded.requests,
        report.differing,
        usd(all.recorded.cost_pico_usd.0),
        usd(all.candidate.cost_pico_usd.0),
        between(all),
    );
    if report.estimated > 0 {
        let _ = write!(
            html,
            "<p class=\"note\">{} outcomes are estimated, since nobody made those calls.</p>",
            report.estimated
        );
    }
    for unlike in report.unlike() {
        let _ = write!(
            html,
            "<p class=\"bad\">Not as recorded: journal/{} offset {}: {}</p>",
            unlike.partition,
            unlike.offset,
            escape(&unlike.what)
        );
    }
    let changes: Vec<(String, u64)> =
        report.changes().map(|(change, count)| (change.name().to_owned(), count)).collect();
    counts(html, "What changes", &changes);
    let moves: Vec<(String, u64)> = report.moves.iter().map(|(name, count)| (name.clone(), *count)).collect();
    counts(html, "From tier to tier", &moves);
    for (title, groups) in [
        ("Cost by tier", &report.tiers),
        ("Cost by model", &report.models),
        ("Cost by organization", &report.organizations),
    ] {
        let mut groups: Vec<(&String, &Group)> = groups.iter().collect();
        groups.sort_by_key(|(name, group)| {
            let most = group.recorded.cost_pico_usd.0.max(group.candidate.cost_pico_usd.0);
            (std::cmp::Reverse(most), (*name).clone())
        });
        groups.truncate(BARS_MAX);
        costs(html, title, &groups);
    }
    html.push_str(
        "<h3>Latency</h3><table><tr><th></th><th>p50 was</th><th>would be</th><th>p95 was</th><th>would be</th></tr>",
    );
    for (name, was, is) in [
        ("first token", &report.first_token_recorded, &report.first_token_candidate),
        ("duration", &report.duration_recorded, &report.duration_candidate),
    ] {
        let at = |of: &Latency, percent| of.percentile(percent).map_or("-".to_owned(), |ms| format!("{ms} ms"));
        let _ = write!(
            html,
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            at(was, 50),
            at(is, 50),
            at(was, 95),
            at(is, 95)
        );
    }
    html.push_str("</table>");
}

/// Bars of counts.
fn counts(html: &mut String, title: &str, of: &[(String, u64)]) {
    let Some(most) = of.iter().map(|(_, count)| *count).max().filter(|most| *most > 0) else { return };
    let shown = of.len().min(BARS_MAX);
    let _ = write!(html, "<h3>{title}</h3><svg width=\"780\" height=\"{}\" role=\"img\">", shown * 22 + 4);
    for (index, (name, count)) in of.iter().take(BARS_MAX).enumerate() {
        let width = (i128::from(*count) * BAR_WIDTH / i128::from(most)).max(1);
        let y = index * 22;
        let _ = write!(
            html,
            "<text x=\"0\" y=\"{}\">{}</text><rect class=\"is\" x=\"200\" y=\"{}\" width=\"{width}\" height=\"14\"/>\
             <text x=\"{}\" y=\"{}\">{count}</text>",
            y + 14,
            escape(name),
            y + 3,
            206 + width,
            y + 14
        );
    }
    html.push_str("</svg>");
}

/// Two bars of each: what it cost, and what it would cost, with its interval.
fn costs(html: &mut String, title: &str, of: &[(&String, &Group)]) {
    let dearest = |group: &Group| {
        let all = [group.recorded.cost_pico_usd.0, group.candidate.cost_pico_usd.0, group.cost_high_pico_usd.0];
        all.into_iter().map(PicoUsd::get).max().unwrap_or(0)
    };
    let Some(most) = of.iter().map(|(_, group)| dearest(group)).max().filter(|most| *most > 0) else { return };
    let long = |amount: PicoUsd| amount.get().max(0).saturating_mul(BAR_WIDTH) / most;
    let _ = write!(html, "<h3>{title}</h3><svg width=\"780\" height=\"{}\" role=\"img\">", of.len() * 40 + 4);
    for (index, (name, group)) in of.iter().enumerate() {
        let (was, is) = (group.recorded.cost_pico_usd.0, group.candidate.cost_pico_usd.0);
        let (low, high) = (long(group.cost_low_pico_usd.0), long(group.cost_high_pico_usd.0));
        let y = index * 40;
        let _ = write!(
            html,
            "<text x=\"0\" y=\"{}\">{}</text>\
             <rect class=\"was\" x=\"200\" y=\"{}\" width=\"{}\" height=\"13\"/><text x=\"{}\" y=\"{}\">{} ({})</text>\
             <rect class=\"span\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"13\"/>\
             <rect class=\"is\" x=\"200\" y=\"{}\" width=\"{}\" height=\"13\"/><text x=\"{}\" y=\"{}\">{} ({})</text>",
            y + 20,
            escape(name),
            y + 3,
            long(was),
            206 + long(was),
            y + 14,
            usd(was),
            group.recorded.requests,
            200 + low,
            y + 18,
            (high - low).max(0),
            y + 18,
            long(is),
            206 + long(is).max(high),
            y + 29,
            usd(is),
            group.candidate.requests,
        );
    }
    html.push_str("</svg><p class=\"note\">grey: as it was; blue: as it would be; pale: between which it lies; in brackets: requests</p>");
}

fn between(group: &Group) -> String {
    match (group.cost_low_pico_usd.0, group.cost_high_pico_usd.0) {
        (low, high) if low == high => String::new(),
        (low, high) => format!(", between {} and {}", usd(low), usd(high)),
    }
}

fn usd(amount: PicoUsd) -> String {
    crate::explain::tell::usd(amount)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
