//! The dashboard and the alerts use metrics and labels that the program registers, and the alerts do what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;
use tollstream::cli::metrics::registered;
use tollstream::telemetry::metrics::{Description, Kind};

/// Labels that Prometheus adds to what it scrapes.
const OF_TARGETS: [&str; 2] = ["job", "instance"];

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Tests {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    input_series: Vec<Series>,
    alert_rule_test: Vec<AlertTest>,
}

#[derive(Deserialize)]
struct Series {
    series: String,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    exp_alerts: Vec<Value>,
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(format!("monitoring/{name}")).expect("a file");
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn alerts() -> Vec<Rule> {
    let rules: Rules = read("alerts.yml");
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

/// What may be asked for: series by their names, with their labels, and the values of those that are known.
struct Known {
    labels: BTreeMap<String, Vec<&'static str>>,
    values: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Known {
    fn new() -> Self {
        let (metrics, mut labels) = (registered(), BTreeMap::new());
        for Description { name, kind, labels: own, .. } in metrics.descriptions() {
            match kind {
                Kind::Counter | Kind::Gauge => _ = labels.insert(name, own),
                Kind::Histogram => {
                    labels.insert(format!("{name}_bucket"), own.iter().copied().chain(["le"]).collect());
                    labels.insert(format!("{name}_sum"), own.clone());
                    labels.insert(format!("{name}_count"), own);
                }
            }
        }
        let mut values = BTreeMap::<_, BTreeSet<String>>::new();
        for line in metrics.encode().expect("metrics").lines().filter(|line| !line.starts_with('#')) {
            let Some((series, _)) = line.rsplit_once(' ') else { continue };
            let (name, matchers) = selector(series);
            for (label, value) in matchers {
                values.entry((name.to_owned(), label)).or_default().insert(value);
            }
        }
        Self { labels, values }
    }

    /// Holds one expression against what there is; the number of series that it names.
    fn check(&self, expression: &str) -> usize {
        let mut common: Option<BTreeSet<&str>> = None;
        let (mut rest, mut found) = (expression, 0);
        while let Some(at) = rest.find("tollstream_") {
            rest = &rest[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let selected = match rest[end..].starts_with('{') {
                true => &rest[..end + rest[end..].find('}').expect("a closing brace") + 1],
                false => &rest[..end],
            };
            let (name, matchers) = selector(selected);
            let own = self.labels.get(name).unwrap_or_else(|| panic!("{name} is no metric: {expression}"));
            for (label, value) in matchers {
                assert!(OF_TARGETS.contains(&&*label) || own.contains(&&*label), "{name} has no {label}: {expression}");
                let Some(known) = self.values.get(&(name.to_owned(), label.clone())).filter(|_| label != "le") else {
                    continue;
                };
                for value in value.split('|') {
                    assert!(known.contains(value), "{label} of {name} is never {value:?}: {expression}");
                }
            }
            let own: BTreeSet<&str> = own.iter().copied().chain(OF_TARGETS).collect();
            common = Some(common.map_or(own.clone(), |common| common.intersection(&own).copied().collect()));
            found += 1;
            rest = &rest[selected.len()..];
        }
        for grouped in expression.split("by (").skip(1) {
            for label in grouped[..grouped.find(')').expect("a closing brace")].split(',').map(str::trim) {
                assert!(common.as_ref().is_some_and(|all| all.contains(label)), "nothing has {label}: {expression}");
            }
        }
        found
    }
}

/// The name of a series, and its labels with their values, whatever the operator between them.
fn selector(series: &str) -> (&str, Vec<(String, String)>) {
    let Some((name, labels)) = series.split_once('{') else { return (series, Vec::new()) };
    let labels = labels.strip_suffix('}').expect("a closing brace");
    let matchers = labels.split_inclusive("\",").filter(|part| !part.is_empty()).map(|part| {
        let (label, value) = part.split_once(['=', '!']).expect("a matcher");
        (label.trim().to_owned(), value.trim_matches(|c| "=~\",".contains(c)).to_owned())
    });
    (name, matchers.collect())
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are() {
    let known = Known::new();
    for rule in alerts() {
        let found = known.check(&rule.expr);
        assert!(found > 0 || rule.expr.starts_with("up{"), "{} asks for nothing of ours", rule.alert);
    }
    let tests: Tests = read("alerts_test.yml");
    for series in tests.tests.iter().flat_map(|test| &test.input_series) {
        known.check(&series.series);
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let text = std::fs::read_to_string("monitoring/dashboard.json").expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let (known, mut found) = (Known::new(), 0);
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    for expression in targets.map(|target| target["expr"].as_str().expect("an expression")) {
        assert!(known.check(expression) > 0, "nothing of ours: {expression}");
        found += 1;
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let definition = variable["definition"].as_str().unwrap_or_default();
        known.check(definition.trim_start_matches("label_values("));
    }
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert!(found > 50 && ids.len() == panels.len(), "{found} expressions, {} panels", panels.len());
}

#[test]
fn every_alert_says_how_bad_it_is_and_where_to_read_on() {
    for Rule { alert, labels, annotations, .. } in alerts() {
        assert!(["critical", "warning"].contains(&&*labels["severity"]), "{alert}");
        assert!(!annotations["summary"].is_empty(), "{alert}");
        let (guide, heading) = annotations["runbook"].split_once('#').expect("an anchor");
        let guide = std::fs::read_to_string(guide).unwrap_or_else(|e| panic!("{guide}: {e}"));
        let is_there = |line: &str| line.strip_prefix("## ").is_some_and(|title| title.to_lowercase() == heading);
        assert!(guide.lines().any(is_there), "{alert}: there is no heading {heading}");
    }
}

#[test]
fn every_alert_is_seen_to_fire_and_not_to_fire() {
    let tests: Tests = read("alerts_test.yml");
    let cases: BTreeSet<_> = tests
        .tests
        .iter()
        .flat_map(|test| &test.alert_rule_test)
        .map(|test| (test.alertname.clone(), !test.exp_alerts.is_empty()))
        .collect();
    let wanted: BTreeSet<_> =
        alerts().into_iter().flat_map(|of| [(of.alert.clone(), true), (of.alert, false)]).collect();
    assert_eq!(cases, wanted);
}

#[test]
fn promtool_finds_the_rules_sound_and_their_tests_hold() {
    for arguments in
        [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]]
    {
        let ran = Command::new("promtool").args(arguments).current_dir("monitoring").output();
        let ran = ran.expect("promtool runs; stack/install-prerequisites.sh installs it");
        let said = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(ran.status.success(), "promtool {arguments:?}: {said:?}");
    }
}
