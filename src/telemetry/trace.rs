//! Traces by OpenTelemetry: one for each request, over facade, Kafka, owner and provider. Off unless there is somebody to
//! send them to; then a span costs nothing. No span has a prompt, an answer, a key or a user.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
pub use opentelemetry::Value;
pub use opentelemetry::trace::SpanKind as Kind;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{
    self, BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData,
    SpanProcessor,
};
use prometheus_client::metrics::counter::Counter;
use tokio::runtime::Handle;

use super::{Metrics, attribute};
use crate::config::Telemetry;

/// Spans that are sent at once.
const BATCH_SPANS: usize = 512;
/// How long spans wait for others.
const BATCH_DELAY: Duration = Duration::from_secs(2);
/// How long one export may take, and the last one at the end of the process.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of a receiver's answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("telemetry.otlp_endpoint cannot be used: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("telemetry: cannot make an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// What of the traces is lost.
pub(crate) struct Losses {
    failures: Counter,
    spans: Counter,
}

/// Registers the exporter's metrics.
pub(crate) fn register(metrics: &Metrics) -> Losses {
    let scope = metrics.scope("tollstream_telemetry");
    Losses {
        failures: scope.counter("export_failures", "Batches of spans that the receiver did not take"),
        spans: scope.counter("lost_spans", "Spans that were thrown away, since `telemetry.spans_max` waited already"),
    }
}

/// A handle to the traces; clones share it. The default one is off.
#[derive(Clone, Default)]
pub struct Traces(Option<On>);

#[derive(Clone)]
struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends spans where the configuration says, if it does; needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is none. That nobody answers there is no error, and touches no request.
    pub fn start(config: &Telemetry, instance: &str, metrics: &Metrics) -> Result<Self, Error> {
        let Losses { failures, spans: lost } = register(metrics);
        let Some(url) = config.traces_url() else { return Ok(Self::default()) };
        crate::tls::install_provider();
        let client = reqwest::Client::builder().timeout(EXPORT_TIMEOUT).no_proxy().build()?;
        let client = Sender { client, runtime: Handle::current(), failures, fails: AtomicBool::new(false) };
        let exporter = SpanExporter::builder().with_http().with_endpoint(url).with_http_client(client).build()?;
        let waiting = Arc::<AtomicUsize>::default();
        let exporter = Drain { next: exporter, waiting: waiting.clone() };
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(config.spans_max)
            .with_max_export_batch_size(BATCH_SPANS.min(config.spans_max))
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let sampled = f64::from(config.sampled_percent) / 100.0;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.instance.id", instance.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .with_detector(Box::new(EnvResourceDetector::new()))
            .with_service_name(config.service_name.clone())
            .build();
        let next = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { next, waiting, most: config.spans_max, lost })
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sampled))))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("tollstream");
        Ok(Self(Some(On { provider, tracer })))
    }

    /// A span under a remote one (a W3C `traceparent`), or the first of a new trace.
    pub fn span(&self, kind: Kind, name: impl Into<Cow<'static, str>>, parent: Option<&str>) -> Span {
        let Some(on) = &self.0 else { return Span::default() };
        let parent = parent.and_then(context_of).unwrap_or(SpanContext::NONE);
        Span::new(&on.tracer, kind, name, parent)
    }

    /// Sends what waits, within a bound, and ends.
    pub async fn stop(self) {
        let Some(On { provider, .. }) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(STOP_TIMEOUT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans were not taken");
        }
    }
}

/// One step of a request. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
pub struct Open {
    span: SdkSpan,
    tracer: SdkTracer,
}

impl Span {
    fn new(tracer: &SdkTracer, kind: Kind, name: impl Into<Cow<'static, str>>, parent: SpanContext) -> Self {
        let builder = tracer.span_builder(name).with_kind(kind);
        let parent = match parent.is_valid() {
            true => Context::new().with_remote_span_context(parent),
            false => Context::new(),
        };
        let span = tracer.build_with_context(builder, &parent);
        Self(Some(Box::new(Open { span, tracer: tracer.clone() })))
    }

    /// A step within this one.
    pub fn child(&self, kind: Kind, name: impl Into<Cow<'static, str>>) -> Self {
        let Some(open) = &self.0 else { return Self::default() };
        Self::new(&open.tracer, kind, name, open.span.span_context().clone())
    }

    /// Whether there are traces at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What the next one is told of it; `None`: there are no traces.
    pub fn traceparent(&self) -> Option<String> {
        let of = self.0.as_ref()?.span.span_context();
        Some(format!("00-{}-{}-{:02x}", of.trace_id(), of.span_id(), of.trace_flags().to_u8()))
    }

    /// Describes it; not called when nobody sees that.
    pub fn tell(&mut self, describe: impl FnOnce(&mut Open)) {
        if let Some(open) = self.0.as_mut().filter(|open| open.span.is_recording()) {
            describe(open);
        }
    }

    /// It failed, for this reason.
    pub fn failed(&mut self, code: &str) {
        self.tell(|of| of.failed(code));
    }

    /// Describes it as it is made.
    pub fn told(mut self, describe: impl FnOnce(&mut Open)) -> Self {
        self.tell(describe);
        self
    }
}

