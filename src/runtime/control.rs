//! The process's follower of the control log: reads it from the beginning and keeps the fold at its end.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kafka;
use super::lag::{Lag, Tail};
use crate::codec::Codec;
use crate::config;
use crate::control::{Change, Tables};
use crate::records::Topic;
use crate::records::control::ControlRecord;
use crate::telemetry::Metrics;
use crate::telemetry::health::Health;

/// The name under which the follower reports its health.
const COMPONENT: &str = "control";
/// The name under which it reads, without being a member of a group.
const GROUP: &str = "control-reader";
/// Wait before the registry or the broker is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// Most records that are folded before the tables are shown again.
const SHOWN_AFTER: usize = 256;
/// How long one question about the log's end may take.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot follow {topic}: {source}")]
    Kafka { topic: String, source: rdkafka::error::KafkaError },
}

/// How far the fold is.
#[derive(Debug, Clone, Copy)]
struct Reached {
    /// Of the last record.
    offset: i64,
    /// It has been where the log ended when the process began.
    is_current: bool,
}

/// A handle to the tables; clones share them.
#[derive(Clone)]
pub struct Control {
    tables: Arc<ArcSwap<Tables>>,
    reached: watch::Receiver<Reached>,
}

impl Control {
    /// The tables as of now; cheap. Until the fold has been where the log ended when the process began, they are empty: on
    /// the way there it knows keys that a later record revokes.
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Whether the tables are those of the log, and not the empty ones of a process that is starting.
    pub fn is_current(&self) -> bool {
        self.reached.borrow().is_current
    }

    /// Waits until the fold has reached `offset`, and where the log ended when the process began: what is decided on less
    /// is decided on rules that are older than the process, or on none.
    pub async fn reached(&self, offset: i64) {
        // The sender lives in the follower; when that has ended the process is ending.
        let _ = self.reached.clone().wait_for(|reached| reached.is_current && reached.offset >= offset).await;
    }

    /// As of a process that has not read the log to its end, for tests without a broker.
    #[cfg(test)]
    pub fn starting() -> Self {
        let (_, reached) = watch::channel(Reached { offset: -1, is_current: false });
        Self { tables: Arc::default(), reached }
    }

    /// Fixed tables, for tests without a broker.
    pub fn fixed(tables: Tables) -> Self {
        let (_, reached) = watch::channel(Reached { offset: tables.offset(), is_current: true });
        Self { tables: Arc::new(ArcSwap::from_pointee(tables)), reached }
    }
}

/// Makes the handle and the future that keeps it up to date until `cancel`.
pub fn follow(
    config: &config::Kafka,
    codec: Arc<Codec>,
    health: Health,
    metrics: &Metrics,
    cancel: CancellationToken,
) -> Result<(Control, impl Future<Output = ()> + Send + 'static), Error> {
    let topic = kafka::topic_name(config, Topic::Control);
    let failed = |source| Error::Kafka { topic: topic.clone(), source };
    let client = Tail::configured(kafka::hot_consumer(config, GROUP));
    let context = Tail::new(Lag::register(metrics, COMPONENT), 0);
    let consumer: StreamConsumer<Tail> = client.create_with_context(context).map_err(failed)?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&topic, 0, Offset::Beginning).map_err(failed)?;
    consumer.assign(&assignment).map_err(failed)?;
    let tables = Arc::new(ArcSwap::from_pointee(Tables::default()));
    let (sender, reached) = watch::channel(Reached { offset: -1, is_current: false });
    health.missing(COMPONENT, "control has not been read to its end yet");
    let follower = Follower { consumer: Arc::new(consumer), topic, tables: tables.clone(), sender, codec, health };
    let run = async move {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = follower.run() => {}
        }
    };
    Ok((Control { tables, reached }, run))
}

struct Follower {
    consumer: Arc<StreamConsumer<Tail>>,
    topic: String,
    tables: Arc<ArcSwap<Tables>>,
    sender: watch::Sender<Reached>,
    codec: Arc<Codec>,
    health: Health,
}

