//! Which parts of the process are ready, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::Metrics;
use super::metrics::described;

/// How it is told among the metrics.
const STATE: (&str, &str) = (
    "tollstream_component_state",
    "Of each part of the process, 1 at the state that it is in: ready, degraded or missing",
);

/// How a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Ready,
    /// It does not do its work at the moment, and why; requests are served all the same, and nothing is lost.
    Degraded(String),
    /// Requests cannot be served without it, and why it is not there.
    Missing(String),
}

/// Shared by all components: each says of itself how it is.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, State>>>);

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut descriptor = encoder.encode_descriptor(STATE.0, STATE.1, None, MetricType::Gauge)?;
        for (component, state) in self.components() {
            let is = |name: &str| i64::from(state.name() == name);
            for name in ["ready", "degraded", "missing"] {
                let labels = [("component", component), ("state", name)];
                descriptor.encode_family(&labels)?.encode_gauge(&is(name))?;
            }
        }
        Ok(())
    }
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded(_) => "degraded",
            Self::Missing(_) => "missing",
        }
    }
}

impl Health {
    /// Tells it among the metrics.
    pub fn register(&self, metrics: &Metrics) {
        let told = described(STATE.0, MetricType::Gauge, vec!["component", "state"], STATE.1);
        metrics.collect(Box::new(self.clone()), [told]);
    }

    /// The component is (again) ready.
    pub fn ready(&self, component: &'static str) {
        self.set(component, State::Ready);
    }

    /// The component is behind or disturbed, which no caller feels.
    pub fn degraded(&self, component: &'static str, why: impl Into<String>) {
        self.set(component, State::Degraded(why.into()));
    }

    /// The component is not ready, and why.
    pub fn missing(&self, component: &'static str, why: impl Into<String>) {
        self.set(component, State::Missing(why.into()));
    }

    /// The component has ended and is no longer asked.
    pub fn forget(&self, component: &'static str) {
        self.lock().remove(component);
    }

    pub fn components(&self) -> BTreeMap<&'static str, State> {
        self.lock().clone()
    }

    /// Whether nothing is missing.
    pub fn serves(&self) -> bool {
        !self.lock().values().any(|state| matches!(state, State::Missing(_)))
    }

    fn set(&self, component: &'static str, state: State) {
        self.lock().insert(component, state);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
