//! Provider calls under way: each a task that puts the answer on `responses` and reports its end to the shard.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::flight::{End, Flight, Next};
use super::metrics::ProviderMetrics;
use super::publisher::{self, Deliveries, Delivery, Outgoing, Publisher};
use super::room::Hold;
use super::shelf::Kept;
use super::{clock, kafka, trace};
use crate::codec::Codec;
use crate::config::{self, Endpoint};
use crate::domain::{RequestId, RequestKey, Timestamp};
use crate::failpoint::{Failpoint, reached};
use crate::processor::inference::{AttemptEnd, AttemptReport};
use crate::processor::{ProviderCall, Serving};
use crate::provider::openai::{renamed, shortfall};
use crate::provider::transport::{Answer, AnswerStream, Transport};
use crate::provider::{Call, CapName, Failure, FailureClass, Summary, Upstream};
use crate::records::Topic;
use crate::records::journal::AttemptProgressed;
use crate::records::responses::{Content, Frame, FrameBody, Head, ResponseRecord};
use crate::telemetry::trace::Span;

/// Most bytes of chunks that wait while a frame is in flight; above it the provider's stream is not read.
const WAITING_BYTES_MAX: usize = 256 << 10;
/// Waits before a full producer is tried again: first, and at the most.
const FULL_RETRY_MIN: Duration = Duration::from_millis(2);
const FULL_RETRY_MAX: Duration = Duration::from_millis(100);

/// How long after its deadline a call waits for Kafka to acknowledge its frames: much shorter than until its request is given
/// up (`processor::state::DEADLINE_GRACE`), so that what it used is posted by then and not an estimate.
const FRAMES_LATE_MAX: Duration = Duration::from_secs(10);

/// How often a call under way says what it has put out.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);

/// News of a call, for the shard.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    Progressed(RequestKey, AttemptProgressed),
    Ended(Box<AttemptReport>),
}

impl Report {
    pub fn key(&self) -> &RequestKey {
        match self {
            Self::Progressed(key, _) => key,
            Self::Ended(report) => &report.key,
        }
    }
}

/// What all calls share.
pub struct Calls {
    pub transport: Transport,
    pub providers: config::Providers,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub responses_topic: String,
    metrics: ProviderMetrics,
    /// References that were looked for in vain, of those that `control` names; each is logged once.
    missing_credentials: Mutex<BTreeSet<String>>,
}

impl Calls {
    pub fn new(
        transport: Transport,
        config: &config::Config,
        codec: Arc<Codec>,
        publisher: Publisher,
        metrics: ProviderMetrics,
    ) -> Self {
        let responses_topic = kafka::topic_name(&config.kafka, Topic::Responses);
        let (providers, missing_credentials) = (config.providers.clone(), Mutex::default());
        Self { transport, providers, codec, publisher, responses_topic, metrics, missing_credentials }
    }

    /// The simulator that answers for a deployment with this credential, if one does.
    pub fn simulator(&self, credential: &str) -> Option<&str> {
        self.providers.simulator(credential)
    }

    /// Where a deployment is called, and whether that is a simulator.
    ///
    /// # Errors
    /// When the deployment's credential is not in the environment: a call without it could only be refused.
    fn upstream(&self, call: &ProviderCall) -> Result<(Upstream, bool), Failure> {
        let (model, cap_name) = (call.upstream_model.clone(), CapName::at(&call.base_url));
        match self.providers.endpoint(&call.credential, &call.base_url) {
            None => {
                let mut told = self.missing_credentials.lock().unwrap_or_else(PoisonError::into_inner);
                if told.insert(call.credential.clone()) {
                    tracing::warn!(
                        deployment = %call.head.deployment,
                        credential = call.credential,
                        "not called: its credential is not in this process's environment; set it and restart"
                    );
                }
                let message = format!("the gateway has no credential for deployment {}", call.head.deployment);
                Err(Failure::new(FailureClass::Configuration, message))
            }
            Some(Endpoint { base_url, credential, simulated }) => {
                Ok((Upstream { base_url, model, cap_name, credential }, simulated))
            }
        }
    }

