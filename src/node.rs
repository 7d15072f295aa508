//! One process: its roles, started in order and ended in order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::codec::{self, Codec, Registry};
use crate::config::Config;
use crate::facade::{self, Admin, Facade, Guard, Operators, Purges, Statements, Usage};
use crate::processor::health::{Board, Deployments};
use crate::records::Topic;
use crate::runtime::control::{self, Control};
use crate::runtime::control_writer::ControlWriter;
use crate::runtime::publisher::{self, Publisher};
use crate::runtime::{deployments, kafka, reach, shard};
use crate::telemetry::health::{Health, State};
use crate::telemetry::trace;
use crate::telemetry::{Metrics, Traces};
use crate::{projection, sink};

/// How long a start waits for the registry and the broker before it gives up.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait between two tries at the start.
const START_RETRY: Duration = Duration::from_millis(500);
/// How long the last records may take to be acknowledged.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one question to the broker may take.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Codec(#[from] codec::Error),
    #[error(transparent)]
    Publisher(#[from] publisher::Error),
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error(transparent)]
    Processor(#[from] shard::Error),
    #[error(transparent)]
    Facade(#[from] facade::Error),
    #[error(transparent)]
    Projection(#[from] projection::Error),
    #[error(transparent)]
    Sink(#[from] sink::Error),
    #[error(transparent)]
    Kafka(#[from] reach::Error),
    #[error(transparent)]
    Traces(#[from] trace::Error),
    #[error("topic {topic} does not exist on {brokers}; run `tollstream topology apply`")]
    NoTopic { topic: String, brokers: String },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: std::io::Error },
    #[error("{role} ended in a panic")]
    Panicked { role: String },
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Role {
    /// HTTP in, SSE out.
    Facade,
    /// Decides requests and calls providers.
    Processor,
    /// Journal to usage.
    Projection,
    /// Usage, and what else the journal tells, to ClickHouse.
    Sink,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Facade, Self::Processor, Self::Projection, Self::Sink];
}

/// A running process.
pub struct Node {
    facade: Option<Facade>,
    admin: Admin,
    roles: JoinSet<Result<(), Error>>,
    publisher: Publisher,
    traces: Traces,
    pub health: Health,
    pub control: Control,
    pub codec: Arc<Codec>,
    cancel: CancellationToken,
    followers: CancellationToken,
}

/// What the roles share.
struct Shared {
    config: Config,
    partitions: u32,
    codec: Arc<Codec>,
    publisher: Publisher,
    control: Control,
    deployments: Deployments,
    health: Health,
    metrics: Metrics,
    traces: Traces,
    cancel: CancellationToken,
}

impl Node {
    /// Starts the roles; they are ready when [`Health`] says so.
    pub async fn start(config: Config, roles: &[Role]) -> Result<Self, Error> {
        let (health, metrics) = (Health::default(), Metrics::default());
        let health_settings = config.processor.health;
        let traces = Traces::start(&config.telemetry, &config.instance, &metrics)?;
        let codec = Arc::new(connect(&config).await?);
        let partitions = partitions(&config).await?;
        let publisher = Publisher::new(&config.kafka)?;
        let (cancel, followers) = (CancellationToken::new(), CancellationToken::new());
        let (control, follow) =
            control::follow(&config.kafka, codec.clone(), health.clone(), &metrics, followers.clone())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            follow.await;
            Ok(())
        });
        let watched = publisher::watch(
            publisher.clone(),
            kafka::topic_name(&config.kafka, Topic::Requests),
            health.clone(),
            followers.clone(),
        );
        tasks.spawn(async move {
            watched.await;
            Ok(())
        });
        let shared = Shared {
            config,
            partitions,
            codec: codec.clone(),
            publisher: publisher.clone(),
            control: control.clone(),
            deployments: Arc::new(Mutex::new(Board::new(health_settings))),
            health: health.clone(),
            metrics,
            traces: traces.clone(),
            cancel: cancel.clone(),
        };
        register(&shared.metrics, &shared.health, &shared.deployments);
        shared.publisher.measure(&shared.metrics, &shared.config.kafka);
        let usage = Arc::new(Usage::new(shared.config.clickhouse.clone()));
        let mut facade = None;
        for role in roles {
            tracing::info!(?role, "starting");
            match role {
                Role::Facade => facade = Some(start_facade(&shared, usage.clone()).await?),
                Role::Processor => spawn_processor(&mut tasks, &shared),
                Role::Projection => spawn_projection(&mut tasks, &shared),
                Role::Sink => spawn_sink(&mut tasks, &shared),
            }
        }
        let admin = Admin::start(facade::admin::Options {
            listener: listen(shared.config.admin.listen).await?,
            health: shared.health.clone(),
            metrics: shared.metrics.clone(),
            operators: Operators {
                control: control.clone(),
                writer: ControlWriter::new(shared.config.kafka.clone(), codec.clone(), publisher.clone()),
                deployments: shared.deployments.clone(),
                statements: Statements::new(shared.config.kafka.clone(), codec.clone()),
                purges: Purges::new(shared.config.kafka.clone(), codec.clone(), publisher.clone()),
                usage,
                key: shared.config.admin.key.clone(),
                guard: Guard::register(&shared.metrics, "tollstream_admin"),
            },
        })?;
        Ok(Self { facade, admin, roles: tasks, publisher, traces, health, control, codec, cancel, followers })
    }

    /// Base URL of the facade, if this process has one.
    pub fn facade_url(&self) -> Option<String> {
        self.facade.as_ref().map(|facade| format!("http://{}", facade.address()))
    }

    /// Base URL of health and metrics.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address())
    }

    /// A handle to the producer, for what a command writes itself.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Waits until everything is ready; gives what is missing when `timeout` has passed.
    pub async fn ready(&mut self, timeout: Duration) -> Result<(), String> {
        let until = Instant::now() + timeout;
        loop {
            if self.health.serves() {
                return Ok(());
            }
            if Instant::now() >= until {
                let components = self.health.components();
                let missing = components.iter().filter_map(|(name, state)| match state {
                    State::Missing(why) => Some(format!("{name}: {why}")),
                    State::Ready | State::Degraded(_) => None,
                });
                return Err(missing.collect::<Vec<_>>().join("; "));
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
                Some(ended) = self.roles.join_next() => {
                    return Err(finish(ended).err().map_or("a role has ended".to_owned(), |e| e.to_string()));
                }
            }
        }
    }

    /// Waits until a role ends by itself, which is a failure.
    pub async fn failed(&mut self) -> Error {
        loop {
            match self.roles.join_next().await {
                Some(ended) => match finish(ended) {
                    Err(error) => return error,
                    Ok(()) => continue,
                },
                None => return Error::Panicked { role: "every role".to_owned() },
            }
        }
    }

    /// Ends the roles in order: no new requests, streams finished within their bound, postings written, then out.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(facade) = self.facade.take() {
            facade.stop().await;
        }
        self.cancel.cancel();
        self.followers.cancel();
        let mut first = Ok(());
        while let Some(ended) = self.roles.join_next().await {
            let ended = finish(ended);
            if first.is_ok() {
                first = ended;
            }
        }
        let publisher = self.publisher.clone();
        self.admin.stop().await;
        self.traces.stop().await;
        // A failed flush leaves records that were never promised; the topics' readers do not miss them.
        let _ = tokio::task::spawn_blocking(move || publisher.flush(FLUSH_TIMEOUT)).await;
        first
    }
}

