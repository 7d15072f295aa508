//! `tollstream topics tail`: the records of a topic as JSON lines.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rdkafka::ClientContext;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::json;

use super::connection::Connection;
use super::output;
use crate::codec::generic::{Decoder, readable};
use crate::codec::{self, Registry};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::records::Topic;
use crate::runtime::{kafka, reach};

const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// Without `--follow`, how long nothing may come although the end is not reached.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the registry may be away while a record waits for its schema, and how often it is asked.
const REGISTRY_ATTEMPTS: u32 = 30;
const REGISTRY_INTERVAL: Duration = Duration::from_secs(1);

/// What is on the topics
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Print decoded records as JSON lines: topic, partition, offset, timestamp, key, value
    Tail(Tail),
}

#[derive(Debug, Clone, Args)]
pub struct Tail {
    /// requests, journal, responses, state, control, usage or dead-letters (without prefix), or any other topic's full name
    pub topic: String,
    #[command(flatten)]
    pub connection: Connection,
    /// Where to begin in each partition: beginning, end, an offset, or -N for the last N records
    #[arg(long, default_value = "beginning", allow_hyphen_values = true)]
    pub from: From,
    /// Only records with this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only this partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,
    /// Wait for more at the end
    #[arg(long, short)]
    pub follow: bool,
    /// End after so many records
    #[arg(short = 'n', long = "max", value_name = "N")]
    pub max: Option<u64>,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Beginning,
    End,
    Offset(i64),
    Last(i64),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<i64>()) {
            ("beginning", _) => Ok(Self::Beginning),
            ("end", _) => Ok(Self::End),
            (_, Ok(number)) if text.starts_with('-') => Ok(Self::Last(number.saturating_neg())),
            (_, Ok(number)) => Ok(Self::Offset(number)),
            (_, Err(_)) => Err(format!("{text:?} is none of beginning, end, an offset, -N")),
        }
    }
}