impl Open {
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(KeyValue::new(name, value));
    }

    pub fn failed(&mut self, code: &str) {
        self.set(attribute::ERROR_TYPE, code.to_owned());
        self.span.set_status(Status::error(""));
    }

    /// What sends or takes a record of a topic is described so.
    pub fn kafka(&mut self, operation: &'static str, topic: &str, partition: i32) {
        self.set(attribute::MESSAGING_SYSTEM, "kafka");
        self.set(attribute::MESSAGING_OPERATION_NAME, operation);
        self.set(attribute::MESSAGING_OPERATION_TYPE, operation);
        self.set(attribute::MESSAGING_DESTINATION_NAME, topic.to_owned());
        self.set(attribute::MESSAGING_DESTINATION_PARTITION_ID, partition.to_string());
    }
}

/// The span that a `traceparent` names.
fn context_of(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-').skip(1);
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::NONE)).filter(SpanContext::is_valid)
}

/// Lets so many spans wait, and counts those that it throws away; the batches' own queue does the latter without a word.
#[derive(Debug)]
struct Bounded {
    next: BatchSpanProcessor,
    /// Spans that have ended, and are in no batch that is being sent.
    waiting: Arc<AtomicUsize>,
    most: usize,
    lost: Counter,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut SdkSpan, context: &Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let one_more = |waiting: usize| (waiting < self.most).then_some(waiting + 1);
        match self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => self.next.on_end(span),
            Err(_) => _ = self.lost.inc(),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Says which spans wait no longer.
#[derive(Debug)]
struct Drain<E> {
    next: E,
    waiting: Arc<AtomicUsize>,
}

impl<E: trace::SpanExporter> trace::SpanExporter for Drain<E> {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        self.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        self.next.export(batch)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Sends batches for the exporter, which has a thread of its own and no runtime.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    failures: Counter,
    /// The last batch was not taken.
    fails: AtomicBool,
}

impl HttpClient for Sender {
    fn send_bytes<'a, 'async_trait>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        let sending = Box::pin(async move {
            let sent = self.send(request).await;
            match &sent {
                Ok(response) if response.status().is_success() => self.taken(),
                Ok(response) => self.refused(&response.status()),
                Err(error) => self.refused(error),
            }
            sent
        });
        Box::pin(Within { future: sending, runtime: &self.runtime })
    }
}

impl Sender {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.client.execute(request.try_into()?).await?;
        let (status, mut body) = (answer.status(), BytesMut::new());
        while let Some(piece) = answer.chunk().await? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&piece);
        }
        let mut response = Response::builder().status(status).body(body.freeze())?;
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }

    fn taken(&self) {
        if self.fails.swap(false, Ordering::Relaxed) {
            tracing::info!("the receiver of traces takes spans again");
        }
    }

    /// Said once, until it takes some again.
    fn refused(&self, error: &dyn std::fmt::Display) {
        self.failures.inc();
        if !self.fails.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the receiver of traces does not take spans; they are lost, requests go on");
        }
    }
}

/// A future that finds the runtime, wherever it is polled.
struct Within<'a, F> {
    future: Pin<Box<F>>,
    runtime: &'a Handle,
}

impl<F: Future> Future for Within<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<F::Output> {
        let _entered = self.runtime.enter();
        self.future.as_mut().poll(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[tokio::test]
    async fn a_span_goes_on_with_the_trace_that_it_is_told_of() {
        let config = Telemetry { otlp_endpoint: Some("http://127.0.0.1:9".into()), ..Telemetry::default() };
        let traces = Traces::start(&config, "test", &Metrics::default()).unwrap();
        let span = traces.span(Kind::Server, "POST", Some(PARENT));
        let (own, of_child) = (span.traceparent().unwrap(), span.child(Kind::Producer, "send").traceparent().unwrap());
        assert!(own.starts_with(&PARENT[..36]) && own.ends_with("-01") && own != PARENT, "{own}");
        assert!(of_child.starts_with(&PARENT[..36]) && of_child != own, "{of_child}");
        let unsampled = PARENT.replace("-01", "-00");
        let quiet = traces.span(Kind::Server, "POST", Some(&unsampled)).traceparent().unwrap();
        assert!(quiet.starts_with(&PARENT[..36]) && quiet.ends_with("-00"), "{quiet}");
        let new = traces.span(Kind::Server, "POST", Some("nonsense")).traceparent().unwrap();
        assert!(!new.starts_with(&PARENT[..36]) && new.len() == PARENT.len(), "{new}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_beyond_the_bound_are_lost_and_counted() {
        // It is connected to, and never answers, so that the first batch stays under way.
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let config = Telemetry { otlp_endpoint: Some(url), spans_max: 4, ..Telemetry::default() };
        let metrics = Metrics::default();
        let traces = Traces::start(&config, "test", &metrics).unwrap();
        let lost = || {
            let text = metrics.encode().unwrap();
            let found = text.lines().find_map(|line| line.strip_prefix("tollstream_telemetry_lost_spans_total "));
            found.unwrap().parse::<u64>().unwrap()
        };
        (0..4).for_each(|_| drop(traces.span(Kind::Internal, "one", None)));
        // Four make a batch. From here on it is under way, and four more may wait.
        let _connection = silent.accept().await.unwrap();
        assert_eq!(lost(), 0);
        (0..10).for_each(|_| drop(traces.span(Kind::Internal, "more", None)));
        assert_eq!(lost(), 6);
    }

    #[test]
    fn without_traces_nothing_is_told() {
        let mut span = Traces::default().span(Kind::Server, "POST", Some(PARENT));
        span.tell(|_| unreachable!("nobody sees it"));
        assert_eq!((span.traceparent(), span.child(Kind::Client, "chat").traceparent()), (None, None));
    }
}