/// Registers what is of the process, and of no role.
pub(crate) fn register(metrics: &Metrics, health: &Health, of: &Deployments) {
    deployments::register(metrics, of);
    health.register(metrics);
    let version = "1, with the version of the program";
    let build = metrics.scope("tollstream").family("build_info", &["version"], version, Gauge::<i64>::default);
    build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
}

fn finish(ended: Result<Result<(), Error>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.unwrap_or_else(|error| Err(Error::Panicked { role: error.to_string() }))
}

/// Asks the registry until it answers: it may start at the same time as we do.
async fn connect(config: &Config) -> Result<Codec, Error> {
    let until = Instant::now() + START_TIMEOUT;
    loop {
        let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
        match Codec::connect(registry).await {
            Err(error @ codec::Error::Registry { .. }) if Instant::now() < until => {
                tracing::warn!(%error, "waiting for the schema registry");
                tokio::time::sleep(START_RETRY).await;
            }
            connected => return Ok(connected?),
        }
    }
}

/// The number of partitions that `requests` has.
async fn partitions(config: &Config) -> Result<u32, Error> {
    let until = Instant::now() + START_TIMEOUT;
    let topic = kafka::topic_name(&config.kafka, Topic::Requests);
    loop {
        match reach::metadata(&config.kafka, Some(&topic), METADATA_TIMEOUT).await {
            Ok(metadata) => {
                let found = metadata.topics().iter().find(|t| t.name() == topic).map_or(0, |t| t.partitions().len());
                return match found {
                    0 => Err(Error::NoTopic { topic, brokers: config.kafka.brokers.clone() }),
                    found => Ok(found as u32),
                };
            }
            Err(error @ reach::Error::NoAnswer { .. }) if Instant::now() < until => {
                tracing::warn!(%error, "waiting for kafka");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(START_RETRY).await;
    }
}

async fn start_facade(shared: &Shared, usage: Arc<Usage>) -> Result<Facade, Error> {
    let control = shared.control.clone();
    let facade = Facade::start(facade::Options {
        config: shared.config.facade.clone(),
        kafka: shared.config.kafka.clone(),
        instance: shared.config.instance.clone(),
        partitions: shared.partitions,
        control: Arc::new(move || control.tables()),
        codec: shared.codec.clone(),
        publisher: shared.publisher.clone(),
        health: shared.health.clone(),
        metrics: shared.metrics.clone(),
        traces: shared.traces.clone(),
        listener: listen(shared.config.facade.listen).await?,
        usage,
        cancel: shared.cancel.clone(),
    })?;
    Ok(facade)
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address: address.to_string(), source })
}

