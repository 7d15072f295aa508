//! How far a member of a consumer group is behind the ends of its partitions. librdkafka asks the brokers for the ends, and
//! tells them with its statistics; what is done is what the member commits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Labels, Series};

/// Partitions of one group in this process whose lag is told.
const PARTITIONS_MAX: usize = 1_000;

/// A handle to the lag of one group's member; clones share it.
#[derive(Clone)]
pub struct Lag(Arc<Inner>);

struct Inner {
    group: &'static str,
    records: Series<Gauge>,
    places: Mutex<BTreeMap<i32, Place>>,
}

#[derive(Debug, Clone, Default)]
struct Place {
    /// Of the next record, as the member has done or committed them.
    done: Option<i64>,
    end: Option<i64>,
    gauge: Gauge,
}

impl Place {
    fn tell(&self) {
        if let (Some(done), Some(end)) = (self.done, self.end) {
            self.gauge.set((end - done).max(0));
        }
    }
}

impl Lag {
    pub fn register(metrics: &Metrics, group: &'static str) -> Self {
        let meaning = "Records of a partition behind what a consumer group has done of it, as of its last statistics";
        let records = metrics.scope("tollstream").family(
            "consumer_lag_records",
            &["group", "partition"],
            meaning,
            Gauge::default,
        );
        Self(Arc::new(Inner { group, records, places: Mutex::default() }))
    }

    /// A partition is read, from this offset on, if that is known.
    pub fn assigned(&self, partition: i32, offset: Option<i64>) {
        let mut places = self.places();
        if places.len() < PARTITIONS_MAX || places.contains_key(&partition) {
            let gauge = self.0.records.get_or_create(&self.labels(partition)).clone();
            places.insert(partition, Place { done: offset, end: None, gauge });
        }
    }

    /// It is read no longer.
    pub fn unassigned(&self, partition: i32) {
        if self.places().remove(&partition).is_some() {
            self.0.records.remove(&self.labels(partition));
        }
    }

    /// All before this offset is done.
    pub fn done(&self, partition: i32, offset: i64) {
        if let Some(place) = self.places().get_mut(&partition) {
            place.done = Some(offset);
            place.tell();
        }
    }

    /// The brokers' side of a partition; `committed` and `begin` stand in for what the member has not said yet.
    pub fn ends(&self, partition: i32, end: i64, committed: Option<i64>, begin: Option<i64>) {
        if let Some(place) = self.places().get_mut(&partition) {
            place.end = Some(end);
            place.done = place.done.or(committed).or(begin);
            place.tell();
        }
    }

    fn labels(&self, partition: i32) -> Labels {
        vec![("group", self.0.group.to_owned()), ("partition", partition.to_string())]
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<i32, Place>> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_what_is_not_done_of_what_there_is() {
        let metrics = Metrics::default();
        let lag = Lag::register(&metrics, "sink");
        let line = |partition: i32| {
            let text = metrics.encode().unwrap();
            let name = format!("tollstream_consumer_lag_records{{group=\"sink\",partition=\"{partition}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<i64>().ok())
        };
        lag.assigned(0, Some(10));
        lag.assigned(1, None);
        lag.ends(0, 30, None, Some(0));
        lag.ends(1, 5, None, Some(2));
        lag.ends(7, 5, None, None);
        assert_eq!((line(0), line(1), line(7)), (Some(20), Some(3), None));
        lag.done(0, 28);
        lag.done(1, 6);
        assert_eq!((line(0), line(1)), (Some(2), Some(0)), "what was done since the end was told is not behind");
        lag.unassigned(0);
        assert_eq!(line(0), None);
    }
}
