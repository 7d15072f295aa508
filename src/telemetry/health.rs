//! Which parts of the process are ready, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all components: each says of itself whether it is ready, and if not, why.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Health {
    /// The component is (again) ready.
    pub fn ready(&self, component: &'static str) {
        self.lock().insert(component, None);
    }

    /// The component is not ready, and why.
    pub fn missing(&self, component: &'static str, why: impl Into<String>) {
        self.lock().insert(component, Some(why.into()));
    }

    /// The component has ended and is no longer asked.
    pub fn forget(&self, component: &'static str) {
        self.lock().remove(component);
    }

    /// All components: `None` is ready, else why not.
    pub fn components(&self) -> BTreeMap<&'static str, Option<String>> {
        self.lock().clone()
    }

    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
