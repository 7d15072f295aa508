//! The HTTP facade: OpenAI's chat completions in, records on `requests` out; frames from `responses` in, events out.
//!
//! The way of a request: `chat` (HTTP) reads the key (`authenticate`) and the body (`request`) and gives both to the `hub`,
//! which opens a `slot` and sends the record over the `bus`. Frames come back over the bus into the slot, where
//! `reassembly` judges them; an `answer` takes their bytes out, and `respond` decides what the response begins with. `error`
//! maps everything that goes wrong. A client that is slow, gone, or asks again (`again`, `requests`) is served from the log,
//! by the one reader of `catch_up`.
//!
//! Status and headers are decided when the first frame is known. Nothing here decides anything about a request but who
//! asks and whether it is well-formed; the processor does the rest.

pub mod admin;
mod again;
mod answer;
mod authenticate;
mod bus;
mod catch_up;
mod chat;
mod conversations;
mod error;
mod failures;
#[cfg(test)]
mod fixtures;
mod frames;
pub mod guard;
mod hub;
mod listener;
mod metrics;
mod models;
pub mod operators;
pub mod purges;
mod rate_limits;
mod reassembly;
mod request;
mod requests;
mod respond;
pub mod route;
mod routes;
mod server;
mod slot;
mod sse;
pub mod statements;
#[cfg(test)]
mod tests;
mod trace;
pub mod usage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::StreamConsumer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::codec::Codec;
use crate::config;
use crate::control::Tables;
use crate::domain::ids::partition_of;
use crate::records::Topic;
use crate::runtime::kafka;
use crate::runtime::lag::{Lag, Tail};
use crate::runtime::publisher::Publisher;
use crate::telemetry::health::Health;
use crate::telemetry::{Metrics, Traces};

pub use admin::Admin;
pub use guard::Guard;
pub use operators::Operators;
pub use purges::Purges;
pub use statements::Statements;
pub use usage::Usage;

/// Gives the control tables as they are now.
pub type Control = Arc<dyn Fn() -> Arc<Tables> + Send + Sync>;

/// Connections beside those of the requests under way: idle ones, and health probes.
const CONNECTIONS_SPARE: usize = 1_024;
/// The consumer group, of which nothing but the name is used.
const GROUP: &str = "facade";
/// How long after a request's deadline the owner's own terminal may still come, before the facade gives up by itself.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);
/// How long ended streams may take to write their last bytes before their connections are closed.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the Kafka side may take to end.
const BUS_END_TIMEOUT: Duration = Duration::from_secs(6);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make a Kafka consumer for {brokers}: {source}")]
    Consumer { brokers: String, source: rdkafka::error::KafkaError },
    #[error("facade.responses_partition = {partition}, but {topic} has {partitions} partitions")]
    Partition { partition: i32, topic: String, partitions: u32 },
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("a listener has no address: {0}")]
    Listener(std::io::Error),
}

/// What a facade is made of.
pub struct Options {
    pub config: config::Facade,
    pub kafka: config::Kafka,
    /// Name of this process, which chooses its partition of `responses` unless the configuration does.
    pub instance: String,
    /// Of `requests` and of `responses`, which have equally many.
    pub partitions: u32,
    pub control: Control,
    pub codec: Arc<Codec>,
    pub publisher: Publisher,
    pub health: Health,
    pub metrics: Metrics,
    pub traces: Traces,
    pub listener: TcpListener,
    pub usage: Arc<Usage>,
    /// Once cancelled, no further request is admitted; [`Facade::stop`] ends those under way.
    pub cancel: CancellationToken,
}

/// The running facade; dropping it cuts everything off.
pub struct Facade {
    address: SocketAddr,
    hub: Arc<hub::Hub>,
    drain: Duration,
    server: JoinSet<()>,
    bus: JoinSet<()>,
    stop: CancellationToken,
    end: CancellationToken,
}

