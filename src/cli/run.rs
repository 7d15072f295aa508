//! `tollstream run`: any set of roles in one process.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::signals;
use crate::config::{Config, Environment};
use crate::node::{Node, Role};

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file; every key has a default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What this process does
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Role::ALL)]
    roles: Vec<Role>,
    /// Name of this process among all [default: by its process id]
    #[arg(long)]
    instance: Option<String>,
    /// Where the facade listens, instead of what the configuration says
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<std::net::SocketAddr>,
    /// Where health and metrics are served, instead of what the configuration says
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<std::net::SocketAddr>,
    /// Log JSON lines
    #[arg(long)]
    log_json: bool,
    /// Where this process ends or stops itself, for the fault tests: before-commit=kill@1
    #[cfg(feature = "failpoints")]
    #[arg(long, env = "TOLLSTREAM_FAILPOINT", hide = true)]
    failpoint: Option<crate::failpoint::Armed>,
}

pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    crate::telemetry::log(args.log_json, "info");
    #[cfg(feature = "failpoints")]
    args.failpoint.into_iter().for_each(crate::failpoint::arm);
    let mut config = Config::load(args.config.as_deref())?;
    if let Some(instance) = args.instance {
        config.instance = instance;
    }
    if let Some(listen) = args.listen {
        config.facade.listen = listen;
    }
    if let Some(listen) = args.admin_listen {
        config.admin.listen = listen;
    }
    config.providers.environment = Environment::read();
    config.admin.key = config.providers.environment.take_admin_key()?;
    config.telemetry.take_environment(&config.providers.environment);
    config.validate()?;
    tracing::info!(config = %toml::to_string(&config)?.replace('\n', "; "), "effective configuration");
    let mut node = Node::start(config, &args.roles).await?;
    let failed = tokio::select! {
        name = signals::terminated() => {
            tracing::info!(signal = name, "stopping");
            None
        }
        error = node.failed() => Some(error),
    };
    let stopped = node.stop().await;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(stopped.map(|()| ExitCode::SUCCESS)?),
    }
}