    /// Makes the call and reports its end; the report goes to the shard that decided it.
    pub async fn run(
        self: Arc<Self>,
        tenure: i64,
        call: ProviderCall,
        body: Bytes,
        (flight, mut span): (Option<Arc<Flight>>, Span),
        cancelled: CancellationToken,
        reports: mpsc::Sender<Report>,
    ) {
        let delay = Duration::from_millis(call.delay_ms);
        let (started, timeout) = (Instant::now() + delay, call.deadline_at.since(clock::now().plus(delay)));
        let to = Recipient::of(&call);
        let mut pump = Pump::new(&self, tenure, &to, &reports);
        pump.flight = flight.as_deref();
        // What an answer lacks is a question of what was asked for.
        let asked = if call.judged_for.is_empty() { Bytes::new() } else { body.clone() };
        let upstream = self.upstream(&call);
        let simulated = matches!(upstream, Ok((_, true)));
        let (end, summary, body) = match upstream {
            Err(failure) => (AttemptEnd::Failed(failure), Summary::default(), None),
            Ok(_) if !wait(call.delay_ms, &cancelled).await => (AttemptEnd::Cancelled, Summary::default(), None),
            Ok(_) if timeout.is_zero() => (AttemptEnd::Failed(deadline_passed()), Summary::default(), None),
            Ok((upstream, _)) => {
                trace::called(&mut span, &upstream);
                let request = Call {
                    request_id: call.key.request.clone(),
                    model: call.head.model.clone(),
                    upstream,
                    body,
                    stream: call.stream,
                    include_usage: call.include_usage,
                    output_cap: call.output_cap,
                    timeout,
                    traceparent: span.traceparent(),
                };
                pump.answer(&request, &cancelled).await
            }
        };
        let first = pump.first_content_at.map(|at| at.duration_since(started));
        if pump.called {
            self.metrics.ended(&call.head.deployment, &end, started.elapsed());
            first.into_iter().for_each(|first| self.metrics.first_token(&call.head.model, first));
        }
        let shortfall = body.as_ref().and_then(|answer| shortfall(&asked, answer, &call.judged_for));
        // An answer that falls short is nobody's yet: the next tier may be asked.
        let completed = pump.flight.filter(|_| end == AttemptEnd::Completed && shortfall.is_none());
        let kept_bytes = completed.and_then(|flight| flight.complete(summary.clone(), body.as_ref()));
        let report = AttemptReport {
            key: call.key.clone(),
            attempt: call.attempt,
            called: pump.called,
            end,
            summary,
            content_frames: pump.frames,
            simulated,
            time_to_first_token_ms: first.map(millis),
            duration_ms: millis(started.elapsed()),
            shortfall,
            body,
            earlier: None,
            kept_bytes,
        };
        trace::answered(&mut span, &report, first);
        drop(span);
        reached(Failpoint::CallEnded);
        // A closed channel means that the shard is gone; the next owner settles the request.
        let _ = reports.send(Report::Ended(Box::new(report))).await;
    }
}

impl Calls {
    /// Gives an answer that somebody else's call gave, or gives, and reports the end as of a call.
    pub async fn serve(
        self: Arc<Self>,
        tenure: i64,
        serving: Serving,
        (source, mut span): (Source, Span),
        cancelled: CancellationToken,
        reports: mpsc::Sender<Report>,
    ) {
        let (started, timeout) = (Instant::now(), serving.deadline_at.since(clock::now()));
        let Serving { key, attempt, head, deadline_at, reply_partition, reply_nonce, .. } = serving;
        let to = Recipient { key, attempt, head, deadline_at, reply_partition, reply_nonce };
        let mut pump = Pump::new(&self, tenure, &to, &reports);
        let over_at = Instant::now() + timeout;
        let served = async {
            match &source {
                Source::Kept(kept) => pump.repeat(kept, &cancelled).await,
                Source::Flight(flight, request) => pump.follow(flight, request, &cancelled).await,
                Source::Nothing => Err(AttemptEnd::Failed(nothing_at_hand())),
            }
        };
        let ended = match tokio::time::timeout_at(over_at, cancelled.run_until_cancelled(served)).await {
            Ok(Some(ended)) => ended,
            Ok(None) => Err(AttemptEnd::Cancelled),
            Err(_) => Err(AttemptEnd::Failed(Failure::new(FailureClass::Deadline, "the deadline passed"))),
        };
        let (end, summary, body) = match ended {
            Ok((summary, body)) => (AttemptEnd::Completed, summary, body),
            Err(end) => (end, Summary::default(), None),
        };
        let first = pump.first_content_at.map(|at| at.duration_since(started));
        let report = AttemptReport {
            key: to.key.clone(),
            attempt: to.attempt,
            called: false,
            end,
            summary,
            content_frames: pump.frames,
            simulated: false,
            time_to_first_token_ms: first.map(millis),
            duration_ms: millis(started.elapsed()),
            body,
            shortfall: None,
            earlier: None,
            kept_bytes: None,
        };
        trace::answered(&mut span, &report, first);
        drop(span);
        // As for calls: the next owner settles the request.
        let _ = reports.send(Report::Ended(Box::new(report))).await;
    }
}

