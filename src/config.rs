//! The configuration: one typed tree, unknown keys refused at every depth, checked whole before anything starts.
//!
//! A TOML file (`--config`), then the command line's flags. The environment is read in `config/environment.rs` and nowhere
//! else: for secrets, which stand in files as references (`env:NAME`).

mod connections;
mod environment;
mod telemetry;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::processor::health;
use crate::records::control::NO_CREDENTIAL;

pub use connections::{ClickHouse, Kafka, Properties, Registry, SaslMechanism, SecurityProtocol};
pub use environment::{AdminKey, Environment, Secret};
pub use telemetry::Telemetry;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a valid configuration: {detail}")]
    Parse { path: PathBuf, detail: String },
    #[error("{key} = {value}: {problem}")]
    Invalid { key: &'static str, value: String, problem: &'static str },
    #[error("{key} is missing: {why}")]
    Missing { key: &'static str, why: &'static str },
    #[error("{key} cannot be used: {why}")]
    Useless { key: &'static str, why: &'static str },
    #[error("{key} = {path}: cannot be read: {source}")]
    File { key: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{key} must be a reference such as env:NAME; secrets do not stand in files")]
    NotAReference { key: &'static str },
    #[error("{variable}: {problem}")]
    AdminKey { variable: &'static str, problem: String },
    #[error("{key} = {reference}: the variable is neither in the environment nor in .env; set it")]
    NotInEnvironment { key: &'static str, reference: String },
}

/// The whole tree. Every key has a default, so an empty file is the laptop's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this process among all; default: host name and process id.
    pub instance: String,
    pub kafka: Kafka,
    pub registry: Registry,
    pub clickhouse: ClickHouse,
    pub facade: Facade,
    pub admin: Admin,
    pub processor: Processor,
    pub projection: Projection,
    pub sink: Sink,
    pub providers: Providers,
    pub archive: Archive,
    pub cache: Cache,
    pub telemetry: Telemetry,
}

/// Where the logs are archived.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// A directory, or `s3://BUCKET/PREFIX`: where `tollstream archive write` writes, and where replays look for what the topics
    /// do not have any more.
    pub url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facade {
    pub listen: SocketAddr,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Most requests that wait for answers here; more get 503.
    pub requests_max: usize,
    /// Most bytes of an answer that wait for a slow client; what is beyond is read again from the log.
    pub slot_bytes_max: usize,
    /// Most bytes that wait for all clients together; beyond it each has its even share.
    pub slots_bytes_max: usize,
    /// How long a client may take nothing of what waits for it, before its connection is closed.
    pub stalled_client_ms: u64,
    /// The longest that a request may go on without its client (`x-tollstream-resume`).
    pub resume_max_ms: u64,
    /// Time between keep-alive comments while a stream waits.
    pub keep_alive_ms: u64,
    /// Deadline of a request that names none.
    pub timeout_ms: u64,
    /// How long streams may go on after SIGTERM.
    pub drain_ms: u64,
    /// The partition of `responses` to listen on; default: by the instance's name.
    pub responses_partition: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Health, metrics, and control for operators.
    pub listen: SocketAddr,
    /// The operators' first key, out of the environment.
    #[serde(skip)]
    pub key: Option<AdminKey>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Processor {
    /// Most provider calls under way in this process.
    pub calls_max: usize,
    /// Most of them that one organization may hold, in percent.
    pub organization_share_percent: u8,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Most bytes of bodies of open requests in this process; more get 503, and one organization has its share of them.
    pub bodies_bytes_max: usize,
    /// Most bytes of records that wait (for a schema, for Kafka); beyond it, partitions that have some are paused.
    pub held_bytes_max: usize,
    /// Deadline of a request that names none.
    pub timeout_ms: u64,
    /// Latest deadline of any request.
    pub timeout_max_ms: u64,
    /// How long a clean stop waits for the calls under way.
    pub drain_ms: u64,
    /// Most bytes of a dead letter's payload that are kept.
    pub dead_letter_bytes_max: usize,
    /// How often offsets are committed.
    pub offset_commit_ms: u64,
    /// How often the partitions' clocks tick.
    pub tick_ms: u64,
    /// Entries of a partition's journal after which a checkpoint is kept: about as many does a takeover read.
    pub checkpoint_commits: u64,
    /// When a deployment is left alone.
    pub health: health::Settings,
    /// Key of the fingerprints of bodies; the same in all processes. Without one, who reads the journal can test guesses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint_key: Option<Secret>,
}

/// The answers that are kept for those who ask the same; which ones, plans say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Most bytes of bodies that this process has at hand; what was not asked for the longest goes first.
    pub bytes_max: usize,
    /// Largest answer that is kept.
    pub answer_bytes_max: usize,
    /// Most bytes of answers that are coming in and may be kept; beyond it, further ones are not.
    pub arriving_bytes_max: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Projection {
    /// How often offsets are committed.
    pub offset_commit_ms: u64,
    /// Most usage records, and most bytes of them, that wait for their acknowledgement.
    pub in_flight_max: usize,
    pub in_flight_bytes_max: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sink {
    /// Rows, and bytes of their records, after which a batch is inserted.
    pub batch_rows: usize,
    pub batch_bytes: usize,
    /// Time after which a batch is inserted.
    pub batch_ms: u64,
    /// Wait before an insert is tried again: first, and at the most.
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Providers {
    /// Every deployment is called at this OpenAI-compatible base URL, without credentials.
    pub upstream_override: Option<String>,
    /// Where deployments are called whose credential is not in the environment.
    pub simulator_url: Option<String>,
    pub connect_timeout_ms: u64,
    pub first_token_timeout_ms: u64,
    pub between_tokens_timeout_ms: u64,
    /// Largest answer that is not streamed.
    pub answer_bytes_max: usize,
    /// Largest single event of a stream.
    pub event_bytes_max: usize,
    /// Most bytes of answers between the providers and Kafka in this process. Beyond it whole answers fail with 503; beyond
    /// half of it, streams are read no further than Kafka takes them.
    pub answers_bytes_max: usize,
    /// Where credentials are found by their references (`env:NAME`); empty unless it was read.
    #[serde(skip)]
    pub environment: Environment,
}

/// Where a deployment is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub base_url: String,
    pub credential: Option<Secret>,
    /// A simulator answers instead of the provider.
    pub simulated: bool,
}

impl Providers {
    /// The simulator that answers for a deployment with this credential, if one does.
    pub fn simulator(&self, credential: &str) -> Option<&str> {
        let stands_in = || self.simulator_url.as_deref().filter(|_| self.environment.get(credential).is_none());
        self.upstream_override.as_deref().or_else(stands_in)
    }

    /// Where a deployment is called. `None`: its credential is not in the environment, so a call could only be refused.
    pub fn endpoint(&self, credential: &str, base_url: &str) -> Option<Endpoint> {
        if let Some(url) = self.simulator(credential) {
            return Some(Endpoint { base_url: url.to_owned(), credential: None, simulated: true });
        }
        let found = self.environment.get(credential).cloned();
        let may = found.is_some() || credential == NO_CREDENTIAL;
        may.then(|| Endpoint { base_url: base_url.to_owned(), credential: found, simulated: false })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: format!("tollstream-{}", std::process::id()),
            kafka: Kafka::default(),
            registry: Registry::default(),
            clickhouse: ClickHouse::default(),
            facade: Facade::default(),
            admin: Admin::default(),
            processor: Processor::default(),
            projection: Projection::default(),
            sink: Sink::default(),
            archive: Archive::default(),
            cache: Cache::default(),
            telemetry: Telemetry::default(),
            providers: Providers::default(),
        }
    }
}

impl Default for Facade {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4000)),
            body_bytes_max: 4 << 20,
            requests_max: 20_000,
            slot_bytes_max: 1 << 20,
            slots_bytes_max: 256 << 20,
            stalled_client_ms: 60_000,
            resume_max_ms: 600_000,
            keep_alive_ms: 15_000,
            timeout_ms: 300_000,
            drain_ms: 10_000,
            responses_partition: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 4001)), key: None }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, answer_bytes_max: 1 << 20, arriving_bytes_max: 64 << 20 }
    }
}