impl Facade {
    /// Starts to listen. Kafka need not be there yet: until it is, requests get 503 and health says what is missing.
    pub fn start(options: Options) -> Result<Self, Error> {
        let Options { config, kafka, health, codec, .. } = options;
        let address = options.listener.local_addr().map_err(Error::Listener)?;
        let responses = kafka::topic_name(&kafka, Topic::Responses);
        let partition =
            config.responses_partition.unwrap_or_else(|| partition_of(&options.instance, options.partitions));
        if u32::try_from(partition).is_err() || partition as u32 >= options.partitions {
            return Err(Error::Partition { partition, topic: responses, partitions: options.partitions });
        }
        let refused = |source| Error::Consumer { brokers: kafka.brokers.clone(), source };
        let context = Tail::new(Lag::register(&options.metrics, GROUP), partition);
        let live = Tail::configured(kafka::hot_consumer(&kafka, GROUP)).create_with_context(context);
        let live: StreamConsumer<Tail> = live.map_err(refused)?;
        let missed =
            catch_up_consumer(&kafka).create_with_context(catch_up::reader::EndsAreExpected).map_err(refused)?;
        health.missing(bus::COMPONENT, "not listening to answers yet");

        let deliveries = bus::Acknowledgements::new();
        let requests = kafka::topic_name(&kafka, Topic::Requests);
        let producer =
            bus::Producer { publisher: options.publisher, topic: requests.clone(), deliveries: deliveries.clone() };
        let hub = hub::Hub::new(hub::Options {
            bus: Box::new(producer),
            codec: codec.clone(),
            metrics: metrics::Metrics::register(&options.metrics),
            partitions: options.partitions,
            reply_partition: partition,
            nonce: nonce()?,
            requests_max: config.requests_max,
            slot_bytes_max: config.slot_bytes_max,
            slots_bytes_max: config.slots_bytes_max,
        });
        let decoder = frames::Decoder::new(codec, health.clone(), bus::COMPONENT);
        let (stop, end) = (options.cancel.child_token(), CancellationToken::new());
        let mut bus = JoinSet::new();
        bus.spawn(bus::take_deliveries(hub.clone(), deliveries, stop.clone(), end.clone()));
        let reader = bus::Reader {
            hub: hub.clone(),
            consumer: Arc::new(live),
            topic: responses.clone(),
            partition,
            decoder: decoder.clone(),
            health: health.clone(),
        };
        bus.spawn(reader.run(end.clone()));
        bus.spawn(catch_up::reader::Reader::new(hub.clone(), missed, responses, decoder).run(end.clone()));

        let drain = config::millis(config.drain_ms);
        let limits = server::Limits {
            connections_max: config.requests_max + CONNECTIONS_SPARE,
            stalled_max: config::millis(config.stalled_client_ms),
        };
        let (control, usage, deadline_grace) = (options.control, options.usage, DEADLINE_GRACE);
        let body_times = chat::BodyTimes::DEFAULT;
        let guard = guard::Guard::register(&options.metrics, "tollstream_facade");
        let traces = trace::Facade { traces: options.traces, requests, partitions: options.partitions };
        let hub_of_app = hub.clone();
        let app =
            routes::App { hub: hub_of_app, control, config, deadline_grace, body_times, health, guard, traces, usage };
        let app = Arc::new(app);
        let router = routes::router(&routes::ROUTES, app);
        let mut server = JoinSet::new();
        server.spawn(server::serve(options.listener, router, limits, stop.clone()));
        tracing::info!(%address, "facade listens");
        Ok(Self { address, hub, drain, server, bus, stop, end })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Admits nothing more, lets streams finish within the configured time, ends the others with an error, then leaves.
    pub async fn stop(mut self) {
        self.hub.stop_admitting();
        self.stop.cancel();
        if tokio::time::timeout(self.drain, self.server.join_next()).await.is_err() {
            tracing::warn!("streams did not finish in time and are ended");
            self.hub.end_all();
            let _ = tokio::time::timeout(END_TIMEOUT, self.server.join_next()).await;
        }
        // What is still connected reads nothing; closing it cancels nothing more.
        self.server.abort_all();
        self.end.cancel();
        let ended = async { while self.bus.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(BUS_END_TIMEOUT, ended).await;
        tracing::info!(address = %self.address, "facade stopped");
    }
}

/// Registers the metrics of both listeners, for those who list them.
pub(crate) fn register(metrics: &Metrics) {
    metrics::Metrics::register(metrics);
    guard::Guard::register(metrics, "tollstream_facade");
    guard::Guard::register(metrics, "tollstream_admin");
}

/// The consumer of what was missed. It jumps, and a jump waits for the fetch that is under way.
fn catch_up_consumer(kafka: &config::Kafka) -> rdkafka::ClientConfig {
    let mut client = kafka::hot_consumer(kafka, GROUP);
    client.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "50");
    client
}

/// What the frames of this process's requests begin their nonce with.
fn nonce() -> Result<String, Error> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(Error::Random)?;
    Ok(hex::encode(random))
}