/// Where an answer comes from that nobody is called for.
pub enum Source {
    Kept(Arc<Kept>),
    /// The call of this request.
    Flight(Arc<Flight>, RequestId),
    /// It is not at hand any more.
    Nothing,
}

fn nothing_at_hand() -> Failure {
    Failure::new(FailureClass::Cut, "the answer that was found is not to be had")
}

/// Who gets an answer.
struct Recipient {
    key: RequestKey,
    attempt: u32,
    head: Head,
    deadline_at: Timestamp,
    reply_partition: i32,
    reply_nonce: Option<String>,
}

impl Recipient {
    fn of(call: &ProviderCall) -> Self {
        Self {
            key: call.key.clone(),
            attempt: call.attempt,
            head: call.head.clone(),
            deadline_at: call.deadline_at,
            reply_partition: call.reply_partition,
            reply_nonce: call.reply_nonce.clone(),
        }
    }
}

/// Waits before a retry; `false`: it was cancelled meanwhile.
async fn wait(delay_ms: u64, cancelled: &CancellationToken) -> bool {
    delay_ms == 0 || cancelled.run_until_cancelled(tokio::time::sleep(Duration::from_millis(delay_ms))).await.is_some()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// That every frame that was sent is acknowledged, or the end of the attempt.
fn acknowledged(arrived: &mut Vec<Delivery>) -> Result<(), AttemptEnd> {
    match arrived.drain(..).find_map(|delivery| delivery.outcome.err()) {
        None => Ok(()),
        Some(error) => {
            let message = format!("kafka did not acknowledge a frame of the answer: {error}");
            Err(AttemptEnd::Failed(Failure::new(FailureClass::Cut, message)))
        }
    }
}

/// How the answer ended, or that it had to.
async fn ended_by(over_at: Instant, answer: impl Future<Output = AttemptEnd>) -> AttemptEnd {
    tokio::time::timeout_at(over_at, answer).await.unwrap_or_else(|_| {
        let message = "kafka did not acknowledge the answer's frames until after the deadline";
        AttemptEnd::Failed(Failure::new(FailureClass::Deadline, message))
    })
}

fn deadline_passed() -> Failure {
    Failure::new(FailureClass::Deadline, "the deadline passed before the provider was called")
}

/// Puts the chunks of one answer on `responses`: one record in flight, what arrives meanwhile goes into the next.
struct Pump<'a> {
    calls: &'a Calls,
    tenure: i64,
    call: &'a Recipient,
    reports: &'a mpsc::Sender<Report>,
    /// Where others get the answer from, too.
    flight: Option<&'a Flight>,
    deliveries: Arc<Deliveries>,
    waiting: Vec<Bytes>,
    /// Of the chunks that wait.
    room: Hold,
    in_flight: bool,
    called: bool,
    frames: u32,
    first_content_at: Option<Instant>,
    progress_at: Instant,
    payload: Vec<u8>,
}

impl<'a> Pump<'a> {
    fn new(calls: &'a Calls, tenure: i64, call: &'a Recipient, reports: &'a mpsc::Sender<Report>) -> Self {
        Self {
            calls,
            tenure,
            call,
            reports,
            flight: None,
            deliveries: Deliveries::new(),
            waiting: Vec::new(),
            room: calls.transport.answers().hold(),
            in_flight: false,
            called: false,
            frames: 0,
            first_content_at: None,
            progress_at: Instant::now() + PROGRESS_EVERY,
            payload: Vec::new(),
        }
    }

