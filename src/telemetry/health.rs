//! Which parts of the process are ready, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, State>>>);

impl Health {
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