impl Default for Processor {
    fn default() -> Self {
        Self {
            calls_max: 4_096,
            organization_share_percent: 50,
            body_bytes_max: 4 << 20,
            bodies_bytes_max: 256 << 20,
            held_bytes_max: 128 << 20,
            timeout_ms: 300_000,
            timeout_max_ms: 3_600_000,
            drain_ms: 10_000,
            dead_letter_bytes_max: 64 << 10,
            offset_commit_ms: 1_000,
            tick_ms: 100,
            checkpoint_commits: 100_000,
            health: health::Settings::default(),
            fingerprint_key: None,
        }
    }
}

impl Default for Projection {
    fn default() -> Self {
        Self { offset_commit_ms: 1_000, in_flight_max: 10_000, in_flight_bytes_max: 16 << 20 }
    }
}

impl Default for Sink {
    fn default() -> Self {
        Self { batch_rows: 10_000, batch_bytes: 16 << 20, batch_ms: 1_000, retry_min_ms: 100, retry_max_ms: 10_000 }
    }
}

impl Default for Providers {
    fn default() -> Self {
        Self {
            upstream_override: None,
            simulator_url: None,
            connect_timeout_ms: 5_000,
            first_token_timeout_ms: 60_000,
            between_tokens_timeout_ms: 30_000,
            answer_bytes_max: (8 << 20) - (64 << 10),
            event_bytes_max: 1 << 20,
            answers_bytes_max: 256 << 20,
            environment: Environment::default(),
        }
    }
}

