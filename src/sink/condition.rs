//! How a sink is: what its writer and its partitions have to say, told to health as one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::telemetry::health::Health;

pub struct Condition {
    name: &'static str,
    health: Health,
    troubles: Mutex<Troubles>,
}

#[derive(Default)]
struct Troubles {
    /// Why rows are not written.
    writing: Option<String>,
    /// Why partitions do not go on.
    stopped: BTreeMap<i32, String>,
}

impl Condition {
    pub fn new(name: &'static str, health: Health) -> Self {
        Self { name, health, troubles: Mutex::default() }
    }

    pub fn missing(&self, why: &str) {
        self.health.missing(self.name, why);
    }

    /// It reads.
    pub fn tell(&self) {
        self.told(&self.troubles());
    }

    pub fn not_writing(&self, why: String) {
        let mut troubles = self.troubles();
        troubles.writing = Some(why);
        self.told(&troubles);
    }

    pub fn writing(&self) {
        let mut troubles = self.troubles();
        troubles.writing = None;
        self.told(&troubles);
    }

    pub fn stopped(&self, partition: i32, why: String) {
        let mut troubles = self.troubles();
        troubles.stopped.insert(partition, why);
        self.told(&troubles);
    }

    pub fn gone(&self, partition: i32) {
        let mut troubles = self.troubles();
        if troubles.stopped.remove(&partition).is_some() {
            self.told(&troubles);
        }
    }

    pub fn forget(&self) {
        self.health.forget(self.name);
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, troubles: &Troubles) {
        let all: Vec<&str> = troubles.stopped.values().chain(&troubles.writing).map(String::as_str).collect();
        match all.as_slice() {
            [] => self.health.ready(self.name),
            _ => self.health.degraded(self.name, all.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::health::State;

    #[test]
    fn a_partition_that_stopped_is_told_after_clickhouse_is_back() {
        let health = Health::default();
        let condition = Condition::new("events", health.clone());
        let told = || health.components().remove("events").unwrap();
        condition.stopped(2, "journal/2 stops".into());
        condition.not_writing("3 rows wait".into());
        assert_eq!(told(), State::Degraded("journal/2 stops; 3 rows wait".into()));
        condition.writing();
        assert_eq!(told(), State::Degraded("journal/2 stops".into()));
        condition.gone(2);
        assert_eq!(told(), State::Ready);
    }
}
