//! When what happened to a request, as its owner's shell saw it: for metrics. No decision knows of it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::clock;
use super::metrics::ProcessorMetrics;
use crate::domain::{RequestKey, Timestamp};
use crate::processor::key_of;
use crate::records::journal::{Commit, Fact};

/// Of one request: how long it was ours, and how long its providers'.
#[derive(Debug)]
pub struct Timeline {
    ours: Duration,
    /// Since when it has been ours; `None` while a provider has it.
    since: Option<Instant>,
}

impl Timeline {
    /// Of a request whose record was written at this time.
    pub fn begin(received_at: Timestamp) -> Self {
        Self { ours: clock::now().since(received_at), since: Some(Instant::now()) }
    }

    /// From its record until now.
    fn waited(&self) -> Duration {
        self.ours + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Of all requests of a partition.
#[derive(Debug, Default)]
pub struct Timelines {
    open: HashMap<RequestKey, Timeline>,
    /// Of each commit that is not acknowledged, the request that ends with it.
    ending: VecDeque<Option<Timeline>>,
}

impl Timelines {
    /// A commit was decided; on a request that arrived, if it is one.
    pub fn decided(&mut self, commit: &Commit, arrived: Option<Timeline>, metrics: &ProcessorMetrics) {
        if let Some(arrived) = &arrived {
            metrics.decided(arrived.waited());
        }
        let key = commit.organization.as_ref().zip(commit.request.as_ref());
        let key = key.map(|(organization, request)| key_of(organization, &request.request_id));
        let settles = commit.facts.iter().any(|fact| matches!(fact, Fact::RequestSettled(_)));
        let ending = match (key, arrived) {
            (Some(key), _) if settles => self.open.remove(&key),
            (Some(key), Some(arrived)) if commit.facts.iter().any(|fact| matches!(fact, Fact::AttemptStarted(_))) => {
                self.open.insert(key, arrived);
                None
            }
            _ => None,
        };
        self.ending.push_back(ending);
    }

    /// The oldest commit is acknowledged.
    pub fn acknowledged(&mut self, metrics: &ProcessorMetrics) {
        if let Some(ended) = self.ending.pop_front().flatten() {
            metrics.added(ended.waited());
        }
    }

    /// A provider is called for the request.
    pub fn called(&mut self, key: &RequestKey) {
        if let Some(timeline) = self.open.get_mut(key) {
            timeline.ours += timeline.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
    }

    /// The call is over.
    pub fn answered(&mut self, key: &RequestKey) {
        if let Some(timeline) = self.open.get_mut(key) {
            timeline.since.get_or_insert_with(Instant::now);
        }
    }
}