impl From {
    /// The first offset to read of a partition that holds `low..high`.
    fn offset(self, low: i64, high: i64) -> i64 {
        match self {
            Self::Beginning => low,
            Self::End => high,
            Self::Offset(offset) => offset.clamp(low, high),
            Self::Last(count) => high.saturating_sub(count).max(low),
        }
    }
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Tail(arguments) = command;
    let config = arguments.connection.load()?;
    let topic = match Topic::from_name(&arguments.topic) {
        Some(topic) => kafka::topic_name(&config.kafka, topic),
        None => arguments.topic.clone(),
    };
    let (consumer, open) = assign(&config, &topic, &arguments).await?;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    let tail = tail(&consumer, open, Decoder::new(registry), &arguments);
    tokio::select! {
        ended = tail => ended?,
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for an interrupt")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The end of a partition is what is waited for here, not an error to be logged.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Quiet {}

/// Partitions that are still to be read, and the offset at which each ends.
type Open = BTreeMap<i32, i64>;

async fn assign(config: &Config, topic: &str, arguments: &Tail) -> anyhow::Result<(StreamConsumer<Quiet>, Open)> {
    let mut client = kafka::hot_consumer(&config.kafka, "tail");
    // Compaction and control records leave gaps, so only the broker can say where the end is.
    client.set("enable.partition.eof", "true").set("fetch.message.max.bytes", "1048576");
    let metadata = reach::metadata(&config.kafka, None, METADATA_TIMEOUT).await?;
    let consumer: StreamConsumer<Quiet> = client.create_with_context(Quiet).context("cannot make a Kafka consumer")?;
    let (topic, from, only) = (topic.to_owned(), arguments.from, arguments.partition);
    let asked = tokio::task::spawn_blocking(move || {
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let Some(found) = found else { bail!("there is no topic {topic}; `tollstream topology apply` makes ours") };
        let all = found.partitions().iter().map(|partition| partition.id());
        let partitions: Vec<i32> = all.filter(|id| only.is_none_or(|only| only == *id)).collect();
        if partitions.is_empty() {
            bail!("topic {topic} has {} partitions, and none is {}", found.partitions().len(), only.unwrap_or(-1));
        }
        let (mut list, mut open) = (TopicPartitionList::new(), Open::new());
        for partition in partitions {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, METADATA_TIMEOUT)?;
            let start = from.offset(low, high);
            list.add_partition_offset(&topic, partition, Offset::Offset(start))?;
            open.insert(partition, high);
        }
        consumer.assign(&list)?;
        Ok((consumer, open))
    });
    asked.await.context("the question to kafka was broken off")?
}

async fn tail(
    consumer: &StreamConsumer<Quiet>,
    mut open: Open,
    mut decoder: Decoder,
    arguments: &Tail,
) -> anyhow::Result<()> {
    let mut left = arguments.max.unwrap_or(u64::MAX);
    while left > 0 && (arguments.follow || !open.is_empty()) {
        let received = match arguments.follow {
            true => consumer.recv().await,
            false => {
                let received = tokio::time::timeout(PROGRESS_TIMEOUT, consumer.recv()).await;
                received.with_context(|| format!("nothing came for {} s", PROGRESS_TIMEOUT.as_secs()))?
            }
        };
        let message = match received {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(partition)) => {
                open.remove(&partition);
                continue;
            }
            Err(KafkaError::MessageConsumption(code)) if passing(code) => {
                output::note(&format!("kafka is away, waiting for it: {code}"));
                continue;
            }
            Err(e) => return Err(e).context("cannot read on"),
        };
        let partition = message.partition();
        // What came after the start belongs to a later call, unless this one follows.
        let end = open.get(&partition).copied();
        if !arguments.follow && end.is_none_or(|end| message.offset() >= end) {
            open.remove(&partition);
            continue;
        }
        let wanted = arguments.key.as_ref().is_none_or(|key| message.key() == Some(key.as_bytes()));
        if wanted {
            let printed = print(&mut decoder, &message).await?;
            if !printed {
                return Ok(());
            }
            left -= 1;
        }
        if !arguments.follow && end.is_some_and(|end| message.offset() + 1 >= end) {
            open.remove(&partition);
        }
    }
    Ok(())
}

/// Whether the client comes back from it by itself.
fn passing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::Resolve
            | Code::TimedOutQueue
    )
}

/// Prints a record; says whether somebody still reads.
async fn print(decoder: &mut Decoder, message: &BorrowedMessage<'_>) -> anyhow::Result<bool> {
    let at = message.timestamp().to_millis().map(|ms| Timestamp::from_millis(ms).to_string());
    let mut line = json!({
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": at,
        "key": message.key().map(readable),
    });
    match message.payload() {
        None => line["value"] = serde_json::Value::Null,
        Some(payload) => match decode(decoder, payload).await {
            Ok(value) => line["value"] = value,
            // What cannot be decoded is on the topic all the same.
            Err(e @ codec::Error::Registry { .. }) => return Err(e.into()),
            Err(e) => {
                line["error"] = e.to_string().into();
                line["payload"] = readable(payload).into();
            }
        },
    }
    match output::stream(&line.to_string()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("cannot write"),
    }
}

/// Decodes, and waits a while for a registry that is away.
async fn decode(decoder: &mut Decoder, payload: &[u8]) -> Result<serde_json::Value, codec::Error> {
    let mut attempt = 1;
    loop {
        match decoder.decode(payload).await {
            Err(codec::Error::Registry { .. }) if attempt < REGISTRY_ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(REGISTRY_INTERVAL).await;
            }
            decided => return decided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_begin_is_read_and_kept_within_the_partition() {
        let table = [("beginning", 5), ("end", 20), ("-3", 17), ("-100", 5), ("0", 5), ("12", 12), ("99", 20)];
        for (text, offset) in table {
            assert_eq!(text.parse::<From>().unwrap().offset(5, 20), offset, "{text}");
        }
        for text in ["", "start", "-x", "1.5"] {
            assert!(text.parse::<From>().is_err(), "{text}");
        }
    }
}
