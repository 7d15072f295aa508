//! `tollstream topology apply`: makes the cluster, the registry, `control` and ClickHouse what the files say.
//!
//! First everything is looked at and compared; what would lose data refuses the whole. Each step is harmless when it was
//! done already, so a second run finds nothing to do, and two runs at once end in the same state.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::cluster::{self, Cluster};
use super::plan::{self, COMPATIBILITY, Observed, Plan, Refusal, Step, SubjectState, Wanted};
use super::topics::Profile;
use super::{Invalid, Topology};
use crate::codec::{self, Codec, Registry};
use crate::config::Config;
use crate::control::{Change, edit};
use crate::records::Topic;
use crate::runtime::control_log::{self, ControlLog};
use crate::runtime::kafka;
use crate::runtime::publisher::{self, Publisher};
use crate::sink::{migrations, retention};

/// Who changes control, as its records say.
const ACTOR: &str = "tollstream topology apply";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("nothing was applied: {}", list(.0))]
    Refused(Vec<Refusal>),
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    #[error(transparent)]
    Registry(#[from] codec::Error),
    #[error(transparent)]
    Control(#[from] control_log::Error),
    #[error(transparent)]
    Publisher(#[from] publisher::Error),
    #[error("clickhouse: {0}")]
    ClickHouse(String),
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; ")
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    pub topology: Topology,
    pub profile: Profile,
    /// In place of the profile's number of partitions.
    pub partitions: Option<u32>,
    /// Whether entities of control that differ from their seed are changed.
    pub update_seeds: bool,
}

impl Options {
    /// The topology that the program was built with, on one broker.
    ///
    /// # Errors
    /// When that topology does not hold, which a test rules out.
    pub fn laptop() -> Result<Self, Error> {
        let topology = Topology::embedded()?;
        Ok(Self { topology, profile: Profile::Laptop, partitions: None, update_seeds: false })
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The difference that was found.
    #[serde(flatten)]
    pub plan: Plan,
    /// Seeds that another writer changed in between; the other's value stands.
    pub overtaken: Vec<String>,
}

/// Looks, compares, and applies.
///
/// # Errors
/// [`Error::Refused`] when something would be lost; then nothing was applied. After any other error it can be run again.
pub async fn run(config: &Config, options: &Options) -> Result<Report, Error> {
    let plan = difference(config, options).await?;
    apply(config, plan).await
}

/// Looks and compares; changes nothing.
pub async fn difference(config: &Config, options: &Options) -> Result<Plan, Error> {
    let observed = observe(config).await?;
    let wanted = Wanted {
        profile: options.profile,
        partitions: options.partitions,
        topic_prefix: &config.kafka.topic_prefix,
        update_seeds: options.update_seeds,
    };
    Ok(plan::plan(&options.topology, wanted, &observed))
}

async fn observe(config: &Config) -> Result<Observed, Error> {
    let cluster = Cluster::connect(&config.kafka).await?;
    let names = Topic::ALL.map(|topic| kafka::topic_name(&config.kafka, topic));
    let (brokers, mut found) = cluster.topics(&names).await?;
    let mut topics = BTreeMap::new();
    for topic in Topic::ALL {
        if let Some(state) = found.remove(&kafka::topic_name(&config.kafka, topic)) {
            topics.insert(topic, state);
        }
    }
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    let mut subjects = BTreeMap::new();
    for topic in Topic::ALL {
        subjects.insert(topic, subject(&registry, topic).await?);
    }
    let mut observed = Observed { brokers, topics, subjects, ..Observed::default() };
    if observed.topics.contains_key(&Topic::Control) {
        let log = ControlLog::open(&config.kafka, Arc::new(Codec::reader(registry))).await?;
        observed.control = log.tables().clone();
        observed.deleted = log.deleted().clone();
    }
    let failed = |error: crate::sink::Error| Error::ClickHouse(error.to_string());
    let migrations = migrations::pending(&config.clickhouse).await.map_err(failed)?;
    observed.migrations = migrations.iter().map(|m| format!("{:04}_{}", m.number, m.name)).collect();
    let retentions = retention::pending(&config.clickhouse).await.map_err(failed)?;
    observed.retentions = retentions.iter().map(ToString::to_string).collect();
    Ok(observed)
}

async fn subject(registry: &Registry, topic: Topic) -> Result<SubjectState, Error> {
    let subject = registry.subject(topic);
    let exists = registry.exists(&subject).await?;
    let compatibility = registry.compatibility(&subject).await?;
    let registered = match registry.id_of(topic).await {
        Ok(_) => true,
        Err(codec::Error::NotRegistered { .. }) => false,
        Err(e) => return Err(e.into()),
    };
    let incompatible = match exists && !registered {
        true => registry.incompatibilities(&subject, topic.schema()).await?,
        false => Vec::new(),
    };
    Ok(SubjectState { compatibility, exists, registered, incompatible })
}

/// Does what the plan says.
///
/// # Errors
/// [`Error::Refused`] when the plan refuses something; then nothing was applied.
pub async fn apply(config: &Config, plan: Plan) -> Result<Report, Error> {
    if !plan.refusals.is_empty() {
        return Err(Error::Refused(plan.refusals));
    }
    let cluster = Cluster::connect(&config.kafka).await?;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    let mut puts = Vec::new();
    for step in plan.items.iter().filter_map(|item| item.step.as_ref()) {
        match step {
            Step::CreateTopic { name, partitions, replication_factor, configs } => {
                cluster.create(name, *partitions, *replication_factor, configs).await?;
            }
            Step::AlterTopic { name, configs } => cluster.alter(name, configs).await?,
            Step::Schema { topic, set_compatibility, register } => {
                // Compatibility first, so that the registry checks what is registered under it.
                if *set_compatibility {
                    registry.set_compatibility(&registry.subject(*topic), COMPATIBILITY).await?;
                }
                if *register {
                    registry.register(*topic).await?;
                }
            }
            Step::Put { id, entity, expected_version } => {
                puts.push(edit::Wanted::put(id, entity.clone(), *expected_version));
            }
            Step::Migrate => {
                let failed = |error: crate::sink::Error| Error::ClickHouse(error.to_string());
                migrations::apply(&config.clickhouse).await.map_err(failed)?;
                retention::apply(&config.clickhouse).await.map_err(failed)?;
            }
        }
    }
    let names = Topic::ALL.map(|topic| kafka::topic_name(&config.kafka, topic));
    cluster.wait_for_leaders(&names).await?;
    let overtaken = seed(config, registry, puts).await?;
    Ok(Report { plan, overtaken })
}

/// Puts the seeds on control; those that somebody else has put in between are named.
async fn seed(config: &Config, registry: Registry, puts: Vec<edit::Wanted>) -> Result<Vec<String>, Error> {
    if puts.is_empty() {
        return Ok(Vec::new());
    }
    let codec = Arc::new(Codec::connect(registry).await?);
    let publisher = Publisher::new(&config.kafka)?;
    let mut log = ControlLog::open(&config.kafka, codec).await?;
    let names: Vec<String> = puts.iter().map(|put| format!("{} {}", put.kind.name(), put.id)).collect();
    let outcomes = log.write(&publisher, puts, ACTOR).await?;
    let conflicts = names.into_iter().zip(outcomes).filter(|(_, outcome)| matches!(outcome, Change::Conflict { .. }));
    Ok(conflicts.map(|(name, _)| name).collect())
}