impl Follower {
    async fn run(self) {
        let end = self.end().await;
        let mut folded = Tables::default();
        self.show(&folded, end);
        let mut chunks = self.consumer.stream().ready_chunks(SHOWN_AFTER);
        while let Some(messages) = chunks.next().await {
            for message in messages {
                match message {
                    Ok(message) => {
                        self.take(&mut folded, message.offset(), message.payload().unwrap_or_default()).await;
                    }
                    Err(error) => tracing::warn!(topic = %self.topic, %error, "reading control"),
                }
            }
            self.show(&folded, end);
        }
    }

    /// Shows what is folded, once that is as much as there was at the beginning.
    fn show(&self, folded: &Tables, end: i64) {
        if folded.offset() + 1 < end {
            return;
        }
        self.tables.store(Arc::new(folded.clone()));
        self.health.ready(COMPONENT);
        self.sender.send_replace(Reached { offset: folded.offset(), is_current: true });
    }

    /// Where the log ends now.
    async fn end(&self) -> i64 {
        loop {
            let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
            let asked = tokio::task::spawn_blocking(move || consumer.fetch_watermarks(&topic, 0, WATERMARK_TIMEOUT));
            match asked.await {
                Ok(Ok((_, high))) => return high,
                Ok(Err(error)) => self.health.missing(COMPONENT, format!("cannot ask for the end of control: {error}")),
                Err(error) => self.health.missing(COMPONENT, format!("cannot ask for the end of control: {error}")),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn take(&self, folded: &mut Tables, offset: i64, payload: &[u8]) {
        let record = loop {
            match self.codec.decode_learning::<ControlRecord>(payload).await {
                Err(error @ crate::codec::Error::Registry { .. }) => {
                    self.health.missing(COMPONENT, error.to_string());
                    tokio::time::sleep(RETRY).await;
                }
                decoded => break decoded,
            }
        };
        let applied = record
            .map_err(|e| e.to_string())
            .and_then(|record| folded.apply(offset, &record).map(|change| (change, record)).map_err(|e| e.to_string()));
        match applied {
            Ok((Change::Effective, _)) => {}
            Ok((Change::Conflict { version }, record)) => {
                tracing::info!(kind = record.kind, id = record.id, version, "control change ignored: version conflict");
            }
            // Every reader of control meets the same record, so all of them pass over it alike.
            Err(error) => {
                tracing::error!(topic = %self.topic, kafka.offset = offset, %error, "control record passed over");
                folded.pass(offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use crate::records::control::{Entity, Organization, Stamp};

    #[tokio::test]
    async fn nothing_is_shown_before_the_log_is_read_to_where_it_ended() {
        let (kafka, codec) = (config::Kafka::default(), Arc::new(Codec::offline().unwrap()));
        let context = Tail::new(Lag::register(&Metrics::default(), COMPONENT), 0);
        let consumer = kafka::hot_consumer(&kafka, GROUP).create_with_context(context).unwrap();
        let tables = Arc::new(ArcSwap::from_pointee(Tables::default()));
        let (sender, reached) = watch::channel(Reached { offset: -1, is_current: false });
        let control = Control { tables: tables.clone(), reached };
        let (health, topic) = (Health::default(), "control".to_owned());
        let follower = Follower { consumer: Arc::new(consumer), topic, tables, sender, codec, health };
        let (mut folded, end) = (Tables::default(), 3);
        for offset in 0..5 {
            follower.show(&folded, end);
            assert!(!control.is_current() || offset >= end, "{offset} of {end}");
            assert_eq!(control.tables().offset(), if offset < end { -1 } else { offset - 1 });
            let stamp = Stamp { change_id: offset.to_string(), actor: "test".into(), at: Timestamp::default() };
            let entity = Entity::Organization(Organization::named("Acme"));
            folded.apply(offset, &ControlRecord::put(&format!("o{offset}"), entity, -1, stamp)).unwrap();
        }
        control.reached(3).await;
    }
}
