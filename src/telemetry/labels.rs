//! Labels have few values: an enumeration's, or as many as a bound says.

use std::collections::HashMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock};

use smol_str::SmolStr;

use super::metrics::{Metric, Series};

/// Values of one label that comes from outside (a model, a deployment, a code): those beyond are counted together.
pub const LABEL_VALUES_MAX: usize = 200;
/// The value of the label for them.
pub const OTHER: &str = "other";

/// A label whose values are known.
pub trait Label: Copy + Debug + Send + Sync + 'static {
    const NAME: &'static str;
    const VALUES: &'static [Self];

    fn value(self) -> &'static str;

    /// Its place in [`VALUES`](Self::VALUES).
    fn index(self) -> usize;
}

/// A metric for each value of a label; finding one costs nothing.
#[derive(Debug)]
pub struct Closed<L, M> {
    metrics: Arc<[M]>,
    label: PhantomData<L>,
}

impl<L, M> Clone for Closed<L, M> {
    fn clone(&self) -> Self {
        Self { metrics: self.metrics.clone(), label: PhantomData }
    }
}

impl<L: Label, M: Metric> Closed<L, M> {
    pub(super) fn alone(family: &Series<M>) -> Self {
        Self::beside(family, &[])
    }

    /// Those of one value of other labels.
    pub fn beside(family: &Series<M>, others: &[(&'static str, &str)]) -> Self {
        let one = |value: &L| {
            let others = others.iter().map(|(name, value)| (*name, (*value).to_owned()));
            let labels = others.chain([(L::NAME, value.value().to_owned())]).collect();
            family.get_or_create(&labels).clone()
        };
        Self { metrics: L::VALUES.iter().map(one).collect(), label: PhantomData }
    }

    pub fn of(&self, label: L) -> &M {
        &self.metrics[label.index()]
    }
}

/// Makes the metrics of a value.
type Make<M> = Arc<dyn Fn(&str) -> M + Send + Sync>;

/// Metrics for each value of a label that comes from outside, within a bound. A value that is known costs a look-up, no
/// allocation.
pub struct Bounded<M> {
    by_value: Arc<RwLock<HashMap<SmolStr, M>>>,
    values_max: usize,
    make: Make<M>,
}

impl<M> Clone for Bounded<M> {
    fn clone(&self) -> Self {
        Self { by_value: self.by_value.clone(), values_max: self.values_max, make: self.make.clone() }
    }
}

impl<M> Bounded<M> {
    pub fn new(values_max: usize, make: impl Fn(&str) -> M + Send + Sync + 'static) -> Self {
        Self { by_value: Arc::default(), values_max, make: Arc::new(make) }
    }

    /// Changes the metrics of a value.
    pub fn with<T>(&self, value: &str, change: impl FnOnce(&M) -> T) -> T {
        if let Some(metrics) = self.by_value.read().unwrap_or_else(PoisonError::into_inner).get(value) {
            return change(metrics);
        }
        let mut all = self.by_value.write().unwrap_or_else(PoisonError::into_inner);
        let value = if all.len() < self.values_max || all.contains_key(value) { value } else { OTHER };
        change(all.entry(SmolStr::new(value)).or_insert_with(|| (self.make)(value)))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn values_beyond_the_bound_are_counted_together() {
        let metrics = Metrics::default();
        let family = metrics.scope("test").family("calls", &["model"], "Calls", Counter::<u64>::default);
        let by_model =
            Bounded::new(2, move |model: &str| family.get_or_create(&vec![("model", model.to_owned())]).clone());
        for model in ["a", "b", "c", "d", "a"] {
            by_model.with(model, |calls| calls.inc());
        }
        let text = metrics.encode().unwrap();
        for line in ["{model=\"a\"} 2", "{model=\"b\"} 1", "{model=\"other\"} 2"] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(text.matches("test_calls_total{").count(), 3, "{text}");
    }
}
