//! Metrics that are told otherwise than they are kept.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::domain::{PicoUsd, Timestamp};
use crate::runtime::clock;

/// A sum of money. It is kept in pico-dollars, which is exact, and told in dollars: Prometheus keeps 53 bits of any number,
/// which pico-dollars would use up at 9,007 dollars, while of dollars they are a ten-thousandth of a cent in a billion.
#[derive(Debug, Clone, Default)]
pub struct Dollars(Arc<Mutex<i128>>);

impl Dollars {
    /// Credits are left out: a counter does not go back.
    pub fn add(&self, amount: PicoUsd) {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sum = sum.saturating_add(amount.get().max(0));
    }
}

impl TypedMetric for Dollars {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Dollars {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let pico = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let dollars = pico as f64 / crate::domain::money::PICO_PER_USD as f64;
        encoder.encode_counter::<NoLabelSet, _, u64>(&dollars, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// How old something is, in seconds, whenever it is asked; 0 when there is nothing.
#[derive(Debug, Clone, Default)]
pub struct Age(Arc<AtomicI64>);

impl Age {
    /// It is of this moment.
    pub fn since(&self, moment: Option<Timestamp>) {
        self.0.store(moment.map_or(0, Timestamp::as_millis), Ordering::Relaxed);
    }
}

impl TypedMetric for Age {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Age {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let age = match self.0.load(Ordering::Relaxed) {
            0 => 0.0,
            moment => clock::now().since(Timestamp::from_millis(moment)).as_secs_f64(),
        };
        encoder.encode_gauge(&age)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn money_is_summed_exactly_and_told_in_dollars() {
        let metrics = Metrics::default();
        let cost = metrics.scope("test").metric("cost_usd", "Cost", Dollars::default());
        for _ in 0..3 {
            cost.add(PicoUsd::new(100_000_000_000));
        }
        cost.add(PicoUsd::new(-5));
        let text = metrics.encode().unwrap();
        assert!(text.contains("test_cost_usd_total 0.3\n"), "{text}");
    }

    #[test]
    fn an_age_grows_by_itself() {
        let metrics = Metrics::default();
        let age = metrics.scope("test").metric("behind_seconds", "Behind", Age::default());
        assert!(metrics.encode().unwrap().contains("test_behind_seconds 0.0\n"));
        age.since(Some(Timestamp::from_millis(1)));
        let text = metrics.encode().unwrap();
        assert!(text.contains("test_behind_seconds 1") && !text.contains("test_behind_seconds 0"), "{text}");
    }
}
