//! Whether the cluster lets us in, and if not, why: what is asked first wherever something starts.
//!
//! librdkafka tries for ever and answers every question with a time-out; the reason comes as an event of its own. Wrong
//! credentials and certificates do not get better by waiting, so the question ends with the first event that says so.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::kafka;
use crate::config::Kafka;

/// How long one try waits before events are looked at, and how long for these.
const TRY: Duration = Duration::from_millis(250);
const EVENTS: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("kafka's client does not take the settings of [kafka]: {0}")]
    Settings(KafkaError),
    #[error(
        "kafka at {brokers} does not accept these credentials; check kafka.sasl_mechanism, kafka.sasl_username and \
         kafka.sasl_password: {reason}"
    )]
    Credentials { brokers: String, reason: String },
    #[error(
        "no TLS connection with kafka at {brokers}; check kafka.ca_file, which must hold who signed the brokers' \
         certificates, and that these name the brokers' addresses: {reason}"
    )]
    Tls { brokers: String, reason: String },
    #[error("kafka at {brokers} does not allow {topic} to be seen; give Describe on it, see docs/production.md")]
    Forbidden { brokers: String, topic: String },
    #[error("kafka at {brokers} did not answer within {} s: {reason}", limit.as_secs())]
    NoAnswer { brokers: String, limit: Duration, reason: String },
    #[error("the question to kafka was broken off")]
    BrokenOff,
}

/// What librdkafka tells while it tries.
#[derive(Default)]
struct Events(Mutex<Option<(RDKafkaErrorCode, String)>>);

impl Events {
    fn told(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
}

impl ClientContext for Events {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = told.as_ref().is_some_and(|(told, _)| is_final(*told));
        // That all brokers are down only follows from the reason that was told before.
        if !settled && (told.is_none() || code != RDKafkaErrorCode::AllBrokersDown) {
            *told = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Events {}

/// What the cluster says of a topic, or of all that we may see, asked for at most for `limit`.
pub async fn metadata(config: &Kafka, topic: Option<&str>, limit: Duration) -> Result<Metadata, Error> {
    let (config, topic) = (config.clone(), topic.map(str::to_owned));
    let asked = tokio::task::spawn_blocking(move || ask(&config, topic.as_deref(), limit)).await;
    asked.unwrap_or(Err(Error::BrokenOff))
}

fn ask(config: &Kafka, topic: Option<&str>, limit: Duration) -> Result<Metadata, Error> {
    let brokers = config.brokers.clone();
    let client: BaseConsumer<Events> =
        kafka::client(config).create_with_context(Events::default()).map_err(Error::Settings)?;
    let deadline = Instant::now() + limit;
    loop {
        let answer = client.fetch_metadata(topic, TRY.min(limit));
        while client.poll(EVENTS).is_some() {}
        let error = match answer {
            Ok(metadata) => return visible(metadata, topic, brokers),
            Err(error) => error,
        };
        match client.context().told() {
            Some((RDKafkaErrorCode::Authentication, reason)) => return Err(Error::Credentials { brokers, reason }),
            Some((RDKafkaErrorCode::SSL, reason)) => return Err(Error::Tls { brokers, reason }),
            told if Instant::now() >= deadline => {
                let reason = told.map_or_else(|| error.to_string(), |(_, reason)| reason);
                return Err(Error::NoAnswer { brokers, limit, reason });
            }
            _ => {}
        }
    }
}

fn visible(metadata: Metadata, topic: Option<&str>, brokers: String) -> Result<Metadata, Error> {
    let refused = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let is_hidden = |name: &&str| metadata.topics().iter().any(|t| t.name() == *name && t.error() == Some(refused));
    match topic.filter(is_hidden) {
        Some(topic) => Err(Error::Forbidden { brokers, topic: topic.to_owned() }),
        None => Ok(metadata),
    }
}
