//! How far a member of a consumer group is behind the ends of its partitions. librdkafka asks the brokers for the ends, and
//! tells them with its statistics; what is done is what the member commits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use rdkafka::consumer::ConsumerContext;
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::{ClientConfig, ClientContext};

use super::kafka::STATISTICS_INTERVAL_MS;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Labels, Series};

const STATISTICS_INTERVAL: &str = "statistics.interval.ms";
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

    /// Takes the brokers' side out of a client's statistics; each partition's own is asked of `done`.
    pub fn told(&self, statistics: &Statistics, done: impl Fn(&Partition) -> Option<i64>) {
        for partition in statistics.topics.values().flat_map(|topic| topic.partitions.values()) {
            if let (Some(end), done) = (known(partition.hi_offset), done(partition)) {
                self.ends(partition.partition, end, done, None);
            }
        }
    }

    fn labels(&self, partition: i32) -> Labels {
        vec![("group", self.0.group.to_owned()), ("partition", partition.to_string())]
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<i32, Place>> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An offset of librdkafka's statistics, if there is one.
pub fn known(offset: i64) -> Option<i64> {
    Some(offset).filter(|offset| *offset >= 0)
}

/// The context of a reader that follows one partition without a group: what librdkafka has handed to it is done.
pub struct Tail {
    lag: Lag,
    partition: i32,
}

impl Tail {
    pub fn new(lag: Lag, partition: i32) -> Self {
        lag.assigned(partition, None);
        Self { lag, partition }
    }

    /// Settings of the consumer.
    pub fn configured(mut client: ClientConfig) -> ClientConfig {
        if client.get(STATISTICS_INTERVAL).is_none() {
            client.set(STATISTICS_INTERVAL, STATISTICS_INTERVAL_MS.to_string());
        }
        client
    }
}

impl ClientContext for Tail {
    fn stats(&self, statistics: Statistics) {
        self.lag.told(&statistics, |of| {
            let done = known(of.app_offset).filter(|_| of.partition == self.partition)?;
            self.lag.done(of.partition, done);
            Some(done)
        });
    }
}

impl ConsumerContext for Tail {}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Topic;

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

    #[test]
    fn a_reader_without_a_group_is_behind_by_what_it_was_not_handed() {
        let metrics = Metrics::default();
        let tail = Tail::new(Lag::register(&metrics, "facade"), 3);
        let line = || {
            let text = metrics.encode().unwrap();
            let line = text.lines().find(|line| line.starts_with("tollstream_consumer_lag_records{"));
            line.map(str::to_owned)
        };
        let told = |partition: i32, app_offset: i64, hi_offset: i64| {
            let of = Partition { partition, app_offset, hi_offset, lo_offset: 0, ..Partition::default() };
            let topic = Topic { partitions: [(partition, of)].into(), ..Topic::default() };
            tail.stats(Statistics { topics: [("responses".into(), topic)].into(), ..Statistics::default() });
            line()
        };
        let wanted =
            |lag: i64| Some(format!("tollstream_consumer_lag_records{{group=\"facade\",partition=\"3\"}} {lag}"));
        // It began at the end, and nothing came since: what librdkafka does not know is -1001.
        assert_eq!(told(3, -1_001, 90), wanted(0));
        assert_eq!(told(3, 95, 100), wanted(5));
        assert_eq!(told(4, 1, 100), wanted(5), "another partition than its own");
        assert_eq!(told(3, 100, 100), wanted(0));
    }
}
