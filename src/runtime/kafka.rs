//! Settings of the Kafka clients, with the reasons for what differs from librdkafka's defaults.

use rdkafka::ClientConfig;

use crate::config::Kafka;
use crate::records::Topic;

/// Room in an answer to a fetch beside the largest record: topics take records that are 1 MiB larger than the producer's
/// own, and a batch and the answer have headers.
const FETCH_OVERHEAD_BYTES: usize = 2 << 20;

/// Heartbeats in the time after which a silent member has lost its partitions.
const HEARTBEATS_PER_SESSION: u64 = 6;

/// The name of a topic on this cluster.
pub fn topic_name(config: &Kafka, topic: Topic) -> String {
    format!("{}{}", config.topic_prefix, topic.name())
}

/// What all clients share.
pub fn client(config: &Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.brokers)
        .set("security.protocol", config.security_protocol.name())
        .set("client.id", "tollstream")
        // librdkafka reconnects with back-off; its own log lines would repeat what our errors say.
        .set("log.connection.close", "false")
        .set("reconnect.backoff.max.ms", "2000");
    if let Some(mechanism) = config.sasl_mechanism {
        client.set("sasl.mechanism", mechanism.name());
    }
    if let Some(username) = &config.sasl_username {
        client.set("sasl.username", username);
    }
    if let Some(password) = &config.sasl_password {
        client.set("sasl.password", password.expose());
    }
    let files = [
        ("ssl.ca.location", &config.ca_file),
        ("ssl.certificate.location", &config.certificate_file),
        ("ssl.key.location", &config.key_file),
    ];
    for (name, file) in files {
        if let Some(path) = file {
            client.set(name, path.to_string_lossy());
        }
    }
    with_properties(client, config)
}

/// What the configuration adds wins over everything that is set here.
fn with_properties(mut client: ClientConfig, config: &Kafka) -> ClientConfig {
    for (name, value) in &config.properties.0 {
        client.set(name, value);
    }
    client
}

/// The producer: idempotent and acknowledged by all, nothing lingers, and what waits is bounded in bytes and time.
pub fn producer(config: &Kafka) -> ClientConfig {
    let mut client = client(config);
    client
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("queue.buffering.max.kbytes", config.producer_buffer_kbytes.to_string())
        .set("message.timeout.ms", config.message_timeout_ms.to_string())
        .set("retry.backoff.ms", "20")
        .set("message.max.bytes", config.record_bytes_max.to_string());
    let mut client = with_properties(client, config);
    for (name, value) in &config.producer_properties.0 {
        client.set(name, value);
    }
    client
}

/// A consumer on the way of a request: small queues, no automatic commits.
pub fn hot_consumer(config: &Kafka, group: &str) -> ClientConfig {
    let mut client = client(config);
    client
        .set("group.id", format!("{}{group}", config.topic_prefix))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", config.session_timeout_ms.to_string())
        // A member learns from its heartbeats that another one is gone, so they are a part of every takeover.
        .set("heartbeat.interval.ms", (config.session_timeout_ms / HEARTBEATS_PER_SESSION).max(100).to_string())
        .set("queued.max.messages.kbytes", "4096")
        // A full queue is looked at again at once; librdkafka's second would halve the speed of a restore.
        .set("fetch.queue.backoff.ms", "2")
        .set("fetch.message.max.bytes", "262144")
        .set("receive.message.max.bytes", (config.record_bytes_max + FETCH_OVERHEAD_BYTES).to_string());
    with_properties(client, config)
}

/// How often a member asks how far its partitions go, for its lag; librdkafka works a little for it.
pub const STATISTICS_INTERVAL_MS: u64 = 15_000;

/// The settings of a member of a group that shares partitions. A static one keeps its partitions through a restart.
pub fn member(config: &Kafka, mut client: ClientConfig, instance: &str) -> ClientConfig {
    client.set("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_string());
    let mut client = with_properties(client, config);
    if config.static_membership {
        client.set("group.instance.id", instance);
    }
    client
}

/// A consumer behind the way of a request: waits for more, asks less often.
pub fn cold_consumer(config: &Kafka, group: &str) -> ClientConfig {
    let mut client = hot_consumer(config, group);
    client.set("fetch.min.bytes", "65536").set("fetch.wait.max.ms", "250").set("fetch.message.max.bytes", "1048576");
    with_properties(client, config)
}
