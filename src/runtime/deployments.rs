//! The deployments' health among the process's metrics, read whenever these are.

use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::clock;
use crate::processor::health::{Deployments, Report};
use crate::records::journal::HealthState;
use crate::telemetry::Metrics;
use crate::telemetry::labels::LABEL_VALUES_MAX;
use crate::telemetry::metrics::described;

/// Registers them. There is a label for each deployment that was called, up to a bound; the last by name are left out.
pub fn register(metrics: &Metrics, deployments: &Deployments) {
    let told = GAUGES.map(|(name, _, meaning, _)| described(name, MetricType::Gauge, vec!["deployment"], meaning));
    metrics.collect(Box::new(Scrape(Arc::clone(deployments))), told);
}

#[derive(Debug)]
struct Scrape(Deployments);

/// A name, its unit, what it is, and its value; `None`: nothing is known.
type Gauge = (&'static str, Option<Unit>, &'static str, fn(&Report) -> Option<f64>);

const GAUGES: [Gauge; 3] = [
    ("tollstream_deployment_sound", None, "1: it may be called; 0: it is broken or cooling", |of| {
        Some(f64::from(u8::from(of.standing.state == HealthState::Sound)))
    }),
    ("tollstream_deployment_calls_in_flight", None, "Calls of a deployment under way", |of| {
        Some(f64::from(of.standing.in_flight))
    }),
    (
        "tollstream_deployment_first_token_seconds",
        Some(Unit::Seconds),
        "To a deployment's first token, a moving average, by which balanced choices go",
        |of| of.standing.latency_ms.map(|ms| ms as f64 / 1_000.0),
    ),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner).reports(clock::now());
        for (name, unit, meaning, value) in GAUGES {
            let stem = unit.as_ref().and_then(|unit| name.strip_suffix(unit.as_str())?.strip_suffix('_'));
            let mut descriptor =
                encoder.encode_descriptor(stem.unwrap_or(name), meaning, unit.as_ref(), MetricType::Gauge)?;
            for report in reports.iter().take(LABEL_VALUES_MAX) {
                let Some(value) = value(report) else { continue };
                let label = [("deployment", report.standing.deployment.as_str())];
                descriptor.encode_family(&label)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}