/// What a role is until it says how it is: nobody may take a process for ready whose roles have not run yet.
const STARTING: &str = "starting";

fn spawn_processor(tasks: &mut JoinSet<Result<(), Error>>, shared: &Shared) {
    shared.health.missing(shard::COMPONENT, STARTING);
    let options = shard::Options {
        config: shared.config.clone(),
        partitions: shared.partitions,
        codec: shared.codec.clone(),
        publisher: shared.publisher.clone(),
        control: shared.control.clone(),
        deployments: shared.deployments.clone(),
        health: shared.health.clone(),
        metrics: shared.metrics.clone(),
        traces: shared.traces.clone(),
        cancel: shared.cancel.clone(),
    };
    tasks.spawn(async move { Ok(shard::run(options).await?) });
}

fn spawn_projection(tasks: &mut JoinSet<Result<(), Error>>, shared: &Shared) {
    shared.health.missing(projection::NAME, STARTING);
    let options = projection::Options {
        kafka: shared.config.kafka.clone(),
        instance: shared.config.instance.clone(),
        projection: shared.config.projection.clone(),
        codec: shared.codec.clone(),
        publisher: shared.publisher.clone(),
        health: shared.health.clone(),
        metrics: shared.metrics.clone(),
        cancel: shared.cancel.clone(),
    };
    tasks.spawn(async move { Ok(projection::run(options).await?) });
}

fn spawn_sink(tasks: &mut JoinSet<Result<(), Error>>, shared: &Shared) {
    shared.health.missing(sink::NAME, STARTING);
    let options = sink::Options {
        kafka: shared.config.kafka.clone(),
        instance: shared.config.instance.clone(),
        sink: shared.config.sink.clone(),
        clickhouse: shared.config.clickhouse.clone(),
        dead_letter_bytes_max: shared.config.processor.dead_letter_bytes_max,
        codec: shared.codec.clone(),
        publisher: shared.publisher.clone(),
        health: shared.health.clone(),
        metrics: shared.metrics.clone(),
        cancel: shared.cancel.clone(),
    };
    shared.health.missing(sink::events::NAME, STARTING);
    let events = options.clone();
    tasks.spawn(async move { Ok(sink::run(options).await?) });
    tasks.spawn(async move { Ok(sink::events::run(events).await?) });
}
