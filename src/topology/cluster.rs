//! Kafka's administration: what topics there are, and making and changing them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::plan::TopicState;
use crate::config;
use crate::runtime::{kafka, reach};

/// How long one question to the cluster may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a new topic may take until all its partitions have leaders, and how often that is looked at.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(30);
const LEADERS_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reach(#[from] reach::Error),
    #[error("kafka at {brokers} did not answer: {source}")]
    Kafka { brokers: String, source: KafkaError },
    #[error("kafka at {brokers} would not {what} topic {topic}: {code}")]
    Topic { brokers: String, what: &'static str, topic: String, code: RDKafkaErrorCode },
    #[error("topic {topic} has no leader for all of its partitions after {} s", LEADERS_TIMEOUT.as_secs())]
    NoLeader { topic: String },
    #[error("the question to kafka was broken off")]
    BrokenOff,
}

/// A connection to the cluster's administration.
pub struct Cluster {
    admin: Arc<AdminClient<DefaultClientContext>>,
    brokers: String,
}

impl Cluster {
    /// Returns when the cluster has let us in.
    pub async fn connect(config: &config::Kafka) -> Result<Self, Error> {
        reach::metadata(config, None, CALL_TIMEOUT).await?;
        let brokers = config.brokers.clone();
        let admin =
            kafka::client(config).create().map_err(|source| Error::Kafka { brokers: brokers.clone(), source })?;
        Ok(Self { admin: Arc::new(admin), brokers })
    }

    fn failed(&self, source: KafkaError) -> Error {
        Error::Kafka { brokers: self.brokers.clone(), source }
    }

    async fn metadata(&self) -> Result<Metadata, Error> {
        let admin = self.admin.clone();
        // All topics are asked for, since asking for one that is missing may create it.
        let fetched = tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(None, CALL_TIMEOUT)).await;
        fetched.map_err(|_| Error::BrokenOff)?.map_err(|source| self.failed(source))
    }

    /// How many brokers there are, and which of the named topics, as they are.
    pub async fn topics(&self, names: &[String]) -> Result<(usize, BTreeMap<String, TopicState>), Error> {
        let metadata = self.metadata().await?;
        let mut topics = BTreeMap::new();
        for topic in metadata.topics().iter().filter(|topic| names.iter().any(|name| name == topic.name())) {
            let partitions = topic.partitions();
            let replicas = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            let state = TopicState {
                partitions: u32::try_from(partitions.len()).unwrap_or(u32::MAX),
                replication_factor: u16::try_from(replicas).unwrap_or(u16::MAX),
                ..TopicState::default()
            };
            topics.insert(topic.name().to_owned(), state);
        }
        let there: Vec<String> = topics.keys().cloned().collect();
        let resources: Vec<ResourceSpecifier<'_>> = there.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok((metadata.brokers().len(), topics));
        }
        let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
        let described = self.admin.describe_configs(&resources, &options).await.map_err(|e| self.failed(e))?;
        for resource in described {
            let resource = resource.map_err(|code| self.failed(KafkaError::AdminOp(code)))?;
            let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = &resource.specifier else { continue };
            let Some(state) = topics.get_mut(name) else { continue };
            for entry in &resource.entries {
                let Some(value) = &entry.value else { continue };
                state.configs.insert(entry.name.clone(), value.clone());
                if entry.source == ConfigSource::DynamicTopic {
                    state.own.insert(entry.name.clone());
                }
            }
        }
        Ok((metadata.brokers().len(), topics))
    }

    /// Creates a topic; one that somebody else has just created is left as it is.
    pub async fn create(
        &self,
        name: &str,
        partitions: u32,
        replication_factor: u16,
        configs: &BTreeMap<String, String>,
    ) -> Result<bool, Error> {
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        let replication = TopicReplication::Fixed(i32::from(replication_factor));
        let mut topic = NewTopic::new(name, partitions, replication);
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT)).request_timeout(Some(CALL_TIMEOUT));
        let results = self.admin.create_topics([&topic], &options).await.map_err(|e| self.failed(e))?;
        let mut is_new = true;
        for result in results {
            match result {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => is_new = false,
                Err((topic, code)) => {
                    return Err(Error::Topic { brokers: self.brokers.clone(), what: "create", topic, code });
                }
            }
        }
        Ok(is_new)
    }

    /// Deletes topics; those that are not there are passed over. Gives the names of those that were.
    pub async fn delete(&self, names: &[String]) -> Result<Vec<String>, Error> {
        let options = AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT)).request_timeout(Some(CALL_TIMEOUT));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut deleted = Vec::new();
        for result in self.admin.delete_topics(&names, &options).await.map_err(|e| self.failed(e))? {
            match result {
                Ok(topic) => deleted.push(topic),
                Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((topic, code)) => {
                    return Err(Error::Topic { brokers: self.brokers.clone(), what: "delete", topic, code });
                }
            }
        }
        Ok(deleted)
    }

    /// Replaces the topic's own configuration.
    pub async fn alter(&self, name: &str, configs: &BTreeMap<String, String>) -> Result<(), Error> {
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in configs {
            alter = alter.set(key, value);
        }
        let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
        let results = self.admin.alter_configs([&alter], &options).await.map_err(|e| self.failed(e))?;
        for result in results {
            if let Err((_, code)) = result {
                let (brokers, topic) = (self.brokers.clone(), name.to_owned());
                return Err(Error::Topic { brokers, what: "change", topic, code });
            }
        }
        Ok(())
    }

    /// Waits until all partitions of all these topics have leaders.
    pub async fn wait_for_leaders(&self, names: &[String]) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + LEADERS_TIMEOUT;
        loop {
            let metadata = self.metadata().await?;
            let led = |name: &&String| {
                let topic = metadata.topics().iter().find(|topic| topic.name() == **name);
                topic.is_some_and(|topic| {
                    !topic.partitions().is_empty() && topic.partitions().iter().all(|p| p.leader() >= 0)
                })
            };
            let waiting: BTreeSet<&String> = names.iter().filter(|name| !led(name)).collect();
            let Some(topic) = waiting.first() else { return Ok(()) };
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::NoLeader { topic: (*topic).clone() });
            }
            tokio::time::sleep(LEADERS_INTERVAL).await;
        }
    }
}