    async fn answer(&mut self, request: &Call, cancelled: &CancellationToken) -> (AttemptEnd, Summary, Option<Bytes>) {
        if cancelled.is_cancelled() {
            return (AttemptEnd::Cancelled, Summary::default(), None);
        }
        self.called = true;
        let over_at = Instant::now() + request.timeout + FRAMES_LATE_MAX;
        reached(Failpoint::BeforeCall);
        let answer = tokio::select! {
            biased;
            () = cancelled.cancelled() => return (AttemptEnd::Cancelled, Summary::default(), None),
            answer = self.calls.transport.call(request) => answer,
        };
        reached(Failpoint::AfterCall);
        match answer {
            Err(failure) => (AttemptEnd::Failed(failure), Summary::default(), None),
            Ok(Answer::Whole(whole)) => (AttemptEnd::Completed, whole.summary, Some(whole.body)),
            Ok(Answer::Stream(mut stream)) => {
                let end = ended_by(over_at, self.stream(&mut stream, cancelled)).await;
                (end, stream.summary(), None)
            }
        }
    }

    async fn stream(&mut self, stream: &mut AnswerStream, cancelled: &CancellationToken) -> AttemptEnd {
        let mut arrived: Vec<Delivery> = Vec::new();
        let end = loop {
            tokio::select! {
                biased;
                () = cancelled.cancelled() => break AttemptEnd::Cancelled,
                () = self.deliveries.drain(&mut arrived), if self.in_flight => {
                    self.in_flight = false;
                    reached(Failpoint::ContentAcknowledged);
                    if let Err(end) = acknowledged(&mut arrived) {
                        return end;
                    }
                }
                chunk = stream.next(), if self.takes_more() => match chunk {
                    Ok(Some(chunk)) => self.take(chunk),
                    Ok(None) => break AttemptEnd::Completed,
                    Err(failure) => break AttemptEnd::Failed(failure),
                },
            }
            while self.takes_more()
                && let Some(chunk) = stream.try_next_ready()
            {
                self.take(chunk);
            }
            if !self.in_flight
                && let Err(message) = self.send_waiting(cancelled).await
            {
                return AttemptEnd::Failed(Failure::new(FailureClass::Cut, message));
            }
            if Instant::now() >= self.progress_at {
                self.tell_progress(stream.summary().text_bytes);
            }
        };
        if end == AttemptEnd::Cancelled {
            return end;
        }
        match cancelled.run_until_cancelled(self.finish(cancelled)).await {
            Some(Ok(())) => end,
            Some(Err(lost)) => lost,
            None => AttemptEnd::Cancelled,
        }
    }

    /// Puts out an answer that is kept.
    async fn repeat(
        &mut self,
        kept: &Kept,
        cancelled: &CancellationToken,
    ) -> Result<(Summary, Option<Bytes>), AttemptEnd> {
        for event in &kept.events {
            self.take(self.renamed(event)?);
            if self.room.bytes() >= WAITING_BYTES_MAX {
                self.put_out(cancelled).await?;
            }
        }
        self.put_out(cancelled).await?;
        let body = kept.body.as_ref().map(|body| self.renamed(body)).transpose()?;
        let summary = Summary {
            usage: Some(kept.usage),
            finish_reason: kept.finish_reason.clone(),
            text_bytes: kept.bytes() as u64,
        };
        Ok((summary, body))
    }

    /// Puts out the answer of another request's call as it comes.
    async fn follow(
        &mut self,
        flight: &Flight,
        request: &RequestId,
        cancelled: &CancellationToken,
    ) -> Result<(Summary, Option<Bytes>), AttemptEnd> {
        let mut taken = 0;
        loop {
            match flight.next(taken).await {
                Next::Events(events) => {
                    taken += events.len();
                    for event in &events {
                        self.take(self.renamed(event)?);
                    }
                    self.put_out(cancelled).await?;
                    if Instant::now() >= self.progress_at {
                        self.tell_progress(0);
                    }
                }
                Next::End(End::Completed { summary, body }) => {
                    let body = body.as_ref().map(|body| self.renamed(body)).transpose()?;
                    return Ok((summary, body));
                }
                Next::End(End::Nothing) => {
                    let message = format!("request {request}, which asks the same, got no answer");
                    return Err(AttemptEnd::Failed(Failure::new(FailureClass::Cut, message)));
                }
            }
        }
    }

    fn renamed(&self, answer: &Bytes) -> Result<Bytes, AttemptEnd> {
        renamed(answer, &self.call.key.request).map_err(|e| {
            let message = format!("the answer that was found cannot be understood: {e}");
            AttemptEnd::Failed(Failure::new(FailureClass::Garbage, message))
        })
    }

