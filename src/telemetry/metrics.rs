//! The process's metrics. Each is registered with what the guide says of it, so docs/metrics.md is made from here.
//!
//! To add one: a line in the component's `register`, then `tollstream metrics > docs/metrics.md`.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{Closed, Label};

/// Seconds, of what takes a millisecond when all is well: steps of our own.
pub const STEP_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Seconds, of what a provider has a part in.
pub const ANSWER_SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Seconds, of what an outage may make long.
pub const WORK_SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// Units that names end with.
const UNITS: [(&str, Unit); 2] = [("seconds", Unit::Seconds), ("bytes", Unit::Bytes)];
const OTHER_UNITS: [&str; 6] = ["usd", "records", "rows", "entries", "tokens", "partitions"];

/// Labels of one series.
pub type Labels = Vec<(&'static str, String)>;
/// A metric by labels.
pub type Series<M> = Family<Labels, M, Make<M>>;

/// Makes the metric of a series.
pub struct Make<M>(Arc<dyn Fn() -> M + Send + Sync>);

impl<M> Clone for Make<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> MetricConstructor<M> for Make<M> {
    fn new_metric(&self) -> M {
        (self.0)()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// As it is scraped; a histogram also has `_bucket`, `_sum` and `_count`.
    pub name: String,
    pub kind: Kind,
    pub unit: Option<&'static str>,
    pub labels: Vec<&'static str>,
    pub meaning: &'static str,
}

/// The process's metrics; components register theirs at start.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    registry: Registry,
    registered: BTreeMap<String, (Description, Box<dyn Any + Send>)>,
}

impl Metrics {
    /// Where a component registers metrics whose names begin with `prefix`.
    pub fn scope(&self, prefix: &'static str) -> Scope {
        Scope { metrics: self.clone(), prefix }
    }

    /// Registers what is looked up whenever the metrics are read, and what it tells.
    pub fn collect(&self, collector: Box<dyn Collector>, told: impl IntoIterator<Item = Description>) {
        let mut inner = self.lock();
        inner.registry.register_collector(collector);
        inner.registered.extend(told.into_iter().map(|of| (of.name.clone(), (of, Box::new(()) as Box<_>))));
    }

    /// Everything that is registered, by name.
    pub fn descriptions(&self) -> Vec<Description> {
        self.lock().registered.values().map(|(description, _)| description.clone()).collect()
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock().registry)?;
        Ok(text)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be registered.
pub trait Metric: EncodeMetric + TypedMetric + Debug + Clone + Send + Sync + 'static {}

impl<M: EncodeMetric + TypedMetric + Debug + Clone + Send + Sync + 'static> Metric for M {}

/// One component's metrics.
pub struct Scope {
    metrics: Metrics,
    prefix: &'static str,
}

impl Scope {
    pub fn counter(&self, name: &str, meaning: &'static str) -> Counter {
        self.metric(name, meaning, Counter::default())
    }

    pub fn gauge(&self, name: &str, meaning: &'static str) -> Gauge {
        self.metric(name, meaning, Gauge::default())
    }

    pub fn histogram(&self, name: &str, meaning: &'static str, buckets: &[f64]) -> Histogram {
        self.metric(name, meaning, Histogram::new(buckets.iter().copied()))
    }

    /// A metric of any type. What is registered a second time is what there is already.
    pub fn metric<M: Metric>(&self, name: &str, meaning: &'static str, metric: M) -> M {
        self.add(name, Vec::new(), meaning, M::TYPE, metric)
    }

    /// Counters by one label whose values are known; all of them are there from the beginning.
    pub fn counters<L: Label>(&self, name: &str, meaning: &'static str) -> Closed<L, Counter> {
        Closed::alone(&self.family(name, &[L::NAME], meaning, Counter::default))
    }

    /// The same of histograms.
    pub fn histograms<L: Label>(
        &self,
        name: &str,
        meaning: &'static str,
        buckets: &'static [f64],
    ) -> Closed<L, Histogram> {
        Closed::alone(&self.family(name, &[L::NAME], meaning, move || Histogram::new(buckets.iter().copied())))
    }

    /// A metric by these labels. Whoever makes series of it bounds their number ([`Bounded`](super::labels::Bounded)).
    pub fn family<M: Metric>(
        &self,
        name: &str,
        labels: &[&'static str],
        meaning: &'static str,
        make: impl Fn() -> M + Send + Sync + 'static,
    ) -> Series<M> {
        let family = Series::new_with_constructor(Make(Arc::new(make)));
        self.add(name, labels.to_vec(), meaning, M::TYPE, family)
    }

    fn add<M>(&self, name: &str, labels: Vec<&'static str>, meaning: &'static str, kind: MetricType, metric: M) -> M
    where
        M: EncodeMetric + Debug + Clone + Send + Sync + 'static,
    {
        let registered = format!("{}_{name}", self.prefix);
        let description = described(&registered, kind, labels, meaning);
        let mut inner = self.metrics.lock();
        if let Some(there) = inner.registered.get(&description.name).and_then(|(_, any)| any.downcast_ref::<M>()) {
            return there.clone();
        }
        match UNITS.iter().find_map(|(suffix, unit)| Some((registered.strip_suffix(suffix)?.strip_suffix('_')?, unit)))
        {
            Some((stem, unit)) => inner.registry.register_with_unit(stem, meaning, unit.clone(), metric.clone()),
            None => inner.registry.register(registered, meaning, metric.clone()),
        }
        inner.registered.insert(description.name.clone(), (description, Box::new(metric.clone())));
        metric
    }
}

/// What is said of a metric that is registered under this name.
pub fn described(name: &str, kind: MetricType, labels: Vec<&'static str>, meaning: &'static str) -> Description {
    let kind = match kind {
        MetricType::Counter => Kind::Counter,
        MetricType::Histogram => Kind::Histogram,
        MetricType::Gauge | MetricType::Info | MetricType::Unknown => Kind::Gauge,
    };
    let ends = |unit: &&str| name.strip_suffix(*unit).is_some_and(|stem| stem.ends_with('_'));
    let unit = UNITS.iter().map(|(unit, _)| *unit).chain(OTHER_UNITS).find(ends);
    let name = match kind {
        Kind::Counter => format!("{name}_total"),
        Kind::Gauge | Kind::Histogram => name.to_owned(),
    };
    Description { name, kind, unit, labels, meaning }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Ending {
        Good,
        Bad,
    }

    impl Label for Ending {
        const NAME: &'static str = "ending";
        const VALUES: &'static [Self] = &[Self::Good, Self::Bad];

        fn value(self) -> &'static str {
            match self {
                Self::Good => "good",
                Self::Bad => "bad",
            }
        }

        fn index(self) -> usize {
            self as usize
        }
    }

    #[test]
    fn every_series_of_a_known_label_is_there_from_the_beginning() {
        let metrics = Metrics::default();
        let stories = metrics.scope("test").counters::<Ending>("stories", "Stories by their ending");
        stories.of(Ending::Bad).inc();
        let text = metrics.encode().unwrap();
        assert!(text.contains("test_stories_total{ending=\"good\"} 0"), "{text}");
        assert!(text.contains("test_stories_total{ending=\"bad\"} 1"), "{text}");
        let told = &metrics.descriptions()[0];
        assert_eq!(
            (told.name.as_str(), told.kind, &told.labels[..]),
            ("test_stories_total", Kind::Counter, &["ending"][..])
        );
    }

    #[test]
    fn a_unit_is_told_and_is_the_end_of_the_name() {
        let metrics = Metrics::default();
        metrics.scope("test").histogram("wait_seconds", "A wait", &[1.0]).observe(0.5);
        metrics.scope("test").gauge("kept_bytes", "What is kept").set(7);
        let text = metrics.encode().unwrap();
        for line in ["# UNIT test_wait_seconds seconds", "test_wait_seconds_bucket{le=\"1.0\"} 1", "test_kept_bytes 7"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        let units: Vec<_> = metrics.descriptions().into_iter().map(|of| of.unit).collect();
        assert_eq!(units, [Some("bytes"), Some("seconds")]);
    }

    #[test]
    fn what_is_registered_twice_is_one_metric() {
        let metrics = Metrics::default();
        metrics.scope("test").counter("events", "Events").inc();
        metrics.scope("test").counter("events", "Events").inc();
        let text = metrics.encode().unwrap();
        assert_eq!(text.matches("# TYPE").count(), 1, "{text}");
        assert!(text.contains("test_events_total 2"), "{text}");
    }
}
