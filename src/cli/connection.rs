//! Where the engines are: the flags that every command shares which talks to them.

use std::path::PathBuf;

use crate::config::{Config, Error};

/// A configuration file, and what takes precedence over it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Connection {
    /// Configuration file (TOML); without one, the engines of a laptop
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Kafka's addresses, host:port, comma separated
    #[arg(long, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// Base URL of the schema registry's Confluent API
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
    /// HTTP address of ClickHouse
    #[arg(long, value_name = "URL")]
    pub clickhouse: Option<String>,
    /// What the names of all topics begin with
    #[arg(long, value_name = "TEXT")]
    pub topic_prefix: Option<String>,
}

impl Connection {
    /// The configuration, checked.
    pub fn load(&self) -> Result<Config, Error> {
        let mut config = Config::load(self.config.as_deref())?;
        let flags = [
            (&self.brokers, &mut config.kafka.brokers),
            (&self.registry, &mut config.registry.url),
            (&self.clickhouse, &mut config.clickhouse.url),
            (&self.topic_prefix, &mut config.kafka.topic_prefix),
        ];
        for (flag, value) in flags {
            if let Some(flag) = flag {
                value.clone_from(flag);
            }
        }
        config.validate()?;
        Ok(config)
    }
}
