//! `tollstream metrics`: every metric of a process, as docs/metrics.md has them.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::output;
use crate::facade;
use crate::node;
use crate::projection;
use crate::runtime::lag::Lag;
use crate::runtime::metrics::{ProcessorMetrics, ProviderMetrics};
use crate::runtime::publisher;
use crate::sink;
use crate::telemetry::labels::LABEL_VALUES_MAX;
use crate::telemetry::metrics::{Description, Metrics};
use crate::telemetry::trace;

#[derive(Debug, Args)]
pub struct MetricsArgs {}

pub fn run(MetricsArgs {}: MetricsArgs) -> ExitCode {
    output::line(markdown(&registered().descriptions()).trim_end());
    ExitCode::SUCCESS
}

/// The metrics of a process with every role, as they are before anything has happened.
pub fn registered() -> Metrics {
    let metrics = Metrics::default();
    node::register(&metrics, &<_>::default(), &<_>::default());
    publisher::register(&metrics, &<_>::default());
    trace::register(&metrics);
    facade::register(&metrics);
    ProcessorMetrics::register(&metrics);
    ProviderMetrics::register(&metrics);
    projection::register(&metrics);
    sink::register(&metrics);
    Lag::register(&metrics, sink::NAME);
    metrics
}

/// The guide.
pub fn markdown(metrics: &[Description]) -> String {
    let mut text = format!(
        "# Metrics\n\n\
         `/metrics` on the admin address tells these in the OpenMetrics format. A process tells those of its roles. This page is \
         made by `tollstream metrics`.\n\n\
         Labels have few values: those of an enumeration, or the first {LABEL_VALUES_MAX} that come (`LABEL_VALUES_MAX`), all \
         others being counted under `other`. No label names a request, an organization or a key: what these cost is in \
         ClickHouse ([analytics.md](analytics.md)). A histogram has `_bucket`, `_sum` and `_count`.\n\n\
         | name | type | unit | labels | meaning |\n|---|---|---|---|---|\n"
    );
    for of in metrics {
        let labels: Vec<_> = of.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing into a text cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            of.name,
            of.kind.as_str(),
            of.unit.unwrap_or(""),
            labels.join(", "),
            of.meaning
        );
    }
    text
}