/// Milliseconds of the tree as a duration.
pub const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Config {
    /// Reads the file, or takes the defaults, and puts secrets in the place of their references.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        let mut config: Self = parsed.map_err(|e| Error::Parse { path: path.to_owned(), detail: e.to_string() })?;
        connections::resolve(&mut config, &Environment::read())?;
        Ok(config)
    }

    /// Checks what types cannot say.
    pub fn validate(&self) -> Result<(), Error> {
        let health = &self.processor.health;
        let positive: [(&'static str, u64); 25] = [
            ("processor.health.window_ms", health.window_ms),
            ("processor.health.calls_min", u64::from(health.calls_min)),
            ("processor.health.open_ms", health.open_ms),
            ("processor.health.open_max_ms", health.open_max_ms),
            ("processor.health.cooldown_ms", health.cooldown_ms),
            ("processor.health.cooldown_max_ms", health.cooldown_max_ms),
            ("processor.checkpoint_commits", self.processor.checkpoint_commits),
            ("projection.in_flight_max", self.projection.in_flight_max as u64),
            ("projection.in_flight_bytes_max", self.projection.in_flight_bytes_max as u64),
            ("processor.held_bytes_max", self.processor.held_bytes_max as u64),
            ("sink.batch_bytes", self.sink.batch_bytes as u64),
            ("sink.retry_max_ms", self.sink.retry_max_ms),
            ("kafka.message_timeout_ms", self.kafka.message_timeout_ms),
            ("facade.requests_max", self.facade.requests_max as u64),
            ("facade.slot_bytes_max", self.facade.slot_bytes_max as u64),
            ("facade.slots_bytes_max", self.facade.slots_bytes_max as u64),
            ("facade.stalled_client_ms", self.facade.stalled_client_ms),
            ("facade.keep_alive_ms", self.facade.keep_alive_ms),
            ("facade.timeout_ms", self.facade.timeout_ms),
            ("processor.calls_max", self.processor.calls_max as u64),
            ("processor.tick_ms", self.processor.tick_ms),
            ("sink.batch_rows", self.sink.batch_rows as u64),
            ("sink.batch_ms", self.sink.batch_ms),
            ("sink.retry_min_ms", self.sink.retry_min_ms),
            ("telemetry.spans_max", self.telemetry.spans_max as u64),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Error::Invalid { key, value: value.to_string(), problem: "must be more than 0" });
            }
        }
        let share = self.processor.organization_share_percent;
        if share == 0 || share > 100 {
            let key = "processor.organization_share_percent";
            return Err(Error::Invalid { key, value: share.to_string(), problem: "must be from 1 to 100" });
        }
        let failed = self.processor.health.failure_percent;
        if failed == 0 || failed > 100 {
            let key = "processor.health.failure_percent";
            return Err(Error::Invalid { key, value: failed.to_string(), problem: "must be from 1 to 100" });
        }
        connections::check(self)?;
        self.telemetry.check()?;
        if self.processor.bodies_bytes_max < self.processor.body_bytes_max {
            let (value, problem) =
                (self.processor.bodies_bytes_max.to_string(), "must be at least processor.body_bytes_max");
            return Err(Error::Invalid { key: "processor.bodies_bytes_max", value, problem });
        }
        if self.providers.answers_bytes_max < self.providers.answer_bytes_max {
            let (value, problem) =
                (self.providers.answers_bytes_max.to_string(), "must be at least providers.answer_bytes_max");
            return Err(Error::Invalid { key: "providers.answers_bytes_max", value, problem });
        }
        if self.kafka.record_bytes_max < self.facade.body_bytes_max + 65_536 {
            let problem = "must be at least facade.body_bytes_max + 65536";
            let value = self.kafka.record_bytes_max.to_string();
            return Err(Error::Invalid { key: "kafka.record_bytes_max", value, problem });
        }
        if self.kafka.record_bytes_max < self.providers.answer_bytes_max + 65_536 {
            let problem = "must be at least providers.answer_bytes_max + 65536";
            let value = self.kafka.record_bytes_max.to_string();
            return Err(Error::Invalid { key: "kafka.record_bytes_max", value, problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_print_no_secret() {
        let mut config = Config::default();
        config.validate().unwrap();
        config.clickhouse.password = Some(Secret::new("hunter2".into()));
        config.providers.environment = [("KEY".to_owned(), "sk-123".to_owned())].into_iter().collect();
        let shown = format!("{config:?}{}", toml::to_string(&config).unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("sk-123"), "{shown}");
    }

    #[test]
    fn an_unknown_key_is_refused_at_every_depth() {
        for text in ["colour = 1", "[kafka]\nbroker = 'x'", "[providers]\nenvironment = 1"] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bound_of_zero_is_refused_by_name() {
        let config: Config = toml::from_str("[sink]\nbatch_rows = 0").unwrap();
        assert_eq!(config.validate().unwrap_err().to_string(), "sink.batch_rows = 0: must be more than 0");
    }
}
