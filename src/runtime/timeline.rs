//! When what happened to a request, as its owner's shell saw it: for metrics and traces. No decision knows of it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::clock;
use super::metrics::ProcessorMetrics;
use super::shell::Shell;
use super::trace;
use crate::domain::{RequestKey, Timestamp};
use crate::processor::{ProviderCall, ServedFrom, Serving, key_of};
use crate::records::journal::{Commit, Fact};
use crate::telemetry::trace::Span;

/// Of one request: how long it was ours, and how long its providers'.
#[derive(Debug)]
pub struct Timeline {
    ours: Duration,
    /// Since when it has been ours; `None` while a provider has it.
    since: Option<Instant>,
    /// It was decided here, and not by a former owner.
    is_whole: bool,
    span: Span,
}

impl Timeline {
    /// Of a request whose record was written at this time.
    pub fn begin(received_at: Timestamp, span: Span) -> Self {
        Self { ours: clock::now().since(received_at), since: Some(Instant::now()), is_whole: true, span }
    }

    /// Of one that a former owner left open.
    fn taken_over(span: Span) -> Self {
        Self { ours: Duration::ZERO, since: Some(Instant::now()), is_whole: false, span }
    }

    /// How long it was ours until now.
    fn waited(&self) -> Duration {
        self.ours + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// A commit that is not acknowledged.
#[derive(Debug)]
struct Sent {
    /// Ends with it.
    _span: Span,
    /// Of the request that ends with it.
    ended: Option<Timeline>,
    is_settled: bool,
}

/// Of all requests of a partition.
#[derive(Debug, Default)]
pub struct Timelines {
    open: HashMap<RequestKey, Timeline>,
    sent: VecDeque<Sent>,
}

impl Timelines {
    /// A commit was decided; on a request that arrived, if it is one.
    pub fn decided(&mut self, commit: &Commit, arrived: Option<Timeline>, shell: &Shell, partition: i32) {
        if let Some(arrived) = &arrived {
            shell.metrics.decided(arrived.waited());
        }
        let mut sent = Sent { _span: Span::default(), ended: arrived, is_settled: false };
        if let Some((organization, request)) = commit.organization.as_ref().zip(commit.request.as_ref()) {
            let key = key_of(organization, &request.request_id);
            for fact in &commit.facts {
                match fact {
                    Fact::AttemptStarted(_) if !self.open.contains_key(&key) => {
                        let taken_over =
                            || Timeline::taken_over(trace::take_over(&shell.traces, organization, request));
                        self.open.insert(key.clone(), sent.ended.take().unwrap_or_else(taken_over));
                    }
                    Fact::RequestSettled(settled) => {
                        sent.ended = self.open.remove(&key);
                        sent.is_settled = true;
                        sent.ended.iter_mut().for_each(|of| trace::settled(&mut of.span, settled));
                    }
                    Fact::RequestRefused(refused) => {
                        sent.ended.iter_mut().for_each(|of| of.span.failed(&refused.code));
                    }
                    _ => {}
                }
            }
            if let Some(of) = sent.ended.as_ref().or_else(|| self.open.get(&key)) {
                sent._span = trace::commit(&of.span, &shell.topics.journal, partition);
            }
        }
        self.sent.push_back(sent);
    }

    /// The oldest commit is acknowledged.
    pub fn acknowledged(&mut self, metrics: &ProcessorMetrics) {
        let Some(Sent { ended, is_settled, .. }) = self.sent.pop_front() else { return };
        if let Some(ended) = ended.filter(|of| is_settled && of.is_whole) {
            metrics.added(ended.waited());
        }
    }

    /// A provider is called for the request; gives the call's span.
    pub fn called(&mut self, call: &ProviderCall, provider: &str) -> Span {
        let Some(timeline) = self.open.get_mut(&call.key) else { return Span::default() };
        timeline.ours += timeline.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        trace::call(&timeline.span, call, provider)
    }

    /// An answer is given that nobody is called for; gives the span of it. Waiting for somebody else's call is its provider's
    /// time.
    pub fn served(&mut self, serving: &Serving) -> Span {
        let Some(timeline) = self.open.get_mut(&serving.key) else { return Span::default() };
        if matches!(serving.from, ServedFrom::Call(_)) {
            timeline.ours += timeline.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
        trace::serve(&timeline.span, serving)
    }

    /// The call is over.
    pub fn answered(&mut self, key: &RequestKey) {
        if let Some(timeline) = self.open.get_mut(key) {
            timeline.since.get_or_insert_with(Instant::now);
        }
    }
}