    /// Puts out what waits, and waits until it is acknowledged.
    async fn put_out(&mut self, cancelled: &CancellationToken) -> Result<(), AttemptEnd> {
        let sent = self.send_waiting(cancelled).await;
        sent.map_err(|message| AttemptEnd::Failed(Failure::new(FailureClass::Cut, message)))?;
        self.frame_acknowledged().await
    }

    /// Puts out what is left, and waits until all of it is acknowledged: behind a frame that is lost there must be no other
    /// one, and no settlement that counts it.
    async fn finish(&mut self, cancelled: &CancellationToken) -> Result<(), AttemptEnd> {
        self.frame_acknowledged().await?;
        let sent = self.send_waiting(cancelled).await;
        sent.map_err(|message| AttemptEnd::Failed(Failure::new(FailureClass::Cut, message)))?;
        self.frame_acknowledged().await
    }

    /// Waits for the frame in flight, if there is one.
    async fn frame_acknowledged(&mut self) -> Result<(), AttemptEnd> {
        let mut arrived = Vec::new();
        if std::mem::take(&mut self.in_flight) {
            self.deliveries.drain(&mut arrived).await;
        }
        acknowledged(&mut arrived)
    }

    /// The next is told in any case, so one that finds no room is left out.
    fn tell_progress(&mut self, text_bytes: u64) {
        self.progress_at = Instant::now() + PROGRESS_EVERY;
        let progressed = AttemptProgressed { attempt: self.call.attempt, content_frames: self.frames, text_bytes };
        let _ = self.reports.try_send(Report::Progressed(self.call.key.clone(), progressed));
    }

    /// Whether the provider's stream is read on: not while much waits here, and, while much waits in all calls together,
    /// not while anything waits here.
    fn takes_more(&self) -> bool {
        let (waiting, all) = (self.room.bytes(), self.room.room());
        waiting < WAITING_BYTES_MAX && (waiting == 0 || all.taken() < all.bytes_max() / 2)
    }

    fn take(&mut self, chunk: Bytes) {
        self.first_content_at.get_or_insert_with(Instant::now);
        if let Some(flight) = self.flight {
            flight.push(&chunk);
        }
        // It is in memory already, and at most one more than there should be.
        self.room.take_anyway(chunk.len());
        self.waiting.push(chunk);
    }

    async fn send_waiting(&mut self, cancelled: &CancellationToken) -> Result<(), String> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let frame = Frame {
            organization: self.call.key.organization.clone(),
            request_id: self.call.key.request.clone(),
            nonce: self.call.reply_nonce.clone(),
            tenure: self.tenure,
            attempt: self.call.attempt,
            sequence: self.frames,
            at: clock::now(),
            body: FrameBody::Content(Content {
                head: (self.frames == 0).then(|| self.call.head.clone()),
                events: std::mem::take(&mut self.waiting),
            }),
        };
        let record = ResponseRecord::from(frame);
        reached(Failpoint::BeforeContent);
        self.calls.codec.encode(&record, &mut self.payload).map_err(|e| e.to_string())?;
        drop(record);
        let mut wait = FULL_RETRY_MIN;
        loop {
            let outgoing = Outgoing {
                topic: &self.calls.responses_topic,
                partition: self.call.reply_partition,
                key: self.call.key.request.as_str().as_bytes(),
                payload: &self.payload,
            };
            match self.calls.publisher.send(outgoing, &self.deliveries, u64::from(self.frames)) {
                Ok(()) => break,
                Err(publisher::Error::Full) if clock::now() < self.call.deadline_at => {
                    tokio::select! {
                        biased;
                        // Nobody waits for it any more.
                        () = cancelled.cancelled() => return Ok(()),
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(FULL_RETRY_MAX),
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        self.room.keep(0);
        reached(Failpoint::AfterContent);
        self.frames += 1;
        self.in_flight = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::state::DEADLINE_GRACE;

    #[tokio::test]
    async fn a_call_whose_frames_nobody_acknowledges_reports_before_its_request_is_given_up() {
        let end = ended_by(Instant::now(), std::future::pending()).await;
        assert!(matches!(end, AttemptEnd::Failed(Failure { class: FailureClass::Deadline, .. })), "{end:?}");
        let later = Instant::now() + FRAMES_LATE_MAX;
        assert_eq!(ended_by(later, async { AttemptEnd::Completed }).await, AttemptEnd::Completed);
        assert!(FRAMES_LATE_MAX * 2 < DEADLINE_GRACE);
    }
}
