//! The deployments' health among the process's metrics, read whenever these are.

use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::clock;
use crate::processor::health::{Deployments, Report};
use crate::records::journal::HealthState;
use crate::telemetry::Metrics;

/// Registers them. There is a label for each deployment that was called, of which control has a bounded number.
pub fn register(metrics: &Metrics, deployments: &Deployments) {
    let collector = Box::new(Scrape(Arc::clone(deployments)));
    metrics.register(|registry| registry.register_collector(collector));
}

#[derive(Debug)]
struct Scrape(Deployments);

/// A name, what it is, and its value; `None`: nothing is known.
type Gauge = (&'static str, &'static str, fn(&Report) -> Option<i64>);

const GAUGES: [Gauge; 3] = [
    ("tollstream_deployment_sound", "1: it may be called; 0: it is broken or cooling", |of| {
        Some(i64::from(of.standing.state == HealthState::Sound))
    }),
    ("tollstream_deployment_in_flight", "Calls under way", |of| Some(i64::from(of.standing.in_flight))),
    ("tollstream_deployment_latency_milliseconds", "To the first token, a moving average", |of| {
        of.standing.latency_ms.and_then(|ms| i64::try_from(ms).ok())
    }),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner).reports(clock::now());
        for (name, help, value) in GAUGES {
            let mut descriptor = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for report in &reports {
                let Some(value) = value(report) else { continue };
                let label = [("deployment", report.standing.deployment.as_str())];
                descriptor.encode_family(&label)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}
